// masked_view on a GPU, over raw pointers, without torch: of every image, once for each of its
// maps, the pixels where the map, up-sampled to the size of the image, lies strictly above its
// quantile.
//
// One block makes one view. The up-sampled map is never stored: its values are computed from the
// cells, which lie in shared memory, each time they are needed. Three passes over the pixels:
//   1. a histogram between the least and the largest cell (integer atomics in shared memory);
//   2. the values of the bin that holds the quantile's rank, and the one of that rank among them.
//      Where too many fall into one bin, bisection over the floating-point numbers takes its place;
//   3. the view, written once; the image is read only where a mask is true.
// The pixels above the quantile are those above the value of rank q * (S * T - 1), rounded down
// (protofast/ops/reference_masked_view.py says why).
//
// Deterministic: the order of atomics changes where a candidate lies, never which value has the
// rank. Multiplications and additions that make a value are rounded one by one, as in the
// reference, so the masks are its masks bit for bit.
//
// What a thread does is a function of its number that runs on the host too; the steps between two
// barriers are passed to `step`. csrc/tests runs all of this but the launch on a CPU.
//
// N images, K maps of each, H x W cells of a map, S x T pixels of an image.

#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/masked_view/rank.cuh"
#include "cuda/masked_view/upsampling.cuh"

namespace protofast::cuda {

// ---------------------------------------------------------------- views

// kCount pixels that lie side by side and are moved at once.
template <typename Pixel, int kCount>
struct alignas(sizeof(Pixel) * kCount) Pack {
  Pixel pixels[kCount];
};

// Writes what will not be read again soon.
template <typename Value>
PROTOFAST_HOST_DEVICE void store_past_cache(Value* target, const Value& value) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Value) % 16 == 0) {
    for (int part = 0; part < static_cast<int>(sizeof(Value) / 16); ++part) {
      uint4 words;
      memcpy(&words, reinterpret_cast<const char*>(&value) + 16 * part, 16);
      __stcs(reinterpret_cast<uint4*>(target) + part, words);
    }
  } else if constexpr (sizeof(Value) == 8) {
    uint2 words;
    memcpy(&words, &value, 8);
    __stcs(reinterpret_cast<uint2*>(target), words);
  } else {
    *target = value;
  }
#else
  *target = value;
#endif
}

// Pixels are moved as bits, whatever they mean: Pixel is an unsigned integer of their size.
template <typename Compute, typename Pixel>
struct Views {
  const Pixel* images;          // [N, channels, S, T] by the strides
  const Compute* maps;          // [N * K, H, W]
  const Tap<Compute>* rows;     // [S]
  const Tap<Compute>* columns;  // [T]
  const Pixel* fill;            // [channels]
  Pixel* views;                 // [N * K, channels, S, T]
  uint8_t* masks;               // [N * K, S, T]
  int64_t each;                 // K
  int32_t channels, map_height, map_width, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
  uint32_t rank;  // of the value below the quantile

  // Whether kCount pixels can be moved at once everywhere.
  bool can_pack(int32_t count) const {
    const auto aligned = [&](const void* pointer) {
      return reinterpret_cast<uintptr_t>(pointer) % (count * sizeof(Pixel)) == 0;
    };
    return column_stride == 1 && width % count == 0 && row_stride % count == 0 &&
           channel_stride % count == 0 && image_stride % count == 0 && aligned(images) &&
           aligned(views) && reinterpret_cast<uintptr_t>(masks) % count == 0;
  }

  // All of one view, by all threads of a block.
  template <int kCount, typename Step>
  PROTOFAST_HOST_DEVICE void write(
      int64_t view, ViewMemory<Compute>& memory, const Step& step
  ) const {
    const int32_t cell_count = map_height * map_width;
    const Compute* source = maps + view * cell_count;
    const Compute* cells = load_cells(source, cell_count, memory, step);
    const UpsampledMap<Compute> map = {cells, rows, columns, map_height, map_width, height, width};
    const bool shows = memory.unusable == 0 && memory.low != memory.high;
    Compute threshold = 0;
    if (shows) {
      const Compute low = number_of<Compute>(memory.low), high = number_of<Compute>(memory.high);
      const BinScale<Compute> scale = {low, Compute(kBins) / (high - low)};
      bool bisect = !is_finite(scale.scale);
      if (!bisect) {
        find_bin(map, scale, rank, memory, step);
        bisect = memory.in_bin > kCandidates;
      }
      threshold = bisect ? bisect_rank(map, rank, memory, step)
                         : select_in_bin(map, scale, rank, memory, step);
    }
    step([&](int32_t thread, int32_t threads) {
      map.template walk<kCount>(thread, threads, [&](int32_t y, int32_t x, const Compute* values) {
        bool above[kCount];
        for (int i = 0; i < kCount; ++i) above[i] = shows && values[i] > threshold;
        write_pixels<kCount>(view, y, x, above);
      });
    });
  }

