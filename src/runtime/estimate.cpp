#include "runtime/estimate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "runtime/softmax_scale.hpp"
#include "runtime/tensors.hpp"

namespace girih::runtime {
namespace {

constexpr int kForcedKeys = 30;
constexpr int kForcedDistances = 100;
constexpr int kLeastKeysPerPart = 512;  // two more tiles are computed for each part
constexpr int kMostSharedBytes = 99 << 10;

void check_list(const char* name, int number, const std::int32_t* list) {
  if (number < 0 || number > kMaxNumber) {
    refuse(fmt::format("num_{} is {}: it must be from 0 to {}", name, number, kMaxNumber));
  }
  if (number > 0 && list == nullptr) refuse(fmt::format("{} is null", name));
  check_aligned_to_4(name, list);
}

// What the selection is to know of a list.
void set_list(SelectParams& select, int index, const char* name, int width,
              const std::vector<int>& heads, std::int32_t* out, int forced) {
  check_list(name, width, out);
  select.lists[index] = {out, width, forced, !heads.empty()};
  if (heads.empty()) return;
  if (select.num_heads > SelectParams::kMostHeads) {
    throw Error(Errc::unsupported,
                fmt::format("head_{} is for {} heads: at most {} may have numbers of their own; "
                            "take a part of the heads at a time",
                            name, select.num_heads, +SelectParams::kMostHeads));
  }
  if (static_cast<int>(heads.size()) != select.num_heads) {
    refuse(fmt::format("head_{} has {} numbers: it must have num_heads ({}) of them, or none", name,
                       heads.size(), select.num_heads));
  }
  for (int head = 0; head < select.num_heads; ++head) {
    const int number = heads[static_cast<std::size_t>(head)];
    if (number < 0 || number > width) {
      refuse(fmt::format("head_{}[{}] is {}: it must be from 0 to num_{} ({})", name, head, number,
                         name, width));
    }
    select.head_numbers[index][head] = number;
  }
}

}  // namespace

void check_width(DType dtype, int head_dim) {
  if (dtype != DType::float16 && dtype != DType::bfloat16) {
    refuse(fmt::format("q is {}: it must be float16 or bfloat16", to_string(dtype)));
  }
  if (head_dim < 16 || head_dim > 256 || head_dim % 16 != 0) {
    throw Error(Errc::unsupported,
                fmt::format("head_dim {} is not supported by estimates: multiples of 16 from 16 to "
                            "256 are; pad to {}",
                            head_dim, std::clamp(round_up(std::max(head_dim, 1), 16), 16, 256)));
  }
}

int most_estimate_heads(int head_dim) {
  for (const int heads : {4, 2}) {
    if (estimate_shared_bytes(head_dim, heads) <= kMostSharedBytes) return heads;
  }
  return 1;
}

EstimateOperands check_operands(const Tensor& of_q, const Tensor& of_k, Layout layout,
                                std::optional<float> softmax_scale) {
  if (layout == Layout::thd) {
    throw Error(Errc::unsupported,
                "estimates are not supported for layout thd: take bshd or bhsd, a sequence or "
                "batch at a time");
  }
  const Dims dims = dims_of(layout);
  const Shape& q = of_q.shape;
  const Shape& k = of_k.shape;
  const std::int64_t batch = q[dims.batch], heads = q[dims.head], heads_kv = k[dims.head];
  check_range("the batch", batch, 0);
  check_range("seqlen_q", q[dims.row], 0);
  check_range("seqlen_k", k[dims.row], 0);
  check_range("num_heads", heads, 1);
  check_range("num_heads_kv", heads_kv, 1);
  check_range("head_dim", q[kDim], 1);
  check_width(of_q.dtype, static_cast<int>(q[kDim]));
  if (of_k.dtype != of_q.dtype) {
    refuse(fmt::format("k is {}, but q is {}", to_string(of_k.dtype), to_string(of_q.dtype)));
  }
  if (heads % heads_kv != 0) {
    refuse(fmt::format("num_heads {} is not a multiple of num_heads_kv {}", heads, heads_kv));
  }
  check_tensor("q", of_q, dims, q, false);
  check_tensor("k", of_k, dims, shape_of(dims, batch, k[dims.row], heads_kv, q[kDim]), false);
  if (heads > kMaxNumber / std::max<std::int64_t>(batch, 1)) {
    refuse(fmt::format("{} sequences x {} heads are more than {}: split the batch", batch, heads,
                       kMaxNumber));
  }
  return {.dtype = of_q.dtype,
          .head_dim = static_cast<int>(q[kDim]),
          .batch = static_cast<int>(batch),
          .heads = static_cast<int>(heads),
          .heads_kv = static_cast<int>(heads_kv),
          .seqlen_q = static_cast<int>(q[dims.row]),
          .seqlen_k = static_cast<int>(k[dims.row]),
          .q_strides = strides_of(of_q, dims),
          .k_strides = strides_of(of_k, dims),
          .softmax_scale_log2 = softmax_scale_log2_of(softmax_scale, static_cast<int>(q[kDim]))};
}

EstimatePlan estimate_plan(const jit::EstimateArgs& args, int num_sms) {
  const EstimateOperands of = check_operands(args.q, args.k, args.layout, args.softmax_scale);
  EstimatePlan plan{};
  plan.select.num_heads = of.heads;
  set_list(plan.select, 0, "vertical", args.num_vertical, args.head_vertical, args.vertical,
           kForcedKeys);
  set_list(plan.select, 1, "slash", args.num_slash, args.head_slash, args.slash, kForcedDistances);
  plan.dtype = of.dtype;
  plan.head_dim = of.head_dim;
  EstimateParams& p = plan.estimate;
  p.q = args.q.data;
  p.k = args.k.data;
  p.q_strides = of.q_strides;
  p.k_strides = of.k_strides;
  p.seqlen_q = of.seqlen_q;
  p.seqlen_k = of.seqlen_k;
  p.num_planes = of.batch * of.heads;
  p.num_heads = of.heads;
  p.group_size = of.heads / of.heads_kv;
  p.softmax_scale_log2 = of.softmax_scale_log2;
  p.heads_per_cta = most_estimate_heads(plan.head_dim);
  while (p.group_size % p.heads_per_cta != 0) p.heads_per_cta /= 2;
  // A CTA for every multiprocessor, if there are keys enough.
  const int groups = std::max(p.num_planes / p.heads_per_cta, 1);
  const int parts = std::max(num_sms / groups, 1) * p.parts_per_cta();
  p.keys_per_part =
      std::max(round_up(ceil_div(p.seqlen_k, parts), kEstimateTileKeys), kLeastKeysPerPart);
  p.num_parts = ceil_div(p.seqlen_k, p.keys_per_part);
  p.sums_stride = round_up(p.seqlen_k, 4);
  plan.shared_bytes = estimate_shared_bytes(plan.head_dim, p.heads_per_cta);
  plan.parts_bytes = sizeof(SoftmaxPart) * static_cast<std::size_t>(p.num_planes) *
                     static_cast<std::size_t>(p.num_parts) * kEstimateRows;
  plan.sums_bytes = sizeof(float) * static_cast<std::size_t>(p.num_planes) * SelectParams::kLists *
                    static_cast<std::size_t>(p.sums_stride);
  plan.select.num_planes = p.num_planes;
  plan.select.count = p.seqlen_k;
  plan.select.stride = p.sums_stride;
  return plan;
}

const EstimateKernels* BoundEstimates::find(DType dtype, int head_dim) {
  const std::shared_lock lock(mutex_);
  const auto found = kernels_.find({current_context_id(), dtype, head_dim});
  return found == kernels_.end() ? nullptr : &found->second;
}

void BoundEstimates::bind(DType dtype, int head_dim, const jit::Options& options) {
  const Device device = current_device();
  const Settings settings = resolve(options);
  const Source source = kind_.source(device.arch, dtype, head_dim, settings);
  EstimateKernels kernels{
      .loaded = loaded_slot(source.key), .arch = device.arch, .num_sms = device.id.num_sms};
  {
    Loaded& loaded = *kernels.loaded;
    const std::lock_guard lock(loaded.mutex);
    load(loaded, source, settings);
    prepare(loaded, device, source.shared_bytes);
    kernels.main = loaded.module->function();
    kernels.other = loaded.module->load(kind_.other);
  }
  const std::unique_lock lock(mutex_);
  kernels_.try_emplace({device.context_id, dtype, head_dim}, std::move(kernels));
}

const EstimateKernels& BoundEstimates::find_or_bind(DType dtype, int head_dim, CUstream stream) {
  if (const EstimateKernels* kernels = find(dtype, head_dim)) return *kernels;
  refuse_while_capturing(
      stream,
      fmt::format("{} for this type and width are not bound in this context yet, and binding",
                  kind_.what),
      fmt::format("call {}", kind_.binder));
  bind(dtype, head_dim, {});
  return *find(dtype, head_dim);
}

void launch_estimate(CUfunction function, int num_ctas, int threads, int shared_bytes,
                     CUstream stream, void* params) {
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(num_ctas);
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = static_cast<unsigned>(threads);
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(shared_bytes);
  config.hStream = stream;
  void* parameters[] = {params};
  cuda::check(cuda::driver().cuLaunchKernelEx(&config, function, parameters, nullptr),
              "launching an estimate");
}

void with_scratch(std::size_t bytes, CUstream stream,
                  const std::function<void(CUdeviceptr)>& launch) {
  const cuda::Api& api = cuda::driver();
  CUdeviceptr memory = 0;
  if (bytes > 0) {
    cuda::check(api.cuMemAllocAsync(&memory, bytes, stream),
                fmt::format("taking {} bytes for an estimate from the memory pool", bytes));
  }
  const auto give_back = [&] {
    return bytes == 0 ? CUDA_SUCCESS : api.cuMemFreeAsync(memory, stream);
  };
  try {
    launch(memory);
  } catch (...) {
    give_back();
    throw;
  }
  cuda::check(give_back(), "giving an estimate's memory back to the pool");
}

}  // namespace girih::runtime

