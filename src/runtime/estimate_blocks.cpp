#include "runtime/estimate_blocks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "runtime/cubin.hpp"
#include "runtime/estimate.hpp"
#include "runtime/tensors.hpp"

namespace girih::runtime {
namespace {

constexpr int kMostStages = 4;

void check_block(const char* name, int tokens) {
  if (tokens != 64 && tokens != 128) {
    refuse(fmt::format("{} is {}: it must be 64 or 128", name, tokens));
  }
}

void check_choice(const jit::EstimateBlocksArgs& args) {
  if (args.top_k.has_value() == args.threshold.has_value()) {
    refuse(args.top_k.has_value() ? "both top_k and threshold are given: give one of them"
                                  : "neither top_k nor threshold is given: give one of them");
  }
  if (args.top_k && *args.top_k < 1) {
    refuse(fmt::format("top_k is {}: it must be 1 or more", *args.top_k));
  }
  if (args.threshold && !(*args.threshold > 0.0f && *args.threshold <= 1.0f)) {
    refuse(fmt::format("threshold is {}: it must be above 0 and at most 1", *args.threshold));
  }
}

// Means of blocks, as pool_blocks.cuh writes them.
Strides means_strides(int heads, int num_blocks, int head_dim) {
  const std::int64_t head = std::int64_t{num_blocks} * kMeanTokens * head_dim;
  return {heads * head, head_dim, head};
}

std::size_t means_bytes(int planes, int num_blocks, int head_dim) {
  return sizeof(std::uint16_t) * static_cast<std::size_t>(planes) *
         static_cast<std::size_t>(num_blocks) * kMeanTokens * static_cast<std::size_t>(head_dim);
}

}  // namespace

EstimateBlocksPlan estimate_blocks_plan(const jit::EstimateBlocksArgs& args, int num_sms) {
  const EstimateOperands of = check_operands(args.q, args.k, args.layout, args.softmax_scale);
  check_block("q_block", args.q_block);
  check_block("kv_block", args.kv_block);
  if (args.stride && *args.stride != 4 && *args.stride != 8 && *args.stride != 16) {
    refuse(fmt::format("stride is {}: it must be 4, 8 or 16; without one, blocks' means are taken",
                       *args.stride));
  }
  check_choice(args);

  EstimateBlocksPlan plan{};
  plan.dtype = of.dtype;
  plan.head_dim = of.head_dim;
  plan.means = !args.stride;
  EstimateBlocksParams& p = plan.estimate;
  p.num_planes = of.batch * of.heads;
  p.num_heads = of.heads;
  p.group_size = of.heads / of.heads_kv;
  p.seqlen_q = of.seqlen_q;
  p.seqlen_k = of.seqlen_k;
  p.q_block = args.q_block;
  p.kv_block = args.kv_block;
  p.num_q_blocks = ceil_div(of.seqlen_q, args.q_block);
  p.num_kv_blocks = ceil_div(of.seqlen_k, args.kv_block);
  p.causal = args.causal;
  p.keep_first = args.keep_sink;
  p.mask = args.mask;
  const std::int64_t blocks = std::int64_t{p.num_planes} * p.num_q_blocks +
                              std::int64_t{of.batch} * of.heads_kv * p.num_kv_blocks;
  if (blocks > kMaxNumber) {
    refuse(
        fmt::format("q and k have {} blocks in all heads of {} sequences, more than {}: split "
                    "the batch",
                    blocks, of.batch, kMaxNumber));
  }
  if (p.num_planes > 0 && p.num_q_blocks > 0 && p.num_kv_blocks > 0 && args.mask == nullptr) {
    refuse("mask is null");
  }

  // All that are visible are more than any sum of rounded numbers can tell.
  const bool all = args.threshold && *args.threshold == 1.0f;
  p.top_k = all ? std::numeric_limits<int>::max() : args.top_k.value_or(0);
  p.threshold = args.threshold.value_or(0.0f);

  if (plan.means) {
    p.q = {nullptr, means_strides(of.heads, p.num_q_blocks, of.head_dim),
           kMeanTokens * p.num_q_blocks};
    p.k = {nullptr, means_strides(of.heads_kv, p.num_kv_blocks, of.head_dim),
           kMeanTokens * p.num_kv_blocks};
    p.tokens = kMeanTokens;
    p.row_tokens = args.q_block;
    p.column_tokens = args.kv_block;
    p.scale_log2 = of.softmax_scale_log2;
    plan.pool.batch = of.batch;
    plan.pool.q = {args.q.data,  of.q_strides,   of.seqlen_q, of.heads,
                   args.q_block, p.num_q_blocks, nullptr};
    plan.pool.k = {args.k.data,   of.k_strides,    of.seqlen_k, of.heads_kv,
                   args.kv_block, p.num_kv_blocks, nullptr};
    plan.q_means_bytes = means_bytes(p.num_planes, p.num_q_blocks, of.head_dim);
    plan.k_means_bytes = means_bytes(of.batch * of.heads_kv, p.num_kv_blocks, of.head_dim);
  } else {
    p.q = {args.q.data, of.q_strides, of.seqlen_q};
    p.k = {args.k.data, of.k_strides, of.seqlen_k};
    p.tokens = p.row_tokens = p.column_tokens = *args.stride;
    p.reversed = true;
    p.scale_log2 = of.softmax_scale_log2 / static_cast<float>(*args.stride);
  }
  p.num_rows = ceil_div(of.seqlen_q, p.row_tokens);
  p.num_columns = ceil_div(of.seqlen_k, p.column_tokens);
  plan.num_ctas = std::min(num_sms, p.num_works());
  plan.values_bytes = sizeof(float) * static_cast<std::size_t>(plan.num_ctas) *
                      kEstimateBlocksRows * static_cast<std::size_t>(p.num_kv_blocks);
  return plan;
}

int estimate_blocks_stages(const plan::Arch& arch) {
  int stages = kMostStages;
  while (estimate_blocks_shared_bytes(stages) > arch.shared_bytes_per_cta()) --stages;
  return stages;
}

}  // namespace girih::runtime

