// girih bench PATTERN: how long its kernel takes on this GPU, with Girih's own dense and dense
// causal attention beside it, timed in turns. Every kernel's rows are checked before it is timed.
#include <fmt/format.h>

#include <chrono>
#include <functional>

#include "common.hpp"
#include "fill.hpp"
#include "reading.hpp"
#include "runtime/settings.hpp"
#include "support/fs.hpp"
#include "verify/device.hpp"

namespace girih::tools {
namespace {

constexpr int kWarmups = 3;
constexpr int kLeastRepeats = 15;
constexpr int kLeastShortRepeats = 30;  // of launches shorter than this many milliseconds:
constexpr double kShort = 1.0;

double milliseconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - begin;
  return elapsed.count();
}

double median_of(int repeats, const std::function<double()>& measure) {
  std::vector<double> values;
  for (int i = 0; i < repeats; ++i) values.push_back(measure());
  std::sort(values.begin(), values.end());
  return verify::median(values);
}

// --- Kernels

struct Subject {
  Subject(std::string title, Pattern mask, const jit::Options& options)
      : name(std::move(title)), pattern(mask), program(std::move(mask), options) {}

  std::string name;
  Pattern pattern;
  jit::Program program;
  verify::Report report;
  std::vector<double> milliseconds;  // sorted
  double build_lists_ms = 0;
};

// A case for a pattern that knows nothing of another one's inputs.
verify::Case case_for(const Pattern& pattern, verify::Case c) {
  if (pattern.inputs().empty()) c.inputs.clear();
  return c;
}

// In turns, so that a clock that changes meets all of them. @return whether the L2 was flushed.
bool time_in_turns(std::vector<Subject>& subjects, const verify::Case& c, int repeats) {
  verify::Workload workload(c);
  workload.fill_normal(c.seed);
  const cuda::Timer timer;
  std::vector<jit::Kernel> kernels;
  std::vector<jit::Args> arguments;
  std::vector<verify::Buffer> memory;
  const auto workspace = [&](std::size_t i) {
    return jit::Workspace{memory[i].data(), memory[i].size()};
  };
  for (Subject& subject : subjects) {
    kernels.push_back(subject.program.bind(c.problem));
    arguments.push_back(workload.args());
    if (subject.pattern.inputs().empty()) arguments.back().inputs.clear();
    memory.emplace_back(kernels.back().workspace_bytes(arguments.back()));
    if (memory.back().size() == 0) continue;
    const std::size_t i = memory.size() - 1;
    subject.build_lists_ms =
        verify::median(verify::time_launches({.repeats = 30, .flush_l2 = true}, [&] {
          kernels[i].build_lists(arguments[i], workspace(i));
        }));
  }
  const auto run = [&](std::size_t i) {
    return timer(arguments[i].stream, [&] { kernels[i].launch(arguments[i], workspace(i)); });
  };
  double fastest = kShort;
  for (int warmup = 0; warmup < kWarmups; ++warmup) {
    for (std::size_t i = 0; i < subjects.size(); ++i) fastest = std::min(fastest, run(i));
  }

  const bool short_launches = fastest < kShort;
  std::optional<verify::L2Flush> flush;
  if (short_launches) flush.emplace();
  const int turns = std::max(repeats, short_launches ? kLeastShortRepeats : kLeastRepeats);
  for (int turn = 0; turn < turns; ++turn) {
    for (std::size_t i = 0; i < subjects.size(); ++i) {
      if (flush) {
        (*flush)();
        verify::synchronize();
      }
      subjects[i].milliseconds.push_back(run(i));
    }
  }
  for (Subject& subject : subjects) {
    std::sort(subject.milliseconds.begin(), subject.milliseconds.end());
  }
  return short_launches;
}

// --- The JIT

// Host time of one call, in microseconds. So few calls between synchronisations that none waits
// for room in the driver's queue.
double host_microseconds(const std::function<void()>& call) {
  constexpr int kCalls = 200, kRounds = 15;
  return 1000 / static_cast<double>(kCalls) * median_of(kRounds, [&] {
           verify::synchronize();
           const double elapsed = milliseconds_of([&] {
             for (int i = 0; i < kCalls; ++i) call();
           });
           verify::synchronize();
           return elapsed;
         });
}

class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "girih-bench-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      throw Error(Errc::cache_io, fmt::format("cannot make the folder {}", name));
    }
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

