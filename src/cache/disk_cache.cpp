// The folder of cubins: who may be trusted, how entries are read, published and put aside, and
// the locks that let one process compile while others wait.
#include "cache/disk_cache.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <utility>

#include "support/fs.hpp"
#include "support/log.hpp"

namespace girih::cache {
namespace {

namespace fs = std::filesystem;
using support::LogLevel;

constexpr const char* kLockFolder = "locks";
constexpr auto kStampEvery = std::chrono::hours(1);      // so that most hits write nothing
constexpr auto kStaleTemporary = std::chrono::hours(1);  // by then its writer is gone

std::string error_text(int error) { return std::generic_category().message(error); }

/// Each message is shown once a process.
void warn(const std::string& message) { support::log_once(LogLevel::warn, message, message); }

/// Why a file or folder is not to be used; empty when it may be.
std::string distrust(const struct stat& info, bool strict) {
  if (strict && S_ISLNK(info.st_mode)) return "it is a symbolic link";
  if (strict && info.st_uid != ::geteuid()) return "it belongs to another user";
  if (info.st_mode & S_IWOTH) return "everyone can write to it (chmod o-w)";
  if (strict && (info.st_mode & S_IWGRP)) return "its group can write to it (chmod g-w)";
  return {};
}

/// The same of `root` and the folders that lead from it to `file`; what does not exist is fine.
std::string distrust_on_the_way(const fs::path& root, const fs::path& relative_file, bool strict) {
  fs::path folder = root;
  bool top = true;  // which may be a link to another disk, set up by its owner
  for (const fs::path& next : relative_file) {
    struct stat info {};
    const int result =
        strict && !top ? ::lstat(folder.c_str(), &info) : ::stat(folder.c_str(), &info);
    if (result != 0) return {};
    if (const std::string why = distrust(info, strict); !why.empty())
      return fmt::format("folder {} is not used: {}", folder.string(), why);
    folder /= next;
    top = false;
  }
  return {};
}

/// @return 0 or an errno.
int make_folders(const fs::path& folder) {
  if (::mkdir(folder.c_str(), 0700) == 0 || errno == EEXIST) return 0;
  const fs::path parent = folder.parent_path();
  if (errno != ENOENT || parent.empty() || parent == folder) return errno;
  if (const int error = make_folders(parent); error != 0) return error;
  return ::mkdir(folder.c_str(), 0700) == 0 || errno == EEXIST ? 0 : errno;
}

/// Removes what killed writers left in a folder.
void remove_stale_temporaries(const fs::path& folder) {
  std::error_code ignored;
  for (fs::directory_iterator it(folder, ignored), end; it != end; it.increment(ignored))
    if (is_stale_temporary(it->path())) fs::remove(it->path(), ignored);
}

fs::path relative_to_root(const Key& key) { return kVersionFolder / key.relative_path(); }

/// Sets the file's time to now. A cache that cannot be written to has no stamps, and works.
void stamp(const fs::path& path) {
  std::error_code ignored;
  const auto last = fs::last_write_time(path, ignored);
  if (!ignored && fs::file_time_type::clock::now() - last > kStampEvery)
    ::utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
}

/// What a lookup finds in one folder, with the consequences.
std::optional<Entry> use(const Folder& folder, const Key& key) {
  Examined examined = examine(folder, key);
  const fs::path path = folder.path / relative_to_root(key);
  switch (examined.state) {
    case Examined::State::absent:
      break;
    case Examined::State::usable:
      if (folder.writable) stamp(path);
      return std::move(examined.entry);
    case Examined::State::folder_distrusted:
      warn("cache " + examined.why);
      break;
    case Examined::State::unreadable:
      warn(fmt::format("cache entry {} cannot be read: {}", path.string(), examined.why));
      break;
    case Examined::State::damaged:
      warn(fmt::format(
          "cache entry {} is not used: {}{}", path.string(), examined.why,
          folder.writable && put_aside(path)
              ? fmt::format("; put aside as {}{}", path.filename().string(), kAsideSuffix)
              : ""));
      break;
  }
  return std::nullopt;
}

}  // namespace

fs::path default_directory() {
  // A relative XDG_CACHE_HOME is invalid by its specification, and is to be ignored.
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/')
    return fs::path(cache) / "girih";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
    return fs::path(home) / ".cache" / "girih";
  return {};
}

std::vector<Folder> folders_of(const DiskCacheOptions& options) {
  std::vector<Folder> folders;
  if (!options.directory.empty())
    folders.push_back({options.directory, options.directory_is_default, true});
  for (const fs::path& layer : options.layers)
    if (!layer.empty()) folders.push_back({.path = layer});
  return folders;
}

std::string distrust_of(const Folder& folder) {
  const fs::path any_file = fs::path(kVersionFolder) / "file";  // itself it is not looked at
  return distrust_on_the_way(folder.path, any_file, folder.strict);
}

Examined examine(const Folder& folder, const Key& key) {
  using State = Examined::State;
  const fs::path relative = relative_to_root(key);
  if (const auto why = distrust_on_the_way(folder.path, relative, folder.strict); !why.empty())
    return {State::folder_distrusted, {}, why};

  const fs::path path = folder.path / relative;
  // O_NONBLOCK: opening a pipe must not wait for its other end.
  const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (folder.strict ? O_NOFOLLOW : 0);
  const int fd = ::open(path.c_str(), flags);
  if (fd < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return {};
    if (errno == ELOOP) return {State::damaged, {}, "it is a symbolic link"};
    return {State::unreadable, {}, error_text(errno)};
  }
  struct stat info {};
  std::optional<std::string> bytes;
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) bytes = support::read_all(fd);
  const int read_error = errno;
  ::close(fd);

