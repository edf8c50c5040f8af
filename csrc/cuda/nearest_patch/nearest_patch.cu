// nearest_patch and its backward for CUDA tensors: what talks to torch (its stable ABI alone).
//
// Each launcher goes the same way: checks, empty input returns, device guard, allocation, dispatch
// on dtype, launch on the current stream, check of the launch. Python has checked all arguments
// already; the checks here are those that memory safety needs.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "cuda/nearest_patch/nearest_patch.cuh"

namespace protofast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

// ---------------------------------------------------------------- arguments

Metric parse_metric(const std::string& metric) {
  if (metric == "squared_l2") return Metric::kSquaredL2;
  if (metric == "l2") return Metric::kL2;
  if (metric == "dot") return Metric::kDot;
  STD_TORCH_CHECK(metric == "cosine", "unknown metric ", metric);
  return Metric::kCosine;
}

Similarity parse_similarity(const std::string& similarity) {
  if (similarity == "log") return Similarity::kLog;
  if (similarity == "linear") return Similarity::kLinear;
  STD_TORCH_CHECK(similarity == "exp", "unknown similarity ", similarity);
  return Similarity::kExp;
}

template <typename Compute>
SimilarityFunction<Compute> similarity_function(Similarity kind, double eps) {
  return {
      kind,
      static_cast<Compute>(eps),
      static_cast<Compute>(1.0 - eps),
      static_cast<Compute>(std::log(1.0 / eps))
  };
}

FeatureLayout layout_of(const Tensor& features) {
  return {
      features.size(1),
      features.size(3),
      features.size(2) * features.size(3),
      features.stride(0),
      features.stride(1),
      features.stride(2),
      features.stride(3)
  };
}

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

void check_inputs(const Tensor& features, const Tensor& prototypes) {
  STD_TORCH_CHECK(
      features.dim() == 4 && prototypes.dim() == 2 && features.size(1) == prototypes.size(1),
      "nearest_patch: expected features [N, D, H, W] and prototypes [P, D]"
  );
  STD_TORCH_CHECK(
      features.size(1) > 0 && features.size(2) * features.size(3) > 0,
      "nearest_patch: features need at least one channel and one location"
  );
  STD_TORCH_CHECK(
      features.is_cuda() && prototypes.is_cuda() &&
          features.get_device_index() == prototypes.get_device_index(),
      "nearest_patch: features and prototypes must be on one CUDA device"
  );
  STD_TORCH_CHECK(
      is_floating(features.scalar_type()) && is_floating(prototypes.scalar_type()),
      "nearest_patch: features and prototypes must be floating point"
  );
}

// `name` must be [N, P] in `dtype` on the device of `features`; returns it contiguous.
Tensor checked_pairs(
    const char* name,
    const Tensor& pairs,
    const Tensor& features,
    const Tensor& prototypes,
    ScalarType dtype
) {
  STD_TORCH_CHECK(
      pairs.dim() == 2 && pairs.size(0) == features.size(0) && pairs.size(1) == prototypes.size(0),
      "nearest_patch_backward: ",
      name,
      " must be [N, P]"
  );
  STD_TORCH_CHECK(
      pairs.scalar_type() == dtype, "nearest_patch_backward: ", name, " has the wrong dtype"
  );
  STD_TORCH_CHECK(
      pairs.is_cuda() && pairs.get_device_index() == features.get_device_index(),
      "nearest_patch_backward: ",
      name,
      " must be on the device of features"
  );
  return torch::stable::contiguous(pairs);
}

