// Prototypes packed once for many calls: the same bits as packed anew for each, and never used
// after a change.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/check.h"
#include "tests/cpu_problem.h"
#include "tests/nearest_patch_search.h"

namespace protofast::testing {
namespace {

template <typename T>
struct FrozenSearch {
  Found<T> found;
  bool current;
};

template <typename T>
std::vector<T> freeze(Problem<T>& problem, InstructionSet set, Metric metric) {
  const PrototypeMatrix matrix = problem.matrix();
  std::vector<T> frozen(PrototypePack<T>::frozen_size(matrix));
  const NearestPatchKernels<T>& kernels = kernels_of<T>(nearest_patch_table(set));
  PrototypePack<T>::freeze(kernels, matrix, metric, 3, Threads(), frozen.data());
  CHECK(PrototypePack<T>::fits(kernels, matrix, metric, frozen.data(), frozen.size()));
  return frozen;
}

template <typename T>
FrozenSearch<T> search_frozen(
    Problem<T>& problem,
    const std::vector<T>& frozen,
    InstructionSet set,
    Metric metric,
    int64_t threads
) {
  const int64_t pairs = problem.shape.images * problem.shape.prototypes;
  const NearestPatchKernels<T>& kernels = kernels_of<T>(nearest_patch_table(set));
  Found<T> found = {std::vector<T>(pairs), std::vector<T>(pairs), std::vector<int64_t>(pairs)};
  const bool current = nearest_patch_forward<T>(
      kernels,
      problem.map(),
      PrototypePack<T>(kernels, problem.matrix(), metric, frozen.data()),
      similarity_for(metric),
      threads,
      Threads(),
      {found.activations.data(), found.distances.data(), found.locations.data()}
  );
  return {found, current};
}

template <typename T>
void check_same_bits() {
  for_each_instruction_set([](InstructionSet set) {
    unsigned seed = 0;
    for (const Shape& shape : awkward_shapes()) {
      for (const Metric metric : kMetrics) {
        Problem<T> problem(shape, kLayouts[seed % 3], seed);
        const std::vector<T> frozen = freeze(problem, set, metric);
        const FrozenSearch<T> result = search_frozen(problem, frozen, set, metric, 1 + seed % 4);
        CHECK(result.current);
        CHECK(result.found == search(problem, set, metric));
        ++seed;
      }
    }
  });
}

TEST(frozen_float_prototypes_give_the_same_bits) { check_same_bits<float>(); }
TEST(frozen_double_prototypes_give_the_same_bits) { check_same_bits<double>(); }

TEST(any_change_of_a_prototype_is_seen) {
  for_each_instruction_set([](InstructionSet set) {
    Problem<float> problem({3, 70, 33, 7}, Layout::kNchw, 3);
    problem.prototype(5)[1] = std::numeric_limits<double>::quiet_NaN();
    const std::vector<float> frozen = freeze(problem, set, Metric::kSquaredL2);
    for (const int64_t threads : {1, 2, 5}) {
      CHECK(search_frozen(problem, frozen, set, Metric::kSquaredL2, threads).current);
      for (int64_t p = 0; p < 70; ++p) {
        double& number = problem.prototype(p)[p == 5 ? 1 : p % 33];  // the NaN as well
        const double before = number;
        number = p == 5 ? 0 : std::nextafter(static_cast<float>(number), 2.0f);
        CHECK(!search_frozen(problem, frozen, set, Metric::kSquaredL2, threads).current);
        number = before;
      }
    }
  });
}

TEST(a_pack_made_for_something_else_does_not_fit) {
  for_each_instruction_set([](InstructionSet set) {
    Problem<float> problem({1, 24, 16, 4}, Layout::kNchw, 3);
    const std::vector<float> frozen = freeze(problem, set, Metric::kDot);
    const auto fits = [&](InstructionSet other, Shape shape, Metric metric, int64_t size) {
      Problem<float> asked(shape, Layout::kNchw, 3);
      const NearestPatchKernels<float>& kernels = nearest_patch_table(other).of_float;
      return PrototypePack<float>::fits(kernels, asked.matrix(), metric, frozen.data(), size);
    };
    const int64_t size = frozen.size();
    CHECK(fits(set, problem.shape, Metric::kDot, size));
    CHECK(!fits(set, problem.shape, Metric::kCosine, size));
    CHECK(!fits(set, problem.shape, Metric::kDot, size - 1));
    CHECK(!fits(set, {1, 25, 16, 4}, Metric::kDot, size));
    for (const InstructionSet other : supported_instruction_sets()) {
      CHECK(fits(other, problem.shape, Metric::kDot, size) == (other == set));
    }
    const std::vector<float> empty(size);
    CHECK(!PrototypePack<float>::fits(
        nearest_patch_table(set).of_float, problem.matrix(), Metric::kDot, empty.data(), size
    ));
  });
}

// Several workers may need the same panel at the same time.
TEST(panels_packed_late_share_no_memory) {
  for_each_instruction_set([](InstructionSet set) {
    Problem<float> problem({1, 70, 9, 4}, Layout::kNchw, 4);
    const NearestPatchKernels<float>& kernels = nearest_patch_table(set).of_float;
    const PrototypePack<float> pack(kernels, problem.matrix(), Metric::kSquaredL2);
    std::vector<float> first(pack.late_numbers(kernels)), second(first.size(), NAN);
    const PackedPrototypes<float> one = pack.pack_panel(kernels, 1, first.data());
    const std::vector<float> norms(one.norms, one.norms + kernels.panel_lanes);
    std::fill(first.begin(), first.end(), -1.0f);
    const PackedPrototypes<float> other = pack.pack_panel(kernels, 1, second.data());
    CHECK(std::vector<float>(other.norms, other.norms + kernels.panel_lanes) == norms);
    CHECK(first == std::vector<float>(first.size(), -1.0f));
  });
}

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
