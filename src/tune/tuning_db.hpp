// What was measured, on disk: JSON lines, one a tile and shape, so that another choice of tiles
// loses no timing. A damaged line costs a warning; the file is never required.
//
//   {"girih_tuning": 1}
//   {"device": {...}, "kernel": {...}, "pattern": "causal", "shape": {...}, "tile": {...}, "ms":
//   ...}
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "girih/problem.hpp"
#include "plan/plan.hpp"
#include "tune/tuner.hpp"

namespace girih::tune {

struct DeviceId {
  std::string name;  ///< as the driver calls it
  std::string arch;  ///< "sm_90"
  int num_sms = 0;   ///< part of a GPU has its name, but fewer of these
  friend bool operator==(const DeviceId&, const DeviceId&) = default;
};

/// What a tile is good for, whatever the lengths and, but for `keys`, the pattern's numbers.
struct KernelId {
  DType dtype = DType::bfloat16;
  int head_dim = 0;
  int head_dim_v = 0;
  int group_size = 1;
  std::string structures;  ///< of the pattern's head classes, joined
  plan::KeysPerRow keys = plan::KeysPerRow::many;
  int q_block_size = 0;  ///< of the finest run-time block mask; 0 where there is none
  int kv_block_size = 0;
  bool pack_heads = false;  ///< as Hopper's kernel has them
  friend bool operator==(const KernelId&, const KernelId&) = default;
};
KernelId kernel_id(const plan::Plan& plan, const Problem& problem);

struct Shape {
  int batch = 1;
  int seqlen_q = 0;
  int seqlen_k = 0;
  int num_heads = 1;
  friend bool operator==(const Shape&, const Shape&) = default;
};

/// Shapes whose lengths have the same next lower powers of two share a bucket, given as exponents.
struct Bucket {
  int seqlen_q = 0;
  int seqlen_k = 0;
  int batch_heads = 0;

  int work() const { return seqlen_q + seqlen_k + batch_heads; }  ///< exponent of the product
  friend bool operator==(const Bucket&, const Bucket&) = default;
};
Bucket bucket_of(const Shape& shape);

/// Powers of two between buckets, summed over the dimensions: 100 x 10000 is far from 10000 x 100.
int distance(const Bucket& a, const Bucket& b);

struct Record {
  DeviceId device;
  KernelId kernel;
  std::string pattern;  ///< text; its numbers decide how long the kernel runs
  Shape shape;
  TileConfig tile;
  double ms = 0;  ///< median of a launch
  double p10 = 0;
  double p90 = 0;
  int repeats = 0;
  std::string girih_version;  ///< records of other versions measured other kernels
  std::string driver;
  std::string date;
  friend bool operator==(const Record&, const Record&) = default;
};

/// Of what was timed. `common` says where; its tile and times are not used.
std::vector<Record> records_of(const Outcome& outcome, Record common);

std::string today();  ///< for Record::date, "2026-01-31" in UTC

std::string to_line(const Record& record);

/// @return empty, and why in `problem`, when the line is no record.
std::optional<Record> from_line(std::string_view line, std::string& problem);

/// The file beside a cache's entries.
std::filesystem::path tuning_file(const std::filesystem::path& cache_directory);

/// Readable lines, oldest first; a file that does not exist has none. What is wrong with the others
/// is logged as file:line. A file that has not changed since is not read again.
std::shared_ptr<const std::vector<Record>> read_records(const std::filesystem::path& file);

/// @return an empty string, or why it could not be written.
std::string append_records(const std::filesystem::path& file, std::span<const Record> records);

struct Query {
  DeviceId device;
  KernelId kernel;
  std::string pattern;
  std::string girih_version;
  /// Lengths of the launches to come; empty: unknown, then the largest shapes decide, for there a
  /// wrong tile costs most.
  std::optional<Bucket> bucket;
  /// What may be chosen, the one that is used without a record first.
  std::vector<TileConfig> candidates;
};

struct Choice {
  enum class Match {
    exact,        ///< this GPU, this bucket or, with none asked for, its largest
    nearest,      ///< this GPU, the nearest bucket
    other_device  ///< a hint: another GPU of the same architecture; this one has no record at all
  };
  Record record;
  Match match = Match::exact;
};

/// The fastest candidate on record. Times are compared only within one shape and pattern text: the
/// bucket's latest, of the query's own pattern where there is one. A later record of a tile
/// replaces an earlier one; within 1 % of the fastest, the first candidate wins.
std::optional<Choice> choose(std::span<const Record> records, const Query& query);

}  // namespace girih::tune
