import sys
from pathlib import Path

import pytest
import torch

# The stand-ins are imported by their own name, `stand_ins`, as users' `model.py` would be.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
