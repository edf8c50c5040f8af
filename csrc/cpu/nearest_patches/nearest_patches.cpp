// The operator nearest_patches on the CPU: checks, outputs, registration.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "cpu/nearest_patch/choice.h"
#include "cpu/nearest_patches/run.h"
#include "cpu/tables.h"
#include "cpu/tensors.h"

namespace protofast {
namespace {

std::tuple<Tensor, Tensor, Tensor> nearest_patches(
    const Tensor& features,
    const Tensor& prototypes,
    int64_t k,
    const std::string& metric_name,
    const std::string& similarity_name,
    double eps
) {
  check_inputs(features, prototypes);
  STD_TORCH_CHECK(
      k >= 1 && k <= kMostPatches && k <= grid_of(features, prototypes).locations(),
      "k must lie between 1 and ",
      kMostPatches,
      " and not exceed the number of locations; got ",
      k
  );
  const Metric metric = metric_of(metric_name);
  const NearestPatchesTable& table = PROTOFAST_TABLE(nearest_patches, chosen_instruction_set());
  const SimilarityFunction similarity = similarity_of(similarity_name, eps);
  const ScalarType type = result_type(features, prototypes);
  const int64_t shape[] = {features.size(0), prototypes.size(0), k};
  Tensor activations = torch::stable::new_empty(features, shape, type);
  Tensor distances = torch::stable::new_empty(features, shape, type);
  Tensor locations = torch::stable::new_empty(features, shape, ScalarType::Long);
  if (locations.numel() == 0) return {activations, distances, locations};

  const Tensor source = readable(features), rows = readable_prototypes(prototypes);
  const FeatureMap map = read_map(source, rows);
  const double steps = static_cast<double>(map.images) * map.locations * rows.numel();
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    nearest_patches_forward<T>(
        kernels_of<T>(PROTOFAST_TABLE(nearest_patch, chosen_instruction_set())),
        kernels_of<T>(table),
        map,
        read_matrix(rows),
        k,
        metric,
        similarity,
        threads_for(steps),
        TorchThreads(),
        {activations.mutable_data_ptr<T>(),
         distances.mutable_data_ptr<T>(),
         locations.mutable_data_ptr<int64_t>()}
    );
  });
  return {activations, distances, locations};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(protofast, CPU, library) {
  library.impl("nearest_patches", TORCH_BOX(&nearest_patches));
}

}  // namespace protofast
