// Launching kernels: on torch's stream, with every error noticed. No torch.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/numbers.h"
#include "cuda/patches.cuh"

namespace protofast::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it was said; the next check starts anew
  throw std::runtime_error(std::string("protofast: ") + what + ": " + cudaGetErrorString(error));
}

// This library has a CUDA runtime of its own, to which torch's device guard means nothing.
inline cudaStream_t use(const Stream& stream) {
  check(cudaSetDevice(stream.device), "choosing the device");
  return static_cast<cudaStream_t>(stream.handle);
}

// A grid of so many blocks; its one dimension holds 2^31 - 1.
inline unsigned int grid(int64_t blocks) {
  if (blocks > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error("protofast: too many images and prototypes for one call");
  }
  return static_cast<unsigned int>(blocks);
}

// Calls body with a (Compute, Feature) pair of null pointers that name the types.
template <typename Body>
void with_types(Number features, Body body) {
  switch (features) {
    case Number::kFloat64:
      return body(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case Number::kFloat32:
      return body(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case Number::kFloat16:
      return body(static_cast<float*>(nullptr), static_cast<__half*>(nullptr));
    case Number::kBfloat16:
      return body(static_cast<float*>(nullptr), static_cast<__nv_bfloat16*>(nullptr));
  }
}

constexpr int kThreads = 128;
constexpr int kLeastBlocks = 4;  // on a multiprocessor: leaves a thread 128 registers

// result(index) for every index in [0, count), however many blocks there are.
template <typename Result>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) compute_each(
    const Result result, int64_t count
) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < count;
       index += stride) {
    result(index);
  }
}

template <typename Result>
void launch_each(const Result& result, int64_t count, const Stream& stream) {
  if (count == 0) return;
  const cudaStream_t on = use(stream);
  const int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t blocks = std::min((count + kThreads - 1) / kThreads, most);
  compute_each<<<static_cast<unsigned int>(blocks), kThreads, 0, on>>>(result, count);
  check(cudaGetLastError(), "launching a kernel");
}

}  // namespace protofast::cuda
