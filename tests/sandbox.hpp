// Folders and processes for tests: a temporary folder, a forked child, and this program again with
// another environment.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

namespace girih::tests {

#ifdef GIRIH_SOURCE_DIR
/// The repository: built on another machine, the tests run in its root.
inline std::filesystem::path source_dir() {
  const std::filesystem::path compiled = GIRIH_SOURCE_DIR;
  return std::filesystem::exists(compiled / "CMakeLists.txt") ? compiled
                                                              : std::filesystem::current_path();
}
#endif

/// Removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "girih-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr)
      throw std::system_error(errno, std::generic_category(), name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Exit status of a child, or 128 + the signal that ended it.
inline int wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// Forks a child whose exit status is what `body` returns; 99 where it throws.
template <class Body>
pid_t start_child(Body body) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  int status = 99;
  try {
    status = body();
  } catch (...) {
  }
  ::_exit(status);
}

template <class Body>
int in_child(Body body) {
  return wait_for(start_child(body));
}

struct Ended {
  int status = 0;
  std::string err;  ///< what it wrote to stderr
};

/// Runs one test case of this program, which may be a skipped one, in a new process.
/// @param environment further variables, "NAME=value"; "NAME" removes one.
inline Ended run_test_case(const std::string& name, const std::vector<std::string>& environment) {
  std::array<int, 2> pipe{};
  if (::pipe2(pipe.data(), O_CLOEXEC) != 0) return {99, "no pipe"};
  const std::string filter = "--test-case=" + name;
  const pid_t child = start_child([&] {
    for (const std::string& variable : environment) {
      const std::size_t equals = variable.find('=');
      if (equals == variable.npos)
        ::unsetenv(variable.c_str());
      else
        ::setenv(variable.substr(0, equals).c_str(), variable.substr(equals + 1).c_str(), 1);
    }
    ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
    ::dup2(pipe[1], STDERR_FILENO);
    ::execl("/proc/self/exe", "girih_tests", filter.c_str(), "--no-skip", nullptr);
    return 98;
  });
  ::close(pipe[1]);
  Ended ended;
  std::array<char, 4096> buffer{};
  for (ssize_t n; (n = ::read(pipe[0], buffer.data(), buffer.size())) > 0;)
    ended.err.append(buffer.data(), static_cast<std::size_t>(n));
  ::close(pipe[0]);
  ended.status = wait_for(child);
  return ended;
}

}  // namespace girih::tests
