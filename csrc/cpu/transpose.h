// Transposition in registers, W x W numbers at a time (W numbers to a vector): reading NCHW and
// packing would otherwise write single numbers far apart. For the translation units of one
// instruction set; see vector.h.
#pragma once

#include "cpu/vector.h"

namespace protofast {
namespace {

// Compile-time lists 0, 1, ..., count - 1. Arrays of vectors are only ever indexed by them, never
// by loop variables, so that they live in registers.
template <int... all>
struct Indices {};
template <int count, int... rest>
struct IndicesBelow : IndicesBelow<count - 1, count - 1, rest...> {};
template <int... all>
struct IndicesBelow<0, all...> {
  using Type = Indices<all...>;
};
template <typename T>
using RowIndices = typename IndicesBelow<kWidth<T>>::Type;

template <typename T>
struct Square {
  Vector<T> rows[kWidth<T>];
};

// a[h] b[h] a[h+1] b[h+1] ..., from h = 0 or, if `upper`, from the middle.
template <typename T, bool upper, int... i>
inline Vector<T> interleave(Vector<T> a, Vector<T> b, Indices<i...>) {
  constexpr int kFirst = upper ? kWidth<T> / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kFirst + i / 2 + i % 2 * kWidth<T>)...);
#else
  return __builtin_shuffle(a, b, Integers<T>{(kFirst + i / 2 + i % 2 * kWidth<T>)...});
#endif
}

template <typename T, int... i>
inline Square<T> interleave_halves(const Square<T>& square, Indices<i...> indices) {
  constexpr int kHalf = kWidth<T> / 2;
  return {{interleave<T, i % 2 == 1>(square.rows[i / 2], square.rows[i / 2 + kHalf], indices)...}};
}

// Interleaving the upper with the lower half of the rows log2(W) times transposes them.
template <typename T, int remaining = kWidth<T>>
inline Square<T> transposed(const Square<T>& square) {
  if constexpr (remaining == 1) {
    return square;
  } else {
    return transposed<T, remaining / 2>(interleave_halves(square, RowIndices<T>()));
  }
}

// The square whose row i is row(i).
template <typename T, typename Row, int... i>
inline Square<T> square_of(const Row& row, Indices<i...>) {
  return {{row(i)...}};
}

// Calls take(i, row i) in the order of i.
template <typename T, typename Take, int... i>
inline void for_each_row(const Square<T>& square, const Take& take, Indices<i...>) {
  (take(i, square.rows[i]), ...);
}

// target[c * target_stride + r] = source[r * source_stride + c] for r < rows, c < columns.
template <typename T>
inline void transpose(
    const T* source,
    int64_t source_stride,
    int64_t rows,
    int64_t columns,
    T* target,
    int64_t target_stride
) {
  constexpr int64_t kSide = kWidth<T>;
  const int64_t whole_rows = rows - rows % kSide, whole_columns = columns - columns % kSide;
  for (int64_t r = 0; r < whole_rows; r += kSide) {
    for (int64_t c = 0; c < whole_columns; c += kSide) {
      const T* corner = source + r * source_stride + c;
      const auto read = [&](int i) { return load(corner + i * source_stride); };
      T* place = target + c * target_stride + r;
      const auto write = [&](int i, Vector<T> row) { store(place + i * target_stride, row); };
      for_each_row(transposed(square_of<T>(read, RowIndices<T>())), write, RowIndices<T>());
    }
  }
  const auto move = [&](int64_t first_row, int64_t last_row, int64_t first_column) {
    for (int64_t r = first_row; r < last_row; ++r) {
      for (int64_t c = first_column; c < columns; ++c) {
        target[c * target_stride + r] = source[r * source_stride + c];
      }
    }
  };
  move(0, whole_rows, whole_columns);
  move(whole_rows, rows, 0);
}

}  // namespace
}  // namespace protofast
