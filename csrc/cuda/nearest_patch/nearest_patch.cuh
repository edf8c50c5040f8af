// nearest_patch on a GPU: the straightforward form, over raw pointers, without torch.
//
//   distance(n, p)   = min over l of metric(z[n, :, l], p[p, :])      location = the first such l
//   activation(n, p) = similarity(distance(n, p))
//
// Fused: distance, minimum and similarity, so that the [N, P, L] map is never stored. Every
// distance is a direct difference, sum((z - p)^2), so that a patch equal to its prototype has
// distance 0.
//
// One thread makes one result, alone, in a fixed order: no atomics, nothing shared between threads,
// hence the same bits on every run and for any batch an image sits in. Each result is a struct with
// operator()(index), which runs on the host too: csrc/tests runs all of this file on a CPU.
//
// N images, P prototypes, D depth, H x W grid, L = H * W locations, row-major. All offsets are
// int64.

#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define PROTOFAST_HOST_DEVICE __host__ __device__
#else
#define PROTOFAST_HOST_DEVICE
#endif

namespace protofast::cuda {

enum class Metric { kSquaredL2, kL2, kDot, kCosine };
enum class Similarity { kLog, kLinear, kExp };

// ---------------------------------------------------------------- indices

// Where the elements of a [N, D, H, W] tensor lie, in elements: contiguous, channels-last or other.
struct FeatureLayout {
  int64_t depth, width, locations;
  int64_t image_stride, channel_stride, row_stride, column_stride;

  // Offset of channel 0 of the patch at `location` of `image`.
  PROTOFAST_HOST_DEVICE int64_t patch(int64_t image, int64_t location) const {
    return image * image_stride + (location / width) * row_stride +
           (location % width) * column_stride;
  }
};

struct Pair {
  int64_t image, prototype;
};

// [N, P] row by row.
PROTOFAST_HOST_DEVICE inline Pair split_pair(int64_t index, int64_t prototypes) {
  return {index / prototypes, index % prototypes};
}

struct Element {
  int64_t image, location, channel;
};

// [N, L, D] row by row: neighbouring threads have neighbouring channels of one patch.
PROTOFAST_HOST_DEVICE inline Element split_element(int64_t index, const FeatureLayout& layout) {
  const int64_t patch = index / layout.depth;
  return {patch / layout.locations, patch % layout.locations, index % layout.depth};
}

// ---------------------------------------------------------------- arithmetic

// Sums are taken in runs of this many terms, then over the runs: the rounding error of a sum of D
// terms grows with sqrt(16) + sqrt(D / 16) instead of sqrt(D).
constexpr int64_t kRun = 16;

// Locations one thread works on at a time: one load of the prototype serves all of them.
constexpr int kTile = 4;

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

// As torch.min: a NaN wins over everything, and the first of equals stays.
template <typename Compute>
PROTOFAST_HOST_DEVICE bool is_nearer(Compute candidate, Compute best) {
  if (best != best) return false;
  return candidate < best || candidate != candidate;
}

// Multiplications and additions are fused by name, not where the compiler likes: so the same
// numbers give the same bits whatever their dtype in memory.
template <Metric kMetric, typename Compute>
PROTOFAST_HOST_DEVICE Compute add_term(Compute sum, Compute z, Compute p) {
  if constexpr (kMetric == Metric::kSquaredL2 || kMetric == Metric::kL2) {
    const Compute difference = z - p;
    return std::fma(difference, difference, sum);
  } else {
    return std::fma(-z, p, sum);
  }
}

// Sum of squares of `count` numbers, `stride` apart.
template <typename Compute, typename Number>
PROTOFAST_HOST_DEVICE Compute squared_norm(const Number* values, int64_t count, int64_t stride) {
  Compute total = 0;
  for (int64_t start = 0; start < count; start += kRun) {
    const int64_t end = start + kRun < count ? start + kRun : count;
    Compute run = 0;
    for (int64_t d = start; d < end; ++d) {
      const Compute value = static_cast<Compute>(values[d * stride]);
      run = std::fma(value, value, run);
    }
    total += run;
  }
  return total;
}

// ---------------------------------------------------------------- forward

// index in [0, N * P) -> distances, locations and activations of one pair.
template <Metric kMetric, typename Compute, typename Feature>
struct NearestOfPair {
  const Feature* features;    // [N, D, H, W] by layout
  const Compute* prototypes;  // [D, P], so that neighbouring threads read neighbouring numbers
  Compute* activations;       // [N, P]
  Compute* distances;         // [N, P]
  int64_t* locations;         // [N, P]
  FeatureLayout layout;
  int64_t prototype_count;
  SimilarityFunction<Compute> similarity;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const Pair pair = split_pair(index, prototype_count);
    const Compute* prototype = prototypes + pair.prototype;
    Compute prototype_norm = 0;
    if constexpr (kMetric == Metric::kCosine) {
      prototype_norm = std::sqrt(squared_norm<Compute>(prototype, layout.depth, prototype_count));
    }
    Compute best = 0;
    int64_t best_location = 0;
    for (int64_t first = 0; first < layout.locations; first += kTile) {
      Compute tile[kTile];
      tile_distances(pair.image, first, prototype, prototype_norm, tile);
      for (int t = 0; t < kTile; ++t) {
        const int64_t location = first + t;
        if (location == 0 || (location < layout.locations && is_nearer(tile[t], best))) {
          best = tile[t];
          best_location = location;
        }
      }
    }
    if constexpr (kMetric == Metric::kL2) best = std::sqrt(best);
    distances[index] = best;
    locations[index] = best_location;
    activations[index] = similarity(best);
  }

