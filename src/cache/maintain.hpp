// What a person does with a cache: list it, check it, make it smaller.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cache/disk_cache.hpp"

namespace girih::cache {

/// A file in an entry's place.
struct Item {
  Key key;  ///< as its place says
  std::filesystem::path path;
  std::uintmax_t bytes = 0;
  std::chrono::system_clock::time_point last_used;
  Entry entry;          ///< without its cubin; empty where there is a problem
  std::string problem;  ///< why it is not usable; also where its contents do not give its key
};

struct Listing {
  std::vector<Item> items;                     ///< sorted by path
  std::vector<std::filesystem::path> rubbish;  ///< files put aside, what killed writers left
};

/// Reads and checks every entry. A folder that does not exist is empty; a file in its place is an
/// error.
/// @throws Error cache_io when it cannot be listed or must not be trusted.
Listing list(const Folder& folder);

/// Puts a damaged entry aside, unless what is in its place by now is good or gone: a running job
/// may have replaced it since it was listed. `item` becomes what is there. @return whether it was.
bool put_aside_if_damaged(const Folder& folder, Item& item);

/// What to keep; at least one is to be given.
struct PruneLimits {
  std::optional<std::uintmax_t> max_bytes = {};
  std::optional<std::chrono::system_clock::duration> older_than = {};  ///< since its last use
  bool all = false;
};

struct Pruned {
  std::size_t removed = 0, kept = 0;  ///< entries
  std::uintmax_t removed_bytes = 0, kept_bytes = 0;
  std::size_t rubbish = 0;            ///< other files that were removed
  std::vector<std::string> failures;  ///< "<path>: <why>"
};

/// The entries that go, least recently used first: indices into `items`. Damaged ones always do.
std::vector<std::size_t> choose_to_prune(const std::vector<Item>& items, const PruneLimits& limits,
                                         std::chrono::system_clock::time_point now);

/// Removes them, and all rubbish. With `dry_run` only counts.
Pruned prune(const Folder& folder, const PruneLimits& limits, bool dry_run);

}  // namespace girih::cache
