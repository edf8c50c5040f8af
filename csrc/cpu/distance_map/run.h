// Puts the kernels of distance_map together: memory, and tasks for threads. No torch.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/distance_map/kernels.h"
#include "cpu/patch_group.h"
#include "cpu/workspace.h"

namespace protofast {

// The prototypes of each image: index [N, K] with values in [0, P), or all of them in order.
struct ChosenPrototypes {
  const int64_t* index;  // or null: K = P
  int64_t count;         // K
  int64_t of(int64_t image, int64_t k) const { return index ? index[image * count + k] : k; }
};

// Pairs (image of a group, k) sorted by their prototype, otherwise in order.
class PairsByPrototype {
 public:
  struct Pair {
    int64_t image;  // in the group
    int64_t k;
  };
  PairsByPrototype(
      const ChosenPrototypes& chosen, int64_t prototypes, int64_t first_image, int64_t images
  )
      : starts_(prototypes + 1), pairs_(images * chosen.count) {
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t k = 0; k < chosen.count; ++k) ++starts_[chosen.of(first_image + i, k) + 1];
    }
    for (int64_t p = 0; p < prototypes; ++p) starts_[p + 1] += starts_[p];
    std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t k = 0; k < chosen.count; ++k) {
        pairs_[next[chosen.of(first_image + i, k)]++] = {i, k};
      }
    }
  }
  const Pair* begin(int64_t prototype) const { return pairs_.data() + starts_[prototype]; }
  const Pair* end(int64_t prototype) const { return pairs_.data() + starts_[prototype + 1]; }

 private:
  std::vector<int64_t> starts_;
  std::vector<Pair> pairs_;
};

// distances [N, K, L]; N, K and P are at least 1.
template <typename T, typename Parallel>
void distance_map_forward(
    const DistanceMapKernels<T>& kernels,
    const FeatureMap& features,
    const PrototypeMatrix& prototypes,
    const ChosenPrototypes& chosen,
    Metric metric,
    int64_t threads,
    const Parallel& parallel,
    T* distances
) {
  const int64_t depth = features.depth, locations = features.locations;
  Workspace<T> converted(0);
  const T* rows = prototype_rows(kernels.access, prototypes, converted);
  const bool in_place = kernels.access.rows_in_place(features);
  const int64_t numbers = in_place ? 0 : kernels.access.row_memory(features);
  Workspace<T> storage(threads * numbers);
  std::vector<int64_t> stored(threads, -1);  // which image each worker has read last
  std::vector<PatchRows<T>> patches(threads);
  // With few images the prototypes are divided among the threads as well.
  const int64_t parts = std::min(chosen.count, ceil_divide(2 * threads, features.images));
  const int64_t part = ceil_divide(chosen.count, parts);
  run_tasks(features.images * parts, threads, parallel, [&](int64_t worker, int64_t task) {
    const int64_t image = task / parts;
    if (stored[worker] != image) {
      patches[worker] = kernels.access.read(features, image, storage.data() + worker * numbers);
      stored[worker] = image;
    }
    const int64_t first = task % parts * part;
    for (int64_t k = first; k < std::min(chosen.count, first + part); ++k) {
      const T* prototype = rows + chosen.of(image, k) * depth;
      const ImageAndPrototype<T> pair = {
          metric, depth, locations, patches[worker], prototype, nullptr, T(0)
      };
      kernels.find_distances(pair, distances + (image * chosen.count + k) * locations);
    }
  });
}

// grad [N, K, L]. Zeros where nothing is chosen.
template <typename T, typename Parallel>
void distance_map_gradients(
    const DistanceMapKernels<T>& kernels,
    const T* grad,
    const FeatureMap& features,
    const PrototypeMatrix& prototypes,
    const ChosenPrototypes& chosen,
    Metric metric,
    int64_t threads,
    const Parallel& parallel,
    const FeatureMap& grad_features,
    const PrototypeMatrix& grad_prototypes
) {
  const int64_t depth = features.depth, locations = features.locations, count = prototypes.count;
  const int64_t image_numbers = locations * depth;
  const int64_t tile_numbers = kernels.access.row_memory(features);
  const bool cosine = metric == Metric::kCosine;
  Workspace<T> converted(0), prototype_norms(cosine ? count : 0);
  const T* rows = prototype_rows(kernels.access, prototypes, converted);
  if (cosine) {
    kernels.access.find_inverse_norms({rows, depth}, count, depth, prototype_norms.data());
  }
  PatchGroup<T> group(kernels.access, features, metric, threads);
  Workspace<T> tiles(threads * tile_numbers), sums(count * depth), parts(threads * depth);
  std::fill_n(sums.data(), count * depth, T(0));

  for (int64_t first = 0; first < features.images; first += group.size()) {
    const int64_t images = std::min(group.size(), features.images - first);
    const auto pair_of = [&](int64_t i, int64_t prototype) {
      return ImageAndPrototype<T>{
          metric,
          depth,
          locations,
          group.rows(i),
          rows + prototype * depth,
          group.inverse_norms(i),
          cosine ? prototype_norms.data()[prototype] : T(0),
      };
    };
    const auto grad_of = [&](int64_t i, int64_t k) {
      return grad + ((first + i) * chosen.count + k) * locations;
    };
    run_tasks(images, threads, parallel, [&](int64_t worker, int64_t i) {
      group.read(i, first + i);
      T* tile = tiles.data() + worker * tile_numbers;
      std::fill_n(tile, image_numbers, T(0));
      for (int64_t k = 0; k < chosen.count; ++k) {
        kernels.add_to_patches(pair_of(i, chosen.of(first + i, k)), grad_of(i, k), tile);
      }
      kernels.access.write(tile, first + i, grad_features);
    });
    const PairsByPrototype pairs(chosen, count, first, images);
    run_tasks(count, threads, parallel, [&](int64_t worker, int64_t p) {
      T *sum = sums.data() + p * depth, *part = parts.data() + worker * depth;
      for (const auto* pair = pairs.begin(p); pair != pairs.end(p); ++pair) {
        std::fill_n(part, depth, T(0));  // sums of sums lose fewer digits than one long sum
        kernels.add_to_prototype(pair_of(pair->image, p), grad_of(pair->image, pair->k), part);
        for (int64_t d = 0; d < depth; ++d) sum[d] += part[d];
      }
    });
  }
  write_prototypes(kernels.access, sums.data(), grad_prototypes);
}

}  // namespace protofast
