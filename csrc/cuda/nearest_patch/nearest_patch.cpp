// nearest_patch and its backward for CUDA tensors: what talks to torch. plan.h says which kernels
// run; kernels.h has their launchers.

#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>

#include "cuda/nearest_patch/kernels.h"
#include "cuda/tensors.h"

namespace protofast::cuda {
namespace {

Similarity parse_similarity(const std::string& similarity) {
  if (similarity == "log") return Similarity::kLog;
  if (similarity == "linear") return Similarity::kLinear;
  STD_TORCH_CHECK(similarity == "exp", "unknown similarity ", similarity);
  return Similarity::kExp;
}

Precision parse_precision(const std::string& precision) {
  if (precision == "float32") return Precision::kFloat32;
  if (precision == "tf32") return Precision::kTf32;
  STD_TORCH_CHECK(precision == "half", "unknown precision ", precision);
  return Precision::kHalf;
}

Refine parse_refine(const std::string& refine) {
  if (refine == "auto") return Refine::kAuto;
  if (refine == "always") return Refine::kAlways;
  STD_TORCH_CHECK(refine == "never", "unknown refine ", refine);
  return Refine::kNever;
}

Tensor new_pairs(const Tensor& features, const Tensor& prototypes, ScalarType dtype) {
  const int64_t sizes[] = {features.size(0), prototypes.size(0)};
  return torch::stable::new_empty(features, {sizes, 2}, dtype);
}

// PROTOFAST_GPU is read at every call, as PROTOFAST_CPU is.
Plan plan_for(
    const Tensor& features,
    const Tensor& prototypes,
    Metric metric,
    Precision precision,
    Refine refine,
    const Stream& stream
) {
  const Problem problem{
      metric,
      number_of(features.scalar_type()),
      number_of(prototypes.scalar_type()),
      features.size(1),
      features.size(2) * features.size(3)
  };
  const char* wanted = std::getenv("PROTOFAST_GPU");
  const auto there = [&](Path path) {
    return path == Path::kWgmma ? has_wgmma(stream) : has_tensor_cores(stream);
  };
  return make_plan(wanted, there, precision, refine, problem);
}

// ---------------------------------------------------------------- forward

std::tuple<Tensor, Tensor, Tensor> nearest_patch(
    const Tensor& features,
    const Tensor& prototypes,
    const std::string& metric,
    const std::string& similarity,
    double eps,
    const std::string& precision,
    const std::string& refine
) {
  check_inputs(features, prototypes);
  const ScalarType compute = compute_dtype(features, prototypes);
  const Precision selection = parse_precision(precision);
  const Refine refinement = parse_refine(refine);

  const DeviceGuard guard(features.get_device_index());
  const Tensor activations = new_pairs(features, prototypes, compute);
  const Tensor distances = new_pairs(features, prototypes, compute);
  const Tensor locations = new_pairs(features, prototypes, ScalarType::Long);
  if (distances.numel() == 0) return {activations, distances, locations};

  const Stream stream = current_stream(features);
  const Tensor source = readable(features, compute);
  Tensor rows = rows_of(prototypes, compute);
  Forward forward{
      parse_metric(metric),
      parse_similarity(similarity),
      eps,
      number_of(source.scalar_type()),
      source.const_data_ptr(),
      layout_of(source),
      rows.const_data_ptr(),
      activations.mutable_data_ptr(),
      distances.mutable_data_ptr(),
      static_cast<int64_t*>(locations.mutable_data_ptr()),
      features.size(0),
      prototypes.size(0)
  };
  const Plan plan = plan_for(features, prototypes, forward.metric, selection, refinement, stream);
  if (plan.path != Path::kPlain) {
    const int64_t bytes = tensor_cores_workspace(forward, plan).bytes;
    const Tensor workspace = new_workspace(features, bytes);
    forward_tensor_cores(forward, plan, workspace.mutable_data_ptr(), stream);
  } else {
    rows = torch::stable::contiguous(torch::stable::transpose(rows, 0, 1));  // [D, P]
    forward.prototypes = rows.const_data_ptr();
    forward_plain(forward, stream);
  }
  return {activations, distances, locations};
}

// ---------------------------------------------------------------- backward

// `pairs` must be [N, P] in `dtype` on the device of `features`; returns it contiguous.
Tensor checked_pairs(
    const char* name,
    const Tensor& pairs,
    const Tensor& features,
    const Tensor& prototypes,
    ScalarType dtype
) {
  STD_TORCH_CHECK(
      pairs.dim() == 2 && pairs.size(0) == features.size(0) && pairs.size(1) == prototypes.size(0),
      name,
      " must be [N, P]"
  );
  STD_TORCH_CHECK(pairs.scalar_type() == dtype, name, " has the wrong dtype");
  check_device(name, pairs, features);
  return torch::stable::contiguous(pairs);
}

// The features with the channels of a patch side by side, [N, H, W, D]: a copy unless they are so.
struct Patches {
  Tensor tensor;
  FeatureLayout layout;

