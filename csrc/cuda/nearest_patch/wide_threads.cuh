// What a block of a Hopper GPU (sm_90a) can do beyond cuda/threads.cuh: wgmma, and boxes of tensors
// brought by the copy engine. The emulation on a CPU is in csrc/tests/emulated_wide_threads.h.
//
//   start_barriers, expect, wait_for   barriers that count the bytes of copies (mbarrier)
//   copy_box                           a box of a tensor to shared memory, swizzled
//   start_products, multiply_wide      sums += a * b of a warpgroup: [64, 16] by [16, 224], bf16
//   commit_products, wait_products     groups of products that run in the background

#pragma once

#include <cuda.h>

#include "cuda/nearest_patch/selection_wgmma.cuh"
#include "cuda/threads.cuh"

namespace protofast::cuda {

// Without sm_90a there is nothing to run: has_wgmma() says so before any launch.
template <int kCount>
struct WideDeviceThreads : DeviceThreads<kCount> {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  PROTOFAST_DEVICE void start_barriers(uint64_t* barriers, int count) const {
    for (int i = 0; i < count; ++i) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(barriers + i)));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }

  PROTOFAST_DEVICE void expect(uint64_t* barrier, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)),
                 "r"(bytes)
                 : "memory");
  }

  PROTOFAST_DEVICE void wait_for(uint64_t* barrier, int parity) const {
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n"
          ".reg .pred done;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
          "selp.u32 %0, 1, 0, done;\n"
          "}\n"
          : "=r"(done)
          : "r"(address(barrier)), "r"(parity)
          : "memory"
      );
    }
  }

  PROTOFAST_DEVICE void copy_box(
      void* shared, const CUtensorMap& box, uint64_t* barrier, int number, int row, int image
  ) const {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(address(shared)),
        "l"(&box),
        "r"(address(barrier)),
        "r"(number),
        "r"(row),
        "r"(image)
        : "memory"
    );
  }

  PROTOFAST_DEVICE void start_products() const {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }

  PROTOFAST_DEVICE void commit_products() const {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }

  template <int kPending>
  PROTOFAST_DEVICE void wait_products() const {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  }

  template <typename Sums>
  PROTOFAST_DEVICE void hold(Sums sums) const {
    float (&d)[kWidePatches / 8][4] = sums(this->self()).at;
    PROTOFAST_UNROLL
    for (int j = 0; j < kWidePatches / 8; ++j) {
      asm volatile("" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])::"memory");
    }
  }

#define PROTOFAST_FOUR_SUMS(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define PROTOFAST_16_SUMS(j)                                                      \
  PROTOFAST_FOUR_SUMS(j), PROTOFAST_FOUR_SUMS(j + 1), PROTOFAST_FOUR_SUMS(j + 2), \
      PROTOFAST_FOUR_SUMS(j + 3)

  template <typename Sums, typename A, typename B>
  PROTOFAST_DEVICE void multiply_wide(Sums sums, A a, B b) const {
    float (&d)[kWidePatches / 8][4] = sums(this->self()).at;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n224k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
        "}, %112, %113, p, 1, 1, 0, 0;\n}\n"
        : PROTOFAST_16_SUMS(0),
          PROTOFAST_16_SUMS(4),
          PROTOFAST_16_SUMS(8),
          PROTOFAST_16_SUMS(12),
          PROTOFAST_16_SUMS(16),
          PROTOFAST_16_SUMS(20),
          PROTOFAST_16_SUMS(24)
        : "l"(matrix(a(this->self()))), "l"(matrix(b(this->self())))
    );
  }

#undef PROTOFAST_16_SUMS
#undef PROTOFAST_FOUR_SUMS

 private:
  static PROTOFAST_DEVICE uint32_t address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  }

  // A matrix in shared memory whose rows of 128 bytes lie side by side, swizzled; eight of them are
  // 1024 bytes. All in units of 16 bytes.
  static PROTOFAST_DEVICE uint64_t matrix(const void* shared) {
    constexpr uint64_t unused = 1, eight_rows = 1024 / 16, swizzle_128_bytes = 1;
    const uint64_t start = (address(shared) & 0x3ffff) >> 4;
    return start | unused << 16 | eight_rows << 32 | swizzle_128_bytes << 62;
  }
#endif
};

}  // namespace protofast::cuda
