"""ProtoPool's focal similarity: its formula, mixtures, gradients, arguments."""

import pytest
import torch
from cases import Shape, random_problem
from torch import Tensor

from protofast.ops import distance_map, focal_similarity

SHAPE = Shape(3, 10, 8, 4, 5)


def log_similarity(distances: Tensor) -> Tensor:
    return torch.log((distances + 1) / (distances + 1e-4))


def some_presence(classes: int = 4, slots: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(classes, SHAPE.prototypes, slots, generator=generator).softmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_formula(dtype: torch.dtype) -> None:
    features, prototypes = random_problem(SHAPE, dtype=dtype)
    prototypes[4] = features[1, :, 2, 3]
    maps = distance_map(features.double(), prototypes.double()).flatten(2)
    expected = log_similarity(maps.amin(2)) - log_similarity(maps.mean(2))
    got = focal_similarity(features, prototypes)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected.to(dtype), rtol=1e-5, atol=1e-5)


def test_distances_are_mixed_before_the_similarity() -> None:
    features, prototypes = random_problem(SHAPE)
    presence = some_presence()
    maps = distance_map(features, prototypes).flatten(2)
    least = torch.einsum("bp,cpn->bcn", maps.amin(2), presence)
    means = torch.einsum("bp,cpn->bcn", maps.mean(2), presence)
    got = focal_similarity(features, prototypes, presence=presence)
    assert got.shape == (SHAPE.images, 4, 2)
    torch.testing.assert_close(got, log_similarity(least) - log_similarity(means))


def test_a_mixture_of_one_prototype_is_that_prototype() -> None:
    features, prototypes = random_problem(SHAPE)
    alone = focal_similarity(features, prototypes)
    mixed = focal_similarity(features, prototypes, presence=torch.eye(SHAPE.prototypes)[None])
    torch.testing.assert_close(mixed[:, 0], alone)


@pytest.mark.parametrize("similarity", ["log", "linear", "exp"])
def test_equal_patches_have_none(similarity: str) -> None:
    features = torch.rand(2, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    got = focal_similarity(features.expand(-1, -1, 3, 4), torch.rand(6, 5), similarity=similarity)
    torch.testing.assert_close(got, torch.zeros(2, 6), rtol=0, atol=1e-5)


def test_one_patch_apart_counts() -> None:
    features = torch.ones(1, 3, 7, 7)
    features[0, :, 2, 2] = 0
    (value,) = focal_similarity(features, torch.zeros(1, 3), similarity="linear").flatten().tolist()
    assert value == pytest.approx(3 * 48 / 49)


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients(mixed: bool) -> None:
    shape = Shape(2, SHAPE.prototypes, 3, 2, 3)
    features, prototypes = random_problem(shape, dtype=torch.float64, seed=2)
    presence = some_presence().double() if mixed else None
    leaves = [
        tensor.requires_grad_() for tensor in (features, prototypes, presence) if tensor is not None
    ]

    def run(*tensors: Tensor) -> Tensor:
        return focal_similarity(*tensors[:2], presence=tensors[2] if mixed else None, eps=0.01)

    assert torch.autograd.gradcheck(run, leaves)


def test_autocast_does_not_round_the_mixture() -> None:
    features, prototypes = random_problem(SHAPE)
    expected = focal_similarity(features, prototypes, presence=some_presence())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = focal_similarity(features, prototypes, presence=some_presence())
    assert torch.equal(got, expected)


def test_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    compiled = torch.compile(focal_similarity, fullgraph=True, backend="aot_eager")
    features, prototypes = random_problem(SHAPE)
    for presence in (None, some_presence()):
        torch.testing.assert_close(
            compiled(features, prototypes, presence=presence),
            focal_similarity(features, prototypes, presence=presence),
        )


def test_prototypes_of_several_patches() -> None:
    features, _ = random_problem(SHAPE)
    prototypes = torch.rand(6, 8, 2, 2, generator=torch.Generator().manual_seed(1))
    maps = distance_map(features, prototypes).flatten(2)
    expected = log_similarity(maps.amin(2)) - log_similarity(maps.mean(2))
    torch.testing.assert_close(focal_similarity(features, prototypes), expected)


def test_nan_stays_in_its_image() -> None:
    features, prototypes = random_problem(SHAPE)
    plain = focal_similarity(features, prototypes)
    features[1, 0, 0, 0] = float("nan")
    got = focal_similarity(features, prototypes)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], plain[[0, 2]])


@pytest.mark.parametrize("images", [0, 2])
def test_empty(images: int) -> None:
    features, prototypes = random_problem(Shape(images, 0, 3, 2, 2))
    assert focal_similarity(features, prototypes).shape == (images, 0)


def test_arguments() -> None:
    features, prototypes = random_problem(SHAPE)
    with pytest.raises(ValueError, match=r"presence must be \[C, P, K\] with P = 10.*\[4, 9, 2\]"):
        focal_similarity(features, prototypes, presence=torch.rand(4, 9, 2))
    with pytest.raises(TypeError, match=r"presence must be float16.*int64"):
        focal_similarity(features, prototypes, presence=torch.ones(4, 10, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="similarity must be one of"):
        focal_similarity(features, prototypes, similarity="cosine")
