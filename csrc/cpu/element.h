// What the CPU kernels and the files that call them agree on: element types and strided views.
// Plain data without code, so that every translation unit may include it.
#pragma once

#include <stdint.h>

namespace protofast {

enum class Element : int { kFloat16, kBFloat16, kFloat32, kFloat64 };

enum class Metric : int { kSquaredL2, kL2, kDot, kCosine };

// What a prototype of h x w patches is compared with, on a grid of W patches to a row.
struct Window {
  int64_t height = 1;      // h
  int64_t width = 1;       // w
  int64_t grid_width = 0;  // W; not used for 1 x 1
};

// Features [N, D, H, W] of any element type. Location l = y * W + x of image n at depth d lies
// n * image_stride + d * depth_stride + l * location_stride elements after data. NCHW has
// location_stride 1, channels-last depth_stride 1; slices of either are read in place too.
//
// Where the window is larger than 1 x 1, location l = y * (W - w + 1) + x is the window whose first
// patch lies in row y and column x, and its depth that of all its patches, in the order [h, w, D].
// The strides are still those of single patches.
struct FeatureMap {
  void* data;  // only written to where the map is an output
  Element element;
  int64_t images;     // N
  int64_t depth;      // D; of windows h * w * D
  int64_t locations;  // L = H * W; of windows (H - h + 1) * (W - w + 1)
  int64_t image_stride;
  int64_t depth_stride;
  int64_t location_stride;
  Window window = {};
};

// The patches of one image, or its windows, as rows: patch l is the D consecutive numbers at
// rows + l * stride.
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
  // Numbers of memory for the rows of one image: L * D, and for windows its patches behind them.
  int64_t (*row_memory)(const FeatureMap& map);
  // The patches of one image as rows: in place, or else converted into storage [row_memory].
  PatchRows<T> (*read)(const FeatureMap& map, int64_t image, T* storage);
  // Rows [L, D], at the beginning of memory [row_memory], into one image of `map`. What windows
  // have in common is added up, and then rounded once to the element type.
  void (*write)(T* rows, int64_t image, const FeatureMap& map);
  // `count` numbers of any element type to T, and back.
  void (*widen)(const void* source, Element element, int64_t count, T* target);
  void (*narrow)(const T* source, int64_t count, void* target, Element element);
  // 1 / |row| of each row [count, depth], 0 for a zero vector.
  void (*find_inverse_norms)(PatchRows<T> rows, int64_t count, int64_t depth, T* norms);
};

}  // namespace protofast
