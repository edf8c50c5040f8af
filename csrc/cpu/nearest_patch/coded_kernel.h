// nearest_patch for processors that multiply 16-bit integers two to a lane (AVX-512 VNNI), at twice
// the rate of floats: the L2 metrics of float32 select the winner by integers.
//
// A patch or prototype z, minus the centre, is coded as z = scale * a + rest with integers a and
// scale = |z| / longest_code(depth), so that |a| <= kLongest: a sum of products a.b fits into 32
// bits at any depth, and |rest| <= |z| * coding_error(depth). The score of kernel.h is then
//
//   scale_z * scale_p * (a.b) - |z|^2 / 2
//
// with an error of at most 2 coding_error |z| |p| and a little, some hundred times that of floats.
// So more lanes are uncertain (2 % of random ones). They are not scanned: the products of all rows
// of an image are kept until it is done, and only rows whose score comes near the best are compared
// by direct differences. What is found depends on no code: the first location of least distance,
// the same bits as by floats. All else, repeated patches, NaN, infinity and overflow among it, is
// as in kernel.h, and so are the other metrics.
#pragma once

#include <immintrin.h>

#include "cpu/nearest_patch/kernel.h"

namespace protofast {
namespace {

using Products = Vector<int32_t>;  // or two codes in each lane
static_assert(kWidth<int32_t> == kWidth<float>);

// With which multiply_group adds up the products of codes, a pair of them for each of its steps.
template <>
inline Products multiply_add<int32_t>(Products sum, Products lanes, Products patch) {
  return (Products)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)patch, (__m512i)lanes);
}

constexpr float kLongest = 32767;

// Pairs of channels.
inline int64_t code_groups(int64_t depth) { return (depth + 1) / 2; }

// Rounding moves each of D numbers by half a unit, and a unit and a half is left for float's.
inline float longest_code(int64_t depth) {
  return kLongest - 0.5f * __builtin_sqrtf(static_cast<float>(depth)) - 1.5f;
}

// |rest| / |z|, at most: half a unit for each number, and what scaling the largest ones rounds.
inline float coding_error(int64_t depth) {
  return (0.5f * __builtin_sqrtf(static_cast<float>(depth)) + 0.02f) / longest_code(depth);
}

// Squared norms below this are taken for 0. Of those above, underflow has taken no more than a
// quarter: less than 2^-126 for each number, where a process has subnormal ones flushed to zero.
inline float shortest_square(int64_t depth) {
  const float lost = static_cast<float>(depth) * 0x1p-124f;
  return lost > 0x1p-120f ? lost : 0x1p-120f;
}

// ------------------------------------------------------------------ packing

// scales[c] and its inverse, for columns of these squared norms; 0 for what cannot be coded.
template <int columns>
inline void find_scales(const float* squares, int64_t depth, float* scales, float* inverses) {
  const float unit = 1 / longest_code(depth), shortest = shortest_square(depth);
  for (int c = 0; c < columns; ++c) {
    const bool coded = squares[c] >= shortest && squares[c] <= Limits<float>::kLargestNorm;
    scales[c] = coded ? __builtin_sqrtf(squares[c]) * unit : 0;
    inverses[c] = coded ? 1 / scales[c] : 0;
  }
}

// Packed numbers [D, columns] become pairs of codes [code_groups, columns, 2], in place. What is
// written beyond them, less than kBlockSlack pairs, is noise.
template <int columns>
inline void code_columns(float* packed, int64_t depth, const float* inverses) {
  constexpr int kSide = kWidth<float>, kVectors = (columns + kSide - 1) / kSide;
  auto* codes = reinterpret_cast<int32_t*>(packed);
  const auto code = [&](int64_t d, int v) {
    const Vector<float> numbers = load(packed + d * columns + v * kSide);
    const Vector<float> places = numbers * load(inverses + v * kSide);
    return (Products)_mm512_maskz_cvtps_epi32(0xFFFF, (__m512)places);
  };
  for (int64_t d = 0; d < depth; d += 2) {
    Products pairs[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const Products second = d + 1 < depth ? code(d + 1, v) : Products{};
      pairs[v] = (code(d, v) & 0xFFFF) | (second << 16);
    }
    for (int v = 0; v < kVectors; ++v) store(codes + d / 2 * columns + v * kSide, pairs[v]);
  }
}

