// The backward pass of nearest_patch by buckets, run on the CPU: the sort on emulated threads, the
// sums index by index. It must give the bits of the plain kernels.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/nearest_patch/buckets.cuh"
#include "tests/check.h"
#include "tests/cuda_problem.h"
#include "tests/emulated_threads.h"

namespace {

using namespace protofast::testing;

struct Sorted {
  std::vector<int32_t> order, starts;
};

Sorted sort(const std::vector<int64_t>& locations, int64_t images, int64_t location_count) {
  const int64_t prototypes = locations.size() / images;
  Sorted sorted{
      std::vector<int32_t>(locations.size(), -1),
      std::vector<int32_t>(images * (location_count + 1), -1)
  };
  const Buckets buckets{
      locations.data(),
      sorted.order.data(),
      sorted.starts.data(),
      images,
      prototypes,
      location_count,
      bucket_ranges(location_count)
  };
  CHECK(buckets.ranges > 0 && buckets.shared_ints() <= kBucketSharedInts);
  for (int64_t n = 0; n < images; ++n) {
    std::vector<int> shared(buckets.shared_ints(), -7);
    sort_image(EmulatedThreads<kBucketThreads>(), buckets, n, shared.data());
  }
  return sorted;
}

TEST(every_bucket_holds_its_prototypes_in_order) {
  std::mt19937 random(3);
  for (const int64_t prototypes : {1, 31, 32, 33, 255, 256, 257, 600, 2000})
    for (const int64_t count : {1, 2, 49, 196, 257, 3000, 4096}) {
      const int64_t images = 2;
      std::vector<int64_t> locations(images * prototypes);
      for (int64_t& location : locations) location = random() % count;
      if (prototypes == 600) locations[5] = -1, locations[77] = count;  // in no bucket
      const Sorted sorted = sort(locations, images, count);
      for (int64_t n = 0; n < images; ++n) {
        std::vector<int32_t> expected;
        const int32_t* starts = sorted.starts.data() + n * (count + 1);
        std::vector<std::vector<int32_t>> buckets(count);
        for (int64_t p = 0; p < prototypes; ++p) {
          const int64_t location = locations[n * prototypes + p];
          if (location >= 0 && location < count) buckets[location].push_back(p);
        }
        for (int64_t l = 0; l < count; ++l) {
          CHECK(starts[l] == static_cast<int32_t>(expected.size()));
          expected.insert(expected.end(), buckets[l].begin(), buckets[l].end());
        }
        CHECK(starts[count] == static_cast<int32_t>(expected.size()));
        CHECK(std::equal(expected.begin(), expected.end(), sorted.order.begin() + n * prototypes));
      }
    }
}

TEST(tables_fit_or_are_refused) {
  for (int64_t count = 1; count < 20000; ++count) {
    const int ranges = bucket_ranges(count);
    CHECK(ranges >= 0 && ranges <= kBucketWarps);
    CHECK(ranges == 0 || (ranges + 2) * count <= kBucketSharedInts);
  }
  CHECK(bucket_ranges(49) == kBucketWarps && bucket_ranges(784) == kBucketWarps);
  CHECK(bucket_ranges(4096) == 1 && bucket_ranges(4097) == 0);
}

template <typename Compute>
void check_same_as_plain(PairsProblem<Compute>& problem) {
  const Shape& s = problem.shape;
  problem.backward();
  const std::vector<Compute> plain_features = problem.grad_features;
  const std::vector<Compute> plain_prototypes = problem.grad_prototypes;
  problem.backward_by([&](const Backward<Compute, Compute>& backward) {
    const Sorted sorted = sort(problem.locations, s.images, s.locations());
    const BucketFeatureGradient<Compute, Compute> to_features{
        backward,
        sorted.order.data(),
        sorted.starts.data(),
        problem.grad_features.data(),
        problem.layout
    };
    const int64_t threads = strips(s.depth) * kWarp;
    for (int64_t i = 0; i < s.images * s.locations() * threads; ++i) to_features(i);
    const StripPrototypeGradient<Compute, Compute> to_prototypes{
        backward, problem.grad_prototypes.data()
    };
    for (int64_t i = 0; i < s.prototypes * threads; ++i) to_prototypes(i);
  });
  CHECK(problem.grad_features == plain_features);
  CHECK(problem.grad_prototypes == plain_prototypes);
}

TEST(sums_have_the_plain_kernels_bits) {
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  shapes.push_back({2, 70, 129, 7, 7});
  for (const Shape& shape : shapes)
    for (const Metric metric : kMetrics)
      for (const auto layout : {&contiguous_layout, &channels_last_layout, &sliced_layout}) {
        PairsProblem<float> problem(shape, layout(shape), metric, Similarity::kLinear);
        problem.forward();
        check_same_as_plain(problem);
        PairsProblem<double> wide(shape, layout(shape), metric, Similarity::kLinear);
        wide.forward();
        check_same_as_plain(wide);
      }
}

TEST(one_patch_may_have_all_prototypes_or_none) {
  const Shape shape{2, 300, 40, 3, 3};
  PairsProblem<float> problem(
      shape, contiguous_layout(shape), Metric::kSquaredL2, Similarity::kLog
  );
  problem.forward();
  problem.locations.assign(problem.locations.size(), 4);
  check_same_as_plain(problem);
  problem.locations.assign(problem.locations.size(), 1'000'000'000);
  check_same_as_plain(problem);
  for (const float value : problem.grad_features) CHECK(value == 0.0f);
}

}  // namespace

RUN_TESTS()
