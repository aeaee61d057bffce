// What the verbs of the `girih` program share: their options, their input and their output.
//
// A verb is one file with one function, add_<verb>, which adds a subcommand, its options and a
// callback. stdout is the result, stderr the log. A callback reports bad news by throwing
// girih::Error; main turns that into a message (with --json an object on stdout too) and an exit
// code. A verb that ran but found something wrong sets Context::exit_code.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "girih/girih.hpp"

namespace girih::tools {

using Json = nlohmann::ordered_json;

/// Exit codes of the program. An interrupt ends it by the signal, which a shell shows as 130;
/// a verb that has something to finish first exits with that.
enum ExitCode : int {
  kDone = 0,
  kFailure = 1,
  kUsage = 2,
  kUnsupported = 3,
  kCompileFailed = 4,
  kNoDevice = 5,
  kJitDisabled = 6,
  kInterrupted = 130,
};
ExitCode exit_code(Errc code);

struct Context {
  bool json = false;  ///< --json was given
  int exit_code = kDone;
};

void add_bench(CLI::App& app, Context& context);
void add_calibrate(CLI::App& app, Context& context);
void add_cache(CLI::App& app, Context& context);
void add_compile(CLI::App& app, Context& context);
void add_env(CLI::App& app, Context& context);
void add_explain(CLI::App& app, Context& context);
void add_import(CLI::App& app, Context& context);
void add_show(CLI::App& app, Context& context);
void add_source(CLI::App& app, Context& context);
void add_tune(CLI::App& app, Context& context);
void add_verify(CLI::App& app, Context& context);
void add_warm(CLI::App& app, Context& context);

/// A subcommand with --json. Give it a callback: verb->callback([...] { ... }).
CLI::App* add_verb(CLI::App& app, Context& context, const std::string& name,
                   const std::string& description);

// --- Options that several verbs take. Values must outlive the parse: keep them in a shared_ptr
// --- which the verb's callback owns.

/// PATTERN, the required first argument.
CLI::Option* add_pattern_argument(CLI::App& verb, std::string& text);

/// --head-dim --head-dim-v --dtype --heads --kv-heads --head-offset --heads-total, as they were
/// given.
struct ProblemOptions {
  int head_dim = 128;
  int head_dim_v = 0;  ///< as head_dim
  DType dtype = DType::bfloat16;
  std::optional<int> num_heads;
  std::optional<int> num_heads_kv;
  int head_offset = 0;
  int num_heads_total = 0;
  bool shared_inputs = false;

  /// Heads left out are one query head, or as many KV heads as query heads; a pattern that counts
  /// heads needs them. @throws Error invalid_argument, also where the heads do not fit the pattern.
  Problem resolve(const Pattern& pattern) const;
};
void add_problem_options(CLI::App& verb, ProblemOptions& options);
/// Only --heads --kv-heads --head-offset --heads-total.
void add_head_options(CLI::App& verb, ProblemOptions& options);

/// --layout
void add_layout_option(CLI::App& verb, Layout& layout,
                       const char* help = "bshd, bhsd or thd: sequences packed one after another");

/// --block-m --block-n --stages --warps; left out, the plan chooses.
void add_tile_options(CLI::App& verb, TileConfig& tile);

/// For a folder that `option` names, and that is only read.
/// @throws Error invalid_argument where it is not there: its name may be wrong.
void check_cache_folder(const std::filesystem::path& folder, const char* option);

/// --cache-dir --cache-layer
void add_cache_options(CLI::App& verb, jit::Options& options);

/// These and --nvrtc --template-dir --dump.
void add_compile_options(CLI::App& verb, jit::Options& options);

/// --jit auto|off
void add_mode_option(CLI::App& verb, jit::Options& options);

/// --tune db|auto|off
void add_tune_option(CLI::App& verb, jit::Options& options);

/// All of these. They are twins of environment variables.
void add_jit_options(CLI::App& verb, jit::Options& options);

/// --arch; empty means the present device's.
void add_arch_option(CLI::App& verb, std::string& arch);

/// --seqlen-q --seqlen-k, with the default given, or the tokens of the pattern's grid.
void add_length_options(CLI::App& verb, int& seqlen_q, int& seqlen_k);
void default_to_grid(const CLI::App& verb, const Pattern& pattern, int& seqlen_q, int& seqlen_k);

/// @throws Error invalid_argument unless least <= value <= most.
void check_range(const char* option, std::int64_t value, std::int64_t least, std::int64_t most);

// --- Input

/// The pattern in a PATTERN argument: text, or the contents of a file: `@FILE`, a path that exists
/// and is no pattern, or `-` for stdin. In a file, `#` and what follows it in its line is a
/// comment, and line breaks are spaces. @throws Error invalid_argument.
Pattern read_pattern(const std::string& argument);

/// The value of a member of a JSON file. @throws Error invalid_argument, which names the member and
/// the value, unless it is a whole number from `least` to `most`, or a text.
int integer_of(std::string_view member, const Json& value, int least, int most);
std::string string_of(std::string_view member, const Json& value);

/// @throws Error invalid_argument unless it is "bf16" or "fp16".
DType parse_dtype(std::string_view text);

/// `arch`, or where it is empty the present device's, e.g. "sm_90".
/// @throws Error no_device, whose message names --arch.
std::string resolve_arch(const std::string& arch);

// --- Output

/// An object for --json, pretty-printed, on stdout.
void print_json(const Json& json);

/// Writes to stdout; `text` should end in a line break.
void print(std::string_view text);

/// Writes to stderr, whole or not at all: what cannot be written there is lost, and throws nothing.
void print_error(std::string_view text);

/// Before a long computation: @throws Error invalid_argument when write_output could not write
/// `path`, or when it is one of `inputs`, whose bytes would be lost.
void check_output(const std::filesystem::path& path, const std::vector<std::string>& inputs);

/// The whole file or, when that fails, what was there before. A link's target is written, a device
/// or a pipe in place. @throws Error invalid_argument when it cannot be written.
void write_output(const std::filesystem::path& path, std::string_view bytes);

Json to_json(const TileConfig& tile);
Json to_json(const Problem& problem);
Json to_json(const jit::KernelInfo& info);

/// "bf16, head_dim 128, heads 32, KV heads 8"
std::string to_text(const Problem& problem);
/// "128 x 64, 2 stages, 4 warps"
std::string to_text(const TileConfig& tile);
/// Several lines: registers, spills, stack, shared memory, threads, compile time, cache.
std::string to_text(const jit::KernelInfo& info);

/// "612 bytes", "48.2 KiB", "1.5 GiB"
std::string bytes_text(std::uintmax_t bytes);

/// Ascending numbers as ranges: "0-15+31".
std::string ranges_text(const std::vector<int>& numbers);

}  // namespace girih::tools
