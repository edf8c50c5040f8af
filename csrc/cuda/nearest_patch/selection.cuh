// The nearest patches by tensor cores (sm_80 and later, mma.sync): candidates for every pair.
//
// A block takes 128 prototypes and 2 images, and of each image 56 patches at a time: a product of
// [128, D] and [D, 112], in chunks of 128 bytes of each packed row, three of them in flight to
// shared memory while the tensor cores work. Each warp holds 32 prototypes x 56 patches of one
// image in registers, so that the minimum over an image never leaves the warp: every thread looks
// through its own 14 columns of each row, keeps the least score, its location and the second least,
// and at the very end four threads compare theirs. Images of more than 56 patches go round again,
// and what was kept goes on.
//
// No map is stored, nothing is shared between blocks, no order depends on anything but D and L:
// hence the same bits for any batch.
//
// What comes out is a proposal: a location and the two least scores. The finish kernel
// (finish.cuh) knows how far scores can be wrong and looks again where that matters. No torch.

#pragma once

#include "cuda/nearest_patch/packing.cuh"
#include "cuda/threads.cuh"

namespace protofast::cuda {

// ---------------------------------------------------------------- geometry

constexpr int kSelectThreads = 256;
constexpr int kTilePrototypes = 128;
constexpr int kTileImages = 2;
constexpr int kTilePatches = 56;  // of one image: the 49 of a 7x7 grid need one round, 196 four
constexpr int kTileRows = kTilePrototypes + kTileImages * kTilePatches;
constexpr int kRowBytes = 2 * kChunkNumbers;
constexpr int kPiecesPerRow = 8;  // of 16 bytes
constexpr int kStages = 3;
constexpr int kStageBytes = kTileRows * kRowBytes;
constexpr int kSelectSharedBytes = kStages * kStageBytes;
static_assert(kSelectSharedBytes <= 99 * 1024, "what every GPU from sm_80 on gives a block");

// A warp: 2 x 16 prototypes by 7 x 8 patches, in the fragments of mma.m16n8k16.
constexpr int kPrototypeBlocks = 2;
constexpr int kPatchBlocks = kTilePatches / 8;
constexpr int kWarpPrototypes = 16 * kPrototypeBlocks;
constexpr int kWarpsAcross = kTilePrototypes / kWarpPrototypes;
static_assert(kWarpsAcross * kTileImages * kWarp == kSelectThreads);

// Byte offset in a stage of piece 0..7 of a row. The pieces of eight neighbouring rows at one place
// lie in different banks, so that ldmatrix reads them at once.
PROTOFAST_HOST_DEVICE constexpr int stage_offset(int row, int piece) {
  return row * kRowBytes + ((piece ^ (row & 7)) << 4);
}

// What a thread of a warp holds of a 16 x 8 block of sums: element e of 4 is at this row, column.
PROTOFAST_HOST_DEVICE constexpr int sum_row(int lane, int e) { return lane / 4 + 8 * (e / 2); }
PROTOFAST_HOST_DEVICE constexpr int sum_column(int lane, int e) { return 2 * (lane % 4) + e % 2; }

struct WarpPlace {
  int prototype;  // first of the warp's rows in the tile of prototypes
  int image;      // which of the tile's images
};

PROTOFAST_HOST_DEVICE constexpr WarpPlace warp_place(int thread) {
  const int warp = thread / kWarp;
  return {warp % kWarpsAcross * kWarpPrototypes, warp / kWarpsAcross};
}

// ---------------------------------------------------------------- candidates

// The least score so far, its location, and the least score of any other location.
struct Candidate {
  float best = INFINITY, second = INFINITY;
  int location = 0;
};

PROTOFAST_HOST_DEVICE inline void consider(Candidate& candidate, float score, int location) {
  const bool nearer = score < candidate.best;
  candidate.second = std::fmin(candidate.second, nearer ? candidate.best : score);
  candidate.location = nearer ? location : candidate.location;
  candidate.best = nearer ? score : candidate.best;
}

// Of two sets of locations together. Symmetric; of equal scores the first location wins.
PROTOFAST_HOST_DEVICE inline Candidate together(const Candidate& a, const Candidate& b) {
  const bool second_wins = b.best < a.best || (b.best == a.best && b.location < a.location);
  const Candidate& winner = second_wins ? b : a;
  const Candidate& other = second_wins ? a : b;
  return {winner.best, std::fmin(winner.second, other.best), winner.location};
}

// ---------------------------------------------------------------- the kernel

struct Selection {
  const uint16_t* prototypes;  // packed, [prototype_rows][chunks * 64]
  const uint16_t* patches;     // packed, [N][patch_rows][chunks * 64]
  const Column* columns;       // [N][patch_rows]
  const float* factors;        // [prototype_rows]
  float* best;                 // [N, P]
  float* second;               // [N, P]
  int64_t* locations;          // [N, P]
  int64_t image_count, prototype_count;
  int64_t prototype_rows;  // a multiple of kTilePrototypes
  int64_t patch_rows;      // a multiple of kTilePatches
  int chunks;              // of 128 bytes, in a packed row

