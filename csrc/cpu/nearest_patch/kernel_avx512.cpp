#define PROTOFAST_VECTOR_BYTES 64
#define PROTOFAST_BLOCK_ROWS 14
#include "cpu/nearest_patch/kernel.h"

const protofast::NearestPatchTable protofast::nearest_patch_avx512 = {
    protofast::nearest_patch_kernels<float>(), protofast::nearest_patch_kernels<double>()
};
