// The pieces of masked_view that are compiled once per instruction set, and the data they share.
// Plain data without code; run.h puts the pieces together, kernel.h says how they work.
#pragma once

#include <stdint.h>

#include "cpu/element.h"

namespace protofast {

// The two cells that a pixel lies between along one axis, and the weight of the second.
template <typename T>
struct Tap {
  int64_t first;
  int64_t second;
  T weight;
};

// A map on its way to the size of the image: up-sampled along the width, not yet the height.
template <typename T>
struct WideMap {
  const T* rows;       // [H, width]
  const Tap<T>* taps;  // [height], between the rows
  int64_t height;      // S
  int64_t width;       // T, of the image
};

// Values are sorted into bins: bin (value - low) * scale, rounded down, within 0 ... kBins - 1.
constexpr int32_t kBins = 512;

template <typename T>
struct BinScale {
  T low;
  T scale;
};

// Bins of one row go through a buffer of [width] numbers, rounded up to a multiple of kBinBlock.
constexpr int64_t kBinBlock = 32;

template <typename T>
struct MapKernels {
  // `count` numbers of any element type to T.
  void (*convert)(const void* source, Element element, int64_t count, T* target);
  // cells [H, W] -> rows [H, width].
  void (*widen_rows)(
      const T* cells,
      int64_t map_height,
      int64_t map_width,
      const Tap<T>* taps,
      int64_t width,
      T* rows
  );
  // How many values of the map lie in each bin: counts [kBins].
  void (*count_bins)(const WideMap<T>& map, BinScale<T> scale, int32_t* buffer, int64_t* counts);
  // The values in one bin, in their order; returns how many.
  int64_t (*collect_bin)(
      const WideMap<T>& map, BinScale<T> scale, int32_t bin, int32_t* buffer, T* values
  );
  // How many values are no larger than `limit`.
  int64_t (*count_up_to)(const WideMap<T>& map, T limit);
  // mask[x] = whether row y lies above the threshold there; returns whether any of it does.
  bool (*find_mask)(const WideMap<T>& map, int64_t y, T threshold, uint8_t* mask);
};

// view[x] = image[x] where mask[x], else *fill; without a mask all of it is *fill. Pixels are moved
// as bits, whatever they mean.
using ShowPixels =
    void (*)(const uint8_t* mask, const void* image, const void* fill, int64_t width, void* view);

template <typename T>
struct GradientKernels {
  // sum[x] += grad[x] where mask[x].
  void (*add_shown)(const void* grad, Element element, const uint8_t* mask, int64_t width, T* sum);
  // `count` numbers of T to any element type.
  void (*narrow)(const T* source, int64_t count, void* target, Element element);
};

struct GradientTable {
  GradientKernels<float> of_float;
  GradientKernels<double> of_double;
};

struct MaskedViewTable {
  MapKernels<float> of_float;
  MapKernels<double> of_double;
  ShowPixels show_2_bytes, show_4_bytes, show_8_bytes;
  // target [bytes] = source, past the caches if the processor can: memory that is written whole
  // need not be read before. Others may look at it after end_stream.
  void (*stream)(const void* source, int64_t bytes, void* target);
  void (*end_stream)();
  GradientTable gradients;
};

extern const MaskedViewTable masked_view_portable;
extern const MaskedViewTable masked_view_avx2;
extern const MaskedViewTable masked_view_avx512;

}  // namespace protofast
