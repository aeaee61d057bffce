#include "tune/tuning_db.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "support/fs.hpp"
#include "support/log.hpp"

namespace girih::tune {
namespace {

using Json = nlohmann::ordered_json;
using support::LogLevel;

constexpr int kFormat = 1;
constexpr const char* kFormatKey = "girih_tuning";
constexpr double kTie = 1.01;
constexpr std::pair<plan::KeysPerRow, const char*> kKeysNames[] = {{plan::KeysPerRow::many, "many"},
                                                                   {plan::KeysPerRow::some, "some"},
                                                                   {plan::KeysPerRow::few, "few"}};

DType dtype_named(const std::string& name) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    if (name == to_string(dtype)) return dtype;
  }
  throw std::invalid_argument(fmt::format("dtype '{}' is not known", name));
}

plan::KeysPerRow keys_named(const std::string& name) {
  for (const auto& [keys, known] : kKeysNames) {
    if (name == known) return keys;
  }
  throw std::invalid_argument(fmt::format("keys_per_row '{}' is not known", name));
}

const char* name_of(plan::KeysPerRow keys) {
  return std::find_if(std::begin(kKeysNames), std::end(kKeysNames),
                      [&](const auto& entry) { return entry.first == keys; })
      ->second;
}

double milliseconds(const Json& json, const char* name) {
  const double value = json.at(name).get<double>();
  if (!std::isfinite(value) || value <= 0) {
    throw std::invalid_argument(fmt::format("{} {} is no time", name, value));
  }
  return value;
}

int positive(const Json& json, const char* name) {
  const Json& value = json.at(name);
  if (!value.is_number_integer() || value < 1 || value > (1 << 30)) {
    throw std::invalid_argument(fmt::format("{} {} is not from 1 to 2^30", name, value.dump()));
  }
  return value.get<int>();
}

Record record_of(const Json& json) {
  Record record;
  const Json& device = json.at("device");
  record.device = {device.at("name"), device.at("arch"), positive(device, "num_sms")};
  const Json& kernel = json.at("kernel");
  record.kernel = {dtype_named(kernel.at("dtype")),  positive(kernel, "head_dim"),
                   positive(kernel, "head_dim_v"),   positive(kernel, "group_size"),
                   kernel.at("structures"),          keys_named(kernel.at("keys_per_row")),
                   kernel.value("q_block_size", 0),  kernel.value("kv_block_size", 0),
                   kernel.value("pack_heads", false)};
  record.pattern = json.at("pattern");
  const Json& shape = json.at("shape");
  record.shape = {positive(shape, "batch"), positive(shape, "seqlen_q"),
                  positive(shape, "seqlen_k"), positive(shape, "num_heads")};
  const Json& tile = json.at("tile");
  record.tile = {positive(tile, "block_m"), positive(tile, "block_n"), positive(tile, "num_stages"),
                 positive(tile, "num_warps"), tile.value("num_q_stages", 0)};
  record.ms = milliseconds(json, "ms");
  record.p10 = milliseconds(json, "p10");
  record.p90 = milliseconds(json, "p90");
  record.repeats = positive(json, "repeats");
  record.girih_version = json.at("girih_version");
  record.driver = json.at("driver");
  record.date = json.at("date");
  return record;
}

// A header where it belongs, or in the middle of files that somebody joined.
bool is_header(std::string_view line, std::string& problem) {
  if (line.find(kFormatKey) == line.npos) return false;  // parsing takes longer
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains(kFormatKey)) return false;
  if (json[kFormatKey] != kFormat) {
    problem = fmt::format("format {} is not known, {} is", json[kFormatKey].dump(), kFormat);
  }
  return true;
}

std::vector<Record> parse(std::string_view text, const std::string& file) {
  std::vector<Record> records;
  for (int number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == line.npos) continue;

    std::string problem;
    const bool header = is_header(line, problem);
    if (header && !problem.empty()) {
      support::log(LogLevel::warn,
                   fmt::format("{}:{}: {}: the rest is not used", file, number, problem));
      break;
    }
    if (header) continue;
    if (const std::optional<Record> record = from_line(line, problem)) {
      records.push_back(*record);
    } else {
      support::log(LogLevel::warn,
                   fmt::format("{}:{}: not a tuning record, skipped: {}", file, number, problem));
    }
  }
  return records;
}

