// Launches of kernels that prune, at random, and what their CTAs' query tiles must visit: each key
// tile that the mask shows them, once, and in the order that their series' scout has found.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "pipeline.hpp"

namespace girih::series {

using emulation::below;

using Classes = HeadClasses<Leaf<Causal>, Leaf<Dense>>;
using Heads = HeadTable<4, Classes::kNumNumbers + 1>;

// What happened in all runs.
struct Happened {
  int skipped_and_rest = 0, only_skipped = 0, only_rest = 0;  // followers, by their visits
  int many_key_tiles = 0;                 // followers' that a warp looks at more than once
  int keep_all = 0, scouts_keep_all = 0;  // without a threshold; instead of scouting
  int last_skipped = 0;                   // by scouts
  int masked = 0, masked_skipped = 0;     // query tiles that see nothing; by scouts
  int short_series = 0;                   // at a sequence's end or beginning
  int busy_ctas = 0;
};

// A launch, and what consumers decide.
struct Problem {
  int block_n;
  int batch;
  FwdParams params{};
  Heads heads{};
  std::vector<int> cu_seqlens_q{0}, cu_seqlens_k{0};
  std::vector<uint32> thresholds;  // [batch, num_heads, positions], of floats
  InputView view;
  int salt, skip_percent, flip_percent;

  Problem(std::mt19937& random, int keys) : block_n(keys), batch(1 + below(random, 3)) {
    Geometry& g = params.geometry;
    g.seqlen_q = 1 + below(random, below(random, 4) == 0 ? 2600 : 1000);
    g.seqlen_k = 1 + below(random, keys * (below(random, 4) == 0 ? 80 : 12));
    g.group_size = 1 + below(random, 2);
    g.k_start = below(random, 2) * below(random, 300);
    g.q_start = below(random, 1800) - 200;
    params.bottom_right = below(random, 2) != 0;
    params.num_heads = g.group_size * (1 + below(random, 2));
    draw_lengths(random, g.seqlen_q, cu_seqlens_q);
    draw_lengths(random, g.seqlen_k, cu_seqlens_k);
    if (below(random, 2) != 0) params.cu_seqlens_q = cu_seqlens_q.data();
    if (below(random, 2) != 0) params.cu_seqlens_k = cu_seqlens_k.data();

    params.tiles_per_series = std::array{1, 2, 3, 8}[static_cast<std::size_t>(below(random, 4))];
    params.num_m_blocks = ceil_div(ceil_div(g.seqlen_q, kPruneRows), params.tiles_per_series);
    params.num_batch_heads = batch * params.num_heads;
    params.heads_per_section = 1 + below(random, params.num_batch_heads);
    params.num_tiles = params.num_m_blocks * params.num_batch_heads;

    const int positions = 1 + below(random, 24);
    view = {nullptr, int64{params.num_heads} * positions, positions, positions, 1};
    const int keep_all_in = 1 + below(random, 8);
    for (int i = 0; i < params.num_batch_heads * positions; ++i) {
      const float threshold = below(random, keep_all_in) == 0
                                  ? (below(random, 4) == 0 ? NAN : -HUGE_VALF)
                                  : static_cast<float>(below(random, 9) - 4);
      thresholds.push_back(std::bit_cast<uint32>(threshold));
    }
    view.data = thresholds.data();
    for (int head = 0; head < params.num_heads; ++head) {
      auto& row = heads.rows[head];
      const bool causal = below(random, 3) != 0;
      row.head_class = causal ? 0 : 1;
      row.numbers[Classes::kNumNumbers] = below(random, 5) == 0
                                              ? PruneWord::kNone
                                              : PruneWord::make(0, causal, below(random, 2) != 0);
    }
    salt = below(random, 1 << 16);
    skip_percent = std::array{0, 30, 70, 100}[static_cast<std::size_t>(below(random, 4))];
    flip_percent = below(random, 2) * below(random, 20);
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  // Of a sequence, as one of its heads has it.
  Geometry geometry(int b, int head) const {
    Geometry g = params.geometry;
    const auto at = static_cast<std::size_t>(b);
    if (params.cu_seqlens_q != nullptr) g.seqlen_q = cu_seqlens_q[at + 1] - cu_seqlens_q[at];
    if (params.cu_seqlens_k != nullptr) g.seqlen_k = cu_seqlens_k[at + 1] - cu_seqlens_k[at];
    if (params.bottom_right) g.q_start = g.k_start + g.seqlen_k - g.seqlen_q;
    g.inputs = &view;
    g.batch = b;
    g.head = g.local_head = head;
    g.head_kv = head / g.group_size;
    return g;
  }

  // Whether consumers skip a key tile that they may: mostly as other rows of the head do.
  bool skips(int b, int head, int first_row, int n) const {
    const int plane = b * params.num_heads + head, query_tile = first_row / kPruneRows;
    const auto chance = [&](int number, int percent) {
      return emulation::noise(salt + n, plane, number) * 100 < static_cast<float>(percent);
    };
    return chance(0, skip_percent) != chance(1 + query_tile, flip_percent);
  }

 private:
  void draw_lengths(std::mt19937& random, int most, std::vector<int>& ends) const {
    for (int b = 0; b < batch; ++b) {
      const int length = below(random, 4) == 0 ? below(random, 2) * most : below(random, most + 1);
      ends.push_back(ends.back() + length);
    }
  }
};

// A query tile as readers find it, and its visits.
struct Taken {
  Geometry geometry;
  int first_row;
  BoxOrigin queries, keys;
  struct Visit {
    uint32 flags;
    int box;
  };
  std::vector<Visit> visits;
};

// Follows what CTAs take, query tile by query tile.
class Checker {
 public:
  Checker(const Problem& problem, Happened& happened)
      : problem_(problem),
        happened_(happened),
        most_tiles_(ceil_div(problem.params.geometry.seqlen_q, kPruneRows)),
        times_(static_cast<std::size_t>(problem.params.num_batch_heads * most_tiles_)) {}

