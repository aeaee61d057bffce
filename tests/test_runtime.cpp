// The main path without a GPU: sources, cubins and their cache, options against variables, and the
// arguments of a launch with every refusal.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "compile/nvrtc.hpp"
#include "girih/error.hpp"
#include "girih/jit.hpp"
#include "runtime/arguments.hpp"
#include "runtime/settings.hpp"
#include "runtime/softmax_scale.hpp"
#include "sandbox.hpp"
#include "support/fs.hpp"
#include "texts.hpp"
#include "verify/workload.hpp"

using namespace girih;
using jit::Artifact;
using jit::Emit;
using jit::Options;
using tests::contains;
using tests::error_of;
using tests::source_dir;
using tests::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

/// A variable of this process for as long as it lives.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    ::setenv(name, value.c_str(), 1);
  }
  ~ScopedVariable() { before_ ? ::setenv(name_, before_->c_str(), 1) : ::unsetenv(name_); }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

const Pattern kPattern = causal() & (sink(128) | window({.left = 255}));
const Problem kProblem{.head_dim = 64};
constexpr const char* kArch = "sm_80";

/// Nothing from the environment but where NVRTC is.
Options options_in(const fs::path& cache_dir) {
  Options options;
  options.mode = jit::Mode::automatic;
  options.cache_dir = cache_dir;
  options.cache_layers.emplace();
  return options;
}

Artifact build(const Options& options, Emit emit = Emit::cubin) {
  return jit::build(kPattern, kProblem, kArch, options, emit);
}

std::vector<fs::path> files_with(const fs::path& folder, const std::string& extension) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  for (const auto& file : fs::recursive_directory_iterator(folder)) {
    if (file.is_regular_file() && file.path().extension() == extension) {
      files.push_back(file.path());
    }
  }
  return files;
}

fs::path entry_in(const fs::path& cache_dir) {
  const auto entries = files_with(cache_dir, ".girih");
  REQUIRE(entries.size() == 1);
  return entries.front();
}

void check_same_cubin(const Artifact& a, const Artifact& b) {
  CHECK(a.source == b.source);
  CHECK(a.cubin == b.cubin);
  CHECK(a.info.arch == b.info.arch);
  CHECK(a.info.key == b.info.key);
  CHECK(a.info.tile == b.info.tile);
  CHECK(a.info.registers == b.info.registers);
  CHECK(a.info.spill_bytes == b.info.spill_bytes);
  CHECK(a.info.stack_bytes == b.info.stack_bytes);
  CHECK(a.info.shared_bytes == b.info.shared_bytes);
  CHECK(a.info.threads == b.info.threads);
  CHECK(a.info.compiler == b.info.compiler);
}

}  // namespace

// --- Building ------------------------------------------------------------------------------------

TEST_CASE("a source needs neither NVRTC nor a cache") {
  const TemporaryFolder folder;
  Options options = options_in(folder / "cache");
  options.nvrtc = "/nonexistent";
  options.mode = jit::Mode::off;
  const Artifact artifact = build(options, Emit::source);
  CHECK(contains(artifact.source, "girih_fwd"));
  CHECK(artifact.info.arch == "sm_80");
  CHECK(artifact.info.key.size() == 32);
  CHECK(artifact.info.threads > 0);
  CHECK(artifact.info.shared_bytes > 0);
  CHECK(artifact.cubin.empty());
  CHECK(artifact.ptx.empty());
  CHECK(!fs::exists(folder / "cache"));
}

TEST_CASE("the first build compiles and the second finds the same cubin") {
  const TemporaryFolder folder;
  const Artifact made = build(options_in(folder / "cache"));
  CHECK(!made.info.cache_hit);
  CHECK(
      made.cubin.starts_with("\x7f"
                             "ELF"));
  CHECK(made.info.registers > 0);
  CHECK(made.info.compile_ms > 0);
  CHECK(made.info.compiler.starts_with("NVRTC "));
  CHECK(contains(made.log, "girih_fwd"));
  CHECK(made.ptx.empty());
  CHECK(fs::exists(entry_in(folder / "cache")));

  const Artifact found = build(options_in(folder / "cache"));
  CHECK(found.info.cache_hit);
  CHECK(found.info.compile_ms == doctest::Approx(made.info.compile_ms));
  CHECK(found.log.empty());
  check_same_cubin(found, made);

  // A layer serves as well, and is not written to.
  Options layered = options_in(folder / "own");
  layered.cache_layers = {folder / "cache"};
  const Artifact from_layer = build(layered);
  CHECK(from_layer.info.cache_hit);
  check_same_cubin(from_layer, made);
}

