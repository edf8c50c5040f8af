"""What the two papers report, experiment by experiment, and which way each result should point.

The published numbers stand in `protofast.report.published`; here is what was done here beside them,
what would reproduce them, and where paper and released code differ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from protofast.report import published
from protofast.report.published import PublishedTable

Side = tuple[str, str]  # model, key of the number
ALL_IMAGES = ""  # in place of an audit: a model's plain accuracy on all test images


@dataclass(frozen=True)
class Direction:
    """Something a paper found that can be true or not of other networks and images.

    Attributes:
        key: For remarks.
        says: In words.
        audit: Which audit measures it, or `ALL_IMAGES`.
        sides: The numbers that decide it.
        holds: Whether it is so, given the numbers in this order; None where they leave nothing to
            lower.
        unit: Of the numbers.
        of_defence: Whether it says what a defence does. Then a defended model that went on from
            ``standard`` is compared with ``longer``, which did so without a defence, for what more
            epochs do is no merit of the defence.
    """

    key: str
    says: str
    audit: str
    sides: tuple[Side, ...]
    holds: Callable[..., bool | None]
    unit: str = ""
    of_defence: bool = False

    def sides_among(self, models: Collection[str]) -> tuple[Side, ...]:
        """The numbers that decide it where these models are measured."""
        if not (self.of_defence and "longer" in models):
            return self.sides
        return tuple(("longer" if name == "standard" else name, key) for name, key in self.sides)


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper.

    Attributes:
        title: Which, and what it shows.
        commands: How to do it.
        audit: Which audit measures it; empty where it is a picture.
        models: Models of the grid that its table shows.
        columns: Key and heading of each number.
        published: The paper's table, if it has numbers.
        differences: Where paper, released code and what was done here differ; Markdown paragraphs.
        directions: What should come out.
    """

    title: str
    commands: tuple[str, ...]
    audit: str = ""
    models: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    published: PublishedTable | None = None
    differences: tuple[str, ...] = ()
    directions: tuple[Direction, ...] = ()


ATTACK_FIGURE = Experiment(
    title="Hoffmann et al., Figure 1: a prototype of a head is found on the stomach",
    commands=("protofast attack RUN IMAGE --target 3,3 --target 4,4",),
    differences=(
        "The objective (Eq. 2) raises the prototype's mean similarity in the target cells above "
        "that where it was. In the figures only the target's pixels change; `--noise-at-source` "
        "frees those of the source, too. The released code makes a bounding rectangle of the "
        "target, so that two cells on a diagonal become four; here they stay two. The released "
        "notebook's example rises from 0.78 to 4.61 in the target, from rank 5 to rank 1. The "
        "audit's protocol `targeted` moves prototypes to single cells drawn at random, so that "
        "there is a rate beside the chosen examples.",
    ),
)

ACCURACY = Experiment(
    title="Hoffmann et al., Table 1: accuracy",
    commands=("protofast train RECIPE", "protofast audit RUN --audit robust_accuracy"),
    audit="robust_accuracy",
    models=("standard",),
    columns=(("clean_accuracy", "accuracy, %"),),
    published=published.ACCURACY,
    differences=(
        "The published networks start from ImageNet weights and see 224 x 224 pixels of 200 "
        "classes, altered beforehand in 40 copies each (ProtoPNet itself: 30). The networks here "
        "are small and start from nothing, so their accuracy says how hard the data are for them, "
        "not how good the method is.",
        "In the original, the statistics of batch norm drift while the last layer learns, so that "
        "projected prototypes no longer equal their patches; here they are held still.",
    ),
)

HEAD_ON_STOMACH = Experiment(
    title="Hoffmann et al., Table 3 and appendix F.1: success of Head on Stomach",
    commands=(
        "protofast train RECIPE --with adversarial",
        "protofast audit RUN RUN --audit head_on_stomach --protocol all",
    ),
    audit="head_on_stomach",
    models=("standard", "longer", "adversarial"),
    columns=(
        ("success_rate", "success, %"),
        ("mean_prototypes_tried", "prototypes tried"),
        ("still_right", "class kept after success, %"),
    ),
    published=published.HEAD_ON_STOMACH,
    differences=(
        "Measured on 147 maps with a single peak, the released code's rectangle was the whole 7 x "
        "7 grid in all of them; of those with two peaks it was in 102 of 147, and in 39 the source "
        "covered all cells, so that the code fails and passes over the image. Here such an image "
        "is told among those that gave no number (`released`), or its next prototype is attacked "
        "(`paper`).",
        "Under `paper` the target is the set of all cells outside the source, the noise covers the "
        "pixels of both, and an image is one that the model in question names rightly. Under "
        "`released` it is an image that all models of the comparison name rightly.",
        "Neither protocol asks whether the class is kept after the attack, though a footnote of "
        "the paper speaks of it; it is a column here.",
    ),
    directions=(
        Direction(
            "hos-standard",
            "the attack succeeds on most images of the standard model",
            "head_on_stomach",
            (("standard", "success_rate"),),
            lambda rate: rate > 50,
            "%",
        ),
        Direction(
            "hos-adversarial",
            "it succeeds on at most half as many of the adversarially trained one",
            "head_on_stomach",
            (("standard", "success_rate"), ("adversarial", "success_rate")),
            lambda standard, adversarial: (
                None if standard == adversarial == 0 else adversarial <= standard / 2
            ),
            "%",
            of_defence=True,
        ),
    ),
)

