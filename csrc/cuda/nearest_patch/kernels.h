// The launchers of nearest_patch, as the file that talks to torch calls them: one for each path and
// one for the backward pass. Each returns when its kernels are on the stream, and throws
// std::runtime_error where CUDA reports an error. Neither torch nor CUDA headers.
#pragma once

#include "cuda/metrics.cuh"
#include "cuda/nearest_patch/plan.h"
#include "cuda/nearest_patch/similarity.cuh"
#include "cuda/numbers.h"

namespace protofast::cuda {

// Pointers to memory of the GPU. Features are `number`s in memory; everything else is float64 if
// they are, else float32. N, P, D and L are at least 1.
struct Forward {
  Metric metric;
  Similarity similarity;
  double eps;
  Number number;
  const void* features;  // [N, D, H, W] by layout
  FeatureLayout layout;
  const void* prototypes;  // [P, D]; for the plain path [D, P]
  void* activations;       // [N, P]
  void* distances;         // [N, P]
  int64_t* locations;      // [N, P]
  int64_t image_count, prototype_count;
};

void forward_plain(const Forward& forward, const Stream& stream);

// Whether the tensor cores' kernels were compiled for this GPU.
bool has_tensor_cores(const Stream& stream);

// The same for Hopper's, and their selection; forward_tensor_cores() calls it where the plan says.
bool has_wgmma(const Stream& stream);
struct Selection;
void select_by_wgmma(const Selection& selection, int planes, const Stream& stream);

// Where the parts of the tensor cores' workspace begin, in bytes.
struct TensorCoresWorkspace {
  int64_t patch_rows, prototype_rows;  // with padding
  int64_t numbers_per_row;             // bf16, both planes
  int64_t patches, prototypes;         // packed
  int64_t columns, squared_norms, factors, centre;
  int64_t bytes;
};
TensorCoresWorkspace tensor_cores_workspace(const Forward& forward, const Plan& plan);

void forward_tensor_cores(
    const Forward& forward, const Plan& plan, void* workspace, const Stream& stream
);

struct BackwardPass {
  Metric metric;
  Similarity similarity;
  double eps;
  Number number;
  const void* features;  // [N, D, H, W] by layout
  FeatureLayout layout;
  const void* prototypes;        // [P, D]
  const void* distances;         // [N, P]
  const int64_t* locations;      // [N, P]
  const void* grad_activations;  // [N, P] or null
  const void* grad_distances;    // [N, P] or null
  void* grad_features;           // [N, D, H, W] by grad_layout, or null; `number`s
  FeatureLayout grad_layout;
  void* grad_prototypes;  // [P, D] or null
  int64_t image_count, prototype_count;
  bool buckets;  // by buckets (buckets.cuh); else plain
};

// Bytes of workspace that `backward` needs.
int64_t backward_workspace(const BackwardPass& pass);
void backward(const BackwardPass& pass, void* workspace, const Stream& stream);

// Whether buckets can be used at all: the tables of a block hold so many locations.
bool buckets_fit(int64_t locations, int64_t prototypes);

template <typename Compute>
SimilarityFunction<Compute> similarity_function(Similarity kind, double eps) {
  return {
      kind,
      static_cast<Compute>(eps),
      static_cast<Compute>(1.0 - eps),
      static_cast<Compute>(std::log(1.0 / eps))
  };
}

}  // namespace protofast::cuda
