// The main path: a pattern and a problem become a plan, a source, a cubin, a kernel, a launch.
#include "girih/jit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "plan/plan.hpp"
#include "runtime/arguments.hpp"
#include "runtime/auto_tune.hpp"
#include "runtime/cubin.hpp"
#include "runtime/inputs.hpp"
#include "runtime/kernel.hpp"
#include "runtime/settings.hpp"
#include "runtime/tile_choice.hpp"
#include "support/log.hpp"

namespace girih::jit {
namespace {

using runtime::Settings;

using runtime::current_context_id;
using runtime::current_device;
using runtime::Device;
using runtime::Source;

Source source_of_plan(const Pattern& pattern, const plan::Plan& plan, const Settings& settings) {
  return runtime::make_source({.arch = plan.spec.arch.name(),
                               .text = codegen::emit(plan.spec),
                               .symbol = codegen::kKernelSymbol,
                               .pattern = pattern.text(),
                               .warmed_by = "`girih compile` with the same options",
                               .shared_bytes = plan.shared_bytes,
                               .threads = plan.threads},
                              settings);
}

}  // namespace

struct Program::State {
  Pattern pattern;
  Options options;
  Check check = runtime::check_setting(options.check_inputs);
  std::shared_mutex mutex;
  struct Bound {
    unsigned long long context_id;
    std::optional<tune::Bucket> bucket;  // of the lengths that it is for; empty: all
    Kernel kernel;
  };
  std::vector<Bound> bound;

  Kernel make_kernel(const Problem& problem, const Device& device,
                     const runtime::TileChoice& choice, const Settings& settings) const;
  Kernel make_first(const Problem& problem, const Device& device,
                    const std::vector<runtime::TileChoice>& choices,
                    const Settings& settings) const;
  Kernel bind_tuned(const Problem& problem, const Args& args, const Settings& settings);

  // For the bucket's lengths or all, without one for all only; with `mutex` held.
  const Kernel* find(unsigned long long context_id, const Problem& problem,
                     const std::optional<tune::Bucket>& bucket = {}) const {
    for (const Bound& candidate : bound) {
      if (candidate.context_id == context_id && candidate.kernel.problem() == problem &&
          (!candidate.bucket || candidate.bucket == bucket)) {
        return &candidate.kernel;
      }
    }
    return nullptr;
  }

