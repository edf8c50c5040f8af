// distance_map: launches of the kernels in distance_map.cuh.

#include "cuda/distance_map/kernels.h"
#include "cuda/launch.cuh"

namespace protofast::cuda {
namespace {

// Where the parts of the backward pass's workspace begin, in bytes.
struct Workspace {
  int64_t distances, pairs, bytes;

  explicit Workspace(const Map& map) {
    const int64_t size = map.number == Number::kFloat64 ? sizeof(double) : sizeof(float);
    const int64_t numbers = map.image_count * map.chosen.count * map.layout.locations;
    Parts parts;
    distances = parts.next(map.metric == Metric::kL2 ? numbers : 0, size);
    pairs = parts.next(map.metric == Metric::kCosine ? numbers : 0, sizeof(Across));
    bytes = parts.bytes();
  }
};

template <typename Compute, typename Feature>
void forward(const Map& map, Compute* distances, const Stream& stream) {
  const MapDistances<Compute, Feature> result{
      map.metric,
      static_cast<const Feature*>(map.features),
      static_cast<const Compute*>(map.prototypes),
      distances,
      map.layout,
      map.chosen
  };
  launch_each(result, map.image_count * result.groups() * map.layout.locations, stream);
}

template <typename Compute, typename Feature>
void backward(const Map& map, const MapGradients& gradients, char* start, const Stream& stream) {
  const Workspace at(map);
  const Feature* features = static_cast<const Feature*>(map.features);
  const Compute* prototypes = static_cast<const Compute*>(map.prototypes);
  const FeatureLayout& layout = map.layout;
  Compute* distances = nullptr;
  Across* pairs = nullptr;
  if (map.metric == Metric::kL2) {
    distances = reinterpret_cast<Compute*>(start + at.distances);
    forward<Compute, Feature>(map, distances, stream);
  }
  if (map.metric == Metric::kCosine) {
    pairs = reinterpret_cast<Across*>(start + at.pairs);
    const MapAcross<Compute, Feature> of_pairs{features, prototypes, pairs, layout, map.chosen};
    launch_each(of_pairs, map.image_count * map.chosen.count * layout.locations, stream);
  }
  const MapBackward<Compute, Feature> common{
      map.metric,
      static_cast<const Compute*>(gradients.grad),
      features,
      prototypes,
      distances,
      pairs,
      layout,
      map.chosen,
      map.image_count
  };
  const MapFeatureGradient<Compute, Feature> to_features{
      common, static_cast<Feature*>(gradients.grad_features), gradients.grad_layout
  };
  const MapPrototypeGradient<Compute, Feature> to_prototypes{
      common, static_cast<Compute*>(gradients.grad_prototypes)
  };
  launch_each(to_features, map.image_count * layout.depth * layout.locations, stream);
  launch_each(to_prototypes, map.chosen.prototypes * layout.depth, stream);
}

}  // namespace

void map_forward(const Map& map, void* distances, const Stream& stream) {
  with_types(map.number, [&]<typename Compute, typename Feature>(Compute*, Feature*) {
    forward<Compute, Feature>(map, static_cast<Compute*>(distances), stream);
  });
}

int64_t map_backward_workspace(const Map& map) { return Workspace(map).bytes; }

void map_backward(
    const Map& map, const MapGradients& gradients, void* workspace, const Stream& stream
) {
  with_types(map.number, [&]<typename Compute, typename Feature>(Compute*, Feature*) {
    backward<Compute, Feature>(map, gradients, static_cast<char*>(workspace), stream);
  });
}

}  // namespace protofast::cuda
