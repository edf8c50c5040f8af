// Prototypes and patches in the layouts that the search reads, and what it knows about each of
// them. For the translation units of one instruction set; see cpu/vector.h and, for the why,
// kernel.h.
#pragma once

#include "cpu/nearest_patch/kernels.h"
#include "cpu/patches.h"
#include "cpu/transpose.h"
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

// The centre looks at so many prototypes at most, evenly chosen. Any centre is right; one close to
// the mean is good, and reading all prototypes would take a tenth of a search of one image.
constexpr int64_t kCentreSample = 64;

// centre[d] = mean over the finite p[d] of the sample where it is large beside their spread, else
// 0: there subtracting it makes the numbers smaller. A NaN or infinite prototype does not disturb
// the others.
template <typename T>
void find_centre(const PackedPrototypes<T>& prototypes) {
  constexpr int64_t kStrip = 64;
  const int64_t depth = prototypes.depth;
  const int64_t stride = (prototypes.count + kCentreSample - 1) / kCentreSample;
  for (int64_t d0 = 0; d0 < depth; d0 += kStrip) {
    const int64_t width = at_most(depth - d0, kStrip);
    double sums[kStrip] = {}, squares[kStrip] = {}, counts[kStrip] = {};
    for (int64_t p = 0; p < prototypes.count; p += stride) {
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

// Packs rows[0], ..., rows[columns - 1], minus the centre, as packed [D, columns], and finds their
// squared norms. The norms add up exactly as multiply_block does, so a patch equal to a prototype
// scores exactly |p|^2 / 2. What is written beyond packed, less than kBlockSlack numbers, is noise.
template <typename T, int columns>
inline void pack_columns(
    const T* const* rows, const T* centre, int64_t depth, T* packed, T* norms
) {
  constexpr int kSide = kWidth<T>, kGroups = (columns + kSide - 1) / kSide;
  static_assert(kGroups * kSide - columns < kBlockSlack);
  Vector<T> sums[kGroups] = {}, totals[kGroups] = {};
  const auto end_segment = [&] {
    for (int g = 0; g < kGroups; ++g) {
      totals[g] += sums[g];
      sums[g] = Vector<T>{};
    }
  };
  int64_t d = 0;
  for (; d + kSide <= depth; d += kSide) {
    if (d % kSegment == 0) end_segment();
    const Vector<T> middle = load(centre + d);
    // Groups backwards and rows forwards: what a vector writes beyond its row is the beginning of
    // the next one, which the first group writes later.
    for (int g = kGroups - 1; g >= 0; --g) {
      const Square<T> square = transposed(
          square_of<T>(
              [&](int i) {
                const int column = g * kSide + i;
                return load(rows[column < columns ? column : columns - 1] + d) - middle;
              },
              RowIndices<T>()
          )
      );
      Vector<T> sum = sums[g];
      T* target = packed + d * columns + g * kSide;
      for_each_row(
          square,
          [&](int i, Vector<T> row) {
            store(target + i * columns, row);
            sum += row * row;
          },
          RowIndices<T>()
      );
      sums[g] = sum;
    }
  }
  for (; d < depth; ++d) {
    if (d % kSegment == 0) end_segment();
    T* target = packed + d * columns;
    for (int c = 0; c < columns; ++c) target[c] = rows[c][d] - centre[d];
    for (int g = 0; g < kGroups; ++g) {
      const Vector<T> row = load(target + g * kSide);
      sums[g] += row * row;
    }
  }
  end_segment();
  for (int c = 0; c < columns; ++c) norms[c] = totals[c / kSide][c % kSide];
}

template <typename T>
inline T* panel_of(const PackedPrototypes<T>& prototypes, int64_t panel) {
  return prototypes.panels + (panel - prototypes.first_panel) * prototypes.depth * kLanes<T>;
}

template <typename T>
inline T* norms_of(const PackedPrototypes<T>& prototypes, int64_t panel) {
  return prototypes.norms + (panel - prototypes.first_panel) * kLanes<T>;
}

template <typename T>
void pack_panel(const PackedPrototypes<T>& prototypes, int64_t panel) {
  const int64_t depth = prototypes.depth, first = panel * kLanes<T>;
  const int64_t last = prototypes.count - 1;  // fills the lanes beyond it, which nobody reads
  const T* rows[kLanes<T>];
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    rows[lane] = prototypes.rows + at_most(first + lane, last) * depth;
  }
  T* packed = panel_of(prototypes, panel);
  T* norms = norms_of(prototypes, panel);
  pack_columns<T, kLanes<T>>(rows, prototypes.centre, depth, packed, norms);
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
    if (!(norms[lane] <= Limits<T>::kLargestNorm)) norms[lane] = Limits<T>::kNan;
    if (!is_l2(prototypes.metric)) norms[lane] = static_cast<T>(__builtin_sqrt(norms[lane]));
  }
}

// Whether patches a and b of an image are equal.
template <typename T>
inline bool same_patch(PatchRows<T> patches, int64_t a, int64_t b, int64_t depth) {
  const T *first = patches.rows + a * patches.stride, *second = patches.rows + b * patches.stride;
  int64_t d = 0;
  while (d < depth && first[d] == second[d]) ++d;
  return d == depth;
}

// The same for equal patches; 0.0 and -0.0 are equal.
template <typename T>
inline uint64_t hash_of_patch(const T* patch, int64_t depth) {
  using Integer = typename Limits<T>::Integer;
  uint64_t hash = 0;
  for (int64_t d = 0; d < depth; ++d) {
    const auto bits = static_cast<uint32_t>(
        static_cast<uint64_t>(__builtin_bit_cast(Integer, patch[d] + T(0))) >> (8 * sizeof(T) - 32)
    );
    hash += static_cast<uint64_t>(bits) * (2 * static_cast<uint64_t>(d) + 0x9E3779B1);
  }
  return hash;
}

// Makes the squared norms of patches that repeat an earlier one NaN, which no comparison takes.
// `table` is a hash table by all numbers of a patch, of 2^table_bits > L slots: location + 1, or 0.
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
    const uint64_t bits = hash_of_patch(patches.rows + l * patches.stride, depth);
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
    if (metric == Metric::kCosine && squared < Limits<T>::kSmallestNorm) {
      // Zero has cosine 0; what only underflows to it has a direction, which the scan finds.
      usable &= squared_norm(images.patches[n].rows + l * images.patches[n].stride, depth) == 0;
    }
  }
  images.largest[n] = usable ? static_cast<T>(__builtin_sqrt(largest)) : Limits<T>::kNan;
  if (!usable) return;
  if (images.table != nullptr) {
    mark_repetitions(images.patches[n], locations, depth, images.table, images.table_bits, terms);
  }
  for (int64_t l = 0; l < locations; ++l) terms[l] = score_term(terms[l], metric);
}

