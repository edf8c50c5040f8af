#define PROTOFAST_VECTOR_BYTES 64
#include "cpu/masked_view/kernel.h"

const protofast::MaskedViewTable protofast::masked_view_avx512 = protofast::masked_view_table();
