// nearest_patch by tensor cores, in three steps: packing.cuh, selection.cuh, finish.cuh.

#include "cuda/launch.cuh"
#include "cuda/nearest_patch/finish.cuh"
#include "cuda/nearest_patch/kernels.h"
#include "cuda/nearest_patch/packing.cuh"
#include "cuda/nearest_patch/selection.cuh"

namespace protofast::cuda {
namespace {

template <int kPlanes, typename Value>
__global__ void __launch_bounds__(kPackThreads, 4) pack_rows(const Packing<Value> packing) {
  __shared__ PackingTile shared;
  pack_tile<kPlanes>(DeviceThreads<kPackThreads>(), packing, blockIdx.x, shared);
}

template <int kPlanes>
__global__ void __launch_bounds__(kSelectThreads, 1) select_candidates(const Selection selection) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t shared[];
  select_tile<kPlanes>(DeviceThreads<kSelectThreads>(), selection, blockIdx.x, shared);
#endif
}

template <typename Feature>
__global__ void __launch_bounds__(kFinishThreads) finish_results(const Finish<Feature> finish) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kFinishThreads / kWarp);
  finish_pairs(DeviceThreads<kWarp>(), finish, (warp + threadIdx.x / kWarp) * kWarp);
}

template <typename Value>
void launch_packing(
    int planes, const Packing<Value>& packing, int64_t images, const Stream& stream
) {
  const cudaStream_t on = use(stream);
  const unsigned int blocks = grid(images * packing.tiles_per_image());
  if (planes == 1) {
    pack_rows<1><<<blocks, kPackThreads, 0, on>>>(packing);
  } else {
    pack_rows<2><<<blocks, kPackThreads, 0, on>>>(packing);
  }
  check(cudaGetLastError(), "packing rows");
}

template <int kPlanes>
void launch_selection(const Selection& selection, const Stream& stream) {
  const cudaStream_t on = use(stream);
  const auto kernel = select_candidates<kPlanes>;
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSelectSharedBytes),
      "asking for shared memory"
  );
  kernel<<<grid(selection.tiles()), kSelectThreads, kSelectSharedBytes, on>>>(selection);
  check(cudaGetLastError(), "selecting candidates");
}

// The parts of the workspace.
struct Memory {
  uint16_t *patches, *prototypes;
  Column* columns;
  float *squared_norms, *factors, *centre;

  Memory(const TensorCoresWorkspace& w, void* start) {
    const auto at = [&](int64_t offset) { return static_cast<char*>(start) + offset; };
    patches = reinterpret_cast<uint16_t*>(at(w.patches));
    prototypes = reinterpret_cast<uint16_t*>(at(w.prototypes));
    columns = reinterpret_cast<Column*>(at(w.columns));
    squared_norms = reinterpret_cast<float*>(at(w.squared_norms));
    factors = reinterpret_cast<float*>(at(w.factors));
    centre = reinterpret_cast<float*>(at(w.centre));
  }
};

template <typename Feature>
void run(
    const Forward& f,
    const Plan& plan,
    const TensorCoresWorkspace& w,
    const Memory& memory,
    const Stream& stream
) {
  const Feature* features = static_cast<const Feature*>(f.features);
  const float* prototypes = static_cast<const float*>(f.prototypes);
  const int64_t depth = f.layout.depth;
  const bool centred = plan.centred && is_difference(f.metric);
  if (centred) {
    launch_each(Centre{prototypes, memory.centre, f.prototype_count, depth}, depth, stream);
  }
  const float* centre = centred ? memory.centre : nullptr;
  const Packing<Feature> of_patches{
      features,
      f.layout,
      centre,
      memory.patches,
      w.patch_rows,
      memory.columns,
      nullptr,
      nullptr,
      f.metric,
      plan.error
  };
  const Packing<float> of_prototypes{
      prototypes,
      layout_of_rows(f.prototype_count, depth),
      centre,
      memory.prototypes,
      w.prototype_rows,
      nullptr,
      memory.squared_norms,
      memory.factors,
      f.metric,
      plan.error
  };
  launch_packing(plan.planes, of_patches, f.image_count, stream);
  launch_packing(plan.planes, of_prototypes, 1, stream);

  // Until they are finished, the results hold the candidates.
  float* best = static_cast<float*>(f.distances);
  float* second = static_cast<float*>(f.activations);
  const Selection selection{
      memory.prototypes,
      memory.patches,
      memory.columns,
      memory.factors,
      best,
      second,
      f.locations,
      f.image_count,
      f.prototype_count,
      w.prototype_rows,
      w.patch_rows,
      static_cast<int>(w.numbers_per_row / kChunkNumbers)
  };
  if (plan.path == Path::kWgmma) {
    select_by_wgmma(selection, plan.planes, stream);
  } else if (plan.planes == 1) {
    launch_selection<1>(selection, stream);
  } else {
    launch_selection<2>(selection, stream);
  }

  const int64_t pairs = f.image_count * f.prototype_count;
  const Finish<Feature> finish{
      features,
      f.layout,
      prototypes,
      memory.squared_norms,
      memory.columns,
      best,
      second,
      f.locations,
      w.patch_rows,
      f.prototype_count,
      pairs,
      f.metric,
      plan.error,
      plan.settle_places,
      plan.refine_below,
      similarity_function<float>(f.similarity, f.eps)
  };
  const unsigned int blocks = grid((pairs + kFinishThreads - 1) / kFinishThreads);
  finish_results<<<blocks, kFinishThreads, 0, use(stream)>>>(finish);
  check(cudaGetLastError(), "finishing results");
}

}  // namespace

// What is loaded may have been compiled for an older GPU than this one, and then has none of the
// instructions: so the kernel is asked, not the GPU.
bool has_tensor_cores(const Stream& stream) {
  use(stream);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, select_candidates<1>), "looking at a kernel");
  return attributes.ptxVersion >= 80;
}

TensorCoresWorkspace tensor_cores_workspace(const Forward& f, const Plan& plan) {
  TensorCoresWorkspace w;
  w.patch_rows = round_up(f.layout.locations, kTilePatches);
  w.prototype_rows = round_up(f.prototype_count, kTilePrototypes);
  w.numbers_per_row = plan.planes * padded_depth(f.layout.depth);
  Parts parts;
  w.patches = parts.next(f.image_count * w.patch_rows * w.numbers_per_row, sizeof(uint16_t));
  w.prototypes = parts.next(w.prototype_rows * w.numbers_per_row, sizeof(uint16_t));
  w.columns = parts.next(f.image_count * w.patch_rows, sizeof(Column));
  w.squared_norms = parts.next(w.prototype_rows, sizeof(float));
  w.factors = parts.next(w.prototype_rows, sizeof(float));
  w.centre = parts.next(f.layout.depth, sizeof(float));
  w.bytes = parts.bytes();
  return w;
}

void forward_tensor_cores(
    const Forward& f, const Plan& plan, void* workspace, const Stream& stream
) {
  const TensorCoresWorkspace w = tensor_cores_workspace(f, plan);
  const Memory memory(w, workspace);
  if (f.number == Number::kFloat32) return run<float>(f, plan, w, memory, stream);
  if (f.number == Number::kFloat16) return run<__half>(f, plan, w, memory, stream);
  run<__nv_bfloat16>(f, plan, w, memory, stream);
}

}  // namespace protofast::cuda
