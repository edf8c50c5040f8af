// Prototypes and patches in the layouts that the search reads, and what it knows about each of
// them. For the translation units of one instruction set; see cpu/vector.h and, for the why,
// kernel.h.
#pragma once

#include "cpu/nearest_patch/kernels.h"
#include "cpu/patches.h"
#include "cpu/vector.h"

#ifndef PROTOFAST_BLOCK_ROWS
#error "define PROTOFAST_BLOCK_ROWS before including this file"
#endif

namespace protofast {
namespace {

constexpr int kRows = PROTOFAST_BLOCK_ROWS;  // of a block; with 2 vectors of sums per row
template <typename T>
constexpr int kLanes = 2 * kWidth<T>;  // prototypes of a panel

inline bool is_l2(Metric metric) { return metric == Metric::kSquaredL2 || metric == Metric::kL2; }

inline int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

// centre[d] = mean over the finite p[d] where it is large beside their spread, else 0: there
// subtracting it makes the numbers smaller. A NaN or infinite prototype does not disturb the
// others.
template <typename T>
void find_centre(const PackedPrototypes<T>& prototypes) {
  constexpr int64_t kStrip = 64;
  const int64_t depth = prototypes.depth;
  for (int64_t d0 = 0; d0 < depth; d0 += kStrip) {
    const int64_t width = at_most(depth - d0, kStrip);
    double sums[kStrip] = {}, squares[kStrip] = {}, counts[kStrip] = {};
    for (int64_t p = 0; p < prototypes.count; ++p) {
      const T* row = prototypes.rows + p * depth + d0;
      for (int64_t d = 0; d < width; ++d) {
        const double value = row[d];
        const bool finite = value - value == 0;
        sums[d] += finite ? value : 0.0;
        squares[d] += finite ? value * value : 0.0;
        counts[d] += finite ? 1.0 : 0.0;
      }
    }
    for (int64_t d = 0; d < width; ++d) {
      const double mean = sums[d] / counts[d];  // NaN without any, which the comparison refuses
      const bool large = is_l2(prototypes.metric) && squares[d] < 2.0 * mean * sums[d];
      prototypes.centre[d0 + d] = large ? static_cast<T>(mean) : T(0);
    }
  }
}

// Squared norms of the `width` columns of packed [D, width]. They add up exactly as multiply_block
// does, so a patch equal to a prototype scores exactly |p|^2 / 2.
template <typename T, int width>
inline void column_norms(const T* packed, int64_t depth, T* norms) {
  constexpr int kVectors = (width + kWidth<T> - 1) / kWidth<T>;
  constexpr int kRead = kWidth<T> * kVectors;
  static_assert(kRead - width <= kBlockSlack);  // how far the last load reads beyond the columns
  Vector<T> sums[kVectors] = {};
  for (int64_t d = 0; d < depth; ++d) {
    for (int v = 0; v < kVectors; ++v) {
      const Vector<T> x = load(packed + d * width + v * kWidth<T>);
      sums[v] += x * x;
    }
  }
  for (int c = 0; c < width; ++c) norms[c] = sums[c / kWidth<T>][c % kWidth<T>];
}

template <typename T>
void pack_panel(const PackedPrototypes<T>& prototypes, int64_t panel) {
  const int64_t depth = prototypes.depth, first = panel * kLanes<T>;
  T* packed = prototypes.panels + panel * depth * kLanes<T>;
  const int64_t used = at_most(prototypes.count - first, kLanes<T>);
  for (int64_t lane = 0; lane < used; ++lane) {
    const T* row = prototypes.rows + (first + lane) * depth;
    for (int64_t d = 0; d < depth; ++d) {
      packed[d * kLanes<T> + lane] = row[d] - prototypes.centre[d];
    }
  }
  for (int64_t lane = used; lane < kLanes<T>; ++lane) {
    for (int64_t d = 0; d < depth; ++d) packed[d * kLanes<T> + lane] = 0;
  }
  T* norms = prototypes.norms + first;
  column_norms<T, kLanes<T>>(packed, depth, norms);
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
    if (!(norms[lane] <= Limits<T>::kLargestNorm)) norms[lane] = Limits<T>::kNan;
    if (!is_l2(prototypes.metric)) norms[lane] = static_cast<T>(__builtin_sqrt(norms[lane]));
  }
}

template <typename T>
inline T* block_of_row(const PackedImages<T>& images, int64_t row, int64_t depth) {
  return images.blocks + row / kRows * kRows * depth + row % kRows;
}

// Whether patches a and b of an image are equal.
template <typename T>
inline bool same_patch(PatchRows<T> patches, int64_t a, int64_t b, int64_t depth) {
  const T *first = patches.rows + a * patches.stride, *second = patches.rows + b * patches.stride;
  int64_t d = 0;
  while (d < depth && first[d] == second[d]) ++d;
  return d == depth;
}

// Makes the squared norms of patches that repeat an earlier one NaN, which no comparison takes.
// `table` is a hash table by squared norm, of 2^table_bits > L slots: location + 1, or 0.
template <typename T>
inline void mark_repetitions(
    PatchRows<T> patches,
    int64_t locations,
    int64_t depth,
    uint32_t* table,
    int table_bits,
    T* squared
) {
  const uint64_t mask = (uint64_t{1} << table_bits) - 1;
  __builtin_memset(table, 0, (mask + 1) * sizeof(*table));
  for (int64_t l = 0; l < locations; ++l) {
    const uint64_t bits = __builtin_bit_cast(uint64_t, static_cast<double>(squared[l]));
    uint64_t slot = (bits * 0x9E3779B97F4A7C15) >> (64 - table_bits);
    for (; table[slot] != 0; slot = (slot + 1) & mask) {
      const int64_t earlier = table[slot] - 1;
      if (squared[earlier] == squared[l] && same_patch(patches, earlier, l, depth)) break;
    }
    if (table[slot] == 0) {
      table[slot] = static_cast<uint32_t>(l + 1);
    } else {
      squared[l] = Limits<T>::kNan;
    }
  }
}

// The term of a row's score from its squared norm; NaN stays NaN.
template <typename T>
inline T score_term(T squared, Metric metric) {
  if (is_l2(metric)) return squared / 2;
  if (metric == Metric::kDot) return squared - squared;
  return squared == 0 ? T(0) : static_cast<T>(1.0 / __builtin_sqrt(squared));
}

// Turns the squared norms of the rows of image n into terms, and finds its largest norm: NaN if
// some norm is out of the range in which scores can be trusted.
template <typename T>
inline void find_terms(const PackedImages<T>& images, int64_t n, int64_t depth, Metric metric) {
  const int64_t locations = images.locations;
  T* terms = images.terms + n * locations;
  T largest = 0;
  bool usable = true;
  for (int64_t l = 0; l < locations; ++l) {
    const T squared = terms[l];
    largest = squared > largest ? squared : largest;
    usable &= squared <= Limits<T>::kLargestNorm;
    usable &= metric != Metric::kCosine || squared == 0 || squared >= Limits<T>::kSmallestNorm;
  }
  images.largest[n] = usable ? static_cast<T>(__builtin_sqrt(largest)) : Limits<T>::kNan;
  if (!usable) return;
  mark_repetitions(images.patches[n], locations, depth, images.table, images.table_bits, terms);
  for (int64_t l = 0; l < locations; ++l) terms[l] = score_term(terms[l], metric);
}

template <typename T>
void pack_images(
    const PackedPrototypes<T>& prototypes,
    const FeatureMap& features,
    int64_t first_image,
    const PackedImages<T>& images
) {
  const int64_t depth = prototypes.depth, locations = images.locations;
  const int64_t rows = images.count * locations;
  for (int64_t n = 0; n < images.count; ++n) {
    T* storage = rows_in_place<T>(features) ? nullptr : images.storage + n * locations * depth;
    const PatchRows<T> patches = read_patches(features, first_image + n, storage);
    images.patches[n] = patches;
    for (int64_t l = 0; l < locations; ++l) {
      T* target = block_of_row(images, n * locations + l, depth);
      const T* patch = patches.rows + l * patches.stride;
      for (int64_t d = 0; d < depth; ++d) target[d * kRows] = patch[d] - prototypes.centre[d];
    }
  }
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t row = rows; row < blocks * kRows; ++row) {
    T* target = block_of_row(images, row, depth);
    for (int64_t d = 0; d < depth; ++d) target[d * kRows] = 0;
  }
  for (int64_t i = 0; i < kBlockSlack; ++i) images.blocks[blocks * kRows * depth + i] = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    column_norms<T, kRows>(images.blocks + b * kRows * depth, depth, images.terms + b * kRows);
  }
  for (int64_t n = 0; n < images.count; ++n) find_terms(images, n, depth, prototypes.metric);
}

}  // namespace
}  // namespace protofast