using Pointers = std::vector<const Record*>;

template <class Predicate>
Pointers those(const Pointers& records, Predicate&& predicate) {
  Pointers chosen;
  std::copy_if(records.begin(), records.end(), std::back_inserter(chosen),
               [&](const Record* record) { return predicate(*record); });
  return chosen;
}

// Of records of one device and kernel, oldest first and at least one.
const Record& best_of(const Pointers& records, const Query& query) {
  const auto rank = [&](const Record* record) {  // of its bucket; least is best
    const Bucket bucket = bucket_of(record->shape);
    return query.bucket ? distance(bucket, *query.bucket) : -bucket.work();
  };
  const int best_rank =
      rank(*std::min_element(records.begin(), records.end(),
                             [&](const Record* a, const Record* b) { return rank(a) < rank(b); }));
  Pointers near = those(records, [&](const Record& r) { return rank(&r) == best_rank; });
  Pointers own = those(near, [&](const Record& r) { return r.pattern == query.pattern; });
  if (own.empty()) own = std::move(near);

  // Comparable times: the latest run's shape and pattern, and the last word on each tile.
  const Record& latest = *own.back();
  std::map<std::tuple<int, int, int, int, int>, const Record*> of_tile;
  for (const Record* record : own) {
    if (record->device != latest.device || record->shape != latest.shape ||
        record->pattern != latest.pattern) {
      continue;
    }
    const TileConfig& tile = record->tile;
    of_tile[{tile.block_m, tile.block_n, tile.num_stages, tile.num_warps, tile.num_q_stages}] =
        record;
  }
  const Record* fastest = &latest;
  const Record* first = nullptr;
  for (const auto& [key, record] : of_tile) {
    if (record->ms < fastest->ms) fastest = record;
    if (record->tile == query.candidates.front()) first = record;
  }
  return first != nullptr && first->ms <= fastest->ms * kTie ? *first : *fastest;
}

}  // namespace

KernelId kernel_id(const plan::Plan& plan, const Problem& problem) {
  return {
      plan.spec.dtype,
      plan.spec.head_dim,
      plan.spec.head_dim_v,
      problem.group_size(),
      fmt::format("{}{}", fmt::join(plan.spec.structures, "; "), plan.spec.prune ? "; pruned" : ""),
      plan.traits.keys,
      plan.traits.q_block_size,
      plan.traits.kv_block_size,
      plan.spec.pack_heads};
}

Bucket bucket_of(const Shape& shape) {
  const auto exponent = [](std::int64_t value) {
    return std::bit_width(static_cast<std::uint64_t>(std::max<std::int64_t>(value, 1))) - 1;
  };
  return {static_cast<int>(exponent(shape.seqlen_q)), static_cast<int>(exponent(shape.seqlen_k)),
          static_cast<int>(exponent(std::int64_t{shape.batch} * shape.num_heads))};
}

int distance(const Bucket& a, const Bucket& b) {
  return std::abs(a.seqlen_q - b.seqlen_q) + std::abs(a.seqlen_k - b.seqlen_k) +
         std::abs(a.batch_heads - b.batch_heads);
}

std::vector<Record> records_of(const Outcome& outcome, Record common) {
  std::vector<Record> records;
  for (const Timing& timing : outcome.timings) {
    if (timing.ms.empty()) continue;
    common.tile = timing.tile;
    common.ms = timing.median();
    common.p10 = timing.quantile(0.1);
    common.p90 = timing.quantile(0.9);
    common.repeats = static_cast<int>(timing.ms.size());
    records.push_back(common);
  }
  return records;
}

std::string today() {
  return fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::chrono::system_clock::now()));
}

