// Puts the kernels of nearest_patch_within together with those of nearest_patch. No torch.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/nearest_patch/forward.h"
#include "cpu/nearest_patch_within/kernels.h"
#include "cpu/workspace.h"

namespace protofast {

// The kernels of a first look in 8-bit integers, or null where this instruction set has none.
template <typename T>
const CodeKernels<T>* code_kernels_for([[maybe_unused]] InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512Vnni) {
    if constexpr (std::is_same_v<T, float>) {
      return &nearest_patch_within_avx512vnni.of_float;
    } else {
      return &nearest_patch_within_avx512vnni.of_double;
    }
  }
#endif
  return nullptr;
}

// The pairs found, for each image in the order of the prototypes.
template <typename T>
using NearPairs = std::vector<std::vector<NearPair<T>>>;  // [N]

// A distance computed alone takes as long as so many from matrix products, and a first look as long
// as a few of them: where more than one in so many is needed, products of floats are faster.
constexpr int64_t kRarelyLooked = 16;

// Panels of codes in memory, and the numbers that belong to them.
template <typename T>
class PrototypeCodes {
 public:
  template <typename Parallel>
  PrototypeCodes(
      const CodeKernels<T>& kernels,
      const PackedPrototypes<T>& packed,
      const double* limits,
      T largest,
      int64_t threads,
      const Parallel& parallel
  )
      : panels_(ceil_divide(packed.count, kCodeLanes)),
        codes_(panels_ * kCodeLanes * round_up(packed.depth, kCodeDepth)),
        numbers_(panels_) {
    // Prototypes all at the centre have codes of 0 at any scale: that of the centre is a guess.
    T guess = largest;
    for (int64_t d = 0; d < packed.depth; ++d) {
      guess = std::max(guess, std::abs(packed.centre[d]) / 1024);
    }
    const T scale = std::max(guess / 127, static_cast<T>(0x1p-100));
    prototypes_ = {
        packed.count,
        packed.depth,
        packed.metric,
        packed.rows,
        packed.centre,
        limits,
        largest,
        scale,
        codes_.data(),
        numbers_.data(),
    };
    run_tasks(panels_, threads, parallel, [&](int64_t, int64_t panel) {
      kernels.code_panel(prototypes_, panel);
    });
  }
  int64_t panels() const { return panels_; }
  const CodedPrototypes<T>& prototypes() const { return prototypes_; }

 private:
  int64_t panels_;
  Workspace<int8_t> codes_;
  Workspace<PanelNumbers> numbers_;
  CodedPrototypes<T> prototypes_;
};

// The workspace of one worker: the image that it has coded last.
template <typename T>
class ImageCodes {
 public:
  ImageCodes(const PatchAccess<T>& access, const FeatureMap& features)
      : rows_(round_up(features.locations, kCodeRows)),
        storage_(access.rows_in_place(features) ? 0 : access.row_memory(features)),
        codes_(rows_ * ceil_divide(features.depth, kCodeDepth)),
        starts_(rows_),
        scores_(rows_ * kCodeLanes),
        row_(round_up(features.depth, kCodeDepth)) {}

  const CodedImage<T>& code(
      const NearestPatchKernels<T>& nearest,
      const CodeKernels<T>& kernels,
      const CodedPrototypes<T>& prototypes,
      const FeatureMap& features,
      int64_t image
  ) {
    coded_.locations = features.locations;
    coded_.patches = nearest.access.read(features, image, storage_.data());
    coded_.codes = codes_.data();
    coded_.starts = starts_.data();
    coded_.scores = scores_.data();
    kernels.code_image(prototypes, row_.data(), coded_);
    return coded_;
  }

 private:
  int64_t rows_;
  Workspace<T> storage_;
  Workspace<int32_t> codes_;
  Workspace<int32_t> starts_;
  Workspace<int32_t> scores_;
  Workspace<uint8_t> row_;
  CodedImage<T> coded_{};
};

