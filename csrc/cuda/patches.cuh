// Where patches lie in memory and how results are numbered, shared by the CUDA kernels. No torch.
//
// Everything marked PROTOFAST_HOST_DEVICE runs on the host too: csrc/tests runs the kernels on a
// CPU, where a sanitizer can watch them.
//
// N images, P prototypes, D depth, H x W grid, L = H * W locations, row-major. All offsets are
// int64.

#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define PROTOFAST_HOST_DEVICE __host__ __device__
#else
#define PROTOFAST_HOST_DEVICE
#endif

#ifdef __CUDA_ARCH__  // a host compiler does not know these
#define PROTOFAST_UNROLL _Pragma("unroll")
#define PROTOFAST_UNROLL_BY_4 _Pragma("unroll 4")
#else
#define PROTOFAST_UNROLL
#define PROTOFAST_UNROLL_BY_4
#endif

namespace protofast::cuda {

// Where the elements of a [N, D, H, W] tensor lie, in elements: contiguous, channels-last or other.
struct FeatureLayout {
  int64_t depth, width, locations;
  int64_t image_stride, channel_stride, row_stride, column_stride;

  // Offset of channel 0 of the patch at `location` of `image`.
  PROTOFAST_HOST_DEVICE int64_t patch(int64_t image, int64_t location) const {
    return image * image_stride + (location / width) * row_stride +
           (location % width) * column_stride;
  }
};

// [P, D] read as one image of P patches in a row.
inline FeatureLayout layout_of_rows(int64_t rows, int64_t depth) {
  return {depth, rows, rows, 0, 1, 0, depth};
}

struct Pair {
  int64_t image, prototype;
};

// [N, P] row by row.
PROTOFAST_HOST_DEVICE inline Pair split_pair(int64_t index, int64_t prototypes) {
  return {index / prototypes, index % prototypes};
}

struct Element {
  int64_t image, location, channel;
};

// [N, L, D] row by row: neighbouring threads have neighbouring channels of one patch.
PROTOFAST_HOST_DEVICE inline Element split_element(int64_t index, const FeatureLayout& layout) {
  const int64_t patch = index / layout.depth;
  return {patch / layout.locations, patch % layout.locations, index % layout.depth};
}

}  // namespace protofast::cuda
