// The CPU kernels of nearest_patch_within, with and without a first look in integers: the bits of
// nearest_patch, which has tests of its own, for exactly the pairs within the limits.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "cpu/nearest_patch_within/run.h"
#include "tests/check.h"
#include "tests/cpu_problem.h"
#include "tests/nearest_patch_search.h"

namespace protofast::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// The limit of prototype p: the distance of some image, or none, or all, or nothing.
template <typename T>
std::vector<double> some_limits(const Found<T>& all, const Shape& shape) {
  std::vector<double> limits(shape.prototypes);
  for (int64_t p = 0; p < shape.prototypes; ++p) {
    const int64_t image = p % shape.images;
    limits[p] = all.distances[image * shape.prototypes + p];
    if (p % 16 == 5) limits[p] = std::nextafter(limits[p], -1.0);
    if (p % 16 == 9) limits[p] = kInfinity;
    if (p % 16 == 11) limits[p] = kNan;
    if (p % 16 == 13) limits[p] = -1;
    if (p % 16 == 15) limits[p] = 0;
  }
  return limits;
}

template <typename T>
bool same(T a, T b) {
  return a == b || (a != a && b != b);
}

template <typename T>
void check_same(const NearPairs<T>& found, const Found<T>& all, const std::vector<double>& limits) {
  const int64_t prototypes = static_cast<int64_t>(limits.size());
  for (size_t n = 0; n < found.size(); ++n) {
    size_t next = 0;
    for (int64_t p = 0; p < prototypes; ++p) {
      const size_t pair = n * prototypes + p;
      const T distance = all.distances[pair];
      if (!(distance <= limits[p]) && std::isfinite(distance)) continue;
      const bool here = next < found[n].size() && found[n][next].prototype == p;
      CHECK(here);
      if (!here) return;
      CHECK(same(found[n][next].distance, distance));
      CHECK(found[n][next].location == all.locations[pair]);
      ++next;
    }
    CHECK(next == found[n].size());
  }
}

// As the operator does it, and without ever giving the first look up.
template <typename T>
void check_pairs(Problem<T>& problem, InstructionSet set, Metric metric, int64_t threads) {
  const Found<T> all = search(problem, set, metric);
  const std::vector<double> limits = some_limits(all, problem.shape);
  const CodeKernels<T>* codes = code_kernels_for<T>(set);
  for (const int64_t rarely : {kRarelyLooked, int64_t{0}}) {
    if (rarely == 0 && codes == nullptr) continue;
    const NearPairs<T> found = nearest_patch_within_forward<T>(
        kernels_of<T>(PROTOFAST_TABLE(nearest_patch, set)),
        codes,
        problem.map(),
        problem.matrix(),
        metric,
        limits.data(),
        threads,
        Threads(),
        rarely
    );
    check_same(found, all, limits);
  }
}

template <typename T>
void check_awkward_shapes() {
  for_each_instruction_set([](InstructionSet set) {
    unsigned seed = 0;
    for (const Shape& shape : awkward_shapes()) {
      for (const Layout layout : kLayouts) {
        Problem<T> problem(shape, layout, seed);
        check_pairs(problem, set, kMetrics[seed % 4], 1 + seed % 3);
        check_pairs(problem, set, Metric::kSquaredL2, 2);
        ++seed;
      }
    }
  });
}

TEST(awkward_shapes_in_float) { check_awkward_shapes<float>(); }
TEST(awkward_shapes_in_double) { check_awkward_shapes<double>(); }

TEST(ugly_numbers) {
  for_each_instruction_set([](InstructionSet set) {
    for (const double number : {kNan, kInfinity, -kInfinity, 1e30, -1e18, 1e-30, 1e-42, 0.0}) {
      for (const Metric metric : {Metric::kSquaredL2, Metric::kL2}) {
        Problem<float> problem({4, 19, 20, 9}, Layout::kNchw, 5);
        problem.patch(2, 5)[3] = number;
        for (int64_t d = 0; d < 20; ++d) problem.patch(3, 1)[d] = number;
        check_pairs(problem, set, metric, 2);
        for (int64_t d = 0; d < 20; ++d) problem.prototype(7)[d] = number;
        problem.prototype(4)[0] = number;
        check_pairs(problem, set, metric, 2);
      }
    }
  });
}

// All numbers scaled and moved: by far, by little, to where floats are subnormal.
TEST(scales_and_offsets) {
  for_each_instruction_set([](InstructionSet set) {
    for (const double scale : {1.0, 1e-8, 1e-20, 1e-43, 1e8, 1e15, 1e18, 1e25}) {
      for (const double offset : {0.0, 100.0, -3.0, 1e6}) {
        for (const double of_prototypes : {1.0, 1e-6, 1e6}) {  // prototypes of another size
          Problem<float> problem({5, 40, 37, 12}, Layout::kNchw, 7);
          for (double& value : problem.features) value = scale * (value + offset);
          for (double& value : problem.prototypes) value = scale * (of_prototypes * value + offset);
          check_pairs(problem, set, Metric::kSquaredL2, 1);
        }
      }
    }
  });
}

