// The backward of nearest_patch on the CPU. With slope[n, p] = d(loss)/d(distance[n, p]) and z the
// patch of image n that won for prototype p,
//
//   grad_features[n, location[n, p]] += slope * dd/dz,     grad_prototypes[p] += slope * dd/dp
//
//   squared_l2:  dd/dz = 2 (z - p)                    l2:  dd/dz = (z - p) / d, and 0 at d = 0
//   dot:         dd/dz = -p                       cosine:  dd/dz = -(p/|p| - cos z/|z|) / |z|
//
// and the same with z and p exchanged (dd/dp = -dd/dz for the L2 metrics). Only winners take part:
// N P D steps, nothing of size N P L or N P D is stored. L2 gradients are differences per pair;
// split into sums of z and of p they would lose three digits where similarities are steep.
//
// One task sums up the patches of one image, another a few prototypes over a few images. Either sum
// is kept in registers: the prototypes of an image are sorted by the location that won (a counting
// sort, which keeps their order), so that a patch and its sum are read and written once and only
// prototypes stream past; likewise a prototype against the winning patches of the images. The order
// of additions is that of the prototypes and that of the images, and no two tasks share a sum.
#pragma once

#include "cpu/nearest_patch/kernels.h"
#include "cpu/pairs.h"
#include "cpu/vector.h"

