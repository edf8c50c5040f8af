// Puts the kernels of nearest_patch together: memory, and tasks for threads. No torch.
#pragma once

#include <atomic>
#include <bit>
#include <utility>
#include <vector>

#include "cpu/nearest_patch/kernels.h"
#include "cpu/nearest_patch/prototype_pack.h"
#include "cpu/workspace.h"

namespace protofast {

// Of packed images: what stays in the L2 cache beside the patches themselves; and more of it where
// the prototypes are so many bytes that each chunk reads them from further away.
constexpr int64_t kChunkBytes = 256 << 10;
constexpr int64_t kChunkBytesOfMany = 512 << 10;
constexpr int64_t kManyBytes = 2 << 20;

// The workspace of one worker: the images it has packed last.
template <typename T>
class ChunkWorkspace {
 public:
  ChunkWorkspace(
      const NearestPatchKernels<T>& kernels,
      const FeatureMap& features,
      int64_t images,
      bool find_repetitions
  )
      : patches_(images),
        storage_(
            kernels.access.rows_in_place(features) ? 0
                                                   : images * features.locations * features.depth
        ),
        blocks_(
            round_up(images * features.locations, kernels.block_rows) * features.depth + kBlockSlack
        ),
        terms_(round_up(images * features.locations, kernels.block_rows)),
        largest_(images),
        table_bits_(
            static_cast<int>(std::bit_width(static_cast<uint64_t>(features.locations))) + 1
        ),
        table_(int64_t{1} << table_bits_),
        packed_{
            0,
            features.locations,
            patches_.data(),
            storage_.data(),
            blocks_.data(),
            terms_.data(),
            largest_.data(),
            find_repetitions ? table_.data() : nullptr,
            table_bits_
        } {}

  const PackedImages<T>& pack(
      const NearestPatchKernels<T>& kernels,
      const PackedPrototypes<T>& prototypes,
      const FeatureMap& features,
      int64_t first_image,
      int64_t count
  ) {
    if (first_image != first_image_) {
      packed_.count = count;
      kernels.pack_images(prototypes, features, first_image, packed_);
      first_image_ = first_image;
    }
    return packed_;
  }

 private:
  std::vector<PatchRows<T>> patches_;
  Workspace<T> storage_;
  Workspace<T> blocks_;
  Workspace<T> terms_;
  Workspace<T> largest_;
  int table_bits_;
  Workspace<uint32_t> table_;
  PackedImages<T> packed_;
  int64_t first_image_ = -1;
};

// How the work is divided into tasks: chunks of images, each against slabs of panels.
struct Division {
  int64_t images;  // of a chunk
  int64_t chunks;
  int64_t panels;  // of a slab
  int64_t slabs;
};

template <typename T>
Division divide(
    const NearestPatchKernels<T>& kernels,
    const FeatureMap& features,
    int64_t prototypes,
    int64_t threads
) {
  const int64_t panels = ceil_divide(prototypes, kernels.panel_lanes);
  const int64_t patch_bytes = features.depth * static_cast<int64_t>(sizeof(T));
  const int64_t bytes = prototypes * patch_bytes > kManyBytes ? kChunkBytesOfMany : kChunkBytes;
  const int64_t most = std::max<int64_t>(1, bytes / (features.locations * patch_bytes));
  // As many chunks for each thread.
  const int64_t chunks = round_up(ceil_divide(features.images, most), threads);
  Division division;
  division.images = ceil_divide(features.images, chunks);
  division.chunks = ceil_divide(features.images, division.images);
  // With few images the prototypes are divided among the threads as well.
  const int64_t slabs = std::min(panels, ceil_divide(2 * threads, division.chunks));
  division.panels = ceil_divide(panels, slabs);
  division.slabs = ceil_divide(panels, division.panels);
  return division;
}

// Calls search(prototypes, images, first_image, panel) for every chunk of images and every panel.
// N, P, D and L are at least 1, L < 2^31. False if the packed prototypes are those of a frozen
// layer and are not the prototypes as they are now: what was found is then worth nothing.
template <typename T, typename Parallel, typename Search>
bool search_everything(
    const NearestPatchKernels<T>& kernels,
    const FeatureMap& features,
    PrototypePack<T> pack,
    bool find_repetitions,
    int64_t threads,
    const Parallel& parallel,
    const Search& search
) {
  const PackedPrototypes<T>& prototypes = pack.prototypes();
  const int64_t panels = ceil_divide(prototypes.count, kernels.panel_lanes);
  const Division division = divide(kernels, features, prototypes.count, threads);
  const int64_t tasks = division.chunks * division.slabs, workers = std::min(threads, tasks);
  // A panel that one chunk alone needs is packed by the worker that needs it, just before: then it
  // and the prototypes, which refining reads, are in the cache, and no other memory is touched.
  const bool pack_late = !pack.is_frozen() && division.chunks == 1;
  if (!pack_late && !pack.is_frozen()) pack.pack_panels(kernels, threads, parallel);
  const int64_t late_numbers = pack_late ? pack.panel_numbers(kernels) : 0;
  Workspace<T> late(workers * late_numbers);

  std::vector<ChunkWorkspace<T>> workspaces;
  workspaces.reserve(workers);
  for (int64_t i = 0; i < workers; ++i) {
    workspaces.emplace_back(kernels, features, division.images, find_repetitions);
  }
  std::atomic<bool> current{true};
  run_tasks(tasks, workers, parallel, [&](int64_t worker, int64_t task) {
    const int64_t first = task / division.slabs * division.images;
    const int64_t count = std::min(division.images, features.images - first);
    const PackedImages<T>& images =
        workspaces[worker].pack(kernels, prototypes, features, first, count);
    const int64_t begin = task % division.slabs * division.panels;
    const int64_t end = std::min(panels, begin + division.panels);
    for (int64_t panel = begin; panel < end; ++panel) {
      if (pack_late) {
        T* memory = late.data() + worker * late_numbers;
        search(pack.pack_panel(kernels, panel, memory), images, first, panel);
        continue;
      }
      if (pack.is_frozen() && first == 0) {
        const int64_t lane = panel * kernels.panel_lanes;
        if (!pack.is_current(lane, lane + kernels.panel_lanes)) current = false;
      }
      search(prototypes, images, first, panel);
    }
  });
  return current;
}

// Outputs are [N, P] each; the rest as for search_everything.
template <typename T, typename Parallel>
bool nearest_patch_forward(
    const NearestPatchKernels<T>& kernels,
    const FeatureMap& features,
    PrototypePack<T> pack,
    const SimilarityFunction& similarity,
    int64_t threads,
    const Parallel& parallel,
    const NearestOutputs<T>& outputs
) {
  const auto search = [&](const PackedPrototypes<T>& prototypes,
                          const PackedImages<T>& images,
                          int64_t first_image,
                          int64_t panel) {
    const int64_t slot = first_image * prototypes.count;
    const NearestOutputs<T> here = {
        outputs.activations + slot, outputs.distances + slot, outputs.locations + slot
    };
    kernels.search(prototypes, images, panel, similarity, here);
  };
  return search_everything<T>(kernels, features, std::move(pack), true, threads, parallel, search);
}

}  // namespace protofast
