// Reading patches of any element type and layout as rows of float or double, and writing them back.
// For the translation units of one instruction set; see vector.h.
#pragma once

#include "cpu/element.h"
#include "cpu/pairs.h"
#include "cpu/transpose.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline float float_of_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t bits_of_float(float value) { return __builtin_bit_cast(uint32_t, value); }

// Exact conversions. Half precision goes without the subnormal floats that a process may have set
// to be flushed to zero: a half's subnormals are made by subtracting 0.5 from 0.5 + value.
inline float widen(Float16 half) {
  const uint32_t shifted = static_cast<uint32_t>(half.bits) << 16;
  const uint32_t sign = shifted & 0x80000000u;
  const uint32_t twice = shifted + shifted;
  const float normal = float_of_bits((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float subnormal = float_of_bits((twice >> 17) | (126u << 23)) - 0.5f;
  return float_of_bits(sign | bits_of_float(twice < (1u << 27) ? subnormal : normal));
}
inline float widen(BFloat16 value) {
  return float_of_bits(static_cast<uint32_t>(value.bits) << 16);
}
inline float widen(float value) { return value; }
inline double widen(double value) { return value; }

// Rounding to nearest, ties to even, as torch does (from double by way of float).
template <typename Out>
inline Out narrow(double value) {
  return static_cast<Out>(value);
}
template <>
inline BFloat16 narrow<BFloat16>(double wide) {
  const float value = static_cast<float>(wide);
  const uint32_t bits = bits_of_float(value);
  if (value != value) return {0x7FC0};
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
inline Float16 narrow<Float16>(double wide) {
  const uint32_t bits = bits_of_float(static_cast<float>(wide));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};   // NaN
  if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at the right bit
    const uint32_t rounded = bits_of_float(float_of_bits(magnitude) + 0.5f);
    return {static_cast<uint16_t>(sign | (rounded - (126u << 23)))};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xFFFu + odd) >> 13))};
}

// Calls body<E>() with the C++ type E of the element.
template <typename Body>
inline void with_element(Element element, const Body& body) {
  switch (element) {
    case Element::kFloat16:
      return body.template operator()<Float16>();
    case Element::kBFloat16:
      return body.template operator()<BFloat16>();
    case Element::kFloat32:
      return body.template operator()<float>();
    case Element::kFloat64:
      return body.template operator()<double>();
  }
}

template <typename A, typename B>
constexpr bool kSame = false;
template <typename A>
constexpr bool kSame<A, A> = true;

template <typename T>
constexpr Element kElement = kSame<T, float> ? Element::kFloat32 : Element::kFloat64;

// [count] numbers of any element type -> T.
template <typename T>
void widen_numbers(const void* source, Element element, int64_t count, T* target) {
  with_element(element, [&]<typename E>() {
    const E* numbers = static_cast<const E*>(source);
    for (int64_t i = 0; i < count; ++i) target[i] = static_cast<T>(widen(numbers[i]));
  });
}

// [count] numbers of T -> any element type.
template <typename T>
void narrow_numbers(const T* source, int64_t count, void* target, Element element) {
  with_element(element, [&]<typename E>() {
    E* numbers = static_cast<E*>(target);
    for (int64_t i = 0; i < count; ++i) numbers[i] = narrow<E>(source[i]);
  });
}

constexpr int64_t kTile = 16;  // side of the squares in which a transposition goes

// Calls body(l, d) for every number of an image, in the order that suits the map beside rows [L,
// D].
template <typename Body>
inline void for_each_number(const FeatureMap& map, const Body& body) {
  const int64_t tile = map.depth_stride == 1 ? map.depth : kTile;
  for (int64_t l0 = 0; l0 < map.locations; l0 += kTile) {
    const int64_t l1 = l0 + kTile < map.locations ? l0 + kTile : map.locations;
    for (int64_t d0 = 0; d0 < map.depth; d0 += tile) {
      const int64_t d1 = d0 + tile < map.depth ? d0 + tile : map.depth;
      for (int64_t l = l0; l < l1; ++l) {
        for (int64_t d = d0; d < d1; ++d) body(l, d);
      }
    }
  }
}

// How many patches a window has.
inline int64_t window_patches(const FeatureMap& map) {
  return map.window.height * map.window.width;
}

// The single patches of a map of windows.
inline FeatureMap patches_of(const FeatureMap& map) {
  const int64_t columns = map.window.grid_width - map.window.width + 1;
  const int64_t rows = map.locations / columns + map.window.height - 1;
  FeatureMap patches = map;
  patches.depth = map.depth / window_patches(map);
  patches.locations = rows * map.window.grid_width;
  patches.window = {};
  return patches;
}

// Whether the rows of `map` can be used where they lie.
template <typename T>
bool rows_in_place(const FeatureMap& map) {
  return map.element == kElement<T> && (map.depth_stride == 1 || map.depth == 1) &&
         window_patches(map) == 1;
}

inline int64_t row_memory(const FeatureMap& map) {
  const int64_t rows = map.locations * map.depth;
  if (window_patches(map) == 1) return rows;
  const FeatureMap patches = patches_of(map);
  return rows + patches.locations * patches.depth;
}

