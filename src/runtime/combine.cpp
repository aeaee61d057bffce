#include "runtime/combine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <shared_mutex>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "runtime/cubin.hpp"
#include "runtime/tensors.hpp"

namespace girih::runtime {
namespace {

CombineType type_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return CombineType::float16;
    case DType::float32:
      return CombineType::float32;
    case DType::bfloat16:
      break;
  }
  return CombineType::bfloat16;
}

// "parts[3].out", without memory from the heap.
struct PartName {
  char out[24] = {}, lse[24] = {};
  explicit PartName(std::size_t index) {
    fmt::format_to_n(out, sizeof(out) - 1, "parts[{}].out", index);
    fmt::format_to_n(lse, sizeof(lse) - 1, "parts[{}].lse", index);
  }
};

void check_lse(const char* name, const float* lse) {
  if (lse == nullptr) refuse(fmt::format("{} is null: merging needs the lse of every part", name));
  check_aligned_to_4(name, lse);
}

// A part may be overwritten by what it becomes, element by element.
void check_in_place(const char* name, const CombinePart& part, const CombineParams& params) {
  if (part.out != params.out) return;
  const auto same = [](const Strides& a, const Strides& b) {
    return a.batch == b.batch && a.row == b.row && a.head == b.head;
  };
  if (part.type == params.out_type && same(part.strides, params.out_strides)) return;
  refuse(
      fmt::format("{} lies where out does, with other strides or another type: in place they must "
                  "be the same tensor",
                  name));
}

}  // namespace

CombineParams combine_params(const jit::CombineArgs& args) {
  const Dims dims = dims_of(args.layout);
  const std::size_t num_parts = args.parts.size();
  if (num_parts < 1 || num_parts > kMaxCombineParts) {
    refuse(
        fmt::format("{} parts: combine takes 1 to {}; merge more in turns, with what was merged "
                    "before as a part",
                    num_parts, kMaxCombineParts));
  }
  const Shape& shape = args.out.shape;
  const std::int64_t batch = shape[dims.batch], rows = shape[dims.row], heads = shape[dims.head];
  const std::int64_t width = shape[kDim];
  check_range("the batch", batch, 0);
  check_range("seqlen_q", rows, 0);
  check_range("num_heads", heads, 1);
  check_range("head_dim_v", width, 1);
  if (width % kCombineVector != 0) {
    refuse(fmt::format("head_dim_v {} is not a multiple of {}", width, kCombineVector));
  }
  if (args.layout == Layout::thd && batch != 1) {
    refuse(fmt::format("out has a batch of {}: layout thd is {}", batch, dims.text));
  }
  if (!std::isinf(args.empty_lse)) {
    refuse(fmt::format("empty_lse {} must be -infinity or +infinity", args.empty_lse));
  }
  check_tensor("out", args.out, dims, shape, true);
  check_aligned_to_4("lse", args.lse);

  CombineParams params{};
  if (batch > 0 && rows > 0 && heads > kMaxNumber / batch / rows) {
    refuse(fmt::format("{} sequences x {} rows x {} heads are more than {}: split the batch", batch,
                       rows, heads, kMaxNumber));
  }
  params.num_parts = static_cast<int>(num_parts);
  params.out = args.out.data;
  params.lse = args.lse;
  params.out_strides = strides_of(args.out, dims);
  params.out_type = type_of(args.out.dtype);
  params.num_results = static_cast<int>(batch * rows * heads);
  params.seqlen = static_cast<int>(rows);
  params.num_heads = static_cast<int>(heads);
  params.heads_innermost = dims.head > dims.row;
  params.num_vectors = static_cast<int>(width / kCombineVector);
  params.log_lanes_per_row = combine_log_lanes(params.num_vectors);
  params.empty_lse = args.empty_lse;
  for (std::size_t i = 0; i < num_parts; ++i) {
    const jit::Part& part = args.parts[i];
    const PartName name(i);
    check_tensor(name.out, part.out, dims, shape, false);
    if (params.num_results > 0) check_lse(name.lse, part.lse);
    params.parts[i] = {part.out.data, part.lse, strides_of(part.out, dims),
                       type_of(part.out.dtype)};
    check_in_place(name.out, params.parts[i], params);
  }
  return params;
}

}  // namespace girih::runtime

namespace girih::jit {
namespace {

using runtime::Source;

// A context's loaded kernel.
struct Bound {
  std::shared_ptr<runtime::Loaded> loaded;
  CUfunction function = nullptr;
};

struct BoundKernels {
  std::shared_mutex mutex;
  std::map<unsigned long long, Bound> of_context;
};

BoundKernels& bound_kernels() {
  static auto* kernels = new BoundKernels;  // outlives the driver
  return *kernels;
}

CUfunction bound_here() {
  BoundKernels& kernels = bound_kernels();
  const std::shared_lock lock(kernels.mutex);
  const auto found = kernels.of_context.find(runtime::current_context_id());
  return found == kernels.of_context.end() ? nullptr : found->second.function;
}

Source combine_source(const plan::Arch& arch, const runtime::Settings& settings) {
  return runtime::make_source({.arch = arch.plain().name(),
                               .text = codegen::emit_combine(arch.plain()),
                               .symbol = codegen::kCombineSymbol,
                               .pattern = "combine",
                               .warmed_by = "`girih warm --combine`",
                               .shared_bytes = 0,
                               .threads = kCombineThreads},
                              settings);
}

}  // namespace

void bind_combine(const Options& options) {
  const runtime::Device device = runtime::current_device();
  const runtime::Settings settings = runtime::resolve(options);
  const Source source = combine_source(device.arch, settings);
  Bound bound{.loaded = runtime::loaded_slot(source.key)};
  {
    runtime::Loaded& loaded = *bound.loaded;
    const std::lock_guard lock(loaded.mutex);
    runtime::load(loaded, source, settings);
    runtime::prepare(loaded, device, 0);
    bound.function = loaded.module->function();
  }
  BoundKernels& kernels = bound_kernels();
  const std::unique_lock lock(kernels.mutex);
  kernels.of_context[device.context_id] = std::move(bound);
}

void combine(const CombineArgs& args) {
  CombineParams params = runtime::combine_params(args);
  if (params.num_results == 0) return;
  CUfunction function = bound_here();
  if (function == nullptr) {
    runtime::refuse_while_capturing(
        args.stream, "combine is not bound in this context yet, and binding", "call bind_combine");
    bind_combine();
    function = bound_here();
  }
  constexpr int kWarps = kCombineThreads / 32;
  constexpr int kMostCtas = 1 << 16;
  const int rows_per_cta = kWarps * (32 >> params.log_lanes_per_row);
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(
      std::min((params.num_results + rows_per_cta - 1) / rows_per_cta, kMostCtas));
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = kCombineThreads;
  config.blockDimY = config.blockDimZ = 1;
  config.hStream = args.stream;
  void* parameters[] = {&params};
  cuda::check(cuda::driver().cuLaunchKernelEx(&config, function, parameters, nullptr),
              "launching combine");
}

Artifact build_combine(const std::string& arch, const Options& options, Emit emit) {
  const runtime::Settings settings = runtime::resolve(options);
  const Source source = combine_source(plan::Arch::parse(arch), settings);
  return runtime::make_artifact(source, settings, emit, "combine");
}

}  // namespace girih::jit