  // What another thread bound meanwhile is kept.
  Kernel remember(unsigned long long context_id, const std::optional<tune::Bucket>& bucket,
                  Kernel kernel) {
    const std::unique_lock lock(mutex);
    if (const Kernel* known = find(context_id, kernel.problem(), bucket)) return *known;
    bound.push_back({context_id, bucket, std::move(kernel)});
    return bound.back().kernel;
  }
};

Program::Program(Pattern pattern, Options options)
    : state_(std::make_shared<State>(std::move(pattern), std::move(options))) {}

const Pattern& Program::pattern() const { return state_->pattern; }

// Plans, obtains and loads one kernel.
Kernel Program::State::make_kernel(const Problem& problem, const Device& device,
                                   const runtime::TileChoice& choice,
                                   const Settings& settings) const {
  const plan::Plan plan = plan::make_plan(pattern, problem, device.arch, choice.tile);
  return load_kernel(pattern, plan, problem, device, source_of_plan(pattern, plan, settings),
                     choice.source, settings);
}

// The kernel of the first choice that can be had.
Kernel Program::State::make_first(const Problem& problem, const Device& device,
                                  const std::vector<runtime::TileChoice>& choices,
                                  const Settings& settings) const {
  for (std::size_t i = 0;; ++i) {
    try {
      return make_kernel(problem, device, choices[i], settings);
    } catch (const Error& error) {
      const bool unavailable =
          error.code() == Errc::jit_disabled || error.code() == Errc::compile_failed;
      if (!unavailable || i + 1 == choices.size()) throw;
      support::log(support::LogLevel::info,
                   fmt::format("the {} tile's kernel cannot be had, trying the {} one: {}",
                               choices[i].source, choices[i + 1].source, error.what()));
    }
  }
}

Kernel Program::bind(const Problem& problem) const {
  {
    const std::shared_lock lock(state_->mutex);
    if (const Kernel* kernel = state_->find(current_context_id(), problem)) return *kernel;
  }
  const Device device = current_device();
  const Settings settings = runtime::resolve(state_->options);
  const std::vector<runtime::TileChoice> choices = runtime::tile_choices(
      {state_->pattern, problem, device.arch, device.id}, state_->options.tile, settings);
  return state_->remember(device.context_id, std::nullopt,
                          state_->make_first(problem, device, choices, settings));
}

// Tune::automatic: a kernel for these lengths, measured unless there are times on record.
Kernel Program::State::bind_tuned(const Problem& problem, const Args& args,
                                  const Settings& settings) {
  static std::mutex one_at_a_time;  // two at once would time each other
  const std::lock_guard turn(one_at_a_time);
  const Device device = current_device();
  const tune::Shape shape = runtime::shape_of(args, problem);
  const tune::Bucket bucket = tune::bucket_of(shape);
  {
    const std::shared_lock lock(mutex);
    if (const Kernel* kernel = find(device.context_id, problem, bucket)) return *kernel;
  }

  std::vector<runtime::TileChoice> choices = runtime::tile_choices(
      {pattern, problem, device.arch, device.id, bucket}, options.tile, settings);
  if (!choices.front().exact && settings.mode == Mode::automatic) {
    const auto make = [&](const TileConfig& tile) {
      return make_kernel(problem, device, {tile, "tuned"}, settings);
    };
    const runtime::TileQuery query{pattern, problem, device.arch, device.id};
    if (const auto tile = runtime::measure_tiles(query, args, shape, make, settings)) {
      choices.insert(choices.begin(), {*tile, "tuned"});
    }
  }
  return remember(device.context_id, bucket, make_first(problem, device, choices, settings));
}

void Program::operator()(const Args& args) const {
  Problem problem = runtime::problem_of(args);
  const bool in_rows = args.seqused_k || args.leftpad_k || runtime::is_too_far_for_bricks(args);
  problem.partial_keys = in_rows && !pattern::grids_of(state_->pattern).empty();
  const Problem plain = problem;
  problem.shared_inputs = runtime::share_blocks(args.inputs, problem);
  {
    const tune::Bucket bucket = tune::bucket_of(runtime::shape_of(args, problem));
    const unsigned long long context_id = current_context_id();
    std::shared_lock lock(state_->mutex);
    const Kernel* found = state_->find(context_id, problem, bucket);
    if (found == nullptr)
      found = state_->find(context_id, plain, bucket);  // who bound that wants it
    if (found != nullptr) {
      const Kernel kernel = *found;
      lock.unlock();
      return launch_with_pool(state_->pattern, kernel, args, state_->check);
    }
  }
  runtime::refuse_while_capturing(args.stream, "this problem is not bound yet, and binding",
                                  "call Program::bind");
  const Settings settings = runtime::resolve(state_->options);
  const bool measured = settings.tune == Tune::automatic && state_->options.tile == TileConfig{};
  if (!measured) return launch_with_pool(state_->pattern, bind(problem), args, state_->check);
  // Refuses what no kernel takes.
  runtime::forward_params(args, problem, pattern::grids_of(state_->pattern));
  launch_with_pool(state_->pattern, state_->bind_tuned(problem, args, settings), args,
                   state_->check);
}

Program compile(Pattern pattern, Options options) {
  return Program(std::move(pattern), std::move(options));
}

Kernel compile(const Pattern& pattern, const Problem& problem, Options options) {
  return Program(pattern, std::move(options)).bind(problem);
}

Artifact build(const Pattern& pattern, const Problem& problem, const std::string& arch,
               Options options, Emit emit) {
  const Settings settings = runtime::resolve(options);
  const plan::Plan plan = plan::make_plan(pattern, problem, plan::Arch::parse(arch), options.tile);
  const Source source = source_of_plan(pattern, plan, settings);
  Artifact artifact =
      runtime::make_artifact(source, settings, emit, plan::to_string(plan.spec.family));
  artifact.info.tile = plan.spec.tile;
  artifact.info.tile_source = options.tile == TileConfig{} ? "heuristic" : "given";
  return artifact;
}

}  // namespace girih::jit
