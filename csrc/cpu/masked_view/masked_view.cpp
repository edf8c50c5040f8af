// The operators masked_view, masked_view_out and masked_view_backward on the CPU: checks, outputs,
// registration.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cpu/masked_view/run.h"
#include "cpu/tables.h"
#include "cpu/tensors.h"

namespace protofast {
namespace {

int64_t bytes_of(Element element) {
  if (element == Element::kFloat64) return 8;
  return element == Element::kFloat32 ? 4 : 2;
}

void check_images_and_maps(
    const Tensor& images, const Tensor& maps, double quantile, const std::optional<Tensor>& fill
) {
  STD_TORCH_CHECK(images.is_cpu() && maps.is_cpu(), "images and maps must be on the CPU");
  STD_TORCH_CHECK(
      images.dim() == 4 && maps.dim() == 4 && images.size(0) == maps.size(0),
      "images must be [N, channels, S, T] and maps [N, K, H, W]"
  );
  STD_TORCH_CHECK(
      images.size(1) > 0 && images.size(2) > 0 && images.size(3) > 0 && maps.size(2) > 0 &&
          maps.size(3) > 0,
      "images need a channel and a pixel at least, maps a cell"
  );
  constexpr int64_t kMost = int64_t{1} << 31;
  STD_TORCH_CHECK(
      images.size(2) < kMost / images.size(3) && maps.size(2) < kMost / maps.size(3),
      "images must have fewer than 2^31 pixels, and maps fewer cells"
  );
  STD_TORCH_CHECK(quantile >= 0 && quantile <= 1, "quantile must lie in [0, 1]");
  STD_TORCH_CHECK(
      !fill || (fill->is_cpu() && fill->dim() == 1 && fill->size(0) == images.size(1) &&
                fill->scalar_type() == images.scalar_type()),
      "fill must be on the CPU, [channels] and of the dtype of images"
  );
}

// The rows of images as the kernels read them: pixels side by side.
Tensor with_rows(const Tensor& images) {
  const bool side_by_side = images.size(3) == 1 || images.stride(3) == 1;
  return side_by_side ? images : torch::stable::contiguous(images);
}

void write_views(
    const Tensor& images,
    const Tensor& maps,
    double quantile,
    const std::optional<Tensor>& fill,
    const Tensor& views,
    const Tensor& masks
) {
  const Tensor source = with_rows(images), cells = torch::stable::contiguous(maps);
  const int64_t colours[] = {images.size(1)};
  const Tensor colour =
      torch::stable::contiguous(fill ? *fill : torch::stable::new_zeros(images, colours));
  const Element element = element_of(maps, "maps");
  const ImageBatch batch = {
      static_cast<const char*>(source.const_data_ptr()),
      bytes_of(element_of(source, "images")),
      source.size(0),
      source.size(1),
      source.size(2),
      source.size(3),
      source.stride(0),
      source.stride(1),
      source.stride(2),
  };
  const MapBatch map_batch = {
      static_cast<const char*>(cells.const_data_ptr()),
      element,
      bytes_of(element),
      cells.size(1),
      cells.size(2),
      cells.size(3),
  };
  const double steps = 4.0 * static_cast<double>(masks.numel());
  with_result_type(maps.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const ViewWriter<T> writer = {
        PROTOFAST_TABLE(masked_view, chosen_instruction_set()),
        batch,
        map_batch,
        quantile,
        static_cast<const char*>(colour.const_data_ptr()),
        static_cast<char*>(views.mutable_data_ptr()),
        static_cast<uint8_t*>(masks.mutable_data_ptr()),
    };
    write_views<T>(writer, threads_for(steps), TorchThreads());
  });
}

std::tuple<Tensor, Tensor> masked_view(
    const Tensor& images, const Tensor& maps, double quantile, const std::optional<Tensor>& fill
) {
  check_images_and_maps(images, maps, quantile, fill);
  const int64_t count = maps.size(0) * maps.size(1);
  const int64_t view_shape[] = {count, images.size(1), images.size(2), images.size(3)};
  const int64_t mask_shape[] = {count, images.size(2), images.size(3)};
  Tensor views = torch::stable::new_empty(images, view_shape);
  Tensor masks = torch::stable::new_empty(images, mask_shape, ScalarType::Bool);
  if (count > 0) write_views(images, maps, quantile, fill, views, masks);
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
  check_images_and_maps(images, maps, quantile, fill);
  const int64_t count = maps.size(0) * maps.size(1);
  STD_TORCH_CHECK(
      views.is_cpu() && views.is_contiguous() && views.dim() == 4 && views.size(0) == count &&
          views.size(1) == images.size(1) && views.size(2) == images.size(2) &&
          views.size(3) == images.size(3) && views.scalar_type() == images.scalar_type(),
      "views must be on the CPU, contiguous, [N * K, channels, S, T] and of the dtype of images"
  );
  STD_TORCH_CHECK(
      masks.is_cpu() && masks.is_contiguous() && masks.dim() == 3 && masks.size(0) == count &&
          masks.size(1) == images.size(2) && masks.size(2) == images.size(3) &&
          masks.scalar_type() == ScalarType::Bool,
      "masks must be on the CPU, contiguous, [N * K, S, T] and bool"
  );
  if (count > 0) write_views(images, maps, quantile, fill, views, masks);
}

Tensor masked_view_backward(const Tensor& grad_views, const Tensor& masks) {
  STD_TORCH_CHECK(
      grad_views.is_cpu() && masks.is_cpu() && masks.scalar_type() == ScalarType::Bool,
      "grad_views and masks must be on the CPU, masks bool"
  );
  STD_TORCH_CHECK(
      grad_views.dim() == 4 && masks.dim() == 4 &&
          grad_views.size(0) == masks.size(0) * masks.size(1) &&
          grad_views.size(2) == masks.size(2) && grad_views.size(3) == masks.size(3),
      "grad_views must be [N * K, channels, S, T] and masks [N, K, S, T]"
  );
  const int64_t shape[] = {
      masks.size(0), grad_views.size(1), grad_views.size(2), grad_views.size(3)
  };
  Tensor grad_images = torch::stable::new_empty(grad_views, shape);
  if (grad_images.numel() == 0) return grad_images;
  const Tensor gradients = torch::stable::contiguous(grad_views);
  const Tensor shown = torch::stable::contiguous(masks);
  const Element element = element_of(grad_views, "grad_views");
  const ViewGradients views = {
      static_cast<const char*>(gradients.const_data_ptr()),
      element,
      bytes_of(element),
      static_cast<const uint8_t*>(shown.const_data_ptr()),
      masks.size(0),
      masks.size(1),
      grad_views.size(1),
      grad_views.size(2),
      grad_views.size(3),
  };
  const double steps = static_cast<double>(grad_views.numel() + grad_images.numel());
  with_result_type(grad_views.scalar_type(), [&](auto number) {
    using T = decltype(number);
    add_up_views<T>(
        PROTOFAST_TABLE(masked_view, chosen_instruction_set()),
        views,
        threads_for(steps),
        TorchThreads(),
        static_cast<char*>(grad_images.mutable_data_ptr())
    );
  });
  return grad_images;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(protofast, CPU, library) {
  library.impl("masked_view", TORCH_BOX(&masked_view));
  library.impl("masked_view_out", TORCH_BOX(&masked_view_out));
  library.impl("masked_view_backward", TORCH_BOX(&masked_view_backward));
}

}  // namespace protofast