  // Distances of the patches first .. first + kTile - 1; past the last patch, that of the last.
  // For `l2` they are squared.
  PROTOFAST_HOST_DEVICE void tile_distances(
      int64_t image,
      int64_t first,
      const Compute* prototype,
      Compute prototype_norm,
      Compute (&tile)[kTile]
  ) const {
    const Feature* patches[kTile];
    for (int t = 0; t < kTile; ++t) {
      const int64_t location = first + t < layout.locations ? first + t : layout.locations - 1;
      patches[t] = features + layout.patch(image, location);
      tile[t] = 0;
    }
    for (int64_t start = 0; start < layout.depth; start += kRun) {
      const int64_t end = start + kRun < layout.depth ? start + kRun : layout.depth;
      Compute run[kTile] = {};
      for (int64_t d = start; d < end; ++d) {
        const Compute p = prototype[d * prototype_count];
        for (int t = 0; t < kTile; ++t) {
          const Compute z = static_cast<Compute>(patches[t][d * layout.channel_stride]);
          run[t] = add_term<kMetric>(run[t], z, p);
        }
      }
      for (int t = 0; t < kTile; ++t) tile[t] += run[t];
    }
    if constexpr (kMetric == Metric::kCosine) {
      for (int t = 0; t < kTile; ++t) {
        const Compute norm =
            std::sqrt(squared_norm<Compute>(patches[t], layout.depth, layout.channel_stride)) *
            prototype_norm;
        tile[t] = norm == Compute(0) ? tile[t] : tile[t] / norm;  // a zero vector: cosine 0
      }
    }
  }
};

// ---------------------------------------------------------------- backward
//
// Gradients flow through the winning location of each pair alone. Three or four passes: the
// gradient of each distance; for `cosine` the norms; then one thread per element of grad_features,
// which adds up the prototypes in their order, and one per element of grad_prototypes, over the
// images.

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

// What both gradients read.
template <typename Compute, typename Feature>
struct Backward {
  Metric metric;
  const Feature* features;         // [N, D, H, W] by layout
  const Compute* prototypes;       // [P, D]
  const Compute* distances;        // [N, P]
  const int64_t* locations;        // [N, P]
  const Compute* gradients;        // [N, P], from DistanceGradient
  const Compute* patch_norms;      // [N, L], for cosine; else null
  const Compute* prototype_norms;  // [P], for cosine; else null
  FeatureLayout layout;
  int64_t image_count, prototype_count;

  // Adds the gradient for one channel, `own`, of one vector of a pair, whose other vector has
  // `other` there.
  PROTOFAST_HOST_DEVICE Compute add_gradient(
      Compute sum, int64_t pair, Compute own, Compute other, Compute own_norm, Compute other_norm
  ) const {
    const Compute gradient = gradients[pair];
    const Compute distance = distances[pair];
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

  PROTOFAST_HOST_DEVICE Compute patch_norm(int64_t image, int64_t location) const {
    return patch_norms == nullptr ? Compute(0) : patch_norms[image * layout.locations + location];
  }

  PROTOFAST_HOST_DEVICE Compute prototype_norm(int64_t prototype) const {
    return prototype_norms == nullptr ? Compute(0) : prototype_norms[prototype];
  }
};

// index in [0, N * L * D) -> one element of grad_features.
template <typename Compute, typename Feature>
struct FeatureGradient {
  Backward<Compute, Feature> backward;
  Feature* grad_features;  // [N, D, H, W] by grad_layout
  FeatureLayout grad_layout;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const FeatureLayout& layout = backward.layout;
    const Element at = split_element(index, layout);
    const int64_t first_pair = at.image * backward.prototype_count;
    const int64_t offset = layout.patch(at.image, at.location) + at.channel * layout.channel_stride;
    const Compute own = static_cast<Compute>(backward.features[offset]);
    const Compute own_norm = backward.patch_norm(at.image, at.location);
    Compute sum = 0;
    for (int64_t p = 0; p < backward.prototype_count; ++p) {
      if (backward.locations[first_pair + p] != at.location) continue;
      const Compute other = backward.prototypes[p * layout.depth + at.channel];
      sum = backward.add_gradient(
          sum, first_pair + p, own, other, own_norm, backward.prototype_norm(p)
      );
    }
    grad_features
        [grad_layout.patch(at.image, at.location) + at.channel * grad_layout.channel_stride] =
            static_cast<Feature>(sum);
  }
};

// index in [0, P * D) -> one element of grad_prototypes.
template <typename Compute, typename Feature>
struct PrototypeGradient {
  Backward<Compute, Feature> backward;
  Compute* grad_prototypes;  // [P, D]

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const FeatureLayout& layout = backward.layout;
    const int64_t p = index / layout.depth;
    const int64_t channel = index % layout.depth;
    const Compute own = backward.prototypes[index];
    const Compute own_norm = backward.prototype_norm(p);
    Compute sum = 0;
    for (int64_t n = 0; n < backward.image_count; ++n) {
      const int64_t pair = n * backward.prototype_count + p;
      const int64_t location = backward.locations[pair];
      // The operator can be called with any tensor; nothing outside the features is ever read.
      if (location < 0 || location >= layout.locations) continue;
      const int64_t offset = layout.patch(n, location) + channel * layout.channel_stride;
      const Compute other = static_cast<Compute>(backward.features[offset]);
      sum =
          backward.add_gradient(sum, pair, own, other, own_norm, backward.patch_norm(n, location));
    }
    grad_prototypes[index] = sum;
  }
};

// ---------------------------------------------------------------- the kernel

#ifdef __CUDACC__

constexpr int kThreads = 128;

// result(index) for every index in [0, count), however many blocks there are.
template <typename Result>
__global__ void __launch_bounds__(kThreads) compute_each(const Result result, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < count;
       index += stride) {
    result(index);
  }
}

#endif

}  // namespace protofast::cuda
