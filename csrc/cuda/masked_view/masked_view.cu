// masked_view, masked_view_out and masked_view_backward for CUDA tensors: what talks to torch (its
// stable ABI alone). Python has checked all arguments already; the checks here are those that
// memory safety needs.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "cuda/masked_view/masked_view.cuh"

namespace protofast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

// ---------------------------------------------------------------- arguments

int64_t bytes_of(ScalarType dtype) {
  if (dtype == ScalarType::Double) return 8;
  if (dtype == ScalarType::Float) return 4;
  STD_TORCH_CHECK(
      dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
      "masked_view: images and maps must be floating point"
  );
  return 2;
}

bool is_on_device_of(const Tensor& tensor, const Tensor& images) {
  return tensor.is_cuda() && tensor.get_device_index() == images.get_device_index();
}

void check_inputs(
    const Tensor& images, const Tensor& maps, double quantile, const std::optional<Tensor>& fill
) {
  STD_TORCH_CHECK(
      images.is_cuda() && is_on_device_of(maps, images) &&
          (!fill || is_on_device_of(*fill, images)),
      "masked_view: images, maps and fill must be on one CUDA device"
  );
  STD_TORCH_CHECK(
      images.dim() == 4 && maps.dim() == 4 && images.size(0) == maps.size(0),
      "masked_view: expected images [N, channels, S, T] and maps [N, K, H, W]"
  );
  STD_TORCH_CHECK(
      images.size(1) > 0 && images.size(2) > 0 && images.size(3) > 0 && maps.size(2) > 0 &&
          maps.size(3) > 0,
      "masked_view: images need a channel and a pixel at least, maps a cell"
  );
  constexpr int64_t kMost = int64_t{1} << 30;
  STD_TORCH_CHECK(
      images.size(1) < kMost && images.size(2) < kMost / images.size(3) &&
          maps.size(2) < kMost / maps.size(3),
      "masked_view: images must have fewer than 2^30 pixels, and maps fewer cells"
  );
  STD_TORCH_CHECK(quantile >= 0 && quantile <= 1, "masked_view: quantile must lie in [0, 1]");
  STD_TORCH_CHECK(
      !fill || (fill->dim() == 1 && fill->size(0) == images.size(1) &&
                fill->scalar_type() == images.scalar_type()),
      "masked_view: fill must be [channels], of the dtype of images"
  );
}

// ---------------------------------------------------------------- launch

struct Launch {
  unsigned int blocks;
  cudaStream_t stream;
};

// `blocks` of them, or as many as a grid may have, on torch's current stream of `device`.
Launch launch_on(int32_t device, int64_t blocks) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  // This library has a CUDA runtime of its own, to which torch's guard means nothing.
  STD_CUDA_CHECK(cudaSetDevice(device));
  const int64_t most = std::numeric_limits<int32_t>::max();
  return {static_cast<unsigned int>(std::min(blocks, most)), static_cast<cudaStream_t>(stream)};
}

