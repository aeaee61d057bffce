// What may attend to what. Masks and patterns are plain values: comparable, printable, parsable;
// they hold no CUDA state and no sizes. Their meaning, to the last token, is in the README.
//
//   girih::Mask streaming = girih::causal() & (girih::sink(128) | girih::window({.left = 255}));
//   girih::Pattern pattern = girih::heads({{"0-15", girih::causal()}, {"else", streaming}});
//   girih::Pattern same = girih::Pattern::parse(pattern.text());
#pragma once

#include <cstddef>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "girih/inputs.hpp"

namespace girih {

struct Problem;
namespace pattern {
class Expression;
}

/// A number of an atom: a value, or the name of the run-time input that holds it (`$name` in text),
/// an int32 for all or one for each sequence and head of the launch.
struct Number {
  int value = 0;
  std::string input = {};  ///< a letter or '_', then letters, digits and '_'; empty: `value`

  Number(int v) : value(v) {}
};
/// @throws Error invalid_argument for what is no name.
Number input(std::string name);

/// A boolean expression over (query, key) pairs: atoms joined by &, | and !.
///
/// Operands of & and | are kept in the order written, nested uses of the same operator are
/// flattened, and double negation is removed; nothing else is simplified.
class Mask {
 public:
  enum class Op { atom, expression, all_of, any_of, negation };

  /// Parses a mask (no `heads(...)`). @throws Error invalid_argument, pointing at the character.
  static Mask parse(std::string_view text);

  /// An atom by name with its numbers in declaration order, e.g. atom("window", {255, -1}) or
  /// atom("blocks", {input("m"), 128, 128}).
  /// @throws Error invalid_argument for an unknown name, a wrong count, a value out of range, or an
  /// input where none can be.
  static Mask atom(std::string_view name, std::vector<Number> numbers = {});

  Op op() const { return op_; }
  int atom_index() const { return atom_; }                      ///< into the table of atoms.cuh
  const std::vector<int>& numbers() const { return numbers_; }  ///< of an atom; 0 from inputs
  /// For each of an atom's numbers the run-time input that it comes from, or ""; empty when none.
  const std::vector<std::string>& inputs() const { return inputs_; }
  const std::vector<Mask>& operands() const { return operands_; }  ///< of &, | and !
  /// Of expr("..."), else null. Its inputs() are "", which stands for its tiles, and its tensors.
  const pattern::Expression* expression() const { return expression_.get(); }

  /// Canonical text; parse(text()) == *this.
  std::string text() const;

  /// The same with value(name) for each number that comes from a run-time input, or the nearest
  /// number that the atom can take. An input that is named by itself (`blocks(m, ...)`) keeps its
  /// name; its value is its place in Pattern::inputs().
  Mask with_inputs(const std::function<int(const std::string& name)>& value) const;

  friend bool operator==(const Mask& a, const Mask& b);
  friend Mask expr(std::string_view condition);
  friend Mask operator&(Mask a, Mask b);
  friend Mask operator|(Mask a, Mask b);
  friend Mask operator!(Mask a);

 private:
  Mask() = default;
  static Mask join(Op op, Mask a, Mask b);

  Op op_ = Op::atom;
  int atom_ = 0;
  std::vector<int> numbers_;
  std::vector<std::string> inputs_;
  std::vector<Mask> operands_;
  std::shared_ptr<const pattern::Expression> expression_;
};

/// Inclusive distances in tokens; -1 is unbounded. window({.left = l - 1}) is the last l keys.
struct WindowBounds {
  Number left = -1;
  Number right = -1;
};

Mask dense();                      ///< every key
Mask causal();                     ///< k <= p, aligned bottom-right
Mask window(WindowBounds bounds);  ///< p - left <= k <= p + right
Mask sink(Number n);               ///< the first n keys, n >= 0
Mask last_keys(Number n);          ///< the last n keys
Mask first_queries(Number n);      ///< every key, in the first n rows of the launch
Mask last_queries(Number n);       ///< every key, in the last n rows of the launch
Mask queries(int begin, int end);  ///< every key, in rows with begin <= p < end
Mask keys(int begin, int end);     ///< begin <= k < end
Mask chunk(Number n);              ///< p / n == k / n: neither attends across a multiple of n
Mask dilated(Number d);            ///< every d-th key, its own among them: (p - k) % d == 0

/// Inclusive distances in blocks, counted from position 0; -1 is unbounded.
struct BlockWindowBounds {
  Number left = -1;
  Number right = -1;
  Number block = 0;  ///< tokens; must be given
};
Mask block_window(BlockWindowBounds bounds);

/// Block-Sparse-Attention's streaming heads: counts in blocks, which start with the launch's own
/// first query and key.
struct StreamingBlocks {
  Number sink = 0;
  Number local = 0;  ///< up to the diagonal's block, which is one of them
  int block = 128;
  bool causal = true;
};
Mask block_streaming(StreamingBlocks blocks);

/// S2-Attention: a band of local blocks, and of the others every stride-th, moved from head to
/// head. Give local and stride, or ranges.
struct StridedBlocks {
  struct Local {
    int left = 0;   ///< so many blocks back, the row's own included
    int right = 0;  ///< the same, ahead
    Local(int both) : left(both), right(both) {}
    Local(int l, int r) : left(l), right(r) {}
  };
  /// Stride of the blocks less than `end` blocks back; ascending, the last one kNoEnd.
  struct Range {
    int end = 0;
    int stride = 0;
  };
  static constexpr int kNoEnd = 1 << 29;

