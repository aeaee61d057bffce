#include "tune/tune_on_gpu.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <mutex>
#include <thread>

#include "girih/error.hpp"
#include "girih/version.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "runtime/settings.hpp"
#include "verify/device.hpp"

namespace girih::tools {
namespace {

constexpr std::int64_t kCheckedRows = 512;
constexpr double kLongMs = 5;
constexpr double kShortMs = 1;

// One shape's tensors, its sampled rows and what they should be.
class Bench {
 public:
  Bench(const TuneRequest& request, const verify::Case& c) : workload_(c), args_(workload_.args()) {
    workload_.fill_normal(c.seed);
    const std::vector<int> class_of_head = request.pattern.class_of_head(c.problem);
    const std::vector<int> seqlens_q(static_cast<std::size_t>(c.batch), c.seqlen_q);
    workload_.parameters.softcaps = verify::softcaps_of(request.pattern, class_of_head);
    rows_ = verify::select_rows(seqlens_q, class_of_head, kCheckedRows, c.seed);
    const auto words = static_cast<std::size_t>(verify::mask_words(c.seqlen_k));
    std::vector<std::uint32_t> masks(rows_.size() * words);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const std::span<std::uint32_t> mask = std::span(masks).subspan(i * words, words);
      request.mask_row(rows_[i], mask);
      num_visible_.push_back(0);
      for (const std::uint32_t word : mask) num_visible_.back() += std::popcount(word);
    }
    workload_.parameters.changes = verify::changes_of(request.pattern, workload_.parameters);
    reference_ = workload_.parameters.changes.any()
                     ? verify::reference_on_cpu(workload_.host_inputs(), rows_, masks)
                     : verify::GpuReference()(workload_.device_inputs(), rows_, masks);
  }

  std::string check(const jit::Kernel& kernel) {
    const verify::Case& c = workload_.parameters;
    workload_.poison_outputs();
    build_lists(kernel);
    launch(kernel);
    verify::synchronize();
    verify::Report report;
    report.touched_padding = workload_.download_outputs(rows_);  // all of it takes long
    std::vector<verify::RowCheck> checks;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const verify::Row row = rows_[i];
      const float lse = workload_.lse_at(row);
      const std::span out(workload_.out_row(row), static_cast<std::size_t>(c.problem.width_v()));
      checks.push_back(
          verify::check_row(c.problem.dtype, row, num_visible_[i], reference_, i, out, &lse));
    }
    verify::judge(checks, report);
    if (report.ok()) return {};
    if (report.failures.empty()) {
      return fmt::format("{} elements outside the outputs were written", report.touched_padding);
    }
    const verify::Failure& failure = report.failures.front();
    return fmt::format(
        "{} of {} checked rows are wrong, the first: batch {}, head {}, query {}: {}",
        report.rows_wrong, report.rows_checked, failure.row.b, failure.row.h, failure.row.q,
        failure.what);
  }

  std::vector<double> measure(const jit::Kernel& kernel) {
    build_lists(kernel);
    const auto launch_once = [&] { launch(kernel); };
    // A long launch needs no warm-up, and few of them fit into a budget. Where it is short, what
    // the one before left in the L2 would count too much.
    const std::vector<double> once =
        verify::time_launches({.warmups = 0, .repeats = 1}, launch_once);
    if (once.front() >= kLongMs) return once;
    return verify::time_launches({.warmups = 0, .repeats = 3, .flush_l2 = once.front() < kShortMs},
                                 launch_once);
  }

 private:
  // For each tile anew: which query tiles are split depends on it.
  void build_lists(const jit::Kernel& kernel) {
    const std::size_t bytes = kernel.workspace_bytes(args_);
    if (workspace_.size() < bytes) workspace_ = verify::Buffer(bytes);
    kernel.build_lists(args_, {workspace_.data(), workspace_.size()});
  }

  void launch(const jit::Kernel& kernel) const {
    kernel.launch(args_, {workspace_.data(), workspace_.size()});
  }

  verify::Workload workload_;
  verify::Buffer workspace_{0};
  jit::Args args_;
  std::vector<verify::Row> rows_;
  std::vector<std::int64_t> num_visible_;
  verify::ReferenceRows reference_;
};

// The kernels of one tuning, filled by several threads.
class Kernels {
 public:
  explicit Kernels(const TuneRequest& request) : request_(request) {}

  tune::Compiled compile(const TileConfig& tile) {
    const verify::Device device;  // a context is current per thread
    jit::Options options = request_.options;
    options.tile = tile;
    const jit::Kernel kernel = jit::compile(request_.pattern, request_.problem, options);
    const std::lock_guard lock(mutex_);
    kernels_.emplace_back(tile, kernel);
    return {kernel.info().spill_bytes, kernel.info().stack_bytes};
  }

  const jit::Kernel& operator[](const TileConfig& tile) const {
    const auto found = std::find_if(kernels_.begin(), kernels_.end(),
                                    [&](const auto& entry) { return entry.first == tile; });
    if (found == kernels_.end()) throw Error(Errc::internal, "a tile that was not compiled");
    return found->second;
  }

 private:
  const TuneRequest& request_;
  std::mutex mutex_;
  std::vector<std::pair<TileConfig, jit::Kernel>> kernels_;
};

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

tune::DeviceId present_device() {
  const verify::Device device;
  CUdevice handle = 0;
  int num_sms = 0;
  cuda::check(cuda::driver().cuCtxGetDevice(&handle), "cuCtxGetDevice");
  cuda::check(cuda::driver().cuDeviceGetAttribute(&num_sms,
                                                  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, handle),
              "cuDeviceGetAttribute");
  return {device.name(), device.arch(), num_sms};
}

TuneResult tune_on_gpu(const TuneRequest& request) {
  const tune::DeviceId device = present_device();
  const plan::Arch arch = plan::Arch::parse(device.arch);
  const plan::Plan plan = plan::make_plan(request.pattern, request.problem, arch);
  const std::vector<TileConfig> candidates = plan::candidate_tiles(plan, request.problem, arch);

  verify::Case c = request.parameters;
  c.problem = request.problem;
  Bench bench(request, c);
  Kernels kernels(request);
  const tune::Callbacks callbacks{
      .compile = [&](const TileConfig& tile) { return kernels.compile(tile); },
      .check = [&](const TileConfig& tile) { return bench.check(kernels[tile]); },
      .measure = [&](const TileConfig& tile) { return bench.measure(kernels[tile]); },
      .clock = seconds_now};
  const int num_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));

  TuneResult result;
  result.outcome =
      tune::tune(candidates, callbacks,
                 {.budget_seconds = request.budget_seconds, .num_threads = num_threads});
  result.records = tune::records_of(
      result.outcome, {.device = device,
                       .kernel = tune::kernel_id(plan, request.problem),
                       .pattern = request.pattern.text(),
                       .shape = {c.batch, c.seqlen_q, c.seqlen_k, c.problem.num_heads},
                       .tile = {},
                       .girih_version = GIRIH_VERSION,
                       .driver = verify::Device().driver(),
                       .date = tune::today()});
  return result;
}

std::filesystem::path tuning_file_of(const jit::Options& options) {
  const std::filesystem::path folder = runtime::resolve(options).cache.directory;
  if (folder.empty()) {
    throw Error(Errc::invalid_argument,
                "there is no folder for tuning records: set GIRIH_CACHE_DIR or HOME");
  }
  return tune::tuning_file(folder);
}

}  // namespace girih::tools
