#define PROTOFAST_VECTOR_BYTES 64
#define PROTOFAST_BLOCK_ROWS 14
#include "cpu/nearest_patch/coded_kernel.h"

const protofast::NearestPatchTable protofast::nearest_patch_avx512vnni = {
    protofast::coded_nearest_patch_kernels(), protofast::nearest_patch_kernels<double>()
};
