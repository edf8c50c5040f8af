// Patches and prototypes as rows of float or double, for the files that put kernels together.
// Standard library, no torch.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/element.h"
#include "cpu/workspace.h"

namespace protofast {

// Prototypes of any element type: rows [P, D], or those of several patches in the order
// [P, D, h, w].
struct PrototypeMatrix {
  void* data;  // only written to where it is an output
  Element element;
  int64_t count;
  int64_t depth;        // of all patches of a prototype: D, or h * w * D
  int64_t patches = 1;  // h * w; 1 if they are rows already
};

// The element type of T.
template <typename T>
constexpr Element own_element() {
  return std::is_same_v<T, float> ? Element::kFloat32 : Element::kFloat64;
}

// Whether the prototypes lie in another order than rows, [D, h, w] and not [h, w, D].
inline bool needs_reordering(const PrototypeMatrix& prototypes) {
  return prototypes.patches > 1 && prototypes.depth > prototypes.patches;
}

// Whether the prototypes can be used, or written, as rows of T where they lie.
template <typename T>
bool rows_in_place(const PrototypeMatrix& prototypes) {
  return prototypes.element == own_element<T>() && !needs_reordering(prototypes);
}

// Prototypes [P, D, h, w] as if they were images [P, D, h, w]: their patches are read and written
// by the same code.
inline FeatureMap as_images(const PrototypeMatrix& prototypes) {
  return {
      prototypes.data,
      prototypes.element,
      prototypes.count,
      prototypes.depth / prototypes.patches,
      prototypes.patches,
      prototypes.depth,
      prototypes.patches,
      1,
  };
}

// The prototypes as rows of T, in the order of windows [h, w, D]: where they lie, or else in
// `storage`.
template <typename T>
const T* prototype_rows(
    const PatchAccess<T>& access, const PrototypeMatrix& prototypes, Workspace<T>& storage
) {
  if (rows_in_place<T>(prototypes)) return static_cast<const T*>(prototypes.data);
  const int64_t numbers = prototypes.count * prototypes.depth;
  storage = Workspace<T>(numbers);
  if (!needs_reordering(prototypes)) {
    access.widen(prototypes.data, prototypes.element, numbers, storage.data());
    return storage.data();
  }
  const FeatureMap images = as_images(prototypes);
  for (int64_t p = 0; p < prototypes.count; ++p) {
    access.read(images, p, storage.data() + p * prototypes.depth);
  }
  return storage.data();
}

// Rows [P, h, w, D] into prototypes.
template <typename T>
void write_prototypes(const PatchAccess<T>& access, T* rows, const PrototypeMatrix& prototypes) {
  if (!needs_reordering(prototypes)) {
    const int64_t numbers = prototypes.count * prototypes.depth;
    return access.narrow(rows, numbers, prototypes.data, prototypes.element);
  }
  const FeatureMap images = as_images(prototypes);
  for (int64_t p = 0; p < prototypes.count; ++p) {
    access.write(rows + p * prototypes.depth, p, images);
  }
}

// Images at once: so many bytes of them, or a few for each thread and enough to add up in one go.
constexpr int64_t kGroupBytes = 1 << 20;
constexpr int64_t kGroupImages = 16;

// The patches of a group of images as rows, in place or converted, and what cosine needs of them.
template <typename T>
class PatchGroup {
 public:
  PatchGroup(
      const PatchAccess<T>& access, const FeatureMap& features, Metric metric, int64_t threads
  )
      : access_(access),
        features_(features),
        in_place_(access.rows_in_place(features)),
        cosine_(metric == Metric::kCosine),
        image_numbers_(access.row_memory(features)),
        size_(group_size(threads)),
        rows_(size_),
        storage_(in_place_ ? 0 : size_ * image_numbers_),
        inverse_norms_(cosine_ ? size_ * features.locations : 0) {}

  int64_t size() const { return size_; }

  // Reads image `image` into place i of the group.
  void read(int64_t i, int64_t image) {
    T* storage = in_place_ ? nullptr : storage_.data() + i * image_numbers_;
    rows_[i] = access_.read(features_, image, storage);
    if (cosine_) {
      T* norms = inverse_norms_.data() + i * features_.locations;
      access_.find_inverse_norms(rows_[i], features_.locations, features_.depth, norms);
    }
  }
  PatchRows<T> rows(int64_t i) const { return rows_[i]; }
  const T* inverse_norms(int64_t i) const {
    return cosine_ ? inverse_norms_.data() + i * features_.locations : nullptr;
  }

 private:
  int64_t group_size(int64_t threads) const {
    const int64_t bytes = image_numbers_ * static_cast<int64_t>(sizeof(T));
    // The windows of an image are many times its patches.
    const bool windows = features_.window.height * features_.window.width > 1;
    const int64_t least = windows ? threads : std::max(kGroupImages, 4 * threads);
    const int64_t most = std::max(kGroupBytes / bytes, least);
    const int64_t images = std::max<int64_t>(features_.images, 1);
    const int64_t groups = ceil_divide(images, most);
    return ceil_divide(images, groups);
  }

  const PatchAccess<T>& access_;
  const FeatureMap& features_;
  bool in_place_;
  bool cosine_;
  int64_t image_numbers_;
  int64_t size_;
  std::vector<PatchRows<T>> rows_;
  Workspace<T> storage_;
  Workspace<T> inverse_norms_;
};

}  // namespace protofast
