// Estimates of blocks: what becomes of their arguments, and the kernels without a GPU.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "estimate_kernels.hpp"
#include "girih/error.hpp"
#include "girih/estimate.hpp"
#include "runtime/estimate_blocks.hpp"

using namespace girih;
using namespace girih::tests;
using jit::EstimateBlocksArgs;
using runtime::estimate_blocks_plan;
using runtime::EstimateBlocksPlan;

namespace {

void* at(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

EstimateBlocksArgs good_args() {
  EstimateBlocksArgs args;
  args.q = Tensor::contiguous(at(0x1000), DType::bfloat16, {2, 3000, 8, 128});
  args.k = Tensor::contiguous(at(0x2000), DType::bfloat16, {2, 70000, 2, 128});
  args.top_k = 100;
  args.mask = static_cast<std::uint8_t*>(at(0x3001));  // bytes have any address
  return args;
}

std::string refusal(const EstimateBlocksArgs& args) {
  try {
    estimate_blocks_plan(args, 132);
  } catch (const Error& error) {
    return error.what();
  }
  return "(accepted)";
}

}  // namespace

TEST_CASE("estimate of blocks: means are pooled first, and multiplied as tokens") {
  const EstimateBlocksPlan plan = estimate_blocks_plan(good_args(), 132);
  CHECK(plan.means);
  const EstimateBlocksParams& p = plan.estimate;
  CHECK(p.num_q_blocks == 47);
  CHECK(p.num_kv_blocks == 1094);
  CHECK(p.num_rows == 47);
  CHECK(p.num_columns == 1094);
  CHECK(p.tokens == kMeanTokens);
  CHECK(p.q.num_tokens == kMeanTokens * 47);
  CHECK(p.k.strides.head == 1094 * kMeanTokens * 128);
  CHECK(p.k.strides.batch == 2 * p.k.strides.head);
  CHECK(p.group_size == 4);
  CHECK(p.rows_per_block() == 1);
  CHECK(p.columns_per_block() == 1);
  CHECK(p.scale_log2 == doctest::Approx(1.4426950408889634 / std::sqrt(128.0)));
  CHECK(plan.pool.k.strides.row == 2 * 128);
  CHECK(plan.q_means_bytes == 16u * 47 * 3 * 128 * 2);
  CHECK(plan.k_means_bytes == 4u * 1094 * 3 * 128 * 2);
  CHECK(plan.num_ctas == 16);
  CHECK(plan.values_bytes == 16u * 128 * 1094 * 4);
}

TEST_CASE("estimate of blocks: with a stride, rows are tokens side by side") {
  EstimateBlocksArgs args = good_args();
  args.stride = 16;
  args.top_k.reset();
  args.threshold = 0.9f;
  args.kv_block = 128;
  const EstimateBlocksPlan plan = estimate_blocks_plan(args, 20);
  CHECK_FALSE(plan.means);
  const EstimateBlocksParams& p = plan.estimate;
  CHECK(p.num_rows == 188);
  CHECK(p.num_columns == 4375);
  CHECK(p.num_kv_blocks == 547);
  CHECK(p.q.num_tokens == 3000);
  CHECK(p.rows_per_block() == 4);
  CHECK(p.columns_per_block() == 8);
  CHECK(p.reversed);
  CHECK(p.top_k == 0);
  CHECK(p.threshold == 0.9f);
  CHECK(p.scale_log2 == doctest::Approx(1.4426950408889634 / std::sqrt(128.0) / 16));
  CHECK(plan.num_ctas == 20);
  CHECK(plan.q_means_bytes + plan.k_means_bytes == 0);
  // Of 3000 queries that stand at the last of 70000 keys.
  CHECK(p.visible_columns(0) == 67015 / 16 + 1);
  CHECK(p.visible_columns(187) == 4375);
  CHECK(p.visible_columns(188) == 0);
  CHECK(p.visible_blocks(0) == 67063 / 128 + 1);
  CHECK(p.visible_blocks(46) == 547);
  CHECK(p.diagonal(1) == 67064 / 128);

  args.threshold = 1.0f;  // all that are visible, whatever rounding makes of their sum
  CHECK(estimate_blocks_plan(args, 20).estimate.top_k == std::numeric_limits<int>::max());
  args.k.shape[1] = 1000;  // rows from 2000 on see something
  const EstimateBlocksParams late = estimate_blocks_plan(args, 20).estimate;
  CHECK(late.visible_blocks(30) == 0);
  CHECK(late.visible_blocks(31) == 1);
  args.causal = false;
  CHECK(estimate_blocks_plan(args, 20).estimate.visible_blocks(30) == 8);
  args.q.shape[1] = 0;
  CHECK(estimate_blocks_plan(args, 20).num_ctas == 0);
}

TEST_CASE("estimate of blocks: shared memory holds two stages or more on every GPU") {
  CHECK(runtime::estimate_blocks_stages(plan::Arch::parse("sm_80")) == 3);
  CHECK(runtime::estimate_blocks_stages(plan::Arch::parse("sm_89")) == 2);
  CHECK(runtime::estimate_blocks_stages(plan::Arch::parse("sm_90a")) == 4);
  CHECK(runtime::estimate_blocks_stages(plan::Arch::parse("sm_120")) == 2);
}

TEST_CASE("estimate of blocks: arguments that cannot be right are refused, and say what to do") {
  struct Fault {
    const char* name;
    std::function<void(EstimateBlocksArgs&)> spoil;
    std::string mentions;
  };
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const auto threshold = [](float value) {
    return [value](EstimateBlocksArgs& a) {
      a.top_k.reset();
      a.threshold = value;
    };
  };
  const std::vector<Fault> bad = {
      {"packed", [](EstimateBlocksArgs& a) { a.layout = Layout::thd; }, "take bshd or bhsd"},
      {"a width of 100", [](EstimateBlocksArgs& a) { a.q.shape[3] = 100; }, "pad to 112"},
      {"q in float32", [](EstimateBlocksArgs& a) { a.q.dtype = DType::float32; }, "q is fp32"},
      {"k of another type", [](EstimateBlocksArgs& a) { a.k.dtype = DType::float16; },
       "k is fp16, but q is bf16"},
      {"heads that are no groups", [](EstimateBlocksArgs& a) { a.q.shape[2] = 7; },
       "num_heads 7 is not a multiple of num_heads_kv 2"},
      {"blocks of 32", [](EstimateBlocksArgs& a) { a.q_block = 32; },
       "q_block is 32: it must be 64 or 128"},
      {"blocks of 256", [](EstimateBlocksArgs& a) { a.kv_block = 256; },
       "kv_block is 256: it must be 64 or 128"},
      {"a stride of 32", [](EstimateBlocksArgs& a) { a.stride = 32; },
       "stride is 32: it must be 4, 8 or 16"},
      {"no choice", [](EstimateBlocksArgs& a) { a.top_k.reset(); },
       "neither top_k nor threshold is given"},
      {"two choices", [](EstimateBlocksArgs& a) { a.threshold = 0.5f; },
       "both top_k and threshold are given"},
      {"no block", [](EstimateBlocksArgs& a) { a.top_k = 0; }, "top_k is 0: it must be 1 or more"},
      {"no share", threshold(0.0f), "threshold is 0: it must be above 0 and at most 1"},
      {"more than all", threshold(1.01f), "threshold is 1.01"},
      {"no number", threshold(kNan), "threshold is nan"},
      {"a scale that is no number", [](EstimateBlocksArgs& a) { a.softmax_scale = kNan; },
       "softmax_scale nan must be finite"},
      {"mask is null", [](EstimateBlocksArgs& a) { a.mask = nullptr; }, "mask is null"},
      {"k is misaligned", [](EstimateBlocksArgs& a) { a.k.data = at(0x2008); },
       "aligned to 16 bytes"},
      {"too many blocks", [](EstimateBlocksArgs& a) { a.q.shape[0] = a.k.shape[0] = 1 << 18; },
       "split the batch"},
  };
  CHECK(refusal(good_args()) == "(accepted)");
  for (const Fault& fault : bad) {
    CAPTURE(fault.name);
    EstimateBlocksArgs args = good_args();
    fault.spoil(args);
    const std::string message = refusal(args);
    CAPTURE(message);
    CHECK(message.find(fault.mentions) != std::string::npos);
  }
  EstimateBlocksArgs nothing = good_args();
  nothing.k.shape[1] = 0;
  nothing.mask = nullptr;
  CHECK(refusal(nothing) == "(accepted)");
}

TEST_CASE("estimate of blocks: kernels for each type and width, without spills or stack") {
  check_estimate_kernels([](const auto&... of) { return jit::build_estimate_blocks(of...); },
                         "estimate_blocks", {16, 80, 128, 256}, 80);
}
