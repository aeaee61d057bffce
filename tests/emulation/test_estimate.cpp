// The estimate of columns and slashes on emulated warps: sums of probabilities against the
// definition, and the selection of the largest against sorting.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/estimate_slash.cuh"
#include "girih/select_largest.cuh"
#include "oracle/estimate.hpp"

namespace {

using namespace girih;

int below(std::mt19937& random, int bound) {
  return static_cast<int>(random() % static_cast<unsigned>(bound));
}

float as_float(std::uint16_t bits) { return __int_as_float(static_cast<int>(bits) << 16); }

// Rows of all heads, [batch, rows, heads, head_dim], 16 bytes apart from one another.
struct Rows {
  std::vector<std::uint16_t> memory;
  const std::uint16_t* data;
  Strides strides;

  Rows(std::mt19937& random, int batch, int rows, int heads, int head_dim, int factor) {
    strides = {int64{rows} * heads * (head_dim + 8), int64{heads} * (head_dim + 8), head_dim + 8};
    memory.resize(static_cast<std::size_t>(batch * strides.batch) + 8);
    for (std::uint16_t& element : memory) {  // small numbers, exact in bf16
      const float value = static_cast<float>(below(random, 17) - 8) / 8.0f;
      element = static_cast<std::uint16_t>(
          std::bit_cast<unsigned>(value * static_cast<float>(factor)) >> 16);
    }
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    data = memory.data() + (16 - address % 16) % 16 / 2;
  }
  oracle::Matrix head(int batch, int index, int rows, int head_dim) const {
    oracle::Matrix result;
    for (int row = 0; row < rows; ++row) {
      const std::uint16_t* at =
          data + batch * strides.batch + row * strides.row + index * strides.head;
      result.emplace_back();
      for (int d = 0; d < head_dim; ++d) result.back().push_back(as_float(at[d]));
    }
    return result;
  }
};

template <int kHeadDim>
void check_sums(std::mt19937& random, int seqlen_q, int seqlen_k, int group_size, int heads_per_cta,
                int tiles_per_part, int factor) {
  const int batch = 2, heads_kv = 2, heads = heads_kv * group_size;
  const Rows q(random, batch, seqlen_q, heads, kHeadDim, factor);
  const Rows k(random, batch, seqlen_k, heads_kv, kHeadDim, 1);
  EstimateParams p{};
  p.q = q.data;
  p.k = k.data;
  p.q_strides = q.strides;
  p.k_strides = k.strides;
  p.seqlen_q = seqlen_q;
  p.seqlen_k = seqlen_k;
  p.num_planes = batch * heads;
  p.num_heads = heads;
  p.group_size = group_size;
  const double scale = 0.4;
  p.softmax_scale_log2 = static_cast<float>(scale * 1.4426950408889634);
  p.heads_per_cta = heads_per_cta;
  p.keys_per_part = tiles_per_part * kEstimateTileKeys;
  p.num_parts = ceil_div(seqlen_k, p.keys_per_part);
  std::vector<SoftmaxPart> parts(
      static_cast<std::size_t>(p.num_planes * p.num_parts * kEstimateRows), {-1.0f, -1.0f});
  p.parts = parts.data();
  p.sums_stride = round_up(seqlen_k, 4);
  std::vector<float> sums(static_cast<std::size_t>(2 * p.num_planes * p.sums_stride), -1.0f);
  p.sums = sums.data();

  std::vector<uint4> shared(
      static_cast<std::size_t>(estimate_shared_bytes(kHeadDim, heads_per_cta) / 16));
  for (const auto phase : {EstimateParams::Phase::rows, EstimateParams::Phase::sums}) {
    p.phase = phase;
    for (blockIdx.x = 0; blockIdx.x < p.num_ctas(); ++blockIdx.x) {
      emulation::cta.run(kEstimateThreads, [&] {
        EstimateSlash<Bf16, kHeadDim>::run(p, reinterpret_cast<unsigned char*>(shared.data()));
      });
    }
  }

  double error = 0;
  for (int plane = 0; plane < p.num_planes; ++plane) {
    const int b = plane / heads, h = plane % heads;
    const oracle::Sums expected = oracle::estimate_sums(
        q.head(b, h, seqlen_q, kHeadDim), k.head(b, h / group_size, seqlen_k, kHeadDim), scale);
    for (const auto* of : {&expected.of_keys, &expected.of_distances}) {
      const std::size_t first =
          static_cast<std::size_t>((2 * plane + (of == &expected.of_distances)) * p.sums_stride);
      for (std::size_t i = 0; i < of->size(); ++i) {
        error = std::max(error, std::abs((*of)[i] - double{sums[first + i]}) / ((*of)[i] + 1e-7));
      }
    }
  }
  CHECK(error < 1e-4);
}

}  // namespace

