"""Pictures of the JPEG experiment: heat maps with and without artefacts, and similarities."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from protofast.audits.audit import Picture, Row, Subject
from protofast.explain.pictures import marked_png
from protofast.files import write_atomically
from protofast.heatmaps import high_activation_boxes, upsample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from protofast.audits.jpeg import JpegExperiment

_SHOWN = 3  # images with a pair and a histogram each
_SIDE = 336  # pixels
_WITH, _WITHOUT, _SOFT = "#ad4019", "#0b6a62", "#58616a"


def draw(
    audit: JpegExperiment, subject: Subject, rows: Sequence[Row], folder: Path
) -> list[Picture]:
    """Draws the images whose top similarity falls most, and the changes of all images.

    For each of the worst ones a pair of heat maps of the prototype that is most similar to the
    compressed image (Figure 2; both in the colours of the first map's range, as in the released
    code) and the similarities of the most similar prototypes of either version (appendix D.2).

    Args:
        audit: Whose settings.
        subject: The model and the images.
        rows: Of all units.
        folder: Where the files go; it is made.
    """
    hit = [row for row in rows if not row["skipped"] and row["compressed"]]
    if not hit:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    worst = sorted(hit, key=lambda row: (row["similarity_change"], row["image"]))[:_SHOWN]
    found = _pairs(audit, subject, worst, folder)
    found.append(_changes(audit, subject, hit, folder))
    return found


@torch.no_grad()
def _pairs(
    audit: JpegExperiment, subject: Subject, worst: Sequence[Row], folder: Path
) -> list[Picture]:
    compression = audit.compression(subject)
    found = []
    for place, row in enumerate(worst, start=1):
        images = audit.look(subject, compression, [row["image"]])
        features = {version: subject.model.features(image) for version, image in images.items()}
        index = torch.tensor([[row["prototype"]]], device=subject.device)
        size = (images["clean"].shape[2], images["clean"].shape[3])
        heat = {
            version: upsample(subject.model.similarity_map(map_, index)[0, 0], size)
            for version, map_ in features.items()
        }
        files = {}
        for version in ("compressed", "clean"):
            x0, y0, x1, y1 = high_activation_boxes(heat[version]).tolist()
            files[version] = f"{place:02d}-{version}.png"
            shown = marked_png(
                images[version][0],
                heatmap=heat[version],
                like=heat["compressed"],
                box=(x0, y0, x1, y1),
                longest=_SIDE,
            )
            write_atomically(folder / files[version], shown)
        found.append(Picture(files=files, caption=_caption(subject, row), image=row["name"]))
        similar = {
            version: subject.model.classify(map_).activations[0].double().cpu()
            for version, map_ in features.items()
        }
        found.append(_histogram(audit, row, similar, folder, place))
    return found


def _caption(subject: Subject, row: Row) -> str:
    classes = subject.images.classes
    whose = "" if row["prototype_class"] is None else f" of {classes[row['prototype_class']]}"
    relative = row["similarity_change_relative"]
    share = "" if relative is None else f" ({_signed(relative, 0)} %)"
    was, now = (classes[row[f"predicted_{version}"]] for version in ("compressed", "clean"))
    decision = f"The class stays {was}." if was == now else f"The class turns from {was} to {now}."
    rank = row["rank_clean"]
    place = "still the highest of all" if rank == 1 else f"no. {rank} of all prototypes"
    return (
        f"Without the artefacts, the similarity of prototype {row['prototype']}"
        f"{whose} goes from {row['similarity_compressed']:.2f} to {row['similarity_clean']:.2f}"
        f"{share}, {place}. {decision} Both maps are coloured by the first one's range."
    )


def _histogram(
    audit: JpegExperiment, row: Row, similar: dict[str, Tensor], folder: Path, place: int
) -> Picture:
    """The similarities of the prototypes that are among the most similar in either version."""
    count = min(audit.settings.drawn, len(similar["clean"]))
    tops = [
        set(values.argsort(descending=True, stable=True)[:count].tolist())
        for values in similar.values()
    ]
    order = sorted(set.union(*tops), key=lambda p: (-float(similar["compressed"][p]), p))
    heights = {version: values[order].numpy() for version, values in similar.items()}

    def chart(axes: Axes) -> None:
        at = np.arange(len(order))
        edges = np.arange(len(order) + 1) - 0.5
        axes.stairs(
            heights["compressed"], edges, fill=True, color=_WITH, alpha=0.55, label="compressed"
        )
        axes.plot(at, heights["clean"], ".", color=_WITHOUT, markersize=5, label="clean")
        axes.set_xlabel("prototypes, most similar first")
        axes.set_ylabel("similarity")
        axes.set_xlim(-0.5, len(order) - 0.5)
        low = min(float(values.min()) for values in heights.values())
        high = max(float(values.max()) for values in heights.values())
        # Bars begin at 0, which similarities may be far from.
        if low > 0.6 * high > 0 or high < 0:
            margin = 0.1 * (high - low) or 0.1
            axes.set_ylim(low - margin, high + margin)

    name = f"{place:02d}-prototypes.png"
    write_atomically(folder / name, _png(chart))
    return Picture(
        files={"prototypes": name},
        caption=f"The {count} most similar prototypes of either version, with artefacts (bars) and "
        f"without (dots). {_correlation(row)}Of the "
        f"{min(audit.settings.top, len(similar['clean']))} most similar ones, "
        f"{row['top_k_overlap']:.0f} % are the same.",
        image=row["name"],
    )


def _correlation(row: Row) -> str:
    if row["rank_correlation"] is None:
        return ""
    return f"Rank correlation of all prototypes: {_plain(row['rank_correlation'])}. "


def _changes(audit: JpegExperiment, subject: Subject, hit: Sequence[Row], folder: Path) -> Picture:
    """How the change of the top similarity is distributed over images."""
    values = np.array([row["similarity_change"] for row in hit])
    mean, median = float(values.mean()), float(np.median(values))

    def chart(axes: Axes) -> None:
        counts, edges = np.histogram(values, bins=min(40, max(5, len(values) // 4)))
        axes.stairs(counts, edges, fill=True, color=_WITHOUT, alpha=0.75)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axvline(mean, color=_WITH, linewidth=1.6)
        axes.set_xlabel("change of the top similarity")
        axes.set_ylabel("images")

    name = "changes.png"
    write_atomically(folder / name, _png(chart))
    done = audit.compression(subject)
    words = {"half": "a random half", "odd": "those of odd number"}
    which = "as in training" if done.from_run else words[done.which]
    when = ", after resizing" if done.at == "input" else ""
    classes = f"{len(done.classes)} of {len(subject.images.classes)} classes ({which})"
    return Picture(
        files={"changes": name},
        caption=f"All {len(hit)} images of {classes}, compressed at quality {done.quality} "
        f"({done.codec}{when}): change of the similarity of the prototype that is most similar to "
        f"the compressed image when the artefacts are removed; mean {_signed(mean, 2)} (red line), "
        f"median {_signed(median, 2)}.",
    )


def _signed(value: float, digits: int) -> str:
    """With its sign, and a minus that is one."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _plain(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _png(chart: Callable[[Axes], None]) -> bytes:
    """A chart as a PNG file of 336 by 336 pixels, in letters that can be read at half the size."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    defaults: Any = matplotlib.rcParamsDefault  # its type names every key, and differs by version
    settings: Any = {**defaults, "font.family": "sans-serif", "font.size": 11, "backend": "agg"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3.36, 3.36), dpi=100, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.22, 0.17, 0.75, 0.79))
        chart(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(colors=_SOFT)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
