// What the CPU operators do with torch, through its stable ABI: views of tensors, threads, checks.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/element.h"
#include "cpu/patch_group.h"

namespace protofast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Element element_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return Element::kFloat16;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::Double:
      return Element::kFloat64;
    default:
      STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64");
  }
}

// Results are float64 if either input is, else float32.
inline ScalarType result_type(const Tensor& features, const Tensor& prototypes) {
  const bool wide = features.scalar_type() == ScalarType::Double ||
                    prototypes.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

// Calls body with a number of the C++ type of the results.
template <typename Body>
void with_result_type(ScalarType type, const Body& body) {
  if (type == ScalarType::Double) {
    body(double{});
  } else {
    body(float{});
  }
}

inline Metric metric_of(const std::string& name) {
  if (name == "squared_l2") return Metric::kSquaredL2;
  if (name == "l2") return Metric::kL2;
  if (name == "dot") return Metric::kDot;
  if (name == "cosine") return Metric::kCosine;
  STD_TORCH_CHECK(false, "unknown metric '", name, "'");
}

inline void check_inputs(const Tensor& features, const Tensor& prototypes) {
  STD_TORCH_CHECK(
      features.is_cpu() && prototypes.is_cpu(), "features and prototypes must be on the CPU"
  );
  STD_TORCH_CHECK(
      features.dim() == 4 && (prototypes.dim() == 2 || prototypes.dim() == 4),
      "features must be [N, D, H, W] and prototypes [P, D] or [P, D, h, w]"
  );
  STD_TORCH_CHECK(
      features.size(1) == prototypes.size(1), "features and prototypes must have the same depth D"
  );
  for (int64_t side = 2; side < prototypes.dim(); ++side) {
    STD_TORCH_CHECK(
        prototypes.size(side) >= 1 && prototypes.size(side) <= features.size(side),
        "prototypes [P, D, h, w] must fit the grid [H, W] of features"
    );
  }
  const int64_t locations = features.size(2) * features.size(3);
  STD_TORCH_CHECK(
      features.size(1) > 0 && locations > 0, "features need a channel and a location at least"
  );
  STD_TORCH_CHECK(locations < (int64_t{1} << 31), "features must have fewer than 2^31 locations");
}

// Whether the locations of features [N, D, H, W] follow one another at one stride.
inline bool has_location_stride(const Tensor& features) {
  const int64_t height = features.size(2), width = features.size(3);
  return height == 1 || width == 1 || features.stride(2) == width * features.stride(3);
}

// What prototypes [P, D] or [P, D, h, w] are compared with: single patches, or windows.
inline Window window_of(const Tensor& features, const Tensor& prototypes) {
  if (prototypes.dim() == 2) return {};
  return {prototypes.size(2), prototypes.size(3), features.size(3)};
}

// The locations of that kind in features [N, D, H, W].
struct Grid {
  int64_t rows;
  int64_t columns;
  int64_t locations() const { return rows * columns; }
};

inline Grid grid_of(const Tensor& features, const Window& window) {
  return {features.size(2) - window.height + 1, features.size(3) - window.width + 1};
}

inline Grid grid_of(const Tensor& features, const Tensor& prototypes) {
  return grid_of(features, window_of(features, prototypes));
}

// A view of features that has_location_stride.
inline FeatureMap feature_map(const Tensor& features, const Window& window, void* data) {
  return {
      data,
      element_of(features, "features"),
      features.size(0),
      features.size(1) * window.height * window.width,
      grid_of(features, window).locations(),
      features.stride(0),
      features.stride(1),
      features.size(3) == 1 ? features.stride(2) : features.stride(3),
      window,
  };
}

// Features as the kernels can read them: as they are, or, with strides of other kinds, copied.
inline Tensor readable(const Tensor& features) {
  return has_location_stride(features) ? features : torch::stable::contiguous(features);
}

inline FeatureMap read_map(const Tensor& features, const Tensor& prototypes) {
  void* data = const_cast<void*>(features.const_data_ptr());
  return feature_map(features, window_of(features, prototypes), data);
}

// Whether prototypes [P, D, h, w] lie in memory as [P, h, w, D], the order of windows.
inline bool lie_as_rows(const Tensor& prototypes) {
  if (prototypes.dim() != 4) return false;
  const int64_t depth = prototypes.size(1), width = prototypes.size(3);
  return prototypes.stride(1) == 1 && prototypes.stride(3) == depth &&
         prototypes.stride(2) == width * depth &&
         prototypes.stride(0) == prototypes.size(2) * width * depth;
}

// Prototypes as the kernels can read them: as they are, or copied.
inline Tensor readable_prototypes(const Tensor& prototypes) {
  return lie_as_rows(prototypes) ? prototypes : torch::stable::contiguous(prototypes);
}

// A view of prototypes that are contiguous or lie_as_rows.
inline PrototypeMatrix prototype_matrix(const Tensor& prototypes, void* data) {
  const int64_t patches = prototypes.dim() == 2 ? 1 : prototypes.size(2) * prototypes.size(3);
  return {
      data,
      element_of(prototypes, "prototypes"),
      prototypes.size(0),
      prototypes.size(1) * patches,
      lie_as_rows(prototypes) ? 1 : patches,
  };
}

inline PrototypeMatrix read_matrix(const Tensor& prototypes) {
  return prototype_matrix(prototypes, const_cast<void*>(prototypes.const_data_ptr()));
}

// The gradients of features and prototypes as an operator returns them: those not needed are empty.
class GradientOutputs {
 public:
  GradientOutputs(
      const Tensor& features, const Tensor& prototypes, bool need_features, bool need_prototypes
  )
      : features_(need_features ? torch::stable::empty_like(features) : nothing(features)),
        prototypes_(
            need_prototypes ? torch::stable::new_empty(prototypes, prototypes.sizes())
                            : nothing(prototypes)
        ) {
    if (need_features) {
      // As for the features themselves, strides of other kinds go by way of a copy.
      written_ = has_location_stride(features_)
                     ? features_
                     : torch::stable::new_empty(features_, features_.sizes());
      const Window window = window_of(features, prototypes);
      map_ = feature_map(*written_, window, written_->mutable_data_ptr());
    }
    if (need_prototypes) matrix_ = prototype_matrix(prototypes_, prototypes_.mutable_data_ptr());
  }
  const FeatureMap* features() const { return map_ ? &*map_ : nullptr; }
  const PrototypeMatrix* prototypes() const { return matrix_ ? &*matrix_ : nullptr; }
  std::tuple<Tensor, Tensor> finish() {
    if (written_ && written_->get() != features_.get()) {
      torch::stable::copy_(features_, *written_);
    }
    return {features_, prototypes_};
  }

 private:
  static Tensor nothing(const Tensor& like) {
    const int64_t shape[] = {0};
    return torch::stable::new_empty(like, shape);
  }
  Tensor features_;
  Tensor prototypes_;
  std::optional<Tensor> written_;
  std::optional<FeatureMap> map_;
  std::optional<PrototypeMatrix> matrix_;
};

// As many of torch's threads as `steps` multiplications are worth.
inline int64_t threads_for(double steps) {
  constexpr double kStepsPerThread = 1 << 16;
  const int64_t worth = 1 + static_cast<int64_t>(std::min(steps / kStepsPerThread, 1e6));
  return std::min<int64_t>(torch::stable::get_num_threads(), worth);
}

// Calls body(worker) for every worker in [0, count) on torch's own threads.
struct TorchThreads {
  template <typename Body>
  void operator()(int64_t count, const Body& body) const {
    if (count <= 1) {
      for (int64_t worker = 0; worker < count; ++worker) body(worker);
      return;
    }
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) body(worker);
    });
  }
};

}  // namespace protofast