Json measure_jit(const Pattern& pattern, const Problem& problem, const std::string& arch,
                 const jit::Options& options, const FillOptions& fill) {
  const auto build = [&](const std::filesystem::path& folder) {
    jit::Options own = options;
    own.cache_dir = folder;
    own.cache_layers.emplace();
    return jit::build(pattern, problem, arch, own);
  };
  Json json;
  build("");  // loads NVRTC
  double nvrtc_ms = 0;
  json["cold_ms"] =
      median_of(3, [&] { return milliseconds_of([&] { nvrtc_ms = build("").info.compile_ms; }); });
  json["nvrtc_ms"] = nvrtc_ms;

  const ScratchFolder scratch;
  build(scratch.path());
  json["disk_hit_ms"] =
      median_of(15, [&] { return milliseconds_of([&] { build(scratch.path()); }); });

  // The process has this kernel loaded already: what is left is planning and its own memory.
  json["new_program_bind_ms"] = median_of(
      15, [&] { return milliseconds_of([&] { jit::Program(pattern, options).bind(problem); }); });
  const jit::Program program(pattern, options);
  program.bind(problem);
  json["memory_hit_us"] = host_microseconds([&] { program.bind(problem); });

  verify::Case small;
  small.problem = problem;
  small.seqlen_q = small.seqlen_k = 16;
  small.inputs = read_fills(fill, pattern, problem, 1, 16, 16);
  const verify::Workload workload(small);
  const jit::Args args = workload.args();
  const jit::Kernel kernel = program.bind(problem);
  const verify::Buffer memory(kernel.workspace_bytes(args));
  kernel.build_lists(args, {memory.data(), memory.size()});
  json["launch_us"] = host_microseconds([&] {
    kernel.launch(args, {memory.data(), memory.size()});
  });
  jit::Args other = args;  // a launch that differs from the last one is planned anew
  other.empty_lse = -other.empty_lse;
  json["changed_launch_us"] = host_microseconds([&, turned = false]() mutable {
    kernel.launch((turned = !turned) ? other : args, {memory.data(), memory.size()});
  });
  verify::EmptyKernel empty(kernel.info().arch);
  json["bare_launch_us"] = host_microseconds([&] { empty.launch(); });
  return json;
}

// --- The answer

Json device_json(const verify::Device& device) {
  CUdevice handle = 0;
  cuda::check(cuda::driver().cuCtxGetDevice(&handle), "cuCtxGetDevice");
  const auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    cuda::check(cuda::driver().cuDeviceGetAttribute(&value, which, handle), "cuDeviceGetAttribute");
    return value;
  };
  return {{"name", device.name()},
          {"arch", device.arch()},
          {"driver", device.driver()},
          {"multiprocessors", attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)},
          {"max_clock_mhz", attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE) / 1000},
          {"max_memory_clock_mhz", attribute(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE) / 1000}};
}

Json subject_json(const Subject& subject, const verify::Case& c) {
  const std::vector<double>& times = subject.milliseconds;
  const double median = verify::median(times);
  const double flop = visible_flop(subject.pattern, case_for(subject.pattern, c));
  return {{"name", subject.name},
          {"pattern", subject.pattern.text()},
          {"ok", subject.report.ok()},
          {"rows_checked", subject.report.rows_checked},
          {"rows_wrong", subject.report.rows_wrong},
          {"median_ms", median},
          {"min_ms", times.front()},
          {"max_ms", times.back()},
          {"repeats", times.size()},
          {"visible_flop", flop},
          {"tflops", flop / median * 1e-9},
          {"build_lists_ms", subject.build_lists_ms},
          {"kernel", to_json(subject.report.kernel)}};
}

