// The operator nearest_patch_within on the CPU: checks, outputs, registration.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "cpu/nearest_patch_within/run.h"
#include "cpu/tables.h"
#include "cpu/tensors.h"

namespace protofast {
namespace {

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> as_tensors(
    const Tensor& features, const NearPairs<T>& found, ScalarType type
) {
  int64_t count = 0;
  for (const auto& pairs : found) count += static_cast<int64_t>(pairs.size());
  const int64_t shape[] = {count};
  Tensor images = torch::stable::new_empty(features, shape, ScalarType::Long);
  Tensor prototypes = torch::stable::new_empty(features, shape, ScalarType::Long);
  Tensor distances = torch::stable::new_empty(features, shape, type);
  Tensor locations = torch::stable::new_empty(features, shape, ScalarType::Long);
  int64_t* of_image = images.mutable_data_ptr<int64_t>();
  int64_t* of_prototype = prototypes.mutable_data_ptr<int64_t>();
  T* distance = distances.mutable_data_ptr<T>();
  int64_t* location = locations.mutable_data_ptr<int64_t>();
  for (size_t n = 0; n < found.size(); ++n) {
    for (const NearPair<T>& pair : found[n]) {
      *of_image++ = static_cast<int64_t>(n);
      *of_prototype++ = pair.prototype;
      *distance++ = pair.distance;
      *location++ = pair.location;
    }
  }
  return {images, prototypes, distances, locations};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> nearest_patch_within(
    const Tensor& features,
    const Tensor& prototypes,
    const Tensor& limits,
    const std::string& metric_name
) {
  check_inputs(features, prototypes);
  STD_TORCH_CHECK(
      limits.is_cpu() && limits.dim() == 1 && limits.size(0) == prototypes.size(0) &&
          limits.scalar_type() == ScalarType::Double,
      "limits must be on the CPU, float64 and [P]"
  );
  const Metric metric = metric_of(metric_name);
  const InstructionSet set = chosen_instruction_set();
  const NearestPatchTable& table = PROTOFAST_TABLE(nearest_patch, set);
  const ScalarType type = result_type(features, prototypes);
  std::optional<std::tuple<Tensor, Tensor, Tensor, Tensor>> result;
  const Tensor source = readable(features), rows = readable_prototypes(prototypes);
  const Tensor bounds = torch::stable::contiguous(limits);
  const FeatureMap map = read_map(source, rows);
  const double steps = static_cast<double>(map.images) * map.locations * rows.numel();
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    NearPairs<T> found;
    if (steps > 0) {
      found = nearest_patch_within_forward<T>(
          kernels_of<T>(table),
          code_kernels_for<T>(set),
          map,
          read_matrix(rows),
          metric,
          bounds.const_data_ptr<double>(),
          threads_for(steps),
          TorchThreads()
      );
    }
    result = as_tensors<T>(features, found, type);
  });
  return *result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(protofast, CPU, library) {
  library.impl("nearest_patch_within", TORCH_BOX(&nearest_patch_within));
}

}  // namespace protofast
