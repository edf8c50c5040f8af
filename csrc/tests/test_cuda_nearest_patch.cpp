// The CUDA kernels of nearest_patch, run on the CPU index by index: every thread's work is a
// function of its index alone, so what is checked here is all but the launch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "cuda/nearest_patch/nearest_patch.cuh"
#include "tests/check.h"

namespace {

using namespace protofast::cuda;

struct Shape {
  int64_t images, prototypes, depth, height, width;
  int64_t locations() const { return height * width; }
};

const Shape kShapes[] = {
    {1, 1, 1, 1, 1}, {2, 3, 5, 1, 1}, {3, 7, 17, 2, 3}, {2, 5, 64, 7, 7}, {1, 9, 33, 3, 5}
};
const Metric kMetrics[] = {Metric::kSquaredL2, Metric::kL2, Metric::kDot, Metric::kCosine};

FeatureLayout contiguous_layout(const Shape& s) {
  return {s.depth, s.width, s.locations(), s.depth * s.locations(), s.locations(), s.width, 1};
}

FeatureLayout channels_last_layout(const Shape& s) {
  return {s.depth, s.width, s.locations(), s.depth * s.locations(), 1, s.width * s.depth, s.depth};
}

// Rows and columns with gaps, as a slice of a larger tensor has them.
FeatureLayout sliced_layout(const Shape& s) {
  const int64_t row = 2 * s.width + 1;
  const int64_t channel = row * (s.height + 1);
  return {s.depth, s.width, s.locations(), channel * s.depth + 3, channel, row, 2};
}

int64_t extent(const Shape& s, const FeatureLayout& layout) {
  return layout.patch(s.images - 1, s.locations() - 1) + (s.depth - 1) * layout.channel_stride + 1;
}

template <typename Compute>
SimilarityFunction<Compute> similarity(Similarity kind) {
  const double eps = 1e-4;
  return {kind, Compute(eps), Compute(1 - eps), Compute(std::log(1 / eps))};
}

// One problem: random numbers, features in `layout`, outputs of forward and backward.
template <typename Compute>
struct Problem {
  Shape shape;
  FeatureLayout layout;
  Metric metric;
  SimilarityFunction<Compute> function;
  std::vector<Compute> features, prototypes, columns;
  std::vector<Compute> activations, distances;
  std::vector<int64_t> locations;
  std::vector<Compute> grad_activations, grad_distances, grad_features, grad_prototypes;

