#include "pattern/expression.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>

#include "pattern/atoms.hpp"

namespace girih::pattern {
namespace {

constexpr std::string_view kVariables[] = {"b", "h", "g", "q", "k", "p", "Sq", "Sk", "s"};
constexpr int kHead = 1, kHeadKv = 2, kKey = 4, kScore = 8;  // b comes before heads

struct Function {
  std::string_view name;
  int num_operands;
  bool of_reals;  // else of integers too, and then gives one
};
constexpr Function kFunctions[] = {{"min", 2, false},  {"max", 2, false}, {"abs", 1, false},
                                   {"exp", 1, true},   {"exp2", 1, true}, {"log", 1, true},
                                   {"log2", 1, true},  {"sqrt", 1, true}, {"tanh", 1, true},
                                   {"float", 1, true}, {"int", 1, true}};
constexpr int kToReal = 9, kToInteger = 10;

template <std::size_t kCount>
int find(const std::string_view (&names)[kCount], std::string_view name) {
  const auto found = std::find(std::begin(names), std::end(names), name);
  return found == std::end(names) ? -1 : static_cast<int>(found - std::begin(names));
}

int find_function(std::string_view name) {
  for (int i = 0; i < static_cast<int>(std::size(kFunctions)); ++i) {
    if (kFunctions[i].name == name) return i;
  }
  return -1;
}

bool is_space(char c) { return c == ' ' || ('\t' <= c && c <= '\r'); }
bool is_digit(char c) { return '0' <= c && c <= '9'; }
bool is_letter(char c) { return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || c == '_'; }

// Of int32, as kernels compute them: sums wrap, and what is divided by zero is zero.
std::int32_t wrapped(std::int64_t value) { return static_cast<std::int32_t>(value); }

std::int32_t to_integer(double value) {
  if (std::isnan(value)) return 0;
  return static_cast<std::int32_t>(std::clamp(std::trunc(value), -2147483648.0, 2147483647.0));
}

std::string real_text(double value) {
  std::string text = fmt::format("{}", static_cast<float>(value));
  if (text.find_first_of(".e") == text.npos) text += ".0";
  return text;
}

}  // namespace

class ExpressionParser {
 public:
  using Op = Expression::Op;
  using Type = Expression::Type;
  using Node = Expression::Node;

  ExpressionParser(std::string_view text, ExpressionUse use) : text_(text), use_(use) { advance(); }

  Expression whole() {
    const std::size_t at = token_.at;
    int root = condition();
    if (token_.kind != Kind::end) {
      fail_here(token_.text == ")"
                    ? "this ')' closes nothing"
                    : fmt::format("expected an operator or the end, found {}", found()));
    }
    if (use_ == ExpressionUse::mask) {
      if (type(root) != Type::condition) {
        fail(at, "a mask is a condition such as k <= p: this is a number");
      }
    } else {
      root = as_real(root, at);
    }
    result_.root_ = root;
    result_.use_ = use_;
    return std::move(result_);
  }

 private:
  enum class Kind { end, name, integer, real, symbol };
  struct Token {
    Kind kind = Kind::end;
    std::string_view text;
    std::size_t at = 0;
  };

  [[noreturn]] static void fail(std::size_t at, std::string message) {
    throw ExpressionProblem{at, std::move(message)};
  }
  [[noreturn]] void fail_here(std::string message) const { fail(token_.at, std::move(message)); }

  std::string found() const {
    return token_.kind == Kind::end ? "the end of the expression" : quote(token_.text);
  }

  // --- Tokens ---

