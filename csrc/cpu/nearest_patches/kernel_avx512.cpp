#define PROTOFAST_VECTOR_BYTES 64
#define PROTOFAST_BLOCK_ROWS 14
#include "cpu/nearest_patches/kernel.h"

const protofast::NearestPatchesTable protofast::nearest_patches_avx512 = {
    protofast::nearest_patches_kernels<float>(), protofast::nearest_patches_kernels<double>()
};
