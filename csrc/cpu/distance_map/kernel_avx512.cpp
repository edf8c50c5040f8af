#define PROTOFAST_VECTOR_BYTES 64
#include "cpu/distance_map/kernel.h"

const protofast::DistanceMapTable protofast::distance_map_avx512 = {
    protofast::distance_map_kernels<float>(), protofast::distance_map_kernels<double>()
};