namespace protofast {
namespace {

// One pair's part of a gradient: factor * (own - other) for the L2 metrics, factor * other for dot,
// and factor * (own - other) + own_factor * own for cosine.
template <typename T>
struct Step {
  const T* other;
  T factor;
  T own_factor;
};

constexpr int64_t kStepsAtOnce = 64;

// The vectors at `sums` and `own` of depth `d`, kept in registers while the steps go by.
template <Metric metric, int vectors, typename T>
inline void add_strip(T* gradient, const T* own, const Step<T>* steps, int64_t count, int64_t d) {
  Vector<T> sums[vectors], mine[vectors];
  for (int v = 0; v < vectors; ++v) {
    sums[v] = load(gradient + d + v * kWidth<T>);
    mine[v] = load(own + d + v * kWidth<T>);
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* other = steps[i].other + d;
    for (int v = 0; v < vectors; ++v) {
      const Vector<T> theirs = load(other + v * kWidth<T>);
      sums[v] += steps[i].factor * (metric == Metric::kDot ? theirs : mine[v] - theirs);
      if (metric == Metric::kCosine) sums[v] += steps[i].own_factor * mine[v];
    }
  }
  for (int v = 0; v < vectors; ++v) store(gradient + d + v * kWidth<T>, sums[v]);
}

template <Metric metric, typename T>
inline void add_steps(
    T* gradient, const T* own, const Step<T>* steps, int64_t count, int64_t depth
) {
  constexpr int kVectors = PROTOFAST_VECTOR_BYTES == 64 ? 8 : 4;  // what the registers hold
  int64_t d = 0;
  for (; d + kVectors * kWidth<T> <= depth; d += kVectors * kWidth<T>) {
    add_strip<metric, kVectors>(gradient, own, steps, count, d);
  }
  for (; d + kWidth<T> <= depth; d += kWidth<T>) {
    add_strip<metric, 1>(gradient, own, steps, count, d);
  }
  for (; d < depth; ++d) {
    T sum = gradient[d];
    for (int64_t i = 0; i < count; ++i) {
      const T other = steps[i].other[d];
      sum += steps[i].factor * (metric == Metric::kDot ? other : own[d] - other);
      if (metric == Metric::kCosine) sum += steps[i].own_factor * own[d];
    }
    gradient[d] = sum;
  }
}

template <typename T>
inline void add_steps(
    Metric metric, T* gradient, const T* own, const Step<T>* steps, int64_t count, int64_t depth
) {
  switch (metric) {
    case Metric::kSquaredL2:
    case Metric::kL2:
      return add_steps<Metric::kSquaredL2>(gradient, own, steps, count, depth);
    case Metric::kDot:
      return add_steps<Metric::kDot>(gradient, own, steps, count, depth);
    case Metric::kCosine:
      return add_steps<Metric::kCosine>(gradient, own, steps, count, depth);
  }
}

// The step of one pair; `of_own` and `of_other` are the inverse norms that cosine needs. A zero
// vector has cosine 0 with everything: a step of nothing, to itself.
template <typename T>
inline Step<T> step_of(
    Metric metric,
    T slope,
    T distance,
    const T* own,
    const T* other,
    T of_own,
    T of_other,
    int64_t depth
) {
  switch (metric) {
    case Metric::kSquaredL2:
      return {other, 2 * slope, T(0)};
    case Metric::kL2:
      return {other, distance == 0 ? T(0) : slope / distance, T(0)};
    case Metric::kDot:
      return {other, -slope, T(0)};
    case Metric::kCosine: {
      if (of_own == 0 || of_other == 0) return {own, T(0), T(0)};
      const T factor = slope * of_own * of_other;
      return {other, factor, static_cast<T>(factor * along(own, other, depth))};
    }
  }
  __builtin_unreachable();
}

// lists.prototypes[starts[l], starts[l + 1]): the prototypes that location l won, in order.
inline void sort_by_winner(
    const int64_t* winners, int64_t count, int64_t locations, const WinnerLists& lists
) {
  for (int64_t l = 0; l <= locations; ++l) lists.starts[l] = 0;
  for (int64_t p = 0; p < count; ++p) ++lists.starts[winners[p]];
  int64_t end = 0;
  for (int64_t l = 0; l < locations; ++l) lists.starts[l] = end += lists.starts[l];
  lists.starts[locations] = end;
  for (int64_t p = count - 1; p >= 0; --p) lists.prototypes[--lists.starts[winners[p]]] = p;
}

template <typename T>
void sum_up_patches(
    const BackwardInputs<T>& inputs,
    const BackwardImage<T>& image,
    const WinnerLists& lists,
    T* grad_rows
) {
  const bool cosine = inputs.metric == Metric::kCosine;
  sort_by_winner(image.winners, inputs.count, inputs.locations, lists);
  for (int64_t l = 0; l < inputs.locations; ++l) {
    const T* patch = image.patches.rows + l * image.patches.stride;
    T* gradient = grad_rows + l * inputs.depth;
    for (int64_t d = 0; d < inputs.depth; ++d) gradient[d] = 0;
    for (int64_t first = lists.starts[l]; first < lists.starts[l + 1]; first += kStepsAtOnce) {
      const int64_t rest = lists.starts[l + 1] - first;
      const int64_t count = rest < kStepsAtOnce ? rest : kStepsAtOnce;
      Step<T> steps[kStepsAtOnce];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t p = lists.prototypes[first + i];
        steps[i] = step_of(
            inputs.metric,
            image.slopes[p],
            image.distances[p],
            patch,
            inputs.prototypes + p * inputs.depth,
            cosine ? image.inverse_patch_norms[l] : T(0),
            cosine ? inputs.inverse_prototype_norms[p] : T(0),
            inputs.depth
        );
      }
      add_steps(inputs.metric, gradient, patch, steps, count, inputs.depth);
    }
  }
}

template <typename T>
void add_to_prototypes(
    const BackwardInputs<T>& inputs,
    const BackwardImage<T>* images,
    int64_t image_count,
    int64_t first_prototype,
    int64_t last_prototype,
    T* grad_prototypes
) {
  const bool cosine = inputs.metric == Metric::kCosine;
  for (int64_t first = 0; first < image_count; first += kStepsAtOnce) {
    const int64_t rest = image_count - first, count = rest < kStepsAtOnce ? rest : kStepsAtOnce;
    for (int64_t p = first_prototype; p < last_prototype; ++p) {
      const T* prototype = inputs.prototypes + p * inputs.depth;
      Step<T> steps[kStepsAtOnce];
      for (int64_t i = 0; i < count; ++i) {
        const BackwardImage<T>& image = images[first + i];
        const int64_t l = image.winners[p];
        steps[i] = step_of(
            inputs.metric,
            image.slopes[p],
            image.distances[p],
            prototype,
            image.patches.rows + l * image.patches.stride,
            cosine ? inputs.inverse_prototype_norms[p] : T(0),
            cosine ? image.inverse_patch_norms[l] : T(0),
            inputs.depth
        );
      }
      T* gradient = grad_prototypes + p * inputs.depth;
      add_steps(inputs.metric, gradient, prototype, steps, count, inputs.depth);
    }
  }
}

}  // namespace
}  // namespace protofast
