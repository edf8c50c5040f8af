// How tensors and streams are handed from the files that talk to torch to those that launch
// kernels. Neither torch nor CUDA headers.
#pragma once

#include <cstdint>

namespace protofast::cuda {

enum class Number { kFloat16, kBfloat16, kFloat32, kFloat64 };

// torch's current stream of a device.
struct Stream {
  int device;
  void* handle;
};

// Where parts of one allocation begin: each part is aligned to 256 bytes.
class Parts {
 public:
  // Offset of the next part, of `count` numbers of `size` bytes.
  int64_t next(int64_t count, int64_t size) {
    const int64_t start = bytes_;
    bytes_ += (count * size + 255) / 256 * 256;
    return start;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace protofast::cuda
