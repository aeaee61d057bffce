#include "common.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <sstream>
#include <system_error>

#include "pattern/grid.hpp"
#include "support/fs.hpp"
#include "verify/device.hpp"

namespace girih::tools {
namespace {

// Of a pattern's file, or of stdin, "-".
std::string file_text(const std::string& name) {
  const auto text = name == "-" ? support::read_all(STDIN_FILENO) : support::read_file(name);
  if (!text) {
    throw Error(Errc::invalid_argument,
                fmt::format("cannot read the pattern file '{}' ({}): it must exist and be readable",
                            name, std::generic_category().message(errno)));
  }
  return *text;
}

// Without lines that are comments, which may stand inside an expression's string, too. Line breaks
// stay: a comment behind a part of the pattern ends with its line, and messages count lines.
std::string without_comments(const std::string& text) {
  std::istringstream lines(text);
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    const auto begin = line.find_first_not_of(" \t\r");
    if (begin != std::string::npos && line[begin] != '#') kept += line;
    kept += '\n';
  }
  return kept;
}

std::string error_text(int error) { return std::generic_category().message(error); }

[[noreturn]] void cannot_write(const std::filesystem::path& path, const std::string& why) {
  throw Error(
      Errc::invalid_argument,
      fmt::format("cannot write '{}': {}; give a file in a folder that you can write to and "
                  "that has room",
                  path.string(), why));
}

// Where links lead to: they stay, and /dev/stdout is one. A device or a pipe may have no name of
// its own and is written by the one given.
std::filesystem::path target_of(std::filesystem::path path) {
  constexpr int kMostLinks = 40;
  std::error_code error;
  for (int i = 0; i < kMostLinks && std::filesystem::is_symlink(path, error); ++i) {
    if (std::filesystem::is_other(std::filesystem::status(path, error))) break;
    path = path.parent_path() / std::filesystem::read_symlink(path, error);
  }
  return path;
}

// For a message: short, whatever bytes are in it.
std::string json_text(const Json& value) {
  constexpr std::size_t kMost = 60;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

jit::Mode parse_mode(std::string_view text) {
  if (text == "auto") return jit::Mode::automatic;
  if (text == "off") return jit::Mode::off;
  throw Error(Errc::invalid_argument,
              fmt::format("--jit '{}' is not known: auto and off are", text));
}

jit::Tune parse_tune(std::string_view text) {
  if (text == "db") return jit::Tune::db;
  if (text == "auto") return jit::Tune::automatic;
  if (text == "off") return jit::Tune::off;
  throw Error(Errc::invalid_argument,
              fmt::format("--tune '{}' is not known: db, auto and off are", text));
}

Layout parse_layout(const std::string& text) {
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    if (text == to_string(layout)) return layout;
  }
  throw Error(Errc::invalid_argument,
              fmt::format("'{}' is not a layout: bshd, bhsd and thd are", text));
}

const char* const kJitGroup = "Compiling and caching (each overrides the variable beside it)";

void add_path_option(CLI::App& verb, const char* name, std::optional<std::filesystem::path>& path,
                     const char* description) {
  verb.add_option_function<std::string>(
          name, [&path](const std::string& text) { path = text; }, description)
      ->group(kJitGroup);
}

}  // namespace

ExitCode exit_code(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
      return kUsage;
    case Errc::unsupported:
      return kUnsupported;
    case Errc::compile_failed:
      return kCompileFailed;
    case Errc::no_device:
      return kNoDevice;
    case Errc::jit_disabled:
      return kJitDisabled;
    case Errc::cache_io:
    case Errc::driver:
    case Errc::internal:
      break;
  }
  return kFailure;
}

CLI::App* add_verb(CLI::App& app, Context& context, const std::string& name,
                   const std::string& description) {
  CLI::App* verb = app.add_subcommand(name, description);
  verb->add_flag("--json", context.json, "Print one JSON object on stdout");
  return verb;
}

CLI::Option* add_pattern_argument(CLI::App& verb, std::string& text) {
  return verb
      .add_option("PATTERN", text, "What may attend to what: text, a file, @FILE, or - for stdin")
      ->required();
}

