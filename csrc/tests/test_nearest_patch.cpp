// The CPU kernels of nearest_patch, every instruction set of this machine, against plain loops in
// double. Meant to be run under the address and undefined-behaviour sanitizers as well.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/nearest_patch/backward.h"
#include "tests/check.h"
#include "tests/cpu_problem.h"
#include "tests/nearest_patch_search.h"

namespace protofast::testing {
namespace {

const double kInfinity = std::numeric_limits<double>::infinity();
const double kNan = std::numeric_limits<double>::quiet_NaN();

// |d - d*| <= 1e-6 d* at the location found (for dot and cosine: of the norms), which is as good as
// the best to within rounding; |s - s*| <= 1e-6.
template <typename T>
void check_found(Problem<T>& problem, const Found<T>& found, Metric metric) {
  const Shape& shape = problem.shape;
  const double tight = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  for (int64_t n = 0; n < shape.images; ++n) {
    for (int64_t p = 0; p < shape.prototypes; ++p) {
      const int64_t slot = n * shape.prototypes + p, location = found.locations[slot];
      CHECK(location >= 0 && location < shape.locations);
      const auto distance = [&](int64_t l) {
        return naive_distance(problem.patch(n, l), problem.prototype(p), shape.depth, metric);
      };
      double least = kInfinity, norms = 0;
      for (int64_t l = 0; l < shape.locations; ++l) least = std::min(least, distance(l));
      for (int64_t d = 0; d < shape.depth; ++d) {
        const double z = problem.patch(n, location)[d], q = problem.prototype(p)[d];
        norms += z * z + q * q;
      }
      const double here = distance(location);
      const bool signed_metric = metric == Metric::kDot || metric == Metric::kCosine;
      const double scale = metric == Metric::kDot ? norms : (signed_metric ? 1.0 : here);
      CHECK_NEAR(found.distances[slot], here, tight * scale);
      CHECK(here - least <= 10 * tight * (metric == Metric::kCosine ? 1.0 : norms));
      CHECK_NEAR(
          found.activations[slot],
          similarity_at(found.distances[slot], metric),
          signed_metric ? 0 : tight
      );
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
        check_found(problem, search(problem, set, metric), metric);
        ++seed;
      }
    }
  });
}

TEST(awkward_shapes_in_float) { check_awkward_shapes<float>(); }
TEST(awkward_shapes_in_double) { check_awkward_shapes<double>(); }

TEST(a_patch_equal_to_the_prototype_has_distance_zero_and_the_first_one_wins) {
  for_each_instruction_set([](InstructionSet set) {
    for (const int64_t depth : kDepths) {
      Problem<float> problem({3, 33, depth, 49}, Layout::kNchw, 7);
      for (int64_t p = 0; p < 33; ++p) {  // patch 5 + p % 40 of image 1, and again at the end
        const double* patch = problem.patch(1, 5 + p % 40);
        std::copy_n(patch, depth, problem.prototype(p));
      }
      std::copy_n(problem.patch(1, 5), depth, problem.patch(1, 48));
      const Found<float> found = search(problem, set, Metric::kSquaredL2);
      for (int64_t p = 0; p < 33; ++p) {
        CHECK(found.distances[33 + p] == 0.0f);
        CHECK(found.activations[33 + p] == static_cast<float>(std::log(1 / kEps)));
        if (depth > 7) CHECK(found.locations[33 + p] == 5 + p % 40);
      }
    }
  });
}

TEST(the_first_of_equal_distances_wins) {
  for_each_instruction_set([](InstructionSet set) {
    for (const Metric metric : kMetrics) {
      // Small integers: all distances are exact, and many are equal though the patches differ.
      Problem<float> problem({3, 33, 4, 49}, Layout::kChannelsLast, 3);
      for (double& value : problem.features) value = std::floor(3 * value);
      for (double& value : problem.prototypes) value = std::floor(3 * value);
      const Found<float> found = search(problem, set, metric);
      for (int64_t n = 0; n < 3; ++n) {
        for (int64_t p = 0; p < 33; ++p) {
          const auto distance = [&](int64_t l) {
            const double exact =
                naive_distance(problem.patch(n, l), problem.prototype(p), 4, metric);
            return static_cast<float>(exact);
          };
          int64_t first = 0;
          for (int64_t l = 1; l < 49; ++l) first = distance(l) < distance(first) ? l : first;
          if (metric != Metric::kCosine) CHECK(found.locations[n * 33 + p] == first);
        }
      }
      // A constant map: every location is as good, the first one counts.
      std::fill(problem.features.begin(), problem.features.end(), 0.3);
      const Found<float> flat = search(problem, set, metric);
      for (const int64_t location : flat.locations) CHECK(location == 0);
    }
  });
}

