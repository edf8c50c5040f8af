// nearest_patch_within on the CPU: for every image n and prototype p the least distance, if it is
// at most limit[p]; else the pair is left out.
//
// A first look in 8-bit integers, which a processor multiplies at four times the rate of floats,
// leaves out what cannot be within the limit; the rest is computed exactly. Patches and prototypes,
// minus a common centre, are coded as
//
//   z' = least + scale_z * a,  a in 0 ... 255,        p' = scale_p * b,  b in -127 ... 127,
//
// with one `least` and scale_z per image and one scale_p for all prototypes. Then
//
//   |z' - p'|^2 = |z'|^2 + |p'|^2 - 2 scale_z scale_p (a.b) - 2 least scale_p sum(b).
//
// In units of 2 scale_z scale_p, |z'|^2 is an integer, rounded down, where the sum a.b begins: what
// comes out is the score of a patch, and the highest score of an image is that of the patch whose
// code is nearest. So the inner loop is that of nearest_patch with integers, and its minimum over
// locations one instruction per row.
//
// What is exact. The remainders z - z' and p - p' are measured while coding, so by the triangle
// inequality |z - p| >= |z' - p'| - |z - z'| - |p - p'|, and a patch within the limit has
//
//   |z' - p'| <= root(limit) + error_p + error_z =: reach + error_z:
//
// its score is at least the integer that `threshold` finds. Rounding is covered: that of coding and
// of the centre in the errors (kCodeError), that of distances in the root (root_of_limit), that of
// the threshold in two units that are subtracted from it: its terms stay below 2^40 units by the
// choice of scale_z, but for limits so large that it lies below every score. Pairs with a score
// above it are looked at: the patch of the best score first, then those whose score allows a
// distance no larger than its, by direct differences as in nearest_patch: first least location,
// same bits. What is found thus depends on no code. An image with numbers that are not finite, or
// so large that a distance might not be, is scanned.
#pragma once

#include <immintrin.h>

#include "cpu/nearest_patch/kernel.h"
#include "cpu/nearest_patch_within/coding.h"
#include "cpu/nearest_patch_within/kernels.h"

