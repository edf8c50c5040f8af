"""The JPEG experiment: do prototypes look for the traces of compression?

Hoffmann et al. 2021, section 4. A network is trained on images of which some classes were
compressed to JPEG, so that the artefacts give these classes away. If its prototypes look for them,
it names compressed images well and clean ones badly (Table 2), and the prototype that is most
similar to a compressed image is so no longer when the artefacts are gone (Figure 2, appendix D.2).

The compressed classes are those of the run, with its quality, codec and place, unless the settings
say otherwise. For a run without any (one whose training images were compressed at random, appendix
F.2 and Table 4, or not at all) they are those of the protocol: a random half under `paper`; under
`released` the classes with an odd number counted from 0, through Pillow, which is what the released
code does.

All of this starts from the clean images: `Subject.images`, or what lies behind them where a
`CompressedImageSet` is audited (`ImageSet.clean`). Pixels that were compressed and put into memory
by hand cannot be told from clean ones. Files are compressed after cropping and before resizing, as
in the released code, but for a run that was trained on images compressed after resizing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from scipy import stats
from torch import Tensor

from protofast.audits import jpeg_pictures
from protofast.audits.audit import (
    Audit,
    AuditSettings,
    Number,
    Picture,
    Row,
    Subject,
    units_in_order,
)
from protofast.audits.statistics import column_mean, remark_shares, share_number
from protofast.data import changed_image, compressed_classes, compression
from protofast.data.image_set import ImageSet

Similarities = np.ndarray[Any, np.dtype[np.float64]]  # [P]

_IMAGES = 12  # purpose of these random numbers; see data/randomness.py

NOT_FINITE = "similarities or logits that are not finite"
REMARKS = {
    "wrong_compressed": "named wrongly with its artefacts",
    "tied_prototypes": "several most similar prototypes (the first was taken)",
    "similarity_not_positive": "no relative change: similarity not above 0",
    "constant_similarities": "no rank correlation: all prototypes equally similar",
}
"""What a row's `remarks` may hold, and what its share of the compressed classes' images is called.

