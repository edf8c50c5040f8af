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
// A worker takes a few images (kChunkBytes in forward.h), packs them into its workspace, which
// stays in the L2 cache, and goes through the panels of prototypes. A panel stays in the L1 cache
// while the images go past it; one too deep for that goes in steps.
//
// coded_kernel.h does the same with products of integers.
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

// One step of multiply_block; pairs of codes have one of their own (coded_kernel.h).
template <typename T>
inline Vector<T> multiply_add(Vector<T> sum, Vector<T> lanes, Vector<T> patch) {
  return sum + lanes * patch;
}

// scores[r][lane] = sum over d of block[d][r] * panel[d][lane], for the first `rows` rows and the
// first `vectors` vectors of lanes: where the time goes. With `add` the sums are added to the
// scores that are there.
template <int rows, int vectors, typename T>
inline void multiply_block(const T* block, const T* panel, int64_t depth, bool add, T* scores) {
  Vector<T> sums[rows][vectors] = {};
  for (int64_t d = 0; d < depth; ++d) {
    Vector<T> lanes[vectors];
    for (int v = 0; v < vectors; ++v) {
      lanes[v] = load(panel + v * kWidth<T>);
      PROTOFAST_KEEP_IN_REGISTER(lanes[v]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      Vector<T> patch = splat(block[r]);
      PROTOFAST_KEEP_IN_REGISTER(patch);
      for (int v = 0; v < vectors; ++v) sums[r][v] = multiply_add<T>(sums[r][v], lanes[v], patch);
    }
    block += kRows;
    panel += kLanes<T>;
  }
  if (add) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < vectors; ++v) sums[r][v] += load(scores + r * kLanes<T> + v * kWidth<T>);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) store(scores + r * kLanes<T> + v * kWidth<T>, sums[r][v]);
  }
}

// A panel of great depth does not fit into the L1 cache beside the blocks: it is taken in segments,
// each against all blocks of a group, whose sums wait in `scores`. The sum of a segment begins at
// 0: one long sum of like terms drifts away by D / 4 roundings, because they all go one way.
constexpr int64_t kGroupBlocks = 8;

