"""The papers' tables: what was published, under which protocol it was really measured, and where.

The two papers are Hoffmann et al. 2021 ("This Looks Like That... Does it?") and Sacha et al. 2024
("Interpretability Benchmark for Evaluating Spatial Misalignment of Prototypical Parts
Explanations"). A published number stands under the protocol that the authors' released code
computes, which is not always the one that the paper describes; the notes say where they part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """One row of a published table.

    Attributes:
        model: Backbone and training, as the paper calls them.
        values: By the key that an audit gives the same number; per cent, points or counts.
        spreads: Plus or minus, where the paper has one.
        note: What is odd about this row.
    """

    model: str
    values: Mapping[str, float]
    spreads: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        name: Which table of which paper.
        title: What it shows.
        source: Where the numbers come from, and on what data they were measured.
        protocol: The protocol that its numbers belong to; empty where there is only one way.
        columns: Key and heading of each column, in order.
        rows: The numbers.
        notes: Where its numbers measure something else than the paper says, or than ours do.
        digits: Decimals that all of its numbers have at least.
    """

    name: str
    title: str
    source: str
    protocol: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Published, ...]
    notes: tuple[str, ...]
    digits: int = 1

    def digits_of(self, value: float) -> int:
        """Decimals to write a number with, so that it stands as it was published."""
        return max(self.digits, 1 if round(value, 1) == value else 2)


_CUB = "CUB-200-2011: 200 kinds of birds, photographs cropped to the bird"

ACCURACY = PublishedTable(
    name="Hoffmann et al. 2021, Table 1",
    title="Accuracy on the test images as they are",
    source=_CUB,
    protocol="",
    digits=2,
    columns=(("clean_accuracy", "Accuracy, %"),),
    rows=(
        Published("ProtoPNet, ResNet-18", {"clean_accuracy": 75.75}),
        Published(
            "ProtoPNet, ResNet-34",
            {"clean_accuracy": 79.58},
            note="Chen et al. 2019: 79.2 ± 0.1",
        ),
        Published(
            "ProtoPNet, VGG-19", {"clean_accuracy": 76.39}, note="Chen et al. 2019: 78.0 ± 0.2"
        ),
        Published("ProtoPNet, VGG-19 with batch norm", {"clean_accuracy": 79.24}),
    ),
    notes=(
        "The authors chose the best checkpoint by its accuracy on these same test images, so their "
        "accuracies flatter a little.",
    ),
)

HEAD_ON_STOMACH = PublishedTable(
    name="Hoffmann et al. 2021, Table 3",
    title="Head on Stomach, beside the accuracy with and without an attack on the class",
    source=f"{_CUB}; success counted on 200 images",
    protocol="released",
    columns=(
        ("clean_accuracy", "Clean accuracy, %"),
        ("adversarial_accuracy", "Accuracy under PGD-10, %"),
        ("success_rate", "Head on Stomach succeeds, %"),
    ),
    rows=(
        Published(
            "ResNet-18, standard",
            {"clean_accuracy": 75.8, "adversarial_accuracy": 0.0, "success_rate": 99.5},
        ),
        Published(
            "ResNet-18, adversarially trained",
            {"clean_accuracy": 56.3, "adversarial_accuracy": 15.8, "success_rate": 34.0},
        ),
        Published(
            "ResNet-34, standard",
            {"clean_accuracy": 79.6, "adversarial_accuracy": 0.0, "success_rate": 93.0},
        ),
        Published(
            "ResNet-34, adversarially trained",
            {"clean_accuracy": 58.8, "adversarial_accuracy": 24.2, "success_rate": 27.0},
        ),
    ),
    notes=(
        "The published success rates are what the released code counts, so they stand under the "
        "protocol “released”. That code turns the target cells into their bounding rectangle, "
        "which is nearly always the whole image: the noise covers every pixel and raises the "
        "similarity everywhere, and the attack succeeds if the maximum happens to leave its place. "
        "The paper’s text describes another attack (our protocol “paper”).",
        "It counts only images that both the standard and the adversarially trained model name "
        "rightly, and passes over images where its own code fails; ours counts what it leaves out.",
    ),
)

JPEG = PublishedTable(
    name="Hoffmann et al. 2021, Table 2",
    title="Trained on half the classes compressed by JPEG: accuracy with and without the artefacts",
    source=f"{_CUB}; JPEG quality 20",
    protocol="released",
    digits=2,
    columns=(
        ("accuracy_altered", "Same classes compressed, %"),
        ("accuracy_original", "Nothing compressed, %"),
    ),
    rows=(
        Published("ResNet-18", {"accuracy_altered": 80.19, "accuracy_original": 44.75}),
        Published("ResNet-34", {"accuracy_altered": 82.14, "accuracy_original": 46.12}),
        Published("VGG-19", {"accuracy_altered": 81.08, "accuracy_original": 49.60}),
    ),
    notes=(
        "The paper compresses a random half of the classes (our protocol “paper”); the released "
        "code compresses every class with an odd number (our protocol “released”). A run that was "
        "trained on compressed classes is audited with its own: to compare, train it with "
        "data.jpeg.compressed=odd and data.jpeg.codec=pillow.",
    ),
)

