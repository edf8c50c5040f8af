// Prototypes of h x w patches in the CPU kernels, every instruction set of this machine: windows
// read from the map give, bit for bit, what the same kernels give for windows unfolded into rows by
// plain loops. Meant to be run under the address and undefined-behaviour sanitizers as well.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/distance_map/run.h"
#include "cpu/dot_and_cosine/run.h"
#include "cpu/nearest_patch/backward.h"
#include "cpu/nearest_patches/run.h"
#include "tests/check.h"
#include "tests/cpu_problem.h"
#include "tests/nearest_patch_search.h"

namespace protofast::testing {
namespace {

struct WindowShape {
  int64_t images, prototypes, depth, height, width;  // N, P, D, H, W
  Window window;
};

const WindowShape kWindowShapes[] = {
    {2, 33, 5, 4, 5, {2, 2, 5}},
    {3, 17, 16, 4, 5, {4, 5, 5}},  // the whole grid: one location
    {2, 15, 1, 3, 4, {2, 3, 4}},   // D = 1: no order to change
    {2, 17, 9, 6, 1, {3, 1, 1}},
    {2, 17, 9, 1, 6, {1, 4, 6}},
    {2, 5, 3, 4, 5, {1, 3, 5}},
    {2, 5, 3, 4, 5, {3, 1, 5}},
    {3, 1, 4, 3, 3, {1, 1, 3}},       // single patches
    {7, 20, 65, 7, 7, {3, 2, 7}},     // several chunks, several segments of the depth
    {2, 16, 40, 12, 11, {2, 2, 11}},  // more than one block to an image
};

// Problems with the same numbers: `single` has the patches [N, H * W, D], `unfolded` the windows
// [N, L, h * w * D] and the prototypes [P, h * w * D].
template <typename T>
class WindowProblem {
 public:
  WindowProblem(const WindowShape& shape, Layout layout, unsigned seed)
      : shape(shape),
        patches(shape.window.height * shape.window.width),
        rows(shape.height - shape.window.height + 1),
        columns(shape.width - shape.window.width + 1),
        single({shape.images, 0, shape.depth, shape.height * shape.width}, layout, seed),
        unfolded(
            {shape.images, shape.prototypes, shape.depth * patches, rows * columns},
            layout,
            seed + 1
        ),
        stored_prototypes_(shape.prototypes * shape.depth * patches) {
    unfold();
  }

  // After changes of single.features.
  void unfold() {
    for_each_part([&](int64_t n, int64_t l, int64_t i, int64_t patch) {
      std::copy_n(single.patch(n, patch), shape.depth, unfolded.patch(n, l) + i * shape.depth);
    });
  }

  // Calls body(image, window, patch i of the window, which patch of the image that is).
  template <typename Body>
  void for_each_part(const Body& body) const {
    for (int64_t n = 0; n < shape.images; ++n) {
      for (int64_t l = 0; l < rows * columns; ++l) {
        for (int64_t i = 0; i < patches; ++i) {
          const int64_t row = l / columns + i / shape.window.width;
          body(n, l, i, row * shape.width + l % columns + i % shape.window.width);
        }
      }
    }
  }

  FeatureMap map() { return with_window(single.map()); }
  FeatureMap with_window(FeatureMap map) const {
    map.depth *= patches;
    map.locations = rows * columns;
    map.window = shape.window;
    return map;
  }

  // Prototypes [P, D, h, w].
  PrototypeMatrix matrix() {
    for_each_prototype_number([&](int64_t stored, int64_t row) {
      stored_prototypes_.data()[stored] = static_cast<T>(unfolded.prototypes[row]);
    });
    return matrix(stored_prototypes_.data());
  }
  PrototypeMatrix matrix(T* data) const {
    return {data, Problem<T>::element(), shape.prototypes, shape.depth * patches, patches};
  }

  // Calls body(place in [P, D, h, w], place in [P, h, w, D]).
  template <typename Body>
  void for_each_prototype_number(const Body& body) const {
    int64_t stored = 0;
    for (int64_t p = 0; p < shape.prototypes; ++p) {
      for (int64_t d = 0; d < shape.depth; ++d) {
        for (int64_t i = 0; i < patches; ++i) {
          body(stored++, (p * patches + i) * shape.depth + d);
        }
      }
    }
  }

