// Calibrating `prune`: thresholds that keep about as many key tiles as wanted, from the highest
// scores of tiles in examples.
//
//   girih::Calibration calibration({.num_heads = 32, .kv = 64, .kept_tiles = 96});
//   girih::jit::TileMaxima tile_maxima(girih::causal(), 64);
//   for (...) {  // of each example, on the device
//     tile_maxima({.q = q, .k = k, .maxima = device});
//     calibration.add(host, {.seqlen_q = n, .seqlen_k = n});
//   }
//   calibration.thresholds();  // [32, num_columns()], for girih::Thresholds
//
// or `girih calibrate`, whose files load_thresholds reads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "girih/jit.hpp"

namespace girih {

/// Thresholds of one layer. Of a query tile of 128 rows, candidates are the key tiles before its
/// first row's position; an example's threshold lies midway between the highest score of the
/// kept_tiles-th best of them and that of the next, and is -inf where there are no more than
/// kept_tiles. Examples are averaged.
class Calibration {
 public:
  struct Settings {
    int num_heads = 1;
    int kv = 64;          ///< keys of a tile: 64 or 128
    int kept_tiles = 16;  ///< 1 or more, beside those that are never skipped
  };
  /// Where one sequence's rows and keys stand, as jit::Args has it.
  struct Lengths {
    int seqlen_q = 0;
    int seqlen_k = 0;
    std::optional<int> q_start = {};
    int k_start = 0;
  };

  /// @throws Error invalid_argument.
  explicit Calibration(const Settings& settings);

  /// @param maxima in host memory, of one sequence: [num_heads, ceil(seqlen_q / 128),
  /// ceil(seqlen_k / kv)], natural and scaled.
  /// @throws Error invalid_argument, also for rows beyond position 2^31 / num_heads, or 2^29.
  void add(const float* maxima, const Lengths& lengths);

  int num_columns() const { return num_columns_; }  ///< that examples had rows for
  /// [num_heads, num_columns]. One example with -inf makes that -inf; columns that no example had
  /// rows for have the threshold of the column before.
  std::vector<float> thresholds() const;

 private:
  Settings settings_;
  int num_columns_ = 0;
  std::vector<std::vector<double>> sums_;  // [num_columns][num_heads]
  std::vector<int> counts_;                // examples: [num_columns]
};

/// What `girih calibrate` wrote to a file.
struct CalibratedThresholds {
  std::vector<float> values;  ///< [num_heads, num_columns]
  int num_heads = 0;
  int num_columns = 0;
  int kv = 0;                               ///< keys of the tiles that they are for
  int head_dim = 0;                         ///< of the examples; 0 where the file does not say
  std::optional<float> softmax_scale = {};  ///< of the scores; files of old do not say
  std::string pattern;                      ///< that was calibrated

  /// As a launch takes them, `data` being the values in device memory. A launch of a pattern that
  /// prunes other tiles refuses them, and so does one with another softmax_scale.
  Thresholds on_device(const float* data) const;
};

/// @throws Error invalid_argument for a file that cannot be read, or holds no such thresholds.
CalibratedThresholds load_thresholds(const std::string& path);

/// Whether they are for this softmax_scale, give or take a thousandth, or do not say for which.
bool serve_softmax_scale(const Thresholds& thresholds, float softmax_scale);

namespace jit {

/// Tensors are as those of Args; layout thd is not supported.
struct TileMaximaArgs {
  Tensor q, k;
  Layout layout = Layout::bshd;
  float* maxima = nullptr;  ///< [batch, num_heads, ceil(seqlen_q / 128), ceil(seqlen_k / kv)]
  std::vector<Input> inputs = {};           ///< all of TileMaxima::pattern()'s, by name
  std::optional<float> softmax_scale = {};  ///< default 1 / sqrt(head_dim)
  std::optional<int> q_start = {};
  int k_start = 0;
  CUstream_st* stream = nullptr;
};

/// The highest score that is visible in each tile of 128 query rows and `kv` keys, scaled and
/// capped; -inf where nothing is. Without V and output: what prune compares with thresholds.
class TileMaxima {
 public:
  /// @throws Error invalid_argument for a kv other than 64 and 128.
  TileMaxima(const Pattern& pattern, int kv, Options options = {});

  /// What counts of the pattern: masks and softcaps. Other modifiers' inputs are not wanted.
  const Pattern& pattern() const;

  /// Enqueues on args.stream, with memory for lists as Program. The first call for a problem
  /// compiles, or finds in the cache, and loads, which is refused while the stream is being
  /// captured.
  /// @throws Error as Program.
  void operator()(const TileMaximaArgs& args) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

/// Its kernel without a device, as build() makes those of patterns. The cubin only.
Artifact build_tile_maxima(const Pattern& pattern, int kv, const Problem& problem,
                           const std::string& arch, const Options& options = {});

}  // namespace jit

}  // namespace girih
