// Similarity as a function of the distance, and its derivative, in double throughout.
// For the translation units of one instruction set; see cpu/vector.h.
#pragma once

#include "cpu/nearest_patch/kernels.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

// Natural logarithm of 1 + x for x >= 0, to less than two units in the last place, after W. Kahan's
// and Sun's fdlibm: 1 + x = 2^e m with m near 1, s = (m - 1) / (m + 1), log m = 2 atanh s. What
// rounding 1 + x lost comes back as a correction, so small x keep their precision.
inline Vector<double> log1p(Vector<double> x) {
  using Bits = Integers<double>;
  const Vector<double> u = 1.0 + x;
  const Vector<double> lost = (x - (u - 1.0)) / u;
  const Bits bits = (Bits)u;
  constexpr int64_t kRootHalf = 0x3FE6A09E667F3BCD;
  const Bits shifted = bits - kRootHalf;  // its high bits are e, also for e < 0
  const Bits exponent = shifted >> 52;
  const Vector<double> f = (Vector<double>)(bits - (exponent << 52)) - 1.0;
  // Adding the exponent to the low bits of a large double is a conversion every machine can do.
  const Bits kMagic = Bits{} + 0x4338000000000000;
  const Vector<double> e = (Vector<double>)(exponent + kMagic) - 0x1.8p52;
  const Vector<double> s = f / (2.0 + f);
  const Vector<double> z = s * s;
  Vector<double> r = z * 1.479819860511658591e-01 + 1.531383769920937332e-01;
  r = z * r + 1.818357216161805012e-01;
  r = z * r + 2.222219843214978396e-01;
  r = z * r + 2.857142874366239149e-01;
  r = z * r + 3.999999999940941908e-01;
  r = z * r + 6.666666666666735130e-01;
  const Vector<double> half_square = 0.5 * f * f;
  const Vector<double> low = s * (half_square + z * r) + (e * 1.90821492927058770002e-10 + lost);
  return e * 6.93147180369123816490e-01 - ((half_square - low) - f);
}

// Calls body(x, y) for kWidth<double> numbers at a time as doubles: target = body(source, other).
// The last few numbers go by way of copies filled up with 1.
template <typename T, typename Body>
inline void for_each_vector(const T* source, int64_t count, T* target, const Body& body) {
  constexpr int64_t kStep = kWidth<double>;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    store_doubles(target + i, body(load_doubles(source + i), i));
  }
  if (i == count) return;
  T some[kStep];
  for (int64_t j = 0; j < kStep; ++j) some[j] = i + j < count ? source[i + j] : T(1);
  store_doubles(some, body(load_doubles(some), i));
  for (int64_t j = 0; i + j < count; ++j) target[i + j] = some[j];
}

template <typename T>
inline void log_similarity(
    const T* distances, int64_t count, const SimilarityFunction& similarity, T* activations
) {
  for_each_vector(distances, count, activations, [&](Vector<double> d, int64_t) {
    Vector<double> s = log1p((1.0 - similarity.eps) / (d + similarity.eps));
    s = d == d ? s : d;  // NaN
    return d == 0.0 ? splat(similarity.at_zero) : s;
  });
}

template <typename T>
inline void similarities(
    const T* distances, int64_t count, const SimilarityFunction& similarity, T* activations
) {
  switch (similarity.kind) {
    case Similarity::kLog:
      return log_similarity(distances, count, similarity, activations);
    case Similarity::kLinear:
      for (int64_t i = 0; i < count; ++i) activations[i] = -distances[i];
      return;
    case Similarity::kExp:
      for (int64_t i = 0; i < count; ++i) {
        activations[i] = static_cast<T>(__builtin_exp(-static_cast<double>(distances[i])));
      }
      return;
  }
}

template <typename T, typename Derivative>
inline void add_up_slopes(
    const T* grad_activations,
    const T* grad_distances,
    const T* distances,
    int64_t count,
    const Derivative& derivative,
    T* slopes
) {
  for (int64_t i = 0; i < count; ++i) {
    double slope = grad_distances ? static_cast<double>(grad_distances[i]) : 0.0;
    if (grad_activations) {
      const double distance = distances[i];
      slope += static_cast<double>(grad_activations[i]) * derivative(distance);
    }
    slopes[i] = static_cast<T>(slope);
  }
}

// slopes = d(loss)/d(distance), from the gradients of activations and distances, which may be null.
template <typename T>
void find_slopes(
    const T* grad_activations,
    const T* grad_distances,
    const T* distances,
    int64_t count,
    const SimilarityFunction& similarity,
    T* slopes
) {
  // One loop for each similarity, so that the compiler can vectorise it.
  const auto with = [&](const auto& derivative) {
    add_up_slopes(grad_activations, grad_distances, distances, count, derivative, slopes);
  };
  switch (similarity.kind) {
    case Similarity::kLog:
      return with([eps = similarity.eps](double distance) {
        return -(1.0 - eps) / ((distance + 1.0) * (distance + eps));
      });
    case Similarity::kLinear:
      return with([](double) { return -1.0; });
    case Similarity::kExp:
      return with([](double distance) { return -__builtin_exp(-distance); });
  }
}

}  // namespace
}  // namespace protofast
