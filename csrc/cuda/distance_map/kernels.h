// The launchers of distance_map, as the file that talks to torch calls them. Neither torch nor CUDA
// headers.
#pragma once

#include "cuda/distance_map/distance_map.cuh"
#include "cuda/numbers.h"

namespace protofast::cuda {

// Pointers to memory of the GPU. Features are `number`s in memory; everything else is float64 if
// they are, else float32.
struct Map {
  Metric metric;
  Number number;
  const void* features;  // [N, D, H, W] by layout
  FeatureLayout layout;
  const void* prototypes;  // [P, D]
  ChosenPrototypes chosen;
  int64_t image_count;
};

void map_forward(const Map& map, void* distances, const Stream& stream);

struct MapGradients {
  const void* grad;     // [N, K, L]
  void* grad_features;  // by grad_layout; `number`s
  FeatureLayout grad_layout;
  void* grad_prototypes;  // [P, D]
};

// Bytes of workspace that map_backward needs.
int64_t map_backward_workspace(const Map& map);
void map_backward(
    const Map& map, const MapGradients& gradients, void* workspace, const Stream& stream
);

}  // namespace protofast::cuda
