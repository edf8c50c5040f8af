"""The torch library `protofast`: where operators are declared and the compiled kernels loaded.

Each operator's file declares its schema here once and registers the reference for every device; the
compiled libraries, loaded afterwards, put their own kernels before it for CPU and CUDA.
"""

from collections.abc import Callable

import torch

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
_LIBRARY = torch.library.Library("protofast", "DEF")
_LIBRARY.define("cpu_isa() -> str")


def cpu_instruction_set() -> str:
    """What runs operators on the CPU.

    `avx512vnni`, `avx512`, `avx2`, `portable` or `reference` (plain PyTorch).

    The best one of this machine, unless the environment variable PROTOFAST_CPU names another.

    Raises:
        RuntimeError: PROTOFAST_CPU names none that this machine has.
    """
    name = "protofast::cpu_isa"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd"):
        return "reference"
    return str(torch.ops.protofast.cpu_isa())


def declare(schema: str, reference: Callable[..., object], fake: Callable[..., object]) -> None:
    """Declare the operator `schema`, its reference implementation and its fake kernel."""
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=_TAGS)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"protofast::{name}", fake, lib=_LIBRARY)


def differentiate(
    name: str, backward: Callable[..., object], setup_context: Callable[..., None]
) -> None:
    """Register the backward of the operator `name`."""
    torch.library.register_autograd(
        f"protofast::{name}", backward, setup_context=setup_context, lib=_LIBRARY
    )


def refuse_second_derivative(name: str, operator: str) -> None:
    """Let a second derivative through `name`, the backward of `operator`, raise a clear error.

    Without this, autograd would treat the backward's results as constants and give a wrong answer.
    """

    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    def backward(ctx: object, *grads: object) -> object:
        raise RuntimeError(
            f"{operator} has no second derivative; take the gradient without create_graph=True, or "
            "build the expression from protofast.ops.reference, which is plain PyTorch"
        )

    differentiate(name, backward, setup_context)
