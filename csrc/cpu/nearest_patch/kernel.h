// nearest_patch on the CPU: for every image n and prototype p
//
//   distance[n, p] = min over l of d(z[n, l], p),   location[n, p] = the first l that attains it,
//   activation[n, p] = similarity(distance[n, p]).
//
// What is fused. Distance, minimum and similarity are one pass: the map [N, P, L] is never stored.
// The winner is selected by scores, by which the nearest patch is the one that scores highest,
//
//   squared_l2, l2:  z.p - |z|^2 / 2        (d = |p|^2 - 2 score)
//   dot:             z.p                    (d = -score)
//   cosine:          z.p / |z|              (d = -score / |p|)
//
// and z.p is a matrix product. Lanes of vectors are prototypes, packed as panels [D][lanes]; rows
// are the patches of a few images, one after the other, packed as blocks [D][rows]. multiply_block
// keeps rows x lanes sums in registers, so the minimum over locations is vertical: each lane
// carries its best score through the rows of an image, and images need not start at a block.
//
// What is exact. A score carries the rounding errors of the expanded form, so it only selects: the
// winner's distance is computed again as sum (z - p)^2, in which equal vectors give exactly 0. Each
// lane also carries its second-best score. Where the two are closer than rounding allows to tell,
// or the distance is about 0, or NaN, infinity or overflow is about, that one pair is scanned again
// by direct differences over all locations, NaN first, then the first least one. (A patch that
// repeats an earlier one of its image takes no part, so constant maps are not scanned.) Before
// packing, each channel is centred by the prototypes' mean where that makes them smaller: distances
// do not change, but features far from 0 keep their digits.
//
// Why it is deterministic. A score depends on its patch and prototype alone, whatever block, chunk
// or thread computes it, and always adds up in the order of d. A task owns its outputs; nothing is
// summed across tasks. The centre depends on the prototypes alone.
//
// A task is a few images (kChunkBytes in forward.h) against a run of panels: it packs the images
// into its thread's workspace, which stays in the L2 cache while the panels stream past it.
#pragma once

#include "cpu/nearest_patch/backward_kernel.h"
#include "cpu/nearest_patch/kernels.h"
#include "cpu/nearest_patch/packing.h"
#include "cpu/nearest_patch/similarity.h"
#include "cpu/pairs.h"
#include "cpu/patches.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

// ------------------------------------------------------------------ scores

// scores[r][lane] = sum over d of block[d][r] * panel[d][lane]: where the time goes.
template <typename T>
inline void multiply_block(const T* block, const T* panel, int64_t depth, T* scores) {
  Vector<T> sums[kRows][2] = {};
  for (int64_t d = 0; d < depth; ++d) {
    Vector<T> first = load(panel), second = load(panel + kWidth<T>);
    PROTOFAST_KEEP_IN_REGISTER(first);
    PROTOFAST_KEEP_IN_REGISTER(second);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] += first * block[r];
      sums[r][1] += second * block[r];
    }
    block += kRows;
    panel += kLanes<T>;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    store(scores + r * kLanes<T>, sums[r][0]);
    store(scores + r * kLanes<T> + kWidth<T>, sums[r][1]);
  }
}

// The best two scores of one image so far, for each lane of a panel.
template <typename T>
struct Running {
  Vector<T> best[2];
  Vector<T> second[2];
  Integers<T> location[2];
};

template <typename T>
inline Running<T> nothing_yet() {
  Running<T> running = {};
  for (int v = 0; v < 2; ++v) {
    running.best[v] = running.second[v] = splat(-Limits<T>::kInfinity);
  }
  return running;
}

template <Metric metric, typename T>
inline void take_row(Running<T>& running, const T* scores, T term, int64_t location) {
  const Integers<T> here = Integers<T>{} + static_cast<typename Limits<T>::Integer>(location);
  for (int v = 0; v < 2; ++v) {
    const Vector<T> product = load(scores + v * kWidth<T>);
    const Vector<T> score = metric == Metric::kCosine ? product * term : product - term;
    const Vector<T> best = running.best[v], second = running.second[v];
    const Vector<T> lesser = best < score ? best : score;  // NaN if the score is
    running.second[v] = lesser > second ? lesser : second;
    running.location[v] = score > best ? here : running.location[v];
    running.best[v] = score > best ? score : best;
  }
}

// Where a score cannot tell: the runner-up is within its rounding error, or the distance is about
// zero, or a number is NaN. Each comparison is true of certain lanes only, so NaN falls through.
template <Metric metric, typename T>
inline Integers<T> uncertain_lanes(
    const Running<T>& running, int v, const T* norms, T largest, T tolerance
) {
  const Vector<T> gap = running.best[v] - running.second[v];
  const Vector<T> norm = load(norms + v * kWidth<T>);
  const T least = Limits<T>::kSmallestNorm;
  if constexpr (metric == Metric::kSquaredL2) {
    // A rival of distance d has |z|^2 <= 2 (|p|^2 + d); |z|^2 + |p|^2 <= 3 |p|^2 + 2 d.
    const Vector<T> distance = norm - T(2) * running.best[v];
    const Vector<T> error = tolerance * (T(3) * norm + T(2) * distance) + least;
    return ~((gap > error) & (distance > T(2) * error));
  } else {
    const T scale = metric == Metric::kDot ? largest : T(1);
    return ~(gap > tolerance * scale * norm + least);
  }
}