JPEG_SIMILARITY = PublishedTable(
    name="Hoffmann et al. 2021, section 4",
    title="Trained on half the classes compressed by JPEG: the strongest prototype’s similarity "
    "when the artefacts are removed",
    source=f"{_CUB}; ten images, one of every twentieth class, from the released notebook",
    protocol="released",
    columns=(
        ("similarity_change", "Change of similarity"),
        ("similarity_change_relative", "Change, %"),
        ("rank_correlation", "Rank correlation"),
        ("top_k_overlap", "Same top prototypes"),
    ),
    rows=(
        Published(
            "VGG-19",
            {"similarity_change": -2.55, "similarity_change_relative": -56.0},
            note="mean over the ten images, computed here",
        ),
    ),
    notes=(
        "The published change comes from ten images; ours from every image of every compressed "
        "class.",
    ),
)

JPEG_AUGMENTED = PublishedTable(
    name="Hoffmann et al. 2021, Table 4",
    title="Trained with JPEG augmentation: accuracy with and without the artefacts",
    source=f"{_CUB}; JPEG quality 20, each training image compressed with probability 0.5",
    protocol="released",
    digits=2,
    columns=(
        ("accuracy_all_compressed", "All images compressed, %"),
        ("accuracy_original", "Nothing compressed, %"),
    ),
    rows=(
        Published("ResNet-18", {"accuracy_all_compressed": 74.70, "accuracy_original": 76.32}),
        Published("ResNet-34", {"accuracy_all_compressed": 76.58, "accuracy_original": 77.70}),
        Published("VGG-19", {"accuracy_all_compressed": 74.59, "accuracy_original": 76.30}),
    ),
    notes=(
        "The paper says that its altered test set follows Table 2, half of the classes; the "
        "released script compresses every test image, so the published numbers stand beside our "
        "“all images compressed”.",
        "The released script also adds compressed copies of whole, uncropped photographs to the "
        "images that prototypes are projected onto; ours does not.",
    ),
)

_QUOTED = "as quoted by ProtoViT (Ma et al. 2024, Table 3)"

SPATIAL_MISALIGNMENT = PublishedTable(
    name="Sacha et al. 2024, the benchmark",
    title="Only pixels outside the prototype’s box are changed: what the explanation does",
    source=f"{_CUB}; ResNet-34, {_QUOTED}; mean ± spread over trainings",
    protocol="released",
    columns=(
        ("location_change", "PLC, %"),
        ("activation_change", "PAC, %"),
        ("rank_change", "PRC, prototypes"),
        ("accuracy_before", "Accuracy before, %"),
        ("accuracy_after", "Accuracy after, %"),
        ("accuracy_change", "Accuracy lost, points"),
    ),
    rows=(
        Published(
            "ProtoPNet",
            {
                "location_change": 24.0,
                "rank_change": 13.5,
                "activation_change": 23.7,
                "accuracy_before": 76.4,
                "accuracy_after": 68.2,
                "accuracy_change": 8.2,
            },
            {
                "location_change": 1.7,
                "rank_change": 3.1,
                "activation_change": 2.8,
                "accuracy_before": 0.2,
                "accuracy_after": 0.9,
                "accuracy_change": 1.1,
            },
        ),
        Published(
            "ProtoPNet, alignment loss (λ = 10) and masking",
            {"location_change": 8.5, "rank_change": 1.6, "activation_change": 1.7},
            note="from the paper itself, which says that accuracy is maintained",
        ),
        Published(
            "TesNet",
            {
                "location_change": 16.0,
                "rank_change": 2.9,
                "activation_change": 3.4,
                "accuracy_before": 81.6,
                "accuracy_after": 75.8,
                "accuracy_change": 5.8,
            },
            {
                "location_change": 0.0,
                "rank_change": 0.3,
                "activation_change": 0.3,
                "accuracy_before": 0.2,
                "accuracy_after": 0.5,
                "accuracy_change": 0.6,
            },
        ),
        Published(
            "ProtoPool",
            {
                "location_change": 31.8,
                "rank_change": 4.5,
                "activation_change": 11.2,
                "accuracy_before": 80.8,
                "accuracy_after": 76.0,
                "accuracy_change": 4.8,
            },
            {
                "location_change": 0.8,
                "rank_change": 0.9,
                "activation_change": 1.3,
                "accuracy_before": 0.2,
                "accuracy_after": 0.3,
                "accuracy_change": 0.1,
            },
            note="the released script runs it in training mode; may be affected",
        ),
        Published(
            "ProtoTree",
            {"location_change": 27.7},
            {"location_change": 0.3},
            note="its other cells repeat ProtoPNet’s row, so they are left out",
        ),
        Published(
            "ProtoViT (DeiT-S)",
            {
                "location_change": 21.68,
                "rank_change": 1.28,
                "activation_change": 2.92,
                "accuracy_before": 85.4,
                "accuracy_after": 82.8,
                "accuracy_change": 2.6,
            },
            {
                "location_change": 3.1,
                "rank_change": 0.1,
                "activation_change": 0.1,
                "accuracy_before": 0.1,
                "accuracy_after": 0.3,
                "accuracy_change": 0.4,
            },
            note="its authors’ own variant of the benchmark",
        ),
    ),
    notes=(
        "The published numbers measure robustness to random noise, not to an attack: in the "
        "released code the attack’s gradient is exactly zero, so it never takes a step and leaves "
        "only its random start, uniform noise outside the box (our protocol “released”). Under our "
        "protocol “paper” the attack takes its steps, so larger changes are to be expected.",
    ),
)
