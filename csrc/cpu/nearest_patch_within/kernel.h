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
// the threshold, whose terms stay below 2^40 units by the choice of scale_z, in two units that are
// subtracted from it. Pairs with a score above it are looked at: the patch of the best score first,
// then those whose score allows a distance no larger than its, by direct differences as in
// nearest_patch: first least location, same bits. What is found thus depends on no code. An image
// with numbers that are not finite, or so large that a distance might not be, is scanned.
#pragma once

#include <immintrin.h>

#include "cpu/nearest_patch/kernel.h"
#include "cpu/nearest_patch_within/kernels.h"

namespace protofast {
namespace {

template <>
struct Limits<int32_t> {
  using Integer = int32_t;
};
template <>
struct Limits<int64_t> {
  using Integer = int64_t;
};
using Scores = Vector<int32_t>;  // or kCodeDepth codes in each lane
constexpr int kScoreWidth = kWidth<int32_t>;
static_assert(kCodeLanes == 2 * kScoreWidth && kRows == 2 * kCodeRows);

constexpr int32_t kLowest = -2147483647 - 1;
constexpr double kHighest = 2147483647.0;

// ------------------------------------------------------------------ coding

// A coded row: sum(code), sum(code^2), sum((row - coded row)^2).
struct RowSums {
  double codes = 0, squares = 0, remainders = 0;
};

// No less than the error of a coded row of numbers up to `largest`: the sum of squares may lack a
// part of D / 16 roundings, and what underflows; each number has roundings of its own from the
// centre, from putting the code back to scale and from the difference.
inline double row_error(double remainders, int64_t depth, double largest, double scale) {
  constexpr double kCodeError = 0x1p-20, kUnderflow = 0x1p-62;
  return 1.001 * __builtin_sqrt(remainders) +
         __builtin_sqrt(static_cast<double>(depth)) * (kCodeError * (largest + scale) + kUnderflow);
}

// row - centre = least + scale * code; codes are in [-below, above].
template <typename T, int below, int above, typename Code>
inline RowSums code_row(
    const T* row, const T* centre, int64_t depth, T least, T scale, Code* codes
) {
  typedef Code Bytes __attribute__((vector_size(kWidth<T>)));
  constexpr T kOffset = T(below) + T(0.5), kMost = T(below) + T(above);
  const T inverse = T(1) / scale;
  // Of vectors and of single numbers.
  const auto place_of = [&](auto value) { return (value - least) * inverse + kOffset; };
  const auto rest_of = [&](auto value, auto code) { return value - (least + scale * code); };
  Integers<T> sums = {}, squares = {};
  Vector<T> remainders = {};
  int64_t d = 0;
  for (; d + kWidth<T> <= depth; d += kWidth<T>) {
    const Vector<T> value = load(row + d) - load(centre + d);
    Vector<T> place = place_of(value);
    place = place > T(0) ? place : Vector<T>{};
    place = place < kMost ? place : splat(kMost);
    const Integers<T> code = __builtin_convertvector(place, Integers<T>) - below;
    const Vector<T> rest = rest_of(value, __builtin_convertvector(code, Vector<T>));
    sums += code, squares += code * code, remainders += rest * rest;
    const Bytes bytes = __builtin_convertvector(code, Bytes);
    __builtin_memcpy(codes + d, &bytes, sizeof(bytes));
  }
  using Integer = typename Limits<T>::Integer;  // holds them for all kMostCodeDepth channels
  RowSums result = {
      static_cast<double>(horizontal_sum<Integer>(sums)),
      static_cast<double>(horizontal_sum<Integer>(squares)),
      horizontal_sum<T>(remainders),
  };
  for (; d < depth; ++d) {
    const T value = row[d] - centre[d];
    T place = place_of(value);
    place = place > T(0) ? place : T(0);
    place = place < kMost ? place : kMost;
    const int code = static_cast<int>(place) - below;
    const double rest = rest_of(value, static_cast<T>(code));
    result.codes += code, result.squares += code * code, result.remainders += rest * rest;
    codes[d] = static_cast<Code>(code);
  }
  return result;
}

// Least and largest row[d] - centre[d], and whether all are finite.
template <typename T>
struct Extremes {
  T least = Limits<T>::kInfinity, largest = -Limits<T>::kInfinity;
  bool finite = true;

