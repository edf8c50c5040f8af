"""Everything a run depends on, as frozen objects; written to the run folder as ``settings.toml``.

The defaults are those of ProtoPNet's released code (Chen et al. 2019; its settings.py and main.py),
so the recipe ``paper`` states them again rather than changing them. Unknown keys are errors. See
:mod:`protofast.training.settings_file` for reading, writing and overriding.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from protofast.data import Augmentation, birds
from protofast.training.defences import (
    AdversarialSettings,
    AlignmentSettings,
    MaskingSettings,
)
from protofast.training.jpeg_settings import JpegAugmentationSettings, JpegSettings
from protofast.training.rates import OptimizerSettings
from protofast.training.setting_types import (
    Count,
    Fraction,
    Frozen,
    Location,
    Names,
    NotNegative,
    Pair,
    Positives,
    Rate,
    Seed,
    wrong,
)

# Which kinds of data these keys of DataSettings belong to; the others belong to all.
KINDS_OF_KEY: dict[str, tuple[str, ...]] = {
    "train_per_class": ("birds",),
    "test_per_class": ("birds",),
    "render_seed": ("birds",),
    "crop": ("cub", "cars"),
    "classes": ("birds", "cub", "cars"),
    "test_root": ("folders",),
    "groups": ("folders",),
    "test_fraction": ("folders",),
    "split_seed": ("folders",),
    "root": ("cub", "cars", "folders"),
}


NO_FILES = ("none", "imagenet", "run")  # what ModelSettings.weights can be but a file


class DataSettings(Frozen):
    """Where images come from.

    Attributes:
        kind: ``birds`` (rendered, needs no files), ``cub`` (CUB-200-2011's layout), ``cars``
            (Stanford Cars' layout), ``folders`` (one folder per class).
        root: Folder of the data set; ``birds`` needs none. A relative one, here and below, counts
            from the folder in which training is started.
        test_root: ``folders``: folder of the test images, if they are apart.
        size: Height and width of the images in pixels, or one number for both.
        channels: 3, or 1 for grey images.
        classes: ``birds``, ``cub``, ``cars``: how many classes (the first ones), or their names;
            left out, all there are (10 birds).
        train_per_class: ``birds``: rendered training images per class.
        test_per_class: ``birds``: rendered test images per class.
        render_seed: ``birds``: key of the renderer.
        crop: ``cub`` and ``cars``: crop to the bounding box.
        groups: ``folders``: CSV file with the group (patient) of each image.
        test_fraction: ``folders`` without ``test_root``: share of the images, or groups, held out.
        split_seed: ``folders`` without ``test_root``: key of the split.
        leaks: ``refuse`` to train where an image, or a group, is among both the training and the
            test images, or ``allow`` it (and do not look).
        in_memory: Decode all images once and keep them in memory (3·S·T bytes each).
        jpeg: Which classes are compressed.
    """

    kind: Literal["birds", "cub", "cars", "folders"] = "birds"
    root: Location | None = None
    test_root: Location | None = None
    size: Count | Pair = Field(default=224, description="a number of pixels, or [height, width]")
    channels: Literal[1, 3] = 3
    classes: Count | Names | None = Field(
        default=None, description="a number of classes above 0, or a list of their names"
    )
    train_per_class: Count | None = None
    test_per_class: Count | None = None
    render_seed: Seed | None = None
    crop: bool | None = None
    groups: Location | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    split_seed: Seed | None = None
    leaks: Literal["refuse", "allow"] = "refuse"
    in_memory: bool = True
    jpeg: JpegSettings = JpegSettings()

    @property
    def image_size(self) -> tuple[int, int]:
        """(S, T), height and width in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @model_validator(mode="after")
    def _belong_together(self) -> DataSettings:
        for key, kinds in KINDS_OF_KEY.items():
            if getattr(self, key) is not None and self.kind not in kinds:
                raise wrong(
                    key, f"belongs to data.kind {' or '.join(kinds)}, not {self.kind}; leave it out"
                )
        if self.kind != "birds" and self.root is None:
            raise wrong("root", f"data.kind {self.kind} needs the folder of the data set")
        if min(self.image_size) < 16:
            raise wrong("size", "images must be at least 16 pixels high and wide")
        if self.kind == "birds":
            self._can_be_rendered()
        elif self.classes == 1 or (isinstance(self.classes, tuple) and len(self.classes) < 2):
            raise wrong("classes", "at least two classes are needed")
        return self

    def _can_be_rendered(self) -> None:
        if max(self.image_size) > birds.MAX_SIZE:
            raise wrong("size", f"birds are rendered at {birds.MAX_SIZE} pixels at most")
        if isinstance(self.classes, tuple):
            raise wrong("classes", "rendered birds take a number of classes, not names")
        if self.classes is not None and not 2 <= self.classes <= birds.MAX_CLASSES:
            raise wrong("classes", f"there are 2 to {birds.MAX_CLASSES} classes of rendered birds")
        if self.channels != 3:
            raise wrong("channels", "rendered birds have 3 channels")


class ModelSettings(Frozen):
    """The network.

    Attributes:
        backbone: Name of the backbone, see :func:`protofast.models.build_backbone`.
        weights: ``none`` (from scratch), ``imagenet`` (torchvision's), or a file: of the backbone's
            weights, or a checkpoint of another run, which the whole network starts from. ``run``,
            in a recipe, stands for such a checkpoint that is yet to be named (``--from RUN``).
        depth: D, length of a prototype.
        prototypes_per_class: Prototypes of each class.
        add_on: The paper's layers between backbone and prototypes.
        metric: Distance between patch and prototype.
        similarity: From distance to activation.
        eps: Stabiliser of the logarithm; an exactly met prototype is activated log(1/eps).
        prototype_init: ``uniform`` in [0, 1) (paper), or ``patches``: before the first joint epoch
            each class's prototypes become centres of the patches of its own training images. For
            networks trained from scratch, whose features do not fill [0, 1)^D.
    """

    backbone: str = "vgg19"
    weights: str = "imagenet"
    depth: Count = 128
    prototypes_per_class: Count = 10
    add_on: Literal["regular", "bottleneck"] = "regular"
    metric: Literal["squared_l2", "l2", "dot", "cosine"] = "squared_l2"
    similarity: Literal["log", "linear", "exp"] = "log"
    eps: Annotated[float, Field(gt=0)] = 1e-4
    prototype_init: Literal["uniform", "patches"] = "uniform"

    @model_validator(mode="after")
    def _belong_together(self) -> ModelSettings:
        if self.metric in ("dot", "cosine") and self.similarity != "linear":
            raise wrong("similarity", f"model.metric {self.metric} allows similarity linear only")
        return self


class ScheduleSettings(Frozen):
    """How long each stage lasts; see :func:`protofast.training.schedule.plan`.

    Attributes:
        epochs: Warm and joint epochs together; numbered from 0.
        warm_epochs: The first of them that are warm.
        project_from: First epoch after which prototypes may be projected.
        project_every: They are projected after the epochs that are multiples of it; 0 means never,
            but for ``project_last``.
        project_last: Project after the last epoch as well, so that training ends with prototypes
            that are patches.
        last_layer_epochs: Epochs of the last layer alone after each projection.
        passes: Passes over the training images, each with new augmentation, that count as one warm
            or joint epoch; the original's epoch shows 30 altered copies of every image.
        last_layer_passes: The same for an epoch of the last layer.
    """

    epochs: Count = 1000
    warm_epochs: NotNegative = 5
    project_from: NotNegative = 10
    project_every: NotNegative = 10
    project_last: bool = False
    last_layer_epochs: NotNegative = 20
    passes: Count = 30
    last_layer_passes: Count = 30


class LossSettings(Frozen):
    """Weights of the loss's terms, all taken as positive numbers.

    Attributes:
        cross_entropy: Weight of the classification loss.
        cluster: Weight of the distance to the nearest own-class prototype.
        separation: Weight of the distance to the nearest other-class prototype, which is
            *subtracted*.
        l1: Weight of the L1 norm of the last layer's off-class weights.
        class_weights: ``none``, ``balanced`` (inversely proportional to the class's number of
            training images, 1 on average over images), or one number above 0 per class.
    """

    cross_entropy: Rate = 1.0
    cluster: Rate = 0.8
    separation: Rate = 0.08
    l1: Rate = 1e-4
    class_weights: Literal["none", "balanced"] | Positives = Field(
        default="none", description="'none', 'balanced', or a list with a number above 0 per class"
    )


class AugmentationSettings(Frozen):
    """What may happen to training images; see :class:`protofast.data.Augmentation`."""

    rotation: Rate = 15.0
    skew: Fraction = 0.2
    shear: Rate = 10.0
    distortion: Rate = 0.0
    distortion_grid: Pair = (10, 10)
    kinds: Literal["one", "all"] = "one"
    flip: Fraction = 0.5
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0

    def build(self) -> Augmentation:
        """The same, for :class:`protofast.data.Batches`."""
        return Augmentation(**self.model_dump())

    @model_validator(mode="after")
    def _allowed(self) -> AugmentationSettings:
        try:
            self.build()
        except ValueError as error:
            raise wrong(str(error).split()[0], str(error)) from error
        return self


class TrainingSettings(Frozen):
    """How the network is trained.

    Attributes:
        seed: Key of initial weights, order of images and augmentation.
        batch_size: Training images per step and rank.
        test_batch_size: Images per batch when testing.
        project_batch_size: Images per batch when projecting.
        schedule: Stages.
        optimizer: Learning rates.
        losses: Weights of the loss's terms.
        augmentation: What happens to training images.
        jpeg: Which training images are compressed, before that.
        masking: What is painted over them afterwards.
        adversarial: How they are perturbed against the network before each step.
        alignment: Whether maps are compared with those of covered images.
        warm_head: What learns to classify in the warm stage: the ``prototypes`` (paper), or a
            ``linear`` layer on the max-pooled output of the backbone, dropped afterwards, which
            teaches a backbone without pretrained weights much faster.
        precision: Of training steps; testing and projecting are always done in float32, so that a
            projected prototype equals its patch.
        freeze_batch_norm_after_projection: Keep batch-norm statistics still while the last layer
            learns, so that projected prototypes stay equal to their patches. The original lets them
            drift (false).
        last_layer_images: ``augmented`` (paper), or ``plain``: un-augmented images, whose
            activations are computed once per stage. ``plain`` needs frozen batch norm.
        test_every: Test after every so many epochs; always tested after a projection and at the end
            of each stage, and only then where ``last_layer_images`` are ``plain``.
        best_by: What, measured on the test images, makes a checkpoint ``best``. As in the papers
            there are no validation images, so the best checkpoint's accuracy is an optimistic one.
        keep_checkpoints: ``few`` (latest, the one before, best, last of each stage) or ``all``.
        checkpoint_seconds: Seconds between checkpoints inside an epoch; 0 writes one after every
            batch.
        workers: Threads that decode images, if they are not in memory.
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        devices: Ranks on this machine; more than one needs torchrun or a script.
        nodes: Machines.
        deterministic: Ask PyTorch for deterministic algorithms on CUDA too.
        tensorboard: Write TensorBoard files as well.
    """

    seed: Seed = 0
    batch_size: Count = 80
    test_batch_size: Count = 100
    project_batch_size: Count = 75
    schedule: ScheduleSettings = ScheduleSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    losses: LossSettings = LossSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    jpeg: JpegAugmentationSettings = JpegAugmentationSettings()
    masking: MaskingSettings = MaskingSettings()
    adversarial: AdversarialSettings = AdversarialSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    warm_head: Literal["prototypes", "linear"] = "prototypes"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    freeze_batch_norm_after_projection: bool = True
    last_layer_images: Literal["augmented", "plain"] = "augmented"
    test_every: Count = 1
    best_by: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    keep_checkpoints: Literal["few", "all"] = "few"
    checkpoint_seconds: Rate = 300.0
    workers: NotNegative = 2
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Count = 1
    nodes: Count = 1
    deterministic: bool = True
    tensorboard: bool = False

    @model_validator(mode="after")
    def _belong_together(self) -> TrainingSettings:
        if self.last_layer_images == "plain" and not self.freeze_batch_norm_after_projection:
            raise wrong(
                "last_layer_images",
                "plain needs freeze_batch_norm_after_projection = true, else activations change",
            )
        if self.last_layer_images == "plain" and self.adversarial.method != "none":
            raise wrong(
                "last_layer_images",
                "plain images cannot be perturbed, which adversarial training does in every stage; "
                'set last_layer_images = "augmented"',
            )
        if self.warm_head == "linear" and not self.optimizer.warm.backbone:
            raise wrong(
                "optimizer.warm.backbone",
                "warm_head linear teaches the backbone, so its learning rate must be above 0",
            )
        if self.warm_head == "linear" and not self.schedule.warm_epochs:
            raise wrong("schedule.warm_epochs", "warm_head linear needs at least one warm epoch")
        if self.schedule.warm_epochs > self.schedule.epochs:
            raise wrong("schedule.warm_epochs", "there cannot be more warm epochs than epochs")
        return self


class Settings(Frozen):
    """Everything a run depends on."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
