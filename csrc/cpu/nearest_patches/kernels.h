// The piece of nearest_patches that is compiled once per instruction set; its packing and its
// backward are those of nearest_patch. kernel.h says how it works.
#pragma once

#include "cpu/nearest_patch/kernels.h"

namespace protofast {

constexpr int64_t kMostPatches = 8;  // k at most

template <typename T>
struct NearestPatchesKernels {
  // Outputs are [count, P, k]. The images must have been packed without marking repetitions.
  void (*search)(
      const PackedPrototypes<T>& prototypes,
      const PackedImages<T>& images,
      int64_t panel,
      int64_t k,
      const SimilarityFunction& similarity,
      const NearestOutputs<T>& outputs
  );
};

struct NearestPatchesTable {
  NearestPatchesKernels<float> of_float;
  NearestPatchesKernels<double> of_double;
};

extern const NearestPatchesTable nearest_patches_portable;
extern const NearestPatchesTable nearest_patches_avx2;
extern const NearestPatchesTable nearest_patches_avx512;

}  // namespace protofast
