// What the CUDA operators ask of torch tensors, through torch's stable ABI alone.
//
// Each launcher goes the same way: checks, empty input returns, device guard, allocation, dispatch,
// launch on the current stream. Python has checked all arguments already; the checks here are those
// that memory safety needs.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "cuda/metrics.cuh"
#include "cuda/numbers.h"

namespace protofast::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

inline Metric parse_metric(const std::string& metric) {
  if (metric == "squared_l2") return Metric::kSquaredL2;
  if (metric == "l2") return Metric::kL2;
  if (metric == "dot") return Metric::kDot;
  STD_TORCH_CHECK(metric == "cosine", "unknown metric ", metric);
  return Metric::kCosine;
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// `dtype` is floating.
inline Number number_of(ScalarType dtype) {
  if (dtype == ScalarType::Double) return Number::kFloat64;
  if (dtype == ScalarType::Float) return Number::kFloat32;
  return dtype == ScalarType::Half ? Number::kFloat16 : Number::kBfloat16;
}

inline void check_inputs(const Tensor& features, const Tensor& prototypes) {
  STD_TORCH_CHECK(
      features.dim() == 4 && prototypes.dim() == 2 && features.size(1) == prototypes.size(1),
      "expected features [N, D, H, W] and prototypes [P, D]"
  );
  STD_TORCH_CHECK(
      features.size(1) > 0 && features.size(2) * features.size(3) > 0,
      "features need at least one channel and one location"
  );
  STD_TORCH_CHECK(
      features.is_cuda() && prototypes.is_cuda() &&
          features.get_device_index() == prototypes.get_device_index(),
      "features and prototypes must be on one CUDA device"
  );
  STD_TORCH_CHECK(
      is_floating(features.scalar_type()) && is_floating(prototypes.scalar_type()),
      "features and prototypes must be floating point"
  );
}

// `tensor` must be on the device of `features`.
inline void check_device(const char* name, const Tensor& tensor, const Tensor& features) {
  STD_TORCH_CHECK(
      tensor.is_cuda() && tensor.get_device_index() == features.get_device_index(),
      name,
      " must be on the device of features"
  );
}

// float64 if either input is, else float32.
inline ScalarType compute_dtype(const Tensor& features, const Tensor& prototypes) {
  const bool wide = features.scalar_type() == ScalarType::Double ||
                    prototypes.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

// The kernels read half-precision features beside float32; anything beside float64 is converted.
inline Tensor readable(const Tensor& features, ScalarType compute) {
  return compute == ScalarType::Double ? torch::stable::to(features, compute) : features;
}

// Prototypes as contiguous rows of the numbers that the kernels compute with.
inline Tensor rows_of(const Tensor& prototypes, ScalarType compute) {
  return torch::stable::contiguous(torch::stable::to(prototypes, compute));
}

inline FeatureLayout layout_of(const Tensor& features) {
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

inline Tensor new_vector(const Tensor& like, int64_t size, ScalarType dtype) {
  return torch::stable::new_empty(like, {&size, 1}, dtype);
}

// Memory of torch's allocator; it goes back, in the order of the stream, when the tensor goes.
inline Tensor new_workspace(const Tensor& like, int64_t bytes) {
  return new_vector(like, bytes, ScalarType::Byte);
}

inline Stream current_stream(const Tensor& tensor) {
  Stream stream{static_cast<int>(tensor.get_device_index()), nullptr};
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(stream.device, &stream.handle));
  return stream;
}

}  // namespace protofast::cuda
