// The CUDA kernels of distance_map, run on the CPU index by index, against sums in double.

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "cuda/distance_map/distance_map.cuh"
#include "tests/check.h"
#include "tests/cuda_problem.h"

namespace {

using namespace protofast::testing;

// A map of K chosen prototypes (all of them without an index), its distances and gradients.
template <typename Compute>
struct MapOf : PairsProblem<Compute> {
  using Pairs = PairsProblem<Compute>;
  using Pairs::grad_features, Pairs::grad_prototypes;
  using Pairs::shape, Pairs::layout, Pairs::metric, Pairs::features, Pairs::prototypes;
  std::vector<int64_t> index;
  ChosenPrototypes chosen;
  std::vector<Compute> maps, grad;

  MapOf(const Shape& s, const FeatureLayout& l, Metric m, int64_t count)
      : Pairs(s, l, m, Similarity::kLinear) {
    std::mt19937 random(5);
    chosen = {nullptr, s.prototypes, s.prototypes};
    if (count >= 0) {
      index.resize(s.images * count + 1);  // one more, so that data() is not null for K = 0
      for (int64_t& i : index) i = random() % s.prototypes;
      chosen = {index.data(), count, s.prototypes};
    }
    maps.assign(s.images * chosen.count * s.locations(), -7);
    grad.resize(maps.size());
    std::normal_distribution<double> normal;
    for (Compute& value : grad) value = Compute(normal(random));
  }

  void distances_of_all() {
    const MapDistances<Compute, Compute> result{
        metric, features.data(), prototypes.data(), maps.data(), layout, chosen
    };
    const int64_t count = shape.images * result.groups() * shape.locations();
    for (int64_t i = 0; i < count; ++i) result(i);
  }

  void gradients() {
    std::vector<Across> pairs(maps.size());
    const MapAcross<Compute, Compute> of_pairs{
        features.data(), prototypes.data(), pairs.data(), layout, chosen
    };
    for (size_t i = 0; i < pairs.size(); ++i) of_pairs(i);
    const MapBackward<Compute, Compute> common{
        metric,
        grad.data(),
        features.data(),
        prototypes.data(),
        metric == Metric::kL2 ? maps.data() : nullptr,
        metric == Metric::kCosine ? pairs.data() : nullptr,
        layout,
        chosen,
        shape.images
    };
    grad_features.assign(features.size(), -7);
    grad_prototypes.assign(prototypes.size(), -7);
    const MapFeatureGradient<Compute, Compute> to_features{common, grad_features.data(), layout};
    const int64_t elements = shape.images * shape.depth * shape.locations();
    for (int64_t i = 0; i < elements; ++i) to_features(i);
    const MapPrototypeGradient<Compute, Compute> to_prototypes{common, grad_prototypes.data()};
    for (size_t i = 0; i < prototypes.size(); ++i) to_prototypes(i);
  }

  // sum of grad * distance, by definition.
  double loss() {
    double sum = 0;
    for (int64_t n = 0; n < shape.images; ++n)
      for (int64_t k = 0; k < chosen.count; ++k)
        for (int64_t l = 0; l < shape.locations(); ++l) {
          const int64_t p = chosen(n, k);
          if (!chosen.exists(p)) continue;
          sum += grad[(n * chosen.count + k) * shape.locations() + l] * this->distance(n, l, p);
        }
    return sum;
  }
};

using MapProblem = MapOf<double>;

template <typename Body>
void for_each_map(Body body) {
  for (const Shape& shape : kShapes)
    for (const Metric metric : kMetrics)
      for (const int64_t count : {-1, 0, 1, 6})
        for (const auto layout : {&contiguous_layout, &channels_last_layout, &sliced_layout})
          body(MapProblem(shape, layout(shape), metric, count));
}

TEST(every_distance_is_by_its_definition) {
  for_each_map([](MapProblem problem) {
    problem.distances_of_all();
    const Shape& s = problem.shape;
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t k = 0; k < problem.chosen.count; ++k)
        for (int64_t l = 0; l < s.locations(); ++l) {
          const double expected = problem.distance(n, l, problem.chosen(n, k));
          const double got = problem.maps[(n * problem.chosen.count + k) * s.locations() + l];
          CHECK_NEAR(got, expected, 1e-12 * std::max(1.0, std::abs(expected)));
        }
  });
}

