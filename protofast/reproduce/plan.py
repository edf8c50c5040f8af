"""What a grid consists of: models, the audits of them, seeds; read from a TOML file.

Paths of images, weights, recipes and parts count from the folder of that file, from wherever the
plan is carried out.
"""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from protofast.audits import AUDITS, Audit, build_audits
from protofast.errors import SettingsError
from protofast.reproduce.claims import DIRECTIONS
from protofast.training import Settings, anchored, check_start, load_settings
from protofast.training.settings import NO_FILES
from protofast.training.settings_file import PLACES

_PLANS = Path(__file__).parent / "plans"
PATHS = tuple(f"data.{key}" for key in PLACES)  # where images are, which changes no result
WEIGHTS = "model.weights"  # a path as well, unless it is one of NO_FILES

Words = Annotated[
    tuple[str, ...], BeforeValidator(lambda said: tuple(said) if isinstance(said, list) else said)
]
Seeds = Annotated[
    tuple[int, ...], BeforeValidator(lambda said: tuple(said) if isinstance(said, list) else said)
]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Variant(_Frozen):
    """A model of the grid: the plan's recipe, with parts over it.

    Attributes:
        start: Another model of the plan, whose network of the same seed this one starts from.
        parts: Recipe parts, say ``adversarial``.
        set: Settings of this model alone, ``training.alignment.weight=1`` each.
    """

    start: str | None = None
    parts: Words = ()
    set: Words = ()


class AuditPlan(_Frozen):
    """Audits of some models side by side, for each seed.

    Attributes:
        name: What to call it, and its folders.
        models: Names of models of the plan.
        audits: Which audits.
        protocols: Under which protocols; an audit that does not know one is left out there.
        images: Size of the random subset of each audit; None for its own.
        set: Settings of the audits, ``head_on_stomach.steps=10`` each.
    """

    name: FileName
    models: Annotated[Words, Field(min_length=1)]
    audits: Annotated[Words, Field(min_length=1)]
    protocols: tuple[Literal["paper", "released", "targeted"], ...] = ("paper", "released")
    images: Annotated[int, Field(ge=1)] | None = None
    set: Words = ()

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, said: Any) -> Any:
        if isinstance(said, dict) and isinstance(said.get("protocols"), list):
            return {**said, "protocols": tuple(said["protocols"])}
        return said

    def build(self) -> list[Audit[Any]]:
        """The audits with their settings, in the order in which they run.

        Raises:
            SettingsError: An audit, protocol or setting is not known.
        """
        for override in self.set:
            if override.partition(".")[0] not in self.audits:
                raise SettingsError(f"{override}: must begin with one of {', '.join(self.audits)}")
        built: list[Audit[Any]] = []
        for name in self.audits:
            known = next((kind.protocols for kind in AUDITS if kind.name == name), self.protocols)
            wanted = [protocol for protocol in self.protocols if protocol in known]
            if not wanted:
                raise SettingsError(f"{name} knows none of {', '.join(self.protocols)}")
            own = [override for override in self.set if override.startswith(f"{name}.")]
            for protocol in wanted:
                built += build_audits([name], protocol=protocol, images=self.images, overrides=own)
        return built