TEST_CASE("process that builds from a warm cache" * doctest::skip()) {
  // All of it is named by variables.
  const Artifact artifact = jit::build(kPattern, kProblem, kArch);
  CHECK(artifact.info.cache_hit);
  CHECK(!compiler::library_loaded());
  const char* target = std::getenv("TEST_CUBIN");
  REQUIRE(target != nullptr);
  CHECK(support::write_file_atomically(target, artifact.cubin) == "");
}

TEST_CASE("a process without NVRTC runs from a warm cache") {
  const TemporaryFolder folder;
  const Artifact made = build(options_in(folder / "cache"));
  for (const char* mode : {"GIRIH_JIT", "GIRIH_JIT=auto", "GIRIH_JIT=off"}) {
    const tests::Ended ended = tests::run_test_case(
        "process that builds from a warm cache",
        {mode, "GIRIH_CACHE_DIR=" + (folder / "cache").string(), "GIRIH_NVRTC=/nonexistent",
         "GIRIH_CACHE_LAYERS", "GIRIH_TEMPLATE_DIR", "GIRIH_DUMP",
         "TEST_CUBIN=" + (folder / "cubin").string()});
    CAPTURE(ended.err);
    CHECK(ended.status == 0);
    CHECK(support::read_file(folder / "cubin") == made.cubin);
    fs::remove(folder / "cubin");
  }
}

TEST_CASE("without NVRTC a miss says where it was looked for") {
  const TemporaryFolder folder;
  Options options = options_in(folder / "cache");
  options.nvrtc = "/nonexistent";
  const Error error = error_of([&] { build(options); });
  CHECK(error.code() == Errc::compile_failed);
  CHECK(contains(error.what(), "/nonexistent"));
}

TEST_CASE("PTX is compiled anew, for the architecture, with tensor core instructions") {
  const TemporaryFolder folder;
  const Artifact artifact = build(options_in(folder / "cache"), Emit::ptx);
  CHECK(contains(artifact.ptx, ".target sm_80"));
  CHECK(contains(artifact.ptx, "mma.sync"));
  CHECK(contains(artifact.ptx, ".entry girih_fwd"));
  CHECK(artifact.cubin.empty());
  CHECK(!artifact.info.cache_hit);
  CHECK(artifact.info.registers > 0);
  CHECK(files_with(folder.path(), ".girih").empty());
}

TEST_CASE("with compilation off a miss says what is missing and what to do") {
  const TemporaryFolder folder;
  Options options = options_in(folder / "cache");
  options.mode = jit::Mode::off;
  const Error error = error_of([&] { build(options); });
  CHECK(error.code() == Errc::jit_disabled);
  const std::string key = build(options, Emit::source).info.key;
  CHECK(error.what() ==
        fmt::format("no cached kernel for '{}' on sm_80 (key {}) and compilation is off: unset "
                    "GIRIH_JIT, or run `girih compile` with the same options and --arch sm_80 "
                    "into this cache",
                    kPattern.text(), key));
  CHECK(!fs::exists(folder / "cache"));
}

TEST_CASE("what was compiled is dumped as source, cubin and log") {
  const TemporaryFolder folder;
  Options options = options_in(folder / "cache");
  options.dump_dir = folder / "new" / "dump";
  const Artifact made = build(options);
  const auto read = [&](const char* extension) {
    return support::read_file(*options.dump_dir /
                              fmt::format("{}.{}{}", made.info.arch, made.info.key, extension));
  };
  CHECK(read(".cu") == made.source);
  CHECK(read(".cubin") == made.cubin);
  CHECK(read(".log") == made.log);

  fs::remove_all(*options.dump_dir);
  CHECK(build(options).info.cache_hit);
  CHECK(read(".cubin") == made.cubin);  // a cached kernel is dumped too, without a log
  CHECK(read(".log") == "");
}

