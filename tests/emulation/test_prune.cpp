// Whether a warp's scores reach a threshold, on emulated warps, against the plain maximum of those
// that count.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/attn/prune.cuh"

TEST_CASE("scores reach a threshold where the highest does, of either sign and of either zero") {
  constexpr int kFragments = 2;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kScores[] = {-kInfinity, -3.5f, -1.0f, -1e-30f, -0.0f, 0.0f, 1e-30f, 1.0f, 3.5f};
  constexpr float kThresholds[] = {-3.5f, -1.0f, -0.0f, 0.0f, 1.0f, 3.5f};
  constexpr float kScaleLog2 = 1.44269504088896341f;  // natural scores
  std::mt19937 random(1);
  int reached = 0, zeros = 0;
  for (int round = 0; round < 300; ++round) {
    const int num_rows = round % 17;
    const auto most = 1 + random() % std::size(kScores);
    float scores[32][kFragments][4];
    for (auto& lane : scores) {
      for (auto& fragment : lane) {
        for (float& score : fragment) score = kScores[random() % most];
      }
    }
    for (const float threshold : kThresholds) {
      bool reaches[32] = {}, first_reaches[32] = {};
      emulation::cta.run(32, [&] {
        const int lane = threadIdx.x, rows = num_rows - lane / 4;
        const auto& own = scores[lane];
        reaches[lane] = girih::reaches<kFragments>(own, rows, kScaleLog2, threshold);
        first_reaches[lane] = girih::reaches<1>(own, rows, kScaleLog2, threshold);
      });
      for (int lane = 0; lane < 32; ++lane) {
        float highest = -kInfinity;
        for (const auto& fragment : scores[lane]) {
          for (int e = 0; e < 4; ++e) {
            if (lane / 4 + e / 2 * 8 < num_rows) highest = std::max(highest, fragment[e]);
          }
          if (&fragment == scores[lane]) REQUIRE(first_reaches[lane] == (highest >= threshold));
        }
        CAPTURE(highest);
        CAPTURE(threshold);
        REQUIRE(reaches[lane] == (highest >= threshold));
        reached += reaches[lane];
        zeros += highest == 0 && std::signbit(highest) && threshold == 0;
      }
    }
  }
  CHECK(reached > 1000);
  CHECK(zeros > 100);
}
