// Which kernels compute nearest_patch itself. No torch.
#pragma once

#include "cpu/nearest_patch/kernels.h"
#include "cpu/tables.h"

namespace protofast {

// Where a processor multiplies 16-bit integers, the winner is selected by them. Other operators
// build on PROTOFAST_TABLE(nearest_patch, set), whose panels and blocks hold floats everywhere.
inline const NearestPatchTable& nearest_patch_table(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512Vnni) return nearest_patch_avx512vnni;
#endif
  return PROTOFAST_TABLE(nearest_patch, set);
}

}  // namespace protofast
