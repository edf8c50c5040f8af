// The backward pass of nearest_patch: kernels in plain.cuh and buckets.cuh.

#include "cuda/launch.cuh"
#include "cuda/nearest_patch/buckets.cuh"
#include "cuda/nearest_patch/kernels.h"
#include "cuda/nearest_patch/plain.cuh"

namespace protofast::cuda {
namespace {

__global__ void __launch_bounds__(kBucketThreads) sort_images(const Buckets buckets) {
  extern __shared__ int shared[];
  for (int64_t image = blockIdx.x; image < buckets.image_count; image += gridDim.x) {
    sort_image(DeviceThreads<kBucketThreads>(), buckets, image, shared);
    __syncthreads();  // the next image begins with the same tables
  }
}

// Where the parts of the workspace begin, in bytes.
struct Workspace {
  int64_t gradients, pairs, order, starts, bytes;

  explicit Workspace(const BackwardPass& pass) {
    const bool wide = pass.number == Number::kFloat64;
    const int64_t size = wide ? sizeof(double) : sizeof(float);
    const int64_t images = pass.image_count, prototypes = pass.prototype_count;
    const bool cosine = pass.metric == Metric::kCosine;
    const bool sorted = pass.buckets && pass.grad_features != nullptr;
    Parts parts;
    gradients = parts.next(images * prototypes, size);
    pairs = parts.next(cosine ? images * prototypes : 0, sizeof(Across));
    order = parts.next(sorted ? images * prototypes : 0, sizeof(int32_t));
    starts = parts.next(sorted ? images * (pass.layout.locations + 1) : 0, sizeof(int32_t));
    bytes = parts.bytes();
  }
};

template <typename Compute, typename Feature>
class Run {
 public:
  Run(const BackwardPass& pass, void* workspace, const Stream& stream)
      : pass_(pass), at_(pass), start_(static_cast<char*>(workspace)), stream_(stream) {
    const bool cosine = pass.metric == Metric::kCosine;
    backward_ = {
        pass.metric,
        static_cast<const Feature*>(pass.features),
        static_cast<const Compute*>(pass.prototypes),
        static_cast<const Compute*>(pass.distances),
        pass.locations,
        part<Compute>(at_.gradients),
        cosine ? part<Across>(at_.pairs) : nullptr,
        pass.layout,
        pass.image_count,
        pass.prototype_count
    };
  }

  void prepare() {
    const int64_t pairs = pass_.image_count * pass_.prototype_count;
    const DistanceGradient<Compute> of_distances{
        static_cast<const Compute*>(pass_.grad_activations),
        static_cast<const Compute*>(pass_.grad_distances),
        backward_.distances,
        part<Compute>(at_.gradients),
        similarity_function<Compute>(pass_.similarity, pass_.eps)
    };
    launch_each(of_distances, pairs, stream_);
    if (pass_.metric != Metric::kCosine) return;
    const PairAcross<Compute, Feature> of_pairs{
        backward_.features,
        backward_.prototypes,
        backward_.locations,
        part<Across>(at_.pairs),
        pass_.layout,
        pass_.prototype_count
    };
    launch_each(of_pairs, pairs, stream_);
  }

  void plain() {
    const int64_t depth = pass_.layout.depth;
    if (pass_.grad_features != nullptr) {
      const FeatureGradient<Compute, Feature> result{
          backward_, static_cast<Feature*>(pass_.grad_features), pass_.grad_layout
      };
      launch_each(result, pass_.image_count * pass_.layout.locations * depth, stream_);
    }
    if (pass_.grad_prototypes != nullptr) {
      const PrototypeGradient<Compute, Feature> result{
          backward_, static_cast<Compute*>(pass_.grad_prototypes)
      };
      launch_each(result, pass_.prototype_count * depth, stream_);
    }
  }

  void by_buckets() {
    const FeatureLayout& layout = pass_.layout;
    const int64_t threads_per_row = strips(layout.depth) * kWarp;
    if (pass_.grad_features != nullptr) {
      sort();
      const BucketFeatureGradient<Compute, Feature> result{
          backward_,
          part<int32_t>(at_.order),
          part<int32_t>(at_.starts),
          static_cast<Feature*>(pass_.grad_features),
          pass_.grad_layout
      };
      launch_each(result, pass_.image_count * layout.locations * threads_per_row, stream_);
    }
    if (pass_.grad_prototypes != nullptr) {
      const StripPrototypeGradient<Compute, Feature> result{
          backward_, static_cast<Compute*>(pass_.grad_prototypes)
      };
      launch_each(result, pass_.prototype_count * threads_per_row, stream_);
    }
  }

 private:
  void sort() {
    const Buckets buckets{
        pass_.locations,
        part<int32_t>(at_.order),
        part<int32_t>(at_.starts),
        pass_.image_count,
        pass_.prototype_count,
        pass_.layout.locations,
        bucket_ranges(pass_.layout.locations)
    };
    const int64_t most = std::numeric_limits<int32_t>::max();
    const auto blocks = static_cast<unsigned int>(std::min(pass_.image_count, most));
    const size_t bytes = buckets.shared_ints() * sizeof(int);
    sort_images<<<blocks, kBucketThreads, bytes, use(stream_)>>>(buckets);
    check(cudaGetLastError(), "sorting locations");
  }

  template <typename T>
  T* part(int64_t offset) const {
    return reinterpret_cast<T*>(start_ + offset);
  }

  const BackwardPass& pass_;
  Workspace at_;
  char* start_;
  Stream stream_;
  Backward<Compute, Feature> backward_;
};

}  // namespace

bool buckets_fit(int64_t locations, int64_t prototypes) {
  return bucket_ranges(locations) > 0 && prototypes < std::numeric_limits<int32_t>::max();
}

int64_t backward_workspace(const BackwardPass& pass) { return Workspace(pass).bytes; }

void backward(const BackwardPass& pass, void* workspace, const Stream& stream) {
  with_types(pass.number, [&]<typename Compute, typename Feature>(Compute*, Feature*) {
    Run<Compute, Feature> run(pass, workspace, stream);
    run.prepare();
    if (pass.buckets) {
      run.by_buckets();
    } else {
      run.plain();
    }
  });
}

}  // namespace protofast::cuda
