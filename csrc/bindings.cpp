// protofast._C: how this package was built, and what this processor can do.
//
// No tensor passes through here: operators are reached through torch.ops alone, and nothing that
// computes imports this module. The facts also stand in build_facts.json beside it.

#include <pybind11/pybind11.h>

#include <algorithm>

#include "build_facts.h"
#include "cpu/instruction_set.h"

namespace {

namespace py = pybind11;

py::dict build_facts() { return py::module_::import("json").attr("loads")(kBuildFacts); }

// The instruction sets for which kernels exist, and whether this processor and system run them.
py::dict cpu_features() {
  using protofast::InstructionSet;
  py::dict features;
  for (const InstructionSet set :
       {InstructionSet::kAvx512Vnni,
        InstructionSet::kAvx512,
        InstructionSet::kAvx2,
        InstructionSet::kPortable}) {
    const auto& here = protofast::supported_instruction_sets();
    features[protofast::name_of(set)] = std::find(here.begin(), here.end(), set) != here.end();
  }
  return features;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "How protofast was built, and what this processor can do.";
  module.def("build_facts", &build_facts, "The contents of build_facts.json.");
  module.def("cpu_features", &cpu_features, "Instruction set -> whether it can be used here.");
}