TEST_CASE("a folder of templates changes the key by what it holds") {
  const TemporaryFolder folder;
  fs::copy(source_dir() / "templates", folder / "templates", fs::copy_options::recursive);
  Options options = options_in(folder / "cache");
  const auto key = [&] { return build(options, Emit::source).info.key; };

  const std::string embedded = key();
  options.template_dir = folder / "templates";
  CHECK(key() == embedded);  // the same bytes: no path is part of a key

  const fs::path header = folder / "templates" / "girih" / "attn" / "softmax.cuh";
  const std::string text = support::read_file(header).value_or("");
  REQUIRE(support::write_file_atomically(header, text + "// edited\n") == "");
  CHECK(key() != embedded);
  REQUIRE(support::write_file_atomically(header, text) == "");
  CHECK(key() == embedded);
  const fs::path unused = folder / "templates" / "girih" / "unused.cuh";
  REQUIRE(support::write_file_atomically(unused, "#error\n") == "");
  CHECK(key() == embedded);

  options.template_dir = folder / "nothing";
  CHECK(error_of(key).code() == Errc::invalid_argument);
}

TEST_CASE("a template with an error is shown with its line") {
  const TemporaryFolder folder;
  Options options = options_in(folder / "cache");
  options.template_dir = folder.path();
  fs::create_directories(folder / "girih");
  REQUIRE(support::write_file_atomically(folder / "girih" / "fwd_sm80.cuh",
                                         "#pragma once\nint broken = misspelt;\n") == "");
  const Error error = error_of([&] { build(options); });
  CHECK(error.code() == Errc::compile_failed);
  CHECK(contains(error.what(), "misspelt"));
  CHECK(contains(error.what(), "girih/fwd_sm80.cuh"));
  CHECK(files_with(folder / "cache", ".girih").empty());
}

TEST_CASE("process that finds a damaged entry" * doctest::skip()) {
  const Artifact artifact = jit::build(kPattern, kProblem, kArch);
  CHECK(!artifact.info.cache_hit);
  const char* target = std::getenv("TEST_CUBIN");
  REQUIRE(target != nullptr);
  CHECK(support::write_file_atomically(target, artifact.cubin) == "");
}

TEST_CASE("a damaged cache entry is put aside and compiled again") {
  const TemporaryFolder folder;
  const Artifact made = build(options_in(folder / "cache"));
  const fs::path entry = entry_in(folder / "cache");
  std::string damaged = support::read_file(entry).value_or("");
  REQUIRE(damaged.size() > made.cubin.size());
  damaged[damaged.size() - made.cubin.size() / 2] ^= 1;
  REQUIRE(support::write_file_atomically(entry, damaged) == "");

  // In a process of its own, for its warning.
  const tests::Ended ended =
      tests::run_test_case("process that finds a damaged entry",
                           {"GIRIH_JIT", "GIRIH_LOG", "GIRIH_CACHE_LAYERS", "GIRIH_TEMPLATE_DIR",
                            "GIRIH_DUMP", "GIRIH_CACHE_DIR=" + (folder / "cache").string(),
                            "TEST_CUBIN=" + (folder / "cubin").string()});
  CAPTURE(ended.err);
  CHECK(ended.status == 0);
  CHECK(contains(ended.err, "warning"));
  CHECK(contains(ended.err, entry.filename().string()));
  CHECK(support::read_file(folder / "cubin") == made.cubin);

  CHECK(support::read_file(entry.string() + ".bad") == damaged);
  CHECK(build(options_in(folder / "cache")).info.cache_hit);  // it was written anew
}

// --- Options and variables -----------------------------------------------------------------------

