"""Why a model decided as it did on one image: "this looks like that", in numbers that add up.

The logit of a class is the sum over all prototypes of similarity times weight (Chen et al. 2019,
section 2.1; the last layer has no bias). An explanation shows the prototypes that speak for the
class, those with a positive weight, by what they contribute, each with the place in the image it
comes from, and what all others add together, so that the reader sees the whole logit and not a
selection that flatters it.

It is the weight that says what a prototype speaks for, not the sign of its contribution: a
similarity may be negative everywhere (`linear` is minus the distance), and then the contribution of
the most similar prototype of the class is the one nearest to 0 from below, while a dissimilar
prototype of another class contributes a large positive number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protofast.errors import DataError
from protofast.heatmaps import high_activation_boxes, upsample
from protofast.models.protocol import Output, PrototypeModel
from protofast.scan import evaluating

Box = tuple[
    int, int, int, int
]  # x0, y0, x1, y1 in pixels of the image; x1 and y1 are one past the last


@dataclass(frozen=True)
class Evidence:
    """One prototype on one image.

    Attributes:
        prototype: Its number.
        prototype_class: The class it belongs to, or None where the model has no such notion.
        similarity: Its largest similarity in the image (the activation).
        distance: The distance there.
        location: Where, on the latent grid, row-major; ``row`` and ``column`` say the same.
        box: Bounding rectangle of the heat map's highest 5 %.
        heatmap: [S, T] float32, the similarity map up-sampled to the image.
    """

    prototype: int
    prototype_class: int | None
    similarity: float
    distance: float
    location: int
    row: int
    column: int
    box: Box
    heatmap: Tensor


@dataclass(frozen=True)
class Term:
    """What one prototype adds to one class: ``contribution`` = similarity times ``weight``."""

    evidence: Evidence
    weight: float
    contribution: float


@dataclass(frozen=True)
class Remainder:
    """What the prototypes that are not shown add together."""

    prototypes: int
    contribution: float


@dataclass(frozen=True)
class ClassExplanation:
    """One class's logit, term by term.

    Attributes:
        class_index: The class.
        logit: As the model computed it.
        probability: Softmax over all classes.
        shown: The prototypes that speak for the class (weight above 0) and contribute most, the
            largest contribution first.
        own: All other prototypes of this class, or all others where prototypes have no class.
        others: All prototypes of other classes that are not shown.
        contributions: [P] float64, of every prototype.
    """

    class_index: int
    logit: float
    probability: float
    shown: tuple[Term, ...]
    own: Remainder
    others: Remainder
    contributions: Tensor

    @property
    def total(self) -> float:
        """The sum of all contributions: the logit, but for float rounding."""
        shown = sum(term.contribution for term in self.shown)
        return shown + self.own.contribution + self.others.contribution


@dataclass(frozen=True)
class Explanation:
    """Why a model decided as it did on one image.

    Attributes:
        image: [channels, S, T], as given.
        logits: [C] float32 on the CPU.
        predicted: The class with the largest logit.
        label: The true class where it is known.
        classes: The classes explained, the predicted one first.
        activated: The prototypes with the largest similarities, whatever their class, largest
            first.
    """

    image: Tensor
    logits: Tensor
    predicted: int
    label: int | None
    classes: tuple[ClassExplanation, ...]
    activated: tuple[Evidence, ...]


def explain_image(
    model: PrototypeModel,
    image: Tensor,
    *,
    top: int = 5,
    classes: int = 2,
    label: int | None = None,
) -> Explanation:
    """Explains the model's decision on one image.

    Args:
        model: Any prototype model; it is put into evaluation mode for the moment.
        image: [channels, S, T], uint8 or floating point in [0, 1].
        top: How many prototypes are shown per class, and how many of the most similar ones.
        classes: How many classes are explained, largest logit first.
        label: The true class if it is known. It is explained too, in place of the last one if
            need be.

    Returns:
        The explanation; boxes and heat maps are in pixels of ``image``.

    Raises:
        ValueError: ``image`` has another shape or number of channels than the model takes.
        DataError: The logits are not finite.
    """
    if image.dim() != 3:
        raise ValueError(f"image must be [channels, S, T], got shape {tuple(image.shape)}")
    labels = None if label is None else [label]
    return explain_images(model, image[None], top=top, classes=classes, labels=labels)[0]


@torch.no_grad()
def explain_images(
    model: PrototypeModel,
    images: Tensor,
    *,
    top: int = 5,
    classes: int = 2,
    labels: Sequence[int] | None = None,
) -> list[Explanation]:
    """As :func:`explain_image` for images [N, channels, S, T], in one pass on the device.

    Raises:
        ValueError: As there.
        DataError: An image gives logits that are not finite; it is named by its number.
    """
    _check(model, images, top=top, classes=classes, labels=labels)
    if len(images) == 0:
        return []
    pixels = images.to(model.mean.device)
    if pixels.dtype == torch.uint8:
        pixels = pixels.to(torch.float32) / 255
    with evaluating(model):
        features = model.features(pixels)
        output = model.classify(features)
        _check_logits(output.logits)
        chosen = _classes(output.logits, classes, labels)  # [N, K]
        contributions, weights = _terms(model, output, chosen)  # [N, K, P] both
        speaks_for = contributions.masked_fill(~(weights > 0), -torch.inf)
        best = speaks_for.argsort(dim=2, descending=True, stable=True)[:, :, :top]  # [N, K, k]
        active = output.activations.argsort(dim=1, descending=True, stable=True)[:, :top]  # [N, k]
        index = torch.cat((best.flatten(1), active), dim=1)  # [N, M]
        maps = model.similarity_map(features, index)  # [N, M, H, W]
    heatmaps = upsample(maps, (images.shape[-2], images.shape[-1]))
    boxes = high_activation_boxes(heatmaps).tolist()
    heatmaps = heatmaps.cpu()
    read = _Reader(model.prototype_class, _on_cpu(output), maps.shape[-1])
    explanations = []
    for n in range(len(images)):
        evidence = [
            read.evidence(n, prototype, boxes[n][m], heatmaps[n, m])
            for m, prototype in enumerate(index[n].tolist())
        ]
        shown = best.shape[2]
        explained = tuple(
            read.class_explanation(
                n,
                class_index,
                contributions[n, k].double().cpu(),
                weights[n, k].double().cpu(),
                evidence[k * shown : (k + 1) * shown],
            )
            for k, class_index in enumerate(chosen[n].tolist())
        )
        explanations.append(
            Explanation(
                image=images[n],
                logits=read.output.logits[n],
                predicted=explained[0].class_index,
                label=None if labels is None else int(labels[n]),
                classes=explained,
                activated=tuple(evidence[chosen.shape[1] * shown :]),
            )
        )
    return explanations


class _Reader:
    """Reads single numbers out of an Output on the CPU."""

    def __init__(self, prototype_class: Tensor | None, output: Output, columns: int) -> None:
        self.prototype_class = None if prototype_class is None else prototype_class.cpu()
        self.output = output
        self.probabilities = output.logits.double().softmax(dim=1)
        self.columns = columns

    def evidence(self, n: int, prototype: int, box: Sequence[int], heatmap: Tensor) -> Evidence:
        location = int(self.output.locations[n, prototype])
        owner = None if self.prototype_class is None else int(self.prototype_class[prototype])
        return Evidence(
            prototype=prototype,
            prototype_class=owner,
            similarity=float(self.output.activations[n, prototype]),
            distance=float(self.output.distances[n, prototype]),
            location=location,
            row=location // self.columns,
            column=location % self.columns,
            box=(box[0], box[1], box[2], box[3]),
            heatmap=heatmap,
        )

    def class_explanation(
        self,
        n: int,
        class_index: int,
        contributions: Tensor,  # [P] float64
        weights: Tensor,  # [P] float64
        evidence: Sequence[Evidence],
    ) -> ClassExplanation:
        terms = tuple(
            Term(found, float(weights[found.prototype]), float(contributions[found.prototype]))
            for found in evidence
            if float(weights[found.prototype]) > 0
        )
        rest = torch.ones(len(contributions), dtype=torch.bool)
        rest[[term.evidence.prototype for term in terms]] = False
        own = rest
        if self.prototype_class is not None:
            own = rest & (self.prototype_class == class_index)
        others = rest & ~own
        return ClassExplanation(
            class_index=class_index,
            logit=float(self.output.logits[n, class_index]),
            probability=float(self.probabilities[n, class_index]),
            shown=terms,
            own=Remainder(int(own.sum()), float(contributions[own].sum())),
            others=Remainder(int(others.sum()), float(contributions[others].sum())),
            contributions=contributions,
        )


def _check(
    model: PrototypeModel, images: Tensor, *, top: int, classes: int, labels: Sequence[int] | None
) -> None:
    if images.dim() != 4 or images.shape[1] != model.num_channels:
        raise ValueError(
            f"images must be [N, {model.num_channels}, S, T] for this model, "
            f"got shape {tuple(images.shape)}"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating point in [0, 1], got {images.dtype}")
    if top < 1 or classes < 1:
        raise ValueError(f"top and classes must be at least 1, got {top} and {classes}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    if labels is not None and not all(0 <= label < model.num_classes for label in labels):
        raise ValueError(f"labels must be in 0 … {model.num_classes - 1}, got {list(labels)}")


def _check_logits(logits: Tensor) -> None:
    bad = (~logits.isfinite().all(dim=1)).nonzero()[:, 0]
    if len(bad):
        which = "the image" if len(logits) == 1 else f"image {int(bad[0])} of the {len(logits)}"
        raise DataError(
            f"{which} gives logits that are not finite, which cannot be explained; look at its "
            "pixels, and at the model's weights (a training that diverged)"
        )


def _classes(logits: Tensor, count: int, labels: Sequence[int] | None) -> Tensor:
    """The classes to explain, [N, K]: the largest logits, and the label among them."""
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :count]  # [N, K]
    if labels is None:
        return order
    wanted = torch.as_tensor(list(labels), device=order.device)  # [N]
    missing = ~(order == wanted[:, None]).any(dim=1)
    if count == 1:  # the predicted class always comes first, so the label needs a second place
        return order if not missing.any() else _classes(logits, 2, labels)
    order = order.clone()
    order[missing, -1] = wanted[missing]
    return order


def unit_contributions(model: PrototypeModel, output: Output) -> Tensor:
    """The weights [N, C, P] by which similarities become contributions.

    They are what the contributions are where every similarity is 1, so they are read through the
    model protocol alone, and they are there even for a prototype whose similarity is 0.
    """
    return model.contributions(output._replace(activations=torch.ones_like(output.activations)))


def _terms(model: PrototypeModel, output: Output, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Contributions and weights [N, K, P] of the chosen classes [N, K]."""
    index = chosen[:, :, None].expand(-1, -1, output.activations.shape[1])
    contributions = model.contributions(output).gather(1, index)
    return contributions, unit_contributions(model, output).gather(1, index)


def _on_cpu(output: Output) -> Output:
    return Output(*(values.cpu() for values in output))
