// What modifiers do to scores, and which of a kernel's head classes do what: the types that kernels
// are made of, on the host.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <vector>

#include "girih/shared/modifiers.cuh"

using namespace girih;

namespace {

// Inputs 0 to 2: slopes [2, 4], biases [2, 2, 5] of heads in pairs, sinks of all sequences [4].
struct Inputs {
  std::vector<float> slopes, biases, sinks;
  InputView views[3];

  Inputs() {
    for (int i = 0; i < 8; ++i) slopes.push_back(0.25f * static_cast<float>(i + 1));
    for (int i = 0; i < 20; ++i) biases.push_back(static_cast<float>(100 + i));
    for (int i = 0; i < 4; ++i) sinks.push_back(static_cast<float>(-i));
    const auto view = [](const std::vector<float>& values, int batch_stride, int head_stride,
                         int heads_per_plane) {
      InputView result;
      result.data = reinterpret_cast<const uint32*>(values.data());
      result.batch_stride = batch_stride;
      result.head_stride = head_stride;
      result.heads_per_plane = heads_per_plane;
      return result;
    };
    views[0] = view(slopes, 4, 1, 1);
    views[1] = view(biases, 10, 5, 2);
    views[2] = view(sinks, 0, 1, 1);
  }

  Geometry geometry(int batch, int head) const {
    Geometry g{7, 5, 2, 0};
    g.inputs = views;
    g.batch = batch;
    g.local_head = head;
    return g;
  }
};

Place place(const Geometry& g, int q, int k) {
  return {q, k, static_cast<float>(g.diagonal(q) - k)};
}

// Modifies a score of 1.
struct Recorder {
  float& result;
  Place at;
  template <class Modifiers>
  void operator()(Modifiers modifiers) const {
    result = modifiers(1.0f, at);
  }
};

}  // namespace

TEST_CASE("a slope takes from a score by the distance, on either side of the row's position") {
  const Inputs inputs;
  const int numbers[] = {0};
  for (int batch = 0; batch < 2; ++batch) {
    for (int head = 0; head < 4; ++head) {
      const Geometry g = inputs.geometry(batch, head);
      const Alibi alibi(numbers, g);
      for (int q = 0; q < 7; ++q) {
        for (int k = 0; k < 5; ++k) {
          const float slope = 0.25f * static_cast<float>(4 * batch + head + 1);
          CHECK(alibi(3.0f, place(g, q, k)) ==
                3.0f - slope * static_cast<float>(std::abs(q + 2 - k)));
        }
      }
    }
  }
}

TEST_CASE("a bias is that of the key, and keys that do not exist have none") {
  const Inputs inputs;
  const int numbers[] = {1};
  for (int batch = 0; batch < 2; ++batch) {
    for (int head = 0; head < 4; ++head) {
      const Geometry g = inputs.geometry(batch, head);
      const Bias bias(numbers, g);
      for (int k = 0; k < 5; ++k) {
        CHECK(bias(1.0f, place(g, 0, k)) ==
              static_cast<float>(101 + 10 * batch + 5 * (head / 2) + k));
      }
      CHECK(bias(1.0f, place(g, 0, 5)) == 1.0f);
      CHECK(bias(1.0f, place(g, 0, 1 << 30)) == 1.0f);
    }
  }
}

TEST_CASE("modifiers are applied in order, each with the numbers behind those of the mask") {
  using Structure = With<All<Leaf<Causal>, Leaf<Window>>, Alibi, Bias, SinkLogit>;
  static_assert(Structure::kNumNumbers == 2 + 3);
  static_assert(Structure::kScores && Structure::kSink);
  static_assert(!With<Leaf<Causal>, SinkLogit>::kScores);
  static_assert(!With<Leaf<Causal>, Alibi>::kSink);
  const Inputs inputs;
  const int numbers[] = {9, 9, 0, 1, 2};
  const Geometry g = inputs.geometry(1, 3);
  const auto chain = Structure::chain(numbers, g);
  CHECK(chain(0.5f, place(g, 1, 1)) == 0.5f - 2.0f * 2 + 116.0f);
  CHECK(chain.logit() == -3.0f);
  // The mask is the mask's alone.
  CHECK(Structure::row_bits(numbers, g, 1, KeyWord{0}) ==
        All<Leaf<Causal>, Leaf<Window>>::row_bits(numbers, g, 1, KeyWord{0}));
}

TEST_CASE("each class of heads has its own modifiers, or none") {
  using Classes = HeadClasses<Leaf<Causal>, With<Leaf<Causal>, Alibi>, With<Leaf<Sink>, SinkLogit>,
                              With<Leaf<Dense>, Bias, SinkLogit>>;
  using Modifiers = ClassModifiers<Classes>;
  static_assert(Modifiers::kScores && Modifiers::kSinks);
  static_assert(!ClassModifiers<HeadClasses<Leaf<Causal>>>::kScores);
  static_assert(!ClassModifiers<HeadClasses<Leaf<Causal>>>::kSinks);
  static_assert(!ClassModifiers<HeadClasses<With<Leaf<Causal>, SinkLogit>>>::kScores);
  const Inputs inputs;
  const Geometry g = inputs.geometry(0, 2);
  const int of_alibi[] = {0}, of_sink[] = {7, 2}, of_both[] = {1, 2};
  const auto modified = [&](int head_class, const int* numbers) {
    float result = 1.0f;
    Modifiers::apply(head_class, numbers, g, Recorder{result, place(g, 0, 4)});
    return result;
  };
  CHECK(modified(0, of_alibi) == 1.0f);
  CHECK(modified(1, of_alibi) == 1.0f - 0.75f * 2);
  CHECK(modified(2, of_sink) == 1.0f);
  CHECK(modified(3, of_both) == 110.0f);
  CHECK(Modifiers::sink_logit(0, of_alibi, g) == -HUGE_VALF);
  CHECK(Modifiers::sink_logit(1, of_alibi, g) == -HUGE_VALF);
  CHECK(Modifiers::sink_logit(2, of_sink, g) == -2.0f);
  CHECK(Modifiers::sink_logit(3, of_both, g) == -2.0f);
}
