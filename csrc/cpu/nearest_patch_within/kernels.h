// The pieces of nearest_patch_within that are compiled for processors with 8-bit dot products, and
// the data they share. run.h puts them together; kernel.h says how they work.
#pragma once

#include "cpu/nearest_patch/kernels.h"

namespace protofast {

constexpr int kCodeLanes = 32;  // prototypes of a panel
constexpr int kCodeDepth = 4;   // channels whose codes lie side by side: a group
constexpr int kCodeRows = 7;    // patches of an image are rounded up to a multiple of these

// Sums of so many products of codes, and what is added to them, fit into 32 bits.
constexpr int64_t kMostCodeDepth = 1 << 14;

// Numbers below this, and so many of them, have a finite squared distance in float.
constexpr double kLargestCoded = 0x1p55;

// What a look at scores needs to know of the prototypes of a panel, p' being the coded prototype.
struct PanelNumbers {
  double squares[kCodeLanes];    // |p'|^2
  double tilts[kCodeLanes];      // 2 * scale * sum of the codes
  double errors[kCodeLanes];     // no less than |p - p'|
  double reaches[kCodeLanes];    // root of the limit, with the error
  double constants[kCodeLanes];  // |p'|^2 - reach^2; infinite where nothing is within the limit
};

// Prototypes in signed 8-bit integers: p' = centre + scale * code.
template <typename T>
struct CodedPrototypes {
  int64_t count;         // P
  int64_t depth;         // D
  Metric metric;         // squared_l2 or l2
  const T* rows;         // [P, D], as given
  const T* centre;       // [D]
  const double* limits;  // [P]
  T largest;             // of all |p[d] - centre[d]|
  T scale;
  int8_t* panels;         // [panels, groups, kCodeLanes, kCodeDepth]
  PanelNumbers* numbers;  // [panels]
};

// The patches of an image in unsigned 8-bit integers: z' = centre + least + scale * code.
template <typename T>
struct CodedImage {
  int64_t locations;     // L
  PatchRows<T> patches;  // as given
  int32_t* codes;        // [groups, rows]: kCodeDepth codes each; rows: L, rounded up
  int32_t* starts;       // [rows]: -|z'|^2 / unit, where the score of a patch begins
  int32_t* scores;       // [rows, kCodeLanes], of the panel that was looked at last
  double least;
  double error;  // no less than any |z - z'|
  double unit;   // of scores, in squared distance
  bool usable;   // else every pair is looked at directly
};

// A prototype that has a patch of the image within its limit.
template <typename T>
struct NearPair {
  int64_t prototype;
  int64_t location;
  T distance;
};

template <typename T>
struct CodeKernels {
  // The largest |p[d] - centre[d]|; infinite if one is not finite.
  T (*find_largest)(const T* rows, const T* centre, int64_t count, int64_t depth);
  void (*code_panel)(const CodedPrototypes<T>& prototypes, int64_t panel);
  // image.patches, codes, starts and scores are given; `row` [groups * kCodeDepth] is scratch.
  void (*code_image)(const CodedPrototypes<T>& prototypes, uint8_t* row, CodedImage<T>& image);
  // The pairs of a panel, of which there are at most kCodeLanes, in order; returns how many. Adds
  // the distances that were computed to `looked`.
  int64_t (*search)(
      const CodedPrototypes<T>& prototypes,
      const CodedImage<T>& image,
      int64_t panel,
      NearPair<T>* found,
      int64_t* looked
  );
};

struct CodeTable {
  CodeKernels<float> of_float;
  CodeKernels<double> of_double;
};

extern const CodeTable nearest_patch_within_avx512vnni;

}  // namespace protofast