TEST_CASE("options win over variables, and variables over defaults") {
  const ScopedVariable jit("GIRIH_JIT", "off");
  const ScopedVariable cache_dir("GIRIH_CACHE_DIR", "/variable/cache");
  const ScopedVariable layers("GIRIH_CACHE_LAYERS", "/variable/a::/variable/b:");
  const ScopedVariable nvrtc("GIRIH_NVRTC", "/variable/nvrtc");
  const ScopedVariable templates("GIRIH_TEMPLATE_DIR", "/variable/templates");
  const ScopedVariable dump("GIRIH_DUMP", "/variable/dump");

  const runtime::Settings variables = runtime::resolve({});
  CHECK(variables.mode == jit::Mode::off);
  CHECK(variables.cache.directory == "/variable/cache");
  CHECK(!variables.cache.directory_is_default);
  CHECK(variables.cache.layers == std::vector<fs::path>{"/variable/a", "/variable/b"});
  CHECK(variables.nvrtc == "/variable/nvrtc");
  CHECK(variables.template_dir == "/variable/templates");
  CHECK(variables.dump_dir == "/variable/dump");

  Options asked;
  asked.mode = jit::Mode::automatic;
  asked.cache_dir = "/option/cache";
  asked.cache_layers = {"/option/layer"};
  asked.nvrtc = "/option/nvrtc";
  asked.template_dir = "/option/templates";
  asked.dump_dir = "/option/dump";
  const runtime::Settings options = runtime::resolve(asked);
  CHECK(options.mode == jit::Mode::automatic);
  CHECK(options.cache.directory == "/option/cache");
  CHECK(!options.cache.directory_is_default);
  CHECK(options.cache.layers == std::vector<fs::path>{"/option/layer"});
  CHECK(options.nvrtc == "/option/nvrtc");
  CHECK(options.template_dir == "/option/templates");
  CHECK(options.dump_dir == "/option/dump");
}

TEST_CASE("empty variables count as unset") {
  std::vector<std::unique_ptr<ScopedVariable>> variables;
  for (const char* name : {"GIRIH_JIT", "GIRIH_CACHE_DIR", "GIRIH_CACHE_LAYERS", "GIRIH_NVRTC",
                           "GIRIH_TEMPLATE_DIR", "GIRIH_DUMP"}) {
    variables.push_back(std::make_unique<ScopedVariable>(name, ""));
  }
  const ScopedVariable base("XDG_CACHE_HOME", "/base");
  const runtime::Settings settings = runtime::resolve({});
  CHECK(settings.mode == jit::Mode::automatic);
  CHECK(settings.cache.directory == "/base/girih");
  CHECK(settings.cache.directory_is_default);
  CHECK(settings.cache.layers.empty());
  CHECK(!settings.nvrtc);
  CHECK(!settings.template_dir);
  CHECK(!settings.dump_dir);
}

TEST_CASE("a wrong value of GIRIH_JIT is refused unless an option wins") {
  const ScopedVariable jit("GIRIH_JIT", "on");
  const Error error = error_of([] { jit::build(kPattern, kProblem, kArch, {}, Emit::source); });
  CHECK(error.code() == Errc::invalid_argument);
  CHECK(error.what() == std::string("GIRIH_JIT=on is neither auto nor off"));
  const TemporaryFolder folder;
  CHECK(!build(options_in(folder / "cache"), Emit::source).source.empty());
}

TEST_CASE("GIRIH_CHECK_INPUTS is no or yes, and an option wins") {
  const auto with = [](const char* value) {
    const ScopedVariable variable("GIRIH_CHECK_INPUTS", value);
    CHECK(runtime::check_setting(jit::Check::no) == jit::Check::no);
    return runtime::check_setting({});
  };
  CHECK(with("") == jit::Check::no);
  CHECK(with("no") == jit::Check::no);
  CHECK(with("yes") == jit::Check::yes);
  CHECK_THROWS_WITH_AS(with("1"), "GIRIH_CHECK_INPUTS=1 is neither no nor yes", Error);
  const ScopedVariable variable("GIRIH_CHECK_INPUTS", "on");
  CHECK_THROWS_AS(jit::compile(Pattern::parse("causal")), Error);
}

// --- Binding -------------------------------------------------------------------------------------

