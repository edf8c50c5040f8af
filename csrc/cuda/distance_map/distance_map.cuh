// distance_map on a GPU: the distance of chosen prototypes to every patch, and its gradients. No
// torch.
//
//   distance(n, k, l) = metric(z[n, :, l], p[chosen(n, k), :])     chosen(n, k) = index[n, k], or k
//
// Every distance is a direct difference, with the bits that nearest_patch has (metrics.cuh). One
// thread makes each result, alone and in a fixed order; all of this file runs on the host too.
//
// An index outside the prototypes, which nobody can look for without stopping the host, gives NaN
// and has no gradient.

#pragma once

#include "cuda/metrics.cuh"

namespace protofast::cuda {

struct ChosenPrototypes {
  const int64_t* index;  // [N, K] or null
  int64_t count;         // K
  int64_t prototypes;    // P

  PROTOFAST_HOST_DEVICE int64_t operator()(int64_t image, int64_t k) const {
    return index == nullptr ? k : index[image * count + k];
  }
  PROTOFAST_HOST_DEVICE bool exists(int64_t prototype) const {
    return prototype >= 0 && prototype < prototypes;
  }
};

struct MapElement {
  int64_t image, k, location;
};

// [N, K, L] row by row.
PROTOFAST_HOST_DEVICE inline MapElement split_map(int64_t index, int64_t count, int64_t locations) {
  const int64_t row = index / locations;
  return {row / count, row % count, index % locations};
}

// ---------------------------------------------------------------- forward

constexpr int kMapTile = 4;  // prototypes of one thread: one load of the patch serves all

// index in [0, N * ceil(K / 4) * L) -> up to 4 distances of one patch.
template <typename Compute, typename Feature>
struct MapDistances {
  Metric metric;
  const Feature* features;    // [N, D, H, W] by layout
  const Compute* prototypes;  // [P, D]
  Compute* distances;         // [N, K, L]
  FeatureLayout layout;
  ChosenPrototypes chosen;

  PROTOFAST_HOST_DEVICE int64_t groups() const { return (chosen.count + kMapTile - 1) / kMapTile; }

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const MapElement at = split_map(index, groups(), layout.locations);
    const Feature* patch = features + layout.patch(at.image, at.location);
    const Compute* rows[kMapTile];
    PROTOFAST_UNROLL
    for (int t = 0; t < kMapTile; ++t) {
      const int64_t k = at.k * kMapTile + t;
      const int64_t prototype = k < chosen.count ? chosen(at.image, k) : -1;
      rows[t] = chosen.exists(prototype) ? prototypes + prototype * layout.depth : nullptr;
    }
    Compute sums[kMapTile] = {};
    if (is_difference(metric)) {
      add_terms<true>(patch, rows, sums);
    } else {
      add_terms<false>(patch, rows, sums);
    }
    PROTOFAST_UNROLL
    for (int t = 0; t < kMapTile; ++t) {
      const int64_t k = at.k * kMapTile + t;
      if (k >= chosen.count) continue;
      const int64_t to = (at.image * chosen.count + k) * layout.locations + at.location;
      distances[to] = rows[t] == nullptr ? Compute(NAN) : finished(patch, rows[t], sums[t]);
    }
  }

  template <bool kDifference>
  PROTOFAST_HOST_DEVICE void add_terms(
      const Feature* patch, const Compute* const (&rows)[kMapTile], Compute (&sums)[kMapTile]
  ) const {
    for (int64_t start = 0; start < layout.depth; start += kRun) {
      Compute runs[kMapTile] = {};
      for (int64_t d = start; d < run_end(start, layout.depth); ++d) {
        const Compute z = static_cast<Compute>(patch[d * layout.channel_stride]);
        PROTOFAST_UNROLL
        for (int t = 0; t < kMapTile; ++t) {
          if (rows[t] != nullptr) runs[t] = add_term<kDifference>(runs[t], z, rows[t][d]);
        }
      }
      PROTOFAST_UNROLL
      for (int t = 0; t < kMapTile; ++t) sums[t] += runs[t];
    }
  }

  PROTOFAST_HOST_DEVICE Compute
  finished(const Feature* patch, const Compute* row, Compute sum) const {
    if (metric == Metric::kL2) return std::sqrt(sum);
    if (metric != Metric::kCosine) return sum;
    const Compute norms =
        std::sqrt(squared_norm<Compute>(patch, layout.depth, layout.channel_stride)) *
        std::sqrt(squared_norm<Compute>(row, layout.depth, 1));
    return negative_cosine(sum, norms);
  }
};

// ---------------------------------------------------------------- backward