class Plan(_Frozen):
    """A grid.

    Attributes:
        name: What to call it.
        title: The data set and scale in words, as the page names them.
        recipe: What all models are trained by: the name of a recipe, or a TOML file.
        seeds: Each model is trained with each of them, and audited with the same.
        checkpoint: Which checkpoint is audited. ``latest`` is the end of the training, which was
            not chosen by the test images.
        set: Settings of all models.
        models: By name. The page knows ``standard``, ``longer``, ``adversarial``, ``jpeg``,
            ``jpeg-augmented``, ``jpeg-and-augmented``, ``masking``, ``alignment`` and ``aligned``
            (both), and compares these.
        audits: What is measured.
        notes: Paragraphs on what is particular about this grid.
        remarks: By the key of a direction (see :mod:`protofast.reproduce.claims`): what to say
            where it does not reproduce.
    """

    name: FileName
    title: str
    recipe: str
    seeds: Annotated[Seeds, Field(min_length=1)]
    checkpoint: str = "latest"
    set: Words = ()
    models: dict[FileName, Variant]
    audits: Annotated[
        tuple[AuditPlan, ...],
        BeforeValidator(lambda said: tuple(said) if isinstance(said, list) else said),
    ]
    notes: Words = ()
    remarks: dict[str, str] = {}

    @model_validator(mode="after")
    def _belong_together(self) -> Plan:
        names = [audit.name for audit in self.audits]
        if len(set(names)) < len(names):
            raise ValueError(f"audits must have different names; got {', '.join(names)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different; got {list(self.seeds)}")
        for name, variant in self.models.items():
            start = variant.start
            if start is not None and (start not in self.models or self.models[start].start):
                raise ValueError(
                    f"model {name} cannot start from {start}: that must be a model of the plan "
                    "that starts from none itself"
                )
        for key in self.remarks:
            if key not in DIRECTIONS:
                raise ValueError(
                    f"remarks are on directions, and {key} is none; there are "
                    f"{', '.join(DIRECTIONS)}"
                )
        measured: dict[tuple[str, str, str], str] = {}
        for audit in self.audits:
            for each in itertools.product(audit.models, audit.audits, audit.protocols):
                if measured.setdefault(each, audit.name) != audit.name:
                    raise ValueError(
                        f"audits {measured[each]} and {audit.name} both measure {each[1]} of "
                        f"{each[0]} under {each[2]}; which of the numbers counts?"
                    )
            for model in audit.models:
                if model not in self.models:
                    raise ValueError(
                        f"audit {audit.name} names the model {model}; there are "
                        f"{', '.join(self.models)}"
                    )
        return self

    def settings(
        self, model: str, seed: int, data: Sequence[str] = (), weights: Path | None = None
    ) -> Settings:
        """What a model is trained with.

        Args:
            model: Its name.
            seed: Which of the seeds.
            data: Overrides that say where the images are; on that they have the last word.
            weights: The checkpoint to start from, for a model that has a ``start``.

        Raises:
            SettingsError: A recipe, part or setting is not known or not allowed.
        """
        variant = self.models[model]
        last = [said for said in data if is_place(said)]
        last += [] if weights is None else [f"model.weights={weights.absolute()}"]
        return anchored(
            load_settings(
                self.recipe,
                [*data, *self.set, *variant.set, *last, f"training.seed={seed}"],
                parts=list(variant.parts),
            )
        )

    def check(self, data: Sequence[str] = ()) -> None:
        """Raise SettingsError for whatever would only be found out hours later."""
        for model, variant in self.models.items():
            settings = self.settings(model, self.seeds[0], data)
            if variant.start is None:
                check_start(settings.model)
        for audit in self.audits:
            audit.build()


def plans() -> list[str]:
    """Names of the plans that come with protofast."""
    return sorted(file.stem for file in _PLANS.glob("*.toml"))


def load_plan(name_or_path: str | Path, *, kept: bool = False) -> Plan:
    """A plan by its name, or from a TOML file.

    Args:
        name_or_path: Which.
        kept: Whether a grid wrote it down, perhaps with an earlier version of protofast. Remarks on
            directions that there are no longer are then left out: they change nothing that is
            computed.

    Raises:
        SettingsError: There is none, or it is not valid; one line that says where.
    """
    known = str(name_or_path) in plans()
    path = _PLANS / f"{name_or_path}.toml" if known else Path(name_or_path)
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"no plan {name_or_path}; give a TOML file, or one of {', '.join(plans())}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    if kept and isinstance(remarks := read.get("remarks"), dict):
        read["remarks"] = {key: said for key, said in remarks.items() if key in DIRECTIONS}
    try:
        plan = Plan.model_validate(read)
        return plan if known else _at(plan, path.absolute().parent)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{path}: {f'{place}: ' if place else ''}{first['msg']}") from error


def _at(plan: Plan, folder: Path) -> Plan:
    """A plan from a file in `folder`, its relative paths made absolute."""

    def file(name: str) -> str:
        is_path = name.endswith(".toml") or len(Path(name).parts) > 1
        return str(folder / os.path.expanduser(name)) if is_path else name

    models = {
        name: variant.model_copy(
            update={
                "parts": tuple(map(file, variant.parts)),
                "set": tuple(_override_at(each, folder) for each in variant.set),
            }
        )
        for name, variant in plan.models.items()
    }
    own = tuple(_override_at(each, folder) for each in plan.set)
    return plan.model_copy(update={"recipe": file(plan.recipe), "models": models, "set": own})


def is_place(override: str) -> bool:
    """Whether a setting says where images are, which is no other place's business."""
    return override.partition("=")[0].strip() in PATHS


def _override_at(override: str, folder: Path) -> str:
    name, _, text = override.partition("=")
    if name.strip() not in (*PATHS, WEIGHTS) or not text.strip():
        return override
    try:
        value = str(tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        value = text.strip()
    if name.strip() == WEIGHTS and value in NO_FILES:
        return override
    return f"{name}={folder / os.path.expanduser(value)}"