TEST_CASE("binding without a driver or a context says what is missing") {
  // Where there is a driver, this process has made no context.
  for (const auto& bind : std::vector<std::function<void()>>{
           [] { jit::compile(kPattern).bind(kProblem); },
           [] { jit::compile(kPattern, kProblem); },
       }) {
    const Error error = error_of(bind);
    CHECK(error.code() == Errc::no_device);
    const std::string message = error.what();
    CAPTURE(message);
    const bool no_driver = contains(message, "there is no CUDA driver: libcuda.so.1") &&
                           contains(message, "install the NVIDIA driver");
    const bool no_device = message.starts_with("the CUDA driver found no usable device: ");
    const bool no_context = contains(message, "this thread has no current CUDA context") &&
                            contains(message, "make one current first");
    CHECK((no_driver || no_device || no_context));
  }
}

// --- Arguments of a launch -----------------------------------------------------------------------

namespace {

constexpr int kMost = 1 << 29;  // of lengths and positions

/// Memory that is never read: only its address is looked at.
alignas(16) std::array<unsigned char, 64> memory;

constexpr Problem kLaunched{
    .dtype = DType::float16, .head_dim = 64, .num_heads = 4, .num_heads_kv = 2};

/// Two sequences of 5 queries and 7 keys.
jit::Args valid_args() {
  const auto tensor = [](std::array<std::int64_t, 4> shape) {
    return Tensor::contiguous(memory.data(), DType::float16, shape);
  };
  jit::Args args;
  args.q = tensor({2, 5, 4, 64});
  args.k = tensor({2, 7, 2, 64});
  args.v = tensor({2, 7, 2, 64});
  args.out = tensor({2, 5, 4, 64});
  return args;
}

using Change = std::function<void(jit::Args&)>;

FwdParams params_with(const Change& change) {
  jit::Args args = valid_args();
  change(args);
  return runtime::forward_params(args, kLaunched);
}

std::string refusal(const Change& change) {
  const Error error = error_of([&] { params_with(change); });
  CHECK(error.code() == Errc::invalid_argument);
  return error.what();
}

}  // namespace

TEST_CASE("the problem of tensors is their type, width and heads") {
  CHECK(runtime::problem_of(valid_args()) == kLaunched);
}

TEST_CASE("tensors that pose no problem are refused") {
  const auto problem_refusal = [](const Change& change) {
    jit::Args args = valid_args();
    change(args);
    const Error error = error_of([&] { runtime::problem_of(args); });
    CHECK(error.code() == Errc::invalid_argument);
    return std::string(error.what());
  };
  const std::string range = ": it must be from 1 to 536870912";
  CHECK(problem_refusal([](auto& a) { a.q.shape[3] = 0; }) == "q's head_dim is 0" + range);
  CHECK(problem_refusal([](auto& a) { a.q.shape[3] = std::int64_t{1} << 40; }) ==
        "q's head_dim is 1099511627776" + range);
  CHECK(problem_refusal([](auto& a) { a.q.shape[2] = -4; }) == "q's number of heads is -4" + range);
  CHECK(problem_refusal([](auto& a) { a.k.shape[2] = 0; }) == "k's number of heads is 0" + range);
}

TEST_CASE("arguments become parameters, with defaults") {
  float lse[1];
  jit::Args args = valid_args();
  args.lse = lse;
  args.k_start = 100;
  args.k.stride = {9000, 136, 64, 1};
  const FwdParams params = runtime::forward_params(args, kLaunched);
  CHECK(params.q == memory.data());
  CHECK(params.k == memory.data());
  CHECK(params.v == memory.data());
  CHECK(params.out == memory.data());
  CHECK(params.lse == lse);
  CHECK(params.q_strides.batch == 5 * 4 * 64);
  CHECK(params.q_strides.row == 4 * 64);
  CHECK(params.q_strides.head == 64);
  CHECK(params.k_strides.batch == 9000);
  CHECK(params.k_strides.row == 136);
  CHECK(params.k_strides.head == 64);
  CHECK(params.v_strides.row == 2 * 64);
  CHECK(params.out_strides.batch == 5 * 4 * 64);
  CHECK(params.geometry.seqlen_q == 5);
  CHECK(params.geometry.seqlen_k == 7);
  CHECK(params.geometry.k_start == 100);
  CHECK(params.geometry.q_start == 102);  // the last query stands where the last key does
  CHECK(params.num_heads == 4);
  CHECK(params.geometry.head == 0);
  CHECK(params.geometry.head_kv == 0);
  CHECK(params.geometry.group_size == 2);
  CHECK(params.geometry.num_heads == 4);
  CHECK(params.softmax_scale_log2 ==
        doctest::Approx(0.125 * std::log2(std::exp(1.0))));  // 1 / sqrt(64)
}

