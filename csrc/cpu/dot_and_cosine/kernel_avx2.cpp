#define PROTOFAST_VECTOR_BYTES 32
#define PROTOFAST_BLOCK_ROWS 6
#include "cpu/dot_and_cosine/kernel.h"

const protofast::DotAndCosineTable protofast::dot_and_cosine_avx2 = {
    protofast::dot_and_cosine_kernels<float>(), protofast::dot_and_cosine_kernels<double>()
};
