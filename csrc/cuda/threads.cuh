// The threads of a block or a warp, as the kernels that let them work together see them. No torch.
//
// Such a kernel's body is a template over this class. What one thread does is a function of its
// number, handed to each(); what threads do together (a barrier, an exchange, a matrix product) is
// a member of its own. So csrc/tests can run the same body on a CPU, a block at a time, with
// EmulatedThreads in the place of DeviceThreads (csrc/tests/emulated_threads.h).
//
//   PerThread<T>               one T for each thread, kept between calls of each()
//   each(body)                 body(thread) for every thread
//   sync()                     barrier of the block
//   sync_warp()                barrier of each warp; what its threads wrote, all of them see
//   exchange(x, value, take)   take(thread, value of thread ^ x) within each warp
//   match(value, take)         take(thread, bit mask of the threads of its warp of equal value)
//   any(value)                 a warp alone: bit mask of the threads where value(thread) holds
//   broadcast(value, source)   a warp alone: value(source), for all
//   copy_async, commit, wait   16 bytes from global to shared memory, in the background
//   load_matrices, multiply    ldmatrix.x4, and mma.m16n8k16 of bf16 with float32 sums

#pragma once

#include "cuda/patches.cuh"

#ifdef __CUDACC__
#define PROTOFAST_DEVICE __device__ __forceinline__
#else
#define PROTOFAST_DEVICE inline
#endif

namespace protofast::cuda {

constexpr int kWarp = 32;

#ifdef __CUDACC__

// kCount threads: a block, or one warp of it.
template <int kCount>
struct DeviceThreads {
  template <typename T>
  struct PerThread {
    T value;
    PROTOFAST_DEVICE T& operator[](int) { return value; }
  };

  static PROTOFAST_DEVICE int self() { return static_cast<int>(threadIdx.x % kCount); }

  template <typename Body>
  PROTOFAST_DEVICE void each(Body body) const {
    body(self());
  }

  PROTOFAST_DEVICE void sync() const { __syncthreads(); }
  PROTOFAST_DEVICE void sync_warp() const { __syncwarp(); }

  template <typename Value, typename Take>
  PROTOFAST_DEVICE void exchange(int x, Value value, Take take) const {
    take(self(), __shfl_xor_sync(~0u, value(self()), x));
  }

  template <typename Value, typename Take>
  PROTOFAST_DEVICE void match(Value value, Take take) const {
    take(self(), match_any(value(self())));
  }

  template <typename Value>
  PROTOFAST_DEVICE uint32_t any(Value value) const {
    return __ballot_sync(~0u, value(self()));
  }

  template <typename Value>
  PROTOFAST_DEVICE auto broadcast(Value value, int source) const {
    return __shfl_sync(~0u, value(self()), source);
  }

  PROTOFAST_DEVICE void copy_async(void* shared, const void* global) const {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(shared)), "l"(global)
                 : "memory");
#endif
  }

  PROTOFAST_DEVICE void commit() const {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  // Until at most kPending of each thread's latest groups are still under way.
  template <int kPending>
  PROTOFAST_DEVICE void wait() const {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
  }

  // Four matrices of 8 rows of 16 bytes; threads 8i .. 8i + 7 of a warp name the rows of matrix i.
  template <typename Address, typename Target>
  PROTOFAST_DEVICE void load_matrices(Address row, Target target) const {
#if __CUDA_ARCH__ >= 800
    uint32_t (&to)[4] = target(self());
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address(row(self())))
                 : "memory");
#endif
  }

  // sums += a * b: fragments of 16 x 16 and 16 x 8 bf16, sums of 16 x 8 float32.
  template <typename Sums, typename A, typename B>
  PROTOFAST_DEVICE void multiply(Sums sums, A a, B b) const {
#if __CUDA_ARCH__ >= 800
    float (&c)[4] = sums(self());
    const uint32_t* left = a(self());
    const uint32_t* right = b(self());
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1])
    );
#endif
  }

 private:
  static PROTOFAST_DEVICE uint32_t address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  }

  static PROTOFAST_DEVICE uint32_t match_any(int value) {
#if __CUDA_ARCH__ >= 700
    return __match_any_sync(~0u, value);
#else
    return 0;
#endif
  }
};

#endif

PROTOFAST_HOST_DEVICE inline int first_bit(uint32_t mask) {
#ifdef __CUDA_ARCH__
  return __ffs(static_cast<int>(mask)) - 1;
#else
  return __builtin_ctz(mask);
#endif
}

PROTOFAST_HOST_DEVICE inline int count_bits(uint32_t mask) {
#ifdef __CUDA_ARCH__
  return __popc(mask);
#else
  return __builtin_popcount(mask);
#endif
}

}  // namespace protofast::cuda
