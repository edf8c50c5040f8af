// What the CPU kernels and the files that call them agree on: element types and strided views.
// Plain data without code, so that every translation unit may include it.
#pragma once

#include <stdint.h>

namespace protofast {

enum class Element : int { kFloat16, kBFloat16, kFloat32, kFloat64 };

enum class Metric : int { kSquaredL2, kL2, kDot, kCosine };

// Features [N, D, H, W] of any element type. Location l = h * W + w of image n at depth d lies
// n * image_stride + d * depth_stride + l * location_stride elements after data. NCHW has
// location_stride 1, channels-last depth_stride 1; slices of either are read in place too.
struct FeatureMap {
  void* data;  // only written to where the map is an output
  Element element;
  int64_t images;     // N
  int64_t depth;      // D
  int64_t locations;  // L = H * W
  int64_t image_stride;
  int64_t depth_stride;
  int64_t location_stride;
};

// The patches of one image as rows: patch l is the D consecutive numbers at rows + l * stride.
template <typename T>
struct PatchRows {
  const T* rows;
  int64_t stride;
};

// Reading and writing of feature maps and prototypes, compiled once per instruction set
// (patches.h).
template <typename T>
struct PatchAccess {
  // Whether the patches of `map` can be used as rows of T where they lie.
  bool (*rows_in_place)(const FeatureMap& map);
  // The patches of one image as rows: in place, or else converted into storage [L, D].
  PatchRows<T> (*read)(const FeatureMap& map, int64_t image, T* storage);
  // Rows [L, D] into one image of `map`.
  void (*write)(const T* rows, int64_t image, const FeatureMap& map);
  // `count` numbers of any element type to T, and back.
  void (*widen)(const void* source, Element element, int64_t count, T* target);
  void (*narrow)(const T* source, int64_t count, void* target, Element element);
  // 1 / |row| of each row [count, depth], 0 for a zero vector.
  void (*find_inverse_norms)(PatchRows<T> rows, int64_t count, int64_t depth, T* norms);
};

}  // namespace protofast
