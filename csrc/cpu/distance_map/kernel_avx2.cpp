#define PROTOFAST_VECTOR_BYTES 32
#include "cpu/distance_map/kernel.h"

const protofast::DistanceMapTable protofast::distance_map_avx2 = {
    protofast::distance_map_kernels<float>(), protofast::distance_map_kernels<double>()
};
