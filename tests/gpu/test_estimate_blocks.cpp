// Estimates of blocks on a GPU: the masks against values in float64, where values that are nearly
// equal may stand for one another, what repeated launches give, and how long a long one takes.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "girih/estimate.hpp"
#include "operand.hpp"

using namespace gpu_tests;
using girih::jit::EstimateBlocksArgs;

namespace {

// Of the logarithms of probabilities, and of sums relative to them: float32 and bf16 means.
constexpr double kTolerance = 5e-4;

struct BlockCase {
  int batch, seqlen_q, seqlen_k, heads, heads_kv, head_dim;
  oracle::BlockEstimate estimate;
  int top_k;        // or 0
  float threshold;  // or 0
  bool keep_sink = false;
};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

std::size_t mask_bytes(const BlockCase& c) {
  return static_cast<std::size_t>(c.batch) * static_cast<std::size_t>(c.heads) *
         static_cast<std::size_t>(ceil_div(c.seqlen_q, c.estimate.q_block)) *
         static_cast<std::size_t>(ceil_div(c.seqlen_k, c.estimate.kv_block));
}

EstimateBlocksArgs args_of(const BlockCase& c, const Tensor& q, const Tensor& k, Layout layout,
                           const Buffer& mask) {
  EstimateBlocksArgs args{.q = q,
                          .k = k,
                          .layout = layout,
                          .q_block = c.estimate.q_block,
                          .kv_block = c.estimate.kv_block,
                          .causal = c.estimate.causal,
                          .keep_sink = c.keep_sink,
                          .mask = static_cast<std::uint8_t*>(mask.data())};
  if (c.estimate.stride > 0) args.stride = c.estimate.stride;
  if (c.top_k > 0) args.top_k = c.top_k;
  if (c.threshold > 0) args.threshold = c.threshold;
  return args;
}

std::vector<std::uint8_t> download(const Buffer& mask) {
  std::vector<std::uint8_t> bytes(mask.size());
  mask.download(bytes.data(), bytes.size());
  return bytes;
}

// Of a head's `blocks_checked` blocks of queries, spread over all.
void check_head(const BlockCase& c, const std::vector<std::uint8_t>& mask, int plane,
                const oracle::Matrix& q, const oracle::Matrix& k, int blocks_checked) {
  const int q_blocks = ceil_div(c.seqlen_q, c.estimate.q_block);
  const int kv_blocks = ceil_div(c.seqlen_k, c.estimate.kv_block);
  for (int i = 0; i < blocks_checked; ++i) {
    const int block =
        blocks_checked == 1 ? q_blocks - 1 : i * (q_blocks - 1) / (blocks_checked - 1);
    CAPTURE(plane);
    CAPTURE(block);
    const auto logarithms =
        oracle::block_logarithms(q, k, 1.0 / std::sqrt(c.head_dim), c.estimate, block);
    const auto row = mask.begin() + (std::int64_t{plane} * q_blocks + block) * kv_blocks;
    CHECK(std::all_of(row, row + kv_blocks, [](std::uint8_t byte) { return byte <= 1; }));
    CHECK(oracle::problem_of_row(
              {row, row + kv_blocks}, logarithms[static_cast<std::size_t>(block)],
              oracle::forced_blocks(c.seqlen_q, c.seqlen_k, c.estimate, block, c.keep_sink),
              c.top_k, c.threshold, kTolerance) == "");
    rows_checked += std::min(c.estimate.q_block, c.seqlen_q - block * c.estimate.q_block);
  }
}

void check_blocks(std::uint64_t seed, const BlockCase& c, DType dtype, Layout layout,
                  int planes_checked, int blocks_checked) {
  std::mt19937_64 random(seed);
  // Means of many tokens are small.
  const float deviation = c.estimate.stride == 0 ? 8.0f : 2.0f;
  const Operand q(random, {c.batch, c.seqlen_q, c.heads, c.head_dim}, layout, dtype, deviation);
  const Operand k(random, {c.batch, c.seqlen_k, c.heads_kv, c.head_dim}, layout, dtype, deviation);
  const Buffer first(mask_bytes(c)), second(mask_bytes(c));
  for (const Buffer* mask : {&first, &second}) {
    girih::jit::estimate_blocks(args_of(c, q.tensor, k.tensor, layout, *mask));
  }
  girih::verify::synchronize();
  ++kernels_bound;
  const std::vector<std::uint8_t> mask = download(first);
  const std::string name = fmt::format(
      "{} x {}, batch {}, heads {}:{}, head_dim {}, {}, {}, blocks {} x {}, stride {}{}, top_k {}, "
      "threshold {}",
      c.seqlen_q, c.seqlen_k, c.batch, c.heads, c.heads_kv, c.head_dim, girih::to_string(dtype),
      girih::to_string(layout), c.estimate.q_block, c.estimate.kv_block, c.estimate.stride,
      c.estimate.causal ? ", causal" : "", c.top_k, c.threshold);
  CAPTURE(name);
  CHECK(mask == download(second));
  const int planes = c.batch * c.heads;
  for (int i = 0; i < planes_checked; ++i) {
    const int plane = planes_checked == 1 ? planes - 1 : i * (planes - 1) / (planes_checked - 1);
    const int b = plane / c.heads, h = plane % c.heads;
    check_head(c, mask, plane, q.head(b, h, 0), k.head(b, h / (c.heads / c.heads_kv), 0),
               blocks_checked);
  }
}

}  // namespace