namespace girih::jit {
namespace {

using runtime::EstimateBlocksPlan;
using runtime::EstimateKernels;
using runtime::launch_estimate;
using runtime::Source;

Source estimate_source(const plan::Arch& arch, DType dtype, int head_dim,
                       const runtime::Settings& settings) {
  runtime::check_width(dtype, head_dim);
  const int stages = runtime::estimate_blocks_stages(arch);
  return runtime::make_source(
      {.arch = arch.plain().name(),
       .text = codegen::emit_estimate_blocks(arch.plain(), dtype, head_dim, stages),
       .symbol = codegen::kEstimateBlocksSymbol,
       .pattern = "estimate of blocks",
       .warmed_by = "`girih warm --estimate`",
       .shared_bytes = estimate_blocks_shared_bytes(stages),
       .threads = kEstimateBlocksThreads},
      settings);
}

runtime::BoundEstimates& bound_estimates() {
  // Outlives the driver.
  static auto* bound = new runtime::BoundEstimates({.what = "estimates of blocks",
                                                    .binder = "bind_estimate_blocks",
                                                    .source = estimate_source,
                                                    .other = codegen::kPoolBlocksSymbol});
  return *bound;
}

void launch_all(const EstimateKernels& bound, EstimateBlocksPlan& plan, CUstream stream) {
  if (plan.means) {
    const PoolBlocksParams& pool = plan.pool;
    launch_estimate(bound.other, pool.num_ctas(pool.q) + pool.num_ctas(pool.k), kPoolThreads, 0,
                    stream, &plan.pool);
  }
  launch_estimate(bound.main, plan.num_ctas, kEstimateBlocksThreads,
                  estimate_blocks_shared_bytes(runtime::estimate_blocks_stages(bound.arch)), stream,
                  &plan.estimate);
}

}  // namespace

void bind_estimate_blocks(DType dtype, int head_dim, const Options& options) {
  bound_estimates().bind(dtype, head_dim, options);
}

void estimate_blocks(const EstimateBlocksArgs& args) {
  EstimateBlocksPlan plan = runtime::estimate_blocks_plan(args, 1);  // refuses before binding
  if (plan.num_ctas == 0 || plan.estimate.num_kv_blocks == 0) return;
  const EstimateKernels& bound =
      bound_estimates().find_or_bind(plan.dtype, plan.head_dim, args.stream);
  plan = runtime::estimate_blocks_plan(args, bound.num_sms);

  const std::size_t bytes = plan.q_means_bytes + plan.k_means_bytes + plan.values_bytes;
  runtime::with_scratch(bytes, args.stream, [&](CUdeviceptr memory) {
    if (plan.means) {  // in front: rows are read 16 bytes at a time
      plan.estimate.q.data = plan.pool.q.means = reinterpret_cast<void*>(memory);
      memory += plan.q_means_bytes;
      plan.estimate.k.data = plan.pool.k.means = reinterpret_cast<void*>(memory);
      memory += plan.k_means_bytes;
    }
    plan.estimate.values = reinterpret_cast<float*>(memory);
    launch_all(bound, plan, args.stream);
  });
}

Artifact build_estimate_blocks(DType dtype, int head_dim, const std::string& arch,
                               const Options& options, Emit emit) {
  const runtime::Settings settings = runtime::resolve(options);
  const Source source = estimate_source(plan::Arch::parse(arch), dtype, head_dim, settings);
  return runtime::make_artifact(source, settings, emit, "estimate_blocks");
}

}  // namespace girih::jit
