// Puts the kernels of nearest_patch together: memory, and tasks for threads. No torch.
#pragma once

#include <atomic>
#include <bit>
#include <vector>

#include "cpu/nearest_patch/kernels.h"
#include "cpu/nearest_patch/prototype_pack.h"
#include "cpu/workspace.h"

namespace protofast {

constexpr int64_t kChunkBytes = 256 << 10;  // of packed images: what stays in the L2 cache

// The workspace of one worker: the images it has packed last.
template <typename T>
class ChunkWorkspace {
 public:
  ChunkWorkspace(const NearestPatchKernels<T>& kernels, const FeatureMap& features, int64_t images)
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
            table_.data(),
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

// Outputs are [N, P] each. N, P, D and L are at least 1, L < 2^31. False if the packed prototypes
// are those of a frozen layer and are not the prototypes as they are now: the outputs are then
// worth nothing.
template <typename T, typename Parallel>
bool nearest_patch_forward(
    const NearestPatchKernels<T>& kernels,
    const FeatureMap& features,
    const PrototypePack<T>& pack,
    const SimilarityFunction& similarity,
    int64_t threads,
    const Parallel& parallel,
    const NearestOutputs<T>& outputs
) {
  const PackedPrototypes<T>& prototypes = pack.prototypes();
  const int64_t depth = prototypes.depth, lanes = kernels.panel_lanes;
  const int64_t panels = ceil_divide(prototypes.count, lanes);
  const int64_t image_bytes = features.locations * depth * static_cast<int64_t>(sizeof(T));
  const int64_t most = std::max<int64_t>(1, kChunkBytes / image_bytes);
  const int64_t images = std::min(most, ceil_divide(features.images, threads));
  const int64_t chunks = ceil_divide(features.images, images);
  // With few images the prototypes are divided among the threads as well.
  const int64_t slab = ceil_divide(panels, std::min(panels, ceil_divide(2 * threads, chunks)));
  const int64_t slabs = ceil_divide(panels, slab);
  const int64_t workers = std::min(threads, chunks * slabs);
  std::vector<ChunkWorkspace<T>> workspaces;
  workspaces.reserve(workers);
  for (int64_t i = 0; i < workers; ++i) workspaces.emplace_back(kernels, features, images);
  std::atomic<bool> current{true};
  run_tasks(chunks * slabs, workers, parallel, [&](int64_t worker, int64_t task) {
    const int64_t first = task / slabs * images, first_panel = task % slabs * slab;
    const int64_t last_panel = std::min(panels, first_panel + slab);
    if (first == 0 && !pack.is_current(first_panel * lanes, last_panel * lanes)) current = false;
    const int64_t count = std::min(images, features.images - first);
    const PackedImages<T>& packed_images =
        workspaces[worker].pack(kernels, prototypes, features, first, count);
    const int64_t slot = first * prototypes.count;
    const NearestOutputs<T> here = {
        outputs.activations + slot, outputs.distances + slot, outputs.locations + slot
    };
    kernels.search(prototypes, packed_images, first_panel, last_panel, similarity, here);
  });
  return current;
}

}  // namespace protofast
