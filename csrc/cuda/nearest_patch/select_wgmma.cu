// The selection by wgmma on Hopper GPUs: kernel in selection_wgmma.cuh.

#include <cuda.h>

#include "cuda/launch.cuh"
#include "cuda/nearest_patch/kernels.h"
#include "cuda/nearest_patch/selection_wgmma.cuh"
#include "cuda/nearest_patch/wide_threads.cuh"

namespace protofast::cuda {
namespace {

template <int kPlanes>
__global__ void __launch_bounds__(kWideThreads, 1) select_wide(
    const __grid_constant__ CUtensorMap prototypes,
    const __grid_constant__ CUtensorMap patches,
    const Selection selection
) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t unaligned[];
  __shared__ uint64_t full[kWideStages];
  const uintptr_t start = reinterpret_cast<uintptr_t>(unaligned);
  uint8_t* shared = unaligned + (kSwizzleBytes - start % kSwizzleBytes) % kSwizzleBytes;
  const WideDeviceThreads<kWideThreads> block;
  select_wide_tile<kPlanes>(block, selection, prototypes, patches, blockIdx.x, shared, full);
#endif
}

// The driver's function, asked for by name: this library does not link the driver.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check(
      cudaGetDriverEntryPointByVersion(
          "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found
      ),
      "asking the driver for tensor maps"
  );
#else
  check(
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
      "asking the driver for tensor maps"
  );
#endif
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw std::runtime_error(
        "protofast: the driver is too old for this path: it has no tensor maps"
    );
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

// Packed rows [images][rows][numbers] of bf16, from which boxes of 64 numbers are copied.
CUtensorMap tensor_map(
    const uint16_t* start,
    int64_t numbers,
    int64_t rows,
    int64_t images,
    int box_rows,
    int box_images
) {
  const cuuint64_t sizes[3] = {
      static_cast<cuuint64_t>(numbers),
      static_cast<cuuint64_t>(rows),
      static_cast<cuuint64_t>(images)
  };
  const cuuint64_t strides[2] = {sizes[0] * 2, sizes[0] * sizes[1] * 2};  // in bytes
  const cuuint32_t box[3] = {
      kChunkNumbers, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(box_images)
  };
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map,
      CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      3,
      const_cast<uint16_t*>(start),
      sizes,
      strides,
      box,
      steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
  );
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("protofast: the driver refused a tensor map");
  return map;
}

template <int kPlanes>
void launch(const Selection& s, const Stream& stream) {
  const cudaStream_t on = use(stream);
  const int64_t numbers = static_cast<int64_t>(s.chunks) * kChunkNumbers;
  const CUtensorMap prototypes =
      tensor_map(s.prototypes, numbers, s.prototype_rows, 1, kTilePrototypes, 1);
  const CUtensorMap patches =
      tensor_map(s.patches, numbers, s.patch_rows, s.image_count, kTilePatches, kWideImages);
  const auto kernel = select_wide<kPlanes>;
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kWideSharedBytes),
      "asking for shared memory"
  );
  kernel<<<grid(wide_tiles(s)), kWideThreads, kWideSharedBytes, on>>>(prototypes, patches, s);
  check(cudaGetLastError(), "selecting candidates by wgmma");
}

}  // namespace

// The kernel has a body for sm_90a alone, which must have been compiled and be what this GPU loads.
// Code for sm_90 has the same version; that its body is empty shows in its registers, of which the
// sums alone take 112.
bool has_wgmma(const Stream& stream) {
#ifdef PROTOFAST_SM_90A
  use(stream);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, select_wide<1>), "looking at a kernel");
  return attributes.binaryVersion == 90 &&
         attributes.numRegs >= static_cast<int>(sizeof(WideSums) / sizeof(float));
#else
  static_cast<void>(stream);
  return false;
#endif
}

void select_by_wgmma(const Selection& selection, int planes, const Stream& stream) {
  if (planes == 1) {
    launch<1>(selection, stream);
  } else {
    launch<2>(selection, stream);
  }
}

}  // namespace protofast::cuda