TEST_CASE("estimates of blocks by means take the largest of every row") {
  const BlockCase cases[] = {
      {1, 4096, 4096, 4, 1, 128, {64, 64, 0, true}, 10, 0},
      {2, 1023, 1024, 4, 2, 64, {64, 64, 0, true}, 3, 0, true},
      {1, 3000, 5175, 3, 3, 96, {128, 64, 0, true}, 0, 0.7f},
      {2, 2048, 1111, 2, 1, 256, {64, 128, 0, false}, 4, 0},
      {1, 2500, 900, 2, 2, 16, {64, 64, 0, true}, 0, 0.9f, true},
      {1, 700, 20000, 8, 2, 80, {128, 128, 0, false}, 0, 1.0f},
      {3, 1, 70, 2, 2, 192, {64, 64, 0, true}, 1, 0},
  };
  std::uint64_t turn = 0;
  for (const BlockCase& c : cases) {
    for (const Layout layout : {Layout::bshd, Layout::bhsd}) {
      const DType dtype = turn++ % 4 < 2 ? DType::bfloat16 : DType::float16;
      check_blocks(turn, c, dtype, layout, std::min(c.batch * c.heads, 3), 5);
    }
  }
}

TEST_CASE("estimates of blocks by antidiagonals take what reaches the threshold") {
  const BlockCase cases[] = {
      {1, 4096, 4096, 4, 1, 128, {128, 128, 16, true}, 0, 0.9f, true},
      {1, 4096, 4096, 2, 2, 128, {128, 128, 8, true}, 0, 0.9f},
      {2, 1023, 1024, 4, 2, 64, {64, 64, 8, true}, 0, 0.5f},
      {1, 3000, 5175, 3, 3, 96, {128, 64, 4, true}, 5, 0, true},
      {2, 2048, 1111, 2, 1, 256, {64, 128, 16, false}, 0, 0.8f},
      {1, 2500, 900, 2, 2, 16, {64, 64, 4, true}, 0, 0.95f},
      {1, 700, 9000, 4, 2, 80, {64, 64, 16, false}, 7, 0},
      {3, 1, 70, 2, 2, 192, {64, 64, 8, true}, 0, 0.3f},
      {1, 2000, 2000, 1, 1, 64, {128, 128, 16, true}, 0, 1.0f},
  };
  std::uint64_t turn = 0;
  for (const BlockCase& c : cases) {
    for (const Layout layout : {Layout::bshd, Layout::bhsd}) {
      const DType dtype = turn++ % 4 < 2 ? DType::bfloat16 : DType::float16;
      check_blocks(100 + turn, c, dtype, layout, std::min(c.batch * c.heads, 3), 5);
    }
  }
}

TEST_CASE("sanitizer: estimates of blocks stay within their tensors") {
  check_blocks(1, {2, 300, 410, 4, 2, 64, {64, 64, 0, true}, 2, 0}, DType::bfloat16, Layout::bshd,
               2, 2);
  check_blocks(2, {1, 410, 300, 2, 2, 80, {128, 64, 8, true}, 0, 0.8f, true}, DType::float16,
               Layout::bhsd, 2, 2);
  check_blocks(3, {1, 77, 301, 2, 1, 16, {64, 128, 16, false}, 0, 1.0f}, DType::bfloat16,
               Layout::bshd, 2, 2);
}

TEST_CASE("estimates of rows of more blocks than shared memory holds") {
  check_blocks(11, {1, 200, 450000, 1, 1, 16, {64, 64, 0, true}, 0, 0.5f}, DType::bfloat16,
               Layout::bshd, 1, 2);
  check_blocks(12, {1, 200, 450000, 1, 1, 16, {128, 64, 16, false}, 50, 0}, DType::float16,
               Layout::bshd, 1, 2);
}