TEST_CASE("a rank's heads are numbered as the model's") {
  const jit::Args args = valid_args();
  Problem problem = kLaunched;
  problem.head_offset = 6;
  problem.num_heads_total = 12;
  const FwdParams params = runtime::forward_params(args, problem);
  CHECK(params.geometry.head == 6);
  CHECK(params.geometry.head_kv == 3);
  CHECK(params.geometry.num_heads == 12);
}

TEST_CASE("given positions and scales are taken") {
  const FwdParams params = params_with([](auto& a) {
    a.q_start = -3;
    a.k_start = kMost;
    a.softmax_scale = 2.5f;
    a.max_ctas = 2;
  });
  CHECK(params.geometry.q_start == -3);
  CHECK(params.geometry.k_start == kMost);
  CHECK(params.softmax_scale_log2 == doctest::Approx(2.5 * std::log2(std::exp(1.0))));
  // Even 0: then every visible key counts the same, and a masked score stays -inf.
  const FwdParams zero = params_with([](auto& a) { a.softmax_scale = 0.0f; });
  CHECK(zero.softmax_scale_log2 > 0.0f);
  CHECK(zero.softmax_scale_log2 <= 1e-20f);
}

TEST_CASE("launches, references and calibrated files have one default scale, to the last bit") {
  for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
    verify::Case c;
    c.problem.head_dim = head_dim;
    const float scale = verify::softmax_scale_of(c);
    CHECK(scale == runtime::softmax_scale_of({}, head_dim));
    const float of_launch = runtime::softmax_scale_log2_of({}, head_dim);
    CHECK(of_launch == runtime::softmax_scale_log2_of(scale, head_dim));
  }
}

TEST_CASE("a tensor of another type is refused by name") {
  for (const auto& [name, tensor] :
       {std::pair{"q", &jit::Args::q}, std::pair{"k", &jit::Args::k}, std::pair{"v", &jit::Args::v},
        std::pair{"out", &jit::Args::out}}) {
    CHECK(refusal([&](auto& a) { (a.*tensor).dtype = DType::bfloat16; }) ==
          fmt::format("{} is bf16, but the kernel was bound for fp16", name));
  }
}

TEST_CASE("a tensor of another shape is refused by name") {
  const std::string order = " ([batch, seqlen, heads, head_dim])";
  CHECK(refusal([](auto& a) { a.q.shape[2] = 8; }) ==
        "q has shape [2, 5, 8, 64], expected [2, 5, 4, 64]" + order);
  CHECK(refusal([](auto& a) { a.q.shape[3] = 128; }) ==
        "q has shape [2, 5, 4, 128], expected [2, 5, 4, 64]" + order);
  CHECK(refusal([](auto& a) { a.k.shape[0] = 3; }) ==
        "k has shape [3, 7, 2, 64], expected [2, 7, 2, 64]" + order);
  CHECK(refusal([](auto& a) { a.k.shape[2] = 4; }) ==
        "k has shape [2, 7, 4, 64], expected [2, 7, 2, 64]" + order);
  CHECK(refusal([](auto& a) { a.v.shape[1] = 8; }) ==
        "v has shape [2, 8, 2, 64], expected [2, 7, 2, 64]" + order);
  CHECK(refusal([](auto& a) { a.out.shape[1] = 7; }) ==
        "out has shape [2, 7, 4, 64], expected [2, 5, 4, 64]" + order);
}

