// protofast._C: how this package was built, and what this processor can do.
//
// No tensor passes through here: operators are reached through torch.ops alone, and nothing that
// computes imports this module. The facts also stand in build_facts.json beside it.

#include <pybind11/pybind11.h>

#include "build_facts.h"

namespace {

namespace py = pybind11;

py::dict build_facts() { return py::module_::import("json").attr("loads")(kBuildFacts); }

// The instruction sets for which kernels exist, and whether this processor and system run them.
py::dict cpu_features() {
  py::dict features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features["avx2"] = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  features["avx512"] = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  features["avx512_bf16"] = static_cast<bool>(__builtin_cpu_supports("avx512bf16"));
#endif
  return features;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "How protofast was built, and what this processor can do.";
  module.def("build_facts", &build_facts, "The contents of build_facts.json.");
  module.def("cpu_features", &cpu_features, "Instruction set -> whether it can be used here.");
}
