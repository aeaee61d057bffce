// Whole-file reads and atomic writes, on POSIX calls so that every failure has its errno.
#include "support/fs.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <ctime>
#include <system_error>

namespace girih::support {
namespace {

std::string error_text(int error) { return std::generic_category().message(error); }

/// A write beyond RLIMIT_FSIZE raises SIGXFSZ, whose default ends the process. While this lives,
/// this thread gets EFBIG instead.
class FileSizeSignalBlocked {
 public:
  FileSizeSignalBlocked() {
    sigemptyset(&signal_);
    sigaddset(&signal_, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &signal_, &before_);
  }
  ~FileSizeSignalBlocked() {
    if (sigismember(&before_, SIGXFSZ) == 0) {  // else it is the caller's to collect
      const timespec no_wait{};
      sigtimedwait(&signal_, nullptr, &no_wait);
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  FileSizeSignalBlocked(const FileSizeSignalBlocked&) = delete;
  FileSizeSignalBlocked& operator=(const FileSizeSignalBlocked&) = delete;

 private:
  sigset_t signal_;
  sigset_t before_;
};

/// @return 0 or an errno.
int write_all(int fd, std::string_view bytes) {
  const FileSizeSignalBlocked blocked;
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return 0;
}

/// @return 0 or an errno.
int make_private_folders(const std::filesystem::path& folder) {
  std::error_code error;
  if (folder.empty() || std::filesystem::is_directory(folder, error)) return 0;
  if (const int above = make_private_folders(folder.parent_path()); above != 0) return above;
  return ::mkdir(folder.c_str(), 0700) == 0 || errno == EEXIST ? 0 : errno;
}

/// To a file that is open for reading and appending, and locked. @return 0 or an errno.
int append_to(int fd, std::string_view header, std::string_view lines) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return errno;
  std::string text;
  if (info.st_size == 0) {
    text = header;
  } else {
    char last = 0;
    if (::pread(fd, &last, 1, info.st_size - 1) != 1) return EIO;
    if (last != '\n') text = "\n";
  }
  text += lines;
  const int error = write_all(fd, text);
  // Not even the next writer may take half a line for a whole one.
  if (error != 0 && ::ftruncate(fd, info.st_size) != 0) return errno;
  return error;
}

}  // namespace

std::optional<std::string> read_file(const std::filesystem::path& path, long most_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  std::optional<std::string> bytes = read_all(fd, most_bytes);
  const int error = errno;
  ::close(fd);
  errno = error;
  return bytes;
}

std::optional<std::string> read_all(int fd, long most_bytes) {
  struct stat info {};
  const auto too_large = [] {
    errno = EFBIG;
    return std::nullopt;
  };
  if (::fstat(fd, &info) != 0) return std::nullopt;
  if (!S_ISREG(info.st_mode)) most_bytes = std::min(most_bytes, kMaxFileBytes);
  if (info.st_size > most_bytes) return too_large();
  // One byte more than the file is said to hold, so that its end is seen without more memory.
  std::string bytes(static_cast<std::size_t>(std::max<off_t>(info.st_size + 1, 4096)), '\0');
  std::size_t size = 0;
  while (true) {
    if (size == bytes.size()) bytes.resize(2 * size);
    const ssize_t got = ::read(fd, bytes.data() + size, bytes.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return std::nullopt;
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
    if (size > static_cast<std::size_t>(most_bytes)) return too_large();
  }
  bytes.resize(size);
  return bytes;
}

std::string write_file_atomically(const std::filesystem::path& path, std::string_view bytes) {
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(path, ignored);
  if (std::filesystem::is_other(status)) {  // a device or a pipe must not be replaced by a file
    const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return error_text(errno);
    const int error = write_all(fd, bytes);
    ::close(fd);
    return error == 0 ? "" : error_text(error);
  }

  // Unique in this folder: to the process, to the call, and, on a shared file system, to the time.
  static std::atomic<unsigned> counter{0};
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const std::filesystem::path temporary =
      path.parent_path() / fmt::format("{}{}-{}-{}", kTemporaryPrefix, ::getpid(), counter++,
                                       now.tv_sec * 1'000'000'000 + now.tv_nsec);

  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return error_text(errno);
  int error = write_all(fd, bytes);
  if (error == 0 && ::fsync(fd) != 0) error = errno;
  if (::close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return {};
  ::unlink(temporary.c_str());
  return error_text(error);
}

std::string append_lines(const std::filesystem::path& path, std::string_view header,
                         std::string_view lines) {
  if (const int error = make_private_folders(path.parent_path()); error != 0) {
    return error_text(error);
  }
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return error_text(errno);
  int error = 0;
  while (::flock(fd, LOCK_EX) != 0 && error == 0) {
    if (errno != EINTR) error = errno;
  }
  if (error == 0) error = append_to(fd, header, lines);
  if (::close(fd) != 0 && error == 0) error = errno;  // which also gives the lock back
  return error == 0 ? "" : error_text(error);
}

}  // namespace girih::support
