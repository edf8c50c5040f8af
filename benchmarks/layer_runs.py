"""Which shapes, layouts, dtypes and layers are timed; and the inputs, steps and checks of a run."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from baselines import Layer
from torch import Tensor

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Shape:
    """N images, P prototypes, D depth, H x W grid."""

    N: int
    P: int
    D: int
    H: int
    W: int

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products of all patches with all prototypes."""
        return 2 * self.N * self.P * self.D * self.H * self.W

    def __str__(self) -> str:
        return f"N{self.N}-P{self.P}-D{self.D}-{self.H}x{self.W}"


@dataclass(frozen=True)
class Run:
    """One layer on one shape.

    steps: `forward` (no gradients are asked for), `backward` alone, or `both`.
    layout: `nchw` or `channels_last`.
    memory: also measure peak memory, in a process of its own.
    """

    shape: Shape
    steps: str
    layer: str
    layout: str = "nchw"
    dtype: str = "float32"
    device: str = "cpu"
    memory: bool = False

    @property
    def group(self) -> str:
        """What this run shares with those it is compared with."""
        return f"{self.steps} {self.shape} {self.layout} {self.dtype} {self.device}"

    def __str__(self) -> str:
        return f"{self.group}-{self.layer}".replace(" ", "-")

    def facts(self) -> dict[str, object]:
        """JSON values for the report."""
        return {**asdict(self), "flops": self.shape.flops}


# ---------------------------------------------------------------- which runs

HEADLINE = Shape(80, 2000, 128, 7, 7)
FINE = Shape(80, 2000, 128, 14, 14)
DEEP = Shape(128, 2000, 512, 14, 14)
MANY = Shape(256, 20000, 128, 7, 7)
BASELINES = ("original", "eager", "batched", "chunked", "compiled")

# One axis at a time around N=16 P=2000 D=128 7x7, then corners.
SWEEP = (
    *(Shape(n, 2000, 128, 7, 7) for n in (1, 2, 4, 16, 256)),
    *(Shape(16, p, 128, 7, 7) for p in (10, 100, 600, 6000, 20000)),
    *(Shape(16, 2000, d, 7, 7) for d in (64, 256, 512)),
    *(Shape(16, 2000, 128, g, g) for g in (14, 28)),
    Shape(1, 10, 64, 7, 7),
    Shape(1, 200, 128, 7, 7),
    Shape(1, 20000, 512, 7, 7),
    Shape(256, 10, 512, 7, 7),
    Shape(4, 600, 512, 28, 28),
)
QUICK_SWEEP = (Shape(1, 10, 64, 7, 7), Shape(1, 2000, 128, 7, 7), Shape(16, 100, 128, 14, 14))


def runs(*, quick: bool, device: str) -> list[Run]:
    """All runs on a device, those of one group one after the other, ours first."""
    if device == "cuda":
        return _cuda_runs(quick)
    if quick:
        quick_layers = ("ours", "original", "eager", "chunked", "compiled")
        found = _group(HEADLINE, "forward", quick_layers)
        found += _group(HEADLINE, "both", quick_layers[:2], memory=True)
        found += _group(HEADLINE, "both", quick_layers[2:])
        for shape in QUICK_SWEEP:
            found += _group(shape, "both", ("ours", "original", "eager", "chunked"))
        return found
    found = [run for steps in ("forward", "both") for run in _goal_runs(steps)]
    found += _group(HEADLINE, "backward", ("ours", "original", "eager", "chunked", "compiled"))
    for shape in SWEEP:
        for steps in ("forward", "both"):
            # Left out where it loses by far: a product for each image where there are many images,
            # and the original where it takes seconds.
            left_out = {"batched"} if shape.N > 4 else set()
            if shape.N * shape.P >= 256 * 2000:
                left_out.add("original")
            baselines = [name for name in BASELINES if name not in left_out]
            frozen = ("frozen",) if steps == "forward" and shape.N <= 4 else ()
            found += _group(shape, steps, ("ours", *frozen, *baselines))
    return found + _variants()


def _goal_runs(steps: str) -> list[Run]:
    """The rows of the table of goals."""
    found = _group(HEADLINE, steps, ("ours", *BASELINES), memory=steps == "both")
    found += _group(FINE, steps, ("ours", "original", "eager", "chunked", "compiled"))
    found += _group(DEEP, steps, ("ours", "original", "eager", "chunked", "compiled"))
    many = ("ours", "eager", "chunked", "compiled")
    if steps == "both":
        many = (*many[:1], "original", *many[1:])
    found += _group(MANY, steps, many, memory=steps == "both")
    return found


def _variants() -> list[Run]:
    """Layouts and dtypes, at the headline shape and at one with D = 512."""
    layers = ("ours", "eager", "chunked")
    found = []
    for steps in ("forward", "both"):
        found += _group(HEADLINE, steps, (*layers, "compiled"), layout="channels_last")
        found += _group(DEEP, steps, ("ours", "chunked"), layout="channels_last")
        for dtype in ("bfloat16", "float16", "float64"):
            found += _group(HEADLINE, steps, layers, dtype=dtype)
    return found


