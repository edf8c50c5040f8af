// The CUDA kernels of masked_view, run on the CPU: the threads of a block one after another between
// two barriers, so what is checked here is all but the launch. Every bit must agree with sorting.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cuda/masked_view/masked_view.cuh"
#include "tests/check.h"
#include "tests/masked_view_problem.h"

namespace {

using namespace protofast::cuda;
using namespace protofast::testing;

// A step of all threads of a block; in another order for every other block, which changes where the
// atomics put things.
struct HostStep {
  int32_t threads;
  bool backwards;
  template <typename Body>
  void operator()(const Body& body) const {
    for (int32_t i = 0; i < threads; ++i) body(backwards ? threads - 1 - i : i, threads);
  }
};

template <typename Compute, typename Pixel>
struct Problem {
  Problem(const Sizes& sizes, Kind kind, double quantile, unsigned seed)
      : sizes(sizes),
        quantile(quantile),
        images(sizes),
        maps(random_maps<Compute>(sizes, kind, seed)),
        taps(sizes.height + sizes.width),
        views(sizes.views() * sizes.channels * sizes.pixels()),
        masks(sizes.views() * sizes.pixels(), 7) {
    const FindTaps<Compute> find{
        taps.data(), sizes.map_height, sizes.map_width, sizes.height, sizes.width
    };
    for (size_t i = 0; i < taps.size(); ++i) find(i);
  }

  Views<Compute, Pixel> work() {
    return {
        images.stored.data(),
        maps.data(),
        taps.data(),
        taps.data() + sizes.height,
        images.fill.data(),
        views.data(),
        masks.data(),
        sizes.each,
        static_cast<int32_t>(sizes.channels),
        static_cast<int32_t>(sizes.map_height),
        static_cast<int32_t>(sizes.map_width),
        static_cast<int32_t>(sizes.height),
        static_cast<int32_t>(sizes.width),
        images.image_stride,
        images.channel_stride,
        images.row_stride,
        1,
        static_cast<uint32_t>(quantile * static_cast<double>(sizes.pixels() - 1))
    };
  }

  template <int kCount>
  void run(int32_t threads) {
    const Views<Compute, Pixel> all = work();
    const auto memory = std::make_unique<ViewMemory<Compute>>();
    for (int64_t view = 0; view < sizes.views(); ++view) {
      all.template write<kCount>(view, *memory, HostStep{threads, view % 2 == 1});
    }
  }