Problem ProblemOptions::resolve(const Pattern& pattern) const {
  if (pattern.per_head() && !num_heads) {
    throw Error(Errc::invalid_argument,
                "this pattern names heads, so their number is needed: give --heads");
  }
  if (pattern.per_head() && pattern.head_unit() == Pattern::HeadUnit::kv && !num_heads_kv) {
    throw Error(Errc::invalid_argument,
                "this pattern names key/value heads, so their number is needed: give --kv-heads");
  }
  Problem problem;
  problem.dtype = dtype;
  problem.head_dim = head_dim;
  problem.head_dim_v = head_dim_v;
  problem.num_heads = num_heads.value_or(num_heads_kv.value_or(1));
  problem.num_heads_kv = num_heads_kv.value_or(problem.num_heads);
  problem.head_offset = head_offset;
  problem.num_heads_total = num_heads_total;
  problem.shared_inputs = shared_inputs;
  pattern.class_of_head(problem);  // throws where it does not cover them
  return problem;
}

void add_head_options(CLI::App& verb, ProblemOptions& options) {
  verb.add_option("--heads", options.num_heads, "Query heads");
  verb.add_option("--kv-heads", options.num_heads_kv,
                  "Key/value heads, a divisor of --heads; default: as many");
  verb.add_option("--head-offset", options.head_offset,
                  "Where a tensor-parallel rank's query heads begin among the model's");
  verb.add_option("--heads-total", options.num_heads_total,
                  "Query heads of the whole model; default: --heads");
  verb.add_flag("--shared-inputs", options.shared_inputs,
                "The query heads of a KV head see the same blocks of run-time inputs");
}

void add_problem_options(CLI::App& verb, ProblemOptions& options) {
  verb.add_option("--head-dim", options.head_dim, "Width of a head")->capture_default_str();
  verb.add_option("--head-dim-v", options.head_dim_v, "Of V and the output; default: the same");
  verb.add_option_function<std::string>(
          "--dtype", [&options](const std::string& text) { options.dtype = parse_dtype(text); },
          "bf16 or fp16")
      ->default_str(to_string(options.dtype));
  add_head_options(verb, options);
}

void add_layout_option(CLI::App& verb, Layout& layout, const char* help) {
  verb.add_option_function<std::string>(
          "--layout", [&layout](const std::string& text) { layout = parse_layout(text); }, help)
      ->default_str(to_string(layout));
}

void add_tile_options(CLI::App& verb, TileConfig& tile) {
  const std::string group = "Tile (what is left out, Girih chooses)";
  verb.add_option("--block-m", tile.block_m, "Query rows of a tile")->group(group);
  verb.add_option("--block-n", tile.block_n, "Keys of a tile")->group(group);
  verb.add_option("--stages", tile.num_stages, "K/V tiles in flight")->group(group);
  verb.add_option("--warps", tile.num_warps, "Warps of a CTA")->group(group);
  verb.add_option("--q-stages", tile.num_q_stages, "Q tiles in flight (Hopper's kernel)")
      ->group(group);
  verb.add_flag("--portable", tile.portable, "Take the kernel that runs on every GPU")
      ->group(group);
}

void check_cache_folder(const std::filesystem::path& folder, const char* option) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(folder, error);
  if (std::filesystem::is_directory(status)) return;
  throw Error(Errc::invalid_argument,
              fmt::format("{} '{}' {}: give a cache's folder", option, folder.string(),
                          std::filesystem::exists(status) ? "is not a folder"
                                                          : "does not exist or is out of reach"));
}

void add_cache_options(CLI::App& verb, jit::Options& options) {
  add_path_option(verb, "--cache-dir", options.cache_dir, "Folder of the cache (GIRIH_CACHE_DIR)");
  verb.add_option_function<std::vector<std::string>>(
          "--cache-layer",
          [&options](const std::vector<std::string>& folders) {
            for (const std::string& folder : folders) check_cache_folder(folder, "--cache-layer");
            options.cache_layers.emplace(folders.begin(), folders.end());
          },
          "Read-only cache folder, may be repeated (GIRIH_CACHE_LAYERS)")
      ->allow_extra_args(false)
      ->group(kJitGroup);
}

void add_mode_option(CLI::App& verb, jit::Options& options) {
  verb.add_option_function<std::string>(
          "--jit", [&options](const std::string& text) { options.mode = parse_mode(text); },
          "Whether a cache miss may compile, auto or off (GIRIH_JIT)")
      ->group(kJitGroup);
}

void add_tune_option(CLI::App& verb, jit::Options& options) {
  verb.add_option_function<std::string>(
          "--tune", [&options](const std::string& text) { options.tune = parse_tune(text); },
          "Whether tiles are measured ones: db, auto (measures them, too) or off (GIRIH_TUNE)")
      ->group(kJitGroup);
}