  // The largest absolute value.
  T reach() const {
    if (!finite) return Limits<T>::kInfinity;
    return -least > largest ? -least : largest;
  }
};

template <typename T>
inline Extremes<T> find_extremes(PatchRows<T> rows, int64_t count, const T* centre, int64_t depth) {
  Extremes<T> result;
  Vector<T> low = splat(result.least), high = splat(result.largest);
  Integers<T> good = Integers<T>{} - 1;
  for (int64_t i = 0; i < count; ++i) {
    const T* row = rows.rows + i * rows.stride;
    int64_t d = 0;
    for (; d + kWidth<T> <= depth; d += kWidth<T>) {
      const Vector<T> value = load(row + d) - load(centre + d);
      low = value < low ? value : low;
      high = value > high ? value : high;
      good &= value - value == T(0);
    }
    for (; d < depth; ++d) {
      const T value = row[d] - centre[d];
      result.least = value < result.least ? value : result.least;
      result.largest = value > result.largest ? value : result.largest;
      result.finite &= value - value == 0;
    }
  }
  for (int i = 0; i < kWidth<T>; ++i) {
    result.least = low[i] < result.least ? low[i] : result.least;
    result.largest = high[i] > result.largest ? high[i] : result.largest;
    result.finite &= good[i] != 0;
  }
  return result;
}

template <typename T>
T find_largest(const T* rows, const T* centre, int64_t count, int64_t depth) {
  return find_extremes<T>({rows, depth}, count, centre, depth).reach();
}

// The root of the least squared distance that is surely beyond the limit, rounding included.
inline double root_of_limit(double limit, Metric metric) {
  constexpr double kRounding = 1e-5, kUnderflow = 0x1p-70;
  const double root = metric == Metric::kL2 ? limit : __builtin_sqrt(limit);
  return root * (1 + kRounding) + kUnderflow;
}

template <typename T>
void code_panel(const CodedPrototypes<T>& prototypes, int64_t panel) {
  const int64_t depth = prototypes.depth, groups = (depth + kCodeDepth - 1) / kCodeDepth;
  int8_t* packed = prototypes.panels + panel * groups * kCodeLanes * kCodeDepth;
  PanelNumbers& numbers = prototypes.numbers[panel];
  alignas(PROTOFAST_VECTOR_BYTES) int8_t row[kMostCodeDepth];
  const double scale = prototypes.scale;
  for (int lane = 0; lane < kCodeLanes; ++lane) {
    const int64_t p = panel * kCodeLanes + lane;
    const bool used = p < prototypes.count;
    __builtin_memset(row + (groups - 1) * kCodeDepth, 0, kCodeDepth);
    RowSums sums;
    if (used) {
      sums = code_row<T, 127, 127>(
          prototypes.rows + p * depth, prototypes.centre, depth, T(0), prototypes.scale, row
      );
    } else {
      __builtin_memset(row, 0, groups * kCodeDepth);
    }
    for (int64_t g = 0; g < groups; ++g) {
      __builtin_memcpy(
          packed + (g * kCodeLanes + lane) * kCodeDepth, row + g * kCodeDepth, kCodeDepth
      );
    }
    numbers.squares[lane] = scale * scale * sums.squares;
    numbers.tilts[lane] = 2 * scale * sums.codes;
    numbers.errors[lane] = row_error(sums.remainders, depth, prototypes.largest, scale);
    const double limit = used ? prototypes.limits[p] : -1;
    const bool possible = limit >= 0;
    const double root = possible ? root_of_limit(limit, prototypes.metric) : 0;
    const double reach = root + numbers.errors[lane];
    numbers.reaches[lane] = reach;
    numbers.constants[lane] =
        possible ? numbers.squares[lane] - reach * reach : Limits<double>::kInfinity;
  }
}

// The scale of an image's codes: such that they reach over its range, and that no term of a score
// exceeds 2^29, and no term of a threshold 2^40 units; coarser codes are no less right.
template <typename T>
inline double scale_of(const CodedPrototypes<T>& prototypes, const Extremes<T>& extremes) {
  const double depth = static_cast<double>(prototypes.depth), other = prototypes.scale;
  const double reach = extremes.reach(), of_prototypes = prototypes.largest + other;
  const double squared = depth * reach * reach, beside = depth * of_prototypes * of_prototypes;
  double scale = (static_cast<double>(extremes.largest) - extremes.least) / 255;
  scale = __builtin_fmax(scale, squared * 0x1p-30 / other);
  scale = __builtin_fmax(scale, (squared + beside) * 0x1p-41 / other);
  return __builtin_fmax(scale, 0x1p-100);
}

template <typename T>
void code_image(const CodedPrototypes<T>& prototypes, uint8_t* row, CodedImage<T>& image) {
  const int64_t depth = prototypes.depth, groups = (depth + kCodeDepth - 1) / kCodeDepth;
  const int64_t rows = (image.locations + kCodeRows - 1) / kCodeRows * kCodeRows;
  const Extremes<T> extremes =
      find_extremes(image.patches, image.locations, prototypes.centre, depth);
  const double reach = extremes.reach();
  const double wanted = reach < kLargestCoded ? scale_of(prototypes, extremes) : reach;
  image.usable = wanted < kLargestCoded;
  if (!image.usable) return;
  const T scale = static_cast<T>(wanted), least = extremes.least;
  const double step = scale, offset = least;
  image.least = offset;
  image.unit = 2 * step * static_cast<double>(prototypes.scale);
  image.error = 0;
  __builtin_memset(row + (groups - 1) * kCodeDepth, 0, kCodeDepth);
  for (int64_t l = 0; l < rows; ++l) {
    if (l >= image.locations) {  // scores lowest
      image.starts[l] = kLowest;
      for (int64_t g = 0; g < groups; ++g) image.codes[g * rows + l] = 0;
      continue;
    }
    const T* patch = image.patches.rows + l * image.patches.stride;
    const RowSums sums = code_row<T, 0, 255>(patch, prototypes.centre, depth, least, scale, row);
    for (int64_t g = 0; g < groups; ++g) {
      __builtin_memcpy(image.codes + g * rows + l, row + g * kCodeDepth, kCodeDepth);
    }
    const double squared = static_cast<double>(depth) * offset * offset +
                           2 * offset * step * sums.codes + step * step * sums.squares;
    const double start = __builtin_fmin(__builtin_fmax(squared / image.unit, 0), 0x1p30);
    image.starts[l] = -static_cast<int32_t>(start);
    const double error = row_error(sums.remainders, depth, reach, step);
    image.error = __builtin_fmax(image.error, error);
  }
}

// ------------------------------------------------------------------ the first look

// What patches within `reach` (error of the prototype included) score at least.
inline int32_t threshold(
    double constant, double tilt, double reach, double least, double error, double per_unit
) {
  const double margin = error * (2 * reach + error);
  double score = (constant - tilt * least - margin) * per_unit - 2;
  score = score < kHighest ? score : kHighest;
  return score > kLowest ? static_cast<int32_t>(score) : kLowest;  // NaN: everything
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
