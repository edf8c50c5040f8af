// The operators nearest_patch and nearest_patch_backward on the CPU: checks, outputs, registration.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "cpu/nearest_patch/backward.h"
#include "cpu/nearest_patch/choice.h"
#include "cpu/nearest_patch/forward.h"
#include "cpu/nearest_patch/table.h"
#include "cpu/tensors.h"

namespace protofast {
namespace {

// Calls run(outputs) with a PrototypePack of the result's type, made by make_pack(kernels, rows),
// unless there is nothing to compute. run is false if the pack was out of date.
template <typename MakePack>
std::tuple<Tensor, Tensor, Tensor> nearest_patch_with(
    const Tensor& features,
    const Tensor& prototypes,
    const std::string& similarity_name,
    double eps,
    const MakePack& make_pack
) {
  const SimilarityFunction similarity = similarity_of(similarity_name, eps);
  const NearestPatchTable& table = nearest_patch_table(chosen_instruction_set());
  const ScalarType type = result_type(features, prototypes);
  const int64_t shape[] = {features.size(0), prototypes.size(0)};
  Tensor activations = torch::stable::new_empty(features, shape, type);
  Tensor distances = torch::stable::new_empty(features, shape, type);
  Tensor locations = torch::stable::new_empty(features, shape, ScalarType::Long);
  if (locations.numel() == 0) return {activations, distances, locations};

  const Tensor source = readable(features), rows = readable_prototypes(prototypes);
  const FeatureMap map = read_map(source, rows);
  const double steps = static_cast<double>(map.images) * map.locations * rows.numel();
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    const NearestPatchKernels<T>& kernels = kernels_of<T>(table);
    const int64_t threads = threads_for(steps);
    PrototypePack<T> pack = make_pack(kernels, read_matrix(rows));
    const bool current = nearest_patch_forward<T>(
        kernels,
        map,
        std::move(pack),
        similarity,
        threads,
        TorchThreads(),
        {activations.mutable_data_ptr<T>(),
         distances.mutable_data_ptr<T>(),
         locations.mutable_data_ptr<int64_t>()}
    );
    STD_TORCH_CHECK(
        current,
        "the prototypes have changed since they were packed: pack them again "
        "(PrototypeLayer: freeze()), or use them unpacked (unfreeze())"
    );
  });
  return {activations, distances, locations};
}

// The CPU always computes in full precision and refines, whatever the last two arguments say.
std::tuple<Tensor, Tensor, Tensor> nearest_patch(
    const Tensor& features,
    const Tensor& prototypes,
    const std::string& metric_name,
    const std::string& similarity,
    double eps,
    const std::string&,
    const std::string&
) {
  check_inputs(features, prototypes);
  const Metric metric = metric_of(metric_name);
  return nearest_patch_with(
      features,
      prototypes,
      similarity,
      eps,
      [&]<typename T>(const NearestPatchKernels<T>& kernels, const PrototypeMatrix& rows) {
        return PrototypePack<T>(kernels, rows, metric);
      }
  );
}

// A pack is a tensor of integers as large as its numbers: not all of its bits are numbers.
ScalarType type_of_pack(ScalarType numbers) {
  return numbers == ScalarType::Double ? ScalarType::Long : ScalarType::Int;
}

Tensor pack_prototypes(const Tensor& prototypes, const std::string& metric_name) {
  STD_TORCH_CHECK(
      prototypes.is_cpu() && prototypes.dim() == 2 && prototypes.size(1) > 0,
      "prototypes must be on the CPU and [P, D]"
  );
  const Metric metric = metric_of(metric_name);
  const NearestPatchTable& table = nearest_patch_table(chosen_instruction_set());
  const ScalarType type = result_type(prototypes, prototypes);
  const Tensor rows = torch::stable::contiguous(prototypes);
  const int64_t shape[] = {PrototypePack<float>::frozen_size(read_matrix(rows))};
  Tensor packed = torch::stable::new_empty(prototypes, shape, type_of_pack(type));
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    PrototypePack<T>::freeze(
        kernels_of<T>(table),
        read_matrix(rows),
        metric,
        threads_for(static_cast<double>(rows.numel())),
        TorchThreads(),
        static_cast<T*>(packed.mutable_data_ptr())
    );
  });
  return packed;
}