void pack_coded_panel(const PackedPrototypes<float>& prototypes, int64_t panel) {
  pack_panel(prototypes, panel);
  if (!is_l2(prototypes.metric)) return;
  alignas(PROTOFAST_VECTOR_BYTES) float scales[kLanes<float>], inverses[kLanes<float>];
  const float* squares = norms_of(prototypes, panel);
  find_scales<kLanes<float>>(squares, prototypes.depth, scales, inverses);
  code_columns<kLanes<float>>(panel_of(prototypes, panel), prototypes.depth, inverses);
}

void pack_coded_images(
    const PackedPrototypes<float>& prototypes,
    const FeatureMap& features,
    int64_t first_image,
    const PackedImages<float>& images
) {
  if (!is_l2(prototypes.metric)) return pack_images(prototypes, features, first_image, images);
  const int64_t depth = prototypes.depth;
  pack_blocks(
      prototypes,
      features,
      first_image,
      images,
      code_groups(depth) * kRows,
      [&](float* block, int64_t row) {
        alignas(PROTOFAST_VECTOR_BYTES) float inverses[kWidth<float>] = {};
        static_assert(kRows <= kWidth<float>);
        find_scales<kRows>(images.terms + row, depth, images.scales + row, inverses);
        code_columns<kRows>(block, depth, inverses);
      }
  );
}

// ------------------------------------------------------------------ the search

// What the search knows of the lanes of a panel.
struct CodedPanel {
  const PackedPrototypes<float>& prototypes;
  int64_t panel;
  Vector<float> norms[2];    // |p|^2
  Vector<float> lengths[2];  // |p|
  Vector<float> scales[2];
  float coding;    // error of a difference of two scores, over |z| |p|
  float shortest;  // the same, over |z| + |p|: where one of them is taken for 0
};

inline CodedPanel coded_panel(const PackedPrototypes<float>& prototypes, int64_t panel) {
  alignas(PROTOFAST_VECTOR_BYTES) float scales[kLanes<float>], inverses[kLanes<float>];
  const float* norms = norms_of(prototypes, panel);
  find_scales<kLanes<float>>(norms, prototypes.depth, scales, inverses);
  const float error = coding_error(prototypes.depth);
  const float coding = 2 * (2 * error + error * error);
  const float shortest = 3 * __builtin_sqrtf(shortest_square(prototypes.depth));
  CodedPanel found = {prototypes, panel, {}, {}, {}, coding, shortest};
  for (int v = 0; v < 2; ++v) {
    found.norms[v] = load(norms + v * kWidth<float>);
    found.lengths[v] = (Vector<float>)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)found.norms[v]);
    found.scales[v] = load(scales + v * kWidth<float>);
  }
  return found;
}

inline Vector<float> coded_score(
    const CodedPanel& panel, int v, const int32_t* products, float scale, float term
) {
  const Products sums = load(products + v * kWidth<float>);
  return __builtin_convertvector(sums, Vector<float>) * scale * panel.scales[v] - term;
}

// By how much the score of a nearer patch can lie below the best one of each lane.
inline Vector<float> score_error(
    const CodedPanel& panel, int v, Vector<float> best, float largest
) {
  const Vector<float> distance = panel.norms[v] - 2.0f * best;
  return rounding_error<float>(panel.norms[v], distance, largest, panel.prototypes.tolerance) +
         panel.coding * largest * panel.lengths[v] + panel.shortest * (largest + panel.lengths[v]);
}

// The nearest patch of those whose score comes near the best, for each of the `uncertain` lanes. A
// lane stays kUncertain if its best score is not known.
template <int vectors>
__attribute__((noinline)) void look_closer(
    const CodedPanel& panel,
    const PackedImages<float>& images,
    int64_t image,
    const Running<float>& running,
    uint32_t uncertain,
    Winners<float>& winners
) {
  const PackedPrototypes<float>& prototypes = panel.prototypes;
  const int64_t depth = prototypes.depth, first_row = image * images.locations;
  const PatchRows<float> patches = images.patches[image];
  Vector<float> thresholds[vectors];
  for (int v = 0; v < vectors; ++v) {
    thresholds[v] = running.best[v] - score_error(panel, v, running.best[v], images.largest[image]);
  }
  float least[kLanes<float>];
  for (float& distance : least) distance = Limits<float>::kInfinity;
  for (int64_t l = 0; l < images.locations; ++l) {
    const int64_t row = first_row + l;
    const int32_t* products = images.products + row * kLanes<float>;
    uint32_t near = 0;
    for (int v = 0; v < vectors; ++v) {
      const Vector<float> score =
          coded_score(panel, v, products, images.scales[row], images.terms[row]);
      const uint32_t some = _mm512_cmp_ps_mask((__m512)score, (__m512)thresholds[v], _CMP_GE_OQ);
      near |= some << (v * kWidth<float>);
    }
    for (near &= uncertain; near != 0; near &= near - 1) {
      const int lane = __builtin_ctz(near);
      const float* prototype = prototypes.rows + (panel.panel * kLanes<float> + lane) * depth;
      const float distance =
          pair_distance(patches.rows + l * patches.stride, prototype, depth, prototypes.metric);
      if (distance < least[lane]) {
        least[lane] = distance;
        winners.of_lane[lane] = static_cast<int32_t>(l);
      }
    }
  }
}