namespace protofast {
namespace {

using Scores = Vector<int32_t>;  // or kCodeDepth codes in each lane
constexpr int kScoreWidth = kWidth<int32_t>;
static_assert(kCodeLanes == 2 * kScoreWidth && kRows == 2 * kCodeRows);

constexpr double kHighest = 2147483647.0;

// ------------------------------------------------------------------ the first look

// What patches within `reach` (error of the prototype included) score at least.
inline int32_t threshold(
    double constant, double tilt, double reach, double least, double error, double per_unit
) {
  const double margin = error * (2 * reach + error);
  double score = (constant - tilt * least - margin) * per_unit - 2;
  score = score > kLowest ? score : kLowest;  // NaN: everything
  return static_cast<int32_t>(score < kHighest ? score : kHighest);
}

// scores[r][lane] = starts[r] + sum over the depth of patch codes * prototype codes: where the time
// goes. best: the highest score of each lane.
template <int rows>
inline void multiply_codes(
    const int32_t* codes,
    int64_t code_rows,
    const int8_t* panel,
    int64_t groups,
    const int32_t* starts,
    int32_t* scores,
    Scores* best
) {
  Scores sums[rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = splat(starts[r]);
  for (int64_t g = 0; g < groups; ++g) {
    Scores lanes[2];
    for (int v = 0; v < 2; ++v) {
      __builtin_memcpy(&lanes[v], panel + v * sizeof(Scores), sizeof(Scores));
      PROTOFAST_KEEP_IN_REGISTER(lanes[v]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      Scores patch = splat(codes[r]);
      PROTOFAST_KEEP_IN_REGISTER(patch);
      for (int v = 0; v < 2; ++v) {
        sums[r][v] =
            (Scores)_mm512_dpbusd_epi32((__m512i)sums[r][v], (__m512i)patch, (__m512i)lanes[v]);
      }
    }
    codes += code_rows;
    panel += 2 * sizeof(Scores);
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < 2; ++v) {
      store(scores + r * kCodeLanes + v * kScoreWidth, sums[r][v]);
      best[v] = sums[r][v] > best[v] ? sums[r][v] : best[v];
    }
  }
}

// The lanes of a panel, as bits, that have a score no lower than their threshold.
template <typename T>
inline uint32_t first_look(
    const CodedPrototypes<T>& prototypes, const CodedImage<T>& image, int64_t panel
) {
  const int64_t groups = (prototypes.depth + kCodeDepth - 1) / kCodeDepth;
  const int64_t rows = (image.locations + kCodeRows - 1) / kCodeRows * kCodeRows;
  const int8_t* packed = prototypes.panels + panel * groups * kCodeLanes * kCodeDepth;
  Scores best[2] = {splat(kLowest), splat(kLowest)};
  int64_t row = 0;
  const auto multiply = [&]<int count>() {
    multiply_codes<count>(
        image.codes + row,
        rows,
        packed,
        groups,
        image.starts + row,
        image.scores + row * kCodeLanes,
        best
    );
    row += count;
  };
  while (row + kRows <= rows) multiply.template operator()<kRows>();
  if (row < rows) multiply.template operator()<kCodeRows>();

  const PanelNumbers& numbers = prototypes.numbers[panel];
  const double per_unit = 1 / image.unit;
  alignas(PROTOFAST_VECTOR_BYTES) int32_t thresholds[kCodeLanes];
  for (int i = 0; i < kCodeLanes; ++i) {
    thresholds[i] = threshold(
        numbers.constants[i],
        numbers.tilts[i],
        numbers.reaches[i],
        image.least,
        image.error,
        per_unit
    );
  }
  uint32_t lanes = 0;
  for (int v = 0; v < 2; ++v) {
    const Scores least = load(thresholds + v * kScoreWidth);
    const uint32_t some = _mm512_cmpge_epi32_mask((__m512i)best[v], (__m512i)least);
    lanes |= some << (v * kScoreWidth);
  }
  return lanes;
}

// ------------------------------------------------------------------ what it leaves

// The first location of least distance; its score is highest or nearly so.
template <typename T>
__attribute__((noinline)) NearPair<T> look_closer(
    const CodedPrototypes<T>& prototypes,
    const CodedImage<T>& image,
    int64_t panel,
    int lane,
    int64_t* looked
) {
  const int64_t p = panel * kCodeLanes + lane, depth = prototypes.depth;
  const T* prototype = prototypes.rows + p * depth;
  const auto distance_to = [&](int64_t l) {
    const T* patch = image.patches.rows + l * image.patches.stride;
    ++*looked;
    return pair_distance(patch, prototype, depth, prototypes.metric);
  };
  const int32_t* scores = image.scores + lane;
  int64_t best = 0;
  for (int64_t l = 1; l < image.locations; ++l) {
    if (scores[l * kCodeLanes] > scores[best * kCodeLanes]) best = l;
  }
  NearPair<T> found = {p, best, distance_to(best)};
  const PanelNumbers& numbers = prototypes.numbers[panel];
  const double nearer = __builtin_fmin(found.distance, prototypes.limits[p]);
  const double reach = root_of_limit(nearer, prototypes.metric) + numbers.errors[lane];
  const int32_t least = threshold(
      numbers.squares[lane] - reach * reach,
      numbers.tilts[lane],
      reach,
      image.least,
      image.error,
      1 / image.unit
  );
  for (int64_t l = 0; l < image.locations; ++l) {
    if (scores[l * kCodeLanes] < least || l == best) continue;
    const T distance = distance_to(l);
    if (distance < found.distance || (distance == found.distance && l < found.location)) {
      found.distance = distance;
      found.location = l;
    }
  }
  return found;
}

template <typename T>
int64_t search_codes(
    const CodedPrototypes<T>& prototypes,
    const CodedImage<T>& image,
    int64_t panel,
    NearPair<T>* found,
    int64_t* looked
) {
  const int64_t used = at_most(prototypes.count - panel * kCodeLanes, kCodeLanes);
  int64_t count = 0;
  const auto keep = [&](const NearPair<T>& pair) {
    const bool finite = pair.distance - pair.distance == 0;
    if (!finite || pair.distance <= prototypes.limits[pair.prototype]) found[count++] = pair;
  };
  if (!image.usable) {
    for (int64_t p = panel * kCodeLanes; p < panel * kCodeLanes + used; ++p) {
      NearPair<T> pair = {p, 0, 0};
      const T* prototype = prototypes.rows + p * prototypes.depth;
      pair.distance = scan(
          image.patches,
          image.locations,
          prototype,
          prototypes.depth,
          prototypes.metric,
          &pair.location
      );
      *looked += image.locations;
      keep(pair);
    }
    return count;
  }
  for (uint32_t lanes = first_look(prototypes, image, panel); lanes != 0; lanes &= lanes - 1) {
    keep(look_closer(prototypes, image, panel, __builtin_ctz(lanes), looked));
  }
  return count;
}

template <typename T>
constexpr CodeKernels<T> code_kernels() {
  return {
      .find_largest = find_largest<T>,
      .code_panel = code_panel<T>,
      .code_image = code_image<T>,
      .search = search_codes<T>,
  };
}

}  // namespace
}  // namespace protofast
