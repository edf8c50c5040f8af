// The operator cpu_isa: the name of the instruction set that the CPU kernels use.
#include "cpu/instruction_set.h"

#include <torch/csrc/stable/library.h>

namespace {

std::string cpu_isa() { return protofast::name_of(protofast::chosen_instruction_set()); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(protofast, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