// The scores of `rows` rows, of blocks that follow one another. Of the last one only half is
// computed if that is enough: with one image of 7 x 7 it is an eighth of the work.
template <int vectors, typename T>
inline void multiply_group(
    const T* blocks, int64_t rows, const T* panel, int64_t depth, T* scores
) {
  for (int64_t d = 0; d < depth; d += kSegment) {
    const int64_t step = at_most(depth - d, kSegment);
    const T* part = panel + d * kLanes<T>;
    for (int64_t first = 0; first < rows; first += kRows) {
      const T* block = blocks + first * depth + d * kRows;
      T* sums = scores + first * kLanes<T>;
      if (rows - first > kRows / 2) {
        multiply_block<kRows, vectors>(block, part, step, d > 0, sums);
      } else {
        multiply_block<kRows / 2, vectors>(block, part, step, d > 0, sums);
      }
    }
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

template <typename T>
inline void take_score(Running<T>& running, int v, Vector<T> score, int64_t location) {
  const Integers<T> here = Integers<T>{} + static_cast<typename Limits<T>::Integer>(location);
  const Vector<T> best = running.best[v], second = running.second[v];
  const Vector<T> lesser = best < score ? best : score;  // NaN if the score is
  running.second[v] = lesser > second ? lesser : second;
  running.location[v] = score > best ? here : running.location[v];
  running.best[v] = score > best ? score : best;
}

template <Metric metric, int vectors, typename T>
inline void take_row(Running<T>& running, const T* scores, T term, int64_t location) {
  for (int v = 0; v < vectors; ++v) {
    const Vector<T> product = load(scores + v * kWidth<T>);
    take_score<T>(
        running, v, metric == Metric::kCosine ? product * term : product - term, location
    );
  }
}

// Of the L2 metrics, by how much rounding can put the score of a nearer patch below the best one.
// In both scores z.p and |z|^2 / 2 drift: by 2 |z| |p| + |z|^2 <= |p|^2 + 2 |z|^2 together. And a
// rival of distance d has |z| <= |p| + sqrt(d): by no more than 1.61 (3 |p|^2 + 2 d).
template <typename T>
inline Vector<T> rounding_error(Vector<T> norm, Vector<T> distance, T largest, T tolerance) {
  const Vector<T> of_any = norm + T(2) * largest * largest;
  const Vector<T> of_rival = T(1.61) * (T(3) * norm + T(2) * distance);
  return tolerance * (of_any < of_rival ? of_any : of_rival) + Limits<T>::kSmallestNorm;
}

// Of the L2 metrics, where the best score tells the winner: not where the runner-up is within the
// error, or the distance is about zero, or a number is NaN.
template <typename T>
inline Integers<T> certain(Vector<T> best, Vector<T> second, Vector<T> norm, Vector<T> error) {
  return (best - second > error) & (norm - T(2) * best > T(2) * error);
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
    const Vector<T> distance = norm - T(2) * running.best[v];
    const Vector<T> error = rounding_error<T>(norm, distance, largest, tolerance);
    return ~certain<T>(running.best[v], running.second[v], norm, error);
  } else {
    const T scale = metric == Metric::kDot ? largest : T(1);
    // Likely, not at most: a quarter of it, as like terms drift.
    return ~(gap > tolerance / 4 * scale * norm + least);
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

// Where the images that a panel has been through find their winners, or kUncertain. They wait here
// until there are kWaiting of them: refining one prototype against many images reads it from the L1
// cache, and drives the panel out of it once instead of once per image.
constexpr int kWaiting = 16;
constexpr int kUncertain = -1;

template <typename T>
struct Winners {
  typename Limits<T>::Integer of_lane[kLanes<T>];
};

template <Metric metric, int vectors, typename T>
inline void choose(
    const PackedPrototypes<T>& prototypes,
    int64_t panel,
    T largest,  // |z| of the image
    const Running<T>& running,
    Winners<T>& winners
) {
  const T* norms = norms_of(prototypes, panel);
  const Integers<T> unusable = Integers<T>{} - (largest == largest ? 0 : 1);
  for (int v = 0; v < vectors; ++v) {
    const Integers<T> uncertain =
        unusable | uncertain_lanes<metric>(running, v, norms, largest, prototypes.tolerance);
    const Integers<T> chosen = uncertain | running.location[v];  // all bits set: kUncertain
    __builtin_memcpy(winners.of_lane + v * kWidth<T>, &chosen, sizeof(chosen));
  }
}

// Writes what images [first, first + count) have found for the prototypes of a panel. Distances are
// gathered here and written out image by image: the outputs of two images lie far apart.
template <typename T>
__attribute__((noinline)) void settle(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t first,
    int64_t count,
    int64_t panel,
    Winners<T>* winners,
    const SimilarityFunction& similarity,
    const NearestOutputs<T>& outputs
) {
  const int64_t depth = prototypes.depth, first_lane = panel * kLanes<T>;
  const int64_t used = at_most(prototypes.count - first_lane, kLanes<T>);
  const PatchRows<T>* patches = images.patches + first;
  T distances[kWaiting][kLanes<T>];
  for (int64_t lane = 0; lane < used; ++lane) {
    const T* prototype = prototypes.rows + (first_lane + lane) * depth;
    for (int64_t i = 0; i < count; ++i) {
      auto& winner = winners[i].of_lane[lane];
      if (winner != kUncertain) {
        const T* patch = patches[i].rows + winner * patches[i].stride;
        distances[i][lane] = pair_distance(patch, prototype, depth, prototypes.metric);
      } else {
        int64_t location;
        distances[i][lane] =
            scan(patches[i], images.locations, prototype, depth, prototypes.metric, &location);
        winner = static_cast<typename Limits<T>::Integer>(location);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t slot = (first + i) * prototypes.count + first_lane;
    __builtin_memcpy(outputs.distances + slot, distances[i], used * sizeof(T));
    for (int64_t lane = 0; lane < used; ++lane) {
      outputs.locations[slot + lane] = winners[i].of_lane[lane];
    }
    similarities(distances[i], used, similarity, outputs.activations + slot);
  }
}

// Takes the rows of a panel's images, `group` at a time: multiply(first_row, used) makes products
// of rows [first_row, first_row + used), take(running, first_row, r, location) looks at row
// first_row + r, and choose(image, running, winners) ends an image.
template <typename T, typename Multiply, typename Take, typename Choose>
inline void search_rows(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t panel,
    int64_t group,
    const Multiply& multiply,
    const Take& take,
    const Choose& choose,
    const SimilarityFunction& similarity,
    const NearestOutputs<T>& outputs
) {
  const int64_t rows = images.count * images.locations;
  Winners<T> winners[kWaiting];
  Running<T> running = nothing_yet<T>();
  int64_t settled = 0, image = 0, location = 0;
  for (int64_t first_row = 0; first_row < rows; first_row += group) {
    const int64_t used = at_most(rows - first_row, group);
    multiply(first_row, used);
    for (int64_t r = 0; r < used;) {
      const int64_t end = at_most(r + images.locations - location, used);
      for (; r < end; ++r, ++location) take(running, first_row, r, location);
      if (location < images.locations) break;
      choose(image, running, winners[image - settled]);
      running = nothing_yet<T>();
      location = 0;
      if (++image - settled == kWaiting || image == images.count) {
        const int64_t count = image - settled;
        settle(prototypes, images, settled, count, panel, winners, similarity, outputs);
        settled = image;
      }
    }
  }
}

template <Metric metric, int vectors, typename T>
void search_panel(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t panel,
    const SimilarityFunction& similarity,
    const NearestOutputs<T>& outputs
) {
  const int64_t depth = prototypes.depth;
  const T* packed = panel_of(prototypes, panel);
  alignas(PROTOFAST_VECTOR_BYTES) T scores[kGroupBlocks * kRows * kLanes<T>];
  search_rows(
      prototypes,
      images,
      panel,
      kRows * (depth > kSegment ? kGroupBlocks : 1),
      [&](int64_t first_row, int64_t used) {
        multiply_group<vectors>(images.blocks + first_row * depth, used, packed, depth, scores);
      },
      [&](Running<T>& running, int64_t first_row, int64_t r, int64_t location) {
        const T term = images.terms[first_row + r];
        take_row<metric, vectors>(running, scores + r * kLanes<T>, term, location);
      },
      [&](int64_t image, const Running<T>& running, Winners<T>& winners) {
        const T largest = images.largest[image];
        choose<metric, vectors>(prototypes, panel, largest, running, winners);
      },
      similarity,
      outputs
  );
}

template <typename T>
void search(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t panel,
    const SimilarityFunction& similarity,
    const NearestOutputs<T>& outputs
) {
  const auto run = [&]<Metric metric>() {
    if (prototypes.count - panel * kLanes<T> > kWidth<T>) {
      search_panel<metric, 2>(prototypes, images, panel, similarity, outputs);
    } else {
      search_panel<metric, 1>(prototypes, images, panel, similarity, outputs);
    }
  };
  switch (prototypes.metric) {
    case Metric::kSquaredL2:
    case Metric::kL2:
      return run.template operator()<Metric::kSquaredL2>();
    case Metric::kDot:
      return run.template operator()<Metric::kDot>();
    case Metric::kCosine:
      return run.template operator()<Metric::kCosine>();
  }
}

template <typename T>
constexpr NearestPatchKernels<T> nearest_patch_kernels() {
  return {
      .panel_lanes = kLanes<T>,
      .block_rows = kRows,
      .coded = false,
      .access = patch_access<T>(),
      .find_centre = find_centre<T>,
      .pack_panel = pack_panel<T>,
      .pack_images = pack_images<T>,
      .search = search<T>,
      .find_slopes = find_slopes<T>,
      .sum_up_patches = sum_up_patches<T>,
      .add_to_prototypes = add_to_prototypes<T>,
  };
}

}  // namespace
}  // namespace protofast
