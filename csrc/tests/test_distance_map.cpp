// The CPU kernels of distance_map, every instruction set of this machine, against plain loops in
// double. Meant to be run under the address and undefined-behaviour sanitizers as well.

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/distance_map/run.h"
#include "cpu/tables.h"
#include "tests/check.h"
#include "tests/cpu_problem.h"

namespace protofast::testing {
namespace {

// For each image K prototypes, some of them several times, some never.
std::vector<int64_t> some_index(const Shape& shape, int64_t count) {
  std::vector<int64_t> index;
  for (int64_t n = 0; n < shape.images; ++n) {
    for (int64_t k = 0; k < count; ++k) index.push_back((7 * n + 3 * (k / 2)) % shape.prototypes);
  }
  return index;
}

template <typename T, typename Parallel = Serial>
std::vector<T> distance_map(
    Problem<T>& problem,
    const ChosenPrototypes& chosen,
    InstructionSet set,
    Metric metric,
    int64_t threads = 1,
    Parallel run = {}
) {
  const Shape& shape = problem.shape;
  std::vector<T> distances(shape.images * chosen.count * shape.locations);
  distance_map_forward<T>(
      kernels_of<T>(PROTOFAST_TABLE(distance_map, set)),
      problem.map(),
      problem.matrix(),
      chosen,
      metric,
      threads,
      run,
      distances.data()
  );
  return distances;
}

template <typename T>
void check_forward(const Shape& shape, InstructionSet set, Metric metric, unsigned seed) {
  Problem<T> problem(shape, kLayouts[seed % 3], seed);
  std::copy_n(problem.patch(0, 0), shape.depth, problem.prototype(0));
  const std::vector<int64_t> index = some_index(shape, 5);
  for (const ChosenPrototypes chosen :
       {ChosenPrototypes{nullptr, shape.prototypes}, ChosenPrototypes{index.data(), 5}}) {
    const std::vector<T> got = distance_map(problem, chosen, set, metric);
    if (metric == Metric::kSquaredL2 || metric == Metric::kL2) CHECK(got[0] == 0);
    if (seed % 5 == 0) CHECK(distance_map(problem, chosen, set, metric, 3, Threads()) == got);
    const double bound = std::is_same_v<T, float> ? 1e-6 : 1e-14;
    size_t slot = 0;
    for (int64_t n = 0; n < shape.images; ++n) {
      for (int64_t k = 0; k < chosen.count; ++k) {
        for (int64_t l = 0; l < shape.locations; ++l, ++slot) {
          const double* prototype = problem.prototype(chosen.of(n, k));
          const double exact = naive_distance(problem.patch(n, l), prototype, shape.depth, metric);
          CHECK_NEAR(got[slot], exact, bound * std::abs(exact));
        }
      }
    }
  }
}

template <typename T>
struct Gradients {
  std::vector<T> features, prototypes;
  bool operator==(const Gradients& other) const = default;
};

template <typename T, typename Parallel = Serial>
Gradients<T> gradients(
    Problem<T>& problem,
    const ChosenPrototypes& chosen,
    const std::vector<T>& slopes,
    InstructionSet set,
    Metric metric,
    int64_t threads = 1,
    Parallel run = {}
) {
  Problem<T> output(problem.shape, problem.layout, 0);
  const FeatureMap grad_map = output.map();
  Gradients<T> result;
  result.prototypes.resize(problem.prototypes.size());
  const PrototypeMatrix grad_matrix = {
      result.prototypes.data(), Problem<T>::element(), problem.shape.prototypes, problem.shape.depth
  };
  distance_map_gradients<T>(
      kernels_of<T>(PROTOFAST_TABLE(distance_map, set)),
      slopes.data(),
      problem.map(),
      problem.matrix(),
      chosen,
      metric,
      threads,
      run,
      grad_map,
      grad_matrix
  );
  const T* written = static_cast<const T*>(grad_map.data);
  output.for_each(grad_map, [&](int64_t at, double) { result.features.push_back(written[at]); });
  return result;
}

template <typename T>
void check_gradients(const Shape& shape, InstructionSet set, Metric metric, unsigned seed) {
  Problem<T> problem(shape, kLayouts[seed % 3], seed);
  std::copy_n(problem.patch(0, 0), shape.depth, problem.prototype(0));
  const std::vector<int64_t> index = some_index(shape, 5);
  for (const ChosenPrototypes chosen :
       {ChosenPrototypes{nullptr, shape.prototypes}, ChosenPrototypes{index.data(), 5}}) {
    std::vector<T> slopes(shape.images * chosen.count * shape.locations);
    std::mt19937 random(seed);
    for (T& slope : slopes) slope = std::normal_distribution<float>()(random);
    const Gradients<T> got = gradients(problem, chosen, slopes, set, metric);
    if (seed % 5 == 0) CHECK(gradients(problem, chosen, slopes, set, metric, 3, Threads()) == got);

    std::vector<Sum> of_features(got.features.size()), of_prototypes(got.prototypes.size());
    size_t slot = 0;
    for (int64_t n = 0; n < shape.images; ++n) {
      for (int64_t k = 0; k < chosen.count; ++k) {
        for (int64_t l = 0; l < shape.locations; ++l, ++slot) {
          const int64_t row = (n * shape.locations + l) * shape.depth;
          const int64_t p = chosen.of(n, k);
          const double *z = problem.patch(n, l), *q = problem.prototype(p);
          add_naive_gradient(of_features.data() + row, slopes[slot], z, q, shape.depth, metric);
          Sum* of_prototype = of_prototypes.data() + p * shape.depth;
          add_naive_gradient(of_prototype, slopes[slot], q, z, shape.depth, metric);
        }
      }
    }
    check_sums(got.features, of_features);
    check_sums(got.prototypes, of_prototypes);
  }
}

// Every shape with every instruction set; the metrics take turns.
template <typename Check>
void for_every_case(const Check& check) {
  unsigned seed = 0;
  for (const InstructionSet set : supported_instruction_sets()) {
    for (const Shape& shape : awkward_shapes()) {
      check(shape, set, kMetrics[(seed + seed / 12) % 4], seed);
      ++seed;
    }
  }
}

TEST(distances_in_float) { for_every_case(check_forward<float>); }
TEST(distances_in_double) { for_every_case(check_forward<double>); }
TEST(gradients_in_float) { for_every_case(check_gradients<float>); }
TEST(gradients_in_double) { for_every_case(check_gradients<double>); }

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
