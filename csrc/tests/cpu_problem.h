// Random features and prototypes for the tests of the CPU kernels, in every layout and element
// type, and ways to run them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/patch_group.h"
#include "tests/check.h"

namespace protofast::testing {

// Workers one after the other, and all at once.
struct Serial {
  template <typename Body>
  void operator()(int64_t count, const Body& body) const {
    for (int64_t worker = 0; worker < count; ++worker) body(worker);
  }
};

struct Threads {
  template <typename Body>
  void operator()(int64_t count, const Body& body) const {
    std::vector<std::thread> threads;
    for (int64_t worker = 0; worker < count; ++worker) threads.emplace_back(body, worker);
    for (std::thread& thread : threads) thread.join();
  }
};

struct Shape {
  int64_t images, prototypes, depth, locations;
};

enum class Layout { kNchw, kChannelsLast, kSliced };

// Numbers of type E somewhere in memory, not aligned to more than E is.
template <typename E>
class Unaligned {
 public:
  explicit Unaligned(int64_t count) : bytes_((count + 1) * sizeof(E)) {}
  E* data() { return reinterpret_cast<E*>(bytes_.data()) + 1; }

 private:
  std::vector<char> bytes_;
};

inline uint16_t bfloat16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// features [N, L, D] and prototypes [P, D] in double, and the same as the kernels read them.
template <typename T>
class Problem {
 public:
  Problem(Shape shape, Layout layout, unsigned seed)
      : shape(shape),
        layout(layout),
        features(shape.images * shape.locations * shape.depth),
        prototypes(shape.prototypes * shape.depth),
        stored_features_(4 * static_cast<int64_t>(features.size()) + 64),
        stored_prototypes_(static_cast<int64_t>(prototypes.size())) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    for (double& value : features) value = uniform(random);
    for (double& value : prototypes) value = uniform(random);
  }

  double* patch(int64_t n, int64_t l) {
    return features.data() + (n * shape.locations + l) * shape.depth;
  }
  double* prototype(int64_t p) { return prototypes.data() + p * shape.depth; }

  FeatureMap map() {
    const int64_t depth = shape.depth, locations = shape.locations, numbers = depth * locations;
    FeatureMap map = {stored_features_.data(), element(), shape.images, depth, locations, 0, 0, 0};
    if (layout == Layout::kNchw) {
      map.image_stride = numbers, map.depth_stride = locations, map.location_stride = 1;
    } else if (layout == Layout::kChannelsLast) {
      map.image_stride = numbers, map.depth_stride = 1, map.location_stride = depth;
    } else {  // every other channel and location of a larger tensor
      map.image_stride = 4 * numbers, map.depth_stride = 4 * locations, map.location_stride = 2;
    }
    T* target = stored_features_.data();
    for_each(map, [&](int64_t at, double value) { target[at] = static_cast<T>(value); });
    return map;
  }

  PrototypeMatrix matrix() {
    T* target = stored_prototypes_.data();
    for (size_t i = 0; i < prototypes.size(); ++i) target[i] = static_cast<T>(prototypes[i]);
    return {target, element(), shape.prototypes, shape.depth};
  }

  template <typename Body>
  void for_each(const FeatureMap& map, const Body& body) {
    for (int64_t n = 0; n < shape.images; ++n) {
      for (int64_t l = 0; l < shape.locations; ++l) {
        for (int64_t d = 0; d < shape.depth; ++d) {
          const int64_t at = n * map.image_stride + l * map.location_stride + d * map.depth_stride;
          body(at, patch(n, l)[d]);
        }
      }
    }
  }

  static constexpr Element element() {
    return std::is_same_v<T, float> ? Element::kFloat32 : Element::kFloat64;
  }

  Shape shape;
  Layout layout;
  std::vector<double> features;    // [N, L, D]
  std::vector<double> prototypes;  // [P, D]

 private:
  Unaligned<T> stored_features_;
  Unaligned<T> stored_prototypes_;
};

// One pair, in double.
inline double naive_distance(const double* z, const double* p, int64_t depth, Metric metric) {
  double squared = 0, dot = 0, zz = 0, pp = 0;
  for (int64_t d = 0; d < depth; ++d) {
    squared += (z[d] - p[d]) * (z[d] - p[d]);
    dot += z[d] * p[d], zz += z[d] * z[d], pp += p[d] * p[d];
  }
  if (metric == Metric::kSquaredL2) return squared;
  if (metric == Metric::kL2) return std::sqrt(squared);
  if (metric == Metric::kDot) return -dot;
  return zz == 0 || pp == 0 ? 0.0 : -dot / std::sqrt(zz * pp);
}

// A sum in double and the sum of the absolute values of what was added.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double term) { value += term, magnitude += std::abs(term); }
};

// gradient[d] += slope * d(distance of a and b)/da[d], in double.
inline void add_naive_gradient(
    Sum* gradient, double slope, const double* a, const double* b, int64_t depth, Metric metric
) {
  const double distance = naive_distance(a, b, depth, metric);
  double aa = 0, bb = 0;
  for (int64_t d = 0; d < depth; ++d) aa += a[d] * a[d], bb += b[d] * b[d];
  for (int64_t d = 0; d < depth; ++d) {
    if (metric == Metric::kSquaredL2) gradient[d].add(slope * 2 * (a[d] - b[d]));
    if (metric == Metric::kL2 && distance > 0) gradient[d].add(slope * (a[d] - b[d]) / distance);
    if (metric == Metric::kDot) gradient[d].add(-slope * b[d]);
    if (metric == Metric::kCosine && aa > 0 && bb > 0) {
      gradient[d].add(-slope * b[d] / std::sqrt(aa * bb));
      gradient[d].add(-slope * distance * a[d] / aa);
    }
  }
}

// Sums of T within rounding of the exact ones.
template <typename T>
void check_sums(const std::vector<T>& got, const std::vector<Sum>& exact) {
  const double bound = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  for (size_t i = 0; i < exact.size(); ++i) {
    CHECK_NEAR(got[i], exact[i].value, bound * exact[i].magnitude);
  }
}

constexpr Metric kMetrics[] = {Metric::kSquaredL2, Metric::kL2, Metric::kDot, Metric::kCosine};
constexpr Layout kLayouts[] = {Layout::kNchw, Layout::kChannelsLast, Layout::kSliced};
constexpr int64_t kDepths[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 127, 128, 129, 300, 512};
constexpr int64_t kLocationCounts[] = {1, 2, 5, 6, 7, 48, 49, 50, 196};
constexpr int64_t kPrototypeCounts[] = {1, 15, 16, 17, 31, 33};
constexpr int64_t kImageCounts[] = {1, 2, 3, 17};

// Every size of each axis beside moderate sizes of the others.
inline std::vector<Shape> awkward_shapes() {
  std::vector<Shape> shapes;
  for (const int64_t depth : kDepths) shapes.push_back({2, 33, depth, 7});
  for (const int64_t locations : kLocationCounts) shapes.push_back({3, 17, 9, locations});
  for (const int64_t prototypes : kPrototypeCounts) shapes.push_back({2, prototypes, 17, 49});
  for (const int64_t images : kImageCounts) shapes.push_back({images, 31, 33, 5});
  shapes.push_back({17, 1, 512, 196});  // several chunks
  shapes.push_back({2, 40, 1100, 70});  // several steps of the depth, several groups of blocks
  return shapes;
}

}  // namespace protofast::testing