// NCHW [D, L] -> rows [L, D]; numbers of another type are converted some at a time.
template <typename T, typename E>
void read_channels(const E* source, const FeatureMap& map, T* rows) {
  if constexpr (kSame<T, E>) {
    transpose(source, map.depth_stride, map.depth, map.locations, rows, map.depth);
  } else {
    constexpr int64_t kColumns = 64;
    T some[kTile * kColumns];
    for (int64_t d0 = 0; d0 < map.depth; d0 += kTile) {
      const int64_t channels = map.depth - d0 < kTile ? map.depth - d0 : kTile;
      for (int64_t l0 = 0; l0 < map.locations; l0 += kColumns) {
        const int64_t width = map.locations - l0 < kColumns ? map.locations - l0 : kColumns;
        for (int64_t d = 0; d < channels; ++d) {
          const E* numbers = source + (d0 + d) * map.depth_stride + l0;
          for (int64_t l = 0; l < width; ++l) {
            some[d * kColumns + l] = static_cast<T>(widen(numbers[l]));
          }
        }
        transpose(some, kColumns, channels, width, rows + l0 * map.depth + d0, map.depth);
      }
    }
  }
}

// The single patches of one image as rows of T: where they lie if they can be used there, else
// converted and transposed into storage [L, D].
template <typename T>
PatchRows<T> read_patches(const FeatureMap& map, int64_t image, T* storage) {
  const int64_t offset = image * map.image_stride, depth = map.depth;
  if (rows_in_place<T>(map)) {
    return {static_cast<const T*>(map.data) + offset, map.location_stride};
  }
  with_element(map.element, [&]<typename E>() {
    const E* source = static_cast<const E*>(map.data) + offset;
    if (map.location_stride == 1) return read_channels(source, map, storage);
    for_each_number(map, [&](int64_t l, int64_t d) {
      const E value = source[d * map.depth_stride + l * map.location_stride];
      storage[l * depth + d] = static_cast<T>(widen(value));
    });
  });
  return {storage, depth};
}

// Single patches, rows [L, D] -> image `image` of `map`.
template <typename T>
void write_patches(const T* rows, int64_t image, const FeatureMap& map) {
  const int64_t depth = map.depth;
  with_element(map.element, [&]<typename E>() {
    E* target = static_cast<E*>(map.data) + image * map.image_stride;
    if constexpr (kSame<T, E>) {
      if (map.depth_stride == 1) {
        for (int64_t l = 0; l < map.locations; ++l) {
          __builtin_memcpy(target + l * map.location_stride, rows + l * depth, depth * sizeof(T));
        }
        return;
      }
      if (map.location_stride == 1) {  // NCHW
        return transpose(rows, depth, map.locations, depth, target, map.depth_stride);
      }
    }
    for_each_number(map, [&](int64_t l, int64_t d) {
      const E value = narrow<E>(rows[l * depth + d]);
      target[d * map.depth_stride + l * map.location_stride] = value;
    });
  });
}

// Calls body(i, l) for patch i of all windows [L, h, w] and the patch l of the image that it is, in
// the order of i.
template <typename Body>
inline void for_each_window_patch(const FeatureMap& map, const Body& body) {
  const Window& window = map.window;
  const int64_t columns = window.grid_width - window.width + 1;
  int64_t i = 0;
  for (int64_t l = 0; l < map.locations; ++l) {
    const int64_t corner = l / columns * window.grid_width + l % columns;
    for (int64_t y = 0; y < window.height; ++y) {
      for (int64_t x = 0; x < window.width; ++x) body(i++, corner + y * window.grid_width + x);
    }
  }
}

// Windows are put together from the image's patches as rows: only these are transposed and
// converted, each once, and a window is a few copies of D numbers in a row.
template <typename T>
PatchRows<T> read_rows(const FeatureMap& map, int64_t image, T* storage) {
  if (window_patches(map) == 1) return read_patches(map, image, storage);
  const FeatureMap single = patches_of(map);
  const int64_t depth = single.depth;
  const PatchRows<T> patches = read_patches(single, image, storage + map.locations * map.depth);
  for_each_window_patch(map, [&](int64_t i, int64_t l) {
    __builtin_memcpy(storage + i * depth, patches.rows + l * patches.stride, depth * sizeof(T));
  });
  return {storage, map.depth};
}

// A patch gets the sum over the windows that it is in, in their order.
template <typename T>
void write_rows(T* rows, int64_t image, const FeatureMap& map) {
  if (window_patches(map) == 1) return write_patches<T>(rows, image, map);
  const FeatureMap single = patches_of(map);
  const int64_t depth = single.depth;
  T* sums = rows + map.locations * map.depth;
  for (int64_t i = 0; i < single.locations * depth; ++i) sums[i] = 0;
  for_each_window_patch(map, [&](int64_t i, int64_t l) {
    T* sum = sums + l * depth;
    const T* part = rows + i * depth;
    for (int64_t d = 0; d < depth; ++d) sum[d] += part[d];
  });
  write_patches<T>(sums, image, single);
}

template <typename T>
void find_inverse_norms(PatchRows<T> rows, int64_t count, int64_t depth, T* norms) {
  for (int64_t i = 0; i < count; ++i) norms[i] = inverse_norm(rows.rows + i * rows.stride, depth);
}

template <typename T>
constexpr PatchAccess<T> patch_access() {
  return {
      .rows_in_place = rows_in_place<T>,
      .row_memory = row_memory,
      .read = read_rows<T>,
      .write = write_rows<T>,
      .widen = widen_numbers<T>,
      .narrow = narrow_numbers<T>,
      .find_inverse_norms = find_inverse_norms<T>,
  };
}

}  // namespace
}  // namespace protofast
