"""What a new user sees first: help, usage errors, exit codes."""

import itertools
import subprocess
import sys

import pytest
from commands import command, start, wait

from protofast.cli.train import RECIPES
from protofast.training import recipes

COMMANDS = (
    *("demo", "train", "evaluate", "project", "prune"),
    *("explain", "attack", "report", "audit", "reproduce", "info"),
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_fit_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    text = command(name, "--help").done()
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert command(name, "-h").done() == text
    start = lines.index(" Examples:")
    assert lines[start + 1].startswith(f"   protofast {name}")
    description = lines[3:start]
    # Paragraphs are folded at the terminal's width, not where the source code has its line ends.
    for line, following in itertools.pairwise(description):
        word = following.split(" ")[1:2]
        assert not (line and word) or len(line) + 1 + len(word[0]) > 78, (line, following)


def test_help_names_all_commands_and_recipes() -> None:
    text = command("--help").done()
    for name in COMMANDS:
        assert f" {name} " in text
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted" in text
    assert recipes() == RECIPES
    assert ", ".join(RECIPES) in command("train", "--help").done()


def test_help_does_not_wait_for_what_training_imports() -> None:
    code = (
        "import sys; from protofast.cli.app import app; app(['train', '--help'], "
        "standalone_mode=False); print([name for name in ('lightning_fabric', 'sklearn', "
        "'matplotlib', 'torchvision') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("evaluate",),
        ("prune", "run", "--k", "0"),
        ("prune", "run", "--k", "2", "--threshold", "3"),
        ("explain", "run", "--top", "0"),
        ("explain", "run", "--seed", "-1"),
        ("evaluate", "run", "--threads", "0"),
        ("evaluate", "run", "--bogus"),
        ("report", "run", "again"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    answer = command(*arguments)
    assert answer.code == 2
    assert "Error" in answer.err
    assert answer.out == ""


def test_a_process_of_its_own_says_the_same() -> None:
    failed, wrong = start("evaluate", "nowhere"), start("train", "papr")
    answer = wait(failed)
    assert answer.code == 1
    assert answer.error == "no run folder nowhere"
    answer = wait(wrong)
    assert answer.code == 2
    assert answer.error.startswith("unknown recipe 'papr'; did you mean paper?")


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOFAST_TRACEBACK", "1")
    answer = command("evaluate", "nowhere")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "run_folder.py" in answer.err
    assert answer.err.splitlines()[-1] == "protofast: no run folder nowhere"


def test_a_closed_pipe_is_no_error() -> None:
    ran = subprocess.run(
        f"{sys.executable} -m protofast.cli info --json | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "{\n"
    assert ran.stderr == ""