TEST_CASE("what the last queries see adds up to the sums of the definition") {
  std::mt19937 random(1);
  check_sums<16>(random, 70, 200, 1, 1, 2, 1);
  check_sums<48>(random, 64, 161, 2, 2, 3, 4);
  check_sums<64>(random, 100, 97, 4, 4, 1, 1);
  check_sums<160>(random, 130, 65, 2, 1, 2, 1);
  check_sums<16>(random, 20, 150, 1, 1, 1, 8);  // fewer queries than are looked at
  check_sums<16>(random, 90, 31, 1, 1, 1, 1);   // or keys
  check_sums<32>(random, 1, 1, 1, 1, 1, 1);
}

TEST_CASE("the largest values are selected in ascending order, the first of equal ones") {
  std::mt19937 random(2);
  for (int i = 0; i < 24; ++i) {
    const int counts[] = {1, 3, 100, 4096, 4097, 9000};
    SelectParams p{};
    p.num_planes = 1 + i % 2;
    p.num_heads = 1 + i / 2 % 2;
    p.count = counts[i % 6];
    p.stride = round_up(p.count, 4);
    std::vector<float> values;
    for (int v = 0; v < SelectParams::kLists * p.num_planes * p.stride; ++v) {
      const float value = std::ldexp(static_cast<float>(random() % 1000), below(random, 40) - 50);
      values.push_back(i % 3 == 0 ? static_cast<float>(below(random, 4)) : value);
    }
    p.values = values.data();
    std::vector<int> out[SelectParams::kLists];
    const int forced[] = {30, 100};
    for (int list = 0; list < SelectParams::kLists; ++list) {
      const int number = i % 5 == 0 ? p.count + 7 : below(random, p.count + 1);
      out[list].assign(static_cast<std::size_t>(number * p.num_planes), -2);
      p.lists[list] = {out[list].data(), number, forced[list], i % 4 == 3};
      for (int head = 0; head < p.num_heads; ++head) {
        p.head_numbers[list][head] = below(random, number + 1);
      }
    }
    gridDim.x = 3;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      emulation::cta.run(kSelectThreads, [&] { SelectLargest::run(p); });
    }
    for (int plane = 0; plane < p.num_planes; ++plane) {
      for (int list = 0; list < SelectParams::kLists; ++list) {
        const float* own = values.data() + (plane * SelectParams::kLists + list) * p.stride;
        const int width = p.lists[list].width;
        const int number =
            p.lists[list].per_head ? p.head_numbers[list][plane % p.num_heads] : width;
        std::vector<int> order(static_cast<std::size_t>(p.count));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
          const bool first = a < forced[list], second = b < forced[list];
          return first != second ? first : !first && own[a] > own[b];
        });
        order.resize(static_cast<std::size_t>(std::min(number, p.count)));
        std::sort(order.begin(), order.end());
        order.resize(static_cast<std::size_t>(width), -1);
        const auto begin = out[list].begin() + plane * width;
        CHECK(std::equal(order.begin(), order.end(), begin));
      }
    }
  }
}
