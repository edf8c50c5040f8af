// nearest_patch by tensor cores on a CPU: packing, selection and finish, a block at a time.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/nearest_patch/finish.cuh"
#include "cuda/nearest_patch/plan.h"
#include "cuda/nearest_patch/selection.cuh"
#include "cuda/nearest_patch/selection_wgmma.cuh"
#include "tests/cuda_problem.h"
#include "tests/emulated_threads.h"
#include "tests/emulated_wide_threads.h"

namespace protofast::testing {

// Memory as a GPU's allocator gives it: aligned, and full of NaN.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(std::max<int64_t>(count, 1)) {
    const size_t bytes = round_up(count_ * sizeof(T), kSwizzleBytes);
    data_.reset(static_cast<T*>(std::aligned_alloc(kSwizzleBytes, bytes)));
    std::memset(static_cast<void*>(data_.get()), 0xff, bytes);
  }
  T* data() { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  int64_t count_;
  std::unique_ptr<T, Free> data_;
};

template <typename Source>
void pack(int planes, const Packing<Source>& packing, int64_t images) {
  const EmulatedThreads<kPackThreads> block;
  for (int64_t tile = 0; tile < images * packing.tiles_per_image(); ++tile) {
    const auto shared = std::make_unique<PackingTile>();
    if (planes == 1) {
      pack_tile<1>(block, packing, tile, *shared);
    } else {
      pack_tile<2>(block, packing, tile, *shared);
    }
  }
}

// The whole path; what it finds stands in `problem`.
struct TensorCores {
  Plan plan;
  int64_t patch_rows, prototype_rows, numbers;
  Buffer<float> centre, squared_norms, factors;
  Buffer<uint16_t> patches, prototypes;
  Buffer<Column> columns;

  TensorCores(PairsProblem<float>& problem, const Plan& chosen)
      : plan(chosen),
        patch_rows(round_up(problem.shape.locations(), kTilePatches)),
        prototype_rows(round_up(problem.shape.prototypes, kTilePrototypes)),
        numbers(plan.planes * padded_depth(problem.shape.depth)),
        centre(problem.shape.depth),
        squared_norms(prototype_rows),
        factors(prototype_rows),
        patches(problem.shape.images * patch_rows * numbers),
        prototypes(prototype_rows * numbers),
        columns(problem.shape.images * patch_rows) {
    pack_both(problem);
    select(problem);
    finish(problem);
  }

  void pack_both(PairsProblem<float>& problem) {
    const Shape& s = problem.shape;
    const bool centred = plan.centred && is_difference(problem.metric);
    const Centre middle{problem.prototypes.data(), centre.data(), s.prototypes, s.depth};
    for (int64_t d = 0; d < s.depth; ++d) middle(d);
    const Packing<float> of_patches{
        problem.features.data(),
        problem.layout,
        centred ? centre.data() : nullptr,
        patches.data(),
        patch_rows,
        columns.data(),
        nullptr,
        nullptr,
        problem.metric,
        plan.error
    };
    pack(plan.planes, of_patches, s.images);
    Packing<float> of_prototypes = of_patches;
    of_prototypes.source = problem.prototypes.data();
    of_prototypes.layout = layout_of_rows(s.prototypes, s.depth);
    of_prototypes.packed = prototypes.data();
    of_prototypes.rows = prototype_rows;
    of_prototypes.columns = nullptr;
    of_prototypes.squared_norms = squared_norms.data();
    of_prototypes.factors = factors.data();
    pack(plan.planes, of_prototypes, 1);
  }

  void select(PairsProblem<float>& problem) {
    const Shape& s = problem.shape;
    const size_t pairs = s.images * s.prototypes;
    problem.distances.assign(pairs, NAN);
    problem.activations.assign(pairs, NAN);
    problem.locations.assign(pairs, -1);
    const Selection selection{
        prototypes.data(),
        patches.data(),
        columns.data(),
        factors.data(),
        problem.distances.data(),
        problem.activations.data(),
        problem.locations.data(),
        s.images,
        s.prototypes,
        prototype_rows,
        patch_rows,
        static_cast<int>(numbers / kChunkNumbers)
    };
    const bool wide = plan.path == Path::kWgmma;
    const int64_t tiles = wide ? wide_tiles(selection) : selection.tiles();
    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (wide && plan.planes == 1) select_wide<1>(selection, tile);
      if (wide && plan.planes == 2) select_wide<2>(selection, tile);
      if (!wide && plan.planes == 1) select_narrow<1>(selection, tile);
      if (!wide && plan.planes == 2) select_narrow<2>(selection, tile);
    }
  }

  template <int kPlanes>
  static void select_narrow(const Selection& selection, int64_t tile) {
    Buffer<uint8_t> shared(kSelectSharedBytes);
    select_tile<kPlanes>(EmulatedThreads<kSelectThreads>(), selection, tile, shared.data());
  }

  template <int kPlanes>
  static void select_wide(const Selection& s, int64_t tile) {
    Buffer<uint8_t> shared(kWideStages * kWideStageBytes);
    uint64_t full[kWideStages];
    const int64_t numbers = s.chunks * kChunkNumbers;
    const EmulatedBox of_prototypes{
        s.prototypes, {numbers, s.prototype_rows, 1}, {kTilePrototypes, 1}
    };
    const EmulatedBox of_patches{
        s.patches, {numbers, s.patch_rows, s.image_count}, {kTilePatches, kWideImages}
    };
    select_wide_tile<kPlanes>(
        EmulatedWideThreads<kWideThreads>(), s, of_prototypes, of_patches, tile, shared.data(), full
    );
  }

  void finish(PairsProblem<float>& problem) {
    const int64_t pairs = problem.distances.size();
    const Finish<float> results{
        problem.features.data(),
        problem.layout,
        problem.prototypes.data(),
        squared_norms.data(),
        columns.data(),
        problem.distances.data(),
        problem.activations.data(),
        problem.locations.data(),
        patch_rows,
        problem.shape.prototypes,
        pairs,
        problem.metric,
        plan.error,
        plan.settle_places,
        plan.refine_below,
        problem.function
    };
    const EmulatedThreads<kWarp> warp;
    for (int64_t first = 0; first < pairs; first += kWarp) finish_pairs(warp, results, first);
  }
};

inline Plan plan_for(
    const PairsProblem<float>& problem,
    Refine refine,
    Precision precision = Precision::kFloat32,
    Number number = Number::kFloat32,
    const char* path = "tensor_cores"
) {
  const Problem sizes{
      problem.metric, number, number, problem.shape.depth, problem.shape.locations()
  };
  return make_plan(path, [](Path) { return true; }, precision, refine, sizes);
}

}  // namespace protofast::testing
