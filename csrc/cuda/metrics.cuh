// Distances of a patch and a prototype, and their gradients: the arithmetic of the CUDA kernels.
//
// Every function here adds in one fixed order and fuses multiplications and additions by name, not
// where the compiler likes: all kernels that use it give the same bits, whatever the dtype in
// memory. No torch.

#pragma once

#include "cuda/patches.cuh"

namespace protofast::cuda {

enum class Metric { kSquaredL2, kL2, kDot, kCosine };

// Sums are taken in runs of this many terms, then over the runs: the rounding error of a sum of D
// terms grows with sqrt(16) + sqrt(D / 16) instead of sqrt(D).
constexpr int64_t kRun = 16;

PROTOFAST_HOST_DEVICE inline int64_t run_end(int64_t start, int64_t depth) {
  return start + kRun < depth ? start + kRun : depth;
}

PROTOFAST_HOST_DEVICE constexpr bool is_difference(Metric metric) {
  return metric == Metric::kSquaredL2 || metric == Metric::kL2;
}

// As torch.min: a NaN wins over everything, and the first of equals stays.
template <typename Compute>
PROTOFAST_HOST_DEVICE bool is_nearer(Compute candidate, Compute best) {
  if (best != best) return false;
  return candidate < best || candidate != candidate;
}

template <bool kDifference, typename Compute>
PROTOFAST_HOST_DEVICE Compute add_term(Compute sum, Compute z, Compute p) {
  if constexpr (kDifference) {
    const Compute difference = z - p;
    return std::fma(difference, difference, sum);
  } else {
    return std::fma(-z, p, sum);
  }
}

// Sum of squares of values[d * stride] for d in [start, end): one run.
template <typename Compute, typename Number>
PROTOFAST_HOST_DEVICE Compute
squares_of_run(const Number* values, int64_t stride, int64_t start, int64_t end) {
  Compute run = 0;
  for (int64_t d = start; d < end; ++d) {
    const Compute value = static_cast<Compute>(values[d * stride]);
    run = std::fma(value, value, run);
  }
  return run;
}

// Sum of squares of `count` numbers, `stride` apart.
template <typename Compute, typename Number>
PROTOFAST_HOST_DEVICE Compute squared_norm(const Number* values, int64_t count, int64_t stride) {
  Compute total = 0;
  for (int64_t start = 0; start < count; start += kRun) {
    total += squares_of_run<Compute>(values, stride, start, run_end(start, count));
  }
  return total;
}

// -z.p and the product of the two lengths -> -cos(z, p); a zero vector has cosine 0.
template <typename Compute>
PROTOFAST_HOST_DEVICE Compute negative_cosine(Compute negative_dot, Compute norms) {
  return norms == Compute(0) ? negative_dot : negative_dot / norms;
}

// Adds to `sum` the gradient for one channel, `own`, of one vector of a pair whose other vector has
// `other` there; `gradient` is that of the pair's distance. The norms are read for cosine alone.
template <typename Compute>
PROTOFAST_HOST_DEVICE Compute add_gradient(
    Metric metric,
    Compute sum,
    Compute gradient,
    Compute distance,
    Compute own,
    Compute other,
    Compute own_norm,
    Compute other_norm
) {
  switch (metric) {
    case Metric::kSquaredL2:
      return std::fma(Compute(2) * gradient, own - other, sum);
    case Metric::kL2:
      return distance == Compute(0) ? sum : std::fma(gradient / distance, own - other, sum);
    case Metric::kDot:
      return std::fma(-gradient, other, sum);
    default: {  // the cosine is -distance
      if (own_norm == Compute(0) || other_norm == Compute(0)) return sum;
      const Compute across = std::fma(distance, own / own_norm, other / other_norm);
      return std::fma(-gradient / own_norm, across, sum);
    }
  }
}

// index in [0, N * L) -> length of one patch.
template <typename Compute, typename Feature>
struct PatchNorm {
  const Feature* features;  // [N, D, H, W] by layout
  Compute* norms;           // [N, L]
  FeatureLayout layout;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const int64_t offset = layout.patch(index / layout.locations, index % layout.locations);
    norms[index] =
        std::sqrt(squared_norm<Compute>(features + offset, layout.depth, layout.channel_stride));
  }
};

// index in [0, P) -> length of one prototype.
template <typename Compute>
struct PrototypeNorm {
  const Compute* prototypes;  // [P, D]
  Compute* norms;             // [P]
  int64_t depth;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    norms[index] = std::sqrt(squared_norm<Compute>(prototypes + index * depth, depth, 1));
  }
};

}  // namespace protofast::cuda