TEST(gradients_agree_with_finite_differences) {
  for_each_map([](MapProblem problem) {
    const Shape& s = problem.shape;
    if (s.images * s.depth * s.locations() > 500) return;  // two losses per number below
    if (problem.metric == Metric::kCosine && s.depth == 1) return;
    problem.distances_of_all();
    problem.gradients();
    const double step = 1e-6;
    const auto check = [&](double& value, double got) {
      const double kept = value;
      value = kept + step;
      const double above = problem.loss();
      value = kept - step;
      const double below = problem.loss();
      value = kept;
      const double expected = (above - below) / (2 * step);
      CHECK_NEAR(got, expected, 1e-5 * std::max(1.0, std::abs(expected)));
    };
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t l = 0; l < s.locations(); ++l)
        for (int64_t d = 0; d < s.depth; ++d) {
          const int64_t at = problem.layout.patch(n, l) + d * problem.layout.channel_stride;
          check(problem.features[at], problem.grad_features[at]);
        }
    for (size_t i = 0; i < problem.prototypes.size(); ++i) {
      check(problem.prototypes[i], problem.grad_prototypes[i]);
    }
  });
}

TEST(gradients_of_cosine_are_exact_where_vectors_are_nearly_parallel) {
  const Shape s{2, 6, 130, 2, 3};
  for (const double length : {1.0, 2.0})
    for (const int64_t count : {-1, 5}) {
      MapOf<float> problem(s, sliced_layout(s), Metric::kCosine, count);
      nearly_parallel(problem, length);
      CosineGradients expected(problem);
      for (int64_t n = 0; n < s.images; ++n)
        for (int64_t k = 0; k < problem.chosen.count; ++k)
          for (int64_t l = 0; l < s.locations(); ++l) {
            // Only the parallel pairs: others would outweigh them.
            const int64_t p = problem.chosen(n, k);
            float& grad = problem.grad[(n * problem.chosen.count + k) * s.locations() + l];
            if (n != 0 || p != l) grad = 0;
            expected.add(problem, n, l, p, grad);
          }
      problem.gradients();
      expected.check(problem);
    }
}

TEST(a_distance_of_zero_and_a_zero_vector_have_no_gradient) {
  const Shape s{1, 2, 4, 1, 2};
  for (const Metric metric : {Metric::kL2, Metric::kCosine}) {
    MapProblem problem(s, contiguous_layout(s), metric, -1);
    for (int64_t d = 0; d < s.depth; ++d) {
      problem.feature(0, 0, d) = metric == Metric::kL2 ? problem.prototype(1, d) : 0;
    }
    problem.distances_of_all();
    CHECK(problem.maps[2] == 0);
    problem.gradients();
    for (const double value : problem.grad_features) CHECK(std::isfinite(value));
    for (const double value : problem.grad_prototypes) CHECK(std::isfinite(value));
  }
}

TEST(an_index_outside_the_prototypes_reads_nothing) {
  const Shape s{2, 3, 5, 2, 3};
  for (const Metric metric : kMetrics) {
    MapProblem problem(s, channels_last_layout(s), metric, 5);
    problem.index[1] = -1;
    problem.index[7] = 1'000'000'000'000;
    problem.distances_of_all();
    for (int64_t l = 0; l < s.locations(); ++l) {
      CHECK(std::isnan(problem.maps[1 * s.locations() + l]));
      CHECK(std::isnan(problem.maps[7 * s.locations() + l]));
      CHECK(!std::isnan(problem.maps[2 * s.locations() + l]));
    }
    problem.gradients();
    for (const double value : problem.grad_features) CHECK(std::isfinite(value));
    for (const double value : problem.grad_prototypes) CHECK(std::isfinite(value));
  }
}

}  // namespace

RUN_TESTS()