std::string text_of(const Json& report) {
  const Json& device = report["device"];
  std::string text = fmt::format(
      "device      {} ({}), {} multiprocessors, at most {} MHz, memory {} MHz, CUDA {}\n"
      "problem     {}, batch {}, {} x {}\n\n"
      "{:<14} {:>10} {:>10} {:>10} {:>9} {:>9}  {}\n",
      device["name"].get<std::string>(), device["arch"].get<std::string>(),
      device["multiprocessors"].get<int>(), device["max_clock_mhz"].get<int>(),
      device["max_memory_clock_mhz"].get<int>(), device["driver"].get<std::string>(),
      report["problem_text"].get<std::string>(), report["batch"].get<int>(),
      report["seqlen_q"].get<int>(), report["seqlen_k"].get<int>(), "", "median ms", "min", "max",
      "TFLOP/s", "of causal", "rows checked");
  double causal = 0;
  for (const Json& kernel : report["kernels"]) {
    if (kernel["name"] == "dense causal") causal = kernel["median_ms"];
  }
  for (const Json& kernel : report["kernels"]) {
    const double median = kernel["median_ms"];
    text += fmt::format(
        "{:<14} {:>10.4f} {:>10.4f} {:>10.4f} {:>9.1f} {:>9.3f}  {}{}\n",
        kernel["name"].get<std::string>(), median, kernel["min_ms"].get<double>(),
        kernel["max_ms"].get<double>(), kernel["tflops"].get<double>(), median / causal,
        kernel["rows_checked"].get<std::int64_t>(),
        kernel["ok"] ? "" : fmt::format(", {} WRONG", kernel["rows_wrong"].get<std::int64_t>()));
  }
  text += fmt::format("\n{} runs each, in turns{}; TFLOP/s of visible elements\n{}",
                      report["kernels"][0]["repeats"].get<std::size_t>(),
                      report["l2_flushed"] ? ", L2 flushed before each" : "",
                      report["pattern"].get<std::string>() + "\n");
  if (const Json& pruning = report["pruning"]; pruning["tiles"] > 0) {
    text +=
        fmt::format("{} of {} tiles that may be are skipped\n",
                    pruning["skipped"].get<std::int64_t>(), pruning["tiles"].get<std::int64_t>());
  }
  if (!report.contains("jit")) return text;
  const Json& jit = report["jit"];
  const auto number = [&](const char* key) { return jit[key].get<double>(); };
  return text + fmt::format(
                    "\ncold build, no cache      {:>9.1f} ms, {:.1f} ms of it in NVRTC\n"
                    "build, found on disk      {:>9.3f} ms\n"
                    "bind, kernel loaded       {:>9.3f} ms\n"
                    "bind, program has it      {:>9.3f} us\n"
                    "launch, host time         {:>9.3f} us, with other arguments than the last "
                    "{:.3f}, an empty kernel {:.3f} us\n",
                    number("cold_ms"), number("nvrtc_ms"), number("disk_hit_ms"),
                    number("new_program_bind_ms"), number("memory_hit_us"), number("launch_us"),
                    number("changed_launch_us"), number("bare_launch_us"));
}

}  // namespace

