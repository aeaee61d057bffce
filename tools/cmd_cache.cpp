// girih cache path|ls|verify|prune: the folder of cubins. Needs neither a GPU nor NVRTC.
#include <fmt/format.h>

#include <chrono>

#include "cache/maintain.hpp"
#include "common.hpp"
#include "runtime/settings.hpp"

namespace girih::tools {
namespace {

using Clock = std::chrono::system_clock;

// The folder that is written to. @throws Error cache_io where there is none.
cache::Folder own_folder(const jit::Options& options) {
  const auto folders = cache::folders_of(runtime::resolve(options).cache);
  if (folders.empty() || !folders.front().writable) {
    throw Error(Errc::cache_io,
                "there is no cache folder: give --cache-dir, or set GIRIH_CACHE_DIR, "
                "XDG_CACHE_HOME or HOME");
  }
  return folders.front();
}

std::vector<cache::Folder> all_folders(const jit::Options& options) {
  own_folder(options);
  return cache::folders_of(runtime::resolve(options).cache);
}

// A cache that nobody has written to yet is empty, but one that was named is to be there.
void check_named(const jit::Options& options) {
  if (options.cache_dir) check_cache_folder(*options.cache_dir, "--cache-dir");
}

// What CLI::AsSizeValue would read as another number: a sign, and an octal one behind a 0.
std::string plain_size(std::string& text) {
  const auto is_digit = [](char c) { return '0' <= c && c <= '9'; };
  if (text.empty() || !is_digit(text[0])) {
    return fmt::format("'{}' is no size: give 0 or more bytes, such as 1000000 or 500MB", text);
  }
  while (text.size() > 1 && text[0] == '0' && is_digit(text[1])) text.erase(0, 1);
  return {};
}

std::int64_t seconds_since(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - time).count();
}

// "41 s", "3 min", "5 h", "12 d"
std::string age_text(std::int64_t seconds) {
  if (seconds < 60) return fmt::format("{} s", std::max<std::int64_t>(seconds, 0));
  if (seconds < 60 * 60) return fmt::format("{} min", seconds / 60);
  if (seconds < 48 * 60 * 60) return fmt::format("{} h", seconds / (60 * 60));
  return fmt::format("{} d", seconds / (24 * 60 * 60));
}

Json to_json(const cache::Item& item) {
  Json json{{"key", item.key.hex},
            {"arch", item.key.arch},
            {"path", item.path.string()},
            {"bytes", item.bytes},
            {"seconds_since_use", seconds_since(item.last_used)}};
  if (!item.problem.empty()) {
    json["problem"] = item.problem;
    return json;
  }
  json["pattern"] = item.entry.pattern;
  json["registers"] = item.entry.registers;
  json["shared_bytes"] = item.entry.shared_bytes;
  json["compile_ms"] = item.entry.compile_ms;
  json["compiler"] = item.entry.compiler;
  json["generator_version"] = item.entry.generator_version;
  return json;
}

void add_path(CLI::App& app, Context& context) {
  const auto options = std::make_shared<jit::Options>();
  CLI::App* verb = add_verb(app, context, "path", "Print the folder's path");
  add_cache_options(*verb, *options);
  verb->callback([options, &context] {
    const std::string path = own_folder(*options).path.string();
    if (!context.json) return print(path + "\n");
    Json layers = Json::array();
    for (const cache::Folder& folder : all_folders(*options)) {
      if (!folder.writable) layers.push_back(folder.path.string());
    }
    print_json({{"directory", path}, {"layers", layers}});
  });
}

void add_ls(CLI::App& app, Context& context) {
  const auto options = std::make_shared<jit::Options>();
  CLI::App* verb = add_verb(app, context, "ls", "List the cached kernels, layers included");
  add_cache_options(*verb, *options);
  verb->callback([options, &context] {
    check_named(*options);
    Json json{{"folders", Json::array()}};
    for (const cache::Folder& folder : all_folders(*options)) {
      const cache::Listing listing = cache::list(folder);
      Json entries = Json::array();
      std::uintmax_t bytes = 0;
      std::string table;
      for (const cache::Item& item : listing.items) {
        bytes += item.bytes;
        if (context.json) {
          entries.push_back(to_json(item));
          continue;
        }
        table += fmt::format(
            "{:<32} {:<8} {:>10} {:>10} {:>8}  {}\n", item.key.hex, item.key.arch,
            bytes_text(item.bytes),
            item.problem.empty() ? fmt::format("{:.0f} ms", item.entry.compile_ms) : "-",
            age_text(seconds_since(item.last_used)),
            item.problem.empty() ? item.entry.pattern : "DAMAGED: " + item.problem);
      }
      json["folders"].push_back({{"directory", folder.path.string()},
                                 {"writable", folder.writable},
                                 {"bytes", bytes},
                                 {"put_aside", listing.rubbish.size()},
                                 {"entries", std::move(entries)}});
      if (context.json) continue;
      if (!table.empty()) {
        print(fmt::format("{:<32} {:<8} {:>10} {:>10} {:>8}  {}\n{}", "key", "arch", "size",
                          "compiled", "unused", "first asked for by", table));
      }
      print(fmt::format("{}{}: {} kernels, {}{}\n", folder.path.string(),
                        folder.writable ? "" : " (layer)", listing.items.size(), bytes_text(bytes),
                        listing.rubbish.empty()
                            ? ""
                            : fmt::format(", {} files put aside", listing.rubbish.size())));
    }
    if (context.json) print_json(json);
  });
}

void add_check(CLI::App& app, Context& context) {
  struct Options {
    jit::Options jit;
    bool repair = false;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* verb = add_verb(app, context, "verify",
                            "Check every entry, layers included; exit code 1 if one is damaged");
  verb->add_flag("--repair", options->repair,
                 "Put damaged entries aside (not in layers, which are read only)");
  add_cache_options(*verb, options->jit);
  verb->callback([options, &context] {
    check_named(options->jit);
    std::size_t checked = 0;
    Json damaged = Json::array();
    for (const cache::Folder& folder : all_folders(options->jit)) {
      for (cache::Item& item : cache::list(folder).items) {
        ++checked;
        const bool aside =
            options->repair && folder.writable && cache::put_aside_if_damaged(folder, item);
        if (item.problem.empty()) continue;
        damaged.push_back(
            {{"path", item.path.string()}, {"problem", item.problem}, {"put_aside", aside}});
      }
    }
    if (!damaged.empty()) context.exit_code = kFailure;
    if (context.json) {
      return print_json({{"checked", checked}, {"damaged", damaged}});
    }
    for (const Json& entry : damaged) {
      print(fmt::format("{}: {}{}\n", entry["path"].get<std::string>(),
                        entry["problem"].get<std::string>(),
                        entry["put_aside"] ? "; put aside" : ""));
    }
    print(damaged.empty()
              ? fmt::format("{} entries checked: all right\n", checked)
              : fmt::format("{} entries checked: {} damaged{}\n", checked, damaged.size(),
                            options->repair ? "" : " (--repair puts them aside)"));
  });
}

void add_prune(CLI::App& app, Context& context) {
  struct Options {
    jit::Options jit;
    std::optional<std::uint64_t> max_bytes;
    std::optional<double> older_than_days;
    bool all = false, dry_run = false;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* verb =
      add_verb(app, context, "prune", "Remove kernels, those unused for longest first");
  verb->add_option("--max-bytes", options->max_bytes,
                   "Keep at most so many bytes; 500MB and 2GB are understood")
      ->transform(CLI::AsSizeValue(false))
      ->transform(CLI::Validator(plain_size, ""));
  verb->add_option("--older-than", options->older_than_days,
                   "Remove what is unused for so many days");
  verb->add_flag("--all", options->all, "Remove everything");
  verb->add_flag("--dry-run", options->dry_run, "Only say what would be removed");
  add_cache_options(*verb, options->jit);
  verb->callback([options, &context] {
    if (!options->max_bytes && !options->older_than_days && !options->all) {
      throw Error(Errc::invalid_argument,
                  "nothing says what to remove: give --max-bytes N, --older-than DAYS or --all");
    }
    check_named(options->jit);
    cache::PruneLimits limits{
        .max_bytes = options->max_bytes, .older_than = {}, .all = options->all};
    if (options->older_than_days) {
      const double days = *options->older_than_days;
      if (!(days >= 0 && days <= 36500)) {
        throw Error(Errc::invalid_argument,
                    fmt::format("--older-than {} is out of range: give 0 to 36500 days", days));
      }
      limits.older_than = std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double, std::ratio<86400>>(days));
    }
    const cache::Pruned pruned = cache::prune(own_folder(options->jit), limits, options->dry_run);
    if (!pruned.failures.empty()) context.exit_code = kFailure;
    if (context.json) {
      return print_json({{"removed", pruned.removed},
                         {"removed_bytes", pruned.removed_bytes},
                         {"kept", pruned.kept},
                         {"kept_bytes", pruned.kept_bytes},
                         {"put_aside_removed", pruned.rubbish},
                         {"dry_run", options->dry_run},
                         {"failures", pruned.failures}});
    }
    for (const std::string& failure : pruned.failures) print(failure + "\n");
    print(fmt::format("{} {} kernels ({}) and {} files put aside; {} kernels ({}) are kept\n",
                      options->dry_run ? "would remove" : "removed", pruned.removed,
                      bytes_text(pruned.removed_bytes), pruned.rubbish, pruned.kept,
                      bytes_text(pruned.kept_bytes)));
  });
}

}  // namespace

void add_cache(CLI::App& app, Context& context) {
  CLI::App* cache = app.add_subcommand("cache", "List, check and shrink the cache of kernels");
  cache->require_subcommand(1);
  add_path(*cache, context);
  add_ls(*cache, context);
  add_check(*cache, context);
  add_prune(*cache, context);
}

}  // namespace girih::tools