  Sizes sizes;
  double quantile;
  Images<Pixel> images;
  std::vector<Compute> maps;
  std::vector<Tap<Compute>> taps;
  std::vector<Pixel> views;
  std::vector<uint8_t> masks;
};

template <typename Compute, typename Pixel>
void check_views() {
  unsigned seed = 0;
  for (const Sizes& sizes : kSizes) {
    for (const Kind kind : kKinds) {
      const double quantile = quantile_of(seed);
      Problem<Compute, Pixel> problem(sizes, kind, quantile, seed);
      problem.template run<1>(seed % 3 == 0 ? kViewThreads : 37);
      CHECK(problem.masks == expected_masks(sizes, problem.maps, quantile));
      CHECK(shows_by_mask(sizes, problem.images, problem.views, problem.masks));
      ++seed;
    }
  }
}

TEST(views_of_2_bytes_by_float_maps) { check_views<float, uint16_t>(); }
TEST(views_of_4_bytes_by_float_maps) { check_views<float, uint32_t>(); }
TEST(views_of_8_bytes_by_double_maps) { check_views<double, unsigned long long>(); }

template <typename Pixel>
void check_packed() {
  for (const Sizes& sizes : {Sizes{2, 2, 3, 7, 7, 56, 64}, Sizes{1, 1, 1, 3, 2, 1, 4}}) {
    Problem<float, Pixel> one(sizes, Kind::kSmooth, 0.7, 3), four(sizes, Kind::kSmooth, 0.7, 3);
    one.template run<1>(100);
    // Rows that begin where packs may: no gaps between them, none after a channel or an image.
    std::vector<Pixel> dense;
    for (int64_t i = 0; i < sizes.images * sizes.channels * sizes.pixels(); ++i) {
      const int64_t plane = i / sizes.pixels(), pixel = i % sizes.pixels();
      dense.push_back(four.images.at(
          plane / sizes.channels, plane % sizes.channels, pixel / sizes.width, pixel % sizes.width
      ));
    }
    CHECK(!four.work().can_pack(4));
    four.images.stored = dense;
    four.images.row_stride = sizes.width;
    four.images.channel_stride = sizes.pixels();
    four.images.image_stride = sizes.channels * sizes.pixels();
    // The allocator aligns to 16 bytes, which packs of 8-byte pixels need not have.
    if (sizeof(Pixel) < 8) CHECK(four.work().can_pack(4));
    if (!four.work().can_pack(4)) continue;
    four.template run<4>(100);
    CHECK(four.views == one.views);
    CHECK(four.masks == one.masks);
  }
}

TEST(four_pixels_at_once) {
  check_packed<uint16_t>();
  check_packed<uint32_t>();
  check_packed<unsigned long long>();
}

TEST(a_map_larger_than_shared_memory) {
  const Sizes sizes = {1, 2, 1, 41, 40, 80, 60};
  CHECK(sizes.cells() > kCells);
  Problem<float, uint32_t> problem(sizes, Kind::kSmooth, 0.9, 5);
  problem.run<1>(kViewThreads);
  CHECK(problem.masks == expected_masks(sizes, problem.maps, 0.9));
}

TEST(a_map_that_is_not_finite_shows_nothing) {
  for (const float wrong :
       {std::numeric_limits<float>::quiet_NaN(),
        std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(),
        0.6f * std::numeric_limits<float>::max()}) {
    Problem<float, uint16_t> problem({1, 1, 2, 3, 3, 9, 9}, Kind::kSmooth, 0.1, 1);
    problem.maps[4] = wrong;
    problem.run<1>(64);
    CHECK(std::count(problem.masks.begin(), problem.masks.end(), 0) == 81);
    CHECK(problem.views.front() == problem.images.fill[0]);
    CHECK(problem.views.back() == problem.images.fill[1]);
  }
}

TEST(zeros_of_both_signs_are_flat) {
  Problem<float, uint32_t> problem({1, 1, 1, 1, 2, 3, 8}, Kind::kSmooth, 0.0, 1);
  problem.maps = {-0.0f, 0.0f};
  problem.run<1>(64);
  CHECK(std::count(problem.masks.begin(), problem.masks.end(), 0) == 24);
}

TEST(each_pixel_is_walked_once) {
  for (const int32_t threads : {1, 3, 64, 512}) {
    for (const Sizes& sizes : kSizes) {
      Problem<float, uint32_t> problem(sizes, Kind::kSmooth, 0.5, 2);
      const Views<float, uint32_t> work = problem.work();
      const UpsampledMap<float> map = {
          work.maps,
          work.rows,
          work.columns,
          work.map_height,
          work.map_width,
          work.height,
          work.width
      };
      const std::vector<float> expected = up_sampled(work.maps, sizes);
      std::vector<int> visits(sizes.pixels());
      for (int32_t thread = 0; thread < threads; ++thread) {
        map.walk<1>(thread, threads, [&](int32_t y, int32_t x, const float* value) {
          ++visits[y * sizes.width + x];
          CHECK(*value == expected[y * sizes.width + x]);
        });
      }
      CHECK(std::count(visits.begin(), visits.end(), 1) == sizes.pixels());
    }
  }
}

TEST(gradients_add_up_what_is_shown) {
  const Sizes sizes = {3, 4, 2, 2, 2, 5, 7};
  std::mt19937 random(1);
  std::vector<float> gradients(sizes.views() * sizes.channels * sizes.pixels());
  std::vector<uint8_t> masks(sizes.views() * sizes.pixels());
  for (uint8_t& mask : masks) mask = random() % 2;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const int64_t view = i / (sizes.channels * sizes.pixels()), pixel = i % sizes.pixels();
    const bool shown = masks[view * sizes.pixels() + pixel];
    gradients[i] = shown ? std::normal_distribution<float>()(random) : NAN;
  }
  std::vector<float> got(sizes.images * sizes.channels * sizes.pixels());
  const ImageGradient<float, float> gradient{
      gradients.data(), masks.data(), got.data(), sizes.each, sizes.channels, sizes.pixels()
  };
  for (size_t i = 0; i < got.size(); ++i) gradient(i);
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t plane = i / sizes.pixels(), pixel = i % sizes.pixels();
    float sum = 0;
    for (int64_t k = 0; k < sizes.each; ++k) {
      const int64_t view = plane / sizes.channels * sizes.each + k;
      const int64_t at = (view * sizes.channels + plane % sizes.channels) * sizes.pixels() + pixel;
      if (masks[view * sizes.pixels() + pixel]) sum += gradients[at];
    }
    CHECK(got[i] == sum);
  }
}

}  // namespace

RUN_TESTS()
