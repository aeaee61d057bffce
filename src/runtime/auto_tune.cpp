#include "runtime/auto_tune.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "cuda/timer.hpp"
#include "girih/shared/geometry.cuh"
#include "girih/version.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "support/log.hpp"
#include "tune/tuner.hpp"

namespace girih::runtime {
namespace {

// A first launch that takes longer is noticed by whoever waits for it.
constexpr double kCompileSeconds = 4;
constexpr double kMeasureSeconds = 1.5;

constexpr double kLongMs = 5;  // of a launch that is timed once a turn instead of thrice

// Tiles round probabilities at other places. An output is a mean of values, hence off by some
// 2^-8 of the largest; a tile that saw other keys is off by more in some row.
constexpr float kTolerance = 0.03f;
constexpr std::size_t kMostCompared = std::size_t{1} << 21;  // elements, the last ones

using cuda::check;
using cuda::driver;

float widened(DType dtype, std::uint16_t bits) {
  if (dtype == DType::bfloat16) return std::bit_cast<float>(std::uint32_t{bits} << 16);
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float magnitude = exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                          : exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -24)
                              : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// The calling thread's context, in another thread.
class ContextOf {
 public:
  explicit ContextOf(CUcontext context) {
    check(driver().cuCtxGetCurrent(&before_), "asking for the current context");
    check(driver().cuCtxSetCurrent(context), "setting the current context");
  }
  ~ContextOf() { driver().cuCtxSetCurrent(before_); }
  ContextOf(const ContextOf&) = delete;
  ContextOf& operator=(const ContextOf&) = delete;

 private:
  CUcontext before_ = nullptr;
};

std::size_t elements_of(const Tensor& tensor) {
  std::size_t count = 1;
  for (const std::int64_t extent : tensor.shape) count *= static_cast<std::size_t>(extent);
  return count;
}

// Launches into memory of its own, times that, and compares what comes out.
class Trial {
 public:
  explicit Trial(const jit::Args& args)
      : args_(args),
        elements_(elements_of(args.out)),
        out_(cuda::Buffer::if_room(2 * elements_)),
        with_lse_(args.lse != nullptr) {
    if (with_lse_) {
      lse_ = cuda::Buffer::if_room(4 * elements_ / static_cast<std::size_t>(args.out.shape[3]));
    }
    if (!has_memory()) return;
    args_.out = Tensor::contiguous(out_->data(), args.out.dtype, args.out.shape);
    if (with_lse_) args_.lse = static_cast<float*>(lse_->data());
  }

  bool has_memory() const { return out_ && lse_.has_value() == with_lse_; }

  std::string compare(const jit::Kernel& kernel) {
    check(driver().cuMemsetD8Async(out_->address(), 0, 2 * elements_, args_.stream),
          "clearing outputs");
    build_lists(kernel);
    launch(kernel);
    const std::size_t count = std::min(elements_, kMostCompared);
    std::vector<std::uint16_t> out(count);
    check(driver().cuMemcpyDtoHAsync(out.data(), out_->address() + 2 * (elements_ - count),
                                     2 * count, args_.stream),
          "reading outputs");
    check(driver().cuStreamSynchronize(args_.stream), "waiting for a launch");
    if (expected_.empty()) {
      expected_ = std::move(out);
      return {};
    }
    const auto value = [&](std::uint16_t bits) { return widened(args_.out.dtype, bits); };
    float largest = 0;
    for (const std::uint16_t bits : expected_) {
      if (std::isfinite(value(bits))) largest = std::max(largest, std::abs(value(bits)));
    }
    for (std::size_t i = 0; i < count; ++i) {
      const float a = value(expected_[i]), b = value(out[i]);
      const bool same = std::isfinite(a) ? std::abs(a - b) <= kTolerance * largest
                                         : std::isnan(a) == std::isnan(b);
      if (!same) return fmt::format("gives {} where the plan's own tile gives {}", b, a);
    }
    return {};
  }

  std::vector<double> time(const jit::Kernel& kernel) {
    build_lists(kernel);
    const auto once = [&] { return timer_(args_.stream, [&] { launch(kernel); }); };
    std::vector<double> times{once()};
    while (times.front() < kLongMs && times.size() < 3) times.push_back(once());
    return times;
  }

 private:
  // Each tile anew: which query tiles are split depends on it.
  void build_lists(const jit::Kernel& kernel) {
    const std::size_t bytes = kernel.workspace_bytes(args_);
    if (!workspace_ || workspace_->size() < bytes) {
      workspace_.reset();
      workspace_ = cuda::Buffer(bytes);
    }
    kernel.build_lists(args_, {workspace_->data(), workspace_->size()});
  }