template <int vectors>
inline void choose_coded(
    const CodedPanel& panel,
    const PackedImages<float>& images,
    int64_t image,
    const Running<float>& running,
    Winners<float>& winners
) {
  const float largest = images.largest[image];
  uint32_t uncertain = 0;
  for (int v = 0; v < vectors; ++v) {
    const Vector<float> best = running.best[v];
    const Vector<float> error = score_error(panel, v, best, largest);
    const Integers<float> doubted = ~certain<float>(best, running.second[v], panel.norms[v], error);
    const Integers<float> chosen = doubted | running.location[v];  // all bits set: kUncertain
    __builtin_memcpy(winners.of_lane + v * kWidth<float>, &chosen, sizeof(chosen));
    uncertain |= static_cast<uint32_t>(_mm512_movepi32_mask((__m512i)doubted))
                 << (v * kWidth<float>);
  }
  const int64_t used = panel.prototypes.count - panel.panel * kLanes<float>;
  if (used < kLanes<float>) uncertain &= (uint32_t{1} << used) - 1;
  if (uncertain != 0 && largest == largest) {
    look_closer<vectors>(panel, images, image, running, uncertain, winners);
  }
}

template <int vectors>
void search_coded_panel(
    const PackedPrototypes<float>& prototypes,
    const PackedImages<float>& images,
    int64_t panel,
    const SimilarityFunction& similarity,
    const NearestOutputs<float>& outputs
) {
  const int64_t groups = code_groups(prototypes.depth);
  const auto* codes = reinterpret_cast<const int32_t*>(panel_of(prototypes, panel));
  const auto* blocks = reinterpret_cast<const int32_t*>(images.blocks);
  const CodedPanel lanes = coded_panel(prototypes, panel);
  search_rows(
      prototypes,
      images,
      panel,
      kRows * (groups > kSegment ? kGroupBlocks : 1),
      [&](int64_t first_row, int64_t used) {
        int32_t* products = images.products + first_row * kLanes<float>;
        multiply_group<vectors>(blocks + first_row * groups, used, codes, groups, products);
      },
      [&](Running<float>& running, int64_t first_row, int64_t r, int64_t location) {
        const int64_t row = first_row + r;
        const int32_t* products = images.products + row * kLanes<float>;
        for (int v = 0; v < vectors; ++v) {
          const Vector<float> score =
              coded_score(lanes, v, products, images.scales[row], images.terms[row]);
          take_score<float>(running, v, score, location);
        }
      },
      [&](int64_t image, const Running<float>& running, Winners<float>& winners) {
        choose_coded<vectors>(lanes, images, image, running, winners);
      },
      similarity,
      outputs
  );
}

void search_coded(
    const PackedPrototypes<float>& prototypes,
    const PackedImages<float>& images,
    int64_t panel,
    const SimilarityFunction& similarity,
    const NearestOutputs<float>& outputs
) {
  if (!is_l2(prototypes.metric)) return search(prototypes, images, panel, similarity, outputs);
  if (prototypes.count - panel * kLanes<float> > kWidth<float>) {
    search_coded_panel<2>(prototypes, images, panel, similarity, outputs);
  } else {
    search_coded_panel<1>(prototypes, images, panel, similarity, outputs);
  }
}

constexpr NearestPatchKernels<float> coded_nearest_patch_kernels() {
  NearestPatchKernels<float> kernels = nearest_patch_kernels<float>();
  kernels.coded = true;
  kernels.pack_panel = pack_coded_panel;
  kernels.pack_images = pack_coded_images;
  kernels.search = search_coded;
  return kernels;
}

}  // namespace
}  // namespace protofast