TEST(equal_and_coarse_numbers) {
  for_each_instruction_set([](InstructionSet set) {
    // Constant maps, projected prototypes, prototypes all alike; many ties.
    Problem<float> flat({3, 19, 20, 9}, Layout::kNchw, 5);
    std::fill(flat.features.begin(), flat.features.end(), 0.3);
    check_pairs(flat, set, Metric::kSquaredL2, 1);
    std::fill(flat.prototypes.begin(), flat.prototypes.end(), 0.3);
    check_pairs(flat, set, Metric::kSquaredL2, 1);
    Problem<float> coarse({9, 70, 6, 25}, Layout::kNchw, 6);
    for (double& value : coarse.features) value = std::floor(3 * value);
    for (double& value : coarse.prototypes) value = std::floor(3 * value);
    check_pairs(coarse, set, Metric::kSquaredL2, 1);
    Problem<float> projected({4, 36, 64, 9}, Layout::kNchw, 6);
    for (int64_t p = 0; p < 36; ++p) {
      std::copy_n(projected.patch(p % 4, p / 4), 64, projected.prototype(p));
    }
    check_pairs(projected, set, Metric::kSquaredL2, 2);
  });
}

// Numbers of any size, channels and prototypes of very different sizes, projected prototypes.
TEST(random_sizes) {
  for_each_instruction_set([](InstructionSet set) {
    std::mt19937 random(1);
    const auto below = [&](int64_t count) { return static_cast<int64_t>(random() % count); };
    for (int round = 0; round < 150; ++round) {
      const Shape shape = {1 + below(6), 1 + below(70), 1 + below(140), 1 + below(60)};
      Problem<float> problem(shape, Layout::kChannelsLast, random());
      const double exponents[] = {0, 0, 3, 8};
      const double spread = exponents[below(4)], offset = below(3) == 0 ? 100.0 : 0.0;
      for (int64_t d = 0; d < shape.depth; ++d) {
        const double size = std::pow(10.0, spread * (below(1000) / 1000.0 - 0.5));
        for (int64_t i = d; i < int64_t(problem.features.size()); i += shape.depth) {
          problem.features[i] = size * (problem.features[i] + offset);
        }
        for (int64_t i = d; i < int64_t(problem.prototypes.size()); i += shape.depth) {
          problem.prototypes[i] = size * (problem.prototypes[i] + offset);
        }
      }
      for (int64_t p = 0; p < shape.prototypes; p += 2) {
        const double* patch = problem.patch(p % shape.images, p % shape.locations);
        std::copy_n(patch, shape.depth, problem.prototype(p));
      }
      check_pairs(problem, set, round % 3 == 0 ? Metric::kL2 : Metric::kSquaredL2, 1);
    }
  });
}

// Of ordinary features the first look leaves hardly more than what is within the limits.
TEST(hardly_anything_is_looked_at) {
  const InstructionSet set = supported_instruction_sets().front();
  const CodeKernels<float>* codes = code_kernels_for<float>(set);
  if (codes == nullptr) return;
  const NearestPatchKernels<float>& nearest =
      kernels_of<float>(PROTOFAST_TABLE(nearest_patch, set));
  Problem<float> problem({8, 320, 128, 49}, Layout::kNchw, 8);
  const Found<float> all = search(problem, set, Metric::kSquaredL2);
  std::vector<double> limits(320);
  for (int64_t p = 0; p < 320; ++p) {
    double least = kInfinity;
    for (int64_t n = 0; n < 8; ++n) least = std::min<double>(least, all.distances[n * 320 + p]);
    limits[p] = least;
  }
  PrototypePack<float> pack(nearest, problem.matrix(), Metric::kSquaredL2);
  const float largest =
      codes->find_largest(pack.prototypes().rows, pack.prototypes().centre, 320, 128);
  const PrototypeCodes<float> coded(*codes, pack.prototypes(), limits.data(), largest, 1, Serial());
  const FeatureMap map = problem.map();
  ImageCodes<float> workspace(nearest.access, map);
  int64_t looked = 0, found = 0;
  for (int64_t n = 0; n < 8; ++n) {
    const CodedImage<float>& image = workspace.code(nearest, *codes, coded.prototypes(), map, n);
    CHECK(image.usable);
    for (int64_t panel = 0; panel < coded.panels(); ++panel) {
      NearPair<float> pairs[kCodeLanes];
      found += codes->search(coded.prototypes(), image, panel, pairs, &looked);
    }
  }
  CHECK(found == 320);
  CHECK(looked < 3 * 320);  // of 8 * 49 * 320 distances
}

// Two threads, three images. The first image needs too many looks, so the third is skipped; the
// second, which began before that, needs none and ends after it.
std::atomic<int> begun{0};

int64_t many_looks_then_none(
    const CodedPrototypes<float>& prototypes,
    const CodedImage<float>& image,
    int64_t panel,
    NearPair<float>* found,
    int64_t* looked
) {
  const CodeKernels<float>* codes = code_kernels_for<float>(supported_instruction_sets().front());
  const int turn = begun++;
  int64_t ignored = 0;
  const int64_t count = codes->search(prototypes, image, panel, found, &ignored);
  if (turn == 0) {
    while (begun < 2) std::this_thread::yield();
    *looked += prototypes.count * image.locations / 7;  // 2.3 of 16 parts
  }
  if (turn == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  return count;
}

TEST(an_image_that_was_skipped_is_searched_by_products) {
  const InstructionSet set = supported_instruction_sets().front();
  const CodeKernels<float>* codes = code_kernels_for<float>(set);
  if (codes == nullptr) return;
  CodeKernels<float> slow = *codes;
  slow.search = many_looks_then_none;
  Problem<float> problem({3, kCodeLanes, 20, 49}, Layout::kNchw, 5);
  const std::vector<double> limits(kCodeLanes, kInfinity);
  const NearPairs<float> found = nearest_patch_within_forward<float>(
      kernels_of<float>(PROTOFAST_TABLE(nearest_patch, set)),
      &slow,
      problem.map(),
      problem.matrix(),
      Metric::kSquaredL2,
      limits.data(),
      2,
      Threads()
  );
  check_same(found, search(problem, set, Metric::kSquaredL2), limits);
}

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
