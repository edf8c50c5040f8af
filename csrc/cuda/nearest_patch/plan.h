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
// wgmma          the same with the selection of Hopper GPUs: sm_90a
enum class Path { kPlain, kTensorCores, kWgmma };

enum class Precision { kFloat32, kTf32, kHalf };
enum class Refine { kAuto, kAlways, kNever };

// The path taken where PROTOFAST_GPU names none. No GPU has run the tensor cores' paths yet: they
// are tested on a CPU, instruction by instruction, but not proven. Until `pytest tests/ops` has
// passed on a GPU (every path is tested there by name), the plain path is what runs; then this is
// the one line to change. A GPU that lacks what is preferred takes the best that it has.
constexpr Path kPreferredPath = Path::kPlain;

// Tensor cores pay from about these sizes on; it depends on neither N nor P, so that an image has
// the same bits in every batch.
constexpr int64_t kLeastDepth = 16, kLeastLocations = 16;
constexpr int64_t kMostDepth = 1 << 20, kMostLocations = 1 << 24;  // counted in 32 bits

constexpr const char* name_of(Path path) {
  if (path == Path::kPlain) return "plain";
  return path == Path::kTensorCores ? "tensor_cores" : "wgmma";
}

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

// Bound of a score's error, whatever the numbers: rounding errors add up where channels are alike.
// Operands: of a float32 in two planes 2^-17 is lost, and of each product lo.lo, 2^-16; together
// 2^-15 of |z| |p|, which the score has twice and (|z|^2 + |p|^2) / 2 bounds. (Random features stay
// below an eighth of it.) Sums: tensor cores cut off what they add; 2^-24 for each channel holds
// for a cut at 22 bits in each of the products' steps, and no hardware has been measured yet.
inline float selection_error(int planes, int64_t depth) {
  const float operands = planes == 2 ? 0x1p-15f : 0x1p-20f;
  return operands + 0x1p-24f * static_cast<float>(depth);
}

inline Plan tensor_cores_plan(
    Path path, Precision precision, Refine refine, const Problem& problem
) {
  const bool exact_in_one_plane =
      problem.features == Number::kBfloat16 && problem.prototypes == Number::kBfloat16;
  constexpr float always = std::numeric_limits<float>::infinity();
  Plan plan;
  plan.path = path;
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
    // The gradient of l2 takes the distance itself: it must be better than 1e-4. A product z.p can
    // be small beside |z| |p|, of which the error is a part.
    const bool in_parts = problem.metric == Metric::kSquaredL2;
    plan.refine_below = in_parts ? plan.error / kWorthRefining : always;
  }
  return plan;
}

// The path that `wanted`, the environment variable PROTOFAST_GPU or null, asks for.
inline Path wanted_path(const char* wanted) {
  if (wanted == nullptr || *wanted == '\0') return kPreferredPath;
  for (const Path path : {Path::kPlain, Path::kTensorCores, Path::kWgmma}) {
    if (std::string_view(wanted) == name_of(path)) return path;
  }
  throw std::runtime_error(
      std::string("PROTOFAST_GPU must be unset, plain, tensor_cores or wgmma; got '") + wanted + "'"
  );
}

// `has(path)` says whether a path's kernels were compiled for this GPU. A path that is named is
// taken at every size; float64 has the plain path alone.
template <typename Has>
Plan make_plan(
    const char* wanted, Has has, Precision precision, Refine refine, const Problem& problem
) {
  const bool named = wanted != nullptr && *wanted != '\0';
  const bool wide = problem.features == Number::kFloat64 || problem.prototypes == Number::kFloat64;
  const bool countable = problem.locations <= kMostLocations && problem.depth <= kMostDepth;
  const bool large = problem.depth >= kLeastDepth && problem.locations >= kLeastLocations;
  Path path = wanted_path(wanted);
  if (path == Path::kPlain || wide || !countable || (!named && !large)) return Plan{};
  if (named && !has(path)) {
    throw std::runtime_error(
        std::string("PROTOFAST_GPU=") + name_of(path) +
        ", but the kernels that are installed have none of it for this GPU: tensor_cores needs "
        "compute capability 8.0 or later, wgmma 9.0 and a build for 90a"
    );
  }
  if (path == Path::kWgmma && !has(path)) path = Path::kTensorCores;
  if (path == Path::kTensorCores && !has(path)) return Plan{};
  return tensor_cores_plan(path, precision, refine, problem);
}

}  // namespace protofast::cuda
