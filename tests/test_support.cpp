// Names, digests, environment variables, log lines and files.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <set>

#include "girih/error.hpp"
#include "girih/problem.hpp"
#include "sandbox.hpp"
#include "support/env.hpp"
#include "support/fs.hpp"
#include "support/hash.hpp"
#include "support/log.hpp"
#include "texts.hpp"

using namespace girih;
using namespace girih::support;
using tests::count_of;
using tests::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

int files_in(const fs::path& folder) {
  return static_cast<int>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("every error code has a name of its own") {
  CHECK(std::string(to_string(Errc::invalid_argument)) == "invalid_argument");
  CHECK(std::string(to_string(Errc::internal)) == "internal");
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(Errc::internal); ++code)
    names.insert(to_string(static_cast<Errc>(code)));
  CHECK(names.size() == static_cast<std::size_t>(Errc::internal) + 1);
  CHECK(names.count("unknown") == 0);
}

TEST_CASE("types and layouts are named as in pattern text and JSON") {
  CHECK(std::string(to_string(DType::float16)) == "fp16");
  CHECK(std::string(to_string(DType::bfloat16)) == "bf16");
  CHECK(std::string(to_string(Layout::bshd)) == "bshd");
}

TEST_CASE("digests are XXH3-128 in canonical order") {
  CHECK(digest("") == "99aa06d3014798d86001c324468d497f");  // published test vector, seed 0
  CHECK(digest("a") != digest("b"));
  CHECK(digest(std::string(1, '\0')) != digest(""));
  const std::string raw = digest_bytes("");
  REQUIRE(raw.size() == 16);
  CHECK(static_cast<unsigned char>(raw.front()) == 0x99);
  CHECK(static_cast<unsigned char>(raw.back()) == 0x7f);
}

TEST_CASE("an empty variable counts as unset") {
  CHECK(tests::in_child([] {
          ::unsetenv("GIRIH_DUMP");
          if (env("DUMP")) return 1;
          ::setenv("GIRIH_DUMP", "", 1);
          if (env("DUMP")) return 2;
          ::setenv("GIRIH_DUMP", "/tmp/x", 1);
          return env("DUMP") == "/tmp/x" ? 0 : 3;
        }) == 0);
}

TEST_CASE("known variables carry the prefix and a meaning") {
  std::set<std::string_view> names;
  for (const Variable& variable : known_variables()) {
    CHECK(variable.name.starts_with("GIRIH_"));
    CHECK(!variable.meaning.empty());
    names.insert(variable.name);
  }
  CHECK(names.size() == known_variables().size());
  CHECK(names.count("GIRIH_CACHE_DIR") == 1);
}

// Run in a process of its own, whose stderr is read, by the test cases after it.
TEST_CASE("process that logs" * doctest::skip()) {
  log(LogLevel::warn, "one");
  log(LogLevel::info, "two");
  log(LogLevel::debug, "three");
  log_once(LogLevel::warn, "topic", "four");
  log_once(LogLevel::warn, "topic", "five");
  log_once(LogLevel::warn, "other topic", "six");
}

TEST_CASE("the log shows warnings unless GIRIH_LOG says otherwise") {
  const auto log_of = [](const std::string& level) {
    return tests::run_test_case("process that logs", {level}).err;
  };
  CHECK(log_of("GIRIH_LOG") == "girih: warning: one\ngirih: warning: four\ngirih: warning: six\n");
  CHECK(log_of("GIRIH_LOG=warn") == log_of("GIRIH_LOG"));
  CHECK(log_of("GIRIH_LOG=off").empty());
  CHECK(count_of(log_of("GIRIH_LOG=info"), "girih: info: two\n") == 1);
  CHECK(count_of(log_of("GIRIH_LOG=info"), "three") == 0);
  CHECK(count_of(log_of("GIRIH_LOG=debug"), "girih: debug: three\n") == 1);
  const std::string invalid = log_of("GIRIH_LOG=loud");
  CHECK(count_of(invalid, "GIRIH_LOG=loud is not off, warn, info or debug") == 1);
  CHECK(count_of(invalid, "girih: warning: one\n") == 1);
  CHECK(count_of(invalid, "two") == 0);
}

TEST_CASE("process that warns about variables" * doctest::skip()) {
  warn_about_unknown_variables();
  warn_about_unknown_variables();
}

TEST_CASE("an unknown variable gets one warning that names the closest known one") {
  const tests::Ended ended = tests::run_test_case(
      "process that warns about variables",
      {"GIRIH_LOG", "GIRIH_CACHEDIR=/tmp", "GIRIH_JTI=off", "GIRIH_JIT=auto", "NOT_GIRIH_X=1"});
  CHECK(ended.status == 0);
  CHECK(count_of(ended.err, "\n") == 2);
  CHECK(count_of(ended.err,
                 "GIRIH_CACHEDIR is not a variable that Girih knows; did you mean "
                 "GIRIH_CACHE_DIR?\n") == 1);
  CHECK(count_of(ended.err,
                 "GIRIH_JTI is not a variable that Girih knows; did you mean "
                 "GIRIH_JIT?\n") == 1);
}

TEST_CASE("files are read whole and written whole") {
  const TemporaryFolder folder;
  const std::string bytes("a\0b\r\n\xff", 6);
  for (const std::string& text : {bytes, std::string(), std::string(100'000, 'x')}) {
    CHECK(write_file_atomically(folder / "file", text) == "");
    CHECK(read_file(folder / "file") == text);
    CHECK(files_in(folder.path()) == 1);
  }
  CHECK(read_file("/proc/self/stat").value_or("").size() > 10);  // a file that claims to be empty
}

TEST_CASE("what cannot be read is empty and what cannot be written says why") {
  const TemporaryFolder folder;
  CHECK(!read_file(folder / "missing"));
  CHECK(!read_file(folder.path()));
  CHECK(errno == EISDIR);
  REQUIRE(write_file_atomically(folder / "three", "abc") == "");
  CHECK(read_file(folder / "three", 3) == "abc");
  CHECK(!read_file(folder / "three", 2));
  CHECK(errno == EFBIG);
  fs::remove(folder / "three");
  CHECK(!read_file("/dev/zero", 1L << 40));  // which does not say that it has no end
  CHECK(errno == EFBIG);
  CHECK(write_file_atomically(folder / "no/such/folder", "x") == "No such file or directory");
  fs::create_directory(folder / "taken");
  CHECK(write_file_atomically(folder / "taken", "x") == "Is a directory");
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a device is written to and not replaced") {
  CHECK(write_file_atomically("/dev/null", "x") == "");
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("a write that meets the file size limit keeps the old file and the process") {
  const TemporaryFolder folder;
  REQUIRE(write_file_atomically(folder / "file", "old") == "");
  CHECK(tests::in_child([&] {
          const rlimit limit{1000, 1000};
          ::setrlimit(RLIMIT_FSIZE, &limit);
          ::signal(SIGXFSZ, SIG_DFL);
          const std::string why = write_file_atomically(folder / "file", std::string(100'000, 'x'));
          return why == "File too large" ? 0 : 1;
        }) == 0);
  CHECK(read_file(folder / "file") == "old");
  CHECK(files_in(folder.path()) == 1);
}
