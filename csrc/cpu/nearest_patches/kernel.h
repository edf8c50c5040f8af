// nearest_patches on the CPU: for every image and prototype the k least distances, nearest first,
// equal ones by location.
//
// Everything but what is carried along is nearest_patch's (cpu/nearest_patch/kernel.h): one pass of
// scores, no map [N, P, L]. Each lane carries its k + 1 best scores, in order, through the rows of
// an image. The k best are the nearest ones unless the guard, the one after them, is closer to the
// last of them than rounding allows to tell; their distances are computed again as sum (z - p)^2,
// and by these they are put in order. Otherwise, and where NaN, infinity or overflow is about, the
// pair is scanned by direct differences over all locations. Patches that repeat an earlier one
// count.
#pragma once

#include "cpu/nearest_patch/kernel.h"
#include "cpu/nearest_patches/kernels.h"

namespace protofast {
namespace {

// The best scores of one image so far, best first, for each lane of a panel.
template <typename T>
struct Ranking {
  Vector<T> scores[kMostPatches + 1][2];
  Integers<T> locations[kMostPatches + 1][2];
};

template <typename T>
inline void start(Ranking<T>& ranking, int64_t k) {
  for (int64_t i = 0; i <= k; ++i) {
    for (int v = 0; v < 2; ++v) {
      ranking.scores[i][v] = splat(-Limits<T>::kInfinity);
      ranking.locations[i][v] = Integers<T>{};
    }
  }
}

// Puts the score of a row where it belongs; a later one goes behind its equals.
template <Metric metric, int vectors, typename T>
inline void rank_row(Ranking<T>& ranking, int64_t k, const T* scores, T term, int64_t location) {
  for (int v = 0; v < vectors; ++v) {
    const Vector<T> product = load(scores + v * kWidth<T>);
    Vector<T> score = metric == Metric::kCosine ? product * term : product - term;
    Integers<T> place = Integers<T>{} + static_cast<typename Limits<T>::Integer>(location);
    for (int64_t i = 0; i <= k; ++i) {
      const Vector<T> here = ranking.scores[i][v];
      const Integers<T> there = ranking.locations[i][v];
      const auto better = score > here;
      ranking.scores[i][v] = better ? score : here;
      ranking.locations[i][v] = better ? place : there;
      score = better ? here : score;
      place = better ? there : place;
    }
  }
}

// The nearest patches of one pair, nearest first.
template <typename T>
struct Nearest {
  T distances[kMostPatches];
  int64_t locations[kMostPatches];
  int64_t count = 0;
};

// NaN first, then the nearer one, then the one of the first location.
template <typename T>
inline bool precedes(T distance, int64_t location, T other, int64_t other_location) {
  const bool unknown = distance != distance, other_unknown = other != other;
  if (unknown != other_unknown) return unknown;
  if (unknown || distance == other) return location < other_location;
  return distance < other;
}

template <typename T>
inline void insert(Nearest<T>& nearest, int64_t k, T distance, int64_t location) {
  int64_t i = nearest.count;
  while (i > 0 &&
         precedes(distance, location, nearest.distances[i - 1], nearest.locations[i - 1])) {
    --i;
  }
  if (i == k) return;
  nearest.count = at_most(nearest.count + 1, k);
  for (int64_t j = nearest.count - 1; j > i; --j) {
    nearest.distances[j] = nearest.distances[j - 1];
    nearest.locations[j] = nearest.locations[j - 1];
  }
  nearest.distances[i] = distance;
  nearest.locations[i] = location;
}

// Writes what an image has found for the prototypes of a panel.
template <Metric metric, int vectors, typename T>
__attribute__((noinline)) void settle_ranking(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t image,
    int64_t panel,
    int64_t k,
    const Ranking<T>& ranking,
    const SimilarityFunction& similarity,
    const NearestOutputs<T>& outputs
) {
  Running<T> boundary = nothing_yet<T>();
  for (int v = 0; v < vectors; ++v) {
    boundary.best[v] = ranking.scores[k - 1][v];
    boundary.second[v] = ranking.scores[k][v];
  }
  Winners<T> certain;
  choose<metric, vectors>(prototypes, panel, images.largest[image], boundary, certain);
  const int64_t depth = prototypes.depth, first_lane = panel * kLanes<T>;
  const int64_t used = at_most(prototypes.count - first_lane, kLanes<T>);
  const int64_t first_slot = (image * prototypes.count + first_lane) * k;
  const PatchRows<T> patches = images.patches[image];
  for (int64_t lane = 0; lane < used; ++lane) {
    const T* prototype = prototypes.rows + (first_lane + lane) * depth;
    Nearest<T> nearest;
    const auto look_at = [&](int64_t l) {
      const T* patch = patches.rows + l * patches.stride;
      insert(nearest, k, pair_distance(patch, prototype, depth, prototypes.metric), l);
    };
    if (certain.of_lane[lane] != kUncertain) {
      for (int64_t i = 0; i < k; ++i) {
        look_at(ranking.locations[i][lane / kWidth<T>][lane % kWidth<T>]);
      }
    } else {
      for (int64_t l = 0; l < images.locations; ++l) look_at(l);
    }
    const int64_t slot = first_slot + lane * k;
    __builtin_memcpy(outputs.distances + slot, nearest.distances, k * sizeof(T));
    __builtin_memcpy(outputs.locations + slot, nearest.locations, k * sizeof(int64_t));
  }
  const T* distances = outputs.distances + first_slot;
  similarities(distances, used * k, similarity, outputs.activations + first_slot);
}

template <Metric metric, int vectors, typename T>
void rank_panel(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t panel,
    int64_t k,
    const SimilarityFunction& similarity,
    const NearestOutputs<T>& outputs
) {
  const int64_t depth = prototypes.depth, rows = images.count * images.locations;
  alignas(PROTOFAST_VECTOR_BYTES) T scores[kGroupBlocks * kRows * kLanes<T>];
  Ranking<T> ranking;
  start(ranking, k);
  const int64_t group = kRows * (depth > kSegment ? kGroupBlocks : 1);
  int64_t image = 0, location = 0;
  for (int64_t first_row = 0; first_row < rows; first_row += group) {
    const int64_t used = at_most(rows - first_row, group);
    const T* blocks = images.blocks + first_row * depth;
    multiply_group<vectors>(blocks, used, panel_of(prototypes, panel), depth, scores);
    for (int64_t r = 0; r < used; ++r) {
      const T term = images.terms[first_row + r];
      rank_row<metric, vectors>(ranking, k, scores + r * kLanes<T>, term, location);
      if (++location < images.locations) continue;
      settle_ranking<metric, vectors>(
          prototypes, images, image, panel, k, ranking, similarity, outputs
      );
      start(ranking, k);
      location = 0;
      ++image;
    }
  }
}

template <typename T>
void search_nearest(
    const PackedPrototypes<T>& prototypes,
    const PackedImages<T>& images,
    int64_t panel,
    int64_t k,
    const SimilarityFunction& similarity,
    const NearestOutputs<T>& outputs
) {
  const auto run = [&]<Metric metric>() {
    if (prototypes.count - panel * kLanes<T> > kWidth<T>) {
      rank_panel<metric, 2>(prototypes, images, panel, k, similarity, outputs);
    } else {
      rank_panel<metric, 1>(prototypes, images, panel, k, similarity, outputs);
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
constexpr NearestPatchesKernels<T> nearest_patches_kernels() {
  return {.search = search_nearest<T>};
}

}  // namespace
}  // namespace protofast