// index in [0, N * K * L) -> what the gradients of one pair's cosine need.
template <typename Compute, typename Feature>
struct MapAcross {
  const Feature* features;    // [N, D, H, W] by layout
  const Compute* prototypes;  // [P, D]
  Across* pairs;              // [N, K, L]
  FeatureLayout layout;
  ChosenPrototypes chosen;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const MapElement at = split_map(index, chosen.count, layout.locations);
    const int64_t p = chosen(at.image, at.k);
    pairs[index] = {};
    if (!chosen.exists(p)) return;
    const Feature* patch = features + layout.patch(at.image, at.location);
    const Compute* prototype = prototypes + p * layout.depth;
    pairs[index] = across_of(patch, layout.channel_stride, prototype, layout.depth);
  }
};

// What both gradients read.
template <typename Compute, typename Feature>
struct MapBackward {
  Metric metric;
  const Compute* grad;        // [N, K, L]
  const Feature* features;    // [N, D, H, W] by layout
  const Compute* prototypes;  // [P, D]
  const Compute* distances;   // [N, K, L], for l2; else null
  const Across* pairs;        // [N, K, L], from MapAcross, for cosine; else null
  FeatureLayout layout;
  ChosenPrototypes chosen;
  int64_t image_count;

  PROTOFAST_HOST_DEVICE Compute distance(int64_t place) const {
    return distances == nullptr ? Compute(0) : distances[place];
  }
  PROTOFAST_HOST_DEVICE Across across(int64_t place) const {
    return pairs == nullptr ? Across{} : pairs[place];
  }
};

// index in [0, N * D * L) -> one element of grad_features: neighbouring threads have neighbouring
// locations, and so neighbouring numbers of grad.
template <typename Compute, typename Feature>
struct MapFeatureGradient {
  MapBackward<Compute, Feature> backward;
  Feature* grad_features;  // [N, D, H, W] by grad_layout
  FeatureLayout grad_layout;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const FeatureLayout& layout = backward.layout;
    const MapElement at = split_map(index, layout.depth, layout.locations);
    const int64_t channel = at.k;
    const int64_t offset = layout.patch(at.image, at.location) + channel * layout.channel_stride;
    const Compute own = static_cast<Compute>(backward.features[offset]);
    const int64_t count = backward.chosen.count;
    Compute sum = 0;
    for (int64_t start = 0; start < count; start += kRun) {
      Compute run = 0;
      for (int64_t k = start; k < run_end(start, count); ++k) {
        const int64_t p = backward.chosen(at.image, k);
        if (!backward.chosen.exists(p)) continue;
        const int64_t place = (at.image * count + k) * layout.locations + at.location;
        const Across across = backward.across(place);
        run = add_gradient(
            backward.metric,
            run,
            backward.grad[place],
            backward.distance(place),
            own,
            backward.prototypes[p * layout.depth + channel],
            across.scale,
            across.along_patch
        );
      }
      sum += run;
    }
    const int64_t to =
        grad_layout.patch(at.image, at.location) + channel * grad_layout.channel_stride;
    grad_features[to] = static_cast<Feature>(sum);
  }
};

// index in [0, P * D) -> one element of grad_prototypes.
template <typename Compute, typename Feature>
struct MapPrototypeGradient {
  MapBackward<Compute, Feature> backward;
  Compute* grad_prototypes;  // [P, D]

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const int64_t p = index / backward.layout.depth, channel = index % backward.layout.depth;
    const int64_t count = backward.chosen.count;
    Compute sum = 0;
    for (int64_t n = 0; n < backward.image_count; ++n) {
      if (backward.chosen.index == nullptr) {
        sum += of_map(n, p, p, channel);
        continue;
      }
      for (int64_t k = 0; k < count; ++k) {
        if (backward.chosen(n, k) == p) sum += of_map(n, k, p, channel);
      }
    }
    grad_prototypes[index] = sum;
  }

  // Sum over the locations of one map.
  PROTOFAST_HOST_DEVICE Compute of_map(int64_t image, int64_t k, int64_t p, int64_t channel) const {
    const FeatureLayout& layout = backward.layout;
    const Compute own = backward.prototypes[p * layout.depth + channel];
    const int64_t first = (image * backward.chosen.count + k) * layout.locations;
    Compute sum = 0;
    for (int64_t start = 0; start < layout.locations; start += kRun) {
      Compute run = 0;
      for (int64_t l = start; l < run_end(start, layout.locations); ++l) {
        const int64_t offset = layout.patch(image, l) + channel * layout.channel_stride;
        const Across across = backward.across(first + l);
        run = add_gradient(
            backward.metric,
            run,
            backward.grad[first + l],
            backward.distance(first + l),
            own,
            static_cast<Compute>(backward.features[offset]),
            across.scale,
            across.along_prototype
        );
      }
      sum += run;
    }
    return sum;
  }
};

}  // namespace protofast::cuda