  std::optional<Local> local = {};
  int stride = 0;
  int block = 0;  ///< tokens; must be given
  int offset = 0;
  bool kv_heads = false;         ///< count key/value heads instead of query heads
  std::optional<int> step = {};  ///< from head to head; by itself max(1, stride / query heads)
  bool homo = false;             ///< all heads as head 0
  int dense_heads = 0;           ///< the last ones see everything
  bool relative = false;         ///< strides count from the band's edges instead of from block 0
  std::vector<Range> ranges = {};
};
Mask strided(const StridedBlocks& blocks);

/// For each axis of a grid, or one for all of them.
struct PerAxis {
  std::vector<int> values;
  PerAxis(int all) : values{all} {}
  PerAxis(std::initializer_list<int> each) : values(each) {}
};

/// Neighborhood attention over a sequence whose first tokens are a row-major grid; keys behind them
/// are visible to all. A launch must have as many queries as the grid has tokens.
///   neighborhood({.grid = {30, 48, 80}, .window = {18, 24, 24}})
struct GridNeighborhood {
  std::vector<int> grid;  ///< tokens of one to three axes; neighbours on the last are adjacent
  PerAxis window = 0;     ///< tokens, the row's own included; must be given
  PerAxis stride = 1;     ///< so many tokens in a row share a window; at most the window
  PerAxis dilation = 1;   ///< tokens between neighbours; window * dilation is at most the axis
  PerAxis causal = 0;     ///< 1 or true: nothing beyond the row's own coordinate
};
Mask neighborhood(const GridNeighborhood& neighborhood);

/// Sizes of the blocks of a run-time mask, in tokens: 16, 32, 64 or 128.
struct BlockSizes {
  int q = 128;
  int kv = 128;
};
/// What the block list or block mask called `input` has at (q / sizes.q, k / sizes.kv), counted
/// from the sequence's own first row and key. Its data is an argument of the launch: see
/// inputs.hpp.
Mask blocks(std::string input, BlockSizes sizes);

/// Keys with the row's own number: documents packed in one sequence. `input` names TokenIndices.
Mask segments(std::string input);
/// Keys whose number is at most, or less than, the row's own. `input` names TokenIndices.
Mask index_ge(std::string input);
Mask index_gt(std::string input);

/// Keys up to the row's own in single columns, or near diagonals, as MInference has them: the
/// distances of a row's block of 64 become windows of 64 keys or more. `input` names SlashLists.
Mask vertical_slash(std::string input);

/// Keys whose rows the row is one of. `input` names ColumnIntervals.
Mask columns(std::string input);

/// Elements where a condition in C holds, over b h g q k p Sq Sk and run-time int32 tensors:
///   expr("doc[b][q] == doc[b][k] && (k <= p || k < prefix[b])")
/// q and k are the sequence's own row and key, p is the key at the row's position. Key tiles in
/// which nothing or everything is visible are found by a kernel before the launch.
/// @throws Error invalid_argument, pointing at the character.
Mask expr(std::string_view condition);

/// Inclusive ranges of head numbers, or "else": every head that no other set names.
struct HeadSet {
  struct Range {
    int first = 0;
    int last = 0;
    friend bool operator==(const Range&, const Range&) = default;
  };
  std::vector<Range> ranges;
  bool rest = false;

