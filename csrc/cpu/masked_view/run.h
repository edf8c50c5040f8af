// Puts the kernels of masked_view together: the search for the quantile, memory, and tasks for
// threads. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/masked_view/kernels.h"
#include "cpu/tables.h"
#include "cpu/workspace.h"

namespace protofast {

inline ShowPixels show_pixels_of(const MaskedViewTable& table, int64_t pixel_bytes) {
  if (pixel_bytes == 2) return table.show_2_bytes;
  return pixel_bytes == 4 ? table.show_4_bytes : table.show_8_bytes;
}

// Where each of `pixels` lies among `cells`: at (i + 1/2) * cells / pixels - 1/2, at 0 at least;
// the last cell is its own neighbour. In integers up to the one rounding of the weight.
template <typename T>
std::vector<Tap<T>> find_taps(int64_t cells, int64_t pixels) {
  std::vector<Tap<T>> taps(pixels);
  const int64_t whole = 2 * pixels;
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t place = std::max<int64_t>((2 * i + 1) * cells - pixels, 0);
    const int64_t first = place / whole;
    const double weight = static_cast<double>(place % whole) / static_cast<double>(whole);
    taps[i] = {first, std::min(first + 1, cells - 1), static_cast<T>(weight)};
  }
  return taps;
}

// ---------------------------------------------------------------- the quantile

// Floating-point numbers in their order as integers, and back.
template <typename T>
using Key = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <typename T>
Key<T> key_of(T value) {
  Key<T> bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits >= 0 ? bits : bits ^ std::numeric_limits<Key<T>>::max();
}

