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

/// One of the folders that a cache looks in.
struct Folder {
  std::filesystem::path path;
  bool strict = false;    ///< the rules of the per-user folder
  bool writable = false;  ///< the folder, not a layer
};
/// Those that are named, in the order of lookup.
std::vector<Folder> folders_of(const DiskCacheOptions& options);

/// Why the cache neither reads nor writes the folder, or its folder of this version: "folder /x is
/// not used: everyone can write to it (chmod o-w)". Empty when it does, or when it is not there
/// yet.
std::string distrust_of(const Folder& folder);

/// What is in an entry's place.
struct Examined {
  enum class State { absent, usable, folder_distrusted, unreadable, damaged };
  State state = State::absent;
  Entry entry;      ///< when usable
  std::string why;  ///< when it is not: "empty", "it is for sm_80"
};
/// Reads and checks one file, and changes nothing.
Examined examine(const Folder& folder, const Key& key);

inline constexpr const char* kVersionFolder = "v1";  ///< of the layout and of the entries' format
inline constexpr const char* kAsideSuffix = ".bad";  ///< of damaged files that were put aside

/// @return whether it could be renamed.
bool put_aside(const std::filesystem::path& path);

/// Whether the file is what a killed writer left, an hour ago or longer.
bool is_stale_temporary(const std::filesystem::path& path);

class DiskCache {
 public:
  explicit DiskCache(DiskCacheOptions options);

  /// Looks through the folder and its layers. A damaged, foreign or wrong-arch file is a miss; in
  /// the writable folder it is put aside as <name>.bad. A hit there is stamped: the file's time is
  /// when it was last used, to within an hour.
  std::optional<Entry> get(const Key& key) const;

  struct Found {
    Entry entry;
    std::filesystem::path path;
  };
  /// The same without a trace: no stamp, no warning, nothing put aside.
  std::optional<Found> find(const Key& key) const;

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
  DiskCacheOptions options_;
};

}  // namespace girih::cache
