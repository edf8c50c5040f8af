// Aligned temporary memory and the division of work among threads, for the files that put the
// kernels together. Standard library, no torch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

namespace protofast {

// Uninitialised numbers, aligned for every vector width.
template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : numbers_(
            static_cast<T*>(::operator new(
                sizeof(T) * static_cast<size_t>(std::max<int64_t>(count, 1)), kAlignment
            ))
        ) {}
  T* data() const { return numbers_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(T* numbers) const { ::operator delete(numbers, kAlignment); }
  };
  std::unique_ptr<T, Delete> numbers_;
};

inline int64_t ceil_divide(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

inline int64_t round_up(int64_t value, int64_t multiple) {
  return ceil_divide(value, multiple) * multiple;
}

// Runs a loop over threads: parallel(count, body) calls body(worker) for every worker in
// [0, count), at the same time if it can. Nothing here may depend on which worker does what.
//
// Calls task(worker, i) once for every i in [0, tasks); workers take the next i when they are free.
template <typename Parallel, typename Task>
void run_tasks(int64_t tasks, int64_t workers, const Parallel& parallel, const Task& task) {
  std::atomic<int64_t> next{0};
  parallel(std::min(tasks, workers), [&](int64_t worker) {
    for (int64_t i = next++; i < tasks; i = next++) task(worker, i);
  });
}

}  // namespace protofast