  HeadSet() = default;
  HeadSet(const char* text);  ///< "0-3+8+12-15" or "else" @throws Error invalid_argument
  HeadSet(std::string_view text);
  friend bool operator==(const HeadSet&, const HeadSet&) = default;
};

/// Block-Sparse FlashAttention: of each 128 query rows, key tiles are skipped whose highest visible
/// score, scaled and capped, is below the rows' threshold. They count in neither out nor lse. Tiles
/// at the diagonal are kept where `causal` is a conjunct of the mask, else the one of the last key.
struct Prune {
  std::string thresholds = {};  ///< the input that holds them, girih::Thresholds; empty: no pruning
  int kv = 0;                   ///< keys of a tile: 64 or 128
  bool keep_sink = false;       ///< never skips the first tile
  friend bool operator==(const Prune&, const Prune&) = default;
};

/// What is done to a visible element's score s, softmax_scale included, before the softmax: in this
/// order. Names are those of run-time inputs (Values); an empty text is none.
struct Modifiers {
  float softcap = 0;       ///< s becomes softcap * tanh(s / softcap); 0 is none
  Prune prune = Prune();   ///< skips key tiles by their highest s
  std::string alibi = {};  ///< s - slope * |p - k|; a slope for each head
  std::string bias = {};   ///< s + bias[k]; a number for each key
  /// An expression in C that becomes s, over s, the indices of expr(...) and run-time float32
  /// tensors: "s * scale[h] + labels[b][h][q][min(abs(p - k), 31)]". Kept as canonical text.
  std::string score = {};
  /// Joins every row's sum as exp(logit), without a value; lse includes it, and is it where a row
  /// sees nothing. One for each head.
  std::string sink_logit = {};
  friend bool operator==(const Modifiers&, const Modifiers&) = default;
};

/// A mask for every head: one for all, or one for each set of heads.
class Pattern {
 public:
  enum class HeadUnit { query, kv };  ///< what the numbers in `heads`/`kv_heads` count
  struct HeadClass {
    HeadSet heads;
    Mask mask;
    Modifiers modifiers = {};
    friend bool operator==(const HeadClass&, const HeadClass&) = default;
  };

  Pattern(Mask mask);  ///< the same mask for every head

  /// @throws Error invalid_argument; the message shows the text with a caret under the character.
  static Pattern parse(std::string_view text);

  /// One entry with an empty `heads` when the pattern is one mask for all.
  const std::vector<HeadClass>& classes() const { return classes_; }
  bool per_head() const { return per_head_; }
  /// The run-time inputs by order of appearance: what a launch must be given.
  const std::vector<InputInfo>& inputs() const { return inputs_; }
  HeadUnit head_unit() const { return unit_; }

  /// The same with a soft cap for every head, finite and > 0. For one class of heads alone:
  /// heads({{"0-3", causal(), {.softcap = 30}}, {"else", dense()}}).
  Pattern with_softcap(float softcap) const;
  /// The same with pruning for every head. Classes of heads that are pruned have tiles alike.
  Pattern with_prune(const Prune& prune) const;

  /// The same with these modifiers for every head, and no others.
  Pattern with(const Modifiers& modifiers) const;

  /// Index into classes() for each of num_heads query heads. Sets of heads are those of the whole
  /// model: on one tensor-parallel rank, the first head is number head_offset of num_heads_total
  /// (0: num_heads), both multiples of num_heads / num_heads_kv.
  /// @throws Error invalid_argument when a head of the model is covered never or twice, or does not
  /// exist.
  std::vector<int> class_of_head(int num_heads, int num_heads_kv, int head_offset = 0,
                                 int num_heads_total = 0) const;
  std::vector<int> class_of_head(const Problem& problem) const;

  std::string text() const;  ///< canonical; parse(text()) == *this
  friend bool operator==(const Pattern&, const Pattern&) = default;

 private:
  friend Pattern heads(std::vector<HeadClass> classes);
  friend Pattern kv_heads(std::vector<HeadClass> classes);

  void find_inputs();

  std::vector<HeadClass> classes_;
  std::vector<InputInfo> inputs_;
  bool per_head_ = false;
  HeadUnit unit_ = HeadUnit::query;
};

/// heads({{"0-15", causal()}, {"else", streaming}}): every query head is covered exactly once.
Pattern heads(std::vector<Pattern::HeadClass> classes);
/// The same, counted in key/value heads.
Pattern kv_heads(std::vector<Pattern::HeadClass> classes);

}  // namespace girih

template <>
struct std::hash<girih::Pattern> {
  std::size_t operator()(const girih::Pattern& pattern) const {
    return std::hash<std::string>{}(pattern.text());
  }
};
