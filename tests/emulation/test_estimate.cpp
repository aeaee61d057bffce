// Estimates on emulated warps. Of columns and slashes: sums of probabilities against the
// definition, and the selection of the largest against sorting. Of blocks: what is taken against
// values in double precision.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/estimate_blocks.cuh"
#include "girih/estimate_slash.cuh"
#include "girih/pool_blocks.cuh"
#include "girih/select_largest.cuh"
#include "oracle/estimate.hpp"

namespace {

using namespace girih;
using emulation::below;

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

struct BlockCase {
  int batch, seqlen_q, seqlen_k, heads_kv, group_size;
  oracle::BlockEstimate estimate;
  int top_k;        // or 0
  float threshold;  // or 0
  bool keep_sink;
  int num_ctas;
};

// A byte a block, of all heads, whose memory holds something else before.
template <int kHeadDim, int kNumStages>
std::vector<unsigned char> estimate(const BlockCase& c, const Rows& q, const Rows& k,
                                    double scale) {
  const oracle::BlockEstimate& of = c.estimate;
  EstimateBlocksParams p{};
  p.num_heads = c.heads_kv * c.group_size;
  p.num_planes = c.batch * p.num_heads;
  p.group_size = c.group_size;
  p.seqlen_q = c.seqlen_q;
  p.seqlen_k = c.seqlen_k;
  p.q_block = of.q_block;
  p.kv_block = of.kv_block;
  p.num_q_blocks = ceil_div(c.seqlen_q, of.q_block);
  p.num_kv_blocks = ceil_div(c.seqlen_k, of.kv_block);
  p.causal = of.causal;
  p.keep_first = c.keep_sink;
  p.top_k = c.top_k;
  p.threshold = c.threshold;
  const double scale_log2 = scale * 1.4426950408889634;
  std::vector<uint4> q_means, k_means;
  if (of.stride == 0) {
    const auto prepare = [&](std::vector<uint4>& means, PoolBlocksParams::Operand& pool,
                             EstimateBlocksParams::Operand& operand, const Rows& rows, int heads,
                             int seqlen, int block) {
      const int blocks = ceil_div(seqlen, block);
      means.resize(static_cast<std::size_t>(c.batch * heads * blocks * kMeanTokens * kHeadDim / 8));
      pool = {rows.data, rows.strides, seqlen, heads, block, blocks, means.data()};
      const int64 head = int64{blocks} * kMeanTokens * kHeadDim;
      operand = {means.data(), {heads * head, kHeadDim, head}, kMeanTokens * blocks};
    };
    PoolBlocksParams pool{};
    pool.batch = c.batch;
    prepare(q_means, pool.q, p.q, q, p.num_heads, c.seqlen_q, of.q_block);
    prepare(k_means, pool.k, p.k, k, c.heads_kv, c.seqlen_k, of.kv_block);
    const int num_ctas = pool.num_ctas(pool.q) + pool.num_ctas(pool.k);
    for (blockIdx.x = 0; blockIdx.x < num_ctas; ++blockIdx.x) {
      emulation::cta.run(kPoolThreads, [&] { PoolBlocks<Bf16, kHeadDim>::run(pool); });
    }
    p.tokens = kMeanTokens;
    p.row_tokens = of.q_block;
    p.column_tokens = of.kv_block;
    p.scale_log2 = static_cast<float>(scale_log2);
  } else {
    p.q = {q.data, q.strides, c.seqlen_q};
    p.k = {k.data, k.strides, c.seqlen_k};
    p.tokens = p.row_tokens = p.column_tokens = of.stride;
    p.reversed = true;
    p.scale_log2 = static_cast<float>(scale_log2 / of.stride);
  }
  p.num_rows = ceil_div(c.seqlen_q, p.row_tokens);
  p.num_columns = ceil_div(c.seqlen_k, p.column_tokens);
  std::vector<float> values(
      static_cast<std::size_t>(c.num_ctas * kEstimateBlocksRows * p.num_kv_blocks), 1e30f);
  p.values = values.data();
  std::vector<unsigned char> mask(
      static_cast<std::size_t>(p.num_planes * p.num_q_blocks * p.num_kv_blocks), 0xee);
  p.mask = mask.data();
  std::vector<unsigned char> memory(
      static_cast<std::size_t>(estimate_blocks_shared_bytes(kNumStages)) + 1024);
  unsigned char* const shared =
      memory.data() + (1024 - reinterpret_cast<std::uintptr_t>(memory.data()) % 1024);
  emulation::dynamic_shared = shared;
  gridDim.x = c.num_ctas;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    emulation::cta.run(kEstimateBlocksThreads,
                       [&] { EstimateBlocks<Bf16, kHeadDim, kNumStages>::run(p, shared); });
  }
  return mask;
}

