#define PROTOFAST_VECTOR_BYTES 64
#define PROTOFAST_BLOCK_ROWS 14
#include "cpu/nearest_patch_within/kernel.h"

const protofast::CodeTable protofast::nearest_patch_within_avx512vnni = {
    protofast::code_kernels<float>(), protofast::code_kernels<double>()
};
