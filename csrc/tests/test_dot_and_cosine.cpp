// The CPU kernels of dot_and_cosine, every instruction set of this machine: the bits of two
// searches by nearest_patch, which has tests of its own.

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/dot_and_cosine/run.h"
#include "tests/check.h"
#include "tests/cpu_problem.h"
#include "tests/nearest_patch_search.h"

namespace protofast::testing {
namespace {

template <typename T>
bool same(const std::vector<T>& got, const std::vector<T>& expected) {  // NaN equal to NaN
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool both_nan = got[i] != got[i] && expected[i] != expected[i];
    if (!both_nan && got[i] != expected[i]) return false;
  }
  return got.size() == expected.size();
}

template <typename T>
void check_bits(Problem<T>& problem, InstructionSet set, int64_t threads) {
  const int64_t pairs = problem.shape.images * problem.shape.prototypes;
  std::vector<T> dots(pairs), cosines(pairs);
  std::vector<int64_t> dot_locations(pairs), cosine_locations(pairs);
  dot_and_cosine_forward<T>(
      kernels_of<T>(PROTOFAST_TABLE(nearest_patch, set)),
      kernels_of<T>(PROTOFAST_TABLE(dot_and_cosine, set)),
      problem.map(),
      problem.matrix(),
      threads,
      Threads(),
      {dots.data(), dot_locations.data(), cosines.data(), cosine_locations.data()}
  );
  const Found<T> by_dot = search(problem, set, Metric::kDot);
  const Found<T> by_cosine = search(problem, set, Metric::kCosine);
  CHECK(same(dots, by_dot.activations));
  CHECK(same(cosines, by_cosine.activations));
  CHECK(dot_locations == by_dot.locations);
  CHECK(cosine_locations == by_cosine.locations);
}

template <typename T>
void check_awkward_shapes() {
  for_each_instruction_set([](InstructionSet set) {
    unsigned seed = 0;
    for (const Shape& shape : awkward_shapes()) {
      for (const Layout layout : kLayouts) {
        Problem<T> problem(shape, layout, seed);
        check_bits(problem, set, 1 + seed % 4);
        ++seed;
      }
    }
  });
}

TEST(awkward_shapes_in_float) { check_awkward_shapes<float>(); }
TEST(awkward_shapes_in_double) { check_awkward_shapes<double>(); }

TEST(ugly_numbers) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for_each_instruction_set([&](InstructionSet set) {
    for (const double number : {nan, infinity, -infinity, 1e30, 1e-30, 0.0}) {
      Problem<float> problem({4, 19, 20, 9}, Layout::kNchw, 5);
      problem.patch(2, 5)[3] = number;
      for (int64_t d = 0; d < 20; ++d) problem.patch(3, 1)[d] = number;
      for (int64_t d = 0; d < 20; ++d) problem.prototype(7)[d] = number;
      problem.prototype(4)[0] = number;
      check_bits(problem, set, 2);
    }
    // Constant maps: every patch but the first repeats it.
    Problem<float> flat({2, 19, 20, 9}, Layout::kNchw, 5);
    std::fill(flat.features.begin(), flat.features.end(), 0.3);
    check_bits(flat, set, 1);
  });
}

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