template <int kHeadDim, int kNumStages>
void check_blocks(std::mt19937& random, const BlockCase& c) {
  const int heads = c.heads_kv * c.group_size;
  const Rows q(random, c.batch, c.seqlen_q, heads, kHeadDim, 2);
  const Rows k(random, c.batch, c.seqlen_k, c.heads_kv, kHeadDim, 1);
  const double scale = c.estimate.stride == 0 ? 3.0 : 0.5;
  const std::vector<unsigned char> mask = estimate<kHeadDim, kNumStages>(c, q, k, scale);
  auto at = mask.begin();
  for (int plane = 0; plane < c.batch * heads; ++plane) {
    const int b = plane / heads, h = plane % heads;
    const auto logarithms = oracle::block_logarithms(
        q.head(b, h, c.seqlen_q, kHeadDim), k.head(b, h / c.group_size, c.seqlen_k, kHeadDim),
        scale, c.estimate);
    for (int block = 0; block < static_cast<int>(logarithms.size()); ++block) {
      CAPTURE(plane);
      CAPTURE(block);
      const std::vector<double>& own = logarithms[static_cast<std::size_t>(block)];
      std::vector<bool> taken;
      for (std::size_t i = 0; i < own.size(); ++i, ++at) {
        REQUIRE(*at <= 1);
        taken.push_back(*at == 1);
      }
      CHECK(oracle::problem_of_row(
                taken, own,
                oracle::forced_blocks(c.seqlen_q, c.seqlen_k, c.estimate, block, c.keep_sink),
                c.top_k, c.threshold, 1e-3) == "");
    }
  }
  CHECK(at == mask.end());
}

}  // namespace

TEST_CASE("blocks are taken by their antidiagonals") {
  std::mt19937 random(3);
  // Aligned; a stage fewer; several CTAs' works; columns of more than one tile.
  check_blocks<16, 4>(random, {1, 512, 512, 1, 1, {64, 64, 8, true}, 3, 0, false, 1});
  check_blocks<16, 2>(random, {1, 1100, 1100, 1, 2, {128, 128, 4, true}, 0, 0.8f, true, 2});
  check_blocks<48, 3>(random, {2, 300, 301, 1, 1, {64, 128, 16, false}, 0, 0.9f, false, 3});
  // Lengths that differ, by no multiple of anything; rows that see nothing.
  check_blocks<16, 2>(random, {1, 250, 470, 2, 1, {128, 64, 16, true}, 0, 0.5f, false, 1});
  check_blocks<32, 2>(random, {1, 470, 250, 1, 1, {64, 64, 8, true}, 2, 0, true, 1});
  check_blocks<16, 2>(random, {1, 1, 77, 1, 1, {64, 64, 4, true}, 1, 0, false, 1});
}

TEST_CASE("blocks are taken by their means") {
  std::mt19937 random(4);
  check_blocks<16, 4>(random, {1, 1000, 1000, 1, 2, {64, 64, 0, true}, 4, 0, false, 2});
  check_blocks<80, 2>(random, {1, 700, 1300, 1, 1, {128, 64, 0, true}, 0, 0.6f, true, 1});
  check_blocks<32, 3>(random, {2, 390, 129, 1, 1, {64, 128, 0, false}, 1, 0, false, 1});
  check_blocks<16, 2>(random, {1, 700, 333, 1, 1, {64, 64, 0, true}, 3, 0, true, 1});
}

TEST_CASE("of equal blocks the lowest are taken, and the forced ones before all") {
  std::mt19937 random(5);
  BlockCase c{1, 512, 512, 1, 1, {64, 64, 0, false}, 3, 0, false, 1};
  const Rows q(random, 1, 512, 1, 16, 2);
  Rows k(random, 1, 512, 1, 16, 1);
  auto* const keys = const_cast<std::uint16_t*>(k.data);
  for (int key = 64; key < 512; ++key) {
    std::copy_n(keys + (key - 64) * k.strides.row, 16, keys + key * k.strides.row);
  }
  for (const int stride : {0, 8}) {
    c.estimate.stride = stride;
    c.estimate.causal = false;
    c.top_k = 3;
    c.threshold = 0;
    std::vector<unsigned char> mask = estimate<16, 2>(c, q, k, 0.5);
    for (int row = 0; row < 8; ++row) {
      for (int block = 0; block < 8; ++block) CHECK(mask[row * 8 + block] == (block < 3));
    }
    c.top_k = 0;
    c.threshold = 0.45f;  // of eight equal shares, four
    mask = estimate<16, 2>(c, q, k, 0.5);
    for (int row = 0; row < 8; ++row) {
      for (int block = 0; block < 8; ++block) CHECK(mask[row * 8 + block] == (block < 4));
    }
    c.estimate.causal = true;
    c.top_k = 2;
    mask = estimate<16, 2>(c, q, k, 0.0);  // all are equal
    for (int row = 0; row < 8; ++row) {
      for (int block = 0; block < 8; ++block) {
        CHECK(mask[row * 8 + block] == (block == row || (block == 0 && row > 0)));
      }
    }
  }
}

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
