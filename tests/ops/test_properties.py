"""Random shapes, layouts, dtypes, duplicates, NaN and offsets against the float64 reference."""

import math
from typing import NamedTuple

import torch
from cases import LAYOUTS, PAIRS, Shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from implementations import EPS, Implementation
from torch import Tensor

from protofast.ops import reference


class Case(NamedTuple):
    features: Tensor
    prototypes: Tensor
    metric: str
    similarity: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = Shape(
        images=draw(st.integers(0, 4)),
        prototypes=draw(st.integers(0, 70)),
        depth=draw(st.integers(1, 40) | st.sampled_from([127, 128, 129, 300])),
        height=draw(st.integers(1, 8)),
        width=draw(st.integers(1, 8)),
    )
    n, p, d, h, w = shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    features = torch.rand(n, d, h, w, generator=generator)
    prototypes = torch.rand(p, d, generator=generator)
    if draw(st.booleans()):  # few values: many equal distances
        features, prototypes = (4 * features).floor(), (4 * prototypes).floor()
    offset = draw(st.sampled_from([0.0, 0.0, 100.0, -3.0]))
    scale = draw(st.sampled_from([1.0, 1.0, 1e-8, 1e8]))
    features, prototypes = scale * (features + offset), scale * (prototypes + offset)
    dtypes = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    if scale == 1:
        features, prototypes = features.to(draw(dtypes)), prototypes.to(draw(dtypes))
    if n > 0:
        flat = features.flatten(2)
        if draw(st.booleans()):  # repeated patches
            flat[..., (h * w + 1) // 2 :] = flat[..., : h * w // 2]
        for _ in range(min(p, draw(st.integers(0, 3)))):  # projected prototypes
            image, cell = draw(st.integers(0, n - 1)), draw(st.integers(0, h * w - 1))
            prototypes[draw(st.integers(0, p - 1))] = flat[image, :, cell].to(prototypes.dtype)
        if draw(st.integers(0, 4)) == 0:
            bad = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
            cell = (draw(st.integers(0, n - 1)), draw(st.integers(0, d - 1)))
            flat[(*cell, draw(st.integers(0, h * w - 1)))] = bad
        features = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](features)
    return Case(features, prototypes, *draw(st.sampled_from(PAIRS)))


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
def test_agrees_with_the_reference_in_float64(implementation: Implementation, case: Case) -> None:
    features = case.features.to(implementation.device)
    prototypes = case.prototypes.to(implementation.device)
    found = implementation.nearest_patch(features, prototypes, case.metric, case.similarity)
    wide, narrow = features.double(), prototypes.double()
    _, least, locations = reference.nearest_patch(wide, narrow, case.metric, case.similarity, EPS)
    assert torch.equal(found.distances.isnan(), least.isnan())
    assert torch.equal(found.activations.isnan(), least.isnan())
    assert torch.equal(found.locations[least.isnan()], locations[least.isnan()])
    if found.distances.numel() == 0:
        return

    maps = reference.distance_map(wide, narrow, None, case.metric).flatten(2)
    here = maps.gather(2, found.locations.unsqueeze(2)).squeeze(2)
    usable = here.isfinite()
    norms = wide.flatten(2).square().sum(1).nan_to_num(nan=0.0, posinf=0.0).amax(1, keepdim=True)
    norms = norms + narrow.square().sum(1)
    signed = case.metric in ("dot", "cosine")
    scale = torch.ones_like(norms) if case.metric == "cosine" else norms
    error = (found.distances.double() - here).abs()
    bound = implementation.distance_tolerance * (scale if signed else here)
    assert (error <= bound)[usable].all()
    regret = here.square() - least.square() if case.metric == "l2" else here - least
    assert (regret <= 1e-5 * scale)[usable].all()
    equal = (maps == least.unsqueeze(2)).sum(2) > 1
    exact_zero = (least == 0) & equal
    assert torch.equal(found.locations[exact_zero], locations[exact_zero])
    assert (found.distances[least == 0] == 0).all() or signed
