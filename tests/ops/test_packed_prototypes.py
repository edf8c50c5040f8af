"""Prototypes packed once: the same bits, and an error rather than an answer from stale ones."""

import pytest
import torch
from cases import LAYOUTS, METRICS, SHAPES, Shape, put_patches_into_prototypes, random_problem
from implementations import CompiledCpu, Implementation
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from protofast.ops import NearestPatch, nearest_patch
from protofast.ops._library import cpu_instruction_set
from protofast.ops.packed_prototypes import nearest_patch_packed, pack_prototypes

SHAPE = Shape(3, 70, 33, 4, 5)


def same_bits(found: NearestPatch, expected: NearestPatch) -> bool:
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0))
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_bits(implementation: Implementation, metric: str) -> None:
    with implementation.active():
        for shape in SHAPES:
            features, prototypes = random_problem(shape, device=implementation.device)
            put_patches_into_prototypes(features, prototypes[::2])
            packed = pack_prototypes(prototypes, metric=metric)
            for arrange in LAYOUTS.values():
                some = arrange(features)
                options = {"metric": metric, "similarity": "linear"}
                found = nearest_patch_packed(some, prototypes, packed, **options)
                assert same_bits(found, nearest_patch(some, prototypes, **options))


@pytest.mark.parametrize("features_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(
    implementation: Implementation, dtype: torch.dtype, features_dtype: torch.dtype
) -> None:
    features, prototypes = random_problem(SHAPE, device=implementation.device)
    features, prototypes = features.to(features_dtype), prototypes.to(dtype)
    prototypes[3, 4] = torch.nan
    with implementation.active():
        packed = pack_prototypes(prototypes)
        assert packed.dtype == (torch.int64 if dtype == torch.float64 else torch.int32)
        found = nearest_patch_packed(features, prototypes, packed)
        assert same_bits(found, nearest_patch(features, prototypes))


def test_changed_prototypes_are_refused_however_they_changed() -> None:
    features, prototypes = random_problem(SHAPE)
    packed = pack_prototypes(prototypes)
    parameter = torch.nn.Parameter(prototypes.clone())
    with torch.no_grad():
        nearest_patch_packed(features, parameter, packed)
        parameter.data[69, 32] += 1e-6  # leaves no trace in the version counter
        for some in (features, features[:1]):
            with pytest.raises(RuntimeError, match="changed since they were packed"):
                nearest_patch_packed(some, parameter, packed)
        parameter.copy_(prototypes)
        nearest_patch_packed(features, parameter, packed)


def test_packs_of_something_else_are_refused() -> None:
    features, prototypes = random_problem(SHAPE)
    packed = pack_prototypes(prototypes)
    with pytest.raises(ValueError, match="pack them again"):
        nearest_patch_packed(features, prototypes[:-1], packed)
    with pytest.raises(ValueError, match=r"packed as torch\.float32 cannot be compared"):
        nearest_patch_packed(features.double(), prototypes, packed)
    with pytest.raises(ValueError, match="on the device of prototypes, cpu; got meta"):
        nearest_patch_packed(features, prototypes, packed.to("meta"))
    with pytest.raises(ValueError, match=r"prototypes must be \[P, D\]"):
        pack_prototypes(prototypes[0])
    with pytest.raises(ValueError, match="metric must be one of"):
        pack_prototypes(prototypes, metric="l1")
    with pytest.raises(TypeError, match="floating-point"):
        pack_prototypes(prototypes.int())
    if cpu_instruction_set() != "reference":
        with pytest.raises(RuntimeError, match="pack them again"):
            nearest_patch_packed(features, prototypes, packed, metric="cosine", similarity="linear")


def test_a_pack_of_another_instruction_set_is_refused(implementation: Implementation) -> None:
    if not isinstance(implementation, CompiledCpu):
        pytest.skip("not compiled for a CPU")
    features, prototypes = random_problem(SHAPE)
    packed = pack_prototypes(prototypes)
    other = cpu_instruction_set() != implementation.name
    with implementation.active():
        if other:
            with pytest.raises(RuntimeError, match="another kind of processor"):
                nearest_patch_packed(features, prototypes, packed)
        else:
            nearest_patch_packed(features, prototypes, packed)


def test_there_is_no_gradient() -> None:
    features, prototypes = random_problem(SHAPE)
    packed = pack_prototypes(prototypes)
    found = nearest_patch_packed(features.requires_grad_(), prototypes, packed)
    with pytest.raises(RuntimeError, match="nearest_patch_packed has no gradient"):
        found.distances.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_opcheck_and_empty_inputs(dtype: torch.dtype) -> None:
    for shape in (SHAPE, Shape(0, 4, 3, 2, 2), Shape(2, 0, 3, 2, 2), Shape(1, 1, 1, 1, 1)):
        features, prototypes = random_problem(shape, dtype=dtype)
        torch.library.opcheck(torch.ops.protofast.pack_prototypes.default, (prototypes, "l2"))
        packed = pack_prototypes(prototypes, metric="l2")
        torch.library.opcheck(
            torch.ops.protofast.nearest_patch_packed.default,
            (features, prototypes, packed, "l2", "log", 1e-4, "float32", "auto"),
        )
        with FakeTensorMode() as mode:
            fake = pack_prototypes(mode.from_tensor(prototypes), metric="l2")
        assert (fake.shape, fake.dtype) == (packed.shape, packed.dtype)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic: bool) -> None:
    torch.compiler.reset()

    def search(features: Tensor, prototypes: Tensor, packed: Tensor) -> NearestPatch:
        return nearest_patch_packed(features, prototypes, packed)

    compiled = torch.compile(search, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in (SHAPE, Shape(1, 70, 33, 4, 5), Shape(2, 7, 8, 6, 5)):
        features, prototypes = random_problem(shape)
        packed = pack_prototypes(prototypes)
        found = compiled(features, prototypes, packed)
        assert same_bits(found, nearest_patch(features, prototypes))