  if (!S_ISREG(info.st_mode)) return {State::damaged, {}, "it is not a file"};
  if (auto why = distrust(info, folder.strict); !why.empty())
    return {State::damaged, {}, std::move(why)};
  if (!bytes) return {State::unreadable, {}, error_text(read_error)};
  Examined examined{State::damaged, {}, {}};
  if (!deserialize(*bytes, examined.entry, examined.why)) return examined;
  if (examined.entry.arch != key.arch)
    return {State::damaged, {}, "it is for " + examined.entry.arch};
  if (examined.entry.key != key.hex)
    return {State::damaged, {}, "it is the entry of key " + examined.entry.key};
  examined.state = State::usable;
  return examined;
}

bool is_stale_temporary(const fs::path& path) {
  if (!path.filename().string().starts_with(support::kTemporaryPrefix)) return false;
  std::error_code error;
  const auto written = fs::last_write_time(path, error);
  return !error && fs::file_time_type::clock::now() - written > kStaleTemporary;
}

bool put_aside(const fs::path& path) {
  fs::path aside = path;
  aside += kAsideSuffix;
  return ::rename(path.c_str(), aside.c_str()) == 0;
}

DiskCache::DiskCache(DiskCacheOptions options) : options_(std::move(options)) {}

fs::path DiskCache::path_of(const Key& key) const {
  if (options_.directory.empty()) return {};
  return options_.directory / relative_to_root(key);
}

std::optional<Entry> DiskCache::get(const Key& key) const {
  for (const Folder& folder : folders_of(options_))
    if (auto entry = use(folder, key)) return entry;
  return std::nullopt;
}

std::optional<DiskCache::Found> DiskCache::find(const Key& key) const {
  for (const Folder& folder : folders_of(options_)) {
    Examined examined = examine(folder, key);
    if (examined.state == Examined::State::usable)
      return Found{std::move(examined.entry), folder.path / relative_to_root(key)};
  }
  return std::nullopt;
}

bool DiskCache::put(const Key& key, const Entry& entry) const {
  if (options_.directory.empty()) return false;
  const fs::path path = path_of(key);
  if (const auto why = distrust_on_the_way(options_.directory, relative_to_root(key),
                                           options_.directory_is_default);
      !why.empty()) {
    warn("cache " + why);
    return false;
  }
  std::string problem;
  if (const int error = make_folders(path.parent_path()); error != 0)
    problem = error_text(error);
  else
    problem = support::write_file_atomically(path, serialize(entry));
  if (!problem.empty()) {
    warn(fmt::format("cannot write to the kernel cache {}: {}; kernels are kept in memory only",
                     options_.directory.string(), problem));
    return false;
  }
  remove_stale_temporaries(path.parent_path());
  return true;
}

DiskCache::Lock DiskCache::lock(const Key& key, int timeout_ms) const {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  Lock lock;
  const fs::path relative = fs::path(kVersionFolder) / kLockFolder / (key.hex + ".lock");
  lock.path_ = options_.directory / relative;
  if (options_.directory.empty() ||
      !distrust_on_the_way(options_.directory, relative, options_.directory_is_default).empty() ||
      make_folders(lock.path_.parent_path()) != 0)
    return lock;

  auto pause = std::chrono::milliseconds(1);
  while (true) {
    const int fd = ::open(lock.path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return lock;
    while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      const bool held_elsewhere = errno == EWOULDBLOCK;
      if (!held_elsewhere || Clock::now() >= deadline) {
        ::close(fd);
        if (held_elsewhere)
          warn(
              fmt::format("another process still compiles a kernel after {} ms ({}); not waiting "
                          "for it any longer",
                          timeout_ms, lock.path_.string()));
        return lock;
      }
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, std::chrono::milliseconds(50));
    }
    struct stat info {};
    if (::fstat(fd, &info) == 0 && info.st_nlink > 0) {
      lock.fd_ = fd;
      return lock;
    }
    ::close(fd);  // its last holder removed the file: others lock a new one
  }
}

DiskCache::Lock::Lock(Lock&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

DiskCache::Lock::~Lock() {
  if (fd_ < 0) return;
  ::unlink(path_.c_str());
  ::flock(fd_, LOCK_UN);  // close alone would not, where a fork shares the descriptor
  ::close(fd_);
}

}  // namespace girih::cache
