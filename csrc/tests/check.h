// The few lines a C++ test needs: TEST(name) { CHECK(condition); CHECK_NEAR(got, expected, bound);
// } and `int main() { return protofast::testing::run(); }` comes with the header (RUN_TESTS).

#pragma once

#include <cmath>
#include <cstdio>
#include <vector>

namespace protofast::testing {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline void fail(const char* file, int line, const char* what) {
  if (++failures() <= 20) std::printf("%s:%d: %s\n", file, line, what);
}

inline void check_near(
    double got, double expected, double bound, const char* file, int line, const char* what
) {
  const bool both_nan = std::isnan(got) && std::isnan(expected);
  if (both_nan || got == expected || std::abs(got - expected) <= bound) return;
  fail(file, line, what);
  if (failures() <= 20) std::printf("  got %.9g, expected %.9g +- %.3g\n", got, expected, bound);
}

// Runs every test; 0 if all passed, 1 if not.
inline int run() {
  for (const Test& test : tests()) {
    const int before = failures();
    test.body();
    std::printf("%s %s\n", failures() == before ? "ok  " : "FAIL", test.name);
  }
  return tests().empty() || failures() > 0;
}

}  // namespace protofast::testing

#define TEST(name)                                                                      \
  static void test_##name();                                                            \
  static const ::protofast::testing::Registration register_##name(#name, &test_##name); \
  static void test_##name()

#define CHECK(condition) \
  if (!(condition)) ::protofast::testing::fail(__FILE__, __LINE__, "not true: " #condition)

// NaN is near NaN, and an infinity near itself.
#define CHECK_NEAR(got, expected, bound) \
  ::protofast::testing::check_near(got, expected, bound, __FILE__, __LINE__, #got " is wrong")

#define RUN_TESTS() \
  int main() { return ::protofast::testing::run(); }