TEST_CASE("null and misaligned tensors are refused by name") {
  for (const auto& [name, tensor] :
       {std::pair{"q", &jit::Args::q}, std::pair{"k", &jit::Args::k}, std::pair{"v", &jit::Args::v},
        std::pair{"out", &jit::Args::out}}) {
    CHECK(refusal([&](auto& a) { (a.*tensor).data = nullptr; }) == fmt::format("{} is null", name));
    CHECK(refusal([&](auto& a) { (a.*tensor).data = memory.data() + 8; }) ==
          fmt::format("{} at {} is not aligned to 16 bytes", name,
                      static_cast<void*>(memory.data() + 8)));
    CHECK_NOTHROW(params_with([&](auto& a) { (a.*tensor).data = memory.data() + 16; }));
  }
}

TEST_CASE("strides that 16-byte copies cannot follow are refused") {
  CHECK(refusal([](auto& a) { a.q.stride[3] = 2; }) ==
        "q has stride 2 between the elements of a head: it must be 1");
  CHECK(refusal([](auto& a) { a.v.stride[3] = 0; }) ==
        "v has stride 0 between the elements of a head: it must be 1");
  const std::string multiple = ": it must be a multiple of 8 elements (16 bytes)";
  CHECK(refusal([](auto& a) { a.q.stride[0] = 1284; }) ==
        "q has stride 1284 in dimension 0" + multiple);
  CHECK(refusal([](auto& a) { a.k.stride[1] = 129; }) ==
        "k has stride 129 in dimension 1" + multiple);
  CHECK(refusal([](auto& a) { a.out.stride[2] = 65; }) ==
        "out has stride 65 in dimension 2" + multiple);
  for (const int dim : {0, 1, 2}) {
    CHECK(refusal([&](auto& a) { a.out.stride[dim] = 0; }) ==
          fmt::format("out has stride 0 in dimension {}: its elements would overlap, for 64 lie "
                      "within one step",
                      dim));
    // An input that repeats itself is fine.
    CHECK_NOTHROW(params_with([&](auto& a) { a.q.stride[dim] = a.k.stride[dim] = 0; }));
  }
}

TEST_CASE("a dimension of one element may have any stride") {
  jit::Args args = valid_args();
  for (Tensor* tensor : {&args.q, &args.k, &args.v, &args.out}) {
    tensor->shape[0] = 1;
    tensor->stride[0] = 3;
  }
  CHECK_NOTHROW(runtime::forward_params(args, kLaunched));
}

TEST_CASE("sequences without tokens need no memory") {
  const auto empty = [](int dim, std::initializer_list<Tensor jit::Args::*> tensors) {
    return params_with([&](auto& a) {
      for (const auto tensor : tensors) {
        (a.*tensor).shape[dim] = 0;
        (a.*tensor).data = nullptr;
        (a.*tensor).stride = {};
      }
    });
  };
  CHECK(empty(1, {&jit::Args::k, &jit::Args::v}).geometry.seqlen_k == 0);
  CHECK(empty(1, {&jit::Args::k, &jit::Args::v}).geometry.q_start == -5);
  CHECK(empty(1, {&jit::Args::q, &jit::Args::out}).geometry.seqlen_q == 0);
  CHECK_NOTHROW(empty(0, {&jit::Args::q, &jit::Args::k, &jit::Args::v, &jit::Args::out}));
}

TEST_CASE("lengths beyond the numbers' limit are refused") {
  const std::string range = ": it must be from 0 to 536870912";
  const auto resize = [](int dim, std::int64_t to, std::initializer_list<Tensor jit::Args::*> of) {
    const std::vector<Tensor jit::Args::*> tensors(of);
    return [=](jit::Args& a) {
      for (const auto tensor : tensors) (a.*tensor).shape[dim] = to;
    };
  };
  const auto queries = {&jit::Args::q, &jit::Args::out};
  const auto keys = {&jit::Args::k, &jit::Args::v};
  const auto all = {&jit::Args::q, &jit::Args::k, &jit::Args::v, &jit::Args::out};
  CHECK(refusal(resize(1, kMost + 1, queries)) == "seqlen_q is 536870913" + range);
  CHECK(refusal(resize(1, -1, queries)) == "seqlen_q is -1" + range);
  CHECK(refusal(resize(1, kMost + 1, keys)) == "seqlen_k is 536870913" + range);
  CHECK(refusal(resize(1, std::int64_t{1} << 40, keys)) == "seqlen_k is 1099511627776" + range);
  CHECK(refusal(resize(0, -2, all)) == "the batch is -2" + range);
  CHECK(refusal(resize(0, std::int64_t{1} << 32, all)) == "the batch is 4294967296" + range);
  CHECK(params_with(resize(1, kMost, keys)).geometry.seqlen_k == kMost);
}

