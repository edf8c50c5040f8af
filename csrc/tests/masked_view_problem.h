// Random images and maps for the tests of masked_view on CPU and GPU, and what is right by sorting.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

namespace protofast::testing {

struct Sizes {
  int64_t images, each, channels;
  int64_t map_height, map_width;
  int64_t height, width;
  int64_t views() const { return images * each; }
  int64_t cells() const { return map_height * map_width; }
  int64_t pixels() const { return height * width; }
};

const Sizes kSizes[] = {
    {1, 1, 1, 1, 1, 1, 1},
    {1, 2, 3, 1, 1, 5, 7},    // one cell: flat
    {2, 3, 3, 7, 7, 56, 56},  //
    {1, 2, 1, 7, 7, 224, 224},
    {1, 3, 4, 2, 3, 1, 33},  // one row of pixels
    {1, 3, 1, 5, 1, 31, 1},  // one column
    {2, 2, 3, 14, 14, 17, 63},
    {3, 1, 2, 9, 8, 4, 5},  // smaller than the map
    {1, 2, 3, 3, 2, 10, 65},
};

constexpr double kQuantiles[] = {0.0, 0.1, 0.5, 0.9, 0.98, 1.0};

// The kinds of map that the search for the quantile tells apart.
enum class Kind { kSmooth, kSteps, kPlateau, kPeak, kTiny, kHuge };
constexpr Kind kKinds[] = {
    Kind::kSmooth, Kind::kSteps, Kind::kPlateau, Kind::kPeak, Kind::kTiny, Kind::kHuge
};

// Another quantile each time a kind of map comes round.
inline double quantile_of(unsigned seed) {
  return kQuantiles[(seed + seed / std::size(kKinds)) % std::size(kQuantiles)];
}

template <typename T>
std::vector<T> random_maps(const Sizes& sizes, Kind kind, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> maps(sizes.views() * sizes.cells());
  for (size_t i = 0; i < maps.size(); ++i) {
    const double value = normal(random);
    double made = value;
    if (kind == Kind::kSteps) made = std::round(value);
    if (kind == Kind::kPlateau) made = value > 1.2 ? value : 0;
    if (kind == Kind::kPeak) made = i % sizes.cells() == 0 ? 1e30 : value;
    if (kind == Kind::kTiny) made = value * std::numeric_limits<T>::denorm_min() * 100;
    if (kind == Kind::kHuge) made = std::tanh(value) * 0.4 * std::numeric_limits<T>::max();
    maps[i] = static_cast<T>(made);
  }
  return maps;
}

// One map up-sampled pixel by pixel.
template <typename T>
std::vector<T> up_sampled(const T* cells, const Sizes& sizes) {
  struct Place {
    int64_t first, second;
    T weight;
  };
  const auto place = [](int64_t i, int64_t cells, int64_t pixels) {
    const int64_t doubled = std::max<int64_t>((2 * i + 1) * cells - pixels, 0);
    const double weight = double(doubled % (2 * pixels)) / double(2 * pixels);
    const int64_t first = doubled / (2 * pixels);
    return Place{first, std::min(first + 1, cells - 1), T(weight)};
  };
  std::vector<T> values;
  for (int64_t y = 0; y < sizes.height; ++y) {
    const Place row = place(y, sizes.map_height, sizes.height);
    for (int64_t x = 0; x < sizes.width; ++x) {
      const Place column = place(x, sizes.map_width, sizes.width);
      T ends[2];
      for (int end = 0; end < 2; ++end) {
        const T* of_row = cells + (end ? row.second : row.first) * sizes.map_width;
        const T a = of_row[column.first], b = of_row[column.second];
        ends[end] = a + column.weight * (b - a);
      }
      values.push_back(ends[0] + row.weight * (ends[1] - ends[0]));
    }
  }
  return values;
}

template <typename T>
std::vector<uint8_t> expected_mask(const T* cells, const Sizes& sizes, double quantile) {
  const std::vector<T> values = up_sampled(cells, sizes);
  std::vector<T> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  const T lower = sorted[static_cast<size_t>(quantile * double(sizes.pixels() - 1))];
  std::vector<uint8_t> mask;
  for (const T value : values) mask.push_back(value > lower);
  return mask;
}

// Images of one pixel type with gaps between rows, channels and images.
template <typename Pixel>
struct Images {
  explicit Images(const Sizes& sizes)
      : row_stride(sizes.width + 3),
        channel_stride(row_stride * sizes.height + 5),
        image_stride(channel_stride * sizes.channels + 1),
        stored(image_stride * sizes.images) {
    for (size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<Pixel>(i * 2654435761u + 1);
    for (int64_t c = 0; c < sizes.channels; ++c) fill.push_back(static_cast<Pixel>(~c));
  }
  Pixel at(int64_t image, int64_t channel, int64_t y, int64_t x) const {
    return stored[image * image_stride + channel * channel_stride + y * row_stride + x];
  }
  int64_t row_stride, channel_stride, image_stride;
  std::vector<Pixel> stored, fill;
};

// Every pixel of every view is that of its image where the mask is true, else the fill.
template <typename Pixel>
bool shows_by_mask(
    const Sizes& sizes,
    const Images<Pixel>& images,
    const std::vector<Pixel>& views,
    const std::vector<uint8_t>& masks
) {
  size_t at = 0;
  for (int64_t view = 0; view < sizes.views(); ++view) {
    for (int64_t c = 0; c < sizes.channels; ++c) {
      for (int64_t i = 0; i < sizes.pixels(); ++i, ++at) {
        const Pixel shown = images.at(view / sizes.each, c, i / sizes.width, i % sizes.width);
        if (views[at] != (masks[view * sizes.pixels() + i] ? shown : images.fill[c])) return false;
      }
    }
  }
  return true;
}

// The masks of all maps, one after another.
template <typename T>
std::vector<uint8_t> expected_masks(
    const Sizes& sizes, const std::vector<T>& maps, double quantile
) {
  std::vector<uint8_t> masks;
  for (int64_t view = 0; view < sizes.views(); ++view) {
    const std::vector<uint8_t> mask =
        expected_mask(maps.data() + view * sizes.cells(), sizes, quantile);
    masks.insert(masks.end(), mask.begin(), mask.end());
  }
  return masks;
}

}  // namespace protofast::testing
