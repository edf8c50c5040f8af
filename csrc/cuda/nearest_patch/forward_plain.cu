// nearest_patch, the plain path: kernels in plain.cuh.

#include "cuda/launch.cuh"
#include "cuda/nearest_patch/kernels.h"
#include "cuda/nearest_patch/plain.cuh"

namespace protofast::cuda {
namespace {

template <Metric kMetric, typename Compute, typename Feature>
void launch(const Forward& f, const Stream& stream) {
  const NearestOfPair<kMetric, Compute, Feature> result{
      static_cast<const Feature*>(f.features),
      static_cast<const Compute*>(f.prototypes),
      static_cast<Compute*>(f.activations),
      static_cast<Compute*>(f.distances),
      f.locations,
      f.layout,
      f.prototype_count,
      similarity_function<Compute>(f.similarity, f.eps)
  };
  launch_each(result, f.image_count * f.prototype_count, stream);
}

}  // namespace

void forward_plain(const Forward& f, const Stream& stream) {
  with_types(f.number, [&]<typename Compute, typename Feature>(Compute*, Feature*) {
    switch (f.metric) {
      case Metric::kSquaredL2:
        return launch<Metric::kSquaredL2, Compute, Feature>(f, stream);
      case Metric::kL2:
        return launch<Metric::kL2, Compute, Feature>(f, stream);
      case Metric::kDot:
        return launch<Metric::kDot, Compute, Feature>(f, stream);
      case Metric::kCosine:
        return launch<Metric::kCosine, Compute, Feature>(f, stream);
    }
  });
}

}  // namespace protofast::cuda
