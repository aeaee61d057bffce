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
  std::filesystem::path directory;  ///< read and written; empty: no cache
  /// The per-user folder that nobody named: it, its folders and its entries must belong to this
  /// user, be writable by nobody else and, below the folder itself, be no symbolic links. A named
  /// folder is trusted unless everyone can write to it.
  bool directory_is_default = false;
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
    std::filesystem::path path_;
  };
  Lock lock(const Key& key, int timeout_ms = 30000) const;

  std::filesystem::path path_of(const Key& key) const;  ///< in the writable folder

 private:
  struct Folder {
    std::filesystem::path path;
    bool strict = false;
    bool writable = false;
  };
  Folder own_folder() const;
  static std::optional<Entry> read(const Folder& folder, const Key& key);

  DiskCacheOptions options_;
};

}  // namespace girih::cache
