// The backward of nearest_patch on the CPU. With slope[n, p] = d(loss)/d(distance[n, p]) and z the
// patch of image n that won for prototype p,
//
//   grad_features[n, location[n, p]] += slope * dd/dz,     grad_prototypes[p] += slope * dd/dp
//
//   squared_l2:  dd/dz = 2 (z - p)                    l2:  dd/dz = (z - p) / d, and 0 at d = 0
//   dot:         dd/dz = -p                       cosine:  dd/dz = -(p/|p| - cos z/|z|) / |z|
//
// and the same with z and p exchanged (dd/dp = -dd/dz for the L2 metrics). Only winners take part:
// N P D steps, nothing of size N P L or N P D is stored. L2 gradients are differences per pair;
// split into sums of z and of p they would lose three digits where similarities are steep.
//
// One task adds up the patches of one image, in the order of the prototypes; another adds up a few
// prototypes, in the order of the images. So both orders are fixed, and no two tasks share a sum.
#pragma once

#include "cpu/nearest_patch/kernels.h"
#include "cpu/pairs.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

template <typename T>
void add_to_patches(const BackwardInputs<T>& inputs, const BackwardImage<T>& image, T* grad_rows) {
  const bool cosine = inputs.metric == Metric::kCosine;
  for (int64_t p = 0; p < inputs.count; ++p) {
    const int64_t l = image.winners[p];
    add_gradient(
        grad_rows + l * inputs.depth,
        inputs.metric,
        image.slopes[p],
        image.distances[p],
        image.patches.rows + l * image.patches.stride,
        inputs.prototypes + p * inputs.depth,
        cosine ? image.inverse_patch_norms[l] : T(0),
        cosine ? inputs.inverse_prototype_norms[p] : T(0),
        inputs.depth
    );
  }
}

template <typename T>
void add_to_prototypes(
    const BackwardInputs<T>& inputs,
    const BackwardImage<T>& image,
    int64_t first_prototype,
    int64_t last_prototype,
    T* grad_prototypes
) {
  const bool cosine = inputs.metric == Metric::kCosine;
  for (int64_t p = first_prototype; p < last_prototype; ++p) {
    const int64_t l = image.winners[p];
    add_gradient(
        grad_prototypes + p * inputs.depth,
        inputs.metric,
        image.slopes[p],
        image.distances[p],
        inputs.prototypes + p * inputs.depth,
        image.patches.rows + l * image.patches.stride,
        cosine ? inputs.inverse_prototype_norms[p] : T(0),
        cosine ? image.inverse_patch_norms[l] : T(0),
        inputs.depth
    );
  }
}

}  // namespace
}  // namespace protofast
