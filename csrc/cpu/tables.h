// Tables of kernels: an operator has one for each instruction set, with the kernels for float and
// for double. Which to take. No torch.
#pragma once

#include <type_traits>

#include "cpu/instruction_set.h"

namespace protofast {

template <typename Table>
const Table& table_of(
    InstructionSet set, const Table& portable, const Table& avx2, const Table& avx512
) {
  if (set == InstructionSet::kAvx512Vnni || set == InstructionSet::kAvx512) return avx512;
  return set == InstructionSet::kAvx2 ? avx2 : portable;
}

// The table of an operator for an instruction set: PROTOFAST_TABLE(nearest_patch, set).
#if defined(__x86_64__)
#define PROTOFAST_TABLE(op, set) ::protofast::table_of(set, op##_portable, op##_avx2, op##_avx512)
#else
#define PROTOFAST_TABLE(op, set) \
  ::protofast::table_of(set, op##_portable, op##_portable, op##_portable)
#endif

template <typename T, typename Table>
const auto& kernels_of(const Table& table) {
  if constexpr (std::is_same_v<T, float>) {
    return table.of_float;
  } else {
    return table.of_double;
  }
}

}  // namespace protofast