// Heads of 32 MiB each, in layout bhsd, that begin at different places of one head's numbers.
TEST_CASE("estimates of blocks of 32 heads at 131072") {
  constexpr int kSeqlen = 1 << 17, kWidth = 128, kHeads = 32, kHeadsKv = 8;
  constexpr std::size_t kElements = std::size_t{kSeqlen} * kWidth;
  std::mt19937_64 random(7);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  std::vector<std::uint16_t> numbers;
  for (std::size_t i = 0; i < 2 * kElements; ++i) {
    numbers.push_back(i < kElements ? girih::verify::narrow(DType::bfloat16, normal(random))
                                    : numbers[i - kElements]);
  }
  const auto first_of = [](int head, int others) {
    return std::size_t{kWidth} * static_cast<std::size_t>(others + 997 * head);
  };
  const auto tensor_of = [&](Buffer& buffer, int heads, int others) {
    for (int head = 0; head < heads; ++head) {
      buffer.upload(numbers.data() + first_of(head, others), 2 * kElements,
                    2 * kElements * static_cast<std::size_t>(head));
    }
    return Tensor::contiguous(buffer.data(), DType::bfloat16, {1, heads, kSeqlen, kWidth});
  };
  Buffer of_q(2 * kElements * kHeads), of_k(2 * kElements * kHeadsKv);
  const Tensor q = tensor_of(of_q, kHeads, 0), k = tensor_of(of_k, kHeadsKv, 60000);
  const auto matrix_of = [&](int head, int others) {
    oracle::Matrix rows;
    for (int row = 0; row < kSeqlen; ++row) {
      rows.emplace_back();
      for (int d = 0; d < kWidth; ++d) {
        rows.back().push_back(girih::verify::widen(
            DType::bfloat16,
            numbers[first_of(head, others) + static_cast<std::size_t>(row) * kWidth + d]));
      }
    }
    return rows;
  };
  const oracle::Matrix head_of_q = matrix_of(kHeads - 1, 0);
  const oracle::Matrix head_of_k = matrix_of(kHeadsKv - 1, 60000);

  const BlockCase cases[] = {
      {1, kSeqlen, kSeqlen, kHeads, kHeadsKv, kWidth, {64, 64, 0, true}, 100, 0},
      {1, kSeqlen, kSeqlen, kHeads, kHeadsKv, kWidth, {128, 128, 0, true}, 100, 0},
      {1, kSeqlen, kSeqlen, kHeads, kHeadsKv, kWidth, {128, 128, 16, true}, 0, 0.9f, true},
      {1, kSeqlen, kSeqlen, kHeads, kHeadsKv, kWidth, {128, 128, 8, true}, 0, 0.9f, true},
  };
  for (const BlockCase& c : cases) {
    const Buffer mask(mask_bytes(c));
    const EstimateBlocksArgs args = args_of(c, q, k, Layout::bhsd, mask);
    const std::vector<double> milliseconds = girih::verify::time_launches(
        {.warmups = 1, .repeats = 5}, [&] { girih::jit::estimate_blocks(args); });
    MESSAGE(fmt::format("{} of blocks of {}: {:.3f} ms",
                        c.estimate.stride == 0
                            ? std::string("means")
                            : fmt::format("antidiagonals of {}", c.estimate.stride),
                        c.estimate.q_block, girih::verify::median(milliseconds)));
    check_head(c, download(mask), kHeads - 1, head_of_q, head_of_k, 3);
    ++kernels_bound;
  }
}

TEST_CASE("girih's own estimate of blocks is what a pattern takes") {
  std::mt19937_64 random(4);
  const BlockCase c{1, 1500, 1500, 4, 4, 64, {128, 64, 8, true}, 0, 0.6f};
  const Operand q(random, {1, c.seqlen_q, c.heads, 64}, Layout::bshd, DType::bfloat16, 2.0f);
  const Buffer mask(mask_bytes(c));
  girih::jit::estimate_blocks(args_of(c, q.tensor, q.tensor, Layout::bshd, mask));
  const auto kernel = girih::jit::compile(
      girih::Pattern::parse("causal & blocks(m, q=128, kv=64)"),
      {.dtype = DType::bfloat16, .head_dim = 64, .num_heads = c.heads, .num_heads_kv = c.heads});
  const Buffer out(static_cast<std::size_t>(c.seqlen_q) * c.heads * 64 * 2);
  const Buffer lse(static_cast<std::size_t>(c.seqlen_q) * c.heads * 4);
  girih::jit::Args args;
  args.q = args.k = args.v = q.tensor;
  args.out = Tensor::contiguous(out.data(), DType::bfloat16, {1, c.seqlen_q, c.heads, 64});
  args.lse = static_cast<float*>(lse.data());
  args.inputs = {{"m", girih::BlockMask{.data = static_cast<const std::uint8_t*>(mask.data()),
                                        .heads = c.heads,
                                        .num_q_blocks = 12,
                                        .num_kv_blocks = 24}}};
  const Buffer memory(kernel.workspace_bytes(args));
  kernel.build_lists(args, {memory.data(), memory.size()}, girih::jit::Check::yes);
  kernel.launch(args, {memory.data(), memory.size()});
  girih::verify::synchronize();
  ++kernels_bound;

  // Every row sees itself, and no more than all before it.
  std::vector<float> sums(lse.size() / 4);
  lse.download(sums.data(), lse.size());
  const oracle::Matrix rows = q.head(0, 3, 0);
  for (int row = 0; row < c.seqlen_q; ++row) {
    double own = 0, all = 0;
    for (int key = 0; key <= row; ++key) {
      double score = 0;
      for (int d = 0; d < 64; ++d) score += double{rows[row][d]} * double{rows[key][d]};
      all += std::exp(score / 8);
      if (key == row) own = score / 8;
    }
    const float found = sums[static_cast<std::size_t>(3 * c.seqlen_q + row)];
    CHECK(found >= own - 0.01);
    CHECK(found <= std::log(all) + 0.01);
    ++rows_checked;
  }
}
