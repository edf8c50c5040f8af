// nearest_patch on any GPU: the straightforward form, over raw pointers, without torch.
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

#pragma once

#include "cuda/metrics.cuh"
#include "cuda/nearest_patch/similarity.cuh"

namespace protofast::cuda {

// Locations one thread works on at a time: one load of the prototype serves all of them.
constexpr int kTile = 4;

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
      const int64_t end = run_end(start, layout.depth);
      Compute run[kTile] = {};
      for (int64_t d = start; d < end; ++d) {
        const Compute p = prototype[d * prototype_count];
        for (int t = 0; t < kTile; ++t) {
          const Compute z = static_cast<Compute>(patches[t][d * layout.channel_stride]);
          run[t] = add_term<is_difference(kMetric)>(run[t], z, p);
        }
      }
      for (int t = 0; t < kTile; ++t) tile[t] += run[t];
    }
    if constexpr (kMetric == Metric::kCosine) {
      for (int t = 0; t < kTile; ++t) {
        const Compute norm =
            std::sqrt(squared_norm<Compute>(patches[t], layout.depth, layout.channel_stride)) *
            prototype_norm;
        tile[t] = negative_cosine(tile[t], norm);
      }
    }
  }
};

// ---------------------------------------------------------------- backward
//
// Gradients flow through the winning location of each pair alone. Three or four passes: the
// gradient of each distance; for `cosine` what its gradients share; then one thread per element of
// grad_features, which adds up the prototypes in their order, and one per element of
// grad_prototypes, over the images.

// index in [0, N * P) -> what the gradients of one pair's cosine need.
template <typename Compute, typename Feature>
struct PairAcross {
  const Feature* features;    // [N, D, H, W] by layout
  const Compute* prototypes;  // [P, D]
  const int64_t* locations;   // [N, P]
  Across* pairs;              // [N, P]
  FeatureLayout layout;
  int64_t prototype_count;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const Pair pair = split_pair(index, prototype_count);
    const int64_t location = locations[index];
    pairs[index] = {};
    // The operator can be called with any tensor; nothing outside the features is ever read.
    if (location < 0 || location >= layout.locations) return;
    const Feature* patch = features + layout.patch(pair.image, location);
    const Compute* prototype = prototypes + pair.prototype * layout.depth;
    pairs[index] = across_of(patch, layout.channel_stride, prototype, layout.depth);
  }
};

// What both gradients read.
template <typename Compute, typename Feature>
struct Backward {
  Metric metric;
  const Feature* features;    // [N, D, H, W] by layout
  const Compute* prototypes;  // [P, D]
  const Compute* distances;   // [N, P]
  const int64_t* locations;   // [N, P]
  const Compute* gradients;   // [N, P], from DistanceGradient
  const Across* pairs;        // [N, P], from PairAcross, for cosine; else null
  FeatureLayout layout;
  int64_t image_count, prototype_count;

  PROTOFAST_HOST_DEVICE Across across(int64_t pair) const {
    return pairs == nullptr ? Across{} : pairs[pair];
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
    Compute sum = 0;
    for (int64_t p = 0; p < backward.prototype_count; ++p) {
      if (backward.locations[first_pair + p] != at.location) continue;
      const Compute other = backward.prototypes[p * layout.depth + at.channel];
      const Across across = backward.across(first_pair + p);
      sum = add_gradient(
          backward.metric,
          sum,
          backward.gradients[first_pair + p],
          backward.distances[first_pair + p],
          own,
          other,
          across.scale,
          across.along_patch
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
    Compute sum = 0;
    for (int64_t n = 0; n < backward.image_count; ++n) {
      const int64_t pair = n * backward.prototype_count + p;
      const int64_t location = backward.locations[pair];
      if (location < 0 || location >= layout.locations) continue;  // as in PairAcross
      const int64_t offset = layout.patch(n, location) + channel * layout.channel_stride;
      const Compute other = static_cast<Compute>(backward.features[offset]);
      const Across across = backward.across(pair);
      sum = add_gradient(
          backward.metric,
          sum,
          backward.gradients[pair],
          backward.distances[pair],
          own,
          other,
          across.scale,
          across.along_prototype
      );
    }
    grad_prototypes[index] = sum;
  }
};

}  // namespace protofast::cuda
