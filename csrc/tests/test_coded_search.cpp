// The search by integers finds, bit for bit, what the search by floats finds: where patches are far
// apart, where they differ by less than a code, and where numbers are small, large or zero.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "tests/check.h"
#include "tests/cpu_problem.h"
#include "tests/nearest_patch_search.h"

namespace protofast::testing {
namespace {

constexpr Metric kL2Metrics[] = {Metric::kSquaredL2, Metric::kL2};

bool has_codes() {
  const auto& sets = supported_instruction_sets();
  const bool has = std::find(sets.begin(), sets.end(), InstructionSet::kAvx512Vnni) != sets.end();
  if (!has) std::printf("  not run: this processor has no AVX-512 VNNI\n");
  return has;
}

void check_same(Problem<float>& problem) {
  for (const Metric metric : kL2Metrics) {
    const Found<float> floats = search(problem, InstructionSet::kAvx512, metric);
    CHECK(search(problem, InstructionSet::kAvx512Vnni, metric) == floats);
    CHECK(search(problem, InstructionSet::kAvx512Vnni, metric, 3, Threads()) == floats);
  }
}

// Patches that differ from the first of their image by so much of what they differed.
void draw_together(Problem<float>& problem, double spread) {
  for (int64_t n = 0; n < problem.shape.images; ++n) {
    for (int64_t l = 1; l < problem.shape.locations; ++l) {
      for (int64_t d = 0; d < problem.shape.depth; ++d) {
        const double first = problem.patch(n, 0)[d];
        problem.patch(n, l)[d] = first + spread * (problem.patch(n, l)[d] - first);
      }
    }
  }
}

TEST(patches_near_to_each_other) {
  if (!has_codes()) return;
  unsigned seed = 0;
  for (const int64_t depth : {1, 2, 3, 15, 16, 17, 33, 128, 129, 255, 257, 300, 600}) {
    for (const double spread : {1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-6, 0.0}) {
      Problem<float> problem({3, 70, depth, 1 + 16 * (seed % 4)}, kLayouts[seed % 3], seed);
      draw_together(problem, spread);
      check_same(problem);
      ++seed;
    }
  }
}

TEST(awkward_shapes) {
  if (!has_codes()) return;
  unsigned seed = 0;
  for (const Shape& shape : awkward_shapes()) {
    Problem<float> problem(shape, kLayouts[seed % 3], seed);
    check_same(problem);
    ++seed;
  }
}

TEST(numbers_of_any_size) {
  if (!has_codes()) return;
  for (const int features : {-75, -61, -59, -40, -10, 0, 10, 40, 58, 70}) {
    for (const int prototypes : {-75, -61, -59, -40, -10, 0, 10, 40, 58, 70}) {
      Problem<float> problem({2, 35, 19, 23}, Layout::kNchw, 11);
      for (double& value : problem.features) value = std::ldexp(value - 0.5, features);
      for (double& value : problem.prototypes) value = std::ldexp(value - 0.5, prototypes);
      check_same(problem);
    }
  }
}

TEST(patches_of_different_sizes_zeros_and_equals) {
  if (!has_codes()) return;
  for (const int64_t depth : {1, 7, 64, 131}) {
    Problem<float> problem({2, 40, depth, 29}, Layout::kChannelsLast, 5);
    for (int64_t l = 0; l < 29; ++l) {
      for (int64_t d = 0; d < depth; ++d) {
        double& value = problem.patch(0, l)[d];
        value = l % 5 == 4 ? 0 : std::ldexp(value - 0.5, static_cast<int>(4 * (l % 14)) - 28);
      }
    }
    std::fill_n(problem.prototype(3), depth, 0.0);
    for (int64_t p = 4; p < 30; ++p)
      std::copy_n(problem.patch(p % 2, p % 29), depth, problem.prototype(p));
    check_same(problem);
  }
}

// One channel as large as all others together: its code is the longest there is.
TEST(one_channel_of_many) {
  if (!has_codes()) return;
  for (const int64_t depth : {2, 127, 520}) {
    Problem<float> problem({2, 33, depth, 49}, Layout::kNchw, 9);
    for (int64_t n = 0; n < 2; ++n) {
      for (int64_t l = 0; l < 49; ++l) {
        std::fill_n(problem.patch(n, l), depth, 0.0);
        problem.patch(n, l)[depth - 1 - l % 2] = l % 3 - 1 + 1e-4 * l;
      }
    }
    for (int64_t p = 0; p < 33; ++p) {
      std::fill_n(problem.prototype(p), depth - 1, 0.0);
      problem.prototype(p)[depth - 1] = p - 16;
    }
    check_same(problem);
  }
}

// Two patches of opposite signs, of which the prototype, taken for 0, makes the longer one nearer.
TEST(a_prototype_too_short_for_a_code) {
  if (!has_codes()) return;
  Problem<float> problem({1, 2, 1, 2}, Layout::kNchw, 1);
  problem.features = {0x1.0a3d71p-40, -0x1.0a3d52p-40};
  for (int i = -64; i <= 64; ++i) {
    const double length = std::exp2(-60 + i / 16.0);
    for (int step = -40; step <= 40; ++step) {
      problem.features[1] = -problem.features[0] + 2 * length + step * 0x1p-63;
      problem.prototypes = {length * (1 - 0x1p-24), -length * (1 - 0x1p-24)};
      check_same(problem);
    }
  }
}

#if defined(__x86_64__)
// Squares that are flushed to zero are missing from a norm: codes are longer than it says.
TEST(subnormal_numbers_flushed_to_zero) {
  if (!has_codes()) return;
  const unsigned state = _mm_getcsr();
  _mm_setcsr(state | 0x8040);
  for (const int64_t depth : {64, 1000, 7982, 10973}) {
    for (const int exponent : {-40, -41, -42, -43, -44}) {
      Problem<float> problem({1, 2, depth, 2}, Layout::kChannelsLast, 1);
      for (int64_t d = 0; d < depth; ++d) {
        const double sign = d % 3 == 0 ? 1 : -1;
        problem.patch(0, 0)[d] = sign * 0.999 * 0x1p-63;
        problem.patch(0, 1)[d] = d < 16 ? sign * 0.95 * depth / 16 * 0x1p-63 : 0;
        problem.prototype(0)[d] = std::ldexp(sign, exponent) / std::sqrt(depth);
        problem.prototype(1)[d] = -problem.prototype(0)[d];
      }
      check_same(problem);
    }
  }
  _mm_setcsr(state);
}
#endif

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