std::tuple<Tensor, Tensor, Tensor> nearest_patch_packed(
    const Tensor& features,
    const Tensor& prototypes,
    const Tensor& packed,
    const std::string& metric_name,
    const std::string& similarity,
    double eps,
    const std::string&,
    const std::string&
) {
  check_inputs(features, prototypes);
  const Metric metric = metric_of(metric_name);
  const Tensor numbers = torch::stable::contiguous(packed);
  const bool typed = numbers.is_cpu() && prototypes.dim() == 2 &&
                     numbers.scalar_type() == type_of_pack(result_type(features, prototypes));
  return nearest_patch_with(
      features,
      prototypes,
      similarity,
      eps,
      [&]<typename T>(const NearestPatchKernels<T>& kernels, const PrototypeMatrix& rows) {
        const T* frozen = static_cast<const T*>(numbers.const_data_ptr());
        STD_TORCH_CHECK(
            typed && PrototypePack<T>::fits(kernels, rows, metric, frozen, numbers.numel()),
            "these packed prototypes are not of these prototypes' sizes, dtype or metric, or were "
            "packed for another kind of processor: pack them again (PrototypeLayer: freeze())"
        );
        return PrototypePack<T>(kernels, rows, metric, frozen);
      }
  );
}

// Wrong locations can come only from a caller of the backward operator itself; they must not be
// followed out of the tensors.
void check_locations(const Tensor& locations, int64_t limit) {
  const int64_t* values = locations.const_data_ptr<int64_t>();
  const int64_t count = locations.numel();
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) inside &= values[i] >= 0 && values[i] < limit;
  STD_TORCH_CHECK(inside, "locations must lie in [0, ", limit, "), the locations of features");
}

void check_pairs(
    const Tensor& tensor, const char* name, const int64_t (&shape)[2], ScalarType type
) {
  STD_TORCH_CHECK(
      tensor.is_cpu() && tensor.dim() == 2 && tensor.size(0) == shape[0] &&
          tensor.size(1) == shape[1] && tensor.scalar_type() == type,
      name,
      " must be on the CPU, [N, P] and of the type that nearest_patch returns"
  );
}

// A gradient that may be missing, contiguous.
class OptionalPairs {
 public:
  explicit OptionalPairs(const std::optional<Tensor>& tensor) {
    if (tensor) tensor_ = torch::stable::contiguous(*tensor);
  }
  template <typename T>
  const T* data() const {
    return tensor_ ? tensor_->const_data_ptr<T>() : nullptr;
  }

 private:
  std::optional<Tensor> tensor_;
};

std::tuple<Tensor, Tensor> nearest_patch_backward(
    const std::optional<Tensor>& grad_activations,
    const std::optional<Tensor>& grad_distances,
    const Tensor& features,
    const Tensor& prototypes,
    const Tensor& distances,
    const Tensor& locations,
    const std::string& metric_name,
    const std::string& similarity_name,
    double eps,
    bool need_features,
    bool need_prototypes
) {
  check_inputs(features, prototypes);
  const Metric metric = metric_of(metric_name);
  const SimilarityFunction similarity = similarity_of(similarity_name, eps);
  const NearestPatchTable& table = nearest_patch_table(chosen_instruction_set());
  const ScalarType type = result_type(features, prototypes);
  const int64_t shape[] = {features.size(0), prototypes.size(0)};
  check_pairs(distances, "distances", shape, type);
  check_pairs(locations, "locations", shape, ScalarType::Long);
  if (grad_activations) check_pairs(*grad_activations, "grad_activations", shape, type);
  if (grad_distances) check_pairs(*grad_distances, "grad_distances", shape, type);
  const OptionalPairs to_activations(grad_activations), to_distances(grad_distances);
  const Tensor values = torch::stable::contiguous(distances);
  const Tensor where = torch::stable::contiguous(locations);
  check_locations(where, grid_of(features, prototypes).locations());

  GradientOutputs outputs(features, prototypes, need_features, need_prototypes);
  const Tensor source = readable(features), rows = readable_prototypes(prototypes);
  const FeatureMap map = read_map(source, rows);
  const double steps = static_cast<double>(map.images) * rows.numel();
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    nearest_patch_gradients<T>(
        kernels_of<T>(table),
        {to_activations.data<T>(), to_distances.data<T>()},
        map,
        read_matrix(rows),
        values.const_data_ptr<T>(),
        where.const_data_ptr<int64_t>(),
        metric,
        similarity,
        threads_for(steps),
        TorchThreads(),
        outputs.features(),
        outputs.prototypes()
    );
  });
  return outputs.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(protofast, CPU, library) {
  library.impl("nearest_patch", TORCH_BOX(&nearest_patch));
  library.impl("nearest_patch_backward", TORCH_BOX(&nearest_patch_backward));
  library.impl("nearest_patch_packed", TORCH_BOX(&nearest_patch_packed));
  library.impl("pack_prototypes", TORCH_BOX(&pack_prototypes));
}

}  // namespace protofast
