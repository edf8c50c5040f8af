// The plain CUDA kernels of nearest_patch, run on the CPU index by index: every thread's work is a
// function of its index alone, so what is checked here is all but the launch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/check.h"
#include "tests/cuda_problem.h"

namespace {

using namespace protofast::testing;

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
    PairsProblem<float> problem(s, layout, m, kind);
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
      PairsProblem<float> problem(s, channels_last_layout(s), metric, Similarity::kLog);
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
    PairsProblem<float> problem(s, contiguous_layout(s), metric, Similarity::kLinear);
    for (float& value : problem.features) value = 0.37f;
    problem.forward();
    for (const int64_t location : problem.locations) CHECK(location == 0);
  }
}

TEST(nan_wins) {
  const Shape s{1, 3, 6, 3, 3};
  for (const Metric metric : kMetrics) {
    PairsProblem<float> problem(s, contiguous_layout(s), metric, Similarity::kLinear);
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
  PairsProblem<float> problem(s, contiguous_layout(s), Metric::kSquaredL2, Similarity::kLog);
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
  PairsProblem<float> problem(s, contiguous_layout(s), Metric::kCosine, Similarity::kLinear);
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
    PairsProblem<double> problem(s, layout, m, kind);
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

// As after projection, and after projection onto patches of another length.
TEST(backward_of_cosine_is_exact_where_vectors_are_nearly_parallel) {
  const Shape s{2, 6, 130, 2, 3};
  for (const double length : {1.0, 2.0}) {
    PairsProblem<float> problem(s, sliced_layout(s), Metric::kCosine, Similarity::kLinear);
    nearly_parallel(problem, length);
    problem.forward();
    // Only the parallel pairs, those of image 0: others would outweigh them.
    problem.grad_activations.assign(problem.grad_activations.size(), 0.0f);
    std::fill(problem.grad_distances.begin() + s.prototypes, problem.grad_distances.end(), 0.0f);
    problem.backward();
    CosineGradients expected(problem);
    for (int64_t p = 0; p < s.prototypes; ++p) {
      CHECK(problem.locations[p] == p);
      expected.add(problem, 0, p, p, problem.grad_distances[p]);
    }
    expected.check(problem);
  }
}

TEST(equal_vectors_have_no_gradient_of_cosine) {
  const Shape s{1, 3, 130, 1, 3};
  PairsProblem<float> problem(s, channels_last_layout(s), Metric::kCosine, Similarity::kLinear);
  for (int64_t p = 0; p < s.prototypes; ++p)
    for (int64_t d = 0; d < s.depth; ++d) problem.prototype(p, d) = problem.feature(0, p, d);
  problem.forward();
  for (int64_t p = 0; p < s.prototypes; ++p) CHECK(problem.locations[p] == p);
  problem.backward();
  for (const float value : problem.grad_features) CHECK(value == 0.0f);
  for (const float value : problem.grad_prototypes) CHECK(value == 0.0f);
}

TEST(backward_reads_nothing_outside_for_a_foreign_location) {
  const Shape s{2, 3, 4, 2, 2};
  PairsProblem<float> problem(s, contiguous_layout(s), Metric::kSquaredL2, Similarity::kLinear);
  problem.forward();
  problem.locations.assign(problem.locations.size(), 1'000'000'000);
  problem.backward();
  for (const float value : problem.grad_features) CHECK(value == 0.0f);
  for (const float value : problem.grad_prototypes) CHECK(value == 0.0f);
}

}  // namespace

RUN_TESTS()