template <typename T>
T number_of(Key<T> key) {
  const Key<T> bits = key >= 0 ? key : key ^ std::numeric_limits<Key<T>>::max();
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The value of a rank by bisection: the least number that more than `rank` values do not exceed.
template <typename T>
T bisect_rank(const MapKernels<T>& kernels, const WideMap<T>& map, int64_t rank) {
  Key<T> least = key_of(std::numeric_limits<T>::lowest());
  Key<T> largest = key_of(std::numeric_limits<T>::max());
  while (least < largest) {
    const Key<T> middle = static_cast<Key<T>>((static_cast<__int128>(least) + largest) >> 1);
    if (kernels.count_up_to(map, number_of<T>(middle)) > rank) {
      largest = middle;
    } else {
      least = middle + 1;
    }
  }
  return number_of<T>(least);
}

// What one worker needs; it is used for one map after another.
template <typename T>
struct MapWorkspace {
  // The most values of one bin that are looked at one by one.
  static constexpr int64_t kCandidates = 4096;
  static constexpr int64_t kMostPixelBytes = 8;
  MapWorkspace(int64_t cells, int64_t map_height, int64_t width)
      : cells(cells),
        rows(map_height * width),
        bins(round_up(width, kBinBlock)),
        candidates(kCandidates),
        pixels(width * kMostPixelBytes) {}
  Workspace<T> cells, rows;
  Workspace<int32_t> bins;
  Workspace<T> candidates;
  Workspace<char> pixels;  // a row of a view on its way past the caches
};

// The value of `rank` (from 0, in ascending order) among those of the up-sampled map, whose cells
// lie between low and high.
template <typename T>
T find_rank(
    const MapKernels<T>& kernels,
    const WideMap<T>& map,
    T low,
    T high,
    int64_t rank,
    const MapWorkspace<T>& workspace
) {
  const BinScale<T> scale = {low, kBins / (high - low)};
  if (!std::isfinite(scale.scale)) return bisect_rank(kernels, map, rank);
  int64_t counts[kBins];
  kernels.count_bins(map, scale, workspace.bins.data(), counts);
  int32_t bin = 0;
  int64_t below = 0;
  while (below + counts[bin] <= rank) below += counts[bin++];
  if (counts[bin] > MapWorkspace<T>::kCandidates) return bisect_rank(kernels, map, rank);
  T* values = workspace.candidates.data();
  const int64_t count = kernels.collect_bin(map, scale, bin, workspace.bins.data(), values);
  std::nth_element(values, values + (rank - below), values + count);
  return values[rank - below];
}

// ---------------------------------------------------------------- views

// Images [N, channels, S, T]; the pixels of a row lie side by side. Strides in pixels.
struct ImageBatch {
  const char* pixels;
  int64_t pixel_bytes;
  int64_t count, channels, height, width;
  int64_t image_stride, channel_stride, row_stride;
  const char* row(int64_t image, int64_t channel, int64_t y) const {
    return pixels +
           (image * image_stride + channel * channel_stride + y * row_stride) * pixel_bytes;
  }
};

// Maps [N, K, H, W], contiguous, of any element type.
struct MapBatch {
  const char* cells;
  Element element;
  int64_t cell_bytes;
  int64_t each;  // K
  int64_t height, width;
};

// Views of so many bytes in all are written past the caches, which could not hold them.
constexpr int64_t kStreamBytes = 32 << 20;

template <typename T>
struct ViewWriter {
  const MaskedViewTable& table;
  const ImageBatch& images;
  const MapBatch& maps;
  double quantile;
  const char* fill;  // [channels] pixels
  char* views;       // [N * K, channels, S, T]
  uint8_t* masks;    // [N * K, S, T]
  int64_t stream_bytes = kStreamBytes;
  std::vector<Tap<T>> rows = find_taps<T>(maps.height, images.height);
  std::vector<Tap<T>> columns = find_taps<T>(maps.width, images.width);

  void write(int64_t view, const MapWorkspace<T>& workspace) const {
    const MapKernels<T>& kernels = kernels_of<T>(table);
    const int64_t cells = maps.height * maps.width, width = images.width;
    T *values = workspace.cells.data(), *wide = workspace.rows.data();
    kernels.convert(maps.cells + view * cells * maps.cell_bytes, maps.element, cells, values);
    T low = values[0], high = values[0];
    bool usable = true;
    for (int64_t i = 0; i < cells; ++i) {
      usable = usable && std::isfinite(2 * values[i]);
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
    }
    uint8_t* mask = masks + view * images.height * width;
    if (!usable || low == high) {  // nothing lies above a flat map's quantile
      std::memset(mask, 0, images.height * width);
      for (int64_t y = 0; y < images.height; ++y) write_row(view, y, nullptr, workspace);
      return table.end_stream();
    }
    kernels.widen_rows(values, maps.height, maps.width, columns.data(), width, wide);
    const WideMap<T> map = {wide, rows.data(), images.height, width};
    const double last = static_cast<double>(images.height * width - 1);
    const int64_t rank = static_cast<int64_t>(quantile * last);
    const T threshold = find_rank(kernels, map, low, high, rank, workspace);
    for (int64_t y = 0; y < images.height; ++y, mask += width) {
      const bool any = kernels.find_mask(map, y, threshold, mask);
      write_row(view, y, any ? mask : nullptr, workspace);
    }
    table.end_stream();
  }

  // Row y of all channels, with its mask or, where that is false everywhere, without.
  void write_row(
      int64_t view, int64_t y, const uint8_t* mask, const MapWorkspace<T>& workspace
  ) const {
    const ShowPixels show = show_pixels_of(table, images.pixel_bytes);
    const int64_t row_bytes = images.width * images.pixel_bytes;
    const int64_t planes = images.count * maps.each * images.channels;
    const bool streams = planes * images.height * row_bytes >= stream_bytes;
    for (int64_t c = 0; c < images.channels; ++c) {
      const int64_t row = (view * images.channels + c) * images.height + y;
      char* target = views + row * row_bytes;
      show(
          mask,
          images.row(view / maps.each, c, y),
          fill + c * images.pixel_bytes,
          images.width,
          streams ? workspace.pixels.data() : target
      );
      if (streams) table.stream(workspace.pixels.data(), row_bytes, target);
    }
  }
};

// Writes all views and masks; N and K are at least 1.
template <typename T, typename Parallel>
void write_views(const ViewWriter<T>& writer, int64_t threads, const Parallel& parallel) {
  const MapBatch& maps = writer.maps;
  const int64_t views = writer.images.count * maps.each;
  std::vector<MapWorkspace<T>> workspaces;
  for (int64_t worker = 0; worker < std::min(threads, views); ++worker) {
    workspaces.emplace_back(maps.height * maps.width, maps.height, writer.images.width);
  }
  run_tasks(views, threads, parallel, [&](int64_t worker, int64_t view) {
    writer.write(view, workspaces[worker]);
  });
}

// ---------------------------------------------------------------- gradient

// Views of the same images, one after another: gradients [N * K, channels, S, T], masks
// [N, K, S, T]; contiguous.
struct ViewGradients {
  const char* gradients;
  Element element;
  int64_t number_bytes;
  const uint8_t* masks;
  int64_t images, each, channels, height, width;
};

// grad_images [N, channels, S, T]: a row of an image is one task, added up in the order of k.
template <typename T, typename Parallel>
void add_up_views(
    const MaskedViewTable& table,
    const ViewGradients& views,
    int64_t threads,
    const Parallel& parallel,
    char* grad_images
) {
  const GradientKernels<T>& kernels = kernels_of<T>(table.gradients);
  const int64_t width = views.width, row_bytes = width * views.number_bytes;
  const int64_t rows = views.images * views.height;
  Workspace<T> sums(threads * width);
  run_tasks(rows, threads, parallel, [&](int64_t worker, int64_t task) {
    const int64_t image = task / views.height, y = task % views.height;
    T* sum = sums.data() + worker * width;
    for (int64_t c = 0; c < views.channels; ++c) {
      std::fill_n(sum, width, T(0));
      for (int64_t view = image * views.each; view < (image + 1) * views.each; ++view) {
        const uint8_t* mask = views.masks + (view * views.height + y) * width;
        if (std::memchr(mask, 1, width) == nullptr) continue;
        const int64_t row = (view * views.channels + c) * views.height + y;
        kernels.add_shown(views.gradients + row * row_bytes, views.element, mask, width, sum);
      }
      const int64_t row = (image * views.channels + c) * views.height + y;
      kernels.narrow(sum, width, grad_images + row * row_bytes, views.element);
    }
  });
}

}  // namespace protofast