  WindowShape shape;
  int64_t patches;        // h * w
  int64_t rows, columns;  // of locations
  Problem<T> single;
  Problem<T> unfolded;

 private:
  Unaligned<T> stored_prototypes_;
};

// Every shape and layout with every instruction set; the metrics take turns.
template <typename T, typename Check>
void for_every_problem(const Check& check) {
  for_each_instruction_set([&](InstructionSet set) {
    unsigned seed = 0;
    for (const WindowShape& shape : kWindowShapes) {
      for (const Layout layout : kLayouts) {
        WindowProblem<T> problem(shape, layout, seed);
        check(problem, set, kMetrics[seed % 4]);
        ++seed;
      }
    }
  });
}

template <typename T>
void check_search(WindowProblem<T>& problem, InstructionSet set, Metric metric) {
  const Found<T> expected = search(problem.unfolded, set, metric);
  CHECK(search<T>(problem.map(), problem.matrix(), set, metric) == expected);
  CHECK(search<T>(problem.map(), problem.matrix(), set, metric, 3, Threads()) == expected);
}

TEST(the_nearest_windows_in_float) { for_every_problem<float>(check_search<float>); }
TEST(the_nearest_windows_in_double) { for_every_problem<double>(check_search<double>); }

TEST(a_window_equal_to_the_prototype_has_distance_zero_and_the_first_one_wins) {
  for_each_instruction_set([](InstructionSet set) {
    WindowProblem<float> problem({2, 20, 33, 6, 5, {2, 2, 5}}, Layout::kNchw, 3);
    for (int64_t l = 0; l < 10; ++l) {  // the lower half of the image repeats the upper one
      std::copy_n(problem.single.patch(1, l), 33, problem.single.patch(1, 15 + l));
    }
    problem.unfold();
    for (int64_t p = 0; p < 20; ++p) {
      std::copy_n(problem.unfolded.patch(1, 12 + p % 4), 4 * 33, problem.unfolded.prototype(p));
    }
    const Found<float> found = search<float>(problem.map(), problem.matrix(), set, kMetrics[0]);
    for (int64_t p = 0; p < 20; ++p) {
      CHECK(found.distances[20 + p] == 0);
      CHECK_NEAR(found.activations[20 + p], std::log(1 / kEps), 1e-6);
      CHECK(found.locations[20 + p] == p % 4);
    }
  });
}

TEST(nan_is_in_the_windows_that_hold_it) {
  for_each_instruction_set([](InstructionSet set) {
    for (const Metric metric : kMetrics) {
      WindowProblem<float> problem({3, 17, 9, 4, 5, {2, 3, 5}}, Layout::kNchw, 5);
      const Found<float> before = search<float>(problem.map(), problem.matrix(), set, metric);
      problem.single.patch(1, 2 * 5 + 4)[8] = std::numeric_limits<double>::quiet_NaN();
      const Found<float> found = search<float>(problem.map(), problem.matrix(), set, metric);
      for (int64_t p = 0; p < 17; ++p) {
        CHECK(std::isnan(found.distances[17 + p]) && std::isnan(found.activations[17 + p]));
        CHECK(found.locations[17 + p] == 1 * 3 + 2);  // the first window that reaches row 2
        CHECK(found.distances[34 + p] == before.distances[34 + p]);
      }
    }
  });
}

template <typename T>
std::vector<T> random_numbers(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<T> numbers(count);
  for (T& number : numbers) number = std::normal_distribution<float>()(random);
  return numbers;
}

// What an operator's backward writes: run(features, prototypes).
template <typename T>
struct Gradients {
  std::vector<T> features;    // [N, locations, D] of the map written to
  std::vector<T> prototypes;  // as written
  bool operator==(const Gradients& other) const = default;
};

// The gradients of unfolded windows, folded: a patch's windows in their order, in T.
template <typename T>
Gradients<T> folded(const WindowProblem<T>& problem, const Gradients<T>& unfolded) {
  const WindowShape& shape = problem.shape;
  const int64_t cells = shape.height * shape.width, windows = problem.rows * problem.columns;
  Gradients<T> result = {
      std::vector<T>(shape.images * cells * shape.depth), std::vector<T>(unfolded.prototypes.size())
  };
  problem.for_each_part([&](int64_t n, int64_t l, int64_t i, int64_t patch) {
    for (int64_t d = 0; d < shape.depth; ++d) {
      const int64_t row = (n * windows + l) * problem.patches + i;
      const T part = unfolded.features[row * shape.depth + d];
      result.features[(n * cells + patch) * shape.depth + d] += part;
    }
  });
  problem.for_each_prototype_number([&](int64_t stored, int64_t row) {
    result.prototypes[stored] = unfolded.prototypes[row];
  });
  return result;
}

// Gradients by run(features, prototypes, gradient of features, gradient of prototypes), of the
// windows as they lie and of the unfolded ones.
template <typename T, typename Run>
void check_gradients(WindowProblem<T>& problem, const Run& run) {
  const auto written = [](Problem<T>& output, const FeatureMap& map) {
    std::vector<T> numbers;
    const T* data = static_cast<const T*>(map.data);
    output.for_each(map, [&](int64_t at, double) { numbers.push_back(data[at]); });
    return numbers;
  };
  Problem<T> of_single(problem.single.shape, problem.single.layout, 0);
  Problem<T> of_unfolded(problem.unfolded.shape, problem.unfolded.layout, 0);
  Gradients<T> got, unfolded;
  got.prototypes.resize(problem.unfolded.prototypes.size());
  unfolded.prototypes.resize(problem.unfolded.prototypes.size());

  const FeatureMap plain = of_single.map();
  const FeatureMap map = problem.with_window(plain);
  run(problem.map(), problem.matrix(), map, problem.matrix(got.prototypes.data()));
  got.features = written(of_single, plain);

  const FeatureMap rows = of_unfolded.map();
  PrototypeMatrix matrix = problem.unfolded.matrix();
  const PrototypeMatrix features_as_they_are = matrix;
  matrix.data = unfolded.prototypes.data();
  run(problem.unfolded.map(), features_as_they_are, rows, matrix);
  unfolded.features = written(of_unfolded, rows);
  CHECK(got == folded(problem, unfolded));
}

template <typename T>
void check_nearest_patch_gradients(WindowProblem<T>& problem, InstructionSet set, Metric metric) {
  const Found<T> found = search(problem.unfolded, set, metric);
  const std::vector<T> slopes = random_numbers<T>(found.distances.size(), 3);
  check_gradients(
      problem,
      [&](const FeatureMap& features,
          const PrototypeMatrix& prototypes,
          const FeatureMap& grad_features,
          const PrototypeMatrix& grad_prototypes) {
        nearest_patch_gradients<T>(
            kernels_of<T>(nearest_patch_table(set)),
            {nullptr, slopes.data()},
            features,
            prototypes,
            found.distances.data(),
            found.locations.data(),
            metric,
            similarity_for(metric),
            3,
            Threads(),
            &grad_features,
            &grad_prototypes
        );
      }
  );
}

TEST(nearest_patch_gradients_in_float) {
  for_every_problem<float>(check_nearest_patch_gradients<float>);
}
TEST(nearest_patch_gradients_in_double) {
  for_every_problem<double>(check_nearest_patch_gradients<double>);
}

template <typename T>
void check_distance_map(WindowProblem<T>& problem, InstructionSet set, Metric metric) {
  const DistanceMapKernels<T>& kernels = kernels_of<T>(PROTOFAST_TABLE(distance_map, set));
  const Shape& shape = problem.unfolded.shape;
  const ChosenPrototypes all = {nullptr, shape.prototypes};
  const auto distances = [&](const FeatureMap& features, const PrototypeMatrix& prototypes) {
    std::vector<T> found(shape.images * shape.prototypes * shape.locations);
    distance_map_forward<T>(kernels, features, prototypes, all, metric, 3, Threads(), found.data());
    return found;
  };
  const std::vector<T> expected = distances(problem.unfolded.map(), problem.unfolded.matrix());
  CHECK(distances(problem.map(), problem.matrix()) == expected);
  const std::vector<T> slopes = random_numbers<T>(expected.size(), 3);
  check_gradients(
      problem,
      [&](const FeatureMap& features,
          const PrototypeMatrix& prototypes,
          const FeatureMap& grad_features,
          const PrototypeMatrix& grad_prototypes) {
        distance_map_gradients<T>(
            kernels,
            slopes.data(),
            features,
            prototypes,
            all,
            metric,
            3,
            Threads(),
            grad_features,
            grad_prototypes
        );
      }
  );
}

TEST(distance_map_in_float) { for_every_problem<float>(check_distance_map<float>); }
TEST(distance_map_in_double) { for_every_problem<double>(check_distance_map<double>); }

void check_related(WindowProblem<float>& problem, InstructionSet set, Metric metric) {
  const NearestPatchKernels<float>& kernels = PROTOFAST_TABLE(nearest_patch, set).of_float;
  const Shape& shape = problem.unfolded.shape;
  const int64_t pairs = shape.images * shape.prototypes, k = std::min<int64_t>(3, shape.locations);
  const auto nearest = [&](const FeatureMap& features, const PrototypeMatrix& prototypes) {
    Found<float> found = {
        std::vector<float>(pairs * k),
        std::vector<float>(pairs * k),
        std::vector<int64_t>(pairs * k)
    };
    nearest_patches_forward<float>(
        kernels,
        PROTOFAST_TABLE(nearest_patches, set).of_float,
        features,
        prototypes,
        k,
        metric,
        similarity_for(metric),
        2,
        Threads(),
        {found.activations.data(), found.distances.data(), found.locations.data()}
    );
    return found;
  };
  const auto both = [&](const FeatureMap& features, const PrototypeMatrix& prototypes) {
    Found<float> found = {std::vector<float>(pairs), std::vector<float>(pairs), {}};
    found.locations.resize(2 * pairs);
    dot_and_cosine_forward<float>(
        kernels,
        PROTOFAST_TABLE(dot_and_cosine, set).of_float,
        features,
        prototypes,
        2,
        Threads(),
        {found.activations.data(),
         found.locations.data(),
         found.distances.data(),
         found.locations.data() + pairs}
    );
    return found;
  };
  const FeatureMap map = problem.unfolded.map();
  CHECK(nearest(problem.map(), problem.matrix()) == nearest(map, problem.unfolded.matrix()));
  CHECK(both(problem.map(), problem.matrix()) == both(map, problem.unfolded.matrix()));
}

TEST(several_nearest_windows_and_two_metrics) { for_every_problem<float>(check_related); }

// Half-precision gradients are added up in T and rounded once.
TEST(what_windows_share_is_rounded_once) {
  for_each_instruction_set([](InstructionSet set) {
    const PatchAccess<float>& access = PROTOFAST_TABLE(nearest_patch, set).of_float.access;
    uint16_t written[3] = {};  // a row of 3 patches of depth 1
    const FeatureMap map = {
        written, Element::kBFloat16, 1, 2, 2, 3, 3, 1, Window{1, 2, 3}  // windows of 1 x 2
    };
    CHECK(access.row_memory(map) == 2 * 2 + 3);
    // The patch in the middle gets 1 + 2^-8 and 2^-8: bfloat16 has no 1 + 2^-8, but the sum.
    float memory[7] = {2.0f, 1.00390625f, 0.00390625f, 3.0f, NAN, NAN, NAN};
    access.write(memory, 0, map);
    CHECK(written[0] == bfloat16_bits(2.0f));
    CHECK(written[1] == bfloat16_bits(1.0078125f));
    CHECK(written[2] == bfloat16_bits(3.0f));
    float rows[7];
    const PatchRows<float> read = access.read(map, 0, rows);
    CHECK(read.stride == 2 && read.rows[0] == 2.0f && read.rows[3] == 3.0f);
    CHECK(read.rows[1] == 1.0078125f && read.rows[2] == 1.0078125f);
  });
}

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