std::string to_line(const Record& r) {
  const Json json{
      {"device", {{"name", r.device.name}, {"arch", r.device.arch}, {"num_sms", r.device.num_sms}}},
      {"kernel",
       {{"dtype", to_string(r.kernel.dtype)},
        {"head_dim", r.kernel.head_dim},
        {"head_dim_v", r.kernel.head_dim_v},
        {"group_size", r.kernel.group_size},
        {"structures", r.kernel.structures},
        {"keys_per_row", name_of(r.kernel.keys)},
        {"q_block_size", r.kernel.q_block_size},
        {"kv_block_size", r.kernel.kv_block_size},
        {"pack_heads", r.kernel.pack_heads}}},
      {"pattern", r.pattern},
      {"shape",
       {{"batch", r.shape.batch},
        {"seqlen_q", r.shape.seqlen_q},
        {"seqlen_k", r.shape.seqlen_k},
        {"num_heads", r.shape.num_heads}}},
      {"tile",
       {{"block_m", r.tile.block_m},
        {"block_n", r.tile.block_n},
        {"num_stages", r.tile.num_stages},
        {"num_warps", r.tile.num_warps},
        {"num_q_stages", r.tile.num_q_stages}}},
      {"ms", r.ms},
      {"p10", r.p10},
      {"p90", r.p90},
      {"repeats", r.repeats},
      {"girih_version", r.girih_version},
      {"driver", r.driver},
      {"date", r.date}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::optional<Record> from_line(std::string_view line, std::string& problem) {
  try {
    return record_of(Json::parse(line));
  } catch (const std::exception& error) {  // of the parser, of a missing member or of a value
    problem = error.what();
    return std::nullopt;
  }
}

std::filesystem::path tuning_file(const std::filesystem::path& cache_directory) {
  return cache_directory / "tuning.jsonl";
}

std::shared_ptr<const std::vector<Record>> read_records(const std::filesystem::path& file) {
  struct Known {
    std::tuple<ino_t, off_t, time_t, long> state;
    std::shared_ptr<const std::vector<Record>> records;
  };
  static std::mutex mutex;
  static std::map<std::string, Known> files;
  static const auto kNone = std::make_shared<const std::vector<Record>>();

  struct stat info {};
  if (::stat(file.c_str(), &info) != 0) return kNone;
  const std::tuple state(info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
  const std::lock_guard lock(mutex);
  Known& known = files[file.string()];
  if (!known.records || known.state != state) {
    const std::optional<std::string> text = support::read_file(file);
    if (!text) {
      support::log_once(LogLevel::warn, file.string(),
                        fmt::format("cannot read the tuning records {}", file.string()));
      return kNone;
    }
    known = {state, std::make_shared<const std::vector<Record>>(parse(*text, file.string()))};
  }
  return known.records;
}

std::string append_records(const std::filesystem::path& file, std::span<const Record> records) {
  std::string lines;
  for (const Record& record : records) lines += to_line(record) + "\n";
  if (lines.empty()) return {};
  if (const std::optional<std::string> before = support::read_file(file)) {
    std::string problem;  // of the first line; a reader would ignore what comes after it
    is_header(before->substr(0, before->find('\n')), problem);
    if (!problem.empty()) return problem;
  }
  return support::append_lines(file, fmt::format("{{\"{}\":{}}}\n", kFormatKey, kFormat), lines);
}

std::optional<Choice> choose(std::span<const Record> records, const Query& query) {
  Pointers all;
  for (const Record& record : records) all.push_back(&record);
  const auto& candidates = query.candidates;
  const Pointers usable = those(all, [&](const Record& r) {
    return r.kernel == query.kernel && r.girih_version == query.girih_version &&
           std::find(candidates.begin(), candidates.end(), r.tile) != candidates.end();
  });
  const Pointers own = those(usable, [&](const Record& r) { return r.device == query.device; });
  if (!own.empty()) {
    const Record& best = best_of(own, query);
    const bool exact = !query.bucket || bucket_of(best.shape) == *query.bucket;
    return Choice{best, exact ? Choice::Match::exact : Choice::Match::nearest};
  }
  const Pointers others =
      those(usable, [&](const Record& r) { return r.device.arch == query.device.arch; });
  if (others.empty()) return std::nullopt;
  return Choice{best_of(others, query), Choice::Match::other_device};
}

}  // namespace girih::tune
