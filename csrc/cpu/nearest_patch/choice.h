// The similarity that an operator's arguments name.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <string>

#include "cpu/nearest_patch/kernels.h"

namespace protofast {

inline SimilarityFunction similarity_of(const std::string& name, double eps) {
  if (name == "log") return {Similarity::kLog, eps, std::log(1.0 / eps)};
  if (name == "linear") return {Similarity::kLinear, eps, 0};
  if (name == "exp") return {Similarity::kExp, eps, 0};
  STD_TORCH_CHECK(false, "unknown similarity '", name, "'");
}

}  // namespace protofast
