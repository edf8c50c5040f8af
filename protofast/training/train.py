"""Starting a run and resuming one."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from protofast.data import Splits
from protofast.errors import CheckpointError, SettingsError
from protofast.files import write_atomically
from protofast.models import ProtoPNet
from protofast.training.build import build_data, build_model, check_start, remark_on_start
from protofast.training.engine import build_fabric, determinism, on_first_rank, stop_on_signals
from protofast.training.environment import describe, record_start
from protofast.training.images import check_images, other_images
from protofast.training.journal import Journal
from protofast.training.loop import Loop
from protofast.training.optimizers import build_optimizers
from protofast.training.perturb import Perturb, check_perturb
from protofast.training.pooled import build_head
from protofast.training.progress import Progress, Silence
from protofast.training.random_state import seed_everything
from protofast.training.run_folder import RunFolder, check_classes
from protofast.training.schedule import PlanStep, find_place, plan
from protofast.training.settings import Settings
from protofast.training.settings_file import differences, settings_text
from protofast.training.state import EpochSums, State

# Settings that change neither the plan nor a single weight, so a resumed run may have others. Where
# the images lie is one, for they are compared themselves.
_FREE = (
    "training.workers",
    "training.checkpoint_seconds",
    "training.keep_checkpoints",
    "training.tensorboard",
    "data.in_memory",
    "data.root",
    "data.test_root",
)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        folder: Where everything is.
        finished: Whether the plan is done; otherwise the run was asked to stop and can be resumed.
        steps_before: Steps of the plan that were finished before this start.
        steps_done: Steps that are finished now.
        steps: Steps of the plan.
        best: Name of the best checkpoint, or None before the first test.
        test: Of the best checkpoint: ``accuracy``, ``balanced_accuracy``, ``loss``, ``images``, ...
        seconds: Of this start.
    """

    folder: RunFolder
    finished: bool
    steps_before: int
    steps_done: int
    steps: int
    best: str | None
    test: dict[str, Any] | None
    seconds: float


