"""How errors of all kinds become one line."""

import errno
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from protofast.cli.console import duration
from protofast.cli.errors import (
    MemoryShortError,
    UnfinishedRunError,
    exit_code,
    is_expected,
    one_line,
    remedy_for_memory,
    resume_command,
)
from protofast.errors import DataError, RunFolderError, SettingsError
from protofast.explain import save_prototype_figure
from protofast.training import RunFolder


def _os_error(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("a\n  b"), "a b"),
        (_os_error(errno.ENOENT, "x"), "x: No such file or directory"),
        (
            _os_error(errno.ENOSPC, "x"),
            "x: No space left on device; free some space and run the command again; what was there "
            "is kept",
        ),
        (
            _os_error(errno.EACCES),
            "Permission denied; this user may not; change the permissions, or work on a copy "
            "elsewhere",
        ),
        (OSError("odd"), "odd"),
        (ImportError("odd"), "odd"),
        (
            ModuleNotFoundError("No module named 'jinja2'", name="jinja2"),
            "this needs jinja2, which is not installed: pip install 'protofast[all]'",
        ),
        (
            MemoryError(),
            "out of memory (no more is known); use smaller batches or images "
            "(training.batch_size, training.test_batch_size, data.size), or do not keep all images "
            "in memory (data.in_memory=false)",
        ),
    ],
)
def test_one_line(error: Exception, line: str) -> None:
    assert is_expected(error)
    assert one_line(error) == line
    assert exit_code(error) == 1


def test_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_expected(caught.value)
    assert one_line(caught.value).startswith("out of memory (")
    on_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")
    assert is_expected(on_gpu)
    assert one_line(on_gpu).startswith("out of memory (CUDA out of memory); use smaller")
    with (
        pytest.raises(MemoryShortError, match=r"^out of memory \(no more is known\); less$"),
        remedy_for_memory("less"),
    ):
        raise MemoryError
    with pytest.raises(ValueError, match="mine"), remedy_for_memory("less"):
        raise ValueError("mine")
    with pytest.raises(RuntimeError, match=r"^mine$"), remedy_for_memory("less"):
        raise RuntimeError("mine")


def test_mistakes_of_ours_keep_their_traceback() -> None:
    for error in (ValueError("x"), RuntimeError("x"), TypeError("x"), KeyError("x")):
        assert not is_expected(error)


def test_settings_are_the_users_to_correct() -> None:
    assert exit_code(SettingsError("x")) == 2


def test_a_stopped_run_says_how_it_goes_on() -> None:
    folder = Path("my runs/a")
    assert resume_command(folder) == "protofast train --resume 'my runs/a'"
    again = resume_command(folder)
    assert str(UnfinishedRunError(_os_error(errno.ENOSPC, "x"), again)) == (
        "x: No space left on device; free some space, then go on with: "
        "protofast train --resume 'my runs/a'"
    )
    assert str(UnfinishedRunError(DataError("x: damaged; copy it again"), again)) == (
        "x: damaged; copy it again; once that is mended, go on with: "
        "protofast train --resume 'my runs/a'"
    )


def test_commands_in_messages_can_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "my run's"
    (run / "explanations").mkdir(parents=True)
    quoted = shlex.quote(str(run))
    with pytest.raises(RunFolderError, match=re.escape(f"protofast explain {quoted}")):
        save_prototype_figure(tmp_path / "figure.png", run, 0)
    for text in ("{", '{"format": 99}'):
        (run / "explanations" / "summary.json").write_text(text)
        with pytest.raises(RunFolderError, match=re.escape(f"protofast explain {quoted}")):
            save_prototype_figure(tmp_path / "figure.png", run, 0)
    (run / "settings.toml").touch()
    with pytest.raises(RunFolderError, match=re.escape(f"(protofast train --resume {quoted})")):
        RunFolder.check_free(run)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7265, "2 h 1 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
