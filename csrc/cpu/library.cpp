// Stands in until the CPU operators are here.
#include <torch/csrc/stable/library.h>

extern "C" __attribute__((visibility("default"))) const char* protofast_cpu_kernel() {
  return "reference";
}

STABLE_TORCH_LIBRARY_FRAGMENT(protofast, library) { (void)library; }
