// The nearest patches by the tensor cores of Hopper GPUs (sm_90a): wgmma on tiles that the bulk
// copy engine brings. The same proposals as selection.cuh makes, from the same packed rows.
//
// A block takes 128 prototypes and 4 images, 56 patches of each at a time: each of its two
// warpgroups multiplies [64, D] by [D, 224], both operands in shared memory, in four stages of one
// chunk of 128 bytes of each row. One thread asks for copies: a box of 128 prototypes, and one of
// 56 patches of 4 images, whose rows beyond the last image are zeros. A stage is filled again when
// all threads have passed the barrier behind the products that read it; the products of the next
// stage run meanwhile.
//
// The sums lie in threads as those of mma.m16n8k16 do, a warp of a warpgroup having 16 rows. No
// torch.

#pragma once

#include "cuda/nearest_patch/selection.cuh"

namespace protofast::cuda {

constexpr int kWideThreads = 256;  // two warpgroups
constexpr int kWarpgroup = 128;
constexpr int kWidePrototypes = 64;  // of a warpgroup
constexpr int kWideImages = 4;
constexpr int kWidePatches = kWideImages * kTilePatches;
constexpr int kWideRows = kTilePrototypes + kWidePatches;
constexpr int kWideStages = 4;
constexpr int kWideStageBytes = kWideRows * kRowBytes;
constexpr int kSwizzleBytes = 1024;  // the pattern of 128-byte rows repeats; stages are aligned so
constexpr int kWideSharedBytes = kWideStages * kWideStageBytes + kSwizzleBytes;
static_assert(kWideStageBytes % kSwizzleBytes == 0);
static_assert(kTilePrototypes == kWideThreads / kWarpgroup * kWidePrototypes);
static_assert(kWideSharedBytes <= 227 * 1024);

struct WideSums {
  float at[kWidePatches / 8][4];
};

struct WideCandidates {
  Candidate at[kWideImages][2];  // of rows sum_row(lane, 0) and sum_row(lane, 2)
};

PROTOFAST_HOST_DEVICE inline int64_t wide_tiles(const Selection& s) {
  return s.prototype_tiles() * ((s.image_count + kWideImages - 1) / kWideImages);
}

PROTOFAST_HOST_DEVICE inline SelectionTile wide_tile(const Selection& s, int64_t tile) {
  return {tile % s.prototype_tiles() * kTilePrototypes, tile / s.prototype_tiles() * kWideImages};
}

// First of a thread's rows among the tile's prototypes.
PROTOFAST_HOST_DEVICE constexpr int wide_row(int thread) {
  return thread / kWarpgroup * kWidePrototypes + thread % kWarpgroup / kWarp * 16 +
         sum_row(thread % kWarp, 0);
}

// The products of one stage. As in multiply_stage, `first` and `second` are two steps of 16
// channels, or the two planes of one step.
template <int kPlanes, typename Threads, typename PerThreadSums>
PROTOFAST_DEVICE void multiply_wide_stage(
    const Threads& block, const uint8_t* stage, PerThreadSums& sums
) {
  const auto to = [&](int thread) -> WideSums& { return sums[thread]; };
  const auto prototypes = [&](int piece) {
    return [=](int thread) {
      return stage + thread / kWarpgroup * kWidePrototypes * kRowBytes + 16 * piece;
    };
  };
  const auto patches = [&](int piece) {
    return [=](int) { return stage + kTilePrototypes * kRowBytes + 16 * piece; };
  };
  PROTOFAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int first = kPlanes == 1 ? 4 * half : 2 * half;
    const int second = kPlanes == 1 ? first + 2 : first + 4;
    block.multiply_wide(to, prototypes(first), patches(first));
    if constexpr (kPlanes == 1) {
      block.multiply_wide(to, prototypes(second), patches(second));
    } else {
      block.multiply_wide(to, prototypes(first), patches(second));
      block.multiply_wide(to, prototypes(second), patches(first));
    }
  }
}

// The scores of this round's patches against what each thread kept.
PROTOFAST_HOST_DEVICE inline void consider_wide_round(
    const Selection& s,
    const SelectionTile& tile,
    int thread,
    int round,
    const WideSums& sums,
    WideCandidates& candidates
) {
  const int lane = thread % kWarp;
  const float* factors = s.factors + tile.first_prototype + wide_row(thread);
  const float of_rows[2] = {factors[0], factors[sum_row(0, 2)]};
  PROTOFAST_UNROLL
  for (int i = 0; i < kWideImages; ++i) {
    const int64_t image = s.readable_image(tile.first_image + i);
    const Column* columns = s.columns + image * s.patch_rows + round * kTilePatches;
    PROTOFAST_UNROLL
    for (int j = 0; j < kPatchBlocks; ++j) {
      PROTOFAST_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int patch = 8 * j + sum_column(lane, e);
        const Column column = columns[patch];
        PROTOFAST_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float product = sums.at[i * kPatchBlocks + j][2 * half + e] * of_rows[half];
          const float score = std::fma(product, column.scale, column.offset);
          consider(candidates.at[i][half], score, round * kTilePatches + patch);
        }
      }
    }
  }
}

