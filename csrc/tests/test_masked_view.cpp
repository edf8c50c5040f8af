// The CPU kernels of masked_view, every instruction set of this machine, against sorting. Every bit
// must agree. Meant to be run under the address and undefined-behaviour sanitizers as well.

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cpu/masked_view/run.h"
#include "tests/check.h"
#include "tests/cpu_problem.h"
#include "tests/masked_view_problem.h"

namespace protofast::testing {
namespace {

template <typename Pixel>
struct Views {
  std::vector<Pixel> pixels;
  std::vector<uint8_t> masks;
  bool operator==(const Views& other) const = default;
};

template <typename T, typename Pixel, typename Parallel = Serial>
Views<Pixel> masked_views(
    const Sizes& sizes,
    const Images<Pixel>& images,
    const std::vector<T>& maps,
    double quantile,
    InstructionSet set,
    int64_t threads = 1,
    Parallel run = {},
    int64_t stream_bytes = kStreamBytes
) {
  Views<Pixel> views;
  views.pixels.resize(sizes.views() * sizes.channels * sizes.pixels());
  views.masks.resize(sizes.views() * sizes.pixels(), 7);
  const ImageBatch batch = {
      reinterpret_cast<const char*>(images.stored.data()),
      sizeof(Pixel),
      sizes.images,
      sizes.channels,
      sizes.height,
      sizes.width,
      images.image_stride,
      images.channel_stride,
      images.row_stride
  };
  const MapBatch map_batch = {
      reinterpret_cast<const char*>(maps.data()),
      std::is_same_v<T, float> ? Element::kFloat32 : Element::kFloat64,
      sizeof(T),
      sizes.each,
      sizes.map_height,
      sizes.map_width
  };
  const ViewWriter<T> writer = {
      PROTOFAST_TABLE(masked_view, set),
      batch,
      map_batch,
      quantile,
      reinterpret_cast<const char*>(images.fill.data()),
      reinterpret_cast<char*>(views.pixels.data()),
      views.masks.data(),
      stream_bytes
  };
  write_views<T>(writer, threads, run);
  return views;
}

template <typename T, typename Pixel>
void check_views(const Sizes& sizes, Kind kind, InstructionSet set, unsigned seed) {
  const Images<Pixel> images(sizes);
  const std::vector<T> maps = random_maps<T>(sizes, kind, seed);
  const double quantile = quantile_of(seed);
  const Views<Pixel> got = masked_views(sizes, images, maps, quantile, set);
  if (seed % 5 == 0) CHECK(masked_views(sizes, images, maps, quantile, set, 3, Threads()) == got);
  CHECK(
      masked_views(sizes, images, maps, quantile, set, 1, Serial(), 0) == got
  );  // past the caches
  CHECK(got.masks == expected_masks(sizes, maps, quantile));
  CHECK(shows_by_mask(sizes, images, got.pixels, got.masks));
}

// Every size and kind of map with every instruction set.
template <typename Check>
void for_every_case(const Check& check) {
  unsigned seed = 0;
  for (const InstructionSet set : supported_instruction_sets()) {
    for (const Sizes& sizes : kSizes) {
      for (const Kind kind : kKinds) check(sizes, kind, set, seed++);
    }
  }
}

TEST(views_of_2_bytes_by_float_maps) { for_every_case(check_views<float, uint16_t>); }
TEST(views_of_4_bytes_by_float_maps) { for_every_case(check_views<float, uint32_t>); }
TEST(views_of_8_bytes_by_double_maps) { for_every_case(check_views<double, uint64_t>); }

TEST(a_map_that_is_not_finite_shows_nothing) {
  const Sizes sizes = {1, 1, 2, 3, 3, 9, 9};
  const Images<uint32_t> images(sizes);
  for (const float wrong :
       {std::numeric_limits<float>::quiet_NaN(),
        std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(),
        0.6f * std::numeric_limits<float>::max()}) {
    std::vector<float> maps = random_maps<float>(sizes, Kind::kSmooth, 1);
    maps[4] = wrong;
    const Views<uint32_t> got =
        masked_views(sizes, images, maps, 0.1, supported_instruction_sets().front());
    CHECK(std::count(got.masks.begin(), got.masks.end(), 0) == sizes.pixels());
    CHECK(got.pixels.front() == images.fill[0] && got.pixels.back() == images.fill[1]);
  }
}

TEST(keys_are_in_the_order_of_their_numbers) {
  const float numbers[] = {-3e38f, -1.0f, -1e-45f, -0.0f, 0.0f, 1e-45f, 2.0f, 3e38f};
  for (size_t i = 0; i < std::size(numbers); ++i) {
    CHECK(number_of<float>(key_of(numbers[i])) == numbers[i]);
    if (i > 0) CHECK(key_of(numbers[i - 1]) < key_of(numbers[i]));
  }
  CHECK(key_of(-1e-300) < key_of(-0.0) && key_of(0.0) < key_of(1e-300));
}

template <typename T>
void check_gradients(const Sizes& sizes, InstructionSet set, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<T> gradients(sizes.views() * sizes.channels * sizes.pixels());
  std::vector<uint8_t> masks(sizes.views() * sizes.pixels());
  for (uint8_t& mask : masks) mask = random() % 3 == 0;
  std::fill_n(masks.begin(), sizes.width, uint8_t{0});  // a row without any
  for (size_t i = 0; i < gradients.size(); ++i) {
    gradients[i] = std::normal_distribution<float>()(random);
    const int64_t view = i / (sizes.channels * sizes.pixels()), pixel = i % sizes.pixels();
    if (!masks[view * sizes.pixels() + pixel]) gradients[i] = NAN;  // must not be looked at
  }
  const ViewGradients views = {
      reinterpret_cast<const char*>(gradients.data()),
      std::is_same_v<T, float> ? Element::kFloat32 : Element::kFloat64,
      sizeof(T),
      masks.data(),
      sizes.images,
      sizes.each,
      sizes.channels,
      sizes.height,
      sizes.width
  };
  std::vector<T> got(sizes.images * sizes.channels * sizes.pixels()), threaded(got.size());
  add_up_views<T>(
      PROTOFAST_TABLE(masked_view, set), views, 1, Serial(), reinterpret_cast<char*>(got.data())
  );
  add_up_views<T>(
      PROTOFAST_TABLE(masked_view, set),
      views,
      3,
      Threads(),
      reinterpret_cast<char*>(threaded.data())
  );
  CHECK(got == threaded);
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t plane = i / sizes.pixels(), pixel = i % sizes.pixels();
    T sum = 0;
    for (int64_t k = 0; k < sizes.each; ++k) {
      const int64_t view = plane / sizes.channels * sizes.each + k;
      const int64_t at = (view * sizes.channels + plane % sizes.channels) * sizes.pixels() + pixel;
      if (masks[view * sizes.pixels() + pixel]) sum += gradients[at];
    }
    CHECK(got[i] == sum);
  }
}

TEST(gradients) {
  unsigned seed = 0;
  for (const InstructionSet set : supported_instruction_sets()) {
    for (const Sizes& sizes : kSizes) {
      check_gradients<float>(sizes, set, seed);
      check_gradients<double>(sizes, set, seed++);
    }
  }
}

}  // namespace
}  // namespace protofast::testing

RUN_TESTS()
