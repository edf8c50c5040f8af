// masked_view on a GPU, over raw pointers, without torch: of every image, once for each of its
// maps, the pixels where the map, up-sampled to the size of the image, lies strictly above its
// quantile.
//
// One block makes one view. The up-sampled map is never stored: its values are computed from the
// cells, which lie in shared memory, each time they are needed. Three passes over the pixels:
//   1. a histogram between the least and the largest cell (integer atomics in shared memory);
//   2. the values of the bin that holds the quantile's rank, and the one of that rank among them.
//      Where too many fall into one bin, bisection over the floating-point numbers takes its place;
//   3. the view: the image is read only where a mask is true, the view written once, past the
//   cache.
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
#include <limits>
#include <type_traits>

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

// ---------------------------------------------------------------- up-sampling

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

// ---------------------------------------------------------------- numbers in order, atomics

template <typename Compute>
using Key = std::conditional_t<sizeof(Compute) == 4, uint32_t, unsigned long long>;

template <typename Compute>
constexpr Compute kLargest = std::numeric_limits<Compute>::max();

template <typename Compute>
constexpr Key<Compute> kSignBit = Key<Compute>{1} << (8 * sizeof(Compute) - 1);

// Floating-point numbers in their order as integers, and back.
template <typename Compute>
PROTOFAST_HOST_DEVICE Key<Compute> key_of(Compute value) {
  Key<Compute> bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits & kSignBit<Compute> ? ~bits : bits | kSignBit<Compute>;
}

