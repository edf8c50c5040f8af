#define PROTOFAST_VECTOR_BYTES 32
#define PROTOFAST_BLOCK_ROWS 6
#include "cpu/nearest_patches/kernel.h"

const protofast::NearestPatchesTable protofast::nearest_patches_avx2 = {
    protofast::nearest_patches_kernels<float>(), protofast::nearest_patches_kernels<double>()
};