  void launch(const jit::Kernel& kernel) const {
    kernel.launch(args_, {workspace_->data(), workspace_->size()});
  }

  jit::Args args_;
  std::size_t elements_;
  std::optional<cuda::Buffer> out_, lse_, workspace_;
  bool with_lse_;
  cuda::Timer timer_;
  std::vector<std::uint16_t> expected_;  // of the first kernel
};

tune::Outcome time_tiles(Trial& trial, const std::vector<TileConfig>& candidates,
                         const MakeKernel& make_kernel) {
  CUcontext context = nullptr;
  check(driver().cuCtxGetCurrent(&context), "asking for the current context");
  std::mutex mutex;
  std::vector<std::pair<TileConfig, jit::Kernel>> kernels;
  const auto compile = [&](const TileConfig& tile) {
    const ContextOf current(context);
    const jit::Kernel kernel = make_kernel(tile);
    const std::lock_guard lock(mutex);
    kernels.emplace_back(tile, kernel);
    return tune::Compiled{kernel.info().spill_bytes, kernel.info().stack_bytes};
  };
  const auto kernel_of = [&](const TileConfig& tile) -> const jit::Kernel& {
    return std::find_if(kernels.begin(), kernels.end(),
                        [&](const auto& entry) { return entry.first == tile; })
        ->second;
  };
  const auto seconds = [] {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(now).count();
  };
  const int num_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return tune::tune(
      candidates,
      {.compile = compile,
       .check = [&](const TileConfig& tile) { return trial.compare(kernel_of(tile)); },
       .measure = [&](const TileConfig& tile) { return trial.time(kernel_of(tile)); },
       .clock = seconds},
      {.budget_seconds = kMeasureSeconds,
       .compile_seconds = kCompileSeconds,
       .num_threads = num_threads});
}

}  // namespace

tune::Shape shape_of(const jit::Args& args, const Problem& problem) {
  const bool packed = args.layout == Layout::thd;
  const int rows = args.layout == Layout::bhsd ? 2 : 1;
  const auto number = [](std::int64_t value) {
    return static_cast<int>(std::clamp<std::int64_t>(value, 1, kMaxNumber));
  };
  return {number(packed ? args.num_sequences : args.q.shape[0]),
          number(packed ? args.max_seqlen_q : args.q.shape[rows]),
          number(packed ? args.max_seqlen_k : args.k.shape[rows]), problem.num_heads};
}

std::optional<TileConfig> measure_tiles(const TileQuery& query, const jit::Args& args,
                                        const tune::Shape& shape, const MakeKernel& make_kernel,
                                        const Settings& settings) {
  if (elements_of(args.out) == 0) return std::nullopt;
  Trial trial(args);
  if (!trial.has_memory()) {
    support::log_once(support::LogLevel::warn, "auto_tune_memory",
                      fmt::format("GIRIH_TUNE=auto: no device memory for a second output of [{}]; "
                                  "tiles are not measured",
                                  fmt::join(args.out.shape, ", ")));
    return std::nullopt;
  }
  const plan::Plan plan = plan::make_plan(query.pattern, query.problem, query.arch);
  const tune::Outcome outcome =
      time_tiles(trial, plan::candidate_tiles(plan, query.problem, query.arch), make_kernel);

  int version = 0;
  check(driver().cuDriverGetVersion(&version), "asking for the driver's version");
  const std::vector<tune::Record> records = tune::records_of(
      outcome, {.device = query.device,
                .kernel = tune::kernel_id(plan, query.problem),
                .pattern = query.pattern.text(),
                .shape = shape,
                .tile = {},
                .girih_version = GIRIH_VERSION,
                .driver = fmt::format("{}.{}", version / 1000, version % 1000 / 10),
                .date = tune::today()});
  const std::filesystem::path file = tune::tuning_file(settings.cache.directory);
  const std::string problem = settings.cache.directory.empty()
                                  ? "there is no cache folder"
                                  : tune::append_records(file, records);
  if (!problem.empty()) {
    support::log_once(support::LogLevel::warn, "auto_tune_records",
                      fmt::format("GIRIH_TUNE=auto: cannot write {}: {}; every process measures "
                                  "again",
                                  file.string(), problem));
  }
  support::log(support::LogLevel::info,
               fmt::format("measured {} tiles of {} for batch {}, {} queries, {} keys, {} heads",
                           records.size(), query.pattern.text(), shape.batch, shape.seqlen_q,
                           shape.seqlen_k, shape.num_heads));
  if (outcome.best < 0) return std::nullopt;
  return outcome.timings[static_cast<std::size_t>(outcome.best)].tile;
}

}  // namespace girih::runtime
