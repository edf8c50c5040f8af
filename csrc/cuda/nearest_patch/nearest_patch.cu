// Stands in until the kernels are here.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(protofast, library) {
  (void)library;
}
