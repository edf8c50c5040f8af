// The operator dot_and_cosine on the CPU: checks, outputs, registration.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/dot_and_cosine/run.h"
#include "cpu/nearest_patch/choice.h"
#include "cpu/tables.h"
#include "cpu/tensors.h"

namespace protofast {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> dot_and_cosine(
    const Tensor& features, const Tensor& prototypes
) {
  check_inputs(features, prototypes);
  const DotAndCosineTable& table = PROTOFAST_TABLE(dot_and_cosine, chosen_instruction_set());
  const ScalarType type = result_type(features, prototypes);
  const int64_t shape[] = {features.size(0), prototypes.size(0)};
  Tensor dots = torch::stable::new_empty(features, shape, type);
  Tensor dot_locations = torch::stable::new_empty(features, shape, ScalarType::Long);
  Tensor cosines = torch::stable::new_empty(features, shape, type);
  Tensor cosine_locations = torch::stable::new_empty(features, shape, ScalarType::Long);
  if (dots.numel() == 0) return {dots, dot_locations, cosines, cosine_locations};

  const Tensor source = readable(features), rows = readable_prototypes(prototypes);
  const FeatureMap map = read_map(source, rows);
  const double steps = static_cast<double>(map.images) * map.locations * rows.numel();
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    dot_and_cosine_forward<T>(
        kernels_of<T>(PROTOFAST_TABLE(nearest_patch, chosen_instruction_set())),
        kernels_of<T>(table),
        map,
        read_matrix(rows),
        threads_for(steps),
        TorchThreads(),
        {dots.mutable_data_ptr<T>(),
         dot_locations.mutable_data_ptr<int64_t>(),
         cosines.mutable_data_ptr<T>(),
         cosine_locations.mutable_data_ptr<int64_t>()}
    );
  });
  return {dots, dot_locations, cosines, cosine_locations};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(protofast, CPU, library) {
  library.impl("dot_and_cosine", TORCH_BOX(&dot_and_cosine));
}

}  // namespace protofast
