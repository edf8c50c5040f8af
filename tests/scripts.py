"""Running the scripts among the tests."""

import os
import subprocess
import sys
from pathlib import Path


def run_script(script: Path, *arguments: object) -> str:
    """Runs a script of the tests in a process of its own; returns what it printed."""
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    ran = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