  PROTOFAST_HOST_DEVICE int64_t prototype_tiles() const { return prototype_rows / kTilePrototypes; }
  PROTOFAST_HOST_DEVICE int64_t tiles() const {
    return prototype_tiles() * ((image_count + kTileImages - 1) / kTileImages);
  }
  // An image past the last one is read as the last one; its results are not written.
  PROTOFAST_HOST_DEVICE int64_t readable_image(int64_t image) const {
    return image < image_count ? image : image_count - 1;
  }
};

// A block's place: neighbouring blocks share images and go through the prototypes.
struct SelectionTile {
  int64_t first_prototype, first_image;
};

PROTOFAST_HOST_DEVICE inline SelectionTile selection_tile(const Selection& s, int64_t tile) {
  return {tile % s.prototype_tiles() * kTilePrototypes, tile / s.prototype_tiles() * kTileImages};
}

// Where the bytes of one row of a stage come from: a prototype, or a patch of one of the images.
PROTOFAST_HOST_DEVICE inline const uint16_t* stage_source(
    const Selection& s, const SelectionTile& tile, int round, int chunk, int row
) {
  const int64_t numbers_per_row = static_cast<int64_t>(s.chunks) * kChunkNumbers;
  const int64_t first = static_cast<int64_t>(chunk) * kChunkNumbers;
  if (row < kTilePrototypes) {
    return s.prototypes + (tile.first_prototype + row) * numbers_per_row + first;
  }
  const int patch = row - kTilePrototypes;
  const int64_t image = s.readable_image(tile.first_image + patch / kTilePatches);
  const int64_t place = image * s.patch_rows + round * kTilePatches + patch % kTilePatches;
  return s.patches + place * numbers_per_row + first;
}

struct Sums {
  float at[kPrototypeBlocks][kPatchBlocks][4];
};

struct Candidates {
  Candidate at[kPrototypeBlocks][2];  // of rows sum_row(lane, 0) and sum_row(lane, 2) of each block
};

// sums += the products of one stage. A chunk holds 64 channels of one plane, or 32 of both: `first`
// and `second` are two steps of 16 channels, or the two planes of one step.
template <int kPlanes, typename Threads, typename PerThreadSums>
PROTOFAST_DEVICE void multiply_stage(
    const Threads& block, const uint8_t* stage, PerThreadSums& sums
) {
  struct Left {
    uint32_t first[kPrototypeBlocks][4], second[kPrototypeBlocks][4];
  };
  struct Right {
    uint32_t pieces[4];
  };
  PROTOFAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int first = kPlanes == 1 ? 4 * half : 2 * half;  // pieces first, first + 1: 16 channels
    const int second = kPlanes == 1 ? first + 2 : first + 4;
    typename Threads::template PerThread<Left> left;
    PROTOFAST_UNROLL
    for (int i = 0; i < kPrototypeBlocks; ++i) {
      const auto row = [&](int thread, int piece) {
        const int lane = thread % kWarp;
        const int place = warp_place(thread).prototype + 16 * i + lane % 16;
        return stage + stage_offset(place, piece + lane / 16);
      };
      block.load_matrices(
          [&](int thread) { return row(thread, first); },
          [&](int thread) -> uint32_t (&)[4] { return left[thread].first[i]; }
      );
      block.load_matrices(
          [&](int thread) { return row(thread, second); },
          [&](int thread) -> uint32_t (&)[4] { return left[thread].second[i]; }
      );
    }
    PROTOFAST_UNROLL
    for (int j = 0; j < kPatchBlocks; ++j) {
      typename Threads::template PerThread<Right> right;
      block.load_matrices(
          [&](int thread) {
            const int lane = thread % kWarp;
            const int row = kTilePrototypes + warp_place(thread).image * kTilePatches + 8 * j;
            const int piece = (lane < 16 ? first : second) + lane / 8 % 2;
            return stage + stage_offset(row + lane % 8, piece);
          },
          [&](int thread) -> uint32_t (&)[4] { return right[thread].pieces; }
      );
      PROTOFAST_UNROLL
      for (int i = 0; i < kPrototypeBlocks; ++i) {
        const auto to = [&](int thread) -> float (&)[4] { return sums[thread].at[i][j]; };
        const auto left_first = [&](int thread) { return left[thread].first[i]; };
        const auto left_second = [&](int thread) { return left[thread].second[i]; };
        const auto right_first = [&](int thread) { return right[thread].pieces; };
        const auto right_second = [&](int thread) { return right[thread].pieces + 2; };
        block.multiply(to, left_first, right_first);
        if constexpr (kPlanes == 1) {
          block.multiply(to, left_second, right_second);
        } else {
          block.multiply(to, left_first, right_second);
          block.multiply(to, left_second, right_first);
        }
      }
    }
  }
}

