// The backward pass of nearest_patch by buckets: every patch gathers from its own prototypes alone.
//
// Gradients flow through the winning location of each pair. A stable counting sort of each image's
// locations puts the prototypes that chose a patch side by side, in their order; then 32 threads
// have one patch and 128 channels of it, and add up. For prototypes, 32 threads go through the
// images. Each sum has one owner and one order, that of the plain kernels (plain.cuh), whose bits
// it has: no atomics. No torch.

#pragma once

#include "cuda/nearest_patch/plain.cuh"
#include "cuda/threads.cuh"

namespace protofast::cuda {

// ---------------------------------------------------------------- sorting

constexpr int kBucketThreads = 256;
constexpr int kBucketWarps = kBucketThreads / kWarp;
constexpr int kBucketSharedInts = 48 * 1024 / 4;  // what every GPU gives a block unasked

// Warps that count at the same time, each in a table of its own; 0: too many locations.
PROTOFAST_HOST_DEVICE constexpr int bucket_ranges(int64_t locations) {
  const int64_t tables = kBucketSharedInts / locations - 2;  // two for the sums over locations
  return tables < 0 ? 0 : static_cast<int>(tables < kBucketWarps ? tables : kBucketWarps);
}

struct Buckets {
  const int64_t* locations;  // [N, P]; what lies outside [0, L) is in no bucket
  int32_t* order;            // [N, P]: prototypes by location, then by number
  int32_t* starts;           // [N, L + 1]: where the bucket of each location begins in `order`
  int64_t image_count, prototype_count, location_count;
  int ranges;  // bucket_ranges(L)

  // Prototypes of each range, a multiple of the warp's size.
  PROTOFAST_HOST_DEVICE int64_t range_size() const {
    const int64_t batch = int64_t{kWarp} * ranges;
    return (prototype_count + batch - 1) / batch * kWarp;
  }
  PROTOFAST_HOST_DEVICE int shared_ints() const {
    return static_cast<int>((ranges + 2) * location_count);
  }
};

// One block: sorts the locations of one image. `shared` has shared_ints() numbers.
//
// Each warp has a range of prototypes and takes 32 at a time: those of one location find each other
// by match(), so that the first of them can count for all and each knows its rank.
template <typename Threads>
PROTOFAST_DEVICE void sort_image(
    const Threads& block, const Buckets& b, int64_t image, int* shared
) {
  const int64_t count = b.location_count;
  int* tables = shared;  // [ranges][L]: how many, then where the next one goes
  int* sums = shared + b.ranges * count;
  int* next_sums = sums + count;
  typename Threads::template PerThread<int> location;
  typename Threads::template PerThread<uint32_t> equals;

  const auto prototype_of = [&](int thread, int64_t first) {
    return thread / kWarp * b.range_size() + first + thread % kWarp;
  };
  const auto read_batch = [&](int64_t first) {
    block.each([&](int thread) {
      const int64_t prototype = prototype_of(thread, first);
      const bool some = thread / kWarp < b.ranges && prototype < b.prototype_count;
      const int64_t at = some ? b.locations[image * b.prototype_count + prototype] : -1;
      location[thread] = at >= 0 && at < count ? static_cast<int>(at) : -1;
    });
    block.match(
        [&](int thread) { return location[thread]; },
        [&](int thread, uint32_t mask) { equals[thread] = mask; }
    );
  };
  const auto count_batch = [&] {
    block.each([&](int thread) {
      const bool first_of_equals = first_bit(equals[thread]) == thread % kWarp;
      if (location[thread] < 0 || !first_of_equals) return;
      tables[thread / kWarp * count + location[thread]] += count_bits(equals[thread]);
    });
    block.sync_warp();
  };

  block.each([&](int thread) {
    for (int64_t i = thread; i < b.ranges * count; i += kBucketThreads) tables[i] = 0;
  });
  block.sync();
  for (int64_t first = 0; first < b.range_size(); first += kWarp) {
    read_batch(first);
    count_batch();
  }
  block.sync();

  block.each([&](int thread) {
    for (int64_t l = thread; l < count; l += kBucketThreads) {
      int sum = 0;
      for (int range = 0; range < b.ranges; ++range) {
        const int here = tables[range * count + l];
        tables[range * count + l] = sum;
        sum += here;
      }
      sums[l] = sum;
    }
  });
  block.sync();
  for (int64_t reach = 1; reach < count; reach *= 2) {  // sums over all locations up to each
    block.each([&](int thread) {
      for (int64_t l = thread; l < count; l += kBucketThreads) {
        next_sums[l] = sums[l] + (l >= reach ? sums[l - reach] : 0);
      }
    });
    block.sync();
    int* const swapped = sums;
    sums = next_sums;
    next_sums = swapped;
  }
  block.each([&](int thread) {
    int32_t* starts = b.starts + image * (count + 1);
    for (int64_t l = thread; l < count; l += kBucketThreads) {
      const int start = l == 0 ? 0 : sums[l - 1];
      starts[l] = start;
      if (l + 1 == count) starts[count] = sums[l];
      for (int range = 0; range < b.ranges; ++range) tables[range * count + l] += start;
    }
  });
  block.sync();

  for (int64_t first = 0; first < b.range_size(); first += kWarp) {
    read_batch(first);
    block.each([&](int thread) {
      if (location[thread] < 0) return;
      const int rank = count_bits(equals[thread] & ((1u << thread % kWarp) - 1));
      const int place = tables[thread / kWarp * count + location[thread]] + rank;
      b.order[image * b.prototype_count + place] =
          static_cast<int32_t>(prototype_of(thread, first));
    });
    block.sync_warp();
    count_batch();
  }
}

// ---------------------------------------------------------------- gathering

constexpr int kThreadChannels = 4;  // of one thread, 32 apart
constexpr int kStripChannels = kThreadChannels * kWarp;

PROTOFAST_HOST_DEVICE constexpr int64_t strips(int64_t depth) {
  return (depth + kStripChannels - 1) / kStripChannels;
}

// Thread `index` of those that share rows of channels: [rows, strips, 32].
struct StripPlace {
  int64_t row, first_channel;
};

PROTOFAST_HOST_DEVICE inline StripPlace strip_place(int64_t index, int64_t depth) {
  const int64_t strip = index / kWarp;
  return {strip / strips(depth), strip % strips(depth) * kStripChannels + index % kWarp};
}

// index in [0, N * L * strips * 32) -> up to 4 channels of grad_features of one patch.
template <typename Compute, typename Feature>
struct BucketFeatureGradient {
  Backward<Compute, Feature> backward;
  const int32_t* order;    // [N, P]
  const int32_t* starts;   // [N, L + 1]
  Feature* grad_features;  // [N, D, H, W] by grad_layout
  FeatureLayout grad_layout;

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const FeatureLayout& layout = backward.layout;
    const StripPlace place = strip_place(index, layout.depth);
    const int64_t image = place.row / layout.locations, location = place.row % layout.locations;
    const int64_t offset = layout.patch(image, location);
    const int64_t first_pair = image * backward.prototype_count;
    const int32_t* bounds = starts + image * (layout.locations + 1) + location;
    Compute own[kThreadChannels] = {}, sums[kThreadChannels] = {};
    PROTOFAST_UNROLL
    for (int i = 0; i < kThreadChannels; ++i) {
      const int64_t channel = place.first_channel + i * kWarp;
      if (channel >= layout.depth) continue;
      own[i] = static_cast<Compute>(backward.features[offset + channel * layout.channel_stride]);
    }
    PROTOFAST_UNROLL_BY_4
    for (int32_t entry = bounds[0]; entry < bounds[1]; ++entry) {
      const int64_t p = order[first_pair + entry];
      const Compute gradient = backward.gradients[first_pair + p];
      const Compute distance = backward.distances[first_pair + p];
      const Across across = backward.across(first_pair + p);
      PROTOFAST_UNROLL
      for (int i = 0; i < kThreadChannels; ++i) {
        const int64_t channel = place.first_channel + i * kWarp;
        if (channel >= layout.depth) continue;
        const Compute other = backward.prototypes[p * layout.depth + channel];
        sums[i] = add_gradient(
            backward.metric,
            sums[i],
            gradient,
            distance,
            own[i],
            other,
            across.scale,
            across.along_patch
        );
      }
    }
    const int64_t to = grad_layout.patch(image, location);
    PROTOFAST_UNROLL
    for (int i = 0; i < kThreadChannels; ++i) {
      const int64_t channel = place.first_channel + i * kWarp;
      if (channel >= layout.depth) continue;
      grad_features[to + channel * grad_layout.channel_stride] = static_cast<Feature>(sums[i]);
    }
  }
};

