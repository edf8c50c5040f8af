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

// Images whose patches stay in the L2 cache while prototypes gather from them.
constexpr int64_t kGatherBytes = 256 << 10;

// The memory of one worker that sums up patches.
template <typename T>
class PatchSums {
 public:
  PatchSums(const PatchAccess<T>& access, const FeatureMap& features, int64_t prototypes)
      : rows_(access.row_memory(features)),
        starts_(features.locations + 1),
        prototypes_(prototypes) {}
  T* rows() const { return rows_.data(); }  // [row_memory]
  WinnerLists lists() const { return {starts_.data(), prototypes_.data()}; }

 private:
  Workspace<T> rows_;
  Workspace<int64_t> starts_;
  Workspace<int64_t> prototypes_;
};

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
  const bool cosine = metric == Metric::kCosine;
  Workspace<T> converted(0), prototype_norms(cosine ? count : 0);
  const T* rows = prototype_rows(kernels.access, prototypes, converted);
  if (cosine)
    kernels.access.find_inverse_norms({rows, depth}, count, depth, prototype_norms.data());
  const BackwardInputs<T> inputs = {
      metric, count, depth, features.locations, rows, prototype_norms.data()
  };

  PatchGroup<T> group(kernels.access, features, metric, threads);
  Workspace<T> slopes(group.size() * count);
  std::vector<BackwardImage<T>> images(group.size());
  std::vector<PatchSums<T>> workers;
  for (int64_t i = 0; i < (grad_features ? threads : 0); ++i) {
    workers.emplace_back(kernels.access, features, count);
  }
  // Summed up where they are to be, if they are of that type.
  const bool in_place = grad_prototypes && rows_in_place<T>(*grad_prototypes);
  Workspace<T> converted_sums(grad_prototypes && !in_place ? count * depth : 0);
  T* sums = in_place ? static_cast<T*>(grad_prototypes->data) : converted_sums.data();
  if (grad_prototypes) std::fill_n(sums, count * depth, T(0));

  for (int64_t first = 0; first < features.images; first += group.size()) {
    const int64_t size = std::min(group.size(), features.images - first);
    run_tasks(size, threads, parallel, [&](int64_t worker, int64_t i) {
      const int64_t slot = (first + i) * count;
      group.read(i, first + i);
      images[i] = {
          group.rows(i),
          group.inverse_norms(i),
          slopes.data() + i * count,
          distances + slot,
          locations + slot,
      };
      kernels.find_slopes(
          gradients.activations ? gradients.activations + slot : nullptr,
          gradients.distances ? gradients.distances + slot : nullptr,
          distances + slot,
          count,
          similarity,
          slopes.data() + i * count
      );
      if (!grad_features) return;
      const PatchSums<T>& memory = workers[worker];
      kernels.sum_up_patches(inputs, images[i], memory.lists(), memory.rows());
      kernels.access.write(memory.rows(), first + i, *grad_features);
    });
    if (!grad_prototypes) continue;
    const int64_t image_bytes = features.locations * depth * static_cast<int64_t>(sizeof(T));
    const int64_t together = std::max<int64_t>(1, kGatherBytes / image_bytes);
    const int64_t part = std::max<int64_t>(16, ceil_divide(count, 8 * threads));
    run_tasks(ceil_divide(count, part), threads, parallel, [&](int64_t, int64_t task) {
      const int64_t begin = task * part, end = std::min(count, begin + part);
      for (int64_t i = 0; i < size; i += together) {
        const int64_t some = std::min(together, size - i);
        kernels.add_to_prototypes(inputs, images.data() + i, some, begin, end, sums);
      }
    });
  }
  if (grad_prototypes && !in_place) {
    write_prototypes(kernels.access, sums, *grad_prototypes);
  }
}

}  // namespace protofast