def _cuda_runs(quick: bool) -> list[Run]:
    layers = ("ours", "tensor_cores", "original", "eager", "compiled")
    shapes = (HEADLINE, DEEP, MANY) if quick else (HEADLINE, FINE, DEEP, MANY, *SWEEP)
    found = []
    for shape in shapes:
        for steps in ("forward", "both"):
            memory = shape in (HEADLINE, MANY)
            found += _group(shape, steps, layers, device="cuda", memory=memory)
    for shape in (HEADLINE, DEEP, MANY):
        for steps in ("forward", "both"):
            half = ("ours", "tensor_cores", "eager", *(() if quick else ("compiled",)))
            found += _group(shape, steps, half, device="cuda", dtype="bfloat16")
    return found


def _group(
    shape: Shape,
    steps: str,
    layers: tuple[str, ...],
    *,
    layout: str = "nchw",
    dtype: str = "float32",
    device: str = "cpu",
    memory: bool = False,
) -> list[Run]:
    return [Run(shape, steps, layer, layout, dtype, device, memory) for layer in layers]


# ---------------------------------------------------------------- inputs and steps


@dataclass(frozen=True)
class Inputs:
    """features [N, D, H, W] as a sigmoid gives them, prototypes [P, D], upstream gradients [N, P].

    The gradients are 0 for the few pairs whose two nearest patches are so close that rounding may
    choose either; so every layer must give the same gradients.
    """

    features: Tensor
    prototypes: Tensor
    gradients: Outputs


def make_inputs(run: Run) -> Inputs:
    """The same for every layer of a group."""
    shape, generator = run.shape, torch.Generator().manual_seed(0)
    features = torch.randn(shape.N, shape.D, shape.H, shape.W, generator=generator).sigmoid_()
    prototypes = torch.rand(shape.P, shape.D, generator=generator)
    wide = torch.float64 if run.dtype == "float64" else torch.float32
    features = features.to(run.device, getattr(torch, run.dtype))
    if run.layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    prototypes = prototypes.to(run.device, wide)
    gradients: Outputs = ()
    if run.steps != "forward":
        drawn = torch.randn(2, shape.N, shape.P, generator=generator).to(run.device, wide)
        clear = _clear_winners(features, prototypes)
        gradients = (drawn[0] * clear, 0.1 * drawn[1] * clear)
        features.requires_grad_()
        prototypes.requires_grad_()
    return Inputs(features, prototypes, gradients)


@torch.no_grad()
def _clear_winners(features: Tensor, prototypes: Tensor) -> Tensor:
    """[N, P] bool: whether the nearest patch is nearer than all others by more than rounding."""
    rows = features.to(prototypes.dtype).flatten(2).transpose(1, 2)  # [N, L, D]
    count, cells, _ = rows.shape
    clear = torch.empty(count, len(prototypes), dtype=torch.bool, device=rows.device)
    images = max(1, (1 << 24) // (cells * len(prototypes)))
    for start in range(0, count, images):
        some = rows[start : start + images]
        distances = some.square().sum(2, keepdim=True) - 2 * (some @ prototypes.t())  # [n, L, P]
        least, winner = distances.min(dim=1)
        distances.scatter_(1, winner.unsqueeze(1), torch.inf)
        clear[start : start + images] = distances.amin(dim=1) - least > 1e-5 * some.shape[2]
    return clear


def make_step(run: Run, inputs: Inputs, layer: Layer) -> Callable[[], Outputs]:
    """What is timed. Returns the outputs, then the gradients where there are any."""
    features, prototypes = inputs.features, inputs.prototypes
    leaves = (features, prototypes)

    def forward() -> Outputs:
        with torch.no_grad():
            return layer(features, prototypes)

    def both() -> Outputs:
        outputs = layer(features, prototypes)
        return (*outputs, *torch.autograd.grad(outputs, leaves, inputs.gradients))

    if run.steps == "forward":
        return forward
    if run.steps == "both":
        return both
    outputs = layer(features, prototypes)
    return lambda: torch.autograd.grad(outputs, leaves, inputs.gradients, retain_graph=True)


def check(run: Run, found: Outputs, expected: Outputs) -> None:
    """Raise AssertionError unless two layers' steps gave the same, up to rounding.

    Outputs within 2e-6 D, the error of the expanded form in float32; gradients within 1e-4 of
    their norm.
    """
    outputs = {"forward": 2, "backward": 0, "both": 2}[run.steps]
    assert len(found) == len(expected)
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        if place < outputs:
            error = (one - other).abs().max().item()
            allowed = (1e-12 if one.dtype == torch.float64 else 2e-6) * run.shape.D
        else:
            error = (one.double() - other.double()).norm().item()
            size = 8e-3 if one.element_size() == 2 else 1e-4  # gradients of half-precision features
            allowed = size * other.double().norm().item()
        assert error <= allowed, f"{run}: result {place} is off by {error}, allowed {allowed}"