// The scores of this round's patches against what each thread kept.
PROTOFAST_HOST_DEVICE inline void consider_round(
    const Selection& s,
    const SelectionTile& tile,
    int thread,
    int round,
    const Sums& sums,
    Candidates& candidates
) {
  const WarpPlace warp = warp_place(thread);
  const int lane = thread % kWarp;
  const int64_t image = s.readable_image(tile.first_image + warp.image);
  const Column* columns = s.columns + image * s.patch_rows + round * kTilePatches;
  const float* factors = s.factors + tile.first_prototype + warp.prototype;
  PROTOFAST_UNROLL
  for (int j = 0; j < kPatchBlocks; ++j) {
    PROTOFAST_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int patch = 8 * j + sum_column(lane, e);
      const Column column = columns[patch];
      PROTOFAST_UNROLL
      for (int i = 0; i < kPrototypeBlocks; ++i) {
        PROTOFAST_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float product =
              sums.at[i][j][2 * half + e] * factors[16 * i + sum_row(lane, 2 * half)];
          const float score = std::fma(product, column.scale, column.offset);
          consider(candidates.at[i][half], score, round * kTilePatches + patch);
        }
      }
    }
  }
}

PROTOFAST_HOST_DEVICE inline void write_candidates(
    const Selection& s, const SelectionTile& tile, int thread, const Candidates& candidates
) {
  const WarpPlace warp = warp_place(thread);
  const int lane = thread % kWarp;
  const int64_t image = tile.first_image + warp.image;
  if (lane % 4 != 0 || image >= s.image_count) return;
  PROTOFAST_UNROLL
  for (int i = 0; i < kPrototypeBlocks; ++i) {
    PROTOFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = warp.prototype + 16 * i + sum_row(lane, 2 * half);
      const int64_t prototype = tile.first_prototype + row;
      if (prototype >= s.prototype_count) continue;
      const int64_t pair = image * s.prototype_count + prototype;
      s.best[pair] = candidates.at[i][half].best;
      s.second[pair] = candidates.at[i][half].second;
      s.locations[pair] = candidates.at[i][half].location;
    }
  }
}

// Each thread's candidate, kept(thread), together with that of thread ^ x.
template <typename Threads, typename Kept>
PROTOFAST_DEVICE void bring_together(const Threads& block, int x, Kept kept) {
  typename Threads::template PerThread<Candidate> others;
  block.exchange(
      x,
      [&](int thread) { return kept(thread).best; },
      [&](int thread, float best) { others[thread].best = best; }
  );
  block.exchange(
      x,
      [&](int thread) { return kept(thread).second; },
      [&](int thread, float second) { others[thread].second = second; }
  );
  block.exchange(
      x,
      [&](int thread) { return kept(thread).location; },
      [&](int thread, int location) { others[thread].location = location; }
  );
  block.each([&](int thread) { kept(thread) = together(kept(thread), others[thread]); });
}

// One block: candidates of 128 prototypes in 2 images. `shared` has kSelectSharedBytes bytes.
template <int kPlanes, typename Threads>
PROTOFAST_DEVICE void select_tile(
    const Threads& block, const Selection& s, int64_t index, uint8_t* shared
) {
  const SelectionTile tile = selection_tile(s, index);
  const int steps = static_cast<int>(s.patch_rows / kTilePatches) * s.chunks;
  typename Threads::template PerThread<Sums> sums;
  typename Threads::template PerThread<Candidates> candidates;
  block.each([&](int thread) { candidates[thread] = Candidates{}; });

  const auto start_loading = [&](int step) {
    if (step < steps) {
      const int round = step / s.chunks, chunk = step % s.chunks;
      uint8_t* stage = shared + step % kStages * kStageBytes;
      block.each([&](int thread) {
        for (int i = thread; i < kTileRows * kPiecesPerRow; i += kSelectThreads) {
          const int row = i / kPiecesPerRow, piece = i % kPiecesPerRow;
          block.copy_async(
              stage + stage_offset(row, piece),
              stage_source(s, tile, round, chunk, row) + piece * kPieceChannels
          );
        }
      });
    }
    block.commit();  // an empty group too: wait() counts them
  };

  for (int step = 0; step < kStages - 1; ++step) start_loading(step);
  for (int step = 0; step < steps; ++step) {
    const int round = step / s.chunks, chunk = step % s.chunks;
    block.template wait<kStages - 2>();
    block.sync();  // this stage is there, and all threads are done with the one before it,
    start_loading(step + kStages - 1);  // which is filled again
    if (chunk == 0) block.each([&](int thread) { sums[thread] = Sums{}; });
    multiply_stage<kPlanes>(block, shared + step % kStages * kStageBytes, sums);
    if (chunk == s.chunks - 1) {
      block.each([&](int thread) {
        consider_round(s, tile, thread, round, sums[thread], candidates[thread]);
      });
    }
  }

  PROTOFAST_UNROLL
  for (int i = 0; i < kPrototypeBlocks; ++i) {
    PROTOFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      PROTOFAST_UNROLL
      for (int x = 1; x < 4; x *= 2) {  // the four threads that hold a row
        const auto kept = [&](int thread) -> Candidate& { return candidates[thread].at[i][half]; };
        bring_together(block, x, kept);
      }
    }
  }
  block.each([&](int thread) { write_candidates(s, tile, thread, candidates[thread]); });
}

}  // namespace protofast::cuda