The numbers are means over all of these images but those for which there is no such number.
"""


class JpegExperimentSettings(AuditSettings):
    """Settings of the JPEG experiment.

    The first five are, where None, those of the run; of a run without compressed classes, those of
    the protocol. `JpegExperiment.settings_of` says which these are.

    Attributes:
        classes: Which classes are compressed: ``half`` (at random) or ``odd``.
        classes_seed: Key of the drawing of the half. That of the audit, where neither this nor the
            run says.
        quality: JPEG's.
        codec: ``simplejpeg`` or ``pillow``.
        at: ``file``: compressed before they are resized; ``input``: afterwards.
        top: How many of the most similar prototypes are compared in the overlap.
        drawn: How many of them each histogram shows, of either version (appendix D.2: 75).
        images: How many test images, drawn at random; None for all.
    """

    classes: Literal["half", "odd"] | None = None
    classes_seed: Annotated[int, Field(ge=0)] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    codec: Literal["simplejpeg", "pillow"] | None = None
    at: Literal["file", "input"] | None = None
    top: Annotated[int, Field(ge=1)] = 10
    drawn: Annotated[int, Field(ge=1)] = 75
    images: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True)
class Compression:
    """What is done to which classes; `from_run`: whether they are those of the training."""

    which: Literal["half", "odd"]
    classes: tuple[int, ...]
    quality: int
    codec: Literal["simplejpeg", "pillow"]
    at: Literal["file", "input"]
    from_run: bool

    def image(self, images: ImageSet, position: int) -> Tensor:
        """An image compressed: [channels, S, T] uint8."""
        change = compression(quality=self.quality, codec=self.codec)
        return changed_image(images, position, change, at=self.at)


class JpegExperiment(Audit[JpegExperimentSettings]):
    """The JPEG experiment as an audit; see the module's docstring.

    A row has `image`, `name`, `label`, `compressed` (whether the class is a compressed one),
    `skipped` (why there is nothing more; else empty), `predicted_clean` and `predicted_compressed`,
    and for images of compressed classes:

    - `prototype`, `prototype_class`: the prototype most similar to the compressed image (the class
      is None where prototypes have none).
    - `similarity_compressed`, `similarity_clean`: its largest similarity in both versions.
    - `similarity_change`: the second less the first, so below 0 where it falls;
      `similarity_change_relative`, in per cent of the first (None where that is not above 0).
    - `rank_clean`: its rank among the prototypes in the clean image, from 1.
    - `rank_correlation`: Spearman's, of the similarities of all prototypes in both versions (None
      where one of them is constant).
    - `top_k_overlap`: how many of the `top` most similar prototypes are the same, in per cent.
    - `remarks`: keys of `REMARKS` that hold, between spaces.
    """

    name: ClassVar[str] = "jpeg"
    title: ClassVar[str] = "JPEG artefacts"
    protocols: ClassVar = {
        "paper": JpegExperimentSettings(),
        "released": JpegExperimentSettings(protocol="released"),
    }

    def settings_of(self, subject: Subject) -> JpegExperimentSettings:
        """The settings with what they leave to the run or the protocol filled in."""
        jpeg = _of_run(subject)
        if jpeg:
            jpeg = {"classes": jpeg["compressed"], "classes_seed": jpeg["seed"], **jpeg}
            jpeg.setdefault("at", "file")  # runs of before there was a choice
        else:
            odd = self.settings.protocol == "released"
            jpeg = {"classes": "odd" if odd else "half", "classes_seed": subject.seed}
            jpeg |= {"quality": 20, "codec": "pillow" if odd else "simplejpeg", "at": "file"}
        keys = ("classes", "classes_seed", "quality", "codec", "at")
        return self.settings.model_copy(
            update={key: jpeg[key] for key in keys if getattr(self.settings, key) is None}
        )

    def compression(self, subject: Subject) -> Compression:
        """What is compressed, and how."""
        used, jpeg = self.settings_of(subject), _of_run(subject)
        assert used.classes is not None
        assert used.classes_seed is not None
        assert used.quality is not None
        assert used.codec is not None
        assert used.at is not None
        classes = compressed_classes(len(subject.images.classes), used.classes, used.classes_seed)
        as_trained = bool(jpeg) and used.classes == jpeg["compressed"]
        if used.classes == "half":
            as_trained = as_trained and used.classes_seed == jpeg["seed"]
        return Compression(
            used.classes, classes, used.quality, used.codec, used.at, from_run=as_trained
        )

    def units(self, subject: Subject) -> list[list[int]]:
        """Some images each, in the order of the data set."""
        keys = _IMAGES, subject.seed
        return units_in_order(len(subject.images), self.settings.images, *keys)

    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        """One row for each image, of every class."""
        compression, rows = self.compression(subject), list[Row]()
        for some in subject.batches(positions):
            rows += self._rows(subject, compression, some)
        return rows

    def summarise(self, subject: Subject, rows: Sequence[Row]) -> list[Number]:
        """The accuracies of Tables 2 and 4, and what removing the artefacts does."""
        rows = [row for row in rows if not row["skipped"]]
        clean, compressed = (
            [row[f"predicted_{version}"] == row["label"] for row in rows]
            for version in ("clean", "compressed")
        )
        altered = [
            there if row["compressed"] else without
            for row, there, without in zip(rows, compressed, clean, strict=True)
        ]
        hit = [row for row in rows if row["compressed"]]
        falls = [row["similarity_change"] < 0 for row in hit]
        numbers = [
            share_number(key, f"accuracy, {label}", right, better="higher")
            for key, label, right in (
                ("accuracy_altered", "some classes compressed", altered),
                ("accuracy_original", "nothing compressed", clean),
                ("accuracy_all_compressed", "everything compressed", compressed),
            )
        ]
        numbers += [
            column_mean("similarity_change", "change of the top similarity", hit),
            column_mean(
                "similarity_change_relative",
                "relative change of the top similarity",
                hit,
                unit="%",
            ),
            share_number("similarity_falls", "top similarity falls", falls, better="lower"),
            column_mean(
                "rank_correlation", "rank correlation of all similarities", hit, better="higher"
            ),
            column_mean(
                "top_k_overlap",
                f"same top {self.settings.top} prototypes",
                hit,
                unit="%",
                better="higher",
            ),
        ]
        return [*numbers, *remark_shares(hit, REMARKS)]

    def values(self, rows: Sequence[Row]) -> Mapping[str, Mapping[int, float]]:
        """See `Audit.values`."""
        rows = [row for row in rows if not row["skipped"]]
        hit = [row for row in rows if row["compressed"]]
        clean, compressed = (
            {row["image"]: 100.0 * (row[f"predicted_{version}"] == row["label"]) for row in rows}
            for version in ("clean", "compressed")
        )
        return {
            "accuracy_altered": clean | {row["image"]: compressed[row["image"]] for row in hit},
            "accuracy_original": clean,
            "accuracy_all_compressed": compressed,
            "similarity_falls": {
                row["image"]: 100.0 * (row["similarity_change"] < 0) for row in hit
            },
            **{
                key: {row["image"]: row[key] for row in hit if row[key] is not None}
                for key in (
                    "similarity_change",
                    "similarity_change_relative",
                    "rank_correlation",
                    "top_k_overlap",
                )
            },
        }

    def pictures(self, subject: Subject, rows: Sequence[Row], folder: Path) -> list[Picture]:
        """The images whose top similarity falls most, with and without artefacts, and charts."""
        return jpeg_pictures.draw(self, subject, rows, folder)

    def look(
        self, subject: Subject, compression: Compression, positions: Sequence[int]
    ) -> dict[str, Tensor]:
        """Both versions of some images, [N, channels, S, T] in [0, 1], on the device."""
        clean = subject.images.clean

        def both(position: int) -> tuple[Tensor, Tensor]:
            return clean.image(position), compression.image(clean, position)

        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            pairs = list(pool.map(both, positions))
        dtype = torch.promote_types(subject.model.mean.dtype, torch.float32)
        return {
            version: torch.stack(images).to(subject.device).to(dtype).div_(255)
            for version, images in zip(
                ("clean", "compressed"), zip(*pairs, strict=True), strict=True
            )
        }

    def _rows(
        self, subject: Subject, compression: Compression, positions: Sequence[int]
    ) -> list[Row]:
        """The rows of one batch."""
        images = self.look(subject, compression, positions)
        with torch.no_grad():
            outputs = {version: subject.model(batch) for version, batch in images.items()}
        found = [part for o in outputs.values() for part in (o.logits, o.activations)]
        finite = torch.stack([part.isfinite().all(dim=1) for part in found]).all(dim=0).tolist()
        predicted = {version: o.logits.argmax(dim=1).tolist() for version, o in outputs.items()}
        similar = {version: o.activations.double().cpu().numpy() for version, o in outputs.items()}
        rows: list[Row] = []
        for n, position in enumerate(positions):
            label = int(subject.labels[position])
            row: Row = {
                "image": position,
                "name": subject.images.names[position],
                "label": label,
                "compressed": label in compression.classes,
                "skipped": "" if finite[n] else NOT_FINITE,
            }
            if finite[n]:
                row |= {f"predicted_{version}": named[n] for version, named in predicted.items()}
                if row["compressed"]:
                    row |= self._comparison(similar["compressed"][n], similar["clean"][n])
                    classes = subject.model.prototype_class
                    top = row["prototype"]
                    row["prototype_class"] = None if classes is None else int(classes[top])
                    if row["predicted_compressed"] != label:
                        row["remarks"] = f"wrong_compressed {row['remarks']}".strip()
            rows.append(row)
        return rows

    def _comparison(self, compressed: Similarities, clean: Similarities) -> Row:
        """What removing the artefacts does to the similarities [P] of one image."""
        by_compressed, by_clean = (_descending(values) for values in (compressed, clean))
        top = int(by_compressed[0])
        before, after = float(compressed[top]), float(clean[top])
        count = min(self.settings.top, len(clean))
        same = len(set(by_compressed[:count].tolist()) & set(by_clean[:count].tolist()))
        constant = any((values == values[0]).all() for values in (compressed, clean))
        holds = {
            "tied_prototypes": int((compressed == before).sum()) > 1,
            "similarity_not_positive": before <= 0,
            "constant_similarities": constant,
        }
        return {
            "prototype": top,
            "prototype_class": None,
            "similarity_compressed": before,
            "similarity_clean": after,
            "similarity_change": after - before,
            "similarity_change_relative": 100 * (after - before) / before if before > 0 else None,
            "rank_clean": 1 + int((clean > after).sum()),
            "rank_correlation": None
            if constant
            else float(stats.spearmanr(compressed, clean).statistic),
            "top_k_overlap": 100 * same / count,
            "remarks": " ".join(key for key, hold in holds.items() if hold),
        }


def _of_run(subject: Subject) -> Mapping[str, Any]:
    """The run's table of compressed classes; empty where it has none."""
    jpeg: Mapping[str, Any] = subject.facts.get("data", {}).get("jpeg", {})
    return {} if jpeg.get("compressed", "none") == "none" else jpeg


def _descending(values: Similarities) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Positions by value, the largest first; of equal ones the first."""
    return np.argsort(-values, kind="stable")
