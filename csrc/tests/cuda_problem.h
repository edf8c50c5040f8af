// Problems for the CUDA kernels of nearest_patch, the plain kernels run on them, and the truth.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "cuda/nearest_patch/plain.cuh"
#include "tests/check.h"

namespace protofast::testing {

using namespace protofast::cuda;

struct Shape {
  int64_t images, prototypes, depth, height, width;
  int64_t locations() const { return height * width; }
};

inline const Shape kShapes[] = {
    {1, 1, 1, 1, 1}, {2, 3, 5, 1, 1}, {3, 7, 17, 2, 3}, {2, 5, 64, 7, 7}, {1, 9, 33, 3, 5}
};
inline const Metric kMetrics[] = {Metric::kSquaredL2, Metric::kL2, Metric::kDot, Metric::kCosine};

inline FeatureLayout contiguous_layout(const Shape& s) {
  return {s.depth, s.width, s.locations(), s.depth * s.locations(), s.locations(), s.width, 1};
}

inline FeatureLayout channels_last_layout(const Shape& s) {
  return {s.depth, s.width, s.locations(), s.depth * s.locations(), 1, s.width * s.depth, s.depth};
}

// Rows and columns with gaps, as a slice of a larger tensor has them.
inline FeatureLayout sliced_layout(const Shape& s) {
  const int64_t row = 2 * s.width + 1;
  const int64_t channel = row * (s.height + 1);
  return {s.depth, s.width, s.locations(), channel * s.depth + 3, channel, row, 2};
}

inline int64_t extent(const Shape& s, const FeatureLayout& layout) {
  return layout.patch(s.images - 1, s.locations() - 1) + (s.depth - 1) * layout.channel_stride + 1;
}

template <typename Compute>
SimilarityFunction<Compute> similarity(Similarity kind) {
  const double eps = 1e-4;
  return {kind, Compute(eps), Compute(1 - eps), Compute(std::log(1 / eps))};
}

// One problem: random numbers, features in `layout`, outputs of forward and backward.
template <typename Compute>
struct PairsProblem {
  Shape shape;
  FeatureLayout layout;
  Metric metric;
  SimilarityFunction<Compute> function;
  std::vector<Compute> features, prototypes, columns;
  std::vector<Compute> activations, distances;
  std::vector<int64_t> locations;
  std::vector<Compute> grad_activations, grad_distances, grad_features, grad_prototypes;

  PairsProblem(const Shape& s, const FeatureLayout& l, Metric m, Similarity kind)
      : shape(s), layout(l), metric(m), function(similarity<Compute>(kind)) {
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    const auto draw = [&](size_t count) {
      std::vector<Compute> values(count);
      std::generate(values.begin(), values.end(), [&] { return Compute(normal(random)); });
      return values;
    };
    const size_t pairs = s.images * s.prototypes;
    features.assign(extent(s, l), std::numeric_limits<Compute>::quiet_NaN());  // gaps stay NaN
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t location = 0; location < s.locations(); ++location)
        for (int64_t d = 0; d < s.depth; ++d) feature(n, location, d) = Compute(normal(random));
    prototypes = draw(s.prototypes * s.depth);
    grad_activations = draw(pairs);
    grad_distances = draw(pairs);
  }

  Compute& feature(int64_t n, int64_t location, int64_t d) {
    return features.at(layout.patch(n, location) + d * layout.channel_stride);
  }

  Compute& prototype(int64_t p, int64_t d) { return prototypes.at(p * shape.depth + d); }

  template <Metric kMetric>
  void forward_with() {
    const NearestOfPair<kMetric, Compute, Compute> result{
        features.data(),
        columns.data(),
        activations.data(),
        distances.data(),
        locations.data(),
        layout,
        shape.prototypes,
        function
    };
    for (size_t i = 0; i < distances.size(); ++i) result(i);
  }

  void forward() {
    const int64_t pairs = shape.images * shape.prototypes;
    activations.assign(pairs, 0);
    distances.assign(pairs, 0);
    locations.assign(pairs, -1);
    columns.assign(prototypes.size(), 0);
    for (int64_t p = 0; p < shape.prototypes; ++p)
      for (int64_t d = 0; d < shape.depth; ++d) columns[d * shape.prototypes + p] = prototype(p, d);
    if (metric == Metric::kSquaredL2) forward_with<Metric::kSquaredL2>();
    if (metric == Metric::kL2) forward_with<Metric::kL2>();
    if (metric == Metric::kDot) forward_with<Metric::kDot>();
    if (metric == Metric::kCosine) forward_with<Metric::kCosine>();
  }

  void backward() {
    backward_by([&](const Backward<Compute, Compute>& common) {
      const FeatureGradient<Compute, Compute> to_features{common, grad_features.data(), layout};
      const int64_t elements = shape.images * shape.locations() * shape.depth;
      for (int64_t i = 0; i < elements; ++i) to_features(i);
      const PrototypeGradient<Compute, Compute> to_prototypes{common, grad_prototypes.data()};
      for (size_t i = 0; i < prototypes.size(); ++i) to_prototypes(i);
    });
  }

