#define PROTOFAST_VECTOR_BYTES 16
#include "cpu/masked_view/kernel.h"

const protofast::MaskedViewTable protofast::masked_view_portable = protofast::masked_view_table();
