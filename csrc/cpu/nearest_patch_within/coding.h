// Prototypes and the patches of an image in 8-bit integers, with no less than the error of each.
// For the translation units of one instruction set; see cpu/vector.h and, for the why, kernel.h.
#pragma once

#include "cpu/nearest_patch_within/kernels.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

// The score of what is not there; scores themselves are higher.
constexpr int32_t kLowest = -2147483647 - 1;

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
// exceeds 2^29, and none of a threshold (but for the limit's) 2^40 units; coarser codes are no less
// right.
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

}  // namespace
}  // namespace protofast