  Problem(const Shape& s, const FeatureLayout& l, Metric m, Similarity kind)
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
    const int64_t patches = shape.images * shape.locations();
    std::vector<Compute> gradients(distances.size()), patch_norms(patches);
    std::vector<Compute> prototype_norms(shape.prototypes);
    const DistanceGradient<Compute> distance_gradient{
        grad_activations.data(), grad_distances.data(), distances.data(), gradients.data(), function
    };
    for (size_t i = 0; i < gradients.size(); ++i) distance_gradient(i);
    const PatchNorm<Compute, Compute> patch_norm{features.data(), patch_norms.data(), layout};
    for (int64_t i = 0; i < patches; ++i) patch_norm(i);
    const PrototypeNorm<Compute> norm{prototypes.data(), prototype_norms.data(), shape.depth};
    for (int64_t i = 0; i < shape.prototypes; ++i) norm(i);
    const bool cosine = metric == Metric::kCosine;
    const Backward<Compute, Compute> common{
        metric,
        features.data(),
        prototypes.data(),
        distances.data(),
        locations.data(),
        gradients.data(),
        cosine ? patch_norms.data() : nullptr,
        cosine ? prototype_norms.data() : nullptr,
        layout,
        shape.images,
        shape.prototypes
    };
    grad_features.assign(features.size(), 0);
    const FeatureGradient<Compute, Compute> to_features{common, grad_features.data(), layout};
    for (int64_t i = 0; i < patches * shape.depth; ++i) to_features(i);
    grad_prototypes.assign(prototypes.size(), 0);
    const PrototypeGradient<Compute, Compute> to_prototypes{common, grad_prototypes.data()};
    for (size_t i = 0; i < prototypes.size(); ++i) to_prototypes(i);
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

TEST(indices_cover_every_element_once) {
  for (const Shape& shape : kShapes) {
    for (const auto make : {&contiguous_layout, &channels_last_layout}) {
      const FeatureLayout layout = make(shape);
      std::vector<int> visits(shape.images * shape.depth * shape.locations());
      for (size_t i = 0; i < visits.size(); ++i) {
        const Element at = split_element(i, layout);
        ++visits.at(layout.patch(at.image, at.location) + at.channel * layout.channel_stride);
      }
      CHECK(std::all_of(visits.begin(), visits.end(), [](int count) { return count == 1; }));
    }
  }
}

TEST(indices_beyond_32_bits) {
  // 256 images x 43,000 prototypes x 196 locations, and features of 2^33 elements.
  const int64_t pairs = int64_t{256} * 43'000'000;
  const Pair last = split_pair(pairs - 1, 43'000'000);
  CHECK(last.image == 255 && last.prototype == 42'999'999);
  const FeatureLayout layout = contiguous_layout({1 << 15, 1, 512, 32, 32});
  CHECK(layout.patch((1 << 15) - 1, 1023) == (int64_t{(1 << 15) - 1} * 512) * 1024 + 1023);
  const Element at = split_element((int64_t{1} << 34) - 1, layout);
  CHECK(at.image == (1 << 15) - 1 && at.location == 1023 && at.channel == 511);
}

TEST(forward_finds_the_nearest_patch) {
  for_each_problem([](const Shape& s, const FeatureLayout& layout, Metric m, Similarity kind) {
    Problem<float> problem(s, layout, m, kind);
    problem.forward();
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t p = 0; p < s.prototypes; ++p) {
        const int64_t pair = n * s.prototypes + p;
        double least = problem.distance(n, 0, p);
        for (int64_t l = 1; l < s.locations(); ++l)
          least = std::min(least, problem.distance(n, l, p));
        const double got = problem.distances[pair];
        CHECK_NEAR(got, least, 1e-6 * std::max(1.0, std::abs(least)));
        CHECK_NEAR(problem.distance(n, problem.locations[pair], p), got, 1e-5 * s.depth);
        const double eps = 1e-4;
        double activation = -got;
        if (kind == Similarity::kExp) activation = std::exp(-got);
        if (kind == Similarity::kLog) activation = std::log((got + 1) / (got + eps));
        CHECK_NEAR(
            problem.activations[pair], activation, 1e-6 * std::max(1.0, std::abs(activation))
        );
      }
  });
}

TEST(first_location_wins_ties_and_equal_patches_are_at_zero) {
  for (const Shape& s : kShapes)
    for (const Metric metric : {Metric::kSquaredL2, Metric::kL2}) {
      Problem<float> problem(s, channels_last_layout(s), metric, Similarity::kLog);
      const int64_t first = s.locations() / 2;
      for (int64_t location = first; location < s.locations(); ++location)
        for (int64_t d = 0; d < s.depth; ++d)
          problem.feature(s.images - 1, location, d) = problem.prototype(0, d);
      problem.forward();
      const int64_t pair = (s.images - 1) * s.prototypes;
      CHECK(problem.locations[pair] == first);
      CHECK(problem.distances[pair] == 0.0f);
      CHECK(problem.activations[pair] == float(std::log(1 / 1e-4)));
      problem.grad_distances.assign(problem.grad_distances.size(), 1.0f);
      problem.backward();
      for (int64_t d = 0; d < s.depth; ++d) CHECK(!std::isnan(problem.grad_prototypes[d]));
    }
}

TEST(a_constant_map_has_its_minimum_first) {
  const Shape s{2, 4, 19, 5, 5};
  for (const Metric metric : kMetrics) {
    Problem<float> problem(s, contiguous_layout(s), metric, Similarity::kLinear);
    for (float& value : problem.features) value = 0.37f;
    problem.forward();
    for (const int64_t location : problem.locations) CHECK(location == 0);
  }
}

TEST(nan_wins) {
  const Shape s{1, 3, 6, 3, 3};
  for (const Metric metric : kMetrics) {
    Problem<float> problem(s, contiguous_layout(s), metric, Similarity::kLinear);
    problem.feature(0, 8, 2) = std::nanf("");
    problem.feature(0, 4, 5) = std::nanf("");
    problem.forward();
    for (int64_t p = 0; p < s.prototypes; ++p) {
      CHECK(std::isnan(problem.distances[p]) && std::isnan(problem.activations[p]));
      CHECK(problem.locations[p] == 4);
    }
  }
}

TEST(infinities_keep_a_location) {
  const Shape s{1, 2, 3, 2, 2};
  Problem<float> problem(s, contiguous_layout(s), Metric::kSquaredL2, Similarity::kLog);
  for (float& value : problem.features) value = std::numeric_limits<float>::infinity();
  problem.forward();
  for (int64_t p = 0; p < s.prototypes; ++p) {
    CHECK(std::isinf(problem.distances[p]));
    CHECK(problem.locations[p] == 0);
    CHECK(problem.activations[p] == 0.0f);
  }
}

TEST(zero_vectors_have_cosine_zero_and_no_gradient) {
  const Shape s{1, 2, 4, 1, 2};
  Problem<float> problem(s, contiguous_layout(s), Metric::kCosine, Similarity::kLinear);
  for (int64_t d = 0; d < s.depth; ++d) problem.prototype(0, d) = 0;
  problem.forward();
  CHECK(problem.distances[0] == 0.0f);
  problem.backward();
  for (int64_t d = 0; d < s.depth; ++d) CHECK(problem.grad_prototypes[d] == 0.0f);
  for (const float value : problem.grad_features) CHECK(!std::isnan(value));
}

TEST(backward_agrees_with_finite_differences) {
  for_each_problem([](const Shape& s, const FeatureLayout& layout, Metric m, Similarity kind) {
    if (s.images * s.depth * s.locations() > 400) return;  // one loss per number below
    Problem<double> problem(s, layout, m, kind);
    problem.forward();
    problem.backward();
    const double step = 1e-6;
    const auto slope = [&](double& value) {
      const double kept = value;
      value = kept + step;
      const double above = problem.loss();
      value = kept - step;
      const double below = problem.loss();
      value = kept;
      return (above - below) / (2 * step);
    };
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t l = 0; l < s.locations(); ++l)
        for (int64_t d = 0; d < s.depth; ++d) {
          const double expected = slope(problem.feature(n, l, d));
          const double got = problem.grad_features[layout.patch(n, l) + d * layout.channel_stride];
          CHECK_NEAR(got, expected, 1e-5 * std::max(1.0, std::abs(expected)));
        }
    for (size_t i = 0; i < problem.prototypes.size(); ++i) {
      const double expected = slope(problem.prototypes[i]);
      CHECK_NEAR(problem.grad_prototypes[i], expected, 1e-5 * std::max(1.0, std::abs(expected)));
    }
  });
}

TEST(backward_reads_nothing_outside_for_a_foreign_location) {
  const Shape s{2, 3, 4, 2, 2};
  Problem<float> problem(s, contiguous_layout(s), Metric::kSquaredL2, Similarity::kLinear);
  problem.forward();
  problem.locations.assign(problem.locations.size(), 1'000'000'000);
  problem.backward();
  for (const float value : problem.grad_features) CHECK(value == 0.0f);
  for (const float value : problem.grad_prototypes) CHECK(value == 0.0f);
}

}  // namespace

RUN_TESTS()
