// The piece of dot_and_cosine that is compiled once per instruction set; its packing and its
// backward are those of nearest_patch. kernel.h says how it works.
#pragma once

#include "cpu/nearest_patch/kernels.h"

namespace protofast {

// Where the results of some images go: [count, P] each.
template <typename T>
struct DotAndCosineOutputs {
  T* dots;
  int64_t* dot_locations;
  T* cosines;
  int64_t* cosine_locations;
};

template <typename T>
struct DotAndCosineKernels {
  // Prototypes and images packed for cosine.
  void (*search)(
      const PackedPrototypes<T>& prototypes,
      const PackedImages<T>& images,
      int64_t panel,
      const DotAndCosineOutputs<T>& outputs
  );
};

struct DotAndCosineTable {
  DotAndCosineKernels<float> of_float;
  DotAndCosineKernels<double> of_double;
};

extern const DotAndCosineTable dot_and_cosine_portable;
extern const DotAndCosineTable dot_and_cosine_avx2;
extern const DotAndCosineTable dot_and_cosine_avx512;

}  // namespace protofast