void add_compile_options(CLI::App& verb, jit::Options& options) {
  add_cache_options(verb, options);
  add_path_option(verb, "--nvrtc", options.nvrtc, "NVRTC, the library or its folder (GIRIH_NVRTC)");
  add_path_option(verb, "--template-dir", options.template_dir,
                  "Templates to use first (GIRIH_TEMPLATE_DIR)");
  add_path_option(verb, "--dump", options.dump_dir,
                  "Folder for what is made on the way (GIRIH_DUMP)");
}

void add_jit_options(CLI::App& verb, jit::Options& options) {
  add_mode_option(verb, options);
  add_tune_option(verb, options);
  add_compile_options(verb, options);
}

void add_arch_option(CLI::App& verb, std::string& arch) {
  verb.add_option("--arch", arch, "Such as sm_80 or sm_90a; default: the present device's");
}

void add_length_options(CLI::App& verb, int& seqlen_q, int& seqlen_k) {
  verb.add_option("--seqlen-q", seqlen_q, "Query rows; by default, all of a grid's tokens")
      ->capture_default_str();
  verb.add_option("--seqlen-k", seqlen_k, "Keys; by default, all of a grid's tokens")
      ->capture_default_str();
}

void default_to_grid(const CLI::App& verb, const Pattern& pattern, int& seqlen_q, int& seqlen_k) {
  const std::vector<pattern::Grid> grids = pattern::grids_of(pattern);
  if (grids.empty()) return;
  if (verb.count("--seqlen-q") == 0) seqlen_q = grids.front().tokens;
  if (verb.count("--seqlen-k") == 0) seqlen_k = grids.front().tokens;
}

void check_range(const char* option, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (least <= value && value <= most) return;
  throw Error(Errc::invalid_argument,
              fmt::format("{} {} is out of range: give {} to {}", option, value, least, most));
}

namespace {

Pattern read_pattern_file(const std::string& path) {
  const std::string text = without_comments(file_text(path));
  if (text.find_first_not_of(" \t\r\n") == text.npos) {
    throw Error(Errc::invalid_argument,
                fmt::format("there is no pattern in '{}': it is empty, but for comments", path));
  }
  return Pattern::parse(text);
}

}  // namespace

Pattern read_pattern(const std::string& argument) {
  if (argument == "-") return read_pattern_file(argument);
  if (argument.starts_with('@')) return read_pattern_file(argument.substr(1));
  try {
    return Pattern::parse(argument);
  } catch (const Error& parse_error) {
    std::error_code error;  // a long pattern is no file name, and that is fine
    if (std::filesystem::is_regular_file(argument, error)) return read_pattern_file(argument);
    // A '/' of a pattern is inside an expression, and so behind a '('.
    const bool path = argument.ends_with(".girih") ||
                      argument.substr(0, argument.find('(')).find('/') != argument.npos;
    if (!path || parse_error.code() != Errc::invalid_argument) throw;
    if (std::filesystem::is_directory(argument, error)) {
      throw Error(Errc::invalid_argument,
                  fmt::format("'{}' is a folder: give a file, or a pattern's text", argument));
    }
    throw Error(
        Errc::invalid_argument,
        fmt::format("there is no file '{}': give one that exists, or a pattern's text", argument));
  }
}

int integer_of(std::string_view member, const Json& value, int least, int most) {
  // What is beyond int64 is held as unsigned, or, like what has a fraction, as floating.
  const bool whole = value.is_number_integer() &&
                     !(value.is_number_unsigned() &&
                       value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max());
  const std::int64_t number = whole ? value.get<std::int64_t>() : 0;
  if (whole && least <= number && number <= most) return static_cast<int>(number);
  throw Error(Errc::invalid_argument, fmt::format("{} {} must be a whole number from {} to {}",
                                                  member, json_text(value), least, most));
}

std::string string_of(std::string_view member, const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  throw Error(Errc::invalid_argument,
              fmt::format("{} {} must be a text in quotes", member, json_text(value)));
}

DType parse_dtype(std::string_view text) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    if (text == to_string(dtype)) return dtype;
  }
  throw Error(Errc::invalid_argument,
              fmt::format("dtype '{}' is not known: bf16 and fp16 are", text));
}

std::string resolve_arch(const std::string& arch) {
  if (!arch.empty()) return arch;
  std::string reason;
  if (!verify::device_available(&reason)) {
    throw Error(Errc::no_device,
                fmt::format("no GPU to compile for ({}): name an architecture, e.g. --arch sm_90a",
                            reason));
  }
  return verify::Device().arch();
}

