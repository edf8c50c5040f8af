// Which kernels compute nearest_patch, and how: decided here and nowhere else. No torch, no CUDA.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

#include "cuda/metrics.cuh"
#include "cuda/numbers.h"

namespace protofast::cuda {

// plain          one thread for each pair, direct differences: every GPU, every dtype
// tensor_cores   selection by mma.sync, then a second look where it matters: sm_80 and later
enum class Path { kPlain, kTensorCores };

enum class Precision { kFloat32, kTf32, kHalf };
enum class Refine { kAuto, kAlways, kNever };

// The path taken where PROTOFAST_GPU names none. No GPU has run the tensor cores' path yet: it is
// tested on a CPU, instruction by instruction, but not proven. Until `pytest tests/ops` has passed
// on a GPU (every path is tested there by name), the plain path is what runs; then this is the one
// line to change.
constexpr Path kPreferredPath = Path::kPlain;

// Tensor cores pay from about these sizes on; it depends on neither N nor P, so that an image has
// the same bits in every batch.
constexpr int64_t kLeastDepth = 16, kLeastLocations = 16;
constexpr int64_t kMostDepth = 1 << 20, kMostLocations = 1 << 24;  // counted in 32 bits

inline const char* name_of(Path path) { return path == Path::kPlain ? "plain" : "tensor_cores"; }

struct Problem {
  Metric metric;
  Number features, prototypes;
  int64_t depth, locations;
};

// What the selection by tensor cores needs to know.
struct Plan {
  Path path = Path::kPlain;
  int planes = 1;              // of bf16: two hold a float32
  bool centred = false;        // whether a centre is subtracted first (squared_l2 and l2)
  float error = 0;             // bound of a score's error, as in column_of
  bool settle_places = false;  // look at all patches where the error leaves the place in doubt
  float refine_below =
      0;  // look at the winner where its distance is below this part of |z|^2 + |p|^2
};

// The least relative error of a distance at which `refine="auto"` computes it anew.
constexpr float kWorthRefining = 1e-4f;

// Bound of a score's error. Operands: a float32 in two planes loses 2^-18 of itself, and so does
// each product (measured by emulation over random and smooth features: at most 3.7e-6 of
// |z|^2 + |p|^2, half of the 2^-17 here). Sums: tensor cores cut off what they add, once for each
// 16 channels and product; never more than 2^-26 for each channel. To be measured on hardware.
inline float selection_error(int planes, int64_t depth) {
  const float operands = planes == 2 ? 0x1p-17f : 0x1p-20f;
  return operands + 0x1p-26f * static_cast<float>(depth);
}

inline Plan tensor_cores_plan(Precision precision, Refine refine, const Problem& problem) {
  const bool exact_in_one_plane =
      problem.features == Number::kBfloat16 && problem.prototypes == Number::kBfloat16;
  constexpr float always = std::numeric_limits<float>::infinity();
  Plan plan;
  plan.path = Path::kTensorCores;
  if (precision == Precision::kHalf && !exact_in_one_plane) {
    plan.centred = true;  // operands are rounded to bf16; the places are what comes of it
    plan.refine_below = refine == Refine::kNever ? 0 : always;
    return plan;
  }
  // float32 and, since three bf16 products are as fast as would be worth having, tf32.
  plan.planes = exact_in_one_plane ? 1 : 2;
  plan.centred = !exact_in_one_plane;
  plan.error = selection_error(plan.planes, problem.depth);
  plan.settle_places = refine != Refine::kNever;
  if (refine == Refine::kAlways) plan.refine_below = always;
  if (refine == Refine::kAuto) {
    // The gradients of l2 and cosine take the distance itself: it must be better than 1e-4.
    const bool in_gradients = problem.metric == Metric::kL2 || problem.metric == Metric::kCosine;
    plan.refine_below = in_gradients ? always : plan.error / kWorthRefining;
  }
  return plan;
}

// The path that `wanted`, the environment variable PROTOFAST_GPU or null, asks for.
inline Path wanted_path(const char* wanted) {
  if (wanted == nullptr || *wanted == '\0') return kPreferredPath;
  for (const Path path : {Path::kPlain, Path::kTensorCores}) {
    if (std::string_view(wanted) == name_of(path)) return path;
  }
  throw std::runtime_error(
      std::string("PROTOFAST_GPU must be unset, plain or tensor_cores; got '") + wanted + "'"
  );
}

// `has_tensor_cores()` says whether the kernels were compiled for this GPU. A path that is named is
// taken at every size; float64 has the plain path alone.
template <typename HasTensorCores>
Plan make_plan(
    const char* wanted,
    HasTensorCores has_tensor_cores,
    Precision precision,
    Refine refine,
    const Problem& problem
) {
  const bool named = wanted != nullptr && *wanted != '\0';
  const bool wide = problem.features == Number::kFloat64 || problem.prototypes == Number::kFloat64;
  const bool countable = problem.locations <= kMostLocations && problem.depth <= kMostDepth;
  const bool large = problem.depth >= kLeastDepth && problem.locations >= kLeastLocations;
  if (wanted_path(wanted) == Path::kPlain || wide || !countable || (!named && !large))
    return Plan{};
  if (!has_tensor_cores()) {
    if (!named) return Plan{};
    throw std::runtime_error(
        "PROTOFAST_GPU=tensor_cores, but the kernels that are installed have none for this GPU: "
        "they need compute capability 8.0 or later"
    );
  }
  return tensor_cores_plan(precision, refine, problem);
}

}  // namespace protofast::cuda