TEST_CASE("a neighborhood's grid says how many queries there are, and the least number of keys") {
  const auto launch = [](const std::string& pattern, const Change& change) -> std::string {
    jit::Args args = valid_args();
    change(args);
    try {
      runtime::forward_params(args, kLaunched, pattern::grids_of(Pattern::parse(pattern)));
    } catch (const Error& error) {
      CHECK(error.code() == Errc::invalid_argument);
      return error.what();
    }
    return "";
  };
  const Change none = [](jit::Args&) {};
  CHECK(launch("neighborhood(5, window=3)", none) == "");
  CHECK(launch("heads(0: causal, else: !neighborhood(1x5, window=1) | sink(1))", none) == "");
  CHECK(launch("neighborhood(2x3, window=2) & causal", none) ==
        "seqlen_q 5 does not go with neighborhood(2x3): it must be the grid's 6 tokens");
  CHECK(launch("heads(0: neighborhood(5, window=2), else: neighborhood(4, window=2))", none) ==
        "seqlen_q 5 does not go with neighborhood(4): it must be the grid's 4 tokens");
  const Change few_keys = [](jit::Args& args) { args.k.shape[1] = args.v.shape[1] = 4; };
  CHECK(launch("neighborhood(5, window=3)", few_keys) ==
        "seqlen_k 4 does not go with neighborhood(5): it must be the grid's 5 tokens, or more with "
        "extra keys behind them");
}

TEST_CASE("positions beyond the numbers' limit are refused") {
  CHECK(refusal([](auto& a) { a.k_start = -1; }) ==
        "k_start is -1: it must be from 0 to 536870912");
  CHECK(refusal([](auto& a) { a.k_start = kMost + 1, a.q_start = 0; }) ==
        "k_start is 536870913: it must be from 0 to 536870912");
  const std::string range = ": it must be from -536870912 to 536870912";
  CHECK(refusal([](auto& a) { a.q_start = kMost + 1; }) == "q_start is 536870913" + range);
  CHECK(refusal([](auto& a) { a.q_start = -kMost - 1; }) == "q_start is -536870913" + range);
  // The default follows from k_start, and may leave the range with it.
  CHECK(refusal([](auto& a) { a.k_start = kMost; }) == "q_start is 536870914" + range);
  CHECK(refusal([](auto& a) { a.k_start = std::numeric_limits<int>::max(); }) ==
        "k_start is 2147483647: it must be from 0 to 536870912");
  CHECK(params_with([](auto& a) { a.q_start = -kMost; }).geometry.q_start == -kMost);
}

TEST_CASE("scales that are no finite factor are refused") {
  for (const auto& [scale, text] :
       {std::pair{std::numeric_limits<float>::quiet_NaN(), "nan"}, std::pair{-0.5f, "-0.5"},
        std::pair{std::numeric_limits<float>::infinity(), "inf"},
        std::pair{-std::numeric_limits<float>::infinity(), "-inf"}}) {
    CHECK(refusal([&](auto& a) { a.softmax_scale = scale; }) ==
          fmt::format("softmax_scale {} must be finite and not negative", text));
  }
}

TEST_CASE("a misaligned lse and a negative cap of CTAs are refused") {
  void* const odd = memory.data() + 2;
  CHECK(refusal([&](auto& a) { a.lse = static_cast<float*>(odd); }) ==
        fmt::format("lse at {} is not aligned to 4 bytes", odd));
  CHECK(refusal([](auto& a) { a.max_ctas = -1; }) == "max_ctas -1 must not be negative");
}
