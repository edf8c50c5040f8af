#define PROTOFAST_VECTOR_BYTES 32
#include "cpu/masked_view/kernel.h"

const protofast::MaskedViewTable protofast::masked_view_avx2 = protofast::masked_view_table();