namespace girih::jit {
namespace {

using runtime::EstimateKernels;
using runtime::EstimatePlan;
using runtime::launch_estimate;
using runtime::Source;

int most_shared_bytes(int head_dim) {
  return estimate_shared_bytes(head_dim, runtime::most_estimate_heads(head_dim));
}

Source estimate_source(const plan::Arch& arch, DType dtype, int head_dim,
                       const runtime::Settings& settings) {
  runtime::check_width(dtype, head_dim);
  return runtime::make_source({.arch = arch.plain().name(),
                               .text = codegen::emit_estimate(arch.plain(), dtype, head_dim),
                               .symbol = codegen::kEstimateSymbol,
                               .pattern = "estimate of columns and slashes",
                               .warmed_by = "`girih warm --estimate`",
                               .shared_bytes = most_shared_bytes(head_dim),
                               .threads = kEstimateThreads},
                              settings);
}

runtime::BoundEstimates& bound_estimates() {
  // Outlives the driver.
  static auto* bound = new runtime::BoundEstimates({.what = "estimates",
                                                    .binder = "bind_estimate",
                                                    .source = estimate_source,
                                                    .other = codegen::kSelectSymbol});
  return *bound;
}

void launch_all(const EstimateKernels& bound, EstimatePlan& plan, CUstream stream) {
  if (plan.estimate.seqlen_k > 0) {
    for (const auto phase : {EstimateParams::Phase::rows, EstimateParams::Phase::sums}) {
      plan.estimate.phase = phase;
      launch_estimate(bound.main, plan.estimate.num_ctas(), kEstimateThreads, plan.shared_bytes,
                      stream, &plan.estimate);
    }
  }
  constexpr int kMostCtas = 1 << 16;
  launch_estimate(bound.other, std::min(SelectParams::kLists * plan.select.num_planes, kMostCtas),
                  kSelectThreads, 0, stream, &plan.select);
}

}  // namespace

void bind_estimate(DType dtype, int head_dim, const Options& options) {
  bound_estimates().bind(dtype, head_dim, options);
}

std::size_t estimate_workspace_bytes(const EstimateArgs& args) {
  const EstimatePlan plan = runtime::estimate_plan(args, 1);  // refuses what it must
  if (plan.estimate.num_planes == 0) return 0;
  const EstimateKernels* bound = bound_estimates().find(plan.dtype, plan.head_dim);
  const int num_sms = bound != nullptr ? bound->num_sms : runtime::current_device().id.num_sms;
  return runtime::estimate_plan(args, num_sms).workspace_bytes();
}

void estimate_slashes(const EstimateArgs& args) {
  EstimatePlan plan = runtime::estimate_plan(args, 1);  // refuses what it must before binding
  if (plan.estimate.num_planes == 0) return;
  const EstimateKernels& bound =
      bound_estimates().find_or_bind(plan.dtype, plan.head_dim, args.stream);
  plan = runtime::estimate_plan(args, bound.num_sms);

  const std::size_t bytes = plan.workspace_bytes();
  const auto launch = [&](CUdeviceptr memory) {
    plan.select.values = plan.estimate.sums = reinterpret_cast<float*>(memory);
    plan.estimate.parts = reinterpret_cast<SoftmaxPart*>(memory + plan.sums_bytes);
    launch_all(bound, plan, args.stream);
  };
  if (args.workspace.data == nullptr && args.workspace.bytes == 0) {
    runtime::with_scratch(bytes, args.stream, launch);
    return;
  }
  runtime::check_workspace(args.workspace.data, args.workspace.bytes, bytes,
                           "estimate_workspace_bytes");
  launch(reinterpret_cast<CUdeviceptr>(args.workspace.data));
}

Artifact build_estimate(DType dtype, int head_dim, const std::string& arch, const Options& options,
                        Emit emit) {
  const runtime::Settings settings = runtime::resolve(options);
  const Source source = estimate_source(plan::Arch::parse(arch), dtype, head_dim, settings);
  return runtime::make_artifact(source, settings, emit, "estimate");
}

}  // namespace girih::jit