// Packs images block by block, each so many numbers behind the one before; finish(block, row) is
// called when its rows from `row` on are packed and their squared norms are known.
template <typename T, typename Finish>
inline void pack_blocks(
    const PackedPrototypes<T>& prototypes,
    const FeatureMap& features,
    int64_t first_image,
    const PackedImages<T>& images,
    int64_t block_numbers,
    const Finish& finish
) {
  const int64_t depth = prototypes.depth, locations = images.locations;
  const int64_t rows = images.count * locations;
  for (int64_t n = 0; n < images.count; ++n) {
    T* storage = rows_in_place<T>(features) ? nullptr : images.storage + n * row_memory(features);
    images.patches[n] = read_rows(features, first_image + n, storage);
  }
  const T* patches[kRows];
  int64_t n = 0, l = 0;
  for (int64_t row = 0; row < rows; row += kRows) {
    for (int r = 0; r < kRows; ++r) {
      patches[r] = images.patches[n].rows + l * images.patches[n].stride;
      if (row + r + 1 < rows) {  // else the last patch fills the block, which nobody reads
        if (++l == locations) ++n, l = 0;
      }
    }
    T* block = images.blocks + row / kRows * block_numbers;
    pack_columns<T, kRows>(patches, prototypes.centre, depth, block, images.terms + row);
    finish(block, row);
  }
  for (int64_t i = 0; i < images.count; ++i) find_terms(images, i, depth, prototypes.metric);
}

template <typename T>
void pack_images(
    const PackedPrototypes<T>& prototypes,
    const FeatureMap& features,
    int64_t first_image,
    const PackedImages<T>& images
) {
  const int64_t numbers = prototypes.depth * kRows;
  pack_blocks(prototypes, features, first_image, images, numbers, [](T*, int64_t) {});
}

}  // namespace
}  // namespace protofast
