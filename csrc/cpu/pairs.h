// One patch and one prototype: their distance by direct differences, and steps of its gradient.
// For the translation units of one instruction set; see vector.h.
//
// Sums over the depth go in segments of kSegment numbers, each added up in vector lanes and then
// added to a double. So a float distance is within 1e-6 of the exact one at any depth, and the
// order of additions depends on the depth and the instruction set alone. Equal vectors have a
// squared distance of exactly 0.
#pragma once

#include "cpu/element.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

constexpr int64_t kSegment = 128;

// Sum over d of term(a[d], b[d]); term takes the running sum, and vectors as well as numbers.
template <typename T, typename Term>
inline double sum_over_depth(const T* a, const T* b, int64_t depth, const Term& term) {
  constexpr int64_t kStep = kWidth<T>;
  double total = 0;
  for (int64_t start = 0; start < depth; start += kSegment) {
    const int64_t end = depth - start < kSegment ? depth : start + kSegment;
    Vector<T> sums[4] = {};
    int64_t d = start;
    for (; d + 4 * kStep <= end; d += 4 * kStep) {
      for (int i = 0; i < 4; ++i) {
        sums[i] = term(sums[i], load(a + d + i * kStep), load(b + d + i * kStep));
      }
    }
    for (; d + kStep <= end; d += kStep) sums[0] = term(sums[0], load(a + d), load(b + d));
    total += horizontal_sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    T rest = 0;
    for (; d < end; ++d) rest = term(rest, a[d], b[d]);
    total += rest;
  }
  return total;
}

// The same for sums that lose digits to underflow in T: one number after the other, in doubles.
template <typename T, typename Term>
__attribute__((noinline)) double tiny_sum(const T* a, const T* b, int64_t depth, const Term& term) {
  double total = 0;
  for (int64_t d = 0; d < depth; ++d) {
    total = term(total, static_cast<double>(a[d]), static_cast<double>(b[d]));
  }
  return total;
}

template <typename T, typename Term>
inline double sum_of_squares(const T* a, const T* b, int64_t depth, const Term& term) {
  const double total = sum_over_depth(a, b, depth, term);
  return total < Limits<T>::kSmallestNorm ? tiny_sum(a, b, depth, term) : total;
}

template <typename T>
inline double squared_distance(const T* a, const T* b, int64_t depth) {
  return sum_of_squares(a, b, depth, [](auto sum, auto x, auto y) {
    const auto difference = x - y;
    return sum + difference * difference;
  });
}

template <typename T>
inline double squared_norm(const T* a, int64_t depth) {
  return sum_of_squares(a, a, depth, [](auto sum, auto x, auto) { return sum + x * x; });
}

template <typename T>
inline double dot_product(const T* a, const T* b, int64_t depth) {
  return sum_over_depth(a, b, depth, [](auto sum, auto x, auto y) { return sum + x * y; });
}

// a.(b - a) / |a|^2, by which b - a points along a.
template <typename T>
inline double along(const T* a, const T* b, int64_t depth) {
  const auto term = [](auto sum, auto x, auto y) { return sum + x * (y - x); };
  const double norm = squared_norm(a, depth);
  const bool tiny = norm < Limits<T>::kSmallestNorm;
  return (tiny ? tiny_sum(a, b, depth, term) : sum_over_depth(a, b, depth, term)) / norm;
}

// The distance as the operators define it: what is returned, rounded once to T. A zero vector has
// cosine 0 with everything.
template <typename T>
inline T pair_distance(const T* patch, const T* prototype, int64_t depth, Metric metric) {
  if (metric == Metric::kSquaredL2)
    return static_cast<T>(squared_distance(patch, prototype, depth));
  if (metric == Metric::kL2) {
    return static_cast<T>(__builtin_sqrt(squared_distance(patch, prototype, depth)));
  }
  const double dot = dot_product(patch, prototype, depth);
  if (metric == Metric::kDot) return static_cast<T>(-dot);
  const double of_patch = squared_norm(patch, depth), of_prototype = squared_norm(prototype, depth);
  const double norms = __builtin_sqrt(of_patch) * __builtin_sqrt(of_prototype);
  if (norms == 0) return T(0);
  const bool tiny = norms < Limits<T>::kSmallestNorm;
  const double exact =
      tiny ? tiny_sum(patch, prototype, depth, [](auto sum, auto x, auto y) { return sum + x * y; })
           : dot;
  return static_cast<T>(-exact / norms);
}

// 1 / |row|, and 0 for a zero vector.
template <typename T>
inline T inverse_norm(const T* row, int64_t depth) {
  const double squared = squared_norm(row, depth);
  return squared == 0 ? T(0) : static_cast<T>(1.0 / __builtin_sqrt(squared));
}

// target += factor * (a - b)
template <typename T>
inline void add_difference(T* target, T factor, const T* a, const T* b, int64_t depth) {
  int64_t d = 0;
  for (; d + kWidth<T> <= depth; d += kWidth<T>) {
    store(target + d, load(target + d) + factor * (load(a + d) - load(b + d)));
  }
  for (; d < depth; ++d) target[d] += factor * (a[d] - b[d]);
}

// The gradient of the cosine distance for a is -slope / (|a| |b|) times the part of b - a across a,
// (b - a) - along(a, b) a. Written with b and cos instead of differences, two terms would cancel
// where a and b are nearly parallel: after projection.

// target += factor * a
template <typename T>
inline void add_scaled(T* target, T factor, const T* a, int64_t depth) {
  int64_t d = 0;
  for (; d + kWidth<T> <= depth; d += kWidth<T>) {
    store(target + d, load(target + d) + factor * load(a + d));
  }
  for (; d < depth; ++d) target[d] += factor * a[d];
}

// gradient += slope * d(distance of a and b)/da. `of_a` and `of_b` are 1/|a| and 1/|b|.
template <typename T>
inline void add_gradient(
    T* gradient,
    Metric metric,
    T slope,
    T distance,
    const T* a,
    const T* b,
    T of_a,
    T of_b,
    int64_t depth
) {
  switch (metric) {
    case Metric::kSquaredL2:
      return add_difference(gradient, 2 * slope, a, b, depth);
    case Metric::kL2:
      return add_difference(gradient, distance == 0 ? T(0) : slope / distance, a, b, depth);
    case Metric::kDot:
      return add_scaled(gradient, -slope, b, depth);
    case Metric::kCosine:
      if (of_a == 0 || of_b == 0) return;
      add_difference(gradient, -slope * of_a * of_b, b, a, depth);
      return add_scaled(
          gradient, static_cast<T>(slope * of_a * of_b * along(a, b, depth)), a, depth
      );
  }
}

}  // namespace
}  // namespace protofast
