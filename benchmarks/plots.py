"""Scaling curves of the layer as pictures."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
from layer_runs import FINE, HEADLINE, Shape
from results import Result, Results, shape_of

matplotlib.use("agg")
from matplotlib import pyplot as plt

# Letters as letters, and the same names in the file every time: small files, small differences.
plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "protofast"})

COLOURS = {
    "ours": "#c8102e",
    "original": "#4d4d4d",
    "eager": "#1f77b4",
    "batched": "#8fbbda",
    "chunked": "#2ca02c",
    "compiled": "#ff9f1c",
}
# The axis that varies, its value, and what all other shapes of the curve have in common.
_AXES: tuple[tuple[str, str, Callable[[Shape], float], Shape], ...] = (
    ("images", "N images (P=2000 D=128 7x7)", lambda s: s.N, HEADLINE),
    ("prototypes", "P prototypes (N=16 D=128 7x7)", lambda s: s.P, replace(HEADLINE, N=16)),
    ("depth", "D depth (N=16 P=2000 7x7)", lambda s: s.D, replace(HEADLINE, N=16)),
    ("grid", "H=W locations a side (N=16 P=2000 D=128)", lambda s: s.H, replace(FINE, N=16)),
)
_FIELDS = {"images": ("N",), "prototypes": ("P",), "depth": ("D",), "grid": ("H", "W")}


def draw(results: Results, folder: Path) -> list[Path]:
    """One picture a device and axis on which there are three points; the files, in order."""
    pictures = []
    for device in ("cpu", "cuda"):
        for name, label, value, base in _AXES:
            groups = [
                group
                for group in results.groups(device)
                if _plain(group["ours"]) and _on_axis(shape_of(group["ours"]), base, name)
            ]
            if len({value(shape_of(group["ours"])) for group in groups}) >= 3:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{device}-{name}.svg"
                _draw(groups, label, value, path)
                pictures.append(path)
    return pictures


def _draw(
    groups: Sequence[dict[str, Result]], label: str, value: Callable[[Shape], float], path: Path
) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, layout="constrained")
    for panel, (steps, title) in zip(
        panels, (("forward", "forward"), ("both", "forward + backward")), strict=True
    ):
        here = [group for group in groups if group["ours"].info["steps"] == steps]
        here.sort(key=lambda group: value(shape_of(group["ours"])))
        for layer, colour in COLOURS.items():
            points = [
                (value(shape_of(group[layer])), 1e3 * group[layer].median)
                for group in here
                if layer in group
            ]
            if points:
                width = 2.2 if layer == "ours" else 1.2
                x, y = zip(*points, strict=True)
                panel.plot(x, y, "o-", color=colour, label=layer, lw=width, ms=3.5)
        panel.set(xscale="log", yscale="log", title=title, xlabel=label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds")
    panels[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _on_axis(shape: Shape, base: Shape, name: str) -> bool:
    same = {field: getattr(base, field) for field in _FIELDS[name]}
    return replace(shape, **same) == base


def _plain(result: Result) -> bool:
    return result.info["layout"] == "nchw" and result.info["dtype"] == "float32"
