// nearest_patch by tensor cores, run on the CPU a block at a time: packing, selection and finish
// are the code that a GPU runs, on emulated threads, and must give what the plain kernel gives.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/check.h"
#include "tests/emulated_tensor_cores.h"

namespace {

using namespace protofast::testing;

Similarity similarity_for(Metric metric) {
  return is_difference(metric) ? Similarity::kLog : Similarity::kLinear;
}

const Shape kAwkward[] = {
    {1, 1, 1, 1, 1},      // one of everything
    {3, 5, 17, 2, 3},     // less than a tile of anything; an image without a partner
    {2, 129, 64, 7, 7},   // one prototype more than a tile
    {1, 128, 65, 7, 8},   // all of a round of patches; one channel more than a chunk
    {3, 130, 33, 3, 19},  // one patch more than a round
    {1, 3, 200, 14, 14},  // four rounds, seven or four chunks
};

void check_same(const PairsProblem<float>& got, const PairsProblem<float>& expected) {
  for (size_t i = 0; i < expected.distances.size(); ++i) {
    CHECK(got.locations[i] == expected.locations[i]);
    CHECK_NEAR(got.distances[i], expected.distances[i], 0);
    CHECK_NEAR(got.activations[i], expected.activations[i], 0);
  }
}

TEST(refined_always_gives_the_plain_kernels_bits) {
  for (const Shape& shape : kAwkward)
    for (const Metric metric : kMetrics)
      for (const auto layout : {&contiguous_layout, &channels_last_layout, &sliced_layout}) {
        PairsProblem<float> problem(shape, layout(shape), metric, similarity_for(metric));
        PairsProblem<float> plain = problem;
        plain.forward();
        TensorCores(problem, plan_for(problem, Refine::kAlways));
        check_same(problem, plain);
      }
}

TEST(hopper_selects_the_same) {
  for (const Shape& shape : kAwkward)
    for (const Metric metric : {Metric::kSquaredL2, Metric::kCosine})
      for (const Number number : {Number::kFloat32, Number::kBfloat16}) {
        PairsProblem<float> problem(
            shape, contiguous_layout(shape), metric, similarity_for(metric)
        );
        PairsProblem<float> wide = problem;
        TensorCores(problem, plan_for(problem, Refine::kNever, Precision::kFloat32, number));
        TensorCores(wide, plan_for(wide, Refine::kNever, Precision::kFloat32, number, "wgmma"));
        check_same(wide, problem);
      }
}

TEST(selection_scores_are_within_their_error_bound) {
  for (const Shape& shape : kAwkward)
    for (const Metric metric : kMetrics) {
      PairsProblem<float> problem(shape, channels_last_layout(shape), metric, Similarity::kLinear);
      Plan plan = plan_for(problem, Refine::kNever);
      TensorCores run(problem, plan);
      for (int64_t n = 0; n < shape.images; ++n)
        for (int64_t p = 0; p < shape.prototypes; ++p) {
          const int64_t pair = n * shape.prototypes + p;
          const int64_t location = problem.locations[pair];
          double squared = 0, z = 0, of_p = 0;
          for (int64_t d = 0; d < shape.depth; ++d) {
            const double a = problem.feature(n, location, d), b = problem.prototype(p, d);
            squared += (a - b) * (a - b), z += a * a, of_p += b * b;
          }
          const double exact = problem.distance(n, location, p);
          double got = problem.distances[pair], expected = exact, size = z + of_p;
          if (metric == Metric::kL2) got *= got, expected *= expected;
          if (metric == Metric::kDot) size = std::sqrt(z * of_p);
          if (metric == Metric::kCosine) size = 1;
          CHECK_NEAR(got, expected, plan.error * size);  // norms of centred vectors are less
        }
    }
}

TEST(refined_where_it_matters_is_within_1e_4) {
  for (const Shape& shape : kAwkward)
    for (const Metric metric : {Metric::kSquaredL2, Metric::kL2}) {
      PairsProblem<float> problem(shape, contiguous_layout(shape), metric, Similarity::kLog);
      for (int64_t p = 0; p < shape.prototypes; ++p)  // from equal to far away
        for (int64_t d = 0; d < shape.depth; ++d)
          problem.prototype(p, d) = problem.feature(p % shape.images, p % shape.locations(), d) +
                                    (p % 7 == 0 ? 0 : std::pow(10.0f, -float(p % 7)));
      PairsProblem<float> plain = problem;
      plain.forward();
      TensorCores(problem, plan_for(problem, Refine::kAuto));
      for (size_t i = 0; i < plain.distances.size(); ++i) {
        CHECK(problem.locations[i] == plain.locations[i]);
        CHECK_NEAR(problem.distances[i], plain.distances[i], 1e-4 * plain.distances[i]);
        CHECK_NEAR(problem.activations[i], plain.activations[i], 5e-5);
      }
    }
}

TEST(ties_are_settled_though_the_patches_differ) {
  for (const float offset : {0.0f, 1000.0f})
    for (const Metric metric : {Metric::kSquaredL2, Metric::kL2, Metric::kDot}) {
      PairsProblem<float> problem(
          {3, 70, 6, 7, 7}, channels_last_layout({3, 70, 6, 7, 7}), metric, Similarity::kLinear
      );
      std::mt19937 random(1);
      for (float& value : problem.features) value = offset + float(random() % 4);
      for (float& value : problem.prototypes) value = offset + float(random() % 4);
      PairsProblem<float> plain = problem;
      plain.forward();
      TensorCores(problem, plan_for(problem, Refine::kAlways));
      check_same(problem, plain);
    }
}

TEST(rounding_errors_that_add_up_leave_no_wrong_place) {
  const Shape shape{40, 40, 256, 1, 2};  // each patch one number, in every channel
  PairsProblem<float> problem(
      shape, channels_last_layout(shape), Metric::kSquaredL2, Similarity::kLog
  );
  std::mt19937 random(2);
  for (int64_t p = 0; p < shape.prototypes; ++p) {
    const float centre = float(200 + random() % 1600) / 2048,
                apart = float(1 + random() % 199) / 2048;
    for (int64_t d = 0; d < shape.depth; ++d) {
      problem.prototype(p, d) = centre;
      problem.feature(p, 0, d) = centre - apart;
      problem.feature(p, 1, d) = centre + apart * (p % 2 == 0 ? 1 : 0.99999f);
    }
  }
  PairsProblem<float> plain = problem;
  plain.forward();
  TensorCores(problem, plan_for(problem, Refine::kAlways));
  check_same(problem, plain);
}

TEST(nan_infinity_and_overflow_are_looked_at_directly) {
  const Shape shape{5, 9, 20, 7, 7};
  for (const Metric metric : kMetrics)
    for (const Refine refine : {Refine::kAuto, Refine::kAlways, Refine::kNever}) {
      PairsProblem<float> problem(
          shape, channels_last_layout(shape), metric, similarity_for(metric)
      );
      problem.feature(0, 48, 2) = NAN;
      problem.feature(0, 31, 5) = NAN;
      problem.feature(1, 3, 0) = INFINITY;
      problem.feature(2, 0, 3) = 1e25f;
      for (int64_t l = 0; l < 49; ++l) problem.feature(3, l, 1) = -INFINITY;
      problem.prototype(1, 0) = NAN;
      problem.prototype(2, 0) = INFINITY;
      problem.prototype(3, 0) = 1e30f;
      PairsProblem<float> plain = problem;
      plain.forward();
      TensorCores(problem, plan_for(problem, refine));
      for (int64_t n = 0; n < shape.images; ++n)
        for (int64_t p = 0; p < shape.prototypes; ++p) {
          const int64_t pair = n * shape.prototypes + p;
          const bool odd = n < 4 || (p >= 1 && p <= 3);
          if (!odd && refine != Refine::kAlways) continue;
          CHECK(problem.locations[pair] == plain.locations[pair]);
          CHECK_NEAR(problem.distances[pair], plain.distances[pair], 0);
          CHECK_NEAR(problem.activations[pair], plain.activations[pair], 0);
        }
    }
}

TEST(zero_vectors_and_vectors_too_small_to_square) {
  const Shape shape{2, 5, 8, 4, 4};
  for (const Metric metric : kMetrics)
    for (const float size : {1.0f, 1e-18f, 1e-25f}) {
      PairsProblem<float> problem(shape, contiguous_layout(shape), metric, similarity_for(metric));
      for (float& value : problem.features) value = size * (value - 2);
      for (float& value : problem.prototypes) value = size * (value + 1);
      for (int64_t d = 0; d < shape.depth; ++d) {
        problem.feature(0, 2, d) = 0;
        problem.prototype(3, d) = 0;
      }
      PairsProblem<float> plain = problem;
      plain.forward();
      TensorCores(problem, plan_for(problem, Refine::kAlways));
      check_same(problem, plain);
    }
}

TEST(a_constant_map_has_its_minimum_first) {
  const Shape shape{2, 4, 19, 9, 9};
  for (const Metric metric : kMetrics) {
    PairsProblem<float> problem(shape, contiguous_layout(shape), metric, Similarity::kLinear);
    for (float& value : problem.features) value = 0.37f;
    TensorCores(problem, plan_for(problem, Refine::kAuto));
    for (const int64_t location : problem.locations) CHECK(location == 0);
  }
}

TEST(far_from_zero_the_centre_keeps_selection_sharp) {
  const Shape shape{2, 40, 128, 7, 7};
  for (const bool outlier : {false, true}) {
    PairsProblem<float> problem(
        shape, channels_last_layout(shape), Metric::kSquaredL2, Similarity::kLog
    );
    for (float& value : problem.features) value += 100;
    for (float& value : problem.prototypes) value += 100;
    if (outlier) problem.prototype(0, 0) = 1e7f;  // spoils the centre
    PairsProblem<float> plain = problem;
    plain.forward();
    TensorCores(problem, plan_for(problem, Refine::kAlways));
    check_same(problem, plain);
  }
}

TEST(an_image_has_the_same_bits_in_every_batch) {
  const Shape shape{5, 20, 40, 7, 7};
  PairsProblem<float> all(shape, contiguous_layout(shape), Metric::kSquaredL2, Similarity::kLog);
  TensorCores(all, plan_for(all, Refine::kAuto));
  for (int64_t n = 0; n < shape.images; ++n) {
    const Shape one{1, 20, 40, 7, 7};
    PairsProblem<float> alone(one, contiguous_layout(one), Metric::kSquaredL2, Similarity::kLog);
    alone.prototypes = all.prototypes;
    std::copy_n(all.features.begin() + n * 40 * 49, 40 * 49, alone.features.begin());
    TensorCores(alone, plan_for(alone, Refine::kAuto));
    for (int64_t p = 0; p < 20; ++p) {
      CHECK(alone.locations[p] == all.locations[n * 20 + p]);
      CHECK(alone.distances[p] == all.distances[n * 20 + p]);
    }
  }
}

TEST(plans) {
  const auto has = [](Path) { return true; };
  const auto has_not = [](Path) { return false; };
  const Problem problem{Metric::kSquaredL2, Number::kFloat32, Number::kFloat32, 128, 49};
  const auto plan = [&](const char* wanted, const Problem& sizes) {
    return make_plan(wanted, has, Precision::kFloat32, Refine::kAuto, sizes);
  };
  const Plan split = plan("tensor_cores", problem);
  CHECK(split.path == Path::kTensorCores && split.planes == 2 && split.centred);
  CHECK(split.settle_places && split.refine_below > 0 && split.refine_below < 1);
  CHECK(plan("wgmma", problem).path == Path::kWgmma);
  CHECK(plan("plain", problem).path == Path::kPlain);
  CHECK(plan(nullptr, problem).path == kPreferredPath && plan("", problem).path == kPreferredPath);
  CHECK(
      plan("tensor_cores", {Metric::kDot, Number::kFloat64, Number::kFloat32, 128, 49}).path ==
      Path::kPlain
  );
  CHECK(
      plan("tensor_cores", {Metric::kDot, Number::kFloat16, Number::kFloat64, 128, 49}).path ==
      Path::kPlain
  );
  CHECK(
      plan("tensor_cores", {Metric::kDot, Number::kBfloat16, Number::kFloat32, 128, 49}).planes == 2
  );
  CHECK(
      plan("tensor_cores", {Metric::kDot, Number::kFloat16, Number::kFloat16, 128, 49}).planes == 2
  );
  CHECK(plan("tensor_cores", {Metric::kDot, Number::kFloat32, Number::kFloat32, 1, 1}).planes == 2);
  for (const Metric metric : {Metric::kL2, Metric::kDot, Metric::kCosine}) {
    CHECK(
        plan("tensor_cores", {metric, Number::kFloat32, Number::kFloat32, 128, 49}).refine_below ==
        INFINITY
    );
  }
  for (const Refine refine : {Refine::kAuto, Refine::kAlways, Refine::kNever}) {
    const Plan half = make_plan("tensor_cores", has, Precision::kHalf, refine, problem);
    CHECK(half.planes == 1 && !half.settle_places);
    CHECK(half.refine_below == (refine == Refine::kNever ? 0 : INFINITY));
    const Plan tf32 = make_plan("tensor_cores", has, Precision::kTf32, refine, problem);
    CHECK(tf32.planes == 2 && tf32.settle_places == (refine != Refine::kNever));
  }
  int refused = 0;
  const std::pair<const char*, bool> wrong[] = {
      {"tensor_cores", false}, {"wgmma", false}, {"fast", true}
  };
  for (const auto& [wanted, there] : wrong) {
    try {
      if (there) {
        make_plan(wanted, has, Precision::kFloat32, Refine::kAuto, problem);
      } else {
        make_plan(wanted, has_not, Precision::kFloat32, Refine::kAuto, problem);
      }
    } catch (const std::runtime_error&) {
      ++refused;
    }
  }
  CHECK(refused == 3);
}

TEST(bf16_needs_one_plane_and_half_precision_is_refined) {
  for (const Shape& shape : kAwkward)
    for (const Metric metric : kMetrics) {
      PairsProblem<float> problem(
          shape, channels_last_layout(shape), metric, similarity_for(metric)
      );
      for (float& value : problem.features) value = from_bf16(to_bf16(value));
      for (float& value : problem.prototypes) value = from_bf16(to_bf16(value));
      PairsProblem<float> plain = problem, half = problem;
      plain.forward();
      const Plan exact = plan_for(problem, Refine::kAlways, Precision::kFloat32, Number::kBfloat16);
      CHECK(exact.planes == 1 && !exact.centred);
      TensorCores(problem, exact);
      check_same(problem, plain);

      const Plan rough = plan_for(half, Refine::kAuto, Precision::kHalf);
      CHECK(rough.planes == 1 && rough.refine_below == INFINITY);
      TensorCores(half, rough);
      for (int64_t n = 0; n < shape.images; ++n)
        for (int64_t p = 0; p < shape.prototypes; ++p) {
          const int64_t pair = n * shape.prototypes + p;
          const double there = half.distance(n, half.locations[pair], p);
          CHECK_NEAR(half.distances[pair], there, 2e-6 * std::max(1.0, std::abs(there)) * 4);
        }
    }
}

}  // namespace

RUN_TESTS()
