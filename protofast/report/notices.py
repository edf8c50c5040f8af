"""What the reader has to know or to do: missing parts, explanations out of date, damaged files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protofast.report import words
from protofast.report.files import RunFiles
from protofast.report.pictures import Pictures

_LONGEST = 400  # characters of a warning that training wrote


@dataclass(frozen=True)
class Notice:
    """Something the reader has to know or to do.

    Attributes:
        kind: "missing", "stale", "warning" or "damaged".
        text: A sentence.
        command: What to type, or None.
    """

    kind: str
    text: str
    command: str | None = None


def folder_argument(run: RunFiles) -> str:
    """The run folder as one types it in a command."""
    return words.shell(run.folder)


def notices(run: RunFiles, pictures: Pictures) -> list[Notice]:
    """Everything of this kind, the worst first."""
    folder = folder_argument(run)
    found = [Notice("damaged", text) for text in run.problems]
    if pictures.missing:
        lost = words.count(pictures.missing, "picture")
        found.append(
            Notice(
                "damaged",
                f"{lost} of the explanations cannot be found.",
                f"protofast explain {folder}",
            )
        )
    found += _stale(run, folder)
    found += _missing(run, folder)
    notes = (run.explanations or {}).get("notes", [])
    found += [Notice("warning", words.name(text)) for text in notes]
    return found


def _missing(run: RunFiles, folder: str) -> Iterator[Notice]:
    """Parts that have not been made yet."""
    if not run.prototypes:
        yield Notice(
            "missing",
            "The prototypes have not been projected yet, so none is a patch of an image.",
            f"protofast project {folder}",
        )
    if run.evaluation is None or run.confusion is None:
        yield Notice(
            "missing",
            "The network has not been evaluated on the test images: no confusion matrix.",
            f"protofast evaluate {folder}",
        )
    if run.explanations is None:
        yield Notice(
            "missing",
            "There are no explanations yet: no prototypes and no explained predictions.",
            f"protofast explain {folder}",
        )


def _stale(run: RunFiles, folder: str) -> Iterator[Notice]:
    """Parts that belong to other weights than the run's checkpoint, or to each other's."""
    current = run.checkpoints.get("best") or run.checkpoints.get("latest")
    parts = []
    if run.explanations is not None:
        parts.append(("explanations", run.explanations["checkpoint"], "explain"))
    if run.evaluation is not None and "checkpoint" in run.evaluation:
        evaluated = {"name": run.evaluation["checkpoint"], "sha256": run.evaluation.get("sha256")}
        parts.append(("numbers of the evaluation", evaluated, "evaluate"))
    for what, checkpoint, command in parts:
        name = words.name(checkpoint.get("name"))
        why = None
        if current is not None and checkpoint.get("name") != current:
            why = f"of checkpoint {name}, and the run's is now {words.name(current)}"
        elif checkpoint.get("sha256") is not None:
            now = run.sha256(name)
            if now is not None and now != checkpoint["sha256"]:
                why = f"of checkpoint {name}, whose weights have changed since"
        if why is not None:
            yield Notice(
                "stale",
                f"Out of date: the {what} below are {why}.",
                f"protofast {command} {folder}",
            )
    names = [words.name(checkpoint.get("name")) for _, checkpoint, _ in parts]
    if len(set(names)) > 1:
        yield Notice(
            "stale",
            f"Two different networks: the explanations below are of checkpoint {names[0]}, the "
            f"numbers of the evaluation of checkpoint {names[1]}.",
        )


def training_warnings(run: RunFiles) -> list[str]:
    """What training warned of, the latest of each kind, and when."""
    latest: dict[str, str] = {}
    for row in run.metrics:
        if row.get("kind") == "warning" and row.get("message"):
            what = str(row.get("what") or row["message"])
            latest.pop(what, None)
            when = f"{words.name(row.get('stage', ''))}-{words.name(row.get('epoch', ''))}"
            latest[what] = f"{words.shortened(words.name(row['message']), _LONGEST)} ({when})"
    return list(latest.values())