  void advance() {
    while (position_ < text_.size() && is_space(text_[position_])) ++position_;
    const std::size_t begin = position_;
    if (begin == text_.size()) {
      token_ = {Kind::end, {}, begin};
      return;
    }
    const auto at = [&](std::size_t i) { return i < text_.size() ? text_[i] : '\0'; };
    const char c = text_[begin];
    if (is_letter(c)) {
      while (is_letter(at(position_)) || is_digit(at(position_))) ++position_;
      token_ = {Kind::name, text_.substr(begin, position_ - begin), begin};
    } else if (is_digit(c) || (c == '.' && is_digit(at(begin + 1)))) {
      bool real = false;
      while (is_letter(at(position_)) || is_digit(at(position_)) || at(position_) == '.' ||
             ((at(position_) == '+' || at(position_) == '-') &&
              (at(position_ - 1) == 'e' || at(position_ - 1) == 'E') && position_ > begin)) {
        real |= !is_digit(at(position_));
        ++position_;
      }
      token_ = {real ? Kind::real : Kind::integer, text_.substr(begin, position_ - begin), begin};
    } else {
      const std::string_view two = text_.substr(begin, 2);
      const bool pair =
          two == "<=" || two == ">=" || two == "==" || two == "!=" || two == "&&" || two == "||";
      if (!pair && std::string_view("+-*/%<>!?:()[],").find(c) == std::string_view::npos) {
        fail(begin, c == '&' || c == '|' || c == '='
                        ? fmt::format("'{0}' is no operator here: write {0}{0}", c)
                        : fmt::format("unexpected character (byte 0x{:02x})",
                                      static_cast<unsigned char>(c)));
      }
      position_ += pair ? 2 : 1;
      token_ = {Kind::symbol, text_.substr(begin, position_ - begin), begin};
    }
  }

  bool is(std::string_view symbol) const {
    return token_.kind == Kind::symbol && token_.text == symbol;
  }
  bool accept(std::string_view symbol) {
    if (!is(symbol)) return false;
    advance();
    return true;
  }
  void expect(std::string_view symbol) {
    if (!accept(symbol)) fail_here(fmt::format("expected '{}', found {}", symbol, found()));
  }

  // --- Nodes ---

  struct Nesting {
    explicit Nesting(ExpressionParser& parser) : parser_(parser) {
      if (++parser.nesting_ > Expression::kMaxNesting) {
        parser.fail_here(fmt::format("nested deeper than {} levels", Expression::kMaxNesting));
      }
    }
    ~Nesting() { --parser_.nesting_; }
    ExpressionParser& parser_;
  };

  Type type(int node) const { return result_.nodes_[static_cast<std::size_t>(node)].type; }

  int add(Op op, Type type, std::initializer_list<int> operands, int index = 0, double value = 0) {
    if (result_.nodes_.size() == Expression::kMaxNodes) {
      fail_here(fmt::format("the expression has more than {} operations, numbers and names",
                            Expression::kMaxNodes));
    }
    Node node{op, type, index, value, static_cast<int>(operands.size()), {}};
    std::copy(operands.begin(), operands.end(), node.operands.begin());
    result_.nodes_.push_back(node);
    return static_cast<int>(result_.nodes_.size()) - 1;
  }

  int as_number(int node, std::size_t at) const {
    if (type(node) == Type::condition) fail(at, "a condition is no number: write (... ? 1 : 0)");
    return node;
  }
  int as_real(int node, std::size_t at) {
    if (type(as_number(node, at)) == Type::real) return node;
    return add(Op::to_real, Type::real, {node});
  }
  int as_condition(int node, std::size_t at) const {
    if (type(node) != Type::condition)
      fail(at, "a number is no condition: compare it, as in k > 0");
    return node;
  }
  // Both integers, or both reals.
  Type unify(int& a, std::size_t a_at, int& b, std::size_t b_at) {
    as_number(a, a_at);
    as_number(b, b_at);
    if (type(a) == type(b)) return type(a);
    a = as_real(a, a_at);
    b = as_real(b, b_at);
    return Type::real;
  }

  // --- Grammar ---

  int condition() {
    const Nesting nesting(*this);
    const std::size_t at = token_.at;
    const int test = binary(1);
    if (!accept("?")) return test;
    as_condition(test, at);
    const std::size_t a_at = token_.at;
    int a = condition();
    expect(":");
    const std::size_t b_at = token_.at;
    int b = condition();
    Type result = Type::condition;
    if (type(a) != Type::condition || type(b) != Type::condition) result = unify(a, a_at, b, b_at);
    return add(Op::choose, result, {test, a, b});
  }

  // Operators of at least this precedence, from the left.
  int binary(int least) {
    const std::size_t a_at = token_.at;
    int a = unary();
    while (true) {
      Op op{};
      bool some = false;
      for (int i = static_cast<int>(Op::multiply); i <= static_cast<int>(Op::logical_or); ++i) {
        if (!is(Expression::symbol(static_cast<Op>(i)))) continue;
        op = static_cast<Op>(i);
        some = true;
      }
      if (!some || Expression::precedence(op) < least) return a;
      const std::size_t op_at = token_.at;
      advance();
      const std::size_t b_at = token_.at;
      int b = binary(Expression::precedence(op) + 1);
      if (op == Op::logical_and || op == Op::logical_or) {
        a = add(op, Type::condition, {as_condition(a, a_at), as_condition(b, b_at)});
        continue;
      }
      const Type operands = unify(a, a_at, b, b_at);
      if (op == Op::remainder && operands == Type::real) fail(op_at, "% takes whole numbers");
      a = add(op, op >= Op::less ? Type::condition : operands, {a, b});
    }
  }