template <typename Compute>
PROTOFAST_HOST_DEVICE Compute number_of(Key<Compute> key) {
  const Key<Compute> bits = key & kSignBit<Compute> ? key ^ kSignBit<Compute> : ~key;
  Compute value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Returns what was there before.
template <typename Integer>
PROTOFAST_HOST_DEVICE Integer add_atomically(Integer* target, Integer value) {
#ifdef __CUDA_ARCH__
  return atomicAdd(target, value);
#else
  const Integer before = *target;
  *target += value;
  return before;
#endif
}

template <typename Integer>
PROTOFAST_HOST_DEVICE void lower_atomically(Integer* target, Integer value) {
#ifdef __CUDA_ARCH__
  atomicMin(target, value);
#else
  if (value < *target) *target = value;
#endif
}

template <typename Integer>
PROTOFAST_HOST_DEVICE void raise_atomically(Integer* target, Integer value) {
#ifdef __CUDA_ARCH__
  atomicMax(target, value);
#else
  if (value > *target) *target = value;
#endif
}

// ---------------------------------------------------------------- the value of a rank

constexpr int32_t kViewThreads = 256;
constexpr int32_t kBins = 1024;
constexpr int32_t kCopies = 4;         // of the histogram: neighbouring values often share a bin
constexpr int32_t kBinGroup = 32;      // bins that are added up before the search for the rank
constexpr int32_t kCandidates = 1024;  // the most values of a bin that are compared one by one
constexpr int32_t kCells = 1024;       // larger maps are read from where they lie

// Shared memory of a block.
template <typename Compute>
struct ViewMemory {
  uint32_t counts[kCopies][kBins];
  uint32_t group_counts[kBins / kBinGroup];
  Compute candidates[kCandidates];
  Compute cells[kCells];
  Key<Compute> low, high;  // of the cells
  uint32_t unusable;       // whether a cell is NaN, infinite or too large
  uint32_t found;          // candidates, or values up to a limit
  int32_t bin;             // that holds the rank
  uint32_t below, in_bin;  // values in the bins before it, and in it
  Compute threshold;
};

// Values are sorted into bins: bin (value - low) * scale, rounded down, within 0 ... kBins - 1.
template <typename Compute>
struct BinScale {
  Compute low, scale;
  PROTOFAST_HOST_DEVICE int32_t bin_of(Compute value) const {
    const Compute place = (value - low) * scale;
    const Compute top = kBins - 1;
    if (!(place > Compute(0))) return 0;
    return static_cast<int32_t>(place < top ? place : top);
  }
};

template <typename Compute>
PROTOFAST_HOST_DEVICE bool is_finite(Compute value) {
  return value - value == Compute(0);
}

// The cells [H, W] at `source`: their range, whether they can be used, and a copy of them if there
// is room. Returns where to read them.
template <typename Compute, typename Step>
PROTOFAST_HOST_DEVICE const Compute* load_cells(
    const Compute* source, int32_t count, ViewMemory<Compute>& memory, const Step& step
) {
  step([&](int32_t thread, int32_t) {
    if (thread != 0) return;
    memory.low = ~Key<Compute>{0};
    memory.high = 0;
    memory.unusable = 0;
  });
  step([&](int32_t thread, int32_t threads) {
    for (int32_t i = thread; i < count; i += threads) {
      const Compute cell = source[i];
      if (count <= kCells) memory.cells[i] = cell;
      if (!is_finite(Compute(2) * cell)) raise_atomically(&memory.unusable, 1u);
      lower_atomically(&memory.low, key_of(cell + Compute(0)));  // + 0: there is one zero
      raise_atomically(&memory.high, key_of(cell + Compute(0)));
    }
  });
  return count <= kCells ? memory.cells : source;
}

// Histogram of the map's values, and the bin in which the value of `rank` lies.
template <typename Compute, typename Step>
PROTOFAST_HOST_DEVICE void find_bin(
    const UpsampledMap<Compute>& map,
    const BinScale<Compute>& scale,
    uint32_t rank,
    ViewMemory<Compute>& memory,
    const Step& step
) {
  step([&](int32_t thread, int32_t threads) {
    for (int32_t i = thread; i < kCopies * kBins; i += threads) {
      memory.counts[i / kBins][i % kBins] = 0;
    }
  });
  step([&](int32_t thread, int32_t threads) {
    map.template walk<1>(thread, threads, [&](int32_t, int32_t, const Compute* value) {
      add_atomically(&memory.counts[thread % kCopies][scale.bin_of(*value)], 1u);
    });
  });
  step([&](int32_t thread, int32_t threads) {
    for (int32_t group = thread; group < kBins / kBinGroup; group += threads) {
      uint32_t sum = 0;
      for (int32_t i = 0; i < kBinGroup; ++i) {
        const int32_t bin = group * kBinGroup + (i + group) % kBinGroup;  // each its own bank
        uint32_t of_bin = 0;
        for (int32_t copy = 0; copy < kCopies; ++copy) of_bin += memory.counts[copy][bin];
        memory.counts[0][bin] = of_bin;
        sum += of_bin;
      }
      memory.group_counts[group] = sum;
    }
  });
  step([&](int32_t thread, int32_t) {
    if (thread != 0) return;
    uint32_t below = 0;
    int32_t group = 0;
    while (below + memory.group_counts[group] <= rank) below += memory.group_counts[group++];
    int32_t bin = group * kBinGroup;
    while (below + memory.counts[0][bin] <= rank) below += memory.counts[0][bin++];
    memory.bin = bin;
    memory.below = below;
    memory.in_bin = memory.counts[0][bin];
    memory.found = 0;
  });
}

// The value of `rank` among those of memory.bin, at most kCandidates: each of them counts how many
// come before it. Equal ones are told apart by where they lie, so that one alone is chosen.
template <typename Compute, typename Step>
PROTOFAST_HOST_DEVICE Compute select_in_bin(
    const UpsampledMap<Compute>& map,
    const BinScale<Compute>& scale,
    uint32_t rank,
    ViewMemory<Compute>& memory,
    const Step& step
) {
  step([&](int32_t thread, int32_t threads) {
    map.template walk<1>(thread, threads, [&](int32_t, int32_t, const Compute* value) {
      if (scale.bin_of(*value) != memory.bin) return;
      memory.candidates[add_atomically(&memory.found, 1u)] = *value;
    });
  });
  step([&](int32_t thread, int32_t threads) {
    for (uint32_t i = thread; i < memory.in_bin; i += threads) {
      const Compute value = memory.candidates[i];
      uint32_t before = memory.below;
      for (uint32_t j = 0; j < memory.in_bin; ++j) {
        const Compute other = memory.candidates[j];
        before += other < value || (other == value && j < i);
      }
      if (before == rank) memory.threshold = value;
    }
  });
  return memory.threshold;
}

// The value of `rank` without bins: the least number that more than `rank` values do not exceed.
template <typename Compute, typename Step>
PROTOFAST_HOST_DEVICE Compute bisect_rank(
    const UpsampledMap<Compute>& map, uint32_t rank, ViewMemory<Compute>& memory, const Step& step
) {
  Key<Compute> least = key_of(-kLargest<Compute>), largest = key_of(kLargest<Compute>);
  while (least < largest) {
    const Key<Compute> middle = least + (largest - least) / 2;
    const Compute limit = number_of<Compute>(middle);
    step([&](int32_t thread, int32_t) {
      if (thread == 0) memory.found = 0;
    });
    step([&](int32_t thread, int32_t threads) {
      uint32_t count = 0;
      map.template walk<1>(thread, threads, [&](int32_t, int32_t, const Compute* value) {
        count += *value <= limit;
      });
      add_atomically(&memory.found, count);
    });
    if (memory.found > rank) {
      largest = middle;
    } else {
      least = middle + 1;
    }
    step([](int32_t, int32_t) {});  // all have read the count
  }
  return number_of<Compute>(least);
}

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
