"""The code of docs/interop.md runs, with the stand-in in the place of the reader's own network."""

import re
from pathlib import Path

import pytest
import torch
from stand_ins import PPNet
from torch import nn

import protofast
from protofast import interop

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"


def test_the_pages_code_runs(tmp_path) -> None:
    pytest.importorskip("PIL")
    ppnet = PPNet()
    labels = torch.arange(30) % 3
    names = {
        "torch": torch,
        "protofast": protofast,
        "interop": interop,
        "PPNet": PPNet,
        "ppnet": ppnet,
        "ppnet_multi": nn.DataParallel(ppnet),
        "push_loader": [(torch.rand(30, 3, 32, 32), labels)],
        "normalise": lambda images: (images - 0.5) / 0.2,
        "run": tmp_path,
        "backbone": PPNet().features,
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["checkpoint"].num_prototypes == names["model"].num_prototypes < 12
    assert (tmp_path / "img" / "epoch-10" / "bb10.npy").exists()