  // kCount pixels of all channels, from column x of row y on.
  template <int kCount>
  PROTOFAST_HOST_DEVICE void write_pixels(
      int64_t view, int32_t y, int32_t x, const bool (&above)[kCount]
  ) const {
    const int64_t pixels = static_cast<int64_t>(height) * width;
    const int64_t at = static_cast<int64_t>(y) * width + x;
    Pack<uint8_t, kCount> mask;
    bool any = false;
    for (int i = 0; i < kCount; ++i) {
      mask.pixels[i] = above[i];
      any = any || above[i];
    }
    *reinterpret_cast<Pack<uint8_t, kCount>*>(masks + view * pixels + at) = mask;
    const Pixel* source = images + view / each * image_stride + y * row_stride + x * column_stride;
    Pixel* target = views + view * channels * pixels + at;
    PROTOFAST_ROLLED for (int32_t c = 0; c < channels; ++c) {
      Pack<Pixel, kCount> pack;
      for (int i = 0; i < kCount; ++i) pack.pixels[i] = fill[c];
      if (any) {
        const auto* shown =
            reinterpret_cast<const Pack<Pixel, kCount>*>(source + c * channel_stride);
        const Pack<Pixel, kCount> pixels_there = *shown;
        for (int i = 0; i < kCount; ++i) {
          if (above[i]) pack.pixels[i] = pixels_there.pixels[i];
        }
      }
      store_past_cache(reinterpret_cast<Pack<Pixel, kCount>*>(target + c * pixels), pack);
    }
  }
};

// ---------------------------------------------------------------- gradient

// index in [0, N * channels * S * T) -> one element of grad_images: its views' where they show it,
// in the order of k.
template <typename Compute, typename Number>
struct ImageGradient {
  const Number* grad_views;  // [N * K, channels, S, T]
  const uint8_t* masks;      // [N, K, S, T]
  Number* grad_images;       // [N, channels, S, T]
  int64_t each;              // K
  int64_t channels, pixels;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const int64_t pixel = index % pixels, plane = index / pixels;
    const int64_t channel = plane % channels, image = plane / channels;
    Compute sum = 0;
    for (int64_t view = image * each; view < (image + 1) * each; ++view) {
      if (!masks[view * pixels + pixel]) continue;
      sum += static_cast<Compute>(grad_views[(view * channels + channel) * pixels + pixel]);
    }
    grad_images[index] = static_cast<Number>(sum);
  }
};

// index in [0, S + T) -> the taps of the rows, then those of the columns.
template <typename Compute>
struct FindTaps {
  Tap<Compute>* taps;  // [S + T]
  int64_t map_height, map_width, height, width;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    taps[index] = index < height ? find_tap<Compute>(index, map_height, height)
                                 : find_tap<Compute>(index - height, map_width, width);
  }
};

// ---------------------------------------------------------------- the kernels

#ifdef __CUDACC__

// A step of all threads of the block, and a barrier.
struct BlockStep {
  template <typename Body>
  __device__ void operator()(const Body& body) const {
    body(static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockDim.x));
    __syncthreads();
  }
};

// One view after another, however many blocks there are.
template <int kCount, typename Compute, typename Pixel>
__global__ void __launch_bounds__(kViewThreads, 3) write_views(
    const Views<Compute, Pixel> views, int64_t count
) {
  __shared__ ViewMemory<Compute> memory;
  for (int64_t view = blockIdx.x; view < count; view += gridDim.x) {
    views.template write<kCount>(view, memory, BlockStep());
  }
}

constexpr int32_t kThreadsEach = 256;

// result(index) for every index in [0, count), however many blocks there are.
template <typename Result>
__global__ void __launch_bounds__(kThreadsEach) make_each(const Result result, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreadsEach;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreadsEach + threadIdx.x; index < count;
       index += stride) {
    result(index);
  }
}

#endif

}  // namespace protofast::cuda