template <typename Result>
void launch_each(const Result& result, int64_t count, int32_t device) {
  const Launch launch = launch_on(device, (count + kThreadsEach - 1) / kThreadsEach);
  make_each<<<launch.blocks, kThreadsEach, 0, launch.stream>>>(result, count);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// ---------------------------------------------------------------- views

// Calls body with null pointers that name the type to compute in and an integer of a pixel's size.
template <typename Body>
void dispatch(ScalarType compute, int64_t pixel_bytes, const Body& body) {
  const auto with_compute = [&](auto* number) {
    if (pixel_bytes == 2) return body(number, static_cast<uint16_t*>(nullptr));
    if (pixel_bytes == 4) return body(number, static_cast<uint32_t*>(nullptr));
    return body(number, static_cast<unsigned long long*>(nullptr));
  };
  if (compute == ScalarType::Double) return with_compute(static_cast<double*>(nullptr));
  return with_compute(static_cast<float*>(nullptr));
}

template <typename Compute>
Tensor make_taps(const Tensor& images, const Tensor& maps) {
  const int64_t height = images.size(2), width = images.size(3);
  const int64_t bytes = static_cast<int64_t>(sizeof(Tap<Compute>)) * (height + width);
  const Tensor taps = torch::stable::new_empty(images, {&bytes, 1}, ScalarType::Byte);
  const FindTaps<Compute> result{
      static_cast<Tap<Compute>*>(taps.mutable_data_ptr()), maps.size(2), maps.size(3), height, width
  };
  launch_each(result, height + width, images.get_device_index());
  return taps;
}

template <typename Compute, typename Pixel>
void launch_views(
    const Tensor& images,
    const Tensor& cells,
    double quantile,
    const Tensor& colours,
    const Tensor& views,
    const Tensor& masks
) {
  const Tensor taps = make_taps<Compute>(images, cells);
  const auto* rows = static_cast<const Tap<Compute>*>(taps.const_data_ptr());
  const double last = static_cast<double>(images.size(2) * images.size(3) - 1);
  const Views<Compute, Pixel> work{
      static_cast<const Pixel*>(images.const_data_ptr()),
      static_cast<const Compute*>(cells.const_data_ptr()),
      rows,
      rows + images.size(2),
      static_cast<const Pixel*>(colours.const_data_ptr()),
      static_cast<Pixel*>(views.mutable_data_ptr()),
      static_cast<uint8_t*>(masks.mutable_data_ptr()),
      cells.size(1),
      static_cast<int32_t>(images.size(1)),
      static_cast<int32_t>(cells.size(2)),
      static_cast<int32_t>(cells.size(3)),
      static_cast<int32_t>(images.size(2)),
      static_cast<int32_t>(images.size(3)),
      images.stride(0),
      images.stride(1),
      images.stride(2),
      images.stride(3),
      static_cast<uint32_t>(quantile * last)
  };
  const int64_t count = masks.size(0);
  const Launch launch = launch_on(images.get_device_index(), count);
  if constexpr (std::is_same_v<Compute, float>) {  // in double, packs would not fit the registers
    if (work.can_pack(4)) {
      write_views<4><<<launch.blocks, kViewThreads, 0, launch.stream>>>(work, count);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      return;
    }
  }
  write_views<1><<<launch.blocks, kViewThreads, 0, launch.stream>>>(work, count);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void fill_views(
    const Tensor& images,
    const Tensor& maps,
    double quantile,
    const std::optional<Tensor>& fill,
    const Tensor& views,
    const Tensor& masks
) {
  if (masks.numel() == 0) return;
  const bool wide = maps.scalar_type() == ScalarType::Double;
  const ScalarType compute = wide ? ScalarType::Double : ScalarType::Float;
  bytes_of(maps.scalar_type());
  const Tensor cells = torch::stable::contiguous(torch::stable::to(maps, compute));
  const int64_t channels = images.size(1);
  const Tensor colours =
      torch::stable::contiguous(fill ? *fill : torch::stable::new_zeros(images, {&channels, 1}));
  dispatch(compute, bytes_of(images.scalar_type()), [&]<typename C, typename P>(C*, P*) {
    launch_views<C, P>(images, cells, quantile, colours, views, masks);
  });
}

std::tuple<Tensor, Tensor> masked_view(
    const Tensor& images, const Tensor& maps, double quantile, const std::optional<Tensor>& fill
) {
  check_inputs(images, maps, quantile, fill);
  const DeviceGuard guard(images.get_device_index());
  const int64_t count = maps.size(0) * maps.size(1);
  const int64_t view_sizes[] = {count, images.size(1), images.size(2), images.size(3)};
  const int64_t mask_sizes[] = {count, images.size(2), images.size(3)};
  const Tensor views = torch::stable::new_empty(images, {view_sizes, 4});
  const Tensor masks = torch::stable::new_empty(images, {mask_sizes, 3}, ScalarType::Bool);
  fill_views(images, maps, quantile, fill, views, masks);
  return {views, masks};
}

void masked_view_out(
    const Tensor& images,
    const Tensor& maps,
    double quantile,
    const std::optional<Tensor>& fill,
    Tensor views,
    Tensor masks
) {
  check_inputs(images, maps, quantile, fill);
  const int64_t count = maps.size(0) * maps.size(1);
  STD_TORCH_CHECK(
      is_on_device_of(views, images) && views.is_contiguous() && views.dim() == 4 &&
          views.size(0) == count && views.size(1) == images.size(1) &&
          views.size(2) == images.size(2) && views.size(3) == images.size(3) &&
          views.scalar_type() == images.scalar_type(),
      "masked_view_out: views must be contiguous, [N * K, channels, S, T], of the dtype of images"
  );
  STD_TORCH_CHECK(
      is_on_device_of(masks, images) && masks.is_contiguous() && masks.dim() == 3 &&
          masks.size(0) == count && masks.size(1) == images.size(2) &&
          masks.size(2) == images.size(3) && masks.scalar_type() == ScalarType::Bool,
      "masked_view_out: masks must be contiguous, [N * K, S, T] and bool"
  );
  const DeviceGuard guard(images.get_device_index());
  fill_views(images, maps, quantile, fill, views, masks);
}

// ---------------------------------------------------------------- gradient

Tensor masked_view_backward(const Tensor& grad_views, const Tensor& masks) {
  STD_TORCH_CHECK(
      grad_views.is_cuda() && is_on_device_of(masks, grad_views) && grad_views.dim() == 4 &&
          masks.dim() == 4 && masks.scalar_type() == ScalarType::Bool &&
          grad_views.size(0) == masks.size(0) * masks.size(1) &&
          grad_views.size(2) == masks.size(2) && grad_views.size(3) == masks.size(3),
      "masked_view_backward: expected grad_views [N * K, channels, S, T] and bool masks "
      "[N, K, S, T] on one CUDA device"
  );
  const DeviceGuard guard(grad_views.get_device_index());
  const int64_t sizes[] = {
      masks.size(0), grad_views.size(1), grad_views.size(2), grad_views.size(3)
  };
  const Tensor grad_images = torch::stable::new_empty(grad_views, {sizes, 4});
  if (grad_images.numel() == 0) return grad_images;

  const Tensor source = torch::stable::contiguous(grad_views);
  const Tensor shown = torch::stable::contiguous(masks);
  const auto launch = [&]<typename Compute, typename Number>(Compute*, Number*) {
    const ImageGradient<Compute, Number> result{
        static_cast<const Number*>(source.const_data_ptr()),
        static_cast<const uint8_t*>(shown.const_data_ptr()),
        static_cast<Number*>(grad_images.mutable_data_ptr()),
        masks.size(1),
        grad_views.size(1),
        grad_views.size(2) * grad_views.size(3)
    };
    launch_each(result, grad_images.numel(), grad_views.get_device_index());
  };
  const ScalarType dtype = grad_views.scalar_type();
  if (dtype == ScalarType::Double) {
    launch(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
  } else if (dtype == ScalarType::Float) {
    launch(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
  } else if (dtype == ScalarType::Half) {
    launch(static_cast<float*>(nullptr), static_cast<__half*>(nullptr));
  } else {
    STD_TORCH_CHECK(
        dtype == ScalarType::BFloat16, "masked_view_backward: grad_views must be floating point"
    );
    launch(static_cast<float*>(nullptr), static_cast<__nv_bfloat16*>(nullptr));
  }
  return grad_images;
}

}  // namespace
}  // namespace protofast::cuda

STABLE_TORCH_LIBRARY_IMPL(protofast, CUDA, library) {
  library.impl("masked_view", TORCH_BOX(&protofast::cuda::masked_view));
  library.impl("masked_view_out", TORCH_BOX(&protofast::cuda::masked_view_out));
  library.impl("masked_view_backward", TORCH_BOX(&protofast::cuda::masked_view_backward));
}