  int unary() {
    const std::size_t at = token_.at;
    if (is("-") || is("+") || is("!")) {
      const Nesting nesting(*this);
      const char sign = token_.text[0];
      advance();
      const std::size_t operand_at = token_.at;
      const int operand = unary();
      if (sign == '!')
        return add(Op::logical_not, Type::condition, {as_condition(operand, operand_at)});
      as_number(operand, operand_at);
      return sign == '+' ? operand : add(Op::negate, type(operand), {operand});
    }
    if (token_.kind == Kind::integer || token_.kind == Kind::real) return number();
    if (token_.kind == Kind::name) return name();
    if (accept("(")) {
      const int inner = condition();
      expect(")");
      return inner;
    }
    fail(at, fmt::format("expected a number, a name or '(', found {}", found()));
  }

  int number() {
    const bool integer = token_.kind == Kind::integer;
    std::string_view digits = token_.text;
    if (!integer && (digits.back() == 'f' || digits.back() == 'F')) digits.remove_suffix(1);
    float real = 0;
    std::int32_t whole = 0;
    const char* const end = digits.data() + digits.size();
    const auto [stop, error] = integer ? std::from_chars(digits.data(), end, whole)
                                       : std::from_chars(digits.data(), end, real);
    if (stop != end) fail_here(fmt::format("{} is no number", quote(token_.text)));
    if (error != std::errc()) {
      fail_here(fmt::format("{} is out of range for {}", quote(token_.text),
                            integer ? "int32" : "float32"));
    }
    advance();
    return integer ? add(Op::integer, Type::integer, {}, 0, whole)
                   : add(Op::real, Type::real, {}, 0, static_cast<double>(real));
  }

  int name() {
    const Token name = token_;
    advance();
    const int variable = find(kVariables, name.text);
    if (variable >= 0) {
      if (is("[") || is("(")) fail_here(fmt::format("{} is a number, not a tensor", name.text));
      if (variable == kScore && use_ == ExpressionUse::mask) {
        fail(name.at, "a mask does not know the score s");
      }
      return add(Op::variable, variable == kScore ? Type::real : Type::integer, {}, variable);
    }
    if (is("(")) return call(name);
    if (!is("[")) {
      fail(name.at,
           fmt::format("unknown name {}: b, h, g, q, k, p, Sq, Sk{} and tensors, as in {}[k], are "
                       "known",
                       quote(name.text), use_ == ExpressionUse::score ? ", s" : "",
                       name.text.size() <= 16 ? name.text : "t"));
    }
    return element(name);
  }

  int call(const Token& name) {
    const int index = find_function(name.text);
    if (index < 0) {
      std::string known;
      for (const Function& function : kFunctions) {
        known += (known.empty() ? "" : ", ") + std::string(function.name);
      }
      fail(name.at, fmt::format("unknown function {}: there are {}", quote(name.text), known));
    }
    const Function& function = kFunctions[index];
    expect("(");
    int operands[2] = {};
    std::size_t at[2] = {};
    for (int i = 0; i < function.num_operands; ++i) {
      if (i > 0 && !accept(",")) {
        fail_here(fmt::format("{} takes {} numbers: expected ',', found {}", function.name,
                              function.num_operands, found()));
      }
      at[i] = token_.at;
      operands[i] = condition();
      as_number(operands[i], at[i]);
    }
    if (is(",")) {
      fail_here(fmt::format("{} takes {}, this is one more", function.name,
                            function.num_operands == 1 ? "one number" : "two numbers"));
    }
    expect(")");
    if (index == kToReal && type(operands[0]) == Type::integer) {
      return add(Op::to_real, Type::real, {operands[0]}, Expression::kWritten);
    }
    if (index == kToReal) return operands[0];
    if (index == kToInteger && type(operands[0]) == Type::integer) return operands[0];
    if (function.of_reals) {
      const Type result = index == kToInteger ? Type::integer : Type::real;
      return add(Op::call, result, {as_real(operands[0], at[0])}, index);
    }
    if (function.num_operands == 1) return add(Op::call, type(operands[0]), {operands[0]}, index);
    const Type result = unify(operands[0], at[0], operands[1], at[1]);
    return add(Op::call, result, {operands[0], operands[1]}, index);
  }

