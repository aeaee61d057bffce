// The kernel that finds tile maxima: planned from a pattern, bound to problems on first use.
#include <fmt/format.h>

#include <mutex>
#include <optional>
#include <shared_mutex>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "girih/prune.hpp"
#include "pattern/atoms.hpp"
#include "pattern/grid.hpp"
#include "plan/plan.hpp"
#include "runtime/arguments.hpp"
#include "runtime/cubin.hpp"
#include "runtime/kernel.hpp"
#include "runtime/tensors.hpp"

namespace girih::jit {
namespace {

using runtime::Source;

// What prune decides by are scores behind the softcap, before any other modifier: those are left
// out of every class of heads.
Pattern with_softcaps_alone(const Pattern& pattern) {
  std::vector<Pattern::HeadClass> classes = pattern.classes();
  for (Pattern::HeadClass& head_class : classes) {
    head_class.modifiers = {.softcap = head_class.modifiers.softcap};
  }
  if (!pattern.per_head()) return Pattern(classes.front().mask).with(classes.front().modifiers);
  return pattern.head_unit() == Pattern::HeadUnit::kv ? kv_heads(std::move(classes))
                                                      : heads(std::move(classes));
}

void check_kv(int kv) {
  const std::string problem = pattern::prune_problem({.thresholds = "t", .kv = kv});
  if (!problem.empty()) throw Error(Errc::invalid_argument, problem);
}

Source source_of(const Pattern& pattern, const plan::Plan& plan,
                 const runtime::Settings& settings) {
  return runtime::make_source({.arch = plan.spec.arch.name(),
                               .text = codegen::emit(plan.spec),
                               .symbol = codegen::kKernelSymbol,
                               .pattern = "tile maxima of " + pattern.text(),
                               .warmed_by = "`girih calibrate` on a machine that may compile",
                               .shared_bytes = plan.shared_bytes,
                               .threads = plan.threads},
                              settings);
}

// The launch of attention that the kernel takes it for: V and the output are as narrow as they can
// be, and lie where K and Q do; nobody touches them, so that the output is no view of Q, whose
// elements may overlap.
Args attention_args(const TileMaximaArgs& args) {
  constexpr int kWidth = 16;
  Args result;
  result.q = args.q;
  result.k = args.k;
  result.v = args.k;
  result.v.shape[3] = kWidth;
  std::array<std::int64_t, 4> shape = args.q.shape;
  shape[3] = kWidth;
  result.out = Tensor::contiguous(args.q.data, args.q.dtype, shape);
  result.layout = args.layout;
  result.softmax_scale = args.softmax_scale;
  result.q_start = args.q_start;
  result.k_start = args.k_start;
  result.lse = args.maxima;
  result.inputs = args.inputs;
  result.stream = args.stream;
  return result;
}

}  // namespace

struct TileMaxima::State {
  Pattern pattern;
  int kv;
  Options options;
  struct Bound {
    unsigned long long context_id;
    Kernel kernel;
  };
  std::shared_mutex mutex;
  std::vector<Bound> bound;

  std::optional<Kernel> find(const Problem& problem) {
    const std::shared_lock lock(mutex);
    for (const Bound& candidate : bound) {
      if (candidate.context_id == runtime::current_context_id() &&
          candidate.kernel.problem() == problem) {
        return candidate.kernel;
      }
    }
    return std::nullopt;
  }

  Kernel bind(const Problem& problem) {
    const runtime::Device device = runtime::current_device();
    const runtime::Settings settings = runtime::resolve(options);
    const plan::Plan plan = plan::make_tile_maxima_plan(pattern, problem, device.arch, kv);
    Kernel kernel = load_kernel(pattern, plan, problem, device, source_of(pattern, plan, settings),
                                "given", settings);
    const std::unique_lock lock(mutex);
    bound.push_back({device.context_id, kernel});
    return kernel;
  }
};

TileMaxima::TileMaxima(const Pattern& pattern, int kv, Options options)
    : state_(new State{with_softcaps_alone(pattern), kv, std::move(options), {}, {}}) {
  check_kv(kv);
}

const Pattern& TileMaxima::pattern() const { return state_->pattern; }

void TileMaxima::operator()(const TileMaximaArgs& args) const {
  if (args.layout == Layout::thd) {
    throw Error(Errc::unsupported,
                "tile maxima are not supported for layout thd: take bshd or bhsd, a sequence or "
                "batch at a time");
  }
  const Args attention = attention_args(args);
  const Problem problem = runtime::problem_of(attention);
  runtime::check_aligned_to_4("maxima", args.maxima);
  const FwdParams params =  // refuses tensors that it must before binding
      runtime::forward_params(attention, problem, pattern::grids_of(state_->pattern));
  const bool empty =
      params.num_batch_heads == 0 || params.geometry.seqlen_q == 0 || params.geometry.seqlen_k == 0;
  if (empty) return;
  if (args.maxima == nullptr) throw Error(Errc::invalid_argument, "maxima is null");

  std::optional<Kernel> kernel = state_->find(problem);
  if (!kernel) {
    runtime::refuse_while_capturing(args.stream, "this problem is not bound yet, and binding",
                                    "call it once before");
    kernel = state_->bind(problem);
  }
  launch_with_pool(state_->pattern, *kernel, attention);
}

Artifact build_tile_maxima(const Pattern& pattern, int kv, const Problem& problem,
                           const std::string& arch, const Options& options) {
  check_kv(kv);
  const runtime::Settings settings = runtime::resolve(options);
  const Pattern plain = with_softcaps_alone(pattern);
  const plan::Plan plan = plan::make_tile_maxima_plan(plain, problem, plan::Arch::parse(arch), kv);
  const Source source = source_of(plain, plan, settings);
  runtime::Obtained obtained = runtime::obtain_cubin(source, settings);
  Artifact artifact;
  artifact.source = source.text;
  artifact.info.arch = obtained.entry.arch;
  artifact.info.kernel = "tile_maxima";
  artifact.info.key = obtained.entry.key;
  artifact.info.tile = plan.spec.tile;
  artifact.info.registers = obtained.entry.registers;
  artifact.info.spill_bytes = obtained.entry.spill_bytes;
  artifact.info.stack_bytes = obtained.entry.stack_bytes;
  artifact.info.shared_bytes = plan.shared_bytes;
  artifact.info.threads = plan.threads;
  artifact.info.compile_ms = obtained.entry.compile_ms;
  artifact.info.cache_hit = obtained.hit;
  artifact.info.compiler = obtained.entry.compiler;
  artifact.cubin = std::move(obtained.entry.cubin);
  artifact.log = std::move(obtained.log);
  return artifact;
}

}  // namespace girih::jit
