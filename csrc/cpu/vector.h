// Vectors of PROTOFAST_VECTOR_BYTES bytes by the compiler's vector extensions (GCC, Clang).
//
// Included only by the translation units of one instruction set, which define the macro. No
// standard header with inline code and nothing outside the anonymous namespace: a copy of a
// function compiled for AVX-512 must never be linked into the rest of the library.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef PROTOFAST_VECTOR_BYTES
#error "define PROTOFAST_VECTOR_BYTES before including this file"
#endif

namespace protofast {
namespace {

template <typename T>
struct Limits;

template <>
struct Limits<float> {
  using Integer = int32_t;
  static constexpr float kInfinity = __builtin_inff();
  static constexpr float kNan = __builtin_nanf("");
  // Squared norms between these neither overflow nor lose digits to underflow in the kernels.
  static constexpr float kLargestNorm = 0x1p120f;
  static constexpr float kSmallestNorm = 0x1p-100f;
};

template <>
struct Limits<double> {
  using Integer = int64_t;
  static constexpr double kInfinity = __builtin_inf();
  static constexpr double kNan = __builtin_nan("");
  static constexpr double kLargestNorm = 0x1p1000;
  static constexpr double kSmallestNorm = 0x1p-900;
};

// Vectors of integers by the same names.
template <>
struct Limits<int32_t> {
  using Integer = int32_t;
};
template <>
struct Limits<int64_t> {
  using Integer = int64_t;
};

template <typename T, int bytes = PROTOFAST_VECTOR_BYTES>
struct VectorTypes {
  typedef T Vector __attribute__((vector_size(bytes)));
  typedef T Unaligned __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
  typedef typename Limits<T>::Integer Integers __attribute__((vector_size(bytes)));
};

template <typename T>
using Vector = typename VectorTypes<T>::Vector;
template <typename T>
using Integers = typename VectorTypes<T>::Integers;
template <typename T>
constexpr int kWidth = PROTOFAST_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T>
inline Vector<T> load(const T* source) {
  return *reinterpret_cast<const typename VectorTypes<T>::Unaligned*>(source);
}

template <typename T>
inline void store(T* target, Vector<T> value) {
  *reinterpret_cast<typename VectorTypes<T>::Unaligned*>(target) = value;
}

// kWidth<double> numbers as doubles, and back.
template <typename T>
inline Vector<double> load_doubles(const T* source) {
  using Some = typename VectorTypes<T, kWidth<double>* static_cast<int>(sizeof(T))>::Unaligned;
  return __builtin_convertvector(*reinterpret_cast<const Some*>(source), Vector<double>);
}

template <typename T>
inline void store_doubles(T* target, Vector<double> value) {
  using Some = VectorTypes<T, kWidth<double>* static_cast<int>(sizeof(T))>;
  *reinterpret_cast<typename Some::Unaligned*>(target) =
      __builtin_convertvector(value, typename Some::Vector);
}

template <typename T>
inline Vector<T> splat(T value) {
  return value - Vector<T>{};
}

// Sum of a vector's numbers, halving it: the rounding errors of few additions.
template <typename T, int bytes = PROTOFAST_VECTOR_BYTES>
inline T horizontal_sum(typename VectorTypes<T, bytes>::Vector value) {
  if constexpr (bytes == 2 * sizeof(T)) {
    return value[0] + value[1];
  } else {
    typename VectorTypes<T, bytes / 2>::Vector halves[2];
    static_assert(sizeof(halves) == sizeof(value));
    __builtin_memcpy(halves, &value, sizeof(value));
    return horizontal_sum<T, bytes / 2>(halves[0] + halves[1]);
  }
}

// Stops the compiler from reading a vector again from memory at each of its uses.
#if defined(__x86_64__)
#define PROTOFAST_KEEP_IN_REGISTER(vector) asm("" : "+v"(vector))
#elif defined(__aarch64__)
#define PROTOFAST_KEEP_IN_REGISTER(vector) asm("" : "+w"(vector))
#else
#define PROTOFAST_KEEP_IN_REGISTER(vector)
#endif

}  // namespace
}  // namespace protofast
