// masked_view on the CPU: of every image, once for each of its maps, the pixels where the map,
// up-sampled to the size of the image, lies strictly above its quantile,
//
//   view[n, k, :, y, x] = up(map[n, k])[y, x] > quantile(up(map[n, k])) ? image[n, :, y, x] : fill.
//
// Up-sampling is cheap and memory is not, so the values up(map) are never stored: each pass
// computes them anew from the map's rows, which are up-sampled along the width once. The pixels
// above the quantile are those above the value of rank q * (S * T - 1), rounded down
// (reference_masked_view.py says why), and that value is found in two passes: a histogram between
// the least and the largest cell, whose bins follow one another as the values do, then the values
// of the bin that holds the rank. Where too many fall into one bin (a plateau, or one cell far
// above all others), the rank is found by bisection over the floating-point numbers instead, one
// pass of counting for each bit. A third pass writes each view once, and reads the image only in
// rows that the mask touches. Views that together exceed the caches are written past them.
//
// These files are compiled without contraction into fused multiply-adds: every value has the same
// bits in each pass, instruction set and in the reference. The loops are written for the compiler
// to vectorise. One map is one task, so threads change nothing.
#pragma once

#include "cpu/masked_view/kernels.h"
#include "cpu/patches.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

template <typename T>
inline T between(T a, T b, T weight) {
  return a + weight * (b - a);
}

// The rows of the map that row y of the image lies between.
template <typename T>
struct RowPair {
  RowPair(const WideMap<T>& map, int64_t y)
      : above(map.rows + map.taps[y].first * map.width),
        below(map.rows + map.taps[y].second * map.width),
        weight(map.taps[y].weight) {}
  T at(int64_t x) const { return between(above[x], below[x], weight); }
  const T* above;
  const T* below;
  T weight;
};

template <typename T>
void widen_rows(
    const T* cells,
    int64_t map_height,
    int64_t map_width,
    const Tap<T>* taps,
    int64_t width,
    T* rows
) {
  for (int64_t h = 0; h < map_height; ++h) {
    const T* row = cells + h * map_width;
    for (int64_t x = 0; x < width; ++x) {
      rows[h * width + x] = between(row[taps[x].first], row[taps[x].second], taps[x].weight);
    }
  }
}

template <typename T>
inline void find_bins(
    const WideMap<T>& map, int64_t y, BinScale<T> scale, int32_t* __restrict__ bins
) {
  const RowPair<T> row(map, y);
  const T top = kBins - 1;
  for (int64_t x = 0; x < map.width; ++x) {
    T place = (row.at(x) - scale.low) * scale.scale;
    place = place > T(0) ? place : T(0);
    place = place < top ? place : top;
    bins[x] = static_cast<int32_t>(place);
  }
}

// Neighbours fall into the same bin more often than not: counted apart, they need not wait for one
// another.
template <typename T>
void count_bins(const WideMap<T>& map, BinScale<T> scale, int32_t* buffer, int64_t* counts) {
  constexpr int64_t kApart = 8;
  uint32_t apart[kBins * kApart] = {};
  for (int64_t y = 0; y < map.height; ++y) {
    find_bins(map, y, scale, buffer);
    int64_t x = 0;
    for (; x + kApart <= map.width; x += kApart) {
      for (int64_t i = 0; i < kApart; ++i) ++apart[buffer[x + i] * kApart + i];
    }
    for (; x < map.width; ++x) ++apart[buffer[x] * kApart];
  }
  for (int64_t bin = 0; bin < kBins; ++bin) {
    counts[bin] = 0;
    for (int64_t i = 0; i < kApart; ++i) counts[bin] += apart[bin * kApart + i];
  }
}

template <typename T>
int64_t collect_bin(
    const WideMap<T>& map, BinScale<T> scale, int32_t bin, int32_t* buffer, T* values
) {
  int64_t count = 0;
  const int64_t blocks = (map.width + kBinBlock - 1) / kBinBlock;
  for (int64_t x = map.width; x < blocks * kBinBlock; ++x) buffer[x] = -1;
  for (int64_t y = 0; y < map.height; ++y) {
    find_bins(map, y, scale, buffer);
    const RowPair<T> row(map, y);
    for (int64_t start = 0; start < blocks * kBinBlock; start += kBinBlock) {
      int32_t found = 0;
      for (int64_t x = start; x < start + kBinBlock; ++x) found |= buffer[x] == bin;
      if (!found) continue;
      for (int64_t x = start; x < start + kBinBlock; ++x) {
        if (buffer[x] == bin) values[count++] = row.at(x);
      }
    }
  }
  return count;
}

