// What the arguments and this machine choose, for the operators that search for nearest patches.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <string>

#include "cpu/instruction_set.h"
#include "cpu/nearest_patch/kernels.h"

namespace protofast {

inline const NearestPatchTable& chosen_nearest_patch_table() {
  switch (chosen_instruction_set()) {
#if defined(__x86_64__)
    case InstructionSet::kAvx512:
      return nearest_patch_avx512;
    case InstructionSet::kAvx2:
      return nearest_patch_avx2;
#endif
    default:
      return nearest_patch_portable;
  }
}

inline SimilarityFunction similarity_of(const std::string& name, double eps) {
  if (name == "log") return {Similarity::kLog, eps, std::log(1.0 / eps)};
  if (name == "linear") return {Similarity::kLinear, eps, 0};
  if (name == "exp") return {Similarity::kExp, eps, 0};
  STD_TORCH_CHECK(false, "unknown similarity '", name, "'");
}

}  // namespace protofast
