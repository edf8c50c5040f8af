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
                                                   : images * kernels.access.row_memory(features)
        ),
        blocks_(
            round_up(images * features.locations, kernels.block_rows) * features.depth + kBlockSlack
        ),
        terms_(round_up(images * features.locations, kernels.block_rows)),
        largest_(images),
        scales_(kernels.coded ? round_up(images * features.locations, kernels.block_rows) : 0),
        products_(
            kernels.coded
                ? round_up(images * features.locations, kernels.block_rows) * kernels.panel_lanes
                : 0
        ),
        table_bits_(
            static_cast<int>(std::bit_width(static_cast<uint64_t>(features.locations))) + 1
        ),
        table_(find_repetitions ? int64_t{1} << table_bits_ : 0),
        packed_{
            0,
            features.locations,
            patches_.data(),
            storage_.data(),
            blocks_.data(),
            terms_.data(),
            largest_.data(),
            scales_.data(),
            products_.data(),
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
  Workspace<T> scales_;
  Workspace<int32_t> products_;
  int table_bits_;
  Workspace<uint32_t> table_;
  PackedImages<T> packed_;
  int64_t first_image_ = -1;
};

// How the work is divided: chunks of images, each against all panels of prototypes. A worker takes
// a chunk and goes through its panels, a few at a time; when there is no chunk left it helps with
// the panels of others'. So the last chunks end at the same time everywhere, and a worker that
// loses time to something else holds nobody up.
class Division {
 public:
  Division(int64_t images, int64_t chunk_images, int64_t panels, int64_t panels_at_once)
      : images_(images),
        chunk_images_(chunk_images),
        panels_(panels),
        panels_at_once_(panels_at_once),
        next_panel_(ceil_divide(images, chunk_images)) {}

  int64_t chunks() const { return static_cast<int64_t>(next_panel_.size()); }
  int64_t chunk_images() const { return chunk_images_; }
  int64_t tasks() const { return chunks() * ceil_divide(panels_, panels_at_once_); }

  // One worker: calls work(first_image, images, begin, end) for panels [begin, end).
  template <typename Work>
  void take_part(const Work& work) {
    for (int64_t i = next_chunk_++; i < chunks(); i = next_chunk_++) take(i, work);
    for (int64_t i = chunks() - 1; i >= 0; --i) take(i, work);
  }

 private:
  template <typename Work>
  void take(int64_t chunk, const Work& work) {
    const int64_t first = chunk * chunk_images_;
    const int64_t count = std::min(chunk_images_, images_ - first);
    for (;;) {
      const int64_t begin = next_panel_[chunk].fetch_add(panels_at_once_);
      if (begin >= panels_) return;
      work(first, count, begin, std::min(panels_, begin + panels_at_once_));
    }
  }

  int64_t images_;
  int64_t chunk_images_;
  int64_t panels_;
  int64_t panels_at_once_;
  std::atomic<int64_t> next_chunk_{0};
  std::vector<std::atomic<int64_t>> next_panel_;  // of each chunk
};

// Multiplications, about, between one look at what others have taken and the next.
constexpr int64_t kStepsOfTask = 1 << 20;
// So many threads share a chunk without packing it taking more than a tenth of their time.
constexpr int64_t kThreadsOfChunk = 8;
// For so many, packing panels anew each time is no slower than having all threads pack and wait.
constexpr int64_t kFewChunks = 4;

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
  // One chunk, if it holds all images, is best: the threads divide its panels. But each of them
  // packs its images. With several, as many for each thread.
  const int64_t parts = std::min(features.images, threads / kThreadsOfChunk);
  int64_t chunks = std::max(ceil_divide(features.images, most), parts);
  if (chunks > 1) chunks = round_up(chunks, threads);
  const int64_t images = ceil_divide(features.images, chunks);
  const int64_t steps = images * features.locations * features.depth * kernels.panel_lanes;
  const int64_t at_once =
      std::min(ceil_divide(kStepsOfTask, steps), ceil_divide(panels, 2 * threads));
  return Division(features.images, images, panels, at_once);
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
  Division division = divide(kernels, features, prototypes.count, threads);
  const int64_t workers = std::min(threads, division.tasks());
  // Panels that stay in the cache from one of many chunks to the next are packed beforehand. Others
  // are packed by the worker that needs them, just before: then they and the prototypes, which
  // refining reads, are in the cache, and no other memory is touched.
  const int64_t bytes = prototypes.count * prototypes.depth * static_cast<int64_t>(sizeof(T));
  const bool few = division.chunks() <= kFewChunks || bytes > kManyBytes;
  const bool pack_late = few && !pack.is_frozen();
  if (!pack_late && !pack.is_frozen()) pack.pack_panels(kernels, threads, parallel);
  const int64_t late_numbers = pack_late ? pack.late_numbers(kernels) : 0;
  Workspace<T> late(workers * late_numbers);

  std::vector<ChunkWorkspace<T>> workspaces;
  workspaces.reserve(workers);
  for (int64_t i = 0; i < workers; ++i) {
    workspaces.emplace_back(kernels, features, division.chunk_images(), find_repetitions);
  }
  std::atomic<bool> current{true};
  parallel(workers, [&](int64_t worker) {
    division.take_part([&](int64_t first, int64_t count, int64_t begin, int64_t end) {
      const PackedImages<T>& images =
          workspaces[worker].pack(kernels, prototypes, features, first, count);
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