  bool within_series() const { return left_ > 0; }
  int num_scouts() const { return num_scouts_; }

  // What is wrong with the next query tile, or nothing.
  std::string check(const Taken& tile) {
    const int b = tile.geometry.batch, head = tile.geometry.local_head;
    if (b < 0 || b >= problem_.batch || head < 0 || head >= problem_.params.num_heads) {
      return "a query tile is of no sequence or head";
    }
    const Geometry g = problem_.geometry(b, head);
    if (tile.geometry.seqlen_q != g.seqlen_q || tile.geometry.seqlen_k != g.seqlen_k ||
        tile.geometry.q_start != g.q_start || tile.geometry.head_kv != g.head_kv) {
      return "a query tile is of another sequence or head";
    }
    if (!lies_at(tile.queries, problem_.params.cu_seqlens_q, b, tile.first_row, head) ||
        !lies_at(tile.keys, problem_.params.cu_seqlens_k, b, 0, g.head_kv)) {
      return "a query tile lies elsewhere";
    }

    const int number = tile.first_row / kPruneRows, tiles = ceil_div(g.seqlen_q, kPruneRows);
    if (tile.first_row % kPruneRows != 0 || number >= tiles) return "a query tile has no rows";
    const int most = problem_.params.tiles_per_series;
    const int end = most_tiles_ - (most_tiles_ - 1 - number) / most * most;  // of the series
    const int begin = max(end - most, 0), length = min(end, tiles) - begin;
    const bool first = left_ == 0;
    if (first) {
      left_ = length;
      batch_ = b, head_ = head;
      happened_.short_series += length > 1 && length < most;
    }
    if (batch_ != b || head_ != head || number != begin + left_ - 1) {
      return "a series is not taken from its last rows to its first";
    }
    --left_;
    ++times_[index_of(b, head, number)];

    const int word = problem_.heads.rows[head].numbers[Classes::kNumNumbers];
    const PruneRule rule = prune_rule(word, g, tile.first_row, problem_.block_n);
    if (first) {
      const bool prunes = rule.threshold > -HUGE_VALF;
      scouted_ = length > 1 && prunes;
      num_scouts_ += scouted_;
      skipped_.clear();
      happened_.scouts_keep_all += length > 1 && word != PruneWord::kNone && !prunes;
    }
    return check_visits(tile, g, rule, first);
  }

