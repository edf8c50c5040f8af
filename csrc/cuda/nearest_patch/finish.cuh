// What the selection proposed becomes results: distances, locations and activations. No torch.
//
// A score is a distance only to within a known error. Two cases need a second look at the numbers
// themselves, by direct differences and in float32, exactly as the plain kernel takes them:
//
//   doubt about the place   another location's score is within the error of the least: all patches
//                           are looked at anew. So the location is that of the plain kernel, ties
//                           and NaN included, however the tensor cores round.
//   doubt about the value   the error is not small beside the distance: the distance to the one
//                           patch is taken anew. So a projected patch has distance 0.
//
// One thread has one pair; where there is doubt, its whole warp works on that pair. Every sum is in
// the plain kernel's order, so that it has the plain kernel's bits.

#pragma once

#include "cuda/nearest_patch/packing.cuh"
#include "cuda/nearest_patch/similarity.cuh"
#include "cuda/threads.cuh"

namespace protofast::cuda {

template <typename Feature>
struct Finish {
  const Feature* features;  // [N, D, H, W] by layout
  FeatureLayout layout;
  const float* prototypes;     // [P, D]
  const float* squared_norms;  // [P]; infinite where the prototype did not fit
  const Column* columns;       // [N][patch_rows]
  float* distances;            // [N, P]; before: the least scores
  float* activations;          // [N, P]; before: the second least scores
  int64_t* locations;          // [N, P]; before: of the least scores
  int64_t patch_rows, prototype_count, pair_count;
  Metric metric;
  float error;         // as in column_of
  bool settle_places;  // whether doubt about the place is settled
  float refine_below;  // doubt about the value: distances below this part of the norms
  SimilarityFunction<float> similarity;
};

// ---------------------------------------------------------------- what a score says

enum class Doubt { kNone, kValue, kPlace };

struct Estimate {
  float distance;  // for `l2` squared
  Doubt doubt;
};

// What the scores of a pair say about its distance; `column` is the winner's.
PROTOFAST_HOST_DEVICE inline Estimate estimate(
    Metric metric,
    float best,
    float second,
    const Column& column,
    float prototype_squared_norm,
    float error,
    bool settle_places,
    float refine_below
) {
  const float p = prototype_squared_norm;
  float distance, size, doubtful;  // doubtful: how far apart scores can be and yet be equal
  if (is_difference(metric)) {
    const float z = column.offset / (1.0f - error);
    size = z + p;
    doubtful = 2.0f * error * size;
    distance = std::fmax(best + error * z + p, 0.0f);
  } else {
    const float of_unit_prototype = best - column.offset;
    const float norm = metric == Metric::kDot ? std::sqrt(p) : 1.0f;
    size = metric == Metric::kDot ? norm : 1.0f;
    doubtful = -2.0f * column.offset;
    distance = of_unit_prototype * norm;
  }
  // What did not fit has infinite scores or norms; written so that NaN is doubt too.
  const bool fits = best > -INFINITY && best < INFINITY && p < kHuge && size > kTiny;
  const bool apart = second - best > 1.01f * doubtful;  // 1 %: the rounding of these lines
  if (!fits || (settle_places && !apart)) return {distance, Doubt::kPlace};
  const bool near =
      is_difference(metric) ? distance < refine_below * size : refine_below == INFINITY;
  return {distance, near ? Doubt::kValue : Doubt::kNone};
}

// ---------------------------------------------------------------- direct differences

// Sum over the depth of one pair's terms, by one thread.
template <bool kDifference, typename Feature>
PROTOFAST_HOST_DEVICE float direct_sum(
    const Feature* patch, int64_t channel_stride, const float* prototype, int64_t depth
) {
  float total = 0;
  for (int64_t start = 0; start < depth; start += kRun) {
    float run = 0;
    for (int64_t d = start; d < run_end(start, depth); ++d) {
      const float z = static_cast<float>(patch[d * channel_stride]);
      run = add_term<kDifference>(run, z, prototype[d]);
    }
    total += run;
  }
  return total;
}

// The distance of one pair, by one thread; for `l2` squared.
template <typename Feature>
PROTOFAST_HOST_DEVICE float direct_distance(
    const Finish<Feature>& f, int64_t image, int64_t location, const float* prototype
) {
  const int64_t depth = f.layout.depth, stride = f.layout.channel_stride;
  const Feature* patch = f.features + f.layout.patch(image, location);
  if (is_difference(f.metric)) return direct_sum<true>(patch, stride, prototype, depth);
  const float sum = direct_sum<false>(patch, stride, prototype, depth);
  if (f.metric == Metric::kDot) return sum;
  const float norms = std::sqrt(squared_norm<float>(patch, depth, stride)) *
                      std::sqrt(squared_norm<float>(prototype, depth, 1));
  return negative_cosine(sum, norms);
}

// Sum over the runs of `depth` terms: each thread of the warp takes runs, which are then added in
// their order.
template <typename Warp, typename RunOf>
PROTOFAST_DEVICE float sum_of_runs(const Warp& warp, int64_t depth, RunOf run_of) {
  float total = 0;
  for (int64_t first = 0; first < depth; first += kWarp * kRun) {
    typename Warp::template PerThread<float> runs;
    warp.each([&](int lane) {
      const int64_t start = first + lane * kRun;
      runs[lane] = start < depth ? run_of(start, run_end(start, depth)) : 0.0f;
    });
    for (int lane = 0; lane < kWarp && first + lane * kRun < depth; ++lane) {
      total += warp.broadcast([&](int thread) { return runs[thread]; }, lane);
    }
  }
  return total;
}

// The distance of one pair, by a warp; for `l2` squared.
template <typename Feature, typename Warp>
PROTOFAST_DEVICE float refined_distance(
    const Warp& warp, const Finish<Feature>& f, int64_t image, int64_t location, int64_t prototype
) {
  const int64_t depth = f.layout.depth, stride = f.layout.channel_stride;
  const Feature* patch = f.features + f.layout.patch(image, location);
  const float* other = f.prototypes + prototype * depth;
  const bool difference = is_difference(f.metric);
  const float sum = sum_of_runs(warp, depth, [&](int64_t start, int64_t end) {
    float run = 0;
    for (int64_t d = start; d < end; ++d) {
      const float z = static_cast<float>(patch[d * stride]);
      run = difference ? add_term<true>(run, z, other[d]) : add_term<false>(run, z, other[d]);
    }
    return run;
  });
  if (f.metric != Metric::kCosine) return sum;
  const float z = sum_of_runs(warp, depth, [&](int64_t start, int64_t end) {
    return squares_of_run<float>(patch, stride, start, end);
  });
  const float p = sum_of_runs(warp, depth, [&](int64_t start, int64_t end) {
    return squares_of_run<float>(other, 1, start, end);
  });
  return negative_cosine(sum, std::sqrt(z) * std::sqrt(p));
}

// ---------------------------------------------------------------- all patches of an image

struct Place {
  float distance;
  int64_t location;
};

// Of two places the nearer; NaN is nearest, and of equals the first.
PROTOFAST_HOST_DEVICE inline Place nearer_place(const Place& a, const Place& b) {
  const bool a_nan = a.distance != a.distance, b_nan = b.distance != b.distance;
  if (a_nan != b_nan) return a_nan ? a : b;
  if (a_nan || a.distance == b.distance) return a.location < b.location ? a : b;
  return a.distance < b.distance ? a : b;
}

// The place nearest to a prototype, by a warp: each thread takes every 32nd patch.
template <typename Feature, typename Warp>
PROTOFAST_DEVICE Place
settled_place(const Warp& warp, const Finish<Feature>& f, int64_t image, int64_t prototype) {
  const float* other = f.prototypes + prototype * f.layout.depth;
  typename Warp::template PerThread<Place> places, others;
  warp.each([&](int lane) {
    places[lane] = {INFINITY, INT64_MAX};  // of a thread without patches; never the result
    for (int64_t location = lane; location < f.layout.locations; location += kWarp) {
      const Place place{direct_distance(f, image, location, other), location};
      places[lane] = nearer_place(places[lane], place);
    }
  });
  for (int x = 1; x < kWarp; x *= 2) {
    warp.exchange(
        x,
        [&](int lane) { return places[lane].distance; },
        [&](int lane, float distance) { others[lane].distance = distance; }
    );
    warp.exchange(
        x,
        [&](int lane) { return places[lane].location; },
        [&](int lane, int64_t location) { others[lane].location = location; }
    );
    warp.each([&](int lane) { places[lane] = nearer_place(places[lane], others[lane]); });
  }
  return {
      warp.broadcast([&](int lane) { return places[lane].distance; }, 0),
      warp.broadcast([&](int lane) { return places[lane].location; }, 0)
  };
}

// ---------------------------------------------------------------- the kernel

constexpr int kFinishThreads = 128;

// One warp: 32 pairs from first_pair on.
template <typename Feature, typename Warp>
PROTOFAST_DEVICE void finish_pairs(const Warp& warp, const Finish<Feature>& f, int64_t first_pair) {
  typename Warp::template PerThread<Estimate> estimates;
  typename Warp::template PerThread<int64_t> locations;
  warp.each([&](int lane) {
    estimates[lane] = {0.0f, Doubt::kNone};
    const int64_t index = first_pair + lane;
    if (index >= f.pair_count) return;
    const Pair pair = split_pair(index, f.prototype_count);
    locations[lane] = f.locations[index];
    estimates[lane] = estimate(
        f.metric,
        f.distances[index],
        f.activations[index],
        f.columns[pair.image * f.patch_rows + locations[lane]],
        f.squared_norms[pair.prototype],
        f.error,
        f.settle_places,
        f.refine_below
    );
  });

  const uint32_t of_place =
      warp.any([&](int lane) { return estimates[lane].doubt == Doubt::kPlace; });
  const uint32_t of_value =
      warp.any([&](int lane) { return estimates[lane].doubt == Doubt::kValue; });
  for (uint32_t doubts = of_place | of_value; doubts != 0; doubts &= doubts - 1) {
    const int owner = first_bit(doubts);
    const Pair pair = split_pair(first_pair + owner, f.prototype_count);
    Place place{0.0f, warp.broadcast([&](int lane) { return locations[lane]; }, owner)};
    if (of_place >> owner & 1) {
      place = settled_place(warp, f, pair.image, pair.prototype);
    } else {
      place.distance = refined_distance(warp, f, pair.image, place.location, pair.prototype);
    }
    warp.each([&](int lane) {
      if (lane != owner) return;
      estimates[lane].distance = place.distance;
      locations[lane] = place.location;
    });
  }

  warp.each([&](int lane) {
    const int64_t index = first_pair + lane;
    if (index >= f.pair_count) return;
    const float distance =
        f.metric == Metric::kL2 ? std::sqrt(estimates[lane].distance) : estimates[lane].distance;
    f.distances[index] = distance;
    f.locations[index] = locations[lane];
    f.activations[index] = f.similarity(distance);
  });
}

}  // namespace protofast::cuda
