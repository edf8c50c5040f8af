// Patches and prototypes as tensor cores read them: rows of bf16 along the channels. No torch.
//
// A float32 number becomes two bf16, hi + lo, that hold it to 2^-17: z.p is then taken as
// hi.hi + hi.lo + lo.hi, all in one float32 sum ("two planes"). What is bf16 already needs one
// plane; so does selection in half precision.
//
// For squared_l2 and l2 a centre is subtracted from both, which changes no distance but shortens
// the vectors, and the error of |z|^2 - 2 z.p + |p|^2 grows with their lengths.
//
// Beside each patch goes a Column, beside each prototype a factor, so that the selection kernel
// knows neither metrics nor masks:
//
//   score(p, l) = offset[l] + scale[l] * factor[p] * (z_l . p)
//
// is a distance up to what does not depend on l, less the largest error it can have. The columns of
// padding have offset +inf and never win. A patch whose numbers do not fit (NaN, infinities, norms
// beyond kHuge) has offset -inf and always wins: the finish kernel then looks at all patches. Its
// numbers, and those of such a prototype, are packed as zeros, so that no NaN is ever multiplied.

#pragma once

#include "cuda/metrics.cuh"
#include "cuda/threads.cuh"

namespace protofast::cuda {

// Squared norms beyond these are left to the exact search: products of such vectors could overflow,
// or lose their smallest parts.
constexpr float kHuge = 1e30f, kTiny = 1e-30f;

constexpr int kPieceChannels = 8;                  // 16 bytes of bf16
constexpr int kChunkNumbers = 64;                  // 128 bytes of bf16
constexpr int kPlaneChannels = kChunkNumbers / 2;  // of each plane, where a chunk holds two

// ---------------------------------------------------------------- layout of a packed row

PROTOFAST_HOST_DEVICE constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

PROTOFAST_HOST_DEVICE constexpr int64_t padded_depth(int64_t depth) {
  return round_up(depth, kChunkNumbers);
}

// Where a channel stands in its packed row. Two planes alternate by 32 channels, so that a chunk of
// 128 bytes holds both planes of the same channels.
PROTOFAST_HOST_DEVICE constexpr int64_t packed_offset(int planes, int plane, int64_t channel) {
  if (planes == 1) return channel;
  return channel / kPlaneChannels * kChunkNumbers + plane * kPlaneChannels +
         channel % kPlaneChannels;
}

// ---------------------------------------------------------------- numbers

PROTOFAST_HOST_DEVICE inline uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(uint32_t, value);
#endif
}

PROTOFAST_HOST_DEVICE inline float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

// The nearest bf16, ties to even; `value` is no NaN.
PROTOFAST_HOST_DEVICE inline uint16_t to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

PROTOFAST_HOST_DEVICE inline float from_bf16(uint16_t bits) {
  return float_of(static_cast<uint32_t>(bits) << 16);
}

// 16 bytes at once; `to` is aligned to them.
PROTOFAST_HOST_DEVICE inline void store_piece(uint16_t* to, const uint16_t (&from)[8]) {
#ifdef __CUDA_ARCH__
  uint4 words;
  words.x = from[0] | static_cast<uint32_t>(from[1]) << 16;
  words.y = from[2] | static_cast<uint32_t>(from[3]) << 16;
  words.z = from[4] | static_cast<uint32_t>(from[5]) << 16;
  words.w = from[6] | static_cast<uint32_t>(from[7]) << 16;
  *reinterpret_cast<uint4*>(to) = words;
#else
  for (int i = 0; i < kPieceChannels; ++i) to[i] = from[i];
#endif
}

constexpr int64_t kCentreRows = 64;

// index in [0, D) -> a number in the middle of the prototypes: the mean of up to 64 of them, evenly
// spaced, rounded to bf16. Any number is right; it depends on the prototypes alone, so that an
// image has the same bits in every batch.
struct Centre {
  const float* prototypes;  // [P, D]
  float* centre;            // [D]
  int64_t prototype_count, depth;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const int64_t rows = prototype_count < kCentreRows ? prototype_count : kCentreRows;
    float sum = 0;
    for (int64_t i = 0; i < rows; ++i) {
      sum += prototypes[i * prototype_count / rows * depth + index];
    }
    const float mean = sum / static_cast<float>(rows);
    const bool fits = mean > -kHuge && mean < kHuge;  // no NaN
    centre[index] = fits ? from_bf16(to_bf16(mean)) : 0.0f;
  }
};

// ---------------------------------------------------------------- what goes beside the rows

struct Column {
  float scale, offset;
};

PROTOFAST_HOST_DEVICE inline Column padding_column() { return {0.0f, INFINITY}; }

PROTOFAST_HOST_DEVICE inline bool patch_fits(Metric metric, float squared_norm) {
  return squared_norm < kHuge && (metric != Metric::kCosine || squared_norm > kTiny);
}

PROTOFAST_HOST_DEVICE inline bool prototype_fits(Metric metric, float squared_norm) {
  return squared_norm < kHuge && (is_difference(metric) || squared_norm > kTiny);
}

// Of a patch of this squared norm. `error` bounds the error of a selection score: relative to
// |z|^2 + |p|^2 for squared_l2 and l2, to |z| |p| for dot, to 1 for cosine.
PROTOFAST_HOST_DEVICE inline Column column_of(Metric metric, float squared_norm, float error) {
  if (!patch_fits(metric, squared_norm)) return {0.0f, -INFINITY};
  const float norm = std::sqrt(squared_norm);
  if (is_difference(metric)) return {-2.0f, squared_norm * (1.0f - error)};
  if (metric == Metric::kDot) return {-1.0f, -error * norm};
  return {-1.0f / norm, -error};
}

