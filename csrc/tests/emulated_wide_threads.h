// The threads of cuda/nearest_patch/wide_threads.cuh on a CPU: boxes of tensors and wgmma.

#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "cuda/nearest_patch/selection_wgmma.cuh"
#include "tests/emulated_threads.h"

namespace protofast::testing {

// Numbers of 16 bits, [images][rows][numbers], of which boxes of 64 numbers are copied.
struct EmulatedBox {
  const uint16_t* start;
  int64_t sizes[3];  // numbers, rows, images
  int box[2];        // rows, images
};

template <int kCount>
class EmulatedWideThreads : public EmulatedThreads<kCount> {
 public:
  void start_barriers(uint64_t* barriers, int count) const {
    for (int i = 0; i < count; ++i) barriers_[barriers + i] = {};
  }

  void expect(uint64_t* barrier, int bytes) const { barriers_.at(barrier).expected += bytes; }

  // The box, swizzled, arrives when its barrier was waited for; until then there is NaN.
  void copy_box(
      void* shared, const EmulatedBox& from, uint64_t* barrier, int number, int row, int image
  ) const {
    auto* to = static_cast<uint8_t*>(shared);
    CHECK(reinterpret_cast<uintptr_t>(to) % cuda::kSwizzleBytes == 0);
    const int bytes = from.box[0] * from.box[1] * cuda::kRowBytes;
    std::memset(to, 0xff, bytes);
    Arrival arrival{to, std::vector<uint8_t>(bytes)};
    for (int i = 0; i < bytes / 2; ++i) {
      const int64_t at[3] = {
          number + i % cuda::kChunkNumbers,
          row + i / cuda::kChunkNumbers % from.box[0],
          image + i / cuda::kChunkNumbers / from.box[0]
      };
      uint16_t value = 0;  // outside of the tensor
      if (at[0] < from.sizes[0] && at[1] < from.sizes[1] && at[2] < from.sizes[2]) {
        value = from.start[(at[2] * from.sizes[1] + at[1]) * from.sizes[0] + at[0]];
      }
      std::memcpy(arrival.bytes.data() + swizzled(2 * i), &value, 2);
    }
    Barrier& waited = barriers_.at(barrier);
    waited.expected -= bytes;
    waited.arrivals.push_back(std::move(arrival));
  }

  // A phase ends when all bytes that were expected have come.
  void wait_for(uint64_t* barrier, int parity) const {
    Barrier& waited = barriers_.at(barrier);
    CHECK(!waited.arrivals.empty() && waited.expected == 0 && waited.phase % 2 == parity);
    for (const Arrival& arrival : waited.arrivals) {
      std::copy(arrival.bytes.begin(), arrival.bytes.end(), arrival.to);
    }
    waited.arrivals.clear();
    ++waited.phase;
  }

  template <typename Sums>
  void hold(Sums) const {}
  void start_products() const {}
  void commit_products() const {}
  template <int kPending>
  void wait_products() const {}

  // wgmma.m64n224k16 of each warpgroup: rows of 128 bytes, swizzled by their address; sums in the
  // fragments that the PTX manual draws.
  template <typename Sums, typename A, typename B>
  void multiply_wide(Sums sums, A a, B b) const {
    for (int first = 0; first < kCount; first += cuda::kWarpgroup) {
      std::array<std::array<float, 16>, cuda::kWidePrototypes> left;
      std::array<std::array<float, 16>, cuda::kWidePatches> right;
      read(a(first), left);
      read(b(first), right);
      for (int thread = 0; thread < cuda::kWarpgroup; ++thread) {
        const int lane = thread % cuda::kWarp;
        cuda::WideSums& to = sums(first + thread);
        for (int j = 0; j < cuda::kWidePatches / 8; ++j)
          for (int e = 0; e < 4; ++e) {
            const auto& row = left[thread / cuda::kWarp * 16 + lane / 4 + 8 * (e / 2)];
            const auto& column = right[8 * j + 2 * (lane % 4) + e % 2];
            double sum = to.at[j][e];
            for (int k = 0; k < 16; ++k) sum += double(row[k]) * column[k];
            to.at[j][e] = this->cut_off(sum);
          }
      }
    }
  }

 private:
  struct Arrival {
    uint8_t* to;
    std::vector<uint8_t> bytes;
  };
  struct Barrier {
    int expected = 0;
    int phase = 0;
    std::vector<Arrival> arrivals;
  };

  // Bits 7 to 9 of an address change bits 4 to 6.
  static uintptr_t swizzled(uintptr_t address) { return address ^ (address >> 7 & 7) << 4; }

  template <typename Rows>
  static void read(const uint8_t* start, Rows& rows) {
    for (size_t row = 0; row < rows.size(); ++row)
      for (size_t k = 0; k < 16; ++k) {
        const auto address = reinterpret_cast<uintptr_t>(start) + row * 128 + 2 * k;
        uint16_t bits;
        std::memcpy(&bits, reinterpret_cast<const uint8_t*>(swizzled(address)), 2);
        rows[row][k] = cuda::from_bf16(bits);
      }
  }

  mutable std::map<uint64_t*, Barrier> barriers_;
};

}  // namespace protofast::testing