def train(
    settings: Settings | None,
    folder: Path | str,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    device: torch.device | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    perturb: Perturb | None = None,
    data: Splits | None = None,
    model: ProtoPNet | None = None,
    data_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Trains a network as the settings say, or goes on with a run that was interrupted.

    Ctrl-C and SIGTERM (where this is the main thread) and ``stop`` end it at the next batch with a
    checkpoint; a second Ctrl-C ends it at once.

    Args:
        settings: What to do. None, with ``resume``: what the folder's ``settings.toml`` says.
        folder: The run folder; must not exist yet, unless ``resume``.
        resume: Go on from the folder's latest checkpoint, or from the start if there is none yet.
            With the same machine, threads and versions, the weights come out bit-equal to those of
            a run that was never interrupted.
        allow_changes: Resume even though ``settings`` differ from the folder's, which they replace,
            or though the images are others.
        device: In place of ``training.accelerator``.
        progress: What to tell; nothing by default.
        stop: Set it from another thread to end the run.
        perturb: See :class:`protofast.training.perturb.Perturb`.
        data: In place of what ``settings.data`` names.
        model: In place of what ``settings.model`` describes; on resuming, its weights are
            overwritten.
        data_progress: Called with (images done, images in all) while images are rendered or
            decoded.

    Raises:
        RunFolderError: The folder exists (or, resuming, does not), or another process works on it.
        SettingsError: Resuming with other settings, the message names the keys; or adversarial
            training without ``perturb``; or a start from the network of another run that is not
            named, or knows other classes.
        CheckpointError: Every checkpoint is damaged.
        DataError: About the images.
        OSError: Writing failed (a full disk, say); the last checkpoint is whole.
    """
    started = time.monotonic()
    run_folder = RunFolder(Path(folder))
    if resume and settings is None:
        settings = RunFolder.open(folder).settings
    if settings is None:
        raise TypeError("settings may be left out only to resume a run")
    check_perturb(settings.training.adversarial, perturb)
    if not resume and model is None:
        check_start(settings.model)
    wanted, stop = settings, stop or threading.Event()
    fabric = build_fabric(settings.training, device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_on_signals(stop))
        stack.enter_context(determinism(fabric, settings.training.deterministic))

        def claim() -> None:
            _claim(run_folder, wanted, stack, resume=resume, allow_changes=allow_changes)

        on_first_rank(fabric, claim)
        with _removed_if_refused(fabric, run_folder, resume):
            journal = _journal(run_folder, settings, fabric, progress or Silence())
            stack.callback(journal.close)
            data = data or _open_data(fabric, settings, data_progress)
            state = _fresh_state(fabric, settings, model, run_folder, data.train.classes)
            _take_up(fabric, journal, state, data, settings, allow_changes=allow_changes)
            remark = None if resume else remark_on_start(settings.model)
            if remark is not None:
                journal.say(remark)
            steps_before = state.step
            loop = Loop(fabric, settings, data, state, journal, stop=stop, perturb=perturb)
            # Not before it is known that the run can go on with them.
            on_first_rank(fabric, lambda: _adopt(run_folder, wanted))
        finished = loop.run()
    best = state.best or {"name": None, "test": None}
    return Result(
        run_folder,
        finished,
        steps_before,
        state.step,
        len(loop.plan),
        best["name"],
        best["test"],
        time.monotonic() - started,
    )


def check_changes(folder: RunFolder, settings: Settings, *, allow: bool) -> list[str]:
    """What differs in ``settings`` from those that a run was started with.

    Args:
        folder: The run.
        settings: With which it is to be resumed.
        allow: Whether differences that matter are welcome.

    Raises:
        SettingsError: They are not; the message names them.
    """
    changed = differences(folder.settings, settings)
    serious = [text for text in changed if not text.startswith(_FREE)]
    if serious and not allow:
        raise SettingsError(
            f"{folder.path} was started with other settings: {', '.join(serious)}; resume without "
            "them, start another run, or allow changes, which gives up bit-equality"
        )
    return changed


@contextlib.contextmanager
def _removed_if_refused(fabric: Fabric, folder: RunFolder, resume: bool) -> Iterator[None]:
    """Takes a new run's folder away again if it cannot even begin, for whatever reason."""
    try:
        yield
    except Exception:
        if not resume and fabric.is_global_zero:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _claim(
    folder: RunFolder,
    settings: Settings,
    stack: contextlib.ExitStack,
    *,
    resume: bool,
    allow_changes: bool,
) -> None:
    """Makes the run folder, or takes up the one that is there; locks it until the run ends."""
    if not resume:
        RunFolder.create(folder.path, settings)
        stack.enter_context(folder.lock())
        return
    RunFolder.open(folder.path)
    stack.enter_context(folder.lock())
    folder.sweep()
    check_changes(folder, settings, allow=allow_changes)


def _adopt(folder: RunFolder, settings: Settings) -> None:
    """Writes down the settings that a run goes on with, if they are others than before."""
    changed = differences(folder.settings, settings)
    if changed:
        write_atomically(folder.path / "settings.toml", settings_text(settings))
        folder.log(f"settings changed: {', '.join(changed)}")


def _journal(folder: RunFolder, settings: Settings, fabric: Fabric, progress: Progress) -> Journal:
    training = settings.training
    journal = Journal(
        folder,
        progress if fabric.is_global_zero else Silence(),
        writes=fabric.is_global_zero,
        keep_all=training.keep_checkpoints == "all",
        tensorboard=training.tensorboard,
    )

    def record() -> None:
        environment = describe(device=str(fabric.device), ranks=fabric.world_size)
        changed = record_start(folder.path, environment)
        if changed:
            journal.say(
                f"{', '.join(changed)} changed since the last start: the result may differ in its "
                "last bits from that of an uninterrupted run"
            )

    on_first_rank(fabric, record)
    return journal


def _open_data(
    fabric: Fabric, settings: Settings, progress: Callable[[int, int], None] | None
) -> Splits:
    """The data; the first rank goes first and fills the cache of rendered images."""
    opened: list[Splits] = []
    on_first_rank(fabric, lambda: opened.append(build_data(settings.data, progress=progress)))
    return opened[0] if opened else build_data(settings.data)


def _fresh_state(
    fabric: Fabric,
    settings: Settings,
    model: ProtoPNet | None,
    folder: RunFolder,
    classes: Sequence[str],
) -> State:
    """Model, optimisers and random states as they are before the first step."""
    num_classes = len(classes)
    seed_everything(settings.training.seed, 0)  # the same weights on every rank
    if model is None:
        described = settings.model
        if any(not folder.is_refined(name) for name in folder.names()):
            # A checkpoint will replace the pretrained weights, which may be gone by now.
            described = described.model_copy(update={"weights": "none"})
        model = build_model(described, settings.data, num_classes=num_classes, classes=classes)
    if model.num_classes != num_classes:
        raise ValueError(f"the model has {model.num_classes} classes, the data {num_classes}")
    model.to(fabric.device)
    head = build_head(model) if settings.training.warm_head == "linear" else None
    if head is not None:
        head.to(fabric.device)
    seed_everything(settings.training.seed, fabric.global_rank)
    return State(
        model,
        head,
        build_optimizers(model, settings.training.optimizer, head=head),
        EpochSums(model.num_prototypes, fabric.device),
    )


def _take_up(
    fabric: Fabric,
    journal: Journal,
    state: State,
    data: Splits,
    settings: Settings,
    *,
    allow_changes: bool,
) -> None:
    """Restores the newest checkpoint that is whole, if there is one.

    Raises:
        DataError: The data are others than the run's.
        SettingsError: The schedule has no such epoch where the run stands.
    """
    folder, steps = journal.folder, plan(settings.training.schedule)
    chosen: list[str] = []
    size = [0]

    def choose() -> None:
        found = _newest_whole(journal)
        if found is not None:
            name, _, facts = found
            check_classes(facts["classes"], data.train.classes)
            _compare_images(journal, facts, data, allow_changes)
            step = _step_to_do(facts, steps)
            _mend_pointers(folder, name, facts)
            chosen.append(name)
            size[0] = facts["metrics_bytes"]
            if step == len(steps):
                return  # nothing will be written; what refining added later stays
            folder.write_prototypes(facts["prototypes"])  # refining may have put others there
        folder.cut_metrics(size[0])

    on_first_rank(fabric, choose)
    name: str = chosen[0] if chosen else ""
    if fabric.world_size > 1:
        name = fabric.broadcast(name)
    if not name:
        return
    _, tensors, facts = folder.read(name)
    lost = state.restore(fabric, name, tensors, facts)
    state.step = _step_to_do(facts, steps)
    if state.best is not None and state.best["name"] not in folder.names():
        state.best = None
    for what in lost:
        journal.say(f"not restored: {what}")
    journal.say(f"resumed from checkpoint {name}: {state.step} of {len(steps)} steps are done")


def _compare_images(
    journal: Journal, facts: dict[str, Any], data: Splits, allow_changes: bool
) -> None:
    sets = {"train": data.train, "project": data.project, "test": data.test}
    if not allow_changes:
        check_images(facts["images"], **sets)
        return
    others = other_images(facts["images"], **sets)
    if others:
        journal.say(others)


def _step_to_do(facts: dict[str, Any], steps: list[PlanStep]) -> int:
    """Where a checkpoint stands in the plan."""
    place = facts["place"]
    return find_place(steps, place["key"], under_way=place["batch"] > 0)


def _mend_pointers(folder: RunFolder, name: str, facts: dict[str, Any]) -> None:
    """Lets ``latest`` and ``best`` name checkpoints that exist, if they do not."""
    if folder.pointer("latest") != name:
        folder.point("latest", name)
    there, best = folder.names(), folder.pointer("best")
    if facts["best"] and facts["best"]["name"] in there and best not in there:
        folder.point("best", facts["best"]["name"])
    elif best is not None and best not in there:
        folder.unpoint("best")


def _newest_whole(journal: Journal) -> tuple[str, dict[str, Tensor], dict[str, Any]] | None:
    """The latest checkpoint, or the newest before it that is not damaged; None if there is none.

    Raises:
        CheckpointError: There are some, and all are damaged.
    """
    folder = journal.folder
    latest = folder.pointer("latest")
    by_age = [name for name in folder.names() if not folder.is_refined(name)][::-1]
    if not by_age and latest is None:
        return None
    failed = []
    for name in sorted(by_age, key=lambda name: name != latest):  # the others stay in order
        try:
            return folder.read(name)
        except CheckpointError as error:
            failed.append(name)
            journal.say(f"{str(error).partition('; others')[0]}; trying the one before it")
    raise CheckpointError(
        f"no checkpoint in {folder.checkpoints} can be read (tried {', '.join(failed) or latest}); "
        "start the run again in another folder"
    )
