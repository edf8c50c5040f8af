// The pieces of distance_map that are compiled once per instruction set, and the data they share.
// Plain data without code; distance_map.h puts the pieces together, kernel.h says how they work.
#pragma once

#include "cpu/element.h"

namespace protofast {

// One image and one of the prototypes chosen for it.
template <typename T>
struct ImageAndPrototype {
  Metric metric;
  int64_t depth;      // D
  int64_t locations;  // L
  PatchRows<T> patches;
  const T* prototype;            // [D]
  const T* inverse_patch_norms;  // [L], for the gradient of cosine alone
  T inverse_prototype_norm;      // likewise
};

template <typename T>
struct DistanceMapKernels {
  PatchAccess<T> access;
  // distances[l] for all locations.
  void (*find_distances)(const ImageAndPrototype<T>& pair, T* distances);
  // grad_rows[l] += grad[l] * dd/dz for all locations; grad_rows [L, D].
  void (*add_to_patches)(const ImageAndPrototype<T>& pair, const T* grad, T* grad_rows);
  // grad_prototype += sum over l of grad[l] * dd/dp; grad_prototype [D].
  void (*add_to_prototype)(const ImageAndPrototype<T>& pair, const T* grad, T* grad_prototype);
};

struct DistanceMapTable {
  DistanceMapKernels<float> of_float;
  DistanceMapKernels<double> of_double;
};

extern const DistanceMapTable distance_map_portable;
extern const DistanceMapTable distance_map_avx2;
extern const DistanceMapTable distance_map_avx512;

}  // namespace protofast