  // What every backward pass prepares, then its sums.
  template <typename Sums>
  void backward_by(Sums sums) {
    std::vector<Compute> gradients(distances.size());
    std::vector<Across> pairs(distances.size());
    const DistanceGradient<Compute> distance_gradient{
        grad_activations.data(), grad_distances.data(), distances.data(), gradients.data(), function
    };
    for (size_t i = 0; i < gradients.size(); ++i) distance_gradient(i);
    const PairAcross<Compute, Compute> of_pairs{
        features.data(), prototypes.data(), locations.data(), pairs.data(), layout, shape.prototypes
    };
    for (size_t i = 0; i < pairs.size(); ++i) of_pairs(i);
    const Backward<Compute, Compute> common{
        metric,
        features.data(),
        prototypes.data(),
        distances.data(),
        locations.data(),
        gradients.data(),
        metric == Metric::kCosine ? pairs.data() : nullptr,
        layout,
        shape.images,
        shape.prototypes
    };
    grad_features.assign(features.size(), 0);
    grad_prototypes.assign(prototypes.size(), 0);
    sums(common);
  }

  // The distance, from its definition, in double.
  double distance(int64_t n, int64_t location, int64_t p) {
    double squared = 0, dot = 0, z_squared = 0, p_squared = 0;
    for (int64_t d = 0; d < shape.depth; ++d) {
      const double a = feature(n, location, d), b = prototype(p, d);
      squared += (a - b) * (a - b);
      dot += a * b;
      z_squared += a * a;
      p_squared += b * b;
    }
    if (metric == Metric::kSquaredL2) return squared;
    if (metric == Metric::kL2) return std::sqrt(squared);
    if (metric == Metric::kDot) return -dot;
    const double norms = std::sqrt(z_squared * p_squared);
    return norms == 0 ? 0 : -dot / norms;
  }

  // sum over pairs of grad_activations * activation + grad_distances * distance, places held fixed.
  double loss() {
    double sum = 0;
    for (int64_t n = 0; n < shape.images; ++n)
      for (int64_t p = 0; p < shape.prototypes; ++p) {
        const int64_t pair = n * shape.prototypes + p;
        const double d = distance(n, locations[pair], p);
        const double eps = 1e-4;
        double s = -d;
        if (function.kind == Similarity::kExp) s = std::exp(-d);
        if (function.kind == Similarity::kLog) s = std::log((d + 1) / (d + eps));
        sum += grad_activations[pair] * s + grad_distances[pair] * d;
      }
    return sum;
  }
};

// Prototype p becomes `length` times patch p of image 0, but for a thousandth.
template <typename Compute>
void nearly_parallel(PairsProblem<Compute>& problem, double length) {
  std::mt19937 random(11);
  std::normal_distribution<double> normal(0.0, 1e-3);
  for (int64_t p = 0; p < problem.shape.prototypes; ++p)
    for (int64_t d = 0; d < problem.shape.depth; ++d) {
      const int64_t location = p % problem.shape.locations();
      const double value = problem.feature(0, location, d) + normal(random);
      problem.prototype(p, d) = Compute(length * value);
    }
}

// Gradients of cosine distances by definition, in double.
struct CosineGradients {
  std::vector<double> features, prototypes;

  template <typename Compute>
  explicit CosineGradients(const PairsProblem<Compute>& problem)
      : features(problem.features.size()), prototypes(problem.prototypes.size()) {}

  // Adds those of one pair whose distance has `gradient`.
  template <typename Compute>
  void add(
      PairsProblem<Compute>& problem, int64_t n, int64_t location, int64_t p, double gradient
  ) {
    const FeatureLayout& layout = problem.layout;
    double dot = 0, z_squared = 0, p_squared = 0;
    for (int64_t d = 0; d < layout.depth; ++d) {
      const double a = problem.feature(n, location, d), b = problem.prototype(p, d);
      dot += a * b;
      z_squared += a * a;
      p_squared += b * b;
    }
    const double factor = -gradient / std::sqrt(z_squared * p_squared);
    for (int64_t d = 0; d < layout.depth; ++d) {
      const double a = problem.feature(n, location, d), b = problem.prototype(p, d);
      features[layout.patch(n, location) + d * layout.channel_stride] +=
          factor * (b - dot / z_squared * a);
      prototypes[p * layout.depth + d] += factor * (a - dot / p_squared * b);
    }
  }

  // Every patch and prototype alone, relative to the length of its gradient.
  template <typename Compute>
  void check(const PairsProblem<Compute>& problem) const {
    const Shape& s = problem.shape;
    const FeatureLayout& layout = problem.layout;
    for (int64_t patch = 0; patch < s.images * s.locations(); ++patch) {
      const int64_t first = layout.patch(patch / s.locations(), patch % s.locations());
      check_row(problem.grad_features, features, first, layout.channel_stride, s.depth);
    }
    for (int64_t p = 0; p < s.prototypes; ++p) {
      check_row(problem.grad_prototypes, prototypes, p * s.depth, 1, s.depth);
    }
  }

 private:
  template <typename Compute>
  static void check_row(
      const std::vector<Compute>& got,
      const std::vector<double>& expected,
      int64_t first,
      int64_t stride,
      int64_t depth
  ) {
    double error = 0, length = 0;
    for (int64_t d = 0; d < depth; ++d) {
      const double truth = expected[first + d * stride];
      error += std::pow(got[first + d * stride] - truth, 2);
      length += truth * truth;
    }
    CHECK(std::sqrt(error) <= 1e-6 * std::sqrt(length));
  }
};

template <typename Body>
void for_each_problem(Body body) {
  for (const Shape& shape : kShapes)
    for (const Metric metric : kMetrics)
      for (const Similarity kind : {Similarity::kLog, Similarity::kLinear, Similarity::kExp}) {
        const bool negative = metric == Metric::kDot || metric == Metric::kCosine;
        if (negative && kind != Similarity::kLinear) continue;
        for (const auto layout : {&contiguous_layout, &channels_last_layout, &sliced_layout})
          body(shape, layout(shape), metric, kind);
      }
}

}  // namespace protofast::testing
