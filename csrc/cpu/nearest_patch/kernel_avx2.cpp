#define PROTOFAST_VECTOR_BYTES 32
#define PROTOFAST_BLOCK_ROWS 6
#include "cpu/nearest_patch/kernel.h"

const protofast::NearestPatchTable protofast::nearest_patch_avx2 = {
    protofast::nearest_patch_kernels<float>(), protofast::nearest_patch_kernels<double>()
};
