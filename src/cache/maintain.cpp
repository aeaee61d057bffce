#include "cache/maintain.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <numeric>
#include <system_error>

#include "girih/error.hpp"
#include "support/fs.hpp"

namespace girih::cache {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::system_clock;

constexpr const char* kExtension = ".girih";
constexpr std::size_t kDigitsOfFolder = 2, kDigitsOfFile = 30;

[[noreturn]] void cannot_list(const fs::path& folder, const std::string& why) {
  throw Error(Errc::cache_io,
              fmt::format("the cache folder {} cannot be listed: {}", folder.string(), why));
}

/// What is in a folder, sorted; nothing where there is none.
std::vector<fs::path> children(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    paths.push_back(it->path());
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
    cannot_list(folder, error.message());
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// Whether the contents are what the key was made from.
bool gives_key(const Entry& entry, const Key& key) {
  return make_key({entry.generator_version, entry.arch, entry.source, entry.manifest,
                   entry.options}) == key;
}

Item read_item(const Folder& folder, const fs::path& path, Key key) {
  Item item{.key = std::move(key), .path = path, .last_used = {}, .entry = {}, .problem = {}};
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) {
    item.bytes = static_cast<std::uintmax_t>(info.st_size);
    item.last_used = Clock::from_time_t(info.st_mtime);
  }
  Examined examined = examine(folder, item.key);
  switch (examined.state) {
    case Examined::State::absent:
      item.problem = "it is gone";
      break;
    case Examined::State::folder_distrusted:
      cannot_list(folder.path, examined.why);
    case Examined::State::unreadable:
    case Examined::State::damaged:
      item.problem = examined.why;
      break;
    case Examined::State::usable:
      std::string().swap(examined.entry.cubin);  // clear() would keep its memory
      if (gives_key(examined.entry, item.key))
        item.entry = std::move(examined.entry);
      else
        item.problem = "its key was not made from its contents";
      break;
  }
  return item;
}

/// @return an empty string or why it failed. What somebody else has removed is removed.
std::string remove_at(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);  // a folder may have been put aside, too
  return error ? fmt::format("{}: {}", path.string(), error.message()) : "";
}

}  // namespace

Listing list(const Folder& folder) {
  Listing listing;
  std::error_code error;
  if (fs::exists(folder.path, error) && !fs::is_directory(folder.path, error))
    cannot_list(folder.path, "it is not a folder");
  for (const fs::path& arch : children(folder.path / kVersionFolder)) {
    for (const fs::path& first_digits : children(arch)) {
      const std::string digits = first_digits.filename().string();
      if (digits.size() != kDigitsOfFolder) continue;
      for (const fs::path& file : children(first_digits)) {
        const std::string stem = file.stem().string();
        if (file.extension() == kExtension && stem.size() == kDigitsOfFile)
          listing.items.push_back(
              read_item(folder, file, {arch.filename().string(), digits + stem}));
        else if (file.extension() == kAsideSuffix || is_stale_temporary(file))
          listing.rubbish.push_back(file);
      }
    }
  }
  return listing;
}

bool put_aside_if_damaged(const Folder& folder, Item& item) {
  if (item.problem.empty()) return false;
  item = read_item(folder, item.path, item.key);
  return !item.problem.empty() && put_aside(item.path);
}

std::vector<std::size_t> choose_to_prune(const std::vector<Item>& items, const PruneLimits& limits,
                                         Clock::time_point now) {
  std::vector<std::size_t> order(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const bool a_damaged = !items[a].problem.empty(), b_damaged = !items[b].problem.empty();
    if (a_damaged != b_damaged) return a_damaged;
    return items[a].last_used < items[b].last_used;
  });
  std::uintmax_t bytes = 0;
  for (const Item& item : items) bytes += item.bytes;

  std::vector<std::size_t> chosen;
  for (const std::size_t index : order) {
    const Item& item = items[index];
    const bool too_old = limits.older_than && now - item.last_used > *limits.older_than;
    const bool too_much = limits.max_bytes && bytes > *limits.max_bytes;
    if (!limits.all && item.problem.empty() && !too_old && !too_much) break;
    bytes -= item.bytes;
    chosen.push_back(index);
  }
  return chosen;
}

Pruned prune(const Folder& folder, const PruneLimits& limits, bool dry_run) {
  const Listing listing = list(folder);
  Pruned pruned;
  for (const Item& item : listing.items) pruned.kept_bytes += item.bytes;
  pruned.kept = listing.items.size();
  const auto removed = [&](const fs::path& path) {
    std::string failure = dry_run ? "" : remove_at(path);
    if (failure.empty()) return true;
    pruned.failures.push_back(std::move(failure));
    return false;
  };
  for (const std::size_t index : choose_to_prune(listing.items, limits, Clock::now())) {
    const Item& item = listing.items[index];
    if (!removed(item.path)) continue;
    ++pruned.removed;
    --pruned.kept;
    pruned.removed_bytes += item.bytes;
    pruned.kept_bytes -= item.bytes;
  }
  for (const fs::path& path : listing.rubbish) pruned.rubbish += removed(path);
  return pruned;
}

}  // namespace girih::cache
