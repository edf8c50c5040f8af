// The search of nearest_patch as the C++ tests call it.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/nearest_patch/forward.h"
#include "cpu/nearest_patch/table.h"
#include "tests/cpu_problem.h"

namespace protofast::testing {

constexpr double kEps = 1e-4;

inline SimilarityFunction similarity_for(Metric metric) {
  const bool log = metric == Metric::kSquaredL2 || metric == Metric::kL2;
  return {log ? Similarity::kLog : Similarity::kLinear, kEps, std::log(1 / kEps)};
}

inline double similarity_at(double distance, Metric metric) {
  if (similarity_for(metric).kind == Similarity::kLinear) return -distance;
  return std::log((distance + 1) / (distance + kEps));
}

template <typename T>
struct Found {
  std::vector<T> activations, distances;
  std::vector<int64_t> locations;
  bool operator==(const Found& other) const = default;
};

template <typename T, typename Parallel = Serial>
Found<T> search(
    const FeatureMap& map,
    const PrototypeMatrix& matrix,
    InstructionSet set,
    Metric metric,
    int64_t threads = 1,
    Parallel run = {}
) {
  const int64_t pairs = map.images * matrix.count;
  Found<T> found = {std::vector<T>(pairs), std::vector<T>(pairs), std::vector<int64_t>(pairs)};
  const NearestPatchKernels<T>& kernels = kernels_of<T>(nearest_patch_table(set));
  PrototypePack<T> pack(kernels, matrix, metric);
  nearest_patch_forward<T>(
      kernels,
      map,
      std::move(pack),
      similarity_for(metric),
      threads,
      run,
      {found.activations.data(), found.distances.data(), found.locations.data()}
  );
  return found;
}

template <typename T, typename Parallel = Serial>
Found<T> search(
    Problem<T>& problem, InstructionSet set, Metric metric, int64_t threads = 1, Parallel run = {}
) {
  return search<T>(problem.map(), problem.matrix(), set, metric, threads, run);
}

template <typename Body>
void for_each_instruction_set(const Body& body) {
  for (const InstructionSet set : supported_instruction_sets()) body(set);
}

}  // namespace protofast::testing
