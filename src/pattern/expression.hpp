// Expressions of a pattern's text, such as s * 2 + table[h][p - k]: parsed and type-checked into a
// tree, from which canonical text and CUDA are printed. Nothing of the user's characters reaches a
// compiler but names that were checked and numbers that were read.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace girih::pattern {

/// What an expression is for.
enum class ExpressionUse {
  score,  ///< a number from s, the indices and float32 tensors
  mask,   ///< a condition on the indices and int32 tensors
};

/// Why a text is no expression, and the character where that shows.
struct ExpressionProblem {
  std::size_t at = 0;
  std::string message;
};

/// The indices of an element, in the order of Expression's variables; s is the score. Heads are
/// those of the whole model, and within a tensor's brackets those of the launch.
struct ExpressionPoint {
  int b = 0, h = 0, g = 0, q = 0, k = 0, p = 0, Sq = 0, Sk = 0;
  double s = 0;
  int local_h = 0, local_g = 0;
};

/// A value: comparable by its canonical text.
class Expression {
 public:
  static constexpr int kMaxNesting = 64;  ///< of parentheses, operators before a term, conditions
  static constexpr int kMaxNodes = 512;

  /// @throws ExpressionProblem.
  static Expression parse(std::string_view text, ExpressionUse use);

  /// Canonical; parse(text(), use) gives the same text.
  std::string text() const;

  /// CUDA over the functions of shared/arithmetic.cuh: `at.q` and so on for the indices, `score`
  /// for s, and element<rank>(tensor number, indices...) for a tensor's; where b, h or g are
  /// indices by themselves, element<rank, 0x...> with a bit for each of their dimensions.
  std::string code() const;

  struct Tensor {
    std::string name;
    int rank = 0;
    /// Of each dimension: bit i where one of b, h, g, q, k, the i-th, is an index by itself.
    std::array<std::uint8_t, 4> indexed_by{};
    friend bool operator==(const Tensor&, const Tensor&) = default;
  };
  /// In the order of their first appearance.
  const std::vector<Tensor>& tensors() const { return tensors_; }

  /// Whether the variable stands anywhere in it.
  bool mentions(std::string_view variable) const;

  /// What a compiler's time for a kernel that has it at every element grows with: 1 for a sum or
  /// comparison, 8 for each index of an element, some tens for quotients and functions; 50 are
  /// about a second (tools/bench/NOTES.md).
  int cost() const;

  /// Operations, numbers and names.
  int num_nodes() const { return static_cast<int>(nodes_.size()); }

  /// By the meaning that kernels give it, in int32 and, of a mask, float32, of a score, float64; a
  /// condition is 0 or 1.
  /// @param element of tensor number i at some indices, which may lie outside of it.
  double evaluate(
      const ExpressionPoint& point,
      const std::function<double(int tensor, std::span<const int> indices)>& element) const;

  friend bool operator==(const Expression& a, const Expression& b) { return a.text() == b.text(); }

 private:
  friend class ExpressionParser;

  enum class Type { integer, real, condition };
  enum class Op {
    integer,   // value
    real,      // value
    variable,  // index: into kVariables
    element,   // index: of the tensor; its indices are operands
    call,      // index: into kFunctions
    to_real,   // an integer among reals; index: kWritten where the text says so
    negate,
    logical_not,
    multiply,
    divide,
    remainder,
    add,
    subtract,
    less,
    less_equal,
    greater,
    greater_equal,
    equal,
    not_equal,
    logical_and,
    logical_or,
    choose
  };
  static constexpr int kMaxRank = 4;
  static constexpr int kWritten = 1;
  struct Node {
    Op op = Op::integer;
    Type type = Type::integer;
    int index = 0;
    double value = 0;
    int num_operands = 0;
    std::array<int, kMaxRank> operands{};  // places in nodes_, before this one
  };

  static int precedence(Op op);
  static const char* symbol(Op op);
  void print(std::string& out, int node) const;
  void print_code(std::string& out, int node, bool in_brackets) const;
  double evaluate(int node, const ExpressionPoint& point, bool in_brackets,
                  const std::function<double(int, std::span<const int>)>& element) const;

  double evaluate_exactly(int node, const ExpressionPoint& point, bool in_brackets,
                          const std::function<double(int, std::span<const int>)>& element) const;

  ExpressionUse use_ = ExpressionUse::mask;
  std::vector<Node> nodes_;
  std::vector<Tensor> tensors_;
  int root_ = 0;
};

/// As Expression::parse. @throws Error invalid_argument, pointing at the character.
Expression parse_expression(std::string_view text, ExpressionUse use);

}  // namespace girih::pattern
