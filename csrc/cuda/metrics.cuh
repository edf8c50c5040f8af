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

// What the gradients of one pair's -cos(z, p) need beside its numbers. That of z is
// -scale * ((p - z) - along_patch * z), that of p the same with z and p exchanged.
struct Across {
  double scale = 0;            // 1 / (|z| |p|); all are 0 where z or p is a zero vector
  double along_patch = 0;      // z.(p - z) / |z|^2
  double along_prototype = 0;  // p.(z - p) / |p|^2
};

// Written with p and the cosine instead of differences, two terms would cancel where z and p are
// nearly parallel: after projection. In doubles, because along_patch * z cancels against p - z
// where one of two such vectors is longer. Equal vectors have exactly 0 in both.
template <typename Compute, typename Feature>
PROTOFAST_HOST_DEVICE Across
across_of(const Feature* patch, int64_t channel_stride, const Compute* prototype, int64_t depth) {
  double along_z = 0, along_p = 0, z_squared = 0, p_squared = 0;
  for (int64_t start = 0; start < depth; start += kRun) {
    double along_z_run = 0, along_p_run = 0, z_run = 0, p_run = 0;
    for (int64_t d = start; d < run_end(start, depth); ++d) {
      const double z = static_cast<double>(static_cast<Compute>(patch[d * channel_stride]));
      const double p = static_cast<double>(prototype[d]);
      along_z_run = std::fma(z, p - z, along_z_run);
      along_p_run = std::fma(p, z - p, along_p_run);
      z_run = std::fma(z, z, z_run);
      p_run = std::fma(p, p, p_run);
    }
    along_z += along_z_run;
    along_p += along_p_run;
    z_squared += z_run;
    p_squared += p_run;
  }
  if (z_squared == 0 || p_squared == 0) return {};
  const double norms = std::sqrt(z_squared) * std::sqrt(p_squared);
  return {1.0 / norms, along_z / z_squared, along_p / p_squared};
}

// Adds to `sum` the gradient for one channel, `own`, of one vector of a pair whose other vector has
// `other` there; `gradient` is that of the pair's distance. `scale` and `along`, the own vector's,
// are read for cosine alone; see Across.
template <typename Compute>
PROTOFAST_HOST_DEVICE Compute add_gradient(
    Metric metric,
    Compute sum,
    Compute gradient,
    Compute distance,
    Compute own,
    Compute other,
    double scale,
    double along
) {
  switch (metric) {
    case Metric::kSquaredL2:
      return std::fma(Compute(2) * gradient, own - other, sum);
    case Metric::kL2:
      return distance == Compute(0) ? sum : std::fma(gradient / distance, own - other, sum);
    case Metric::kDot:
      return std::fma(-gradient, other, sum);
    default: {
      const double a = static_cast<double>(own), b = static_cast<double>(other);
      const double across = std::fma(-along, a, b - a);
      const double factor = -static_cast<double>(gradient) * scale;
      return static_cast<Compute>(std::fma(factor, across, static_cast<double>(sum)));
    }
  }
}

}  // namespace protofast::cuda
