// Similarity of a distance, and its derivative. No torch.

#pragma once

#include "cuda/patches.cuh"

namespace protofast::cuda {

enum class Similarity { kLog, kLinear, kExp };

// log((d+1)/(d+eps)), -d or exp(-d). The logarithm keeps its precision for large d as a log1p, and
// at d = 0 it is log(1/eps) to the last bit.
template <typename Compute>
struct SimilarityFunction {
  Similarity kind;
  Compute eps, one_minus_eps, log_at_zero;

  PROTOFAST_HOST_DEVICE Compute operator()(Compute distance) const {
    if (kind == Similarity::kLinear) return -distance;
    if (kind == Similarity::kExp) return std::exp(-distance);
    if (distance == Compute(0)) return log_at_zero;
    return std::log1p(one_minus_eps / (distance + eps));
  }

  PROTOFAST_HOST_DEVICE Compute derivative(Compute distance) const {
    if (kind == Similarity::kLinear) return Compute(-1);
    if (kind == Similarity::kExp) return -std::exp(-distance);
    return -one_minus_eps / ((distance + Compute(1)) * (distance + eps));
  }
};

// index in [0, N * P) -> gradient of the loss for the distance of one pair.
template <typename Compute>
struct DistanceGradient {
  const Compute* grad_activations;  // [N, P] or null
  const Compute* grad_distances;    // [N, P] or null
  const Compute* distances;         // [N, P]
  Compute* gradients;               // [N, P]
  SimilarityFunction<Compute> similarity;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    Compute gradient = 0;
    if (grad_distances != nullptr) gradient += grad_distances[index];
    if (grad_activations != nullptr) {
      const Compute slope = similarity.derivative(distances[index]);
      gradient = std::fma(grad_activations[index], slope, gradient);
    }
    gradients[index] = gradient;
  }
};

}  // namespace protofast::cuda