void print_json(const Json& json) {
  // Bytes that are not UTF-8 can come in with a path or a pattern; they must not stop an answer.
  print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void print_error(std::string_view text) {
  // There is nowhere to say that this failed; an exception here would end the program.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

void check_output(const std::filesystem::path& path, const std::vector<std::string>& inputs) {
  const std::filesystem::path target = target_of(path);
  std::error_code error;
  for (const std::string& input : inputs) {
    if (!std::filesystem::is_regular_file(target, error)) break;
    if (!std::filesystem::equivalent(target, input, error)) continue;
    throw Error(Errc::invalid_argument,
                fmt::format("'{}' is read, too, and would be overwritten: give another output",
                            path.string()));
  }
  if (std::filesystem::is_directory(target, error)) cannot_write(path, error_text(EISDIR));
  const bool in_place = std::filesystem::is_other(std::filesystem::status(target, error));
  const std::filesystem::path folder =
      target.has_parent_path() ? target.parent_path() : std::filesystem::path(".");
  if (in_place ? ::access(target.c_str(), W_OK) != 0
               : target.empty() || ::access(folder.c_str(), W_OK | X_OK) != 0) {
    cannot_write(path, error_text(target.empty() ? ENOENT : errno));
  }
}

void write_output(const std::filesystem::path& path, std::string_view bytes) {
  const std::string why = support::write_file_atomically(target_of(path), bytes);
  if (!why.empty()) cannot_write(path, why);
}

Json to_json(const TileConfig& tile) {
  return {{"block_m", tile.block_m},
          {"block_n", tile.block_n},
          {"num_stages", tile.num_stages},
          {"num_warps", tile.num_warps},
          {"num_q_stages", tile.num_q_stages}};
}

Json to_json(const Problem& problem) {
  return {{"dtype", to_string(problem.dtype)},    {"head_dim", problem.head_dim},
          {"head_dim_v", problem.width_v()},      {"num_heads", problem.num_heads},
          {"num_heads_kv", problem.num_heads_kv}, {"layout", to_string(problem.layout)},
          {"head_offset", problem.head_offset},   {"num_heads_total", problem.heads_total()}};
}

Json to_json(const jit::KernelInfo& info) {
  return {{"arch", info.arch},
          {"kernel", info.kernel},
          {"key", info.key},
          {"tile", to_json(info.tile)},
          {"tile_source", info.tile_source},
          {"registers", info.registers},
          {"spill_bytes", info.spill_bytes},
          {"stack_bytes", info.stack_bytes},
          {"shared_bytes", info.shared_bytes},
          {"threads", info.threads},
          {"compile_ms", info.compile_ms},
          {"cache_hit", info.cache_hit},
          {"compiler", info.compiler}};
}

std::string to_text(const Problem& problem) {
  return fmt::format(
      "{}, head_dim {}{}, heads {}{}, KV heads {}", to_string(problem.dtype), problem.head_dim,
      problem.width_v() == problem.head_dim ? "" : fmt::format(" and {} of V", problem.width_v()),
      problem.num_heads,
      problem.heads_total() == problem.num_heads
          ? ""
          : fmt::format(" ({} and on of {})", problem.head_offset, problem.heads_total()),
      problem.num_heads_kv);
}

std::string to_text(const TileConfig& tile) {
  return fmt::format("{} x {}, {} stages, {} warps", tile.block_m, tile.block_n, tile.num_stages,
                     tile.num_warps);
}

std::string to_text(const jit::KernelInfo& info) {
  return fmt::format(
      "arch        {}, kernel {}\n"
      "tile        {} ({})\n"
      "registers   {} a thread, {} bytes spilled, {} bytes of stack\n"
      "CTA         {} threads, {} bytes of shared memory\n"
      "compiled    in {:.0f} ms by {}{}\n"
      "key         {}\n",
      info.arch, info.kernel, to_text(info.tile), info.tile_source, info.registers,
      info.spill_bytes, info.stack_bytes, info.threads, info.shared_bytes, info.compile_ms,
      info.compiler, info.cache_hit ? ", found in the cache" : "", info.key);
}

std::string bytes_text(std::uintmax_t bytes) {
  if (bytes < 1024) return fmt::format("{} bytes", bytes);
  double value = static_cast<double>(bytes) / 1024;
  const char* unit = "KiB";
  for (const char* larger : {"MiB", "GiB"}) {
    if (value < 1024) break;
    value /= 1024;
    unit = larger;
  }
  return fmt::format("{:.1f} {}", value, unit);
}

std::string ranges_text(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!text.empty()) text += '+';
    text +=
        i == last ? fmt::format("{}", numbers[i]) : fmt::format("{}-{}", numbers[i], numbers[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace girih::tools
