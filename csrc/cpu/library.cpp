// Stands in until the CPU operators are here.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(protofast, library) {
  (void)library;
}
