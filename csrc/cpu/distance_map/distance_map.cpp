// The operators distance_map and distance_map_backward on the CPU: checks, outputs, registration.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "cpu/distance_map/run.h"
#include "cpu/tables.h"
#include "cpu/tensors.h"

namespace protofast {
namespace {

// The index as the kernels read it: contiguous, within the prototypes. It lives as long as this.
class Chosen {
 public:
  Chosen(const std::optional<Tensor>& index, const Tensor& features, const Tensor& prototypes)
      : prototypes_{nullptr, prototypes.size(0)} {
    if (!index) return;
    STD_TORCH_CHECK(
        index->is_cpu() && index->scalar_type() == ScalarType::Long && index->dim() == 2 &&
            index->size(0) == features.size(0),
        "index must be on the CPU, int64 and [N, K]"
    );
    index_ = torch::stable::contiguous(*index);
    const int64_t* values = index_->const_data_ptr<int64_t>();
    const int64_t count = index_->numel(), limit = prototypes.size(0);
    for (int64_t i = 0; i < count; ++i) {
      STD_TORCH_CHECK(
          values[i] >= 0 && values[i] < limit,
          "index must lie in [0, ",
          limit,
          "), the number of prototypes; got ",
          values[i]
      );
    }
    prototypes_ = {values, index_->size(1)};
  }
  const ChosenPrototypes& operator*() const { return prototypes_; }

 private:
  std::optional<Tensor> index_;
  ChosenPrototypes prototypes_;
};

Tensor distance_map(
    const Tensor& features,
    const Tensor& prototypes,
    const std::optional<Tensor>& index,
    const std::string& metric_name
) {
  check_inputs(features, prototypes);
  const Metric metric = metric_of(metric_name);
  const DistanceMapTable& table = PROTOFAST_TABLE(distance_map, chosen_instruction_set());
  const Chosen chosen(index, features, prototypes);
  const ScalarType type = result_type(features, prototypes);
  const Grid grid = grid_of(features, prototypes);
  const int64_t shape[] = {features.size(0), (*chosen).count, grid.rows, grid.columns};
  Tensor distances = torch::stable::new_empty(features, shape, type);
  if (distances.numel() == 0) return distances;

  const Tensor source = readable(features), rows = readable_prototypes(prototypes);
  const FeatureMap map = read_map(source, rows);
  const double steps = static_cast<double>(distances.numel()) * map.depth;
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    distance_map_forward<T>(
        kernels_of<T>(table),
        map,
        read_matrix(rows),
        *chosen,
        metric,
        threads_for(steps),
        TorchThreads(),
        distances.mutable_data_ptr<T>()
    );
  });
  return distances;
}

std::tuple<Tensor, Tensor> distance_map_backward(
    const Tensor& grad,
    const Tensor& features,
    const Tensor& prototypes,
    const std::optional<Tensor>& index,
    const std::string& metric_name
) {
  check_inputs(features, prototypes);
  const Metric metric = metric_of(metric_name);
  const DistanceMapTable& table = PROTOFAST_TABLE(distance_map, chosen_instruction_set());
  const Chosen chosen(index, features, prototypes);
  const ScalarType type = result_type(features, prototypes);
  const Grid grid = grid_of(features, prototypes);
  STD_TORCH_CHECK(
      grad.is_cpu() && grad.dim() == 4 && grad.size(0) == features.size(0) &&
          grad.size(1) == (*chosen).count && grad.size(2) == grid.rows &&
          grad.size(3) == grid.columns && grad.scalar_type() == type,
      "grad must be on the CPU, [N, K, H, W] and of the type that distance_map returns"
  );
  GradientOutputs outputs(features, prototypes, true, true);
  const Tensor source = readable(features), rows = readable_prototypes(prototypes);
  const Tensor slopes = torch::stable::contiguous(grad);
  const FeatureMap map = read_map(source, rows);
  const double steps = static_cast<double>(slopes.numel()) * map.depth;
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    distance_map_gradients<T>(
        kernels_of<T>(table),
        slopes.const_data_ptr<T>(),
        map,
        read_matrix(rows),
        *chosen,
        metric,
        threads_for(steps),
        TorchThreads(),
        *outputs.features(),
        *outputs.prototypes()
    );
  });
  return outputs.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(protofast, CPU, library) {
  library.impl("distance_map", TORCH_BOX(&distance_map));
  library.impl("distance_map_backward", TORCH_BOX(&distance_map_backward));
}

}  // namespace protofast
