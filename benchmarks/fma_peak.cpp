// The most float32 multiply-adds that this processor does in a second: chains of them in registers,
// as many as hide the latency, no memory. test_roofline.py compiles this for the machine it is on.

#include <cstdint>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / sizeof(float);
constexpr int kChains = 12;

typedef float Vector __attribute__((vector_size(kVectorBytes)));

// What is returned depends on every multiply-add, so that none can be left out.
float run_chains(int64_t repeats, float factor, float summand) {
  Vector chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = Vector{} + static_cast<float>(i);
  const Vector factors = Vector{} + factor;
  const Vector summands = Vector{} + summand;
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = chains[i] * factors + summands;
  }
  float sum = 0.0f;
  for (int i = 0; i < kChains; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) sum += chains[i][lane];
  }
  return sum;
}

}  // namespace

// Floating-point operations of one repeat on one thread; a multiply-add counts as two.
extern "C" int64_t flops_per_repeat() { return 2LL * kChains * kLanes; }

// factor and summand come from outside, so that the compiler cannot know the results.
extern "C" float run_fma(int64_t repeats, int32_t threads, float factor, float summand) {
  std::vector<float> sums(threads);
  std::vector<std::thread> running;
  for (int32_t thread = 0; thread < threads; ++thread) {
    running.emplace_back([&, thread] { sums[thread] = run_chains(repeats, factor, summand); });
  }
  for (std::thread& one : running) one.join();
  float sum = 0.0f;
  for (float part : sums) sum += part;
  return sum;
}
