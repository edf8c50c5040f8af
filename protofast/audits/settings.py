"""Which audits to run, under which protocols, with which settings: from what a user asks for.

Overrides are ``<audit>.<key>=<value>`` and hold under every protocol that was asked for. An audit
that looks at a random subset of the images calls its size ``images``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from protofast.audits.audit import Audit
from protofast.audits.catalogue import AUDITS
from protofast.errors import SettingsError
from protofast.settings_tree import SettingsTree, closest, leaves

ALL = "all"
PROTOCOLS = ("paper", "released", "targeted")

Kinds = Sequence[type[Audit[Any]]]


def build_audits(
    names: Sequence[str] = (),
    *,
    protocol: str = "paper",
    images: int | None = None,
    overrides: Sequence[str] = (),
    known: Kinds = AUDITS,
) -> list[Audit[Any]]:
    """The audits that were asked for.

    Args:
        names: Which; none means every one that knows the protocol.
        protocol: ``paper``, ``released``, ``targeted``, or ``all`` of those that an audit knows.
        images: Size of the random subset of each audit; None for its own default.
        overrides: ``head_on_stomach.steps=10`` each; ``head_on_stomach.steps=`` goes back to the
            protocol's value.
        known: All audits there are.

    Raises:
        SettingsError: Something asked for is not known or not allowed; one line that says so.
    """
    if protocol not in (*PROTOCOLS, ALL):
        raise SettingsError(
            f"--protocol {protocol}: must be one of {', '.join((*PROTOCOLS, ALL))}"
            f"{closest(protocol, list(PROTOCOLS))}"
        )
    chosen = _chosen(names, protocol, known)
    _check_overrides(overrides, chosen, known)
    built = []
    for each in PROTOCOLS if protocol == ALL else (protocol,):
        kinds = [kind for kind in chosen if each in kind.protocols]
        if kinds:
            elsewhere = {kind.name for kind in chosen} - {kind.name for kind in kinds}
            ours = [text for text in overrides if text.partition(".")[0].strip() not in elsewhere]
            said = _settings(kinds, each, images, ours)
            built += [kind(getattr(said, kind.name)) for kind in kinds]
    return sorted(built, key=lambda audit: chosen.index(type(audit)))


def _chosen(names: Sequence[str], protocol: str, known: Kinds) -> list[type[Audit[Any]]]:
    by_name = {kind.name: kind for kind in known}
    for name in names:
        if name not in by_name:
            raise SettingsError(
                f"--audit {name}: no such audit{closest(name, list(by_name))}; there are "
                f"{', '.join(by_name)}"
            )
        if protocol != ALL and protocol not in by_name[name].protocols:
            raise SettingsError(
                f"--audit {name} knows no protocol {protocol}, only "
                f"{', '.join(by_name[name].protocols)}"
            )
    return [
        kind
        for kind in known
        if (kind.name in names or not names) and (protocol == ALL or protocol in kind.protocols)
    ]


def _check_overrides(overrides: Sequence[str], chosen: Kinds, known: Kinds) -> None:
    """What the tree of settings could say less plainly."""
    asked = [kind.name for kind in chosen]
    for override in overrides:
        name, _, key = override.partition("=")[0].strip().partition(".")
        if name not in asked and name in [kind.name for kind in known]:
            raise SettingsError(
                f"--set {override}: {name} is not among the audits that were asked for "
                f"({', '.join(asked)})"
            )
        if name in asked and key.strip() == "protocol":
            raise SettingsError(f"--set {override}: choose the protocol with --protocol")


def _settings(
    kinds: Kinds, protocol: str, images: int | None, overrides: Sequence[str]
) -> BaseModel:
    """The settings of each audit under one protocol, by its name."""
    base = {kind.name: kind.protocols[protocol] for kind in kinds}
    fields: dict[str, Any] = {name: (type(settings), ...) for name, settings in base.items()}
    frozen = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    root: type[BaseModel] = create_model("AuditsSettings", __config__=frozen, **fields)
    tree = SettingsTree(root, example="head_on_stomach.steps=10")
    values = dict(leaves({name: settings.model_dump() for name, settings in base.items()}))
    for key, value in values.items():
        tree.put(key, value)
    if images is not None:
        for kind in kinds:
            if "images" in type(base[kind.name]).model_fields:
                tree.put((kind.name, "images"), images)
                tree.places[kind.name, "images"] = f"--images {images}"
    for override in overrides:
        tree.override(override)
        name, _, text = override.partition("=")
        key = tuple(part.strip() for part in name.split("."))
        if not text.strip() and key in values:  # not the class's default, but the protocol's value
            tree.put(key, values[key])
    return tree.validated("the settings of the audits")
