// Which of the compiled instruction sets this machine runs. No torch.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace protofast {

// kAvx512Vnni is AVX-512 with dot products of 8 and 16-bit integers.
enum class InstructionSet { kAvx512Vnni, kAvx512, kAvx2, kPortable };

inline const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512Vnni:
      return "avx512vnni";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kPortable:
      return "portable";
  }
  return "";
}

// The instruction sets that were compiled and that this machine has, best first.
inline const std::vector<InstructionSet>& supported_instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found;
#if defined(__x86_64__)
    // The levels x86-64-v3 and v4, for which the kernels are compiled; g++ 11 knows no names for
    // them.
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v4 && __builtin_cpu_supports("avx512vnni")) found.push_back(InstructionSet::kAvx512Vnni);
    if (v4) found.push_back(InstructionSet::kAvx512);
    if (v3) found.push_back(InstructionSet::kAvx2);
#endif
    found.push_back(InstructionSet::kPortable);
    return found;
  }();
  return sets;
}

// The best one, or the one that the environment variable PROTOFAST_CPU names (for tests and for
// looking into a problem). It is read at every call.
inline InstructionSet chosen_instruction_set() {
  const char* wanted = std::getenv("PROTOFAST_CPU");
  if (wanted == nullptr || *wanted == '\0') return supported_instruction_sets().front();
  std::string names;
  for (const InstructionSet set : supported_instruction_sets()) {
    if (std::string_view(wanted) == name_of(set)) return set;
    names += (names.empty() ? "" : ", ") + std::string(name_of(set));
  }
  throw std::runtime_error(
      "PROTOFAST_CPU must be unset or name an instruction set of this machine (" + names +
      "); got '" + wanted + "'"
  );
}

}  // namespace protofast
