// dot_and_cosine on the CPU: for every image and prototype the largest z.p and the largest cosine.
//
// Both searches of nearest_patch (cpu/nearest_patch/kernel.h) from one matrix product: their
// scores, z.p and z.p / |z|, differ by a factor per row. Packed for cosine, prototypes and patches
// are what either search needs. Each lane carries the best two of both scores through the rows of
// an image; then winners are refined, or pairs scanned, for each metric by itself.
#pragma once

#include "cpu/dot_and_cosine/kernels.h"
#include "cpu/nearest_patch/kernel.h"

namespace protofast {
namespace {

template <typename T>
struct BothRunning {
  Running<T> dots = nothing_yet<T>();
  Running<T> cosines = nothing_yet<T>();
};

template <typename T>
struct BothWinners {
  Winners<T> dots[kWaiting];
  Winners<T> cosines[kWaiting];
};

// Writes what images [first, first + count) have found for the prototypes of a panel.
template <typename T>
inline void settle_both(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t first,
    int64_t count,
    int64_t panel,
    BothWinners<T>& winners,
    const DotAndCosineOutputs<T>& outputs
) {
  constexpr SimilarityFunction kNegative = {Similarity::kLinear, 0, 0};
  PackedPrototypes<T> one = prototypes;
  // The values are activations; distances, written before them, may go to the same place.
  one.metric = Metric::kDot;
  NearestOutputs<T> found = {outputs.dots, outputs.dots, outputs.dot_locations};
  settle(one, images, first, count, panel, winners.dots, kNegative, found);
  one.metric = Metric::kCosine;
  found = {outputs.cosines, outputs.cosines, outputs.cosine_locations};
  settle(one, images, first, count, panel, winners.cosines, kNegative, found);
}

template <int vectors, typename T>
void search_both_in_panel(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t panel,
    const DotAndCosineOutputs<T>& outputs
) {
  const int64_t depth = prototypes.depth, rows = images.count * images.locations;
  alignas(PROTOFAST_VECTOR_BYTES) T scores[kGroupBlocks * kRows * kLanes<T>];
  BothWinners<T> winners;
  BothRunning<T> running;
  const int64_t group = kRows * (depth > kSegment ? kGroupBlocks : 1);
  int64_t settled = 0, image = 0, location = 0;
  for (int64_t first_row = 0; first_row < rows; first_row += group) {
    const int64_t used = at_most(rows - first_row, group);
    const T* blocks = images.blocks + first_row * depth;
    multiply_group<vectors>(blocks, used, panel_of(prototypes, panel), depth, scores);
    for (int64_t r = 0; r < used; ++r) {
      const T* row = scores + r * kLanes<T>;
      const T term = images.terms[first_row + r];
      // term - term: 0, or NaN of a patch that takes no part.
      take_row<Metric::kDot, vectors>(running.dots, row, term - term, location);
      take_row<Metric::kCosine, vectors>(running.cosines, row, term, location);
      if (++location < images.locations) continue;
      const T largest = images.largest[image];
      const int64_t slot = image - settled;
      choose<Metric::kDot, vectors>(prototypes, panel, largest, running.dots, winners.dots[slot]);
      choose<Metric::kCosine, vectors>(
          prototypes, panel, largest, running.cosines, winners.cosines[slot]
      );
      running = {};
      location = 0;
      if (++image - settled == kWaiting || image == images.count) {
        settle_both(prototypes, images, settled, image - settled, panel, winners, outputs);
        settled = image;
      }
    }
  }
}

template <typename T>
void search_both(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t panel,
    const DotAndCosineOutputs<T>& outputs
) {
  if (prototypes.count - panel * kLanes<T> > kWidth<T>) {
    search_both_in_panel<2>(prototypes, images, panel, outputs);
  } else {
    search_both_in_panel<1>(prototypes, images, panel, outputs);
  }
}

template <typename T>
constexpr DotAndCosineKernels<T> dot_and_cosine_kernels() {
  return {.search = search_both<T>};
}

}  // namespace
}  // namespace protofast