  int element(const Token& name) {
    const std::string problem = input_name_problem(name.text);
    if (!problem.empty()) fail(name.at, problem);
    int indices[Expression::kMaxRank] = {};
    int rank = 0;
    while (is("[")) {
      if (rank == Expression::kMaxRank) {
        fail_here(
            fmt::format("{} has more than {} indices", quote(name.text), Expression::kMaxRank));
      }
      advance();
      const std::size_t at = token_.at;
      indices[rank] = condition();
      if (type(indices[rank]) != Type::integer) {
        fail(at, "an index is a whole number: write int(...)");
      }
      ++rank;
      expect("]");
    }
    std::array<std::uint8_t, Expression::kMaxRank> indexed_by{};
    for (int i = 0; i < rank; ++i) {
      const Node& node = result_.nodes_[static_cast<std::size_t>(indices[i])];
      if (node.op != Op::variable || node.index > kKey) continue;
      indexed_by[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(1 << node.index);
    }
    auto& tensors = result_.tensors_;
    const auto known = std::find_if(tensors.begin(), tensors.end(),
                                    [&](const auto& tensor) { return tensor.name == name.text; });
    const int index = static_cast<int>(known - tensors.begin());
    if (known == tensors.end()) {
      if (tensors.size() == kMaxInputs) {
        fail(name.at, fmt::format("{} is one more than the {} run-time inputs a pattern can have",
                                  quote(name.text), kMaxInputs));
      }
      tensors.push_back({std::string(name.text), rank, indexed_by});
    } else if (known->rank != rank) {
      fail(name.at, fmt::format("{} has {} indices here and {} before", quote(name.text), rank,
                                known->rank));
    } else {
      for (std::size_t i = 0; i < indexed_by.size(); ++i) known->indexed_by[i] |= indexed_by[i];
    }
    const int node =
        add(Op::element, use_ == ExpressionUse::mask ? Type::integer : Type::real, {}, index);
    Node& last = result_.nodes_.back();
    last.num_operands = rank;
    std::copy(std::begin(indices), std::end(indices), last.operands.begin());
    return node;
  }

  std::string_view text_;
  ExpressionUse use_;
  std::size_t position_ = 0;
  Token token_;
  int nesting_ = 0;
  Expression result_;
};

Expression Expression::parse(std::string_view text, ExpressionUse use) {
  return ExpressionParser(text, use).whole();
}

// --- Printing -----------------------------------------------------------------------------------

int Expression::precedence(Op op) {
  switch (op) {
    case Op::choose:
      return 0;
    case Op::logical_or:
      return 1;
    case Op::logical_and:
      return 2;
    case Op::equal:
    case Op::not_equal:
      return 3;
    case Op::less:
    case Op::less_equal:
    case Op::greater:
    case Op::greater_equal:
      return 4;
    case Op::add:
    case Op::subtract:
      return 5;
    case Op::multiply:
    case Op::divide:
    case Op::remainder:
      return 6;
    case Op::negate:
    case Op::logical_not:
      return 7;
    default:
      return 8;
  }
}

const char* Expression::symbol(Op op) {
  static constexpr const char* kSymbols[] = {
      "*", "/", "%", "+", "-", "<", "<=", ">", ">=", "==", "!=", "&&", "||"};
  return kSymbols[static_cast<int>(op) - static_cast<int>(Op::multiply)];
}

void Expression::print(std::string& out, int index) const {
  const Node& node = nodes_[static_cast<std::size_t>(index)];
  const auto operand = [&](int i, int least) {
    const Node* inner = &nodes_[static_cast<std::size_t>(node.operands[i])];
    while (inner->op == Op::to_real && inner->index != kWritten) {
      inner = &nodes_[static_cast<std::size_t>(inner->operands[0])];
    }
    const bool parentheses = precedence(inner->op) < least;
    if (parentheses) out += '(';
    print(out, node.operands[i]);
    if (parentheses) out += ')';
  };
  switch (node.op) {
    case Op::integer:
      out += fmt::format("{}", static_cast<std::int32_t>(node.value));
      break;
    case Op::real:
      out += real_text(node.value);
      break;
    case Op::variable:
      out += kVariables[node.index];
      break;
    case Op::element:
      out += tensors_[static_cast<std::size_t>(node.index)].name;
      for (int i = 0; i < node.num_operands; ++i) {
        out += '[';
        operand(i, 0);
        out += ']';
      }
      break;
    case Op::call:
      out += kFunctions[node.index].name;
      out += '(';
      for (int i = 0; i < node.num_operands; ++i) {
        if (i > 0) out += ", ";
        operand(i, 0);
      }
      out += ')';
      break;
    case Op::to_real:
      out += node.index == kWritten ? "float(" : "";
      print(out, node.operands[0]);
      out += node.index == kWritten ? ")" : "";
      break;
    case Op::negate:
    case Op::logical_not:
      out += node.op == Op::negate ? '-' : '!';
      operand(0, precedence(node.op) + (node.op == Op::negate ? 1 : 0));
      break;
    case Op::choose:
      operand(0, 1);
      out += " ? ";
      operand(1, 1);
      out += " : ";
      operand(2, 0);
      break;
    default:
      operand(0, precedence(node.op));
      out += fmt::format(" {} ", symbol(node.op));
      operand(1, precedence(node.op) + 1);
      break;
  }
}

std::string Expression::text() const {
  std::string out;
  print(out, root_);
  return out;
}

void Expression::print_code(std::string& out, int index, bool in_brackets) const {
  const Node& node = nodes_[static_cast<std::size_t>(index)];
  const auto operands = [&] {
    out += '(';
    for (int i = 0; i < node.num_operands; ++i) {
      if (i > 0) out += ", ";
      print_code(out, node.operands[i], in_brackets);
    }
    out += ')';
  };
  static constexpr const char* kNames[] = {"multiply", "divide", "remainder", "add", "subtract"};
  switch (node.op) {
    case Op::integer:
      out += fmt::format("{}", static_cast<std::int32_t>(node.value));
      break;
    case Op::real:
      out += real_text(node.value) + 'f';
      break;
    case Op::variable:
      out += node.index == kScore ? "score"
             : in_brackets && (node.index == kHead || node.index == kHeadKv)
                 ? fmt::format("at.local_{}", kVariables[node.index])
                 : fmt::format("at.{}", kVariables[node.index]);
      break;
    case Op::element: {
      unsigned inside = 0;  // dimensions that a launch has checked to have all of the index
      for (int i = 0; i < node.num_operands; ++i) {
        const Node& own = nodes_[static_cast<std::size_t>(node.operands[i])];
        if (own.op == Op::variable && own.index <= kHeadKv) inside |= 1u << i;
      }
      out += fmt::format("element<{}{}>({}", node.num_operands,
                         inside == 0 ? "" : fmt::format(", {:#x}", inside), node.index);
      for (int i = 0; i < node.num_operands; ++i) {
        out += ", ";
        print_code(out, node.operands[i], true);
      }
      out += ')';
      break;
    }
    case Op::call:
      out += node.index == kToInteger ? "to_integer"
                                      : fmt::format("arithmetic_{}", kFunctions[node.index].name);
      operands();
      break;
    case Op::to_real:
      out += "static_cast<float>";
      operands();
      break;
    case Op::negate:
      out += "negate";
      operands();
      break;
    case Op::logical_not:
      out += '!';
      operands();
      break;
    case Op::choose:
      out += '(';
      print_code(out, node.operands[0], in_brackets);
      out += " ? ";
      print_code(out, node.operands[1], in_brackets);
      out += " : ";
      print_code(out, node.operands[2], in_brackets);
      out += ')';
      break;
    case Op::multiply:
    case Op::divide:
    case Op::remainder:
    case Op::add:
    case Op::subtract:
      out += kNames[static_cast<int>(node.op) - static_cast<int>(Op::multiply)];
      operands();
      break;
    default:
      out += '(';
      print_code(out, node.operands[0], in_brackets);
      out += fmt::format(" {} ", symbol(node.op));
      print_code(out, node.operands[1], in_brackets);
      out += ')';
      break;
  }
}

std::string Expression::code() const {
  std::string out;
  print_code(out, root_, false);
  return out;
}

// --- Evaluation ---------------------------------------------------------------------------------

double Expression::evaluate(const ExpressionPoint& point,
                            const std::function<double(int, std::span<const int>)>& element) const {
  return evaluate(root_, point, false, element);
}

bool Expression::mentions(std::string_view variable) const {
  const int index = find(kVariables, variable);
  return std::any_of(nodes_.begin(), nodes_.end(), [&](const Node& node) {
    return node.op == Op::variable && node.index == index;
  });
}

// Two roundings of sums, products, quotients and roots, to float64 and then float32, give what one
// to float32 gives.
double Expression::evaluate(int index, const ExpressionPoint& at, bool in_brackets,
                            const std::function<double(int, std::span<const int>)>& element) const {
  const double value = evaluate_exactly(index, at, in_brackets, element);
  const bool real = nodes_[static_cast<std::size_t>(index)].type == Type::real;
  return real && use_ == ExpressionUse::mask ? static_cast<double>(static_cast<float>(value))
                                             : value;
}

double Expression::evaluate_exactly(
    int index, const ExpressionPoint& at, bool in_brackets,
    const std::function<double(int, std::span<const int>)>& element) const {
  const Node& node = nodes_[static_cast<std::size_t>(index)];
  const auto operand = [&](int i) {
    return evaluate(node.operands[i], at, in_brackets || node.op == Op::element, element);
  };
  if (node.op == Op::choose) return operand(operand(0) != 0 ? 1 : 2);
  if (node.op == Op::logical_and) return operand(0) != 0 && operand(1) != 0;
  if (node.op == Op::logical_or) return operand(0) != 0 || operand(1) != 0;
  if (node.op == Op::element) {
    int indices[kMaxRank] = {};
    for (int i = 0; i < node.num_operands; ++i) indices[i] = static_cast<int>(operand(i));
    return element(node.index, {indices, static_cast<std::size_t>(node.num_operands)});
  }
  const double a = node.num_operands > 0 ? operand(0) : 0;
  const double b = node.num_operands > 1 ? operand(1) : 0;
  const bool integers = node.type == Type::integer;
  const auto i =
      static_cast<std::int64_t>(integers && node.num_operands > 0 && node.op != Op::call ? a : 0);
  const auto j = static_cast<std::int64_t>(integers && node.num_operands > 1 ? b : 0);
  switch (node.op) {
    case Op::integer:
    case Op::real:
      return node.value;
    case Op::variable: {
      const double variables[] = {static_cast<double>(at.b),
                                  static_cast<double>(in_brackets ? at.local_h : at.h),
                                  static_cast<double>(in_brackets ? at.local_g : at.g),
                                  static_cast<double>(at.q),
                                  static_cast<double>(at.k),
                                  static_cast<double>(at.p),
                                  static_cast<double>(at.Sq),
                                  static_cast<double>(at.Sk),
                                  at.s};
      return variables[node.index];
    }
    case Op::to_real:
      return a;
    case Op::negate:
      return integers ? wrapped(-i) : -a;
    case Op::logical_not:
      return a == 0;
    case Op::multiply:
      return integers ? wrapped(i * j) : a * b;
    case Op::divide:
      return !integers ? a / b : j == 0 ? 0 : wrapped(i / j);
    case Op::remainder:
      return j == 0 ? 0 : wrapped(i % j);
    case Op::add:
      return integers ? wrapped(i + j) : a + b;
    case Op::subtract:
      return integers ? wrapped(i - j) : a - b;
    case Op::less:
      return a < b;
    case Op::less_equal:
      return a <= b;
    case Op::greater:
      return a > b;
    case Op::greater_equal:
      return a >= b;
    case Op::equal:
      return a == b;
    case Op::not_equal:
      return a != b;
    default:
      break;
  }
  switch (node.index) {  // of kFunctions
    case 0:
      return std::min(a, b);
    case 1:
      return std::max(a, b);
    case 2:
      return integers ? wrapped(std::llabs(static_cast<std::int64_t>(a))) : std::fabs(a);
    case 3:
      return std::exp(a);
    case 4:
      return std::exp2(a);
    case 5:
      return std::log(a);
    case 6:
      return std::log2(a);
    case 7:
      return std::sqrt(a);
    case 8:
      return std::tanh(a);
    default:
      return to_integer(a);
  }
}

}  // namespace girih::pattern
