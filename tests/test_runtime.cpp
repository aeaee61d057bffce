// The main path without a GPU: sources, cubins and their cache, and options against variables.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compile/nvrtc.hpp"
#include "girih/error.hpp"
#include "girih/jit.hpp"
#include "runtime/settings.hpp"
#include "sandbox.hpp"
#include "support/fs.hpp"
#include "texts.hpp"

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