  // Whether every query tile that has rows was taken once.
  bool all_once() const {
    for (int b = 0; b < problem_.batch; ++b) {
      const int tiles = ceil_div(problem_.geometry(b, 0).seqlen_q, kPruneRows);
      for (int head = 0; head < problem_.params.num_heads; ++head) {
        for (int number = 0; number < tiles; ++number) {
          if (times_[index_of(b, head, number)] != 1) return false;
        }
      }
    }
    return true;
  }

 private:
  std::size_t index_of(int b, int head, int number) const {
    return static_cast<std::size_t>((b * problem_.params.num_heads + head) * most_tiles_ + number);
  }

  static bool lies_at(const BoxOrigin& origin, const int* cu_seqlens, int b, int row, int head) {
    const int first = cu_seqlens == nullptr ? 0 : cu_seqlens[b];
    return origin.column == 0 && origin.row == first + row && origin.head == head &&
           origin.batch == (cu_seqlens == nullptr ? b : 0);
  }

  std::string check_visits(const Taken& tile, const Geometry& g, const PruneRule& rule,
                           bool first) {
    const int block_n = problem_.block_n, count = ceil_div(g.seqlen_k, block_n);
    const bool causal = problem_.heads.rows[g.local_head].head_class == 0;
    const int last_row = min(tile.first_row + kPruneRows, g.seqlen_q) - 1;
    const auto keys_of = [&](int row) {  // how many it sees
      return causal ? std::clamp(row + g.q_start - g.k_start + 1, 0, g.seqlen_k) : g.seqlen_k;
    };
    std::vector<int> boxes;
    for (int n = 0; n * block_n < keys_of(last_row); ++n) boxes.push_back(n);
    const bool masked = boxes.empty();
    if (masked) boxes.push_back(count);
    const bool scouts = scouted_ && first, follows = scouted_ && !first;
    const auto likely_skipped = [&](int n) {
      return follows && skipped_.count(n) != 0 && rule.may_skip(n);
    };
    const auto rest = std::stable_partition(boxes.begin(), boxes.end(), likely_skipped);
    if (follows) count_follower(rest - boxes.begin(), boxes.end() - rest, rule);
    happened_.masked += masked;

    if (tile.visits.size() != boxes.size()) return "a query tile has more or fewer visits";
    for (std::size_t i = 0; i < boxes.size(); ++i) {
      const int n = boxes[i];
      const bool last = i + 1 == boxes.size(), may_skip = rule.may_skip(n);
      const bool full = (n + 1) * block_n <= keys_of(tile.first_row);
      const uint32 kind = static_cast<uint32>(full ? TileKind::full : TileKind::partial);
      const uint32 flags = kind * two_bits_each(3) | (i == 0 ? kFirstVisit : 0) |
                           (last ? kLastVisit : 3 << kSeesNextBit) | (may_skip ? kMaySkip : 0) |
                           (scouts ? kScouted : 0) | (likely_skipped(n) ? kLikelySkipped : 0);
      if (tile.visits[i].box != n) return "key tiles are visited in another order";
      if (tile.visits[i].flags != flags) return "a visit has other flags";
      if (!scouts || !may_skip) continue;
      if (!problem_.skips(g.batch, g.local_head, tile.first_row, n)) continue;
      skipped_.insert(n);
      happened_.last_skipped += last && !masked;
      happened_.masked_skipped += masked;
    }
    return "";
  }

  void count_follower(std::ptrdiff_t skipped, std::ptrdiff_t rest, const PruneRule& rule) {
    happened_.keep_all += !(rule.threshold > -HUGE_VALF);
    ++(rest == 0      ? happened_.only_skipped
       : skipped == 0 ? happened_.only_rest
                      : happened_.skipped_and_rest);
    happened_.many_key_tiles += skipped > 0 && skipped + rest > 32;
  }

  const Problem& problem_;
  Happened& happened_;
  int most_tiles_;  // of a head
  std::vector<int> times_;
  int left_ = 0;  // query tiles of the series, which is of this head
  int batch_ = 0, head_ = 0;
  int num_scouts_ = 0;
  bool scouted_ = false;
  std::set<int> skipped_;  // by its scout
};

}  // namespace girih::series
