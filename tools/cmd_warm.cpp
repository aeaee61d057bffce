// girih warm: compiles many kernels into the cache, in parallel and ahead of time. Needs no GPU
// and no driver. What is cached already is skipped, so that an interrupted run goes on where it
// ended when the same command is given again.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <system_error>
#include <thread>

#include "cache/disk_cache.hpp"
#include "common.hpp"
#include "girih/combine.hpp"
#include "girih/estimate.hpp"
#include "girih/shared/geometry.cuh"
#include "progress.hpp"
#include "runtime/settings.hpp"
#include "support/fs.hpp"
#include "support/json.hpp"

namespace girih::tools {
namespace {

// --- What is asked for

// One line of a file, or the options: their cross product.
struct Group {
  std::vector<std::string> patterns;
  std::vector<int> head_dims{128};
  std::vector<DType> dtypes{DType::bfloat16};
  std::vector<std::string> archs;
  ProblemOptions problem;  // the rest of it
  TileConfig tile;
};

struct Spec {
  Pattern pattern;
  Problem problem;
  std::string arch;
  TileConfig tile;
  // What merges partial results, or estimates something, in place of a pattern's kernel.
  bool combine = false;
  std::string estimate = {};  // "columns and slashes" or "blocks"
  std::string line = {};      // that asks for it, "FILE:3"; empty: the options do
};

// A line of a file that asks for nothing that could be tried.
struct BadLine {
  std::string line;
  Error error;
};

constexpr const char* kEstimates[] = {"columns and slashes", "blocks"};

void add_estimates(const Group& group, const std::string& arch, std::vector<Spec>& specs) {
  for (const int head_dim : group.head_dims) {
    for (const DType dtype : group.dtypes) {
      Problem problem;
      problem.dtype = dtype;
      problem.head_dim = head_dim;
      for (const char* estimate : kEstimates) {
        specs.push_back({dense(), problem, arch, {}, false, estimate});
      }
    }
  }
}

// What `read` makes of a member, or of each value of a list.
template <class Read>
auto one_or_more(const std::string& member, const Json& json, const Read& read) {
  std::vector<decltype(read(member, json))> values;
  if (!json.is_array()) {
    values.push_back(read(member, json));
    return values;
  }
  if (json.empty()) {
    throw Error(Errc::invalid_argument, fmt::format("{} is an empty list: give a value", member));
  }
  for (const Json& value : json) values.push_back(read(member, value));
  return values;
}

std::vector<DType> parse_dtypes(const std::vector<std::string>& names) {
  std::vector<DType> dtypes;
  for (const std::string& name : names) dtypes.push_back(parse_dtype(name));
  return dtypes;
}

// A line of a file over the options' values. @throws Error invalid_argument, JSON exceptions.
Group parse_line(const std::string& line, const Group& defaults) {
  Group group = defaults;
  group.patterns.clear();
  const Json json = Json::parse(line);
  if (!json.is_object()) throw Error(Errc::invalid_argument, "it is no JSON object");
  const std::map<std::string, int*> tile{{"block_m", &group.tile.block_m},
                                         {"block_n", &group.tile.block_n},
                                         {"stages", &group.tile.num_stages},
                                         {"warps", &group.tile.num_warps},
                                         {"q_stages", &group.tile.num_q_stages}};
  const auto integer = [](const std::string& member, const Json& value) {
    return integer_of(member, value, 0, kMaxNumber);  // 0 is what is not given, or refused later
  };
  for (const auto& [name, value] : json.items()) {
    if (name == "pattern") {
      group.patterns = one_or_more(name, value, string_of);
    } else if (name == "head_dim") {
      group.head_dims = one_or_more(name, value, integer);
    } else if (name == "head_dim_v") {
      group.problem.head_dim_v = integer(name, value);
    } else if (name == "dtype") {
      group.dtypes = parse_dtypes(one_or_more(name, value, string_of));
    } else if (name == "arch") {
      group.archs = one_or_more(name, value, string_of);
    } else if (name == "heads") {
      group.problem.num_heads = integer(name, value);
    } else if (name == "kv_heads") {
      group.problem.num_heads_kv = integer(name, value);
    } else if (name == "head_offset") {
      group.problem.head_offset = integer(name, value);
    } else if (name == "heads_total") {
      group.problem.num_heads_total = integer(name, value);
    } else if (name == "portable") {
      if (!value.is_boolean()) {
        throw Error(Errc::invalid_argument,
                    fmt::format("{} {} must be true or false", name, value.dump()));
      }
      group.tile.portable = value.get<bool>();
    } else if (const auto member = tile.find(name); member != tile.end()) {
      *member->second = integer(name, value);
    } else {
      throw Error(
          Errc::invalid_argument,
          fmt::format("'{}' is not known: pattern, head_dim, head_dim_v, dtype, arch, heads, "
                      "kv_heads, head_offset, heads_total, block_m, block_n, stages, warps, "
                      "q_stages and portable are",
                      name));
    }
  }
  if (group.patterns.empty()) throw Error(Errc::invalid_argument, "it has no \"pattern\"");
  return group;
}

void add_specs(const Group& group, std::vector<Spec>& specs) {
  for (const std::string& text : group.patterns) {
    if (text == "-") {
      throw Error(Errc::invalid_argument, "a pattern to warm is text or a file, not stdin");
    }
    const Pattern pattern = read_pattern(text);
    for (const int head_dim : group.head_dims) {
      for (const DType dtype : group.dtypes) {
        ProblemOptions options = group.problem;
        options.head_dim = head_dim;
        options.dtype = dtype;
        const Problem problem = options.resolve(pattern);
        for (const std::string& arch : group.archs) {
          specs.push_back({pattern, problem, arch, group.tile});
        }
      }
    }
  }
}

// What a line asks for, whole or not at all.
std::vector<Spec> specs_of_line(const std::string& line, const Group& defaults,
                                const std::string& where) {
  try {
    Group group = parse_line(line, defaults);
    if (group.archs.empty()) group.archs = {resolve_arch("")};
    std::vector<Spec> specs;
    add_specs(group, specs);
    for (Spec& spec : specs) spec.line = where;
    return specs;
  } catch (const Json::exception& error) {
    throw Error(Errc::invalid_argument,
                fmt::format("a line must be one JSON object: {}", support::message_of(error)));
  }
}

// JSON objects, one a line; empty lines and lines that start with # are skipped. A bad line is
// reported at once, for what the others ask for may take long, and stops nothing.
std::vector<BadLine> add_specs_of_file(const std::string& name, const Group& defaults,
                                       std::vector<Spec>& specs) {
  const std::optional<std::string> text =
      name == "-" ? support::read_all(STDIN_FILENO) : support::read_file(name);
  if (!text) {
    throw Error(Errc::invalid_argument,
                fmt::format("cannot read '{}' ({}): give a file of JSON lines, or - for stdin",
                            name, std::generic_category().message(errno)));
  }
  std::istringstream input(*text);
  std::vector<BadLine> bad_lines;
  int number = 0, num_asking = 0;
  for (std::string line; std::getline(input, line);) {
    ++number;
    const auto begin = line.find_first_not_of(" \t\r");
    if (begin == std::string::npos || line[begin] == '#') continue;
    ++num_asking;
    const std::string where = fmt::format("{}:{}", name == "-" ? "stdin" : name, number);
    try {
      const std::vector<Spec> own = specs_of_line(line, defaults, where);
      specs.insert(specs.end(), own.begin(), own.end());
    } catch (const Error& error) {
      print_error(fmt::format("girih: error: {}: {}\n", where, error.what()));
      bad_lines.push_back({where, error});
    }
  }
  if (num_asking == 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("'{}' names no kernels: give a JSON object a line, such as "
                            "{{\"pattern\": \"causal\"}}",
                            name));
  }
  return bad_lines;
}

// --- What is to be done

struct Job {
  enum class Status { hit, miss, compiled, failed, skipped };
  Spec spec;
  std::string arch, key;  // of the kernel; empty where the spec makes none
  Status status = Status::miss;
  double compile_ms = 0;
  std::string error;
  Errc code = Errc::internal;
};

const char* to_string(Job::Status status) {
  switch (status) {
    case Job::Status::hit:
      return "hit";
    case Job::Status::miss:
      return "miss";
    case Job::Status::compiled:
      return "compiled";
    case Job::Status::failed:
      return "failed";
    case Job::Status::skipped:
      break;
  }
  return "skipped";
}

std::string to_text(const Spec& spec) {
  if (!spec.line.empty()) {
    return fmt::format("{}: {} {}: {}", spec.line, spec.arch, tools::to_text(spec.problem),
                       spec.pattern.text());
  }
  if (spec.combine) return spec.arch + " combine";
  if (!spec.estimate.empty()) {
    return fmt::format("{} estimate of {}, {}, head_dim {}", spec.arch, spec.estimate,
                       to_string(spec.problem.dtype), spec.problem.head_dim);
  }
  return fmt::format("{} {}: {}", spec.arch, tools::to_text(spec.problem), spec.pattern.text());
}

jit::Artifact build(const Spec& spec, jit::Options options, jit::Emit emit = jit::Emit::cubin) {
  if (spec.combine) return jit::build_combine(spec.arch, options, emit);
  if (!spec.estimate.empty()) {
    const Problem& problem = spec.problem;
    const auto build_one =
        spec.estimate == kEstimates[0] ? jit::build_estimate : jit::build_estimate_blocks;
    return build_one(problem.dtype, problem.head_dim, spec.arch, options, emit);
  }
  options.tile = spec.tile;
  return jit::build(spec.pattern, spec.problem, spec.arch, options, emit);
}

void fail(Job& job, const Error& error) {
  job.status = Job::Status::failed;
  job.error = error.what();
  job.code = error.code();
}

// One job a kernel, and one for each spec that makes none; in the order of the specs.
std::vector<Job> make_jobs(const std::vector<Spec>& specs, const jit::Options& options) {
  const cache::DiskCache disk(runtime::resolve(options).cache);
  std::set<std::pair<std::string, std::string>> seen;
  std::vector<Job> jobs;
  for (const Spec& spec : specs) {
    Job job{.spec = spec, .arch = spec.arch, .key = {}, .error = {}};
    try {
      const jit::KernelInfo info = build(spec, options, jit::Emit::source).info;
      if (!seen.emplace(info.arch, info.key).second) continue;
      job.arch = info.arch;
      job.key = info.key;
      if (const auto found = disk.find({info.arch, info.key})) {
        job.status = Job::Status::hit;
        job.compile_ms = found->entry.compile_ms;
      }
    } catch (const Error& error) {
      fail(job, error);
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

void compile(Job& job, const jit::Options& options, const cache::DiskCache& disk) {
  try {
    const jit::Artifact artifact = build(job.spec, options);
    job.compile_ms = artifact.info.compile_ms;
    job.status = artifact.info.cache_hit ? Job::Status::hit : Job::Status::compiled;
    if (!disk.find({job.arch, job.key})) {
      throw Error(Errc::cache_io,
                  "compiled, but not written to the cache: see the warning, and `girih env`");
    }
  } catch (const Error& error) {
    fail(job, error);
  } catch (const std::exception& error) {
    fail(job, Error(Errc::internal, error.what()));
  }
}

// --- Interrupts: the first lets running compilations finish and publish, a second one kills.

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

class InterruptsNoted {
 public:
  InterruptsNoted() {
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = true; };
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
    ::sigaction(SIGINT, &action, &before_int_);
    ::sigaction(SIGTERM, &action, &before_term_);
  }
  ~InterruptsNoted() {
    ::sigaction(SIGINT, &before_int_, nullptr);
    ::sigaction(SIGTERM, &before_term_, nullptr);
  }
  InterruptsNoted(const InterruptsNoted&) = delete;
  InterruptsNoted& operator=(const InterruptsNoted&) = delete;

 private:
  struct sigaction before_int_ {};
  struct sigaction before_term_ {};
};

void compile_all(std::vector<Job>& jobs, int num_threads, const jit::Options& options) {
  std::vector<Job*> misses;
  for (Job& job : jobs) {
    if (job.status == Job::Status::miss) misses.push_back(&job);
  }
  const cache::DiskCache disk(runtime::resolve(options).cache);
  const InterruptsNoted interrupts;
  Progress progress("warm", misses.size());
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < misses.size(); i = next++) {
      Job& job = *misses[i];
      if (interrupted) {
        job.status = Job::Status::skipped;
        continue;
      }
      compile(job, options, disk);
      progress.step(fmt::format("{} {}", to_string(job.status), to_text(job.spec)));
    }
  };
  std::vector<std::jthread> threads;
  const auto most = static_cast<int>(std::min<std::size_t>(
      static_cast<std::size_t>(num_threads), std::max<std::size_t>(misses.size(), 1)));
  for (int i = 1; i < most; ++i) threads.emplace_back(work);
  work();
}

// --- What came of it

Json to_json(const Job& job) {
  Json json{{"status", to_string(job.status)},
            {"arch", job.arch},
            {"key", job.key},
            {"compile_ms", job.compile_ms}};
  if (!job.spec.line.empty()) json["line"] = job.spec.line;
  if (job.spec.combine) {
    json["combine"] = true;
  } else if (!job.spec.estimate.empty()) {
    json["estimate"] = {{"of", job.spec.estimate},
                        {"dtype", girih::to_string(job.spec.problem.dtype)},
                        {"head_dim", job.spec.problem.head_dim}};
  } else {
    json["pattern"] = job.spec.pattern.text();
    json["problem"] = tools::to_json(job.spec.problem);
  }
  if (!job.error.empty()) {
    json["error"] = {{"code", girih::to_string(job.code)}, {"message", job.error}};
  }
  return json;
}

// One failure's own code where all failures share it.
int exit_code_of(const std::vector<Job>& jobs, const std::vector<BadLine>& bad_lines) {
  std::vector<Errc> failures;
  for (const BadLine& bad : bad_lines) failures.push_back(bad.error.code());
  for (const Job& job : jobs) {
    if (job.status == Job::Status::failed) failures.push_back(job.code);
  }
  int code = kDone;
  for (const Errc failure : failures) {
    const int own = exit_code(failure);
    code = code == kDone || code == own ? own : kFailure;
  }
  return code;
}

}  // namespace