PROTOFAST_HOST_DEVICE inline void write_wide_candidates(
    const Selection& s, const SelectionTile& tile, int thread, const WideCandidates& candidates
) {
  if (thread % 4 != 0) return;
  PROTOFAST_UNROLL
  for (int i = 0; i < kWideImages; ++i) {
    PROTOFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t image = tile.first_image + i;
      const int64_t prototype = tile.first_prototype + wide_row(thread) + sum_row(0, 2 * half);
      if (image >= s.image_count || prototype >= s.prototype_count) continue;
      const int64_t pair = image * s.prototype_count + prototype;
      s.best[pair] = candidates.at[i][half].best;
      s.second[pair] = candidates.at[i][half].second;
      s.locations[pair] = candidates.at[i][half].location;
    }
  }
}

// One block: candidates of 128 prototypes in 4 images. `Box` names a packed operand to the copy
// engine; `shared` has kWideStages * kWideStageBytes bytes, aligned to kSwizzleBytes; `full` one
// barrier for each stage.
template <int kPlanes, typename Threads, typename Box>
PROTOFAST_DEVICE void select_wide_tile(
    const Threads& block,
    const Selection& s,
    const Box& prototype_box,
    const Box& patch_box,
    int64_t index,
    uint8_t* shared,
    uint64_t* full
) {
  const SelectionTile tile = wide_tile(s, index);
  const int rounds = static_cast<int>(s.patch_rows / kTilePatches);
  const int steps = rounds * s.chunks;
  typename Threads::template PerThread<WideSums> sums;
  typename Threads::template PerThread<WideCandidates> candidates;
  block.each([&](int thread) {
    candidates[thread] = WideCandidates{};
    if (thread == 0) block.start_barriers(full, kWideStages);
  });
  block.sync();

  const auto of = [&](int thread) -> WideSums& { return sums[thread]; };
  const auto start_loading = [&](int step) {
    block.each([&](int thread) {
      if (thread != 0 || step >= steps) return;
      const int round = step / s.chunks, first = step % s.chunks * kChunkNumbers;
      uint8_t* stage = shared + step % kWideStages * kWideStageBytes;
      uint64_t* barrier = full + step % kWideStages;
      block.expect(barrier, kWideStageBytes);
      block.copy_box(
          stage, prototype_box, barrier, first, static_cast<int>(tile.first_prototype), 0
      );
      block.copy_box(
          stage + kTilePrototypes * kRowBytes,
          patch_box,
          barrier,
          first,
          round * kTilePatches,
          static_cast<int>(tile.first_image)
      );
    });
  };

  for (int step = 0; step < kWideStages; ++step) start_loading(step);
  int step = 0;
  for (int round = 0; round < rounds; ++round) {
    block.each([&](int thread) { sums[thread] = WideSums{}; });
    block.hold(of);
    for (int chunk = 0; chunk < s.chunks; ++chunk) {
      block.wait_for(full + step % kWideStages, step / kWideStages % 2);
      block.start_products();
      multiply_wide_stage<kPlanes>(block, shared + step % kWideStages * kWideStageBytes, sums);
      block.commit_products();
      block.template wait_products<1>();
      block.sync();  // nobody reads the stage before this one any more
      if (step > 0) start_loading(step - 1 + kWideStages);
      ++step;
    }
    block.template wait_products<0>();
    block.hold(of);
    block.each([&](int thread) {
      consider_wide_round(s, tile, thread, round, sums[thread], candidates[thread]);
    });
  }

  PROTOFAST_UNROLL
  for (int i = 0; i < kWideImages; ++i) {
    PROTOFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      PROTOFAST_UNROLL
      for (int x = 1; x < 4; x *= 2) {  // the four threads that hold a row
        const auto kept = [&](int thread) -> Candidate& { return candidates[thread].at[i][half]; };
        bring_together(block, x, kept);
      }
    }
  }
  block.each([&](int thread) { write_wide_candidates(s, tile, thread, candidates[thread]); });
}

}  // namespace protofast::cuda
