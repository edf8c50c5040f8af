#define PROTOFAST_VECTOR_BYTES 16
#include "cpu/distance_map/kernel.h"

const protofast::DistanceMapTable protofast::distance_map_portable = {
    protofast::distance_map_kernels<float>(), protofast::distance_map_kernels<double>()
};