void add_bench(CLI::App& app, Context& context) {
  struct Options {
    std::string pattern;
    ProblemOptions problem;
    FillOptions fill;
    jit::Options jit;
    verify::Case parameters;
    int repeats = kLeastRepeats;
    bool measure_jit = false;
  };
  const auto options = std::make_shared<Options>();
  verify::Case& c = options->parameters;
  c.seqlen_q = c.seqlen_k = 4096;
  c.max_rows = 4096;

  CLI::App* verb =
      add_verb(app, context, "bench", "Time a pattern's kernel, dense attention beside it");
  add_pattern_argument(*verb, options->pattern);
  verb->add_option("--batch", c.batch, "Sequences")->capture_default_str();
  add_length_options(*verb, c.seqlen_q, c.seqlen_k);
  add_problem_options(*verb, options->problem);
  verb->add_option("--softmax-scale", c.softmax_scale, "Default: 1 / sqrt(head_dim)");
  verb->add_option("--repeats", options->repeats,
                   "Timed runs of each kernel; at least 15, 30 where one takes less than 1 ms")
      ->capture_default_str();
  verb->add_flag("--jit", options->measure_jit,
                 "Also time compilation, cache hits, binding and the host's part of a launch");
  verb->add_option("--rows", c.max_rows, "Rows of each kernel to check")->capture_default_str();
  add_fill_options(*verb, options->fill);
  verb->add_option("--seed", c.seed, "Of the inputs")->capture_default_str();
  add_tile_options(*verb, options->jit.tile);
  add_compile_options(*verb, options->jit);
  add_tune_option(*verb, options->jit);

  verb->callback([options, &context, verb] {
    verify::Case& parameters = options->parameters;
    check_range("--batch", parameters.batch, 1, 65535);
    check_range("--seqlen-q", parameters.seqlen_q, 1, kMaxNumber);
    check_range("--seqlen-k", parameters.seqlen_k, 1, kMaxNumber);
    check_range("--repeats", options->repeats, 1, 100000);
    check_range("--rows", parameters.max_rows, 1, std::int64_t{1} << 40);
    if (options->measure_jit && runtime::resolve(options->jit).mode == jit::Mode::off) {
      throw Error(Errc::invalid_argument,
                  "--jit times compilations, which GIRIH_JIT=off forbids: leave one of them out");
    }
    const Pattern pattern = read_pattern(options->pattern);
    default_to_grid(*verb, pattern, parameters.seqlen_q, parameters.seqlen_k);
    parameters.problem = options->problem.resolve(pattern);
    options->fill.seed = parameters.seed;
    options->fill.softmax_scale = verify::softmax_scale_of(parameters);
    parameters.inputs = read_fills(options->fill, pattern, parameters.problem, parameters.batch,
                                   parameters.seqlen_q, parameters.seqlen_k);
    reading_of(pattern, parameters);  // refuses uncovered heads

    const verify::Device device;
    const verify::PrunedReading pruned = reading_of_pruned(pattern, parameters);
    std::vector<Subject> subjects;
    subjects.emplace_back("pattern", pattern, options->jit);
    subjects.emplace_back("dense", dense(), options->jit);
    subjects.emplace_back("dense causal", causal(), options->jit);
    verify::GpuReference reference;
    for (Subject& subject : subjects) {
      const verify::Case own = case_for(subject.pattern, parameters);
      const bool own_pattern = &subject == &subjects.front();
      subject.report = verify::verify_attention(
          subject.program, own, own_pattern ? pruned.mask : reading_of(subject.pattern, own),
          reference);
      if (!subject.report.ok()) context.exit_code = kFailure;
    }
    const bool flushed = time_in_turns(subjects, parameters, options->repeats);

    Json report{{"pattern", pattern.text()},
                {"device", device_json(device)},
                {"problem", to_json(parameters.problem)},
                {"problem_text", to_text(parameters.problem)},
                {"batch", parameters.batch},
                {"seqlen_q", parameters.seqlen_q},
                {"seqlen_k", parameters.seqlen_k},
                {"l2_flushed", flushed},
                {"pruning", {{"tiles", pruned.tiles}, {"skipped", pruned.skipped}}},
                {"kernels", Json::array()}};
    for (const Subject& subject : subjects) {
      report["kernels"].push_back(subject_json(subject, parameters));
    }
    if (options->measure_jit) {
      report["jit"] =
          measure_jit(pattern, parameters.problem, device.arch(), options->jit, options->fill);
    }
    if (!context.json) return print(text_of(report));
    report.erase("problem_text");
    print_json(report);
  });
}

}  // namespace girih::tools