ROBUST_ACCURACY = Experiment(
    title="Hoffmann et al., Table 3: accuracy under PGD-10",
    commands=("protofast audit RUN RUN --audit robust_accuracy",),
    audit="robust_accuracy",
    models=("standard", "longer", "adversarial", "aligned"),
    columns=(
        ("clean_accuracy", "accuracy, %"),
        ("adversarial_accuracy", "under PGD-10, %"),
    ),
    differences=(
        "The numbers published stand in the table above. Both codes let an image go at the first "
        "iterate that is named wrongly. Under `paper` an image that is wrong as it is counts as "
        "wrong under attack too; the released code looks at the random start and what follows, so "
        "noise may set such an image right.",
        "Adversarial training in the released code goes on in the twenty epochs of the last layer, "
        "which the paper does not say, and chooses its checkpoint by robust test accuracy. Here, "
        "too, it runs in every stage (where a model goes on from `standard`, that first training "
        "was without it), and the last checkpoint is taken, which the test images did not choose.",
    ),
    directions=(
        Direction(
            "robust",
            "adversarial training keeps more images right under attack",
            "robust_accuracy",
            (("standard", "adversarial_accuracy"), ("adversarial", "adversarial_accuracy")),
            lambda standard, adversarial: adversarial > standard,
            "%",
            of_defence=True,
        ),
    ),
)

JPEG = Experiment(
    title="Hoffmann et al., Table 2: JPEG artefacts give the class away",
    commands=("protofast train RECIPE --with jpeg", "protofast audit RUN --audit jpeg"),
    audit="jpeg",
    models=("jpeg", "standard"),
    columns=(
        ("accuracy_altered", "same classes compressed, %"),
        ("accuracy_original", "nothing compressed, %"),
    ),
    published=published.JPEG,
    differences=(
        "Photographs were compressed once before this experiment begins, rendered birds never: on "
        "these, nothing compressed means just that.",
        "A model that was trained on compressed classes is audited with those classes, whatever "
        "the protocol, unless the settings say otherwise; the protocols choose the classes only "
        "for models without any.",
    ),
    directions=(
        Direction(
            "jpeg-accuracy",
            "a model trained with compressed classes is less often right without the artefacts",
            "jpeg",
            (("jpeg", "accuracy_altered"), ("jpeg", "accuracy_original")),
            lambda altered, original: original < altered,
            "%",
        ),
    ),
)

JPEG_SIMILARITY = Experiment(
    title="Hoffmann et al., section 4, Figure 2 and appendix D.2: what prototypes see in artefacts",
    commands=("protofast audit RUN --audit jpeg",),
    audit="jpeg",
    models=("jpeg", "jpeg-and-augmented", "jpeg-augmented", "standard"),
    columns=(
        ("similarity_change", "change of the top similarity"),
        ("similarity_change_relative", "change, %"),
        ("rank_correlation", "rank correlation"),
        ("top_k_overlap", "same top prototypes, %"),
    ),
    published=published.JPEG_SIMILARITY,
    differences=(
        "The pairs of heat maps (Figure 2) and the histograms of the 75 strongest prototypes "
        "(appendix D.2) are among the pictures of the audit. The released notebook colours the "
        "second heat map by the range of the first, so that a fall is seen; so do ours.",
    ),
    directions=(
        Direction(
            "jpeg-similarity",
            "without the artefacts the top prototype is less similar",
            "jpeg",
            (("jpeg", "similarity_change_relative"),),
            lambda change: change < 0,
            "%",
        ),
        Direction(
            "jpeg-augmented-similarity",
            "after JPEG augmentation it falls less than half as much",
            "jpeg",
            (
                ("jpeg", "similarity_change_relative"),
                ("jpeg-augmented", "similarity_change_relative"),
            ),
            lambda without, augmented: augmented > without / 2,
            "%",
        ),
    ),
)

JPEG_AUGMENTED = Experiment(
    title="Hoffmann et al., Table 4 and appendix F.2: JPEG augmentation",
    commands=("protofast train RECIPE --with jpeg_augmented", "protofast audit RUN --audit jpeg"),
    audit="jpeg",
    models=("jpeg-augmented", "jpeg-and-augmented", "jpeg"),
    columns=(
        ("accuracy_all_compressed", "everything compressed, %"),
        ("accuracy_altered", "half of the classes compressed, %"),
        ("accuracy_original", "nothing compressed, %"),
    ),
    published=published.JPEG_AUGMENTED,
    differences=(
        "In the released script any training image is compressed half of the time and no class "
        "always; that is the model `jpeg-augmented`. In `jpeg-and-augmented` the classes of Table "
        "2 are compressed all the same, so that an image without artefacts still cannot be of "
        "theirs.",
    ),
    directions=(
        Direction(
            "jpeg-augmented-accuracy",
            "augmentation closes more than half of the gap between images with artefacts and "
            "without",
            "jpeg",
            (
                ("jpeg", "accuracy_altered"),
                ("jpeg", "accuracy_original"),
                ("jpeg-augmented", "accuracy_all_compressed"),
                ("jpeg-augmented", "accuracy_original"),
            ),
            lambda there, without, all_there, none_there: (
                abs(all_there - none_there) < (there - without) / 2
            ),
            "%",
        ),
    ),
)

