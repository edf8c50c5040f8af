// Puts the kernels of nearest_patches together with those of nearest_patch. No torch.
#pragma once

#include "cpu/nearest_patch/forward.h"
#include "cpu/nearest_patches/kernels.h"

namespace protofast {

// Outputs are [N, P, k]. N, P, D and L are at least 1, k is at most L and kMostPatches. Both
// kernels are of one instruction set.
template <typename T, typename Parallel>
void nearest_patches_forward(
    const NearestPatchKernels<T>& kernels,
    const NearestPatchesKernels<T>& ranking,
    const FeatureMap& features,
    const PrototypeMatrix& rows,
    int64_t k,
    Metric metric,
    const SimilarityFunction& similarity,
    int64_t threads,
    const Parallel& parallel,
    const NearestOutputs<T>& outputs
) {
  const auto search = [&](const PackedPrototypes<T>& prototypes,
                          const PackedImages<T>& images,
                          int64_t first_image,
                          int64_t panel) {
    const int64_t slot = first_image * prototypes.count * k;
    const NearestOutputs<T> here = {
        outputs.activations + slot, outputs.distances + slot, outputs.locations + slot
    };
    ranking.search(prototypes, images, panel, k, similarity, here);
  };
  PrototypePack<T> pack(kernels, rows, metric);
  // Every patch counts, those that repeat an earlier one as well.
  search_everything<T>(kernels, features, std::move(pack), false, threads, parallel, search);
}

}  // namespace protofast
