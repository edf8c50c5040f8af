// The pieces of nearest_patch that are compiled once per instruction set, and the data they share.
// Plain data without code, so that every translation unit may include it. forward.h and backward.h
// put the pieces together; kernel.h says how they work.
#pragma once

#include "cpu/element.h"

namespace protofast {

enum class Similarity : int { kLog, kLinear, kExp };

// Similarity as a function of the distance. at_zero is the log similarity at distance 0,
// log(1/eps).
struct SimilarityFunction {
  Similarity kind;
  double eps;
  double at_zero;
};

// The prototypes [P, D] in the layouts the search reads.
template <typename T>
struct PackedPrototypes {
  int64_t count;  // P
  int64_t depth;  // D
  Metric metric;
  T tolerance;    // rounding error of a score, in units of the norms it came from
  const T* rows;  // [P, D], as given
  T* centre;      // [D], subtracted before packing; zeros where the metric forbids it
  T* norms;       // [panels, lanes], from first_panel on: |p|^2, or |p| if the metric is not L2
  T* panels;      // [panels, D, lanes], likewise
  int64_t first_panel;
};

// A few consecutive images, packed; the rows of all images follow one another without gaps.
template <typename T>
struct PackedImages {
  int64_t count;
  int64_t locations;      // L
  PatchRows<T>* patches;  // [count], where each image's patches lie as given
  T* storage;             // [count, row_memory], for the patches that cannot be used in place
  T* blocks;              // [ceil(count * L / block_rows), D, block_rows], and kBlockSlack numbers
  T* terms;    // [count * L, rounded up to blocks], a number per row for its score; NaN: no part
  T* largest;  // [count], largest |z| in the image; NaN: its scores cannot be trusted
  T* scales;   // [as terms], and [as terms, lanes]: of coded kernels alone (coded_kernel.h)
  int32_t* products;
  uint32_t* table;  // [2^table_bits], more than L, to look for repeated patches; or null
  int table_bits;
};

constexpr int64_t kBlockSlack = 16;

// Where the results of these images go: [count, P] each.
template <typename T>
struct NearestOutputs {
  T* activations;
  T* distances;
  int64_t* locations;
};

// What the backward of one image or prototype reads.
template <typename T>
struct BackwardInputs {
  Metric metric;
  int64_t count;                     // P
  int64_t depth;                     // D
  int64_t locations;                 // L
  const T* prototypes;               // [P, D]
  const T* inverse_prototype_norms;  // [P], for cosine alone
};

// One image of it. `slopes` is d(loss)/d(distance).
template <typename T>
struct BackwardImage {
  PatchRows<T> patches;
  const T* inverse_patch_norms;  // [L], for cosine alone
  const T* slopes;               // [P]
  const T* distances;            // [P]
  const int64_t* winners;        // [P], in [0, L)
};

// Memory to sort the prototypes of an image by the location that won.
struct WinnerLists {
  int64_t* starts;      // [L + 1]
  int64_t* prototypes;  // [P]
};

template <typename T>
struct NearestPatchKernels {
  int64_t panel_lanes;
  int64_t block_rows;
  bool coded;  // panels and blocks of the L2 metrics hold integers
  PatchAccess<T> access;

  void (*find_centre)(const PackedPrototypes<T>& prototypes);
  void (*pack_panel)(const PackedPrototypes<T>& prototypes, int64_t panel);
  void (*pack_images)(
      const PackedPrototypes<T>& prototypes,
      const FeatureMap& features,
      int64_t first_image,
      const PackedImages<T>& images
  );
  void (*search)(
      const PackedPrototypes<T>& prototypes,
      const PackedImages<T>& images,
      int64_t panel,
      const SimilarityFunction& similarity,
      const NearestOutputs<T>& outputs
  );

  void (*find_slopes)(
      const T* grad_activations,  // or null
      const T* grad_distances,    // or null
      const T* distances,
      int64_t count,
      const SimilarityFunction& similarity,
      T* slopes
  );
  // grad_rows [L, D] = the gradient of an image's patches.
  void (*sum_up_patches)(
      const BackwardInputs<T>& inputs,
      const BackwardImage<T>& image,
      const WinnerLists& lists,
      T* grad_rows
  );
  // Adds what these images give to the gradients of prototypes [first, last); [P, D].
  void (*add_to_prototypes)(
      const BackwardInputs<T>& inputs,
      const BackwardImage<T>* images,
      int64_t count,
      int64_t first_prototype,
      int64_t last_prototype,
      T* grad_prototypes
  );
};

struct NearestPatchTable {
  NearestPatchKernels<float> of_float;
  NearestPatchKernels<double> of_double;
};

extern const NearestPatchTable nearest_patch_portable;
extern const NearestPatchTable nearest_patch_avx2;
extern const NearestPatchTable nearest_patch_avx512;
extern const NearestPatchTable nearest_patch_avx512vnni;

}  // namespace protofast
