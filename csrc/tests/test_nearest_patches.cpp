// The CPU kernels of nearest_patches, every instruction set of this machine, against plain loops in
// double.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/nearest_patches/run.h"
#include "tests/check.h"
#include "tests/cpu_problem.h"
#include "tests/nearest_patch_search.h"

namespace protofast::testing {
namespace {

template <typename T, typename Parallel = Serial>
Found<T> search_nearest(
    Problem<T>& problem,
    InstructionSet set,
    Metric metric,
    int64_t k,
    int64_t threads = 1,
    Parallel run = {}
) {
  const int64_t numbers = problem.shape.images * problem.shape.prototypes * k;
  Found<T> found = {
      std::vector<T>(numbers), std::vector<T>(numbers), std::vector<int64_t>(numbers)
  };
  nearest_patches_forward<T>(
      kernels_of<T>(PROTOFAST_TABLE(nearest_patch, set)),
      kernels_of<T>(PROTOFAST_TABLE(nearest_patches, set)),
      problem.map(),
      problem.matrix(),
      k,
      metric,
      similarity_for(metric),
      threads,
      run,
      {found.activations.data(), found.distances.data(), found.locations.data()}
  );
  return found;
}

// The distances of pair (n, p) to all patches, in double.
template <typename T>
std::vector<double> all_distances(Problem<T>& problem, int64_t n, int64_t p, Metric metric) {
  std::vector<double> distances(problem.shape.locations);
  for (int64_t l = 0; l < problem.shape.locations; ++l) {
    distances[l] =
        naive_distance(problem.patch(n, l), problem.prototype(p), problem.shape.depth, metric);
  }
  return distances;
}

// |z|^2 + |p|^2 with the largest z.
template <typename T>
double largest_norms(Problem<T>& problem, int64_t n, int64_t p) {
  const int64_t depth = problem.shape.depth;
  const auto squared = [&](const double* row) {
    return std::inner_product(row, row + depth, row, 0.0);
  };
  double largest = 0;
  for (int64_t l = 0; l < problem.shape.locations; ++l) {
    largest = std::max(largest, squared(problem.patch(n, l)));
  }
  return largest + squared(problem.prototype(p));
}

// Each location once, in order, with the distance it has; the i-th as near as the i-th can be.
template <typename T>
void check_nearest(Problem<T>& problem, const Found<T>& found, Metric metric, int64_t k) {
  const double tight = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  const bool is_signed = metric == Metric::kDot || metric == Metric::kCosine;
  for (int64_t n = 0; n < problem.shape.images; ++n) {
    for (int64_t p = 0; p < problem.shape.prototypes; ++p) {
      const int64_t slot = (n * problem.shape.prototypes + p) * k;
      const std::vector<double> distances = all_distances(problem, n, p, metric);
      std::vector<double> sorted = distances;
      std::sort(sorted.begin(), sorted.end());
      std::vector<int64_t> where(&found.locations[slot], &found.locations[slot] + k);
      const double norms = metric == Metric::kCosine ? 1.0 : largest_norms(problem, n, p);
      for (int64_t i = 0; i < k; ++i) {
        CHECK(where[i] >= 0 && where[i] < problem.shape.locations);
        const double here = distances[where[i]];
        CHECK_NEAR(found.distances[slot + i], here, tight * (is_signed ? norms : here));
        CHECK(here - sorted[i] <= 10 * tight * norms);
        if (i > 0) CHECK(found.distances[slot + i - 1] <= found.distances[slot + i]);
      }
      std::sort(where.begin(), where.end());
      CHECK(std::adjacent_find(where.begin(), where.end()) == where.end());
    }
  }
}

template <typename T>
void check_awkward_shapes() {
  for_each_instruction_set([](InstructionSet set) {
    unsigned seed = 0;
    for (const Shape& shape : awkward_shapes()) {
      for (const Metric metric : kMetrics) {
        Problem<T> problem(shape, kLayouts[seed % 3], seed);
        const int64_t k = std::min<int64_t>(1 + seed % kMostPatches, shape.locations);
        const Found<T> found = search_nearest(problem, set, metric, k);
        check_nearest(problem, found, metric, k);
        CHECK(search_nearest(problem, set, metric, k, 3, Threads()) == found);
        if (k == 1) CHECK(search(problem, set, metric) == found);
        ++seed;
      }
    }
  });
}

TEST(awkward_shapes_in_float) { check_awkward_shapes<float>(); }
TEST(awkward_shapes_in_double) { check_awkward_shapes<double>(); }

TEST(equal_distances_go_by_location) {
  for_each_instruction_set([](InstructionSet set) {
    for (const Metric metric : {Metric::kSquaredL2, Metric::kL2, Metric::kDot}) {
      // Small integers: all distances are exact, and many are equal.
      Problem<float> problem({3, 33, 4, 49}, Layout::kChannelsLast, 3);
      for (double& value : problem.features) value = std::floor(3 * value);
      for (double& value : problem.prototypes) value = std::floor(3 * value);
      for (int64_t k = 1; k <= kMostPatches; ++k) {
        const Found<float> found = search_nearest(problem, set, metric, k);
        for (int64_t pair = 0; pair < 3 * 33; ++pair) {
          const std::vector<double> distances =
              all_distances(problem, pair / 33, pair % 33, metric);
          std::vector<int64_t> order(49);
          std::iota(order.begin(), order.end(), 0);
          std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            return distances[a] < distances[b];
          });
          CHECK(std::equal(order.begin(), order.begin() + k, &found.locations[pair * k]));
        }
      }
    }
  });
}

TEST(nan_comes_first_and_infinity_last) {
  for_each_instruction_set([](InstructionSet set) {
    Problem<float> problem({3, 17, 9, 4}, Layout::kNchw, 5);
    const Found<float> before = search_nearest(problem, set, Metric::kSquaredL2, 4);
    problem.patch(1, 1)[8] = std::numeric_limits<double>::infinity();
    problem.patch(1, 2)[8] = std::numeric_limits<double>::quiet_NaN();
    problem.patch(1, 3)[0] = std::numeric_limits<double>::quiet_NaN();
    const Found<float> found = search_nearest(problem, set, Metric::kSquaredL2, 4);
    const std::vector<int64_t> expected = {2, 3, 0, 1};
    for (int64_t p = 0; p < 17; ++p) {
      const int64_t slot = (17 + p) * 4;
      CHECK(std::equal(expected.begin(), expected.end(), &found.locations[slot]));
      CHECK(std::isnan(found.distances[slot + 1]) && std::isnan(found.activations[slot + 1]));
      CHECK(std::isinf(found.distances[slot + 3]) && found.activations[slot + 3] == 0);
      for (const int64_t other : {p * 4, (34 + p) * 4}) {
        CHECK(found.locations[other] == before.locations[other]);
        CHECK(found.distances[other + 3] == before.distances[other + 3]);
      }
    }
  });
}

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