// index in [0, P * strips * 32) -> up to 4 channels of grad_prototypes of one prototype.
template <typename Compute, typename Feature>
struct StripPrototypeGradient {
  Backward<Compute, Feature> backward;
  Compute* grad_prototypes;  // [P, D]

  PROTOFAST_HOST_DEVICE void operator()(int64_t index) const {
    const FeatureLayout& layout = backward.layout;
    const StripPlace place = strip_place(index, layout.depth);
    const int64_t p = place.row;
    Compute own[kThreadChannels] = {}, sums[kThreadChannels] = {};
    PROTOFAST_UNROLL
    for (int i = 0; i < kThreadChannels; ++i) {
      const int64_t channel = place.first_channel + i * kWarp;
      if (channel < layout.depth) own[i] = backward.prototypes[p * layout.depth + channel];
    }
    PROTOFAST_UNROLL_BY_4
    for (int64_t n = 0; n < backward.image_count; ++n) {
      const int64_t pair = n * backward.prototype_count + p;
      const int64_t location = backward.locations[pair];
      if (location < 0 || location >= layout.locations) continue;
      const Compute gradient = backward.gradients[pair];
      const Compute distance = backward.distances[pair];
      const Across across = backward.across(pair);
      const int64_t offset = layout.patch(n, location);
      PROTOFAST_UNROLL
      for (int i = 0; i < kThreadChannels; ++i) {
        const int64_t channel = place.first_channel + i * kWarp;
        if (channel >= layout.depth) continue;
        const Compute other =
            static_cast<Compute>(backward.features[offset + channel * layout.channel_stride]);
        sums[i] = add_gradient(
            backward.metric,
            sums[i],
            gradient,
            distance,
            own[i],
            other,
            across.scale,
            across.along_prototype
        );
      }
    }
    PROTOFAST_UNROLL
    for (int i = 0; i < kThreadChannels; ++i) {
      const int64_t channel = place.first_channel + i * kWarp;
      if (channel < layout.depth) grad_prototypes[p * layout.depth + channel] = sums[i];
    }
  }
};

}  // namespace protofast::cuda
