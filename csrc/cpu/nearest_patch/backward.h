// Puts the kernels of nearest_patch's backward together: memory, and tasks for threads. No torch.
#pragma once

#include "cpu/nearest_patch/forward.h"
#include "cpu/nearest_patch/kernels.h"
#include "cpu/patch_group.h"
#include "cpu/workspace.h"

namespace protofast {

template <typename T>
struct NearestGradients {
  const T* activations;  // [N, P], or null
  const T* distances;    // [N, P], or null
};

constexpr int64_t kPrototypesPerTask = 16;

// grad_features and grad_prototypes may be null: not needed. Every location lies in [0, L).
template <typename T, typename Parallel>
void nearest_patch_gradients(
    const NearestPatchKernels<T>& kernels,
    const NearestGradients<T>& gradients,
    const FeatureMap& features,
    const PrototypeMatrix& prototypes,
    const T* distances,
    const int64_t* locations,
    Metric metric,
    const SimilarityFunction& similarity,
    int64_t threads,
    const Parallel& parallel,
    const FeatureMap* grad_features,
    const PrototypeMatrix* grad_prototypes
) {
  const int64_t count = prototypes.count, depth = prototypes.depth;
  const int64_t image_numbers = features.locations * depth;
  const bool cosine = metric == Metric::kCosine;
  Workspace<T> converted(0), prototype_norms(cosine ? count : 0);
  const T* rows = prototype_rows(kernels.access, prototypes, converted);
  if (cosine)
    kernels.access.find_inverse_norms({rows, depth}, count, depth, prototype_norms.data());
  const BackwardInputs<T> inputs = {
      metric, count, depth, features.locations, rows, prototype_norms.data()
  };

  PatchGroup<T> group(kernels.access, features, metric);
  Workspace<T> slopes(group.size() * count);
  Workspace<T> tiles(grad_features ? threads * image_numbers : 0);  // [workers, L, D]
  Workspace<T> sums(grad_prototypes ? count * depth : 0);
  if (grad_prototypes) std::fill_n(sums.data(), count * depth, T(0));

  for (int64_t first = 0; first < features.images; first += group.size()) {
    const int64_t images = std::min(group.size(), features.images - first);
    const auto image_of_group = [&](int64_t i) {
      const int64_t slot = (first + i) * count;
      return BackwardImage<T>{
          group.rows(i),
          group.inverse_norms(i),
          slopes.data() + i * count,
          distances + slot,
          locations + slot,
      };
    };
    run_tasks(images, threads, parallel, [&](int64_t worker, int64_t i) {
      const int64_t slot = (first + i) * count;
      group.read(i, first + i);
      kernels.find_slopes(
          gradients.activations ? gradients.activations + slot : nullptr,
          gradients.distances ? gradients.distances + slot : nullptr,
          distances + slot,
          count,
          similarity,
          slopes.data() + i * count
      );
      if (!grad_features) return;
      T* tile = tiles.data() + worker * image_numbers;
      std::fill_n(tile, image_numbers, T(0));
      kernels.add_to_patches(inputs, image_of_group(i), tile);
      kernels.access.write(tile, first + i, *grad_features);
    });
    if (!grad_prototypes) continue;
    const int64_t tasks = ceil_divide(count, kPrototypesPerTask);
    run_tasks(tasks, threads, parallel, [&](int64_t, int64_t task) {
      const int64_t begin = task * kPrototypesPerTask;
      const int64_t end = std::min(count, begin + kPrototypesPerTask);
      for (int64_t i = 0; i < images; ++i) {
        kernels.add_to_prototypes(inputs, image_of_group(i), begin, end, sums.data());
      }
    });
  }
  if (grad_prototypes) {
    kernels.access.narrow(
        sums.data(), count * depth, grad_prototypes->data, grad_prototypes->element
    );
  }
}

}  // namespace protofast