PROTOFAST_HOST_DEVICE inline float factor_of(Metric metric, float squared_norm) {
  if (is_difference(metric)) return 1.0f;
  return prototype_fits(metric, squared_norm) ? 1.0f / std::sqrt(squared_norm) : 0.0f;
}

// ---------------------------------------------------------------- the kernel

constexpr int kPackThreads = 256;
constexpr int kPackRows = 32;  // a block packs this many rows; eight threads share a row
constexpr int kRowThreads = kPackThreads / kPackRows;
static_assert(kRowThreads * kPieceChannels == kChunkNumbers);

template <typename Number>
struct Packing {
  const Number* source;  // patches, or prototypes as one image of them
  FeatureLayout layout;
  const float* centre;   // [D] or null
  uint16_t* packed;      // [images][rows][planes * padded depth]
  int64_t rows;          // of one image, with those of padding
  Column* columns;       // [images][rows], for patches; else null
  float* squared_norms;  // [rows], for prototypes; else null; infinite where they do not fit
  float* factors;        // [rows], for prototypes; else null
  Metric metric;
  float error;

  PROTOFAST_HOST_DEVICE int64_t tiles_per_image() const {
    return (rows + kPackRows - 1) / kPackRows;
  }

  // Writes what goes beside row `row` (counted over all images); whether its numbers fit.
  PROTOFAST_HOST_DEVICE bool finish_row(int64_t row, bool padding, float squared_norm) const {
    if (columns != nullptr) {
      columns[row] = padding ? padding_column() : column_of(metric, squared_norm, error);
      return padding || patch_fits(metric, squared_norm);
    }
    const bool fits = padding || prototype_fits(metric, squared_norm);
    squared_norms[row] = fits ? squared_norm : INFINITY;
    factors[row] = factor_of(metric, squared_norm);
    return fits;
  }
};

struct PackingTile {
  float numbers[kPackRows][kChunkNumbers + 1];  // one more, against bank conflicts
};

// One block: kPackRows rows, 64 channels at a time. Threads first read along whichever axis is
// contiguous in memory, then eight of them write one row together.
template <int kPlanes, typename Number, typename Threads>
PROTOFAST_DEVICE void pack_tile(
    const Threads& block, const Packing<Number>& packing, int64_t tile, PackingTile& shared
) {
  const FeatureLayout& layout = packing.layout;
  const int64_t image = tile / packing.tiles_per_image();
  const int64_t first_row = tile % packing.tiles_per_image() * kPackRows;
  const int64_t numbers_per_row = kPlanes * padded_depth(layout.depth);
  const bool along_channels = layout.channel_stride == 1;
  typename Threads::template PerThread<float> squares;
  block.each([&](int thread) { squares[thread] = 0; });

  for (int64_t first = 0; first < padded_depth(layout.depth); first += kChunkNumbers) {
    block.each([&](int thread) {
      for (int i = thread; i < kPackRows * kChunkNumbers; i += kPackThreads) {
        const int row = along_channels ? i / kChunkNumbers : i % kPackRows;
        const int number = along_channels ? i % kChunkNumbers : i / kPackRows;
        const int64_t location = first_row + row, channel = first + number;
        float value = 0;
        if (location < layout.locations && channel < layout.depth) {
          const int64_t offset = layout.patch(image, location) + channel * layout.channel_stride;
          value = static_cast<float>(packing.source[offset]);
          if (packing.centre != nullptr) value -= packing.centre[channel];
        }
        shared.numbers[row][number] = value;
      }
    });
    block.sync();
    block.each([&](int thread) {
      const int row = thread / kRowThreads, piece = thread % kRowThreads;
      if (first_row + row >= packing.rows) return;
      const int64_t start = (image * packing.rows + first_row + row) * numbers_per_row;
      const int64_t channel = first + piece * kPieceChannels;
      uint16_t planes[2][kPieceChannels];
      for (int i = 0; i < kPieceChannels; ++i) {
        const float value = shared.numbers[row][piece * kPieceChannels + i];
        squares[thread] = std::fma(value, value, squares[thread]);
        planes[0][i] = to_bf16(value);
        planes[1][i] = to_bf16(value - from_bf16(planes[0][i]));
      }
      for (int plane = 0; plane < kPlanes; ++plane) {
        store_piece(packing.packed + start + packed_offset(kPlanes, plane, channel), planes[plane]);
      }
    });
    block.sync();
  }

  for (int x = 1; x < kRowThreads; x *= 2) {
    typename Threads::template PerThread<float> others;
    block.exchange(
        x,
        [&](int thread) { return squares[thread]; },
        [&](int thread, float value) { others[thread] = value; }
    );
    block.each([&](int thread) { squares[thread] += others[thread]; });
  }
  block.each([&](int thread) {
    const int row = thread / kRowThreads, piece = thread % kRowThreads;
    if (first_row + row >= packing.rows) return;
    const int64_t place = image * packing.rows + first_row + row;
    const bool padding = first_row + row >= layout.locations;
    const bool fits = packing.finish_row(place, padding, squares[thread]);
    if (fits) return;
    const uint16_t zeros[kPieceChannels] = {};
    for (int64_t i = piece * kPieceChannels; i < numbers_per_row; i += kChunkNumbers) {
      store_piece(packing.packed + place * numbers_per_row + i, zeros);
    }
  });
}

}  // namespace protofast::cuda