  explicit Patches(const Tensor& features)
      : tensor(
            torch::stable::contiguous(
                torch::stable::transpose(torch::stable::transpose(features, 1, 3), 1, 2)
            )
        ),
        layout{
            tensor.size(3),
            tensor.size(2),
            tensor.size(1) * tensor.size(2),
            tensor.stride(0),
            1,
            tensor.stride(1),
            tensor.stride(2)
        } {}
};

// Buckets come with the tensor cores' path: like it, no GPU has run them yet (plan.h).
bool wants_buckets(const Tensor& features, const Tensor& prototypes, const Stream& stream) {
  const Plan plan = plan_for(
      features, prototypes, Metric::kSquaredL2, Precision::kFloat32, Refine::kAuto, stream
  );
  return plan.path != Path::kPlain &&
         buckets_fit(features.size(2) * features.size(3), prototypes.size(0));
}

std::tuple<Tensor, Tensor> nearest_patch_backward(
    const std::optional<Tensor>& grad_activations,
    const std::optional<Tensor>& grad_distances,
    const Tensor& features,
    const Tensor& prototypes,
    const Tensor& distances,
    const Tensor& locations,
    const std::string& metric,
    const std::string& similarity,
    double eps,
    bool need_features,
    bool need_prototypes
) {
  check_inputs(features, prototypes);
  const ScalarType compute = compute_dtype(features, prototypes);
  const auto checked = [&](const char* name, const Tensor& pairs, ScalarType dtype) {
    return checked_pairs(name, pairs, features, prototypes, dtype);
  };

  const DeviceGuard guard(features.get_device_index());
  std::optional<Tensor> of_activations, of_distances;
  if (grad_activations) of_activations = checked("grad_activations", *grad_activations, compute);
  if (grad_distances) of_distances = checked("grad_distances", *grad_distances, compute);
  const Tensor pair_distances = checked("distances", distances, compute);
  const Tensor pair_locations = checked("locations", locations, ScalarType::Long);
  const Tensor source = readable(features, compute);
  const Tensor rows = rows_of(prototypes, compute);
  std::optional<Tensor> grad_features, grad_prototypes;
  if (need_features) grad_features = torch::stable::empty_like(source);
  if (need_prototypes) grad_prototypes = torch::stable::empty_like(rows);

  if (distances.numel() == 0) {
    if (grad_features) torch::stable::zero_(*grad_features);
    if (grad_prototypes) torch::stable::zero_(*grad_prototypes);
  } else {
    const Stream stream = current_stream(features);
    BackwardPass pass{
        parse_metric(metric),
        parse_similarity(similarity),
        eps,
        number_of(source.scalar_type()),
        source.const_data_ptr(),
        layout_of(source),
        rows.const_data_ptr(),
        pair_distances.const_data_ptr(),
        static_cast<const int64_t*>(pair_locations.const_data_ptr()),
        of_activations ? of_activations->const_data_ptr() : nullptr,
        of_distances ? of_distances->const_data_ptr() : nullptr,
        grad_features ? grad_features->mutable_data_ptr() : nullptr,
        grad_features ? layout_of(*grad_features) : FeatureLayout{},
        grad_prototypes ? grad_prototypes->mutable_data_ptr() : nullptr,
        features.size(0),
        prototypes.size(0),
        wants_buckets(features, prototypes, stream)
    };
    std::optional<Patches> patches;
    if (pass.buckets) {
      patches.emplace(source);
      pass.features = patches->tensor.const_data_ptr();
      pass.layout = patches->layout;
    }
    const Tensor workspace = new_workspace(features, backward_workspace(pass));
    backward(pass, workspace.mutable_data_ptr(), stream);
  }
  return {
      need_features ? torch::stable::to(*grad_features, features.scalar_type())
                    : new_vector(features, 0, features.scalar_type()),
      need_prototypes ? torch::stable::to(*grad_prototypes, prototypes.scalar_type())
                      : new_vector(prototypes, 0, prototypes.scalar_type())
  };
}

}  // namespace
}  // namespace protofast::cuda

STABLE_TORCH_LIBRARY_IMPL(protofast, CUDA, library) {
  library.impl("nearest_patch", TORCH_BOX(&protofast::cuda::nearest_patch));
  library.impl("nearest_patch_backward", TORCH_BOX(&protofast::cuda::nearest_patch_backward));
}