// ------------------------------------------------------------------ results

// The first location of least distance, by direct differences; the first NaN before everything.
template <typename T>
__attribute__((noinline)) T scan(
    PatchRows<T> patches,
    int64_t locations,
    const T* prototype,
    int64_t depth,
    Metric metric,
    int64_t* location
) {
  T least = pair_distance(patches.rows, prototype, depth, metric);
  *location = 0;
  for (int64_t l = 1; l < locations && least == least; ++l) {
    const T distance = pair_distance(patches.rows + l * patches.stride, prototype, depth, metric);
    if (!(distance >= least)) {
      least = distance;
      *location = l;
    }
  }
  return least;
}

// Writes what one image has found for the prototypes of a panel.
template <Metric metric, typename T>
__attribute__((noinline)) void settle(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t image,
    int64_t panel,
    const Running<T>& running,
    const NearestOutputs<T>& outputs
) {
  using Integer = typename Limits<T>::Integer;
  const int64_t depth = prototypes.depth, first = panel * kLanes<T>;
  const PatchRows<T> patches = images.patches[image];
  const T largest = images.largest[image];
  Integer winners[kLanes<T>], uncertain[kLanes<T>];
  for (int v = 0; v < 2; ++v) {
    const Integers<T> lanes = uncertain_lanes<metric>(
        running, v, prototypes.norms + first, largest, prototypes.tolerance
    );
    __builtin_memcpy(uncertain + v * kWidth<T>, &lanes, sizeof(lanes));
    __builtin_memcpy(winners + v * kWidth<T>, &running.location[v], sizeof(lanes));
  }
  const bool usable = largest == largest;
  const int64_t used = at_most(prototypes.count - first, kLanes<T>);
  for (int64_t lane = 0; lane < used; ++lane) {
    const T* prototype = prototypes.rows + (first + lane) * depth;
    const int64_t slot = image * prototypes.count + first + lane;
    if (usable && !uncertain[lane]) {
      const T* patch = patches.rows + winners[lane] * patches.stride;
      outputs.locations[slot] = winners[lane];
      outputs.distances[slot] = pair_distance(patch, prototype, depth, prototypes.metric);
    } else {
      outputs.distances[slot] = scan(
          patches, images.locations, prototype, depth, prototypes.metric, outputs.locations + slot
      );
    }
  }
}

template <Metric metric, typename T>
void search_panel(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t panel,
    const NearestOutputs<T>& outputs
) {
  const int64_t depth = prototypes.depth, rows = images.count * images.locations;
  const T* packed = prototypes.panels + panel * depth * kLanes<T>;
  alignas(PROTOFAST_VECTOR_BYTES) T scores[kRows * kLanes<T>];
  Running<T> running = nothing_yet<T>();
  int64_t image = 0, location = 0;
  for (int64_t first_row = 0; first_row < rows; first_row += kRows) {
    multiply_block(images.blocks + first_row * depth, packed, depth, scores);
    const int64_t used = at_most(rows - first_row, kRows);
    for (int64_t r = 0; r < used;) {
      const int64_t end = at_most(r + images.locations - location, used);
      for (; r < end; ++r, ++location) {
        const T term = images.terms[first_row + r];
        take_row<metric>(running, scores + r * kLanes<T>, term, location);
      }
      if (location == images.locations) {
        const Running<T> found = running;
        settle<metric>(prototypes, images, image, panel, found, outputs);
        running = nothing_yet<T>();
        location = 0;
        ++image;
      }
    }
  }
}

template <typename T>
void search(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t first_panel,
    int64_t last_panel,
    const SimilarityFunction& similarity,
    const NearestOutputs<T>& outputs
) {
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    switch (prototypes.metric) {
      case Metric::kSquaredL2:
      case Metric::kL2:
        search_panel<Metric::kSquaredL2>(prototypes, images, panel, outputs);
        break;
      case Metric::kDot:
        search_panel<Metric::kDot>(prototypes, images, panel, outputs);
        break;
      case Metric::kCosine:
        search_panel<Metric::kCosine>(prototypes, images, panel, outputs);
        break;
    }
  }
  const int64_t first = first_panel * kLanes<T>;
  const int64_t last = at_most(last_panel * kLanes<T>, prototypes.count);
  for (int64_t n = 0; n < images.count; ++n) {
    const int64_t slot = n * prototypes.count + first;
    similarities(outputs.distances + slot, last - first, similarity, outputs.activations + slot);
  }
}

template <typename T>
constexpr NearestPatchKernels<T> nearest_patch_kernels() {
  return {
      .panel_lanes = kLanes<T>,
      .block_rows = kRows,
      .access = patch_access<T>(),
      .find_centre = find_centre<T>,
      .pack_panel = pack_panel<T>,
      .pack_images = pack_images<T>,
      .search = search<T>,
      .find_slopes = find_slopes<T>,
      .add_to_patches = add_to_patches<T>,
      .add_to_prototypes = add_to_prototypes<T>,
  };
}

}  // namespace
}  // namespace protofast