// By a first look in integers. False, with `found` as it happens to be, where that does not pay.
template <typename T, typename Parallel>
bool search_by_codes(
    const NearestPatchKernels<T>& nearest,
    const CodeKernels<T>& kernels,
    const FeatureMap& features,
    const PackedPrototypes<T>& packed,
    const double* limits,
    int64_t threads,
    const Parallel& parallel,
    int64_t rarely,  // kRarelyLooked; 0: never give up, for tests
    NearPairs<T>& found
) {
  if (packed.depth > kMostCodeDepth) return false;
  const T largest = kernels.find_largest(packed.rows, packed.centre, packed.count, packed.depth);
  if (!(largest < kLargestCoded)) return false;
  const PrototypeCodes<T> codes(kernels, packed, limits, largest, threads, parallel);

  std::vector<ImageCodes<T>> workspaces;
  const int64_t workers = std::min(threads, features.images);
  workspaces.reserve(workers);
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(nearest.access, features);
  // So many distances may be computed one by one: some of those of the images so far and of one.
  const int64_t of_all = packed.count * features.locations;
  const int64_t of_image = rarely == 0 ? of_all : ceil_divide(of_all, rarely);
  std::atomic<int64_t> left{of_image};
  std::atomic<bool> skipped{false};  // for good: images that are done later may add to `left` again
  run_tasks(features.images, workers, parallel, [&](int64_t worker, int64_t image) {
    if (skipped || left < 0) {
      skipped = true;
      return;
    }
    const CodedImage<T>& coded =
        workspaces[worker].code(nearest, kernels, codes.prototypes(), features, image);
    std::vector<NearPair<T>>& pairs = found[image];
    int64_t looked = 0;
    for (int64_t panel = 0; panel < codes.panels(); ++panel) {
      NearPair<T> some[kCodeLanes];
      const int64_t count = kernels.search(codes.prototypes(), coded, panel, some, &looked);
      pairs.insert(pairs.end(), some, some + count);
    }
    left += of_image - looked;
  });
  return !skipped;
}

// By all distances.
template <typename T, typename Parallel>
void search_by_products(
    const NearestPatchKernels<T>& nearest,
    const FeatureMap& features,
    PrototypePack<T> pack,
    const double* limits,
    int64_t threads,
    const Parallel& parallel,
    NearPairs<T>& found
) {
  const int64_t count = pack.prototypes().count;
  Workspace<T> activations(features.images * count), distances(features.images * count);
  Workspace<int64_t> locations(features.images * count);
  const NearestOutputs<T> outputs = {activations.data(), distances.data(), locations.data()};
  const SimilarityFunction negative = {Similarity::kLinear, 0, 0};
  nearest_patch_forward<T>(
      nearest, features, std::move(pack), negative, threads, parallel, outputs
  );
  for (int64_t n = 0; n < features.images; ++n) {
    found[n].clear();
    for (int64_t p = 0; p < count; ++p) {
      const T distance = outputs.distances[n * count + p];
      if (distance <= limits[p] || !std::isfinite(distance)) {
        found[n].push_back({p, outputs.locations[n * count + p], distance});
      }
    }
  }
}

// The pairs of an image and a prototype whose distance is at most limits[p], or not finite. N, P,
// D and L are at least 1.
template <typename T, typename Parallel>
NearPairs<T> nearest_patch_within_forward(
    const NearestPatchKernels<T>& nearest,
    const CodeKernels<T>* codes,  // or null
    const FeatureMap& features,
    const PrototypeMatrix& rows,
    Metric metric,
    const double* limits,  // [P]
    int64_t threads,
    const Parallel& parallel,
    int64_t rarely = kRarelyLooked
) {
  NearPairs<T> found(features.images);
  PrototypePack<T> pack(nearest, rows, metric);
  const bool l2 = metric == Metric::kSquaredL2 || metric == Metric::kL2;
  const PackedPrototypes<T>& packed = pack.prototypes();
  if (codes == nullptr || !l2 ||
      !search_by_codes(
          nearest, *codes, features, packed, limits, threads, parallel, rarely, found
      )) {
    search_by_products(nearest, features, std::move(pack), limits, threads, parallel, found);
  }
  return found;
}

}  // namespace protofast