MISALIGNMENT = Experiment(
    title="Sacha et al., the benchmark: PLC, PAC, PRC and the change of accuracy",
    commands=("protofast audit RUN --audit spatial_misalignment --protocol all",),
    audit="spatial_misalignment",
    models=("standard",),
    columns=(
        ("location_change", "PLC, %"),
        ("activation_change", "PAC, %"),
        ("rank_change", "PRC"),
        ("accuracy_before", "accuracy before, %"),
        ("accuracy_after", "after, %"),
        ("accuracy_change", "lost, points"),
    ),
    published=published.SPATIAL_MISALIGNMENT,
    differences=(
        "The released attack hands a single number per batch to a library that takes the cross "
        "entropy of it as if it were the logits: of one logit that is 0, and so is its gradient. "
        "Run as released, the result equals the uniform start bit for bit after 40 steps. It is "
        "not clipped to the range of images either. So the published values belong beside our "
        "`released`; `paper` is the attack as described, whose changes are larger.",
        "The protected box comes from a cubic up-sampling and the 95th percentile, PLC from a "
        "bilinear one and the 90th; the box grows by 10 pixels, and the last row and column of the "
        "image are never protected under `released`.",
        "ProtoPool's published row may have been measured with batch norm in training mode, for "
        "the released script never switches it off; TesNet, ProtoPool and ProtoTree are not among "
        "the models here.",
    ),
)

ALIGNED = Experiment(
    title="Sacha et al., alignment loss and masking",
    commands=(
        "protofast train RECIPE --with aligned    # the alignment loss and masking",
        "protofast train RECIPE --with masking    # masking alone",
        "protofast train RECIPE --with aligned --set training.masking.probability=0  # loss alone",
        "protofast audit RUN RUN --audit spatial_misalignment --protocol all",
    ),
    audit="spatial_misalignment",
    models=("standard", "longer", "masking", "alignment", "aligned"),
    columns=(
        ("location_change", "PLC, %"),
        ("activation_change", "PAC, %"),
        ("rank_change", "PRC"),
        ("accuracy_before", "accuracy before, %"),
        ("accuracy_change", "lost, points"),
    ),
    differences=(
        "What was published of alignment loss with masking (`aligned`) stands in the table above; "
        "what was published of either alone (`masking`, `alignment`) is not known to us.",
        "The paper's loss is the Euclidean distance between the maps of the image and of what the "
        "map's highest tenth leaves of it. The released code draws the share at random for each "
        "batch (0.5 to 0.98), takes one random prototype of the class per image, and averages "
        "absolute or squared differences over the cells shown. The recipe part `aligned` takes the "
        "fixed tenth, one prototype per image drawn by the seed, and squared differences.",
        "The released masking augmentation hardly ever masks: it indexes channels and rows where "
        "it means rows and columns. Of 20,000 simulated images 10,071 were chosen and 585 (2.9 %) "
        "changed at all. Here it does what was meant: half of the images get one to five "
        "rectangles.",
        "The results per λ, for other backbones and for Stanford Cars are not compared: their "
        "published values are not known to us.",
    ),
    directions=(
        *(
            Direction(
                key,
                f"alignment and masking lower {name}",
                "spatial_misalignment",
                (("standard", key), ("aligned", key)),
                lambda standard, aligned: None if standard == aligned == 0 else aligned < standard,
                unit,
                of_defence=True,
            )
            for key, name, unit in (
                ("location_change", "PLC", "%"),
                ("activation_change", "PAC", "%"),
                ("rank_change", "PRC", ""),
            )
        ),
        Direction(
            "aligned-accuracy",
            "and accuracy on all test images falls by at most 3 points",
            ALL_IMAGES,
            (("standard", "accuracy"), ("aligned", "accuracy")),
            lambda standard, aligned: aligned >= standard - 3,
            "%",
            of_defence=True,
        ),
    ),
)

EXPERIMENTS = (
    ATTACK_FIGURE,
    ACCURACY,
    HEAD_ON_STOMACH,
    ROBUST_ACCURACY,
    JPEG,
    JPEG_SIMILARITY,
    JPEG_AUGMENTED,
    MISALIGNMENT,
    ALIGNED,
)

DIRECTIONS = tuple(each.key for experiment in EXPERIMENTS for each in experiment.directions)
"""Keys of all directions."""
