// The `girih` program as a process, for tests: what it prints and how it ends.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <spawn.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "sandbox.hpp"
#include "texts.hpp"

namespace girih::tests {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Arguments = std::vector<std::string>;

inline std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

struct Result {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// Runs the program with the given GIRIH_* variables and no others.
class Program {
 public:
  Program() { set("GIRIH_CACHE_DIR", (folder_ / "cache").string()); }

  void set(const std::string& name, const std::string& value) {
    variables_.emplace(variables_.begin(), name, value);  // the first of a name counts
  }
  const TemporaryFolder& folder() const { return folder_; }

  /// From here on stderr goes to this file, which Result::err then does not hold.
  void send_errors_to(const fs::path& file) { errors_ = file; }

  Result run(Arguments arguments, const std::string& input = "") const {
    const pid_t child = start(std::move(arguments), input);
    return end(child);
  }

  /// What a process that was started has written to stderr so far.
  std::string errors_so_far() const { return read(folder_ / "stderr"); }
  Result end(pid_t child) const {
    const int exit_code = wait_for(child);
    return {exit_code, read(folder_ / "stdout"), read(folder_ / "stderr")};
  }
  pid_t start(Arguments arguments, const std::string& input = "") const {
    const fs::path in = folder_ / "stdin", out = folder_ / "stdout", err = errors_;
    write(in, input);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const int create = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&actions, 0, in.c_str(), O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), create, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), create, 0600);

    static const std::string program =
        (fs::read_symlink("/proc/self/exe").parent_path() / "girih").string();
    arguments.insert(arguments.begin(), program);
    std::vector<std::string> environment;
    for (const auto& [name, value] : variables_) environment.push_back(name + "=" + value);
    for (std::string& variable : inherited_environment()) {
      environment.push_back(std::move(variable));
    }

    pid_t child = 0;
    const int error = posix_spawn(&child, program.c_str(), &actions, nullptr,
                                  pointers(arguments).data(), pointers(environment).data());
    posix_spawn_file_actions_destroy(&actions);
    REQUIRE_MESSAGE(error == 0, "cannot run ", program);
    return child;
  }

  Json json(Arguments arguments, int exit_code = 0) const {
    arguments.push_back("--json");
    const Result result = run(std::move(arguments));
    INFO(result.err);
    CHECK(result.exit_code == exit_code);
    return Json::parse(result.out);
  }

 private:
  static std::vector<std::string> inherited_environment() {
    std::vector<std::string> environment;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string text = *entry;
      if (!text.starts_with("GIRIH_")) environment.push_back(text);
    }
    return environment;
  }
  static std::vector<char*> pointers(std::vector<std::string>& strings) {
    std::vector<char*> result;
    for (std::string& string : strings) result.push_back(string.data());
    result.push_back(nullptr);
    return result;
  }

  TemporaryFolder folder_;
  fs::path errors_ = folder_ / "stderr";
  std::vector<std::pair<std::string, std::string>> variables_;
};

// Both ways of reporting: exit code and message on stderr, and the object on stdout.
inline void check_refused(Arguments arguments, int exit_code, const std::string& code,
                          const std::vector<std::string>& parts, const Program& program = {}) {
  const Result result = program.run(arguments);
  INFO(result.err);
  CHECK(result.exit_code == exit_code);
  CHECK(result.out.empty());
  for (const std::string& part : parts) {
    INFO("expected: ", part);
    CHECK(contains(result.err, part));
  }
  const Json error = program.json(std::move(arguments), exit_code)["error"];
  CHECK(error["code"] == code);
  CHECK(contains(result.err, error["message"]));
}

// Tests that compile need NVRTC; the machines that build Girih have it.
inline bool nvrtc_found() {
  const bool found = Program().json({"env"})["nvrtc"]["found"];
  if (!found) MESSAGE("skipped: there is no NVRTC");
  return found;
}

inline Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace girih::tests
