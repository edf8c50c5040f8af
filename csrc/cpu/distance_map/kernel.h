// distance_map on the CPU: the distance of the prototypes chosen for each image to every patch,
//
//   distances[n, k, l] = d(z[n, l], p[index[n, k]]),    index[n, k] = k where there is none.
//
// For looking at a few prototypes per image, so each distance is a direct difference, exact near 0
// as in nearest_patch and by the same code: the least of a map is what nearest_patch returns.
// Nothing but the map is stored. The backward adds up per pair differences; those of an image's
// patches in the order of k, those of a prototype in the order of n, k and l. L2 and cosine
// distances are computed anew for it rather than kept.
#pragma once

#include "cpu/distance_map/kernels.h"
#include "cpu/pairs.h"
#include "cpu/patches.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

template <typename T>
inline T distance_at(const ImageAndPrototype<T>& pair, int64_t l) {
  const T* patch = pair.patches.rows + l * pair.patches.stride;
  return pair_distance(patch, pair.prototype, pair.depth, pair.metric);
}

template <typename T>
void find_distances(const ImageAndPrototype<T>& pair, T* distances) {
  for (int64_t l = 0; l < pair.locations; ++l) distances[l] = distance_at(pair, l);
}

// The distance where its gradient depends on it.
template <typename T>
inline T distance_for_gradient(const ImageAndPrototype<T>& pair, int64_t l) {
  const bool needed = pair.metric == Metric::kL2 || pair.metric == Metric::kCosine;
  return needed ? distance_at(pair, l) : T(0);
}

template <typename T>
void add_to_patches(const ImageAndPrototype<T>& pair, const T* grad, T* grad_rows) {
  for (int64_t l = 0; l < pair.locations; ++l) {
    add_gradient(
        grad_rows + l * pair.depth,
        pair.metric,
        grad[l],
        distance_for_gradient(pair, l),
        pair.patches.rows + l * pair.patches.stride,
        pair.prototype,
        pair.inverse_patch_norms ? pair.inverse_patch_norms[l] : T(0),
        pair.inverse_prototype_norm,
        pair.depth
    );
  }
}

template <typename T>
void add_to_prototype(const ImageAndPrototype<T>& pair, const T* grad, T* grad_prototype) {
  for (int64_t l = 0; l < pair.locations; ++l) {
    add_gradient(
        grad_prototype,
        pair.metric,
        grad[l],
        distance_for_gradient(pair, l),
        pair.prototype,
        pair.patches.rows + l * pair.patches.stride,
        pair.inverse_prototype_norm,
        pair.inverse_patch_norms ? pair.inverse_patch_norms[l] : T(0),
        pair.depth
    );
  }
}

template <typename T>
constexpr DistanceMapKernels<T> distance_map_kernels() {
  return {
      .access = patch_access<T>(),
      .find_distances = find_distances<T>,
      .add_to_patches = add_to_patches<T>,
      .add_to_prototype = add_to_prototype<T>,
  };
}

}  // namespace
}  // namespace protofast