template <typename T>
int64_t count_up_to(const WideMap<T>& map, T limit) {
  int64_t count = 0;
  for (int64_t y = 0; y < map.height; ++y) {
    const RowPair<T> row(map, y);
    int32_t of_row = 0;
    for (int64_t x = 0; x < map.width; ++x) of_row += row.at(x) <= limit;
    count += of_row;
  }
  return count;
}

template <typename T>
bool find_mask(const WideMap<T>& map, int64_t y, T threshold, uint8_t* __restrict__ mask) {
  const RowPair<T> row(map, y);
  uint8_t any = 0;
  for (int64_t x = 0; x < map.width; ++x) {
    const uint8_t above = row.at(x) > threshold;
    mask[x] = above;
    any |= above;
  }
  return any != 0;
}

template <typename Bits>
void show_pixels(
    const uint8_t* mask, const void* image, const void* fill, int64_t width, void* view
) {
  typedef Bits Pixel __attribute__((may_alias));
  const Pixel colour = *static_cast<const Pixel*>(fill);
  Pixel* __restrict__ target = static_cast<Pixel*>(view);
  if (mask == nullptr) {
    for (int64_t x = 0; x < width; ++x) target[x] = colour;
    return;
  }
  const Pixel* source = static_cast<const Pixel*>(image);
  for (int64_t x = 0; x < width; ++x) {
    const Pixel shown = source[x];  // read in any case, so that the choice needs no branch
    target[x] = mask[x] ? shown : colour;
  }
}

inline void stream(const void* source, int64_t bytes, void* target) {
#if defined(__AVX__)
  const char* from = static_cast<const char*>(source);
  char* to = static_cast<char*>(target);
  constexpr int64_t kStep = PROTOFAST_VECTOR_BYTES;
  const int64_t beyond = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kStep);
  const int64_t head = beyond == 0 ? 0 : kStep - beyond;
  if (head < bytes) {
    __builtin_memcpy(to, from, head);
    int64_t i = head;
    for (; i + kStep <= bytes; i += kStep) {
      Vector<float> some;
      __builtin_memcpy(&some, from + i, kStep);
      asm volatile("vmovntps %1, (%0)" : : "r"(to + i), "v"(some) : "memory");
    }
    __builtin_memcpy(to + i, from + i, bytes - i);
    return;
  }
#endif
  __builtin_memcpy(target, source, bytes);
}

inline void end_stream() {
#if defined(__AVX__)
  asm volatile("sfence" ::: "memory");
#endif
}

template <typename T>
void add_shown(
    const void* grad, Element element, const uint8_t* mask, int64_t width, T* __restrict__ sum
) {
  with_element(element, [&]<typename E>() {
    const E* source = static_cast<const E*>(grad);
    for (int64_t x = 0; x < width; ++x) {
      const T value = static_cast<T>(widen(source[x]));
      sum[x] += mask[x] ? value : T(0);
    }
  });
}

template <typename T>
constexpr MapKernels<T> map_kernels() {
  return {
      .convert = widen_numbers<T>,
      .widen_rows = widen_rows<T>,
      .count_bins = count_bins<T>,
      .collect_bin = collect_bin<T>,
      .count_up_to = count_up_to<T>,
      .find_mask = find_mask<T>,
  };
}

template <typename T>
constexpr GradientKernels<T> gradient_kernels() {
  return {.add_shown = add_shown<T>, .narrow = narrow_numbers<T>};
}

constexpr MaskedViewTable masked_view_table() {
  return {
      .of_float = map_kernels<float>(),
      .of_double = map_kernels<double>(),
      .show_2_bytes = show_pixels<uint16_t>,
      .show_4_bytes = show_pixels<uint32_t>,
      .show_8_bytes = show_pixels<uint64_t>,
      .stream = stream,
      .end_stream = end_stream,
      .gradients = {gradient_kernels<float>(), gradient_kernels<double>()},
  };
}

}  // namespace
}  // namespace protofast
