"""PROTOFAST_CPU chooses among the compiled instruction sets."""

import pytest
import torch
from implementations import CompiledCpu, Implementation

from protofast.ops import nearest_patch
from protofast.ops._library import cpu_instruction_set


def test_the_named_one_is_used(implementation: Implementation) -> None:
    if not isinstance(implementation, CompiledCpu):
        pytest.skip("not compiled for a CPU")
    with implementation.active():
        assert cpu_instruction_set() == implementation.name


def test_an_unknown_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if cpu_instruction_set() == "reference":
        pytest.skip("protofast's CPU kernels are not built")
    monkeypatch.setenv("PROTOFAST_CPU", "avx1024")
    message = r"PROTOFAST_CPU must be unset or name .* \(.*portable\); got 'avx1024'"
    with pytest.raises(RuntimeError, match=message):
        cpu_instruction_set()
    with pytest.raises(RuntimeError, match=message):
        nearest_patch(torch.zeros(1, 2, 3, 3), torch.zeros(4, 2))
    monkeypatch.setenv("PROTOFAST_CPU", "")
    assert cpu_instruction_set() in ("avx512vnni", "avx512", "avx2", "portable")
