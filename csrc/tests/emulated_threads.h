// The threads of cuda/threads.cuh on a CPU: all of a block take each step together.
//
// Stricter than a GPU where that finds mistakes: memory that is being copied to holds NaN until the
// copy was waited for, and reading outside of it is seen by the address sanitizer.

#pragma once

#include <array>
#include <cstring>
#include <deque>
#include <vector>

#include "cuda/nearest_patch/packing.cuh"
#include "cuda/threads.cuh"
#include "tests/check.h"

namespace protofast::testing {

template <int kCount>
class EmulatedThreads {
 public:
  static constexpr int kWarp = cuda::kWarp;

  template <typename T>
  struct PerThread {
    std::vector<T> values = std::vector<T>(kCount);
    T& operator[](int thread) { return values[thread]; }
  };

  template <typename Body>
  void each(Body body) const {
    for (int thread = 0; thread < kCount; ++thread) {
      running_ = thread;
      body(thread);
    }
  }

  void sync() const {}
  void sync_warp() const {}

  template <typename Value, typename Take>
  void exchange(int x, Value value, Take take) const {
    const auto values = all(value);
    for (int thread = 0; thread < kCount; ++thread) take(thread, values[thread ^ x]);
  }

  template <typename Value, typename Take>
  void match(Value value, Take take) const {
    const auto values = all(value);
    for (int thread = 0; thread < kCount; ++thread) {
      uint32_t mask = 0;
      for (int lane = 0; lane < kWarp; ++lane) {
        const int other = thread / kWarp * kWarp + lane;
        if (values[other] == values[thread]) mask |= uint32_t{1} << lane;
      }
      take(thread, mask);
    }
  }

  template <typename Value>
  uint32_t any(Value value) const {
    static_assert(kCount == kWarp);
    uint32_t mask = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (value(lane)) mask |= uint32_t{1} << lane;
    }
    return mask;
  }

  template <typename Value>
  auto broadcast(Value value, int source) const {
    static_assert(kCount == kWarp);
    return value(source);
  }

  // The bytes arrive when their group was waited for; until then they are NaN.
  void copy_async(void* shared, const void* global) const {
    CHECK(reinterpret_cast<uintptr_t>(shared) % 16 == 0);
    CHECK(reinterpret_cast<uintptr_t>(global) % 16 == 0);
    Copy copy{static_cast<uint8_t*>(shared), {}};
    std::memcpy(copy.bytes.data(), global, 16);
    std::memset(shared, 0xff, 16);
    copies_[running_].open.push_back(copy);
  }

  void commit() const {
    for (Copies& copies : copies_) copies.groups.push_back(std::move(copies.open));
    for (Copies& copies : copies_) copies.open.clear();
  }

  template <int kPending>
  void wait() const {
    for (Copies& copies : copies_) {
      while (copies.groups.size() > kPending) {
        for (const Copy& copy : copies.groups.front()) {
          std::memcpy(copy.to, copy.bytes.data(), 16);
        }
        copies.groups.pop_front();
      }
    }
  }

  // ldmatrix.x4: thread i of a warp receives, of matrix m, row i / 4 and there word i % 4.
  template <typename Address, typename Target>
  void load_matrices(Address row, Target target) const {
    for (int first = 0; first < kCount; first += kWarp) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        check_banks([&](int i) { return row(first + 8 * matrix + i); });
        for (int lane = 0; lane < kWarp; ++lane) {
          const uint8_t* from = row(first + 8 * matrix + lane / 4);
          std::memcpy(&target(first + lane)[matrix], from + 4 * (lane % 4), 4);
        }
      }
    }
  }

  // mma.m16n8k16: a [16, 16], b [16, 8], c [16, 8] in the fragments that the PTX manual draws.
  // Sums as tensor cores are known to take them: exact products, cut off below the largest.
  template <typename Sums, typename A, typename B>
  void multiply(Sums sums, A a, B b) const {
    for (int first = 0; first < kCount; first += kWarp) {
      float left[16][16], right[16][8];
      for (int lane = 0; lane < kWarp; ++lane) {
        const int group = lane / 4, pair = lane % 4;
        for (int word = 0; word < 4; ++word) {
          const int row = group + 8 * (word % 2), column = 2 * pair + 8 * (word / 2);
          left[row][column] = low(a(first + lane)[word]);
          left[row][column + 1] = high(a(first + lane)[word]);
        }
        for (int word = 0; word < 2; ++word) {
          right[2 * pair + 8 * word][group] = low(b(first + lane)[word]);
          right[2 * pair + 8 * word + 1][group] = high(b(first + lane)[word]);
        }
      }
      for (int lane = 0; lane < kWarp; ++lane) {
        float (&c)[4] = sums(first + lane);
        for (int e = 0; e < 4; ++e) {
          const int row = lane / 4 + 8 * (e / 2), column = 2 * (lane % 4) + e % 2;
          double sum = c[e];
          for (int k = 0; k < 16; ++k) sum += double(left[row][k]) * right[k][column];
          c[e] = cut_off(sum);
        }
      }
    }
  }

 protected:
  // Toward zero, as the accumulators of tensor cores round.
  static float cut_off(double value) {
    const float nearest = static_cast<float>(value);
    if (std::abs(double(nearest)) <= std::abs(value)) return nearest;
    return std::nextafter(nearest, 0.0f);
  }

 private:
  struct Copy {
    uint8_t* to;
    std::array<uint8_t, 16> bytes;
  };
  struct Copies {
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
  };

  template <typename Value>
  auto all(Value value) const {
    std::array<decltype(value(0)), kCount> values{};
    for (int thread = 0; thread < kCount; ++thread) values[thread] = value(thread);
    return values;
  }

  // Eight rows of 16 bytes are read at once if no two lie in the same four of 32 banks.
  template <typename Row>
  static void check_banks(Row row) {
    bool taken[8] = {};
    for (int i = 0; i < 8; ++i) {
      const auto address = reinterpret_cast<uintptr_t>(row(i));
      CHECK(address % 16 == 0);
      bool& bank = taken[address / 16 % 8];
      CHECK(!bank);
      bank = true;
    }
  }

  static float low(uint32_t word) { return cuda::from_bf16(static_cast<uint16_t>(word)); }
  static float high(uint32_t word) { return cuda::from_bf16(static_cast<uint16_t>(word >> 16)); }

  mutable int running_ = 0;
  mutable std::array<Copies, kCount> copies_;
};

}  // namespace protofast::testing
