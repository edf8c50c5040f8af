// distance_map and its backward for CUDA tensors: what talks to torch.

#include <optional>
#include <string>
#include <tuple>

#include "cuda/distance_map/kernels.h"
#include "cuda/tensors.h"

namespace protofast::cuda {
namespace {

// Everything that forward and backward read; the tensors live as long as this.
class Inputs {
 public:
  Inputs(
      const Tensor& features,
      const Tensor& prototypes,
      const std::optional<Tensor>& index,
      const std::string& metric
  )
      : compute_(compute_dtype(features, prototypes)),
        source_(readable(features, compute_)),
        rows_(rows_of(prototypes, compute_)) {
    ChosenPrototypes chosen{nullptr, prototypes.size(0), prototypes.size(0)};
    if (index) {
      STD_TORCH_CHECK(
          index->scalar_type() == ScalarType::Long && index->dim() == 2 &&
              index->size(0) == features.size(0),
          "index must be int64 and [N, K]"
      );
      check_device("index", *index, features);
      index_ = torch::stable::contiguous(*index);
      chosen.index = static_cast<const int64_t*>(index_->const_data_ptr());
      chosen.count = index_->size(1);
    }
    map_ = {
        parse_metric(metric),
        number_of(source_.scalar_type()),
        source_.const_data_ptr(),
        layout_of(source_),
        rows_.const_data_ptr(),
        chosen,
        features.size(0)
    };
  }

  const Map& map() const { return map_; }
  ScalarType compute() const { return compute_; }
  const Tensor& source() const { return source_; }
  const Tensor& rows() const { return rows_; }

 private:
  ScalarType compute_;
  Tensor source_, rows_;
  std::optional<Tensor> index_;
  Map map_;
};

Tensor distance_map(
    const Tensor& features,
    const Tensor& prototypes,
    const std::optional<Tensor>& index,
    const std::string& metric
) {
  check_inputs(features, prototypes);
  const DeviceGuard guard(features.get_device_index());
  const Inputs inputs(features, prototypes, index, metric);
  const int64_t sizes[] = {
      features.size(0), inputs.map().chosen.count, features.size(2), features.size(3)
  };
  const Tensor distances = torch::stable::new_empty(features, {sizes, 4}, inputs.compute());
  if (distances.numel() == 0) return distances;
  map_forward(inputs.map(), distances.mutable_data_ptr(), current_stream(features));
  return distances;
}

std::tuple<Tensor, Tensor> distance_map_backward(
    const Tensor& grad,
    const Tensor& features,
    const Tensor& prototypes,
    const std::optional<Tensor>& index,
    const std::string& metric
) {
  check_inputs(features, prototypes);
  const DeviceGuard guard(features.get_device_index());
  const Inputs inputs(features, prototypes, index, metric);
  STD_TORCH_CHECK(
      grad.dim() == 4 && grad.size(0) == features.size(0) &&
          grad.size(1) == inputs.map().chosen.count && grad.size(2) == features.size(2) &&
          grad.size(3) == features.size(3) && grad.scalar_type() == inputs.compute(),
      "grad must be [N, K, H, W] and of the type that distance_map returns"
  );
  check_device("grad", grad, features);
  const Tensor slopes = torch::stable::contiguous(grad);
  const Tensor grad_features = torch::stable::empty_like(inputs.source());
  const Tensor grad_prototypes = torch::stable::empty_like(inputs.rows());
  const MapGradients gradients{
      slopes.const_data_ptr(),
      grad_features.mutable_data_ptr(),
      layout_of(grad_features),
      grad_prototypes.mutable_data_ptr()
  };
  const Tensor workspace = new_workspace(features, map_backward_workspace(inputs.map()));
  map_backward(inputs.map(), gradients, workspace.mutable_data_ptr(), current_stream(features));
  return {
      torch::stable::to(grad_features, features.scalar_type()),
      torch::stable::to(grad_prototypes, prototypes.scalar_type())
  };
}

}  // namespace
}  // namespace protofast::cuda

STABLE_TORCH_LIBRARY_IMPL(protofast, CUDA, library) {
  library.impl("distance_map", TORCH_BOX(&protofast::cuda::distance_map));
  library.impl("distance_map_backward", TORCH_BOX(&protofast::cuda::distance_map_backward));
}
