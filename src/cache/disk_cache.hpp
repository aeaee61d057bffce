// Cubins on disk. The cache is never required: whatever goes wrong with it is logged once and
// counts as a miss, or as an entry not written.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cache/entry.hpp"
#include "cache/key.hpp"

namespace girih::cache {

/// ${XDG_CACHE_HOME:-$HOME/.cache}/girih; empty when neither is set.
std::filesystem::path default_directory();

struct DiskCacheOptions {
  std::filesystem::path directory;            ///< read and written; empty: no cache
  bool directory_is_default = false;          ///< then strict about owner, rights and symlinks
  std::vector<std::filesystem::path> layers;  ///< read-only, looked up after `directory`
};

class DiskCache {
 public:
  explicit DiskCache(DiskCacheOptions options);

  /// Looks through the folder and its layers. A damaged, foreign or wrong-arch file is a miss; in
  /// the writable folder it is put aside as <name>.bad.
  std::optional<Entry> get(const Key& key) const;

  /// Publishes by temporary file, fsync and rename; creates folders 0700 on first use.
  /// @return false when it could not be written (already logged).
  bool put(const Key& key, const Entry& entry) const;

  /// Held while one process compiles a key, so that others wait and then find its entry. Released
  /// by the kernel when a process dies. After `timeout_ms`, or where locks do not work, the holder
  /// is simply not exclusive.
  class Lock {
   public:
    Lock(Lock&&) noexcept;
    Lock& operator=(Lock&&) = delete;
    ~Lock();
    bool exclusive() const { return fd_ >= 0; }

   private:
    friend class DiskCache;
    Lock() = default;
    int fd_ = -1;
  };
  Lock lock(const Key& key, int timeout_ms = 30000) const;

  std::filesystem::path path_of(const Key& key) const;  ///< in the writable folder

 private:
  DiskCacheOptions options_;
};

}  // namespace girih::cache
