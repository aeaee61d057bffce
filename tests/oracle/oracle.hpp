// The tests' own reading of patterns, written from their definitions with naive predicates. It
// includes nothing of the library: an error there cannot hide here.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace oracle {

struct Sizes {
  long long seqlen_q = 0;
  long long seqlen_k = 0;
  long long q_start = 0;  ///< bottom-right alignment: k_start + seqlen_k - seqlen_q
  long long k_start = 0;
  long long head = 0;  ///< query head of the model
  long long num_heads = 1;
  long long group_size = 1;  ///< query heads to a key/value head
};
Sizes bottom_right(long long seqlen_q, long long seqlen_k);

/// S2-Attention's arguments.
struct Strided {
  long long left = 0, right = 0, stride = 1;  ///< unless there are ranges
  long long block = 1;
  long long offset = 0;
  bool kv_heads = false;
  std::optional<long long> step = {};
  bool homo = false;
  long long dense_heads = 0;
  bool relative = false;
  std::vector<std::pair<long long, long long>> ranges = {};  ///< (N, v); the last N is infinite
};

/// One plane of a run-time block mask.
struct Blocks {
  std::string name = {};
  long long q = 0, kv = 0;         ///< block sizes
  long long columns = 0;           ///< of `visible`
  std::vector<char> visible = {};  ///< [rows, columns]
};

/// Of a neighborhood, one for each axis, the slowest first.
struct Axis {
  long long extent = 1, window = 1, stride = 1, dilation = 1;
  bool causal = false;
};

/// A number for each query and each key.
struct Indices {
  std::string name = {};
  std::vector<long long> q = {}, k = {};
};

/// Columns, and distances from keys to later rows.
struct VerticalSlash {
  std::string name = {};
  std::set<long long> columns = {};
  std::set<long long, std::greater<>> distances = {};
  /// Which keys the windows of a block of rows hold, where that was remembered.
  std::map<long long, std::vector<char>> windows = {};

  /// For the blocks of 64 rows that these rows lie in: naive predicates are slow at great lengths.
  void remember(const Sizes& sizes, const std::vector<int>& rows);
};

/// Rows that see a key: pairs of the first and the one behind the last, as many for each key.
struct Columns {
  std::string name = {};
  std::vector<std::vector<std::pair<long long, long long>>> rows = {};  ///< by key
};

/// What expr("text") says, as the test that wrote the text reads it.
struct Condition {
  std::string text = {};
  std::function<bool(const Sizes& sizes, long long q, long long k)> holds = {};
  bool by_head = false;
};

struct Expr {
  enum class Kind {
    dense,
    causal,
    window,           ///< left, right
    sink,             ///< n
    last_keys,        ///< n
    first_queries,    ///< n
    last_queries,     ///< n
    queries,          ///< a, b
    keys,             ///< a, b
    chunk,            ///< n
    block_window,     ///< left, right, block
    block_streaming,  ///< sink, local, block, causal (0 or 1)
    strided,
    dilated,  ///< d
    blocks,
    neighborhood,
    segments,
    index_ge,
    index_gt,
    vertical_slash,
    columns,
    condition,
    all_of,
    any_of,
    negation
  };
  Kind kind = Kind::dense;
  std::vector<long long> numbers;
  std::vector<Expr> operands;
  Strided strided = {};
  Blocks blocks = {};
  std::vector<Axis> axes = {};
  Indices indices = {};
  VerticalSlash slash = {};
  Columns columns = {};
  Condition condition = {};
};

/// Pattern text; every operand that is not an atom in parentheses.
std::string text(const Expr& expr);

bool visible(const Expr& expr, const Sizes& sizes, long long q, long long k);

/// Whether heads may differ.
bool depends_on_head(const Expr& expr);

/// An atom of this kind with numbers up to about `largest`.
Expr random_atom(std::mt19937_64& random, Expr::Kind kind, long long largest);
constexpr int kNumAtoms = static_cast<int>(Expr::Kind::blocks);

/// Of one to three axes, with about `largest` tokens or fewer.
Expr random_neighborhood(std::mt19937_64& random, long long largest);
long long grid_tokens(const Expr& neighborhood);

/// An expression of at most `depth` levels, with numbers up to about `largest`.
Expr random_expr(std::mt19937_64& random, int depth, long long largest);

}  // namespace oracle