TEST(nan_wins_and_stays_in_its_image) {
  for_each_instruction_set([](InstructionSet set) {
    for (const Metric metric : kMetrics) {
      Problem<float> problem({3, 17, 9, 7}, Layout::kNchw, 5);
      const Found<float> before = search(problem, set, metric);
      problem.patch(1, 4)[8] = kNan;
      problem.patch(1, 6)[0] = kNan;
      const Found<float> found = search(problem, set, metric);
      for (int64_t p = 0; p < 17; ++p) {
        CHECK(std::isnan(found.distances[17 + p]) && std::isnan(found.activations[17 + p]));
        CHECK(found.locations[17 + p] == 4);
        for (const int64_t n : {0, 2}) {
          CHECK(found.distances[n * 17 + p] == before.distances[n * 17 + p]);
          CHECK(found.locations[n * 17 + p] == before.locations[n * 17 + p]);
        }
      }
      // A NaN prototype has no distance to anything, and does not disturb the others.
      Problem<float> other({3, 17, 9, 7}, Layout::kNchw, 5);
      other.prototype(2)[3] = kNan;
      const Found<float> rest = search(other, set, metric);
      for (int64_t n = 0; n < 3; ++n) {
        CHECK(std::isnan(rest.distances[n * 17 + 2]) && rest.locations[n * 17 + 2] == 0);
        CHECK(rest.distances[n * 17 + 3] == before.distances[n * 17 + 3]);
      }
    }
  });
}

TEST(infinity_and_overflow) {
  for_each_instruction_set([](InstructionSet set) {
    Problem<float> problem({2, 17, 9, 7}, Layout::kNchw, 5);
    for (int64_t l = 0; l < 7; ++l) problem.patch(0, l)[2] = l == 3 ? 1e30 : kInfinity;
    problem.patch(1, 0)[2] = kInfinity;
    problem.patch(1, 1)[2] = 1e25;
    problem.prototype(4)[2] = 1e25;
    const Found<float> found = search(problem, set, Metric::kSquaredL2);
    for (int64_t p = 0; p < 17; ++p) {  // infinite everywhere: the first location
      CHECK(found.distances[p] == kInfinity && found.activations[p] == 0);
      CHECK(found.locations[p] == 0);
      CHECK(std::isfinite(found.distances[17 + p]));
      if (p != 4) CHECK(found.locations[17 + p] >= 2);
    }
    CHECK(found.locations[17 + 4] == 1);
  });
}

TEST(far_from_zero_the_nearest_patch_is_still_found) {
  for_each_instruction_set([](InstructionSet set) {
    Problem<float> problem({3, 33, 128, 49}, Layout::kNchw, 9);
    for (double& value : problem.features) value = static_cast<float>(value + 100);
    for (double& value : problem.prototypes) value = static_cast<float>(value + 100);
    problem.prototype(7)[0] = 1e6;  // one that would spoil the mean
    const Found<float> found = search(problem, set, Metric::kSquaredL2);
    for (int64_t n = 0; n < 3; ++n) {
      for (int64_t p = 0; p < 33; ++p) {
        const auto distance = [&](int64_t l) {
          const double* prototype = problem.prototype(p);
          return naive_distance(problem.patch(n, l), prototype, 128, Metric::kSquaredL2);
        };
        double least = kInfinity;
        for (int64_t l = 0; l < 49; ++l) least = std::min(least, distance(l));
        CHECK(distance(found.locations[n * 33 + p]) <= least * (1 + 1e-6));
      }
    }
  });
}

void check_bits(InstructionSet set, Metric metric, Shape shape) {
  Problem<float> problem(shape, Layout::kNchw, 11);
  const Found<float> whole = search(problem, set, metric);
  for (const int64_t threads : {2, 3, 40}) {
    CHECK(search(problem, set, metric, threads, Threads()) == whole);
  }
  problem.layout = Layout::kChannelsLast;
  CHECK(search(problem, set, metric) == whole);
  const int64_t numbers = shape.locations * shape.depth;
  for (int64_t n = 0; n < shape.images; ++n) {
    Shape alone = shape;
    alone.images = 1;
    Problem<float> one(alone, Layout::kSliced, 0);
    std::copy_n(problem.features.begin() + n * numbers, numbers, one.features.begin());
    one.prototypes = problem.prototypes;
    const Found<float> found = search(one, set, metric);
    const auto same = [&](const auto& part, const auto& all) {
      return std::equal(part.begin(), part.end(), all.begin() + n * shape.prototypes);
    };
    CHECK(same(found.activations, whole.activations));
    CHECK(same(found.distances, whole.distances));
    CHECK(same(found.locations, whole.locations));
  }
}

