// The value of a rank among those of an up-sampled map, found by the threads of one block: a
// histogram between the least and the largest cell, then the values of the bin that holds the rank,
// or bisection where these are too many.
//
// A `step` runs its body for all threads of the block, then waits for all of them.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cuda/masked_view/upsampling.cuh"

namespace protofast::cuda {

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

}  // namespace protofast::cuda