void add_warm(CLI::App& app, Context& context) {
  struct Options {
    std::string file;
    Group group;
    jit::Options jit;
    int jobs = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    bool combine = false, estimate = false;
    bool dry_run = false;
  };
  const auto options = std::make_shared<Options>();
  Group& group = options->group;

  CLI::App* verb =
      add_verb(app, context, "warm", "Compile many kernels into the cache ahead of time");
  verb->add_option("FILE", options->file,
                   "JSON lines, - for stdin: {\"pattern\": ..., \"head_dim\": ..., \"dtype\": ..., "
                   "\"heads\": ..., \"kv_heads\": ..., \"arch\": ...}; a list means each of its "
                   "values, and what a line leaves out the options below give");
  verb->add_option("--pattern", group.patterns, "Text or a file; may be repeated")
      ->allow_extra_args(false);
  verb->add_option("--head-dim", group.head_dims, "Widths of a head, e.g. 64,128")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str("128");
  verb->add_option("--head-dim-v", group.problem.head_dim_v,
                   "Of V and the output; default: the same");
  verb->add_option_function<std::vector<std::string>>(
          "--dtype",
          [&group](const std::vector<std::string>& names) { group.dtypes = parse_dtypes(names); },
          "bf16, fp16 or both: bf16,fp16")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str("bf16");
  verb->add_option("--arch", group.archs, "Such as sm_80,sm_90a; default: the present device's")
      ->delimiter(',')
      ->allow_extra_args(false);
  add_head_options(*verb, group.problem);
  verb->add_option("-j,--jobs", options->jobs, "Compilations at a time")->capture_default_str();
  verb->add_flag("--combine", options->combine, "Also the kernel that merges partial results");
  verb->add_flag(
      "--estimate", options->estimate,
      "Also the kernels that estimate columns and slashes, and blocks, for each dtype and "
      "head_dim");
  verb->add_flag("--dry-run", options->dry_run, "Only list the kernels and which are cached");
  add_tile_options(*verb, group.tile);
  add_jit_options(*verb, options->jit);

  verb->callback([options, &context] {
    check_range("--jobs", options->jobs, 1, 1024);
    const bool others = options->combine || options->estimate;
    if (options->file.empty() && options->group.patterns.empty() && !others) {
      throw Error(Errc::invalid_argument,
                  "nothing to warm: give FILE, --pattern, --combine or --estimate");
    }
    std::vector<Spec> specs;
    std::vector<BadLine> bad_lines;
    if (!options->file.empty()) {
      bad_lines = add_specs_of_file(options->file, options->group, specs);
    }
    if (!options->group.patterns.empty() || others) {
      if (options->group.archs.empty()) options->group.archs = {resolve_arch("")};
      add_specs(options->group, specs);
    }
    if (others) {
      for (const std::string& arch : options->group.archs) {
        if (options->combine) specs.push_back({dense(), {}, arch, {}, true, {}});
        if (options->estimate) add_estimates(options->group, arch, specs);
      }
    }

    const auto begin = std::chrono::steady_clock::now();
    std::vector<Job> jobs = make_jobs(specs, options->jit);
    if (!options->dry_run) compile_all(jobs, options->jobs, options->jit);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;

    std::map<std::string, std::size_t> counts;
    for (const char* status : {"hit", "miss", "compiled", "failed", "skipped"}) counts[status] = 0;
    for (const Job& job : jobs) ++counts[to_string(job.status)];
    context.exit_code = counts["skipped"] > 0 ? kInterrupted : exit_code_of(jobs, bad_lines);
    if (counts["skipped"] > 0) {
      print_error(fmt::format(
          "girih: interrupted: {} kernels are left; the same command goes on from here\n",
          counts["skipped"]));
    }
    const std::string folder = runtime::resolve(options->jit).cache.directory.string();
    if (context.json) {
      Json json{{"directory", folder},
                {"specs", specs.size()},
                {"jobs", options->jobs},
                {"seconds", elapsed.count()},
                {"interrupted", counts["skipped"] > 0}};
      for (const auto& [status, count] : counts) json[status] = count;
      json["kernels"] = Json::array();
      for (const Job& job : jobs) json["kernels"].push_back(to_json(job));
      json["bad_lines"] = Json::array();
      for (const BadLine& bad : bad_lines) {
        json["bad_lines"].push_back(
            {{"line", bad.line},
             {"error",
              {{"code", girih::to_string(bad.error.code())}, {"message", bad.error.what()}}}});
      }
      return print_json(json);
    }
    for (const BadLine& bad : bad_lines) {
      print(fmt::format("failed  {}\n        {}\n", bad.line, bad.error.what()));
    }
    const std::string bad_text =
        bad_lines.empty() ? "" : fmt::format(", {} lines not understood", bad_lines.size());
    for (const Job& job : jobs) {
      if (job.status == Job::Status::failed) {
        print(fmt::format("failed  {}\n        {}\n", to_text(job.spec), job.error));
      } else if (options->dry_run) {
        print(fmt::format("{:<7} {}  {}\n", to_string(job.status), job.key, to_text(job.spec)));
      }
    }
    print(options->dry_run
              ? fmt::format("{} specs: {} kernels to compile, {} cached, {} impossible{}; {}\n",
                            specs.size(), counts["miss"], counts["hit"], counts["failed"], bad_text,
                            folder)
              : fmt::format(
                    "{} specs: {} kernels compiled, {} were cached, {} failed{}{}, in "
                    "{:.1f} s; {}\n",
                    specs.size(), counts["compiled"], counts["hit"], counts["failed"],
                    counts["skipped"] > 0 ? fmt::format(", {} skipped", counts["skipped"]) : "",
                    bad_text, elapsed.count(), folder));
  });
}

}  // namespace girih::tools