TEST(neither_batch_nor_threads_nor_layout_change_a_bit) {
  for_each_instruction_set([](InstructionSet set) {
    for (const Metric metric : kMetrics) check_bits(set, metric, {17, 65, 127, 50});
    check_bits(set, Metric::kSquaredL2, {3, 40, 1100, 70});  // in steps of the depth
    check_bits(set, Metric::kSquaredL2, {2, 300, 33, 49});   // one chunk, panels divided
  });
}

TEST(bfloat16_is_read_exactly) {
  for_each_instruction_set([](InstructionSet set) {
    Problem<float> problem({2, 17, 33, 7}, Layout::kNchw, 13);
    std::vector<uint16_t> bits(problem.features.size());
    const FeatureMap map = problem.map();
    problem.for_each(map, [&](int64_t at, double value) { bits[at] = bfloat16_bits(value); });
    for (double& value : problem.features) {
      const uint32_t wide = static_cast<uint32_t>(bfloat16_bits(value)) << 16;
      float rounded;
      std::memcpy(&rounded, &wide, sizeof(wide));
      value = rounded;
    }
    const Found<float> expected = search(problem, set, Metric::kSquaredL2);
    FeatureMap narrow = map;
    narrow.data = bits.data();
    narrow.element = Element::kBFloat16;
    Found<float> found = expected;
    std::fill(found.distances.begin(), found.distances.end(), 0.0f);
    const NearestPatchKernels<float>& kernels = nearest_patch_table(set).of_float;
    nearest_patch_forward<float>(
        kernels,
        narrow,
        PrototypePack<float>(kernels, problem.matrix(), Metric::kSquaredL2),
        similarity_for(Metric::kSquaredL2),
        1,
        Serial(),
        {found.activations.data(), found.distances.data(), found.locations.data()}
    );
    CHECK(found == expected);
  });
}

template <typename T>
struct Gradients {
  std::vector<T> features, prototypes;
  bool operator==(const Gradients& other) const = default;
};

template <typename T, typename Parallel = Serial>
Gradients<T> gradients(
    Problem<T>& problem,
    const Found<T>& found,
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
  nearest_patch_gradients<T>(
      kernels_of<T>(nearest_patch_table(set)),
      {nullptr, slopes.data()},
      problem.map(),
      problem.matrix(),
      found.distances.data(),
      found.locations.data(),
      metric,
      similarity_for(metric),
      threads,
      run,
      &grad_map,
      &grad_matrix
  );
  const T* written = static_cast<const T*>(grad_map.data);
  output.for_each(grad_map, [&](int64_t at, double) { result.features.push_back(written[at]); });
  return result;
}

template <typename T>
void check_gradients(const Shape& shape, InstructionSet set, Metric metric, unsigned seed) {
  Problem<T> problem(shape, kLayouts[seed % 3], seed);
  if (metric == Metric::kL2 || metric == Metric::kCosine) {  // a distance 0 and a zero vector
    std::copy_n(problem.patch(0, 0), shape.depth, problem.prototype(0));
    std::fill_n(problem.patch(0, 0), metric == Metric::kCosine ? shape.depth : 0, 0.0);
  }
  const Found<T> found = search(problem, set, metric);
  std::vector<T> slopes(found.distances.size());
  std::mt19937 random(seed);
  for (T& slope : slopes) slope = std::normal_distribution<float>()(random);
  const Gradients<T> got = gradients(problem, found, slopes, set, metric);
  std::vector<Sum> of_features(problem.features.size()), of_prototypes(got.prototypes.size());
  for (int64_t n = 0; n < shape.images; ++n) {
    for (int64_t p = 0; p < shape.prototypes; ++p) {
      const int64_t slot = n * shape.prototypes + p;
      const int64_t row = n * shape.locations + found.locations[slot];
      const double* z = problem.features.data() + row * shape.depth;
      const double* q = problem.prototype(p);
      const double slope = slopes[slot];
      add_naive_gradient(of_features.data() + row * shape.depth, slope, z, q, shape.depth, metric);
      add_naive_gradient(of_prototypes.data() + p * shape.depth, slope, q, z, shape.depth, metric);
    }
  }
  check_sums(got.features, of_features);
  check_sums(got.prototypes, of_prototypes);
  if (seed % 5 == 0) CHECK(gradients(problem, found, slopes, set, metric, 3, Threads()) == got);
}

TEST(gradients) {
  for_each_instruction_set([](InstructionSet set) {
    unsigned seed = 0;
    for (const Shape& shape : awkward_shapes()) {
      for (const Metric metric : kMetrics) {
        check_gradients<float>(shape, set, metric, seed);
        check_gradients<double>(shape, set, metric, seed);
        ++seed;
      }
    }
  });
}

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