// float64 if either input is, else float32.
ScalarType compute_dtype(const Tensor& features, const Tensor& prototypes) {
  const bool wide = features.scalar_type() == ScalarType::Double ||
                    prototypes.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

// The kernels read half-precision features beside float32; anything beside float64 is converted.
Tensor readable(const Tensor& features, ScalarType compute) {
  return compute == ScalarType::Double ? torch::stable::to(features, compute) : features;
}

Tensor new_pairs(const Tensor& features, const Tensor& prototypes, ScalarType dtype) {
  const int64_t sizes[] = {features.size(0), prototypes.size(0)};
  return torch::stable::new_empty(features, {sizes, 2}, dtype);
}

Tensor new_vector(const Tensor& like, int64_t size, ScalarType dtype) {
  return torch::stable::new_empty(like, {&size, 1}, dtype);
}

template <typename Number>
const Number* read(const Tensor& tensor) {
  return static_cast<const Number*>(tensor.const_data_ptr());
}

template <typename Number>
Number* write(const Tensor& tensor) {
  return static_cast<Number*>(tensor.mutable_data_ptr());
}

// ---------------------------------------------------------------- launch

// Computes result(index) for index in [0, count) on torch's current stream of `device`.
template <typename Result>
void launch(const Result& result, int64_t count, int32_t device) {
  if (count == 0) return;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  // This library has a CUDA runtime of its own, to which torch's guard means nothing.
  STD_CUDA_CHECK(cudaSetDevice(device));
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  const int64_t most = std::numeric_limits<int32_t>::max();
  compute_each<<<
      static_cast<unsigned int>(std::min(blocks, most)),
      kThreads,
      0,
      static_cast<cudaStream_t>(stream)>>>(result, count);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls body with a (Compute, Feature) pair of null pointers that name the types.
template <typename Body>
void dispatch(ScalarType features, Body body) {
  if (features == ScalarType::Double) {
    body(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
  } else if (features == ScalarType::Float) {
    body(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
  } else if (features == ScalarType::Half) {
    body(static_cast<float*>(nullptr), static_cast<__half*>(nullptr));
  } else {
    body(static_cast<float*>(nullptr), static_cast<__nv_bfloat16*>(nullptr));
  }
}

// ---------------------------------------------------------------- forward

template <typename Compute, typename Feature>
void launch_forward(
    Metric metric,
    const SimilarityFunction<Compute>& similarity,
    const Tensor& features,
    const Tensor& prototypes,  // [D, P]
    const Tensor& activations,
    const Tensor& distances,
    const Tensor& locations
) {
  const auto with_metric = [&]<Metric kMetric>() {
    const NearestOfPair<kMetric, Compute, Feature> result{
        read<Feature>(features),
        read<Compute>(prototypes),
        write<Compute>(activations),
        write<Compute>(distances),
        write<int64_t>(locations),
        layout_of(features),
        prototypes.size(1),
        similarity
    };
    launch(result, distances.numel(), features.get_device_index());
  };
  switch (metric) {
    case Metric::kSquaredL2:
      return with_metric.template operator()<Metric::kSquaredL2>();
    case Metric::kL2:
      return with_metric.template operator()<Metric::kL2>();
    case Metric::kDot:
      return with_metric.template operator()<Metric::kDot>();
    case Metric::kCosine:
      return with_metric.template operator()<Metric::kCosine>();
  }
}

std::tuple<Tensor, Tensor, Tensor> nearest_patch(
    const Tensor& features,
    const Tensor& prototypes,
    const std::string& metric_name,
    const std::string& similarity_name,
    double eps,
    const std::string& /* precision: float32 is the only one here, and always meets it */,
    const std::string& /* refine: every distance is a direct difference */
) {
  check_inputs(features, prototypes);
  const Metric metric = parse_metric(metric_name);
  const Similarity similarity = parse_similarity(similarity_name);
  const ScalarType compute = compute_dtype(features, prototypes);

  const DeviceGuard guard(features.get_device_index());
  const Tensor activations = new_pairs(features, prototypes, compute);
  const Tensor distances = new_pairs(features, prototypes, compute);
  const Tensor locations = new_pairs(features, prototypes, ScalarType::Long);
  if (distances.numel() == 0) return {activations, distances, locations};

  const Tensor rows = torch::stable::to(prototypes, compute);
  const Tensor columns = torch::stable::contiguous(torch::stable::transpose(rows, 0, 1));  // [D, P]
  const Tensor source = readable(features, compute);
  dispatch(source.scalar_type(), [&]<typename C, typename F>(C*, F*) {
    const auto function = similarity_function<C>(similarity, eps);
    launch_forward<C, F>(metric, function, source, columns, activations, distances, locations);
  });
  return {activations, distances, locations};
}

// ---------------------------------------------------------------- backward

struct BackwardTensors {
  Tensor features, prototypes, distances, locations, gradients, patch_norms, prototype_norms;
};

template <typename Compute, typename Feature>
void launch_norms(const BackwardTensors& tensors) {
  const FeatureLayout layout = layout_of(tensors.features);
  const int32_t device = tensors.features.get_device_index();
  launch(
      PatchNorm<Compute, Feature>{
          read<Feature>(tensors.features), write<Compute>(tensors.patch_norms), layout
      },
      tensors.patch_norms.numel(),
      device
  );
  launch(
      PrototypeNorm<Compute>{
          read<Compute>(tensors.prototypes), write<Compute>(tensors.prototype_norms), layout.depth
      },
      tensors.prototype_norms.numel(),
      device
  );
}

template <typename Compute, typename Feature>
void launch_backward(
    Metric metric,
    const BackwardTensors& tensors,
    const std::optional<Tensor>& grad_features,
    const std::optional<Tensor>& grad_prototypes
) {
  const bool cosine = metric == Metric::kCosine;
  if (cosine) launch_norms<Compute, Feature>(tensors);
  const Backward<Compute, Feature> backward{
      metric,
      read<Feature>(tensors.features),
      read<Compute>(tensors.prototypes),
      read<Compute>(tensors.distances),
      read<int64_t>(tensors.locations),
      read<Compute>(tensors.gradients),
      cosine ? read<Compute>(tensors.patch_norms) : nullptr,
      cosine ? read<Compute>(tensors.prototype_norms) : nullptr,
      layout_of(tensors.features),
      tensors.features.size(0),
      tensors.prototypes.size(0)
  };
  const int32_t device = tensors.features.get_device_index();
  if (grad_features) {
    const FeatureGradient<Compute, Feature> result{
        backward, write<Feature>(*grad_features), layout_of(*grad_features)
    };
    launch(result, grad_features->numel(), device);
  }
  if (grad_prototypes) {
    const PrototypeGradient<Compute, Feature> result{backward, write<Compute>(*grad_prototypes)};
    launch(result, grad_prototypes->numel(), device);
  }
}

// Gradient of the loss for every distance, [N, P].
Tensor distance_gradients(
    const std::optional<Tensor>& grad_activations,
    const std::optional<Tensor>& grad_distances,
    const Tensor& distances,
    Similarity similarity,
    double eps
) {
  const Tensor gradients = torch::stable::empty_like(distances);
  dispatch(distances.scalar_type(), [&]<typename C, typename F>(C*, F*) {
    const DistanceGradient<C> result{
        grad_activations ? read<C>(*grad_activations) : nullptr,
        grad_distances ? read<C>(*grad_distances) : nullptr,
        read<C>(distances),
        write<C>(gradients),
        similarity_function<C>(similarity, eps)
    };
    launch(result, gradients.numel(), distances.get_device_index());
  });
  return gradients;
}

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
  const Metric metric = parse_metric(metric_name);
  const Similarity similarity = parse_similarity(similarity_name);
  const ScalarType compute = compute_dtype(features, prototypes);
  const auto checked = [&](const char* name, const Tensor& pairs, ScalarType dtype) {
    return checked_pairs(name, pairs, features, prototypes, dtype);
  };

  const DeviceGuard guard(features.get_device_index());
  std::optional<Tensor> for_activations, for_distances;
  if (grad_activations) {
    for_activations = checked("grad_activations", *grad_activations, compute);
  }
  if (grad_distances) for_distances = checked("grad_distances", *grad_distances, compute);
  const Tensor pair_distances = checked("distances", distances, compute);
  const bool cosine = metric == Metric::kCosine;
  const int64_t patches = cosine ? features.size(0) * features.size(2) * features.size(3) : 0;
  const BackwardTensors tensors{
      readable(features, compute),
      torch::stable::contiguous(torch::stable::to(prototypes, compute)),
      pair_distances,
      checked("locations", locations, ScalarType::Long),
      distance_gradients(for_activations, for_distances, pair_distances, similarity, eps),
      new_vector(features, patches, compute),
      new_vector(features, cosine ? prototypes.size(0) : 0, compute)
  };

  std::optional<Tensor> grad_features, grad_prototypes;
  if (need_features) grad_features = torch::stable::empty_like(tensors.features);
  if (need_prototypes) grad_prototypes = torch::stable::empty_like(tensors.prototypes);
  dispatch(tensors.features.scalar_type(), [&]<typename C, typename F>(C*, F*) {
    launch_backward<C, F>(metric, tensors, grad_features, grad_prototypes);
  });
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
