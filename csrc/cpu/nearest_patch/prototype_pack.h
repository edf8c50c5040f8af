// Prototypes packed for the search: for one call, or, of a frozen layer, once for many calls. No
// torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/nearest_patch/kernels.h"
#include "cpu/patch_group.h"
#include "cpu/workspace.h"

namespace protofast {

// Where the parts of a frozen pack lie, in numbers from its beginning: the prototypes as they were,
// a header, and what the search reads. The size follows from P and D alone, whatever the
// instruction set (protofast/ops/packed_prototypes.py computes it as well).
struct PackLayout {
  int64_t header;
  int64_t centre;
  int64_t norms;
  int64_t panels;
  int64_t size;
};

inline PackLayout pack_layout(int64_t count, int64_t depth) {
  constexpr int64_t kPart = 16;  // parts begin at cache lines
  const int64_t lanes = round_up(count, 32);
  PackLayout layout;
  layout.header = round_up(count * depth, kPart);
  layout.centre = layout.header + kPart;
  layout.norms = layout.centre + round_up(depth, kPart);
  layout.panels = layout.norms + lanes;
  layout.size = layout.panels + lanes * depth;
  return layout;
}

// What tells one frozen pack from another of the same size.
template <typename T>
struct PackHeader {
  T magic, lanes, coded, metric, count, depth;
  bool operator==(const PackHeader& other) const = default;
};

// Prototypes in the layouts that the search reads.
template <typename T>
class PrototypePack {
 public:
  // For one call: the centre now; then either all panels by `pack_panels`, or each where and when
  // it is needed by `pack_panel`. The prototypes must outlive it.
  PrototypePack(
      const NearestPatchKernels<T>& kernels, const PrototypeMatrix& prototypes, Metric metric
  )
      : centre_(prototypes.depth), norms_(round_up(prototypes.count, kernels.panel_lanes)) {
    set(kernels, prototypes, metric, centre_.data(), norms_.data(), nullptr);
    kernels.find_centre(packed_);
  }

  // Packed before by `freeze`. The prototypes are those of now, to be compared (is_current).
  PrototypePack(
      const NearestPatchKernels<T>& kernels,
      const PrototypeMatrix& prototypes,
      Metric metric,
      const T* frozen
  )
      : frozen_(frozen) {
    const PackLayout layout = pack_layout(prototypes.count, prototypes.depth);
    T* memory = const_cast<T*>(frozen);  // written to by `freeze` alone
    T *centre = memory + layout.centre, *norms = memory + layout.norms;
    set(kernels, prototypes, metric, centre, norms, memory + layout.panels);
  }

  static int64_t frozen_size(const PrototypeMatrix& prototypes) {
    return pack_layout(prototypes.count, prototypes.depth).size;
  }

  // frozen [frozen_size]
  template <typename Parallel>
  static void freeze(
      const NearestPatchKernels<T>& kernels,
      const PrototypeMatrix& prototypes,
      Metric metric,
      int64_t threads,
      const Parallel& parallel,
      T* frozen
  ) {
    std::fill_n(frozen, frozen_size(prototypes), T(0));
    PrototypePack pack(kernels, prototypes, metric, frozen);
    kernels.find_centre(pack.packed_);
    pack.pack_panels(kernels, threads, parallel);
    std::copy_n(pack.packed_.rows, prototypes.count * prototypes.depth, frozen);
    const PackHeader<T> header = header_of(kernels, prototypes, metric);
    const PackLayout layout = pack_layout(prototypes.count, prototypes.depth);
    std::memcpy(frozen + layout.header, &header, sizeof(header));
  }

  // Whether `frozen` was made for these kernels, sizes and metric.
  static bool fits(
      const NearestPatchKernels<T>& kernels,
      const PrototypeMatrix& prototypes,
      Metric metric,
      const T* frozen,
      int64_t size
  ) {
    const PackLayout layout = pack_layout(prototypes.count, prototypes.depth);
    if (size != layout.size) return false;
    PackHeader<T> header;
    std::memcpy(&header, frozen + layout.header, sizeof(header));
    return header == header_of(kernels, prototypes, metric);
  }

  template <typename Parallel>
  void pack_panels(
      const NearestPatchKernels<T>& kernels, int64_t threads, const Parallel& parallel
  ) {
    const int64_t panels = ceil_divide(packed_.count, kernels.panel_lanes);
    if (!is_frozen()) {
      panels_ = Workspace<T>(panels * panel_numbers(kernels));
      packed_.panels = panels_.data();
    }
    run_tasks(panels, threads, parallel, [&](int64_t, int64_t panel) {
      kernels.pack_panel(packed_, panel);
    });
  }

  // One panel and its norms in memory of the caller's, [late_numbers]: workers that pack the same
  // panel share nothing.
  PackedPrototypes<T> pack_panel(
      const NearestPatchKernels<T>& kernels, int64_t panel, T* memory
  ) const {
    PackedPrototypes<T> one = packed_;
    one.panels = memory;
    one.norms = memory + panel_numbers(kernels);
    one.first_panel = panel;
    kernels.pack_panel(one, panel);
    return one;
  }
  int64_t panel_numbers(const NearestPatchKernels<T>& kernels) const {
    return kernels.panel_lanes * packed_.depth;
  }
  int64_t late_numbers(const NearestPatchKernels<T>& kernels) const {
    return panel_numbers(kernels) + kernels.panel_lanes;
  }

  const PackedPrototypes<T>& prototypes() const { return packed_; }
  bool is_frozen() const { return frozen_ != nullptr; }

  // Whether prototypes [first, last) are, bit for bit, those that were packed.
  bool is_current(int64_t first, int64_t last) const {
    const int64_t begin = first * packed_.depth;
    const int64_t end = std::min(last, packed_.count) * packed_.depth;
    return std::memcmp(packed_.rows + begin, frozen_ + begin, (end - begin) * sizeof(T)) == 0;
  }

 private:
  static PackHeader<T> header_of(
      const NearestPatchKernels<T>& kernels, const PrototypeMatrix& prototypes, Metric metric
  ) {
    constexpr T kMagic = 58027;
    return {
        kMagic,
        static_cast<T>(kernels.panel_lanes),
        static_cast<T>(kernels.coded),
        static_cast<T>(static_cast<int>(metric)),
        static_cast<T>(prototypes.count),
        static_cast<T>(prototypes.depth),
    };
  }

  void set(
      const NearestPatchKernels<T>& kernels,
      const PrototypeMatrix& prototypes,
      Metric metric,
      T* centre,
      T* norms,
      T* panels
  ) {
    const T round_off = std::numeric_limits<T>::epsilon() / 2;
    packed_ = {
        prototypes.count,
        prototypes.depth,
        metric,
        // What sums can drift, should all their roundings go one way: by the length of a segment
        // and the number of segments. The rest is for centring and direct differences.
        (std::min<T>(prototypes.depth, 128) + T(prototypes.depth) / 128 + 48) * round_off,
        prototype_rows(kernels.access, prototypes, converted_),
        centre,
        norms,
        panels,
        0,
    };
  }

  Workspace<T> converted_{0};
  Workspace<T> centre_{0};
  Workspace<T> norms_{0};
  Workspace<T> panels_{0};
  const T* frozen_ = nullptr;  // begins with the prototypes as they were
  PackedPrototypes<T> packed_;
};

}  // namespace protofast
