#define PROTOFAST_VECTOR_BYTES 64
#define PROTOFAST_BLOCK_ROWS 14
#include "cpu/dot_and_cosine/kernel.h"

const protofast::DotAndCosineTable protofast::dot_and_cosine_avx512 = {
    protofast::dot_and_cosine_kernels<float>(), protofast::dot_and_cosine_kernels<double>()
};
