// Puts the kernels of dot_and_cosine together with those of nearest_patch. No torch.
#pragma once

#include "cpu/dot_and_cosine/kernels.h"
#include "cpu/nearest_patch/forward.h"

namespace protofast {

// Outputs are [N, P] each. N, P, D and L are at least 1. Both kernels are of one instruction set.
template <typename T, typename Parallel>
void dot_and_cosine_forward(
    const NearestPatchKernels<T>& kernels,
    const DotAndCosineKernels<T>& both,
    const FeatureMap& features,
    const PrototypeMatrix& rows,
    int64_t threads,
    const Parallel& parallel,
    const DotAndCosineOutputs<T>& outputs
) {
  const auto search = [&](const PackedPrototypes<T>& prototypes,
                          const PackedImages<T>& images,
                          int64_t first_image,
                          int64_t panel) {
    const int64_t slot = first_image * prototypes.count;
    const DotAndCosineOutputs<T> here = {
        outputs.dots + slot,
        outputs.dot_locations + slot,
        outputs.cosines + slot,
        outputs.cosine_locations + slot
    };
    both.search(prototypes, images, panel, here);
  };
  PrototypePack<T> pack(kernels, rows, Metric::kCosine);
  search_everything<T>(kernels, features, std::move(pack), true, threads, parallel, search);
}

}  // namespace protofast
