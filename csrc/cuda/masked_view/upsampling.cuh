// A map up-sampled bilinearly to the size of an image, whose values are computed where they are
// needed and never stored. Each operation is rounded by itself, as in the reference: the same bits.
//
// H x W cells of a map, S x T pixels of an image.

#pragma once

#include <cstdint>

#ifndef PROTOFAST_HOST_DEVICE
#ifdef __CUDACC__
#define PROTOFAST_HOST_DEVICE __host__ __device__
#else
#define PROTOFAST_HOST_DEVICE
#endif
#endif

// Before a loop that the compiler would unroll at the price of registers.
#ifdef __CUDA_ARCH__
#define PROTOFAST_ROLLED _Pragma("unroll 1")
#else
#define PROTOFAST_ROLLED
#endif

namespace protofast::cuda {

// The first of the two cells that a pixel lies between along one axis, and the weight of the
// second.
template <typename Compute>
struct Tap {
  int32_t first;
  Compute weight;
};

// Pixel i lies at (i + 1/2) * cells / pixels - 1/2, at 0 at least. In integers up to the one
// rounding of the weight.
template <typename Compute>
PROTOFAST_HOST_DEVICE Tap<Compute> find_tap(int64_t i, int64_t cells, int64_t pixels) {
  const int64_t doubled = (2 * i + 1) * cells - pixels;
  const int64_t place = doubled > 0 ? doubled : 0;
  const double rest = static_cast<double>(place % (2 * pixels));
  return {
      static_cast<int32_t>(place / (2 * pixels)),
      static_cast<Compute>(rest / static_cast<double>(2 * pixels))
  };
}

// a + weight * (b - a), each operation rounded: a compiler that is free to fuses two of them.
PROTOFAST_HOST_DEVICE inline float between(float a, float b, float weight) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, __fmul_rn(weight, __fsub_rn(b, a)));
#else
  return a + weight * (b - a);
#endif
}

PROTOFAST_HOST_DEVICE inline double between(double a, double b, double weight) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(a, __dmul_rn(weight, __dsub_rn(b, a)));
#else
  return a + weight * (b - a);
#endif
}

template <typename Compute>
struct UpsampledMap {
  const Compute* cells;         // [H, W]
  const Tap<Compute>* rows;     // [S]
  const Tap<Compute>* columns;  // [T]
  int32_t map_height, map_width, height, width;

  // A row of cells, up-sampled at one column. The last cell is its own neighbour.
  PROTOFAST_HOST_DEVICE Compute at(int32_t row, const Tap<Compute>& column) const {
    const Compute* of_row = cells + static_cast<int64_t>(row) * map_width;
    const int32_t next = column.first + 1 < map_width ? column.first + 1 : column.first;
    return between(of_row[column.first], of_row[next], column.weight);
  }

  // Calls body(y, x, values) for this thread's share of the pixels, kCount side by side at a time,
  // of which the first is x. A thread walks down its columns, which it looks up once, as it does
  // two rows of cells for all pixels between them. kCount divides the width.
  template <int kCount, typename Body>
  PROTOFAST_HOST_DEVICE void walk(int32_t thread, int32_t threads, const Body& body) const {
    const int32_t groups = width / kCount;
    const int32_t strips = groups < threads ? threads / groups : 1;
    const int32_t strip = (height + strips - 1) / strips;
    for (int32_t item = thread; item < groups * strips; item += threads) {
      const int32_t x = item % groups * kCount, start = item / groups * strip;
      const int32_t end = start + strip < height ? start + strip : height;
      Tap<Compute> taps[kCount];
      for (int i = 0; i < kCount; ++i) taps[i] = columns[x + i];
      Compute above[kCount] = {}, below[kCount] = {};
      int32_t first = -1;
      PROTOFAST_ROLLED for (int32_t y = start; y < end; ++y) {
        const Tap<Compute> row = rows[y];
        if (row.first != first) {
          first = row.first;
          const int32_t next = first + 1 < map_height ? first + 1 : first;
          for (int i = 0; i < kCount; ++i) {
            above[i] = at(first, taps[i]);
            below[i] = at(next, taps[i]);
          }
        }
        Compute values[kCount];
        for (int i = 0; i < kCount; ++i) values[i] = between(above[i], below[i], row.weight);
        body(y, x, values);
      }
    }
  }
};

}  // namespace protofast::cuda
