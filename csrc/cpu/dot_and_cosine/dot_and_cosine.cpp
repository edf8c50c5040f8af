// The operator dot_and_cosine on the CPU: checks, outputs, registration.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <type_traits>

#include "cpu/dot_and_cosine/kernels.h"
#include "cpu/nearest_patch/choice.h"
#include "cpu/nearest_patch/forward.h"
#include "cpu/tensors.h"

namespace protofast {
namespace {

const DotAndCosineTable& chosen_table() {
  switch (chosen_instruction_set()) {
#if defined(__x86_64__)
    case InstructionSet::kAvx512:
      return dot_and_cosine_avx512;
    case InstructionSet::kAvx2:
      return dot_and_cosine_avx2;
#endif
    default:
      return dot_and_cosine_portable;
  }
}

template <typename T>
const DotAndCosineKernels<T>& both_kernels_of(const DotAndCosineTable& table) {
  if constexpr (std::is_same_v<T, float>) {
    return table.of_float;
  } else {
    return table.of_double;
  }
}

template <typename T>
void find_both(
    const FeatureMap& features, const PrototypeMatrix& rows, const DotAndCosineOutputs<T>& outputs
) {
  const NearestPatchKernels<T>& kernels = kernels_of<T>(chosen_nearest_patch_table());
  const DotAndCosineKernels<T>& both = both_kernels_of<T>(chosen_table());
  const double steps = static_cast<double>(features.images) * features.locations * rows.count *
                       static_cast<double>(rows.depth);
  const auto search = [&](const PackedPrototypes<T>& prototypes,
                          const PackedImages<T>& images,
                          int64_t first_image,
                          int64_t panel) {
    const int64_t slot = first_image * prototypes.count;
    const DotAndCosineOutputs<T> here = {
        outputs.dots + slot,
        outputs.dot_locations + slot,
        outputs.cosines + slot,
        outputs.cosine_locations + slot
    };
    both.search(prototypes, images, panel, here);
  };
  search_everything<T>(
      kernels,
      features,
      PrototypePack<T>(kernels, rows, Metric::kCosine),
      true,
      threads_for(steps),
      TorchThreads(),
      search
  );
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dot_and_cosine(
    const Tensor& features, const Tensor& prototypes
) {
  check_inputs(features, prototypes);
  const ScalarType type = result_type(features, prototypes);
  const int64_t shape[] = {features.size(0), prototypes.size(0)};
  Tensor dots = torch::stable::new_empty(features, shape, type);
  Tensor dot_locations = torch::stable::new_empty(features, shape, ScalarType::Long);
  Tensor cosines = torch::stable::new_empty(features, shape, type);
  Tensor cosine_locations = torch::stable::new_empty(features, shape, ScalarType::Long);
  if (dots.numel() == 0) return {dots, dot_locations, cosines, cosine_locations};

  const Tensor source = readable(features), rows = torch::stable::contiguous(prototypes);
  with_result_type(type, [&](auto number) {
    using T = decltype(number);
    find_both<T>(
        read_map(source),
        read_matrix(rows),
        {dots.mutable_data_ptr<T>(),
         dot_locations.mutable_data_ptr<int64_t>(),
         cosines.mutable_data_ptr<T>(),
         cosine_locations.mutable_data_ptr<int64_t>()}
    );
  });
  return {dots, dot_locations, cosines, cosine_locations};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(protofast, CPU, library) {
  library.impl("dot_and_cosine", TORCH_BOX(&dot_and_cosine));
}

}  // namespace protofast
