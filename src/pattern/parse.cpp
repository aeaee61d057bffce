// Pattern text to patterns, by recursive descent. Every refusal shows the line with a caret under
// the character. The grammar:
//
//   pattern = ("heads" | "kv_heads") "(" set ":" masked { "," set ":" masked } ")" | masked
//   set     = range { "+" range } | "else"        range = int [ "-" int ]
//   masked  = or [ "with" modifier { "," modifier } ]
//   modifier = "softcap" "(" float ")" | ( "alibi" | "bias" | "sink_logit" ) "(" name ")"
//            | "score" "(" string ")"
//            | "prune" "(" name "," "kv" "=" int [ "," "keep_sink" "=" ( "true" | "false" ) ] ")"
//   or      = and { "|" and }      and = not { "&" not }      not = { "!" } primary
//   primary = "(" or ")" | name [ "(" [ arg { "," arg } ] ")" ] | "expr" "(" string ")"
//   arg     = [ name "=" ] value   its form is the parameter's: see ParamKind in shared/atom.cuh;
//             "$" name is an integer that a run-time input holds
//
// Whitespace is free; "#" starts a comment that ends with the line.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "pattern/atoms.hpp"
#include "pattern/expression.hpp"

namespace girih {
namespace {

using pattern::quote;

bool is_space(char c) { return c == ' ' || ('\t' <= c && c <= '\r'); }
bool is_digit(char c) { return '0' <= c && c <= '9'; }
bool is_letter(char c) { return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || c == '_'; }

// `message`, then the line that holds text[at] with a caret under it.
[[noreturn]] void fail(std::string_view text, std::size_t at, const std::string& message) {
  const std::size_t previous = text.substr(0, at).rfind('\n');
  const std::size_t line_begin = previous == std::string_view::npos ? 0 : previous + 1;
  const std::size_t line_end = std::min(text.find('\n', at), text.size());
  constexpr std::size_t kReach = 60;  // of a long line, so much is shown on either side
  const std::size_t shown_begin = at - std::min(at - line_begin, kReach);
  const std::size_t shown_end = std::min(line_end, at + kReach);

  std::string excerpt = shown_begin > line_begin ? "..." : "";
  std::size_t caret = 0;
  for (std::size_t i = shown_begin; i <= shown_end; ++i) {
    if (i == at) caret = excerpt.size();
    if (i == shown_end) break;
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte & 0xc0) == 0x80 && i != at && i != shown_begin) continue;  // inside a UTF-8 character
    excerpt += is_space(text[i]) ? ' ' : byte < ' ' || byte > '~' ? '?' : text[i];
  }
  if (shown_end < line_end) excerpt += "...";

  const bool single_line = text.find('\n') == std::string_view::npos;
  const auto line = 1 + std::count(text.begin(), text.begin() + line_begin, '\n');
  throw Error(Errc::invalid_argument,
              fmt::format("{}{}\n  {}\n  {:>{}}",
                          single_line ? "" : fmt::format("{}:{}: ", line, at - line_begin + 1),
                          message, excerpt, '^', caret + 1));
}

struct Token {
  enum class Kind { end, name, number, symbol };
  Kind kind = Kind::end;
  std::string_view text;
  std::size_t at = 0;

  bool is(char c) const { return kind == Kind::symbol && text.size() == 1 && text[0] == c; }
  bool is_dots() const { return kind == Kind::symbol && text == ".."; }
  bool is(std::string_view word) const { return kind == Kind::name && text == word; }
};

using Numbers = std::vector<Number>;  // of one argument

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {
    if (text.size() > pattern::kMaxTextBytes) {
      throw Error(Errc::invalid_argument, fmt::format("the text has {} bytes; at most {} are read",
                                                      text.size(), pattern::kMaxTextBytes));
    }
    advance();
  }

  Pattern whole_pattern() {
    inputs_.emplace();
    if (!token_.is("heads") && !token_.is("kv_heads")) {
      const Pattern result = masked();
      expect_whole_mask();
      return result;
    }
    const bool kv = token_.text == "kv_heads";
    advance();
    std::vector<Pattern::HeadClass> classes = head_classes();
    if (token_.kind != Token::Kind::end) {
      fail_here(
          fmt::format("heads(...) is the whole pattern: expected the end, found {}", found()));
    }
    return kv ? kv_heads(std::move(classes)) : heads(std::move(classes));
  }

  Mask whole_mask() {
    Mask result = any_of();
    if (token_.is("with")) fail_here("a mask alone has no modifiers: they belong to a pattern");
    expect_whole_mask();
    return result;
  }

  HeadSet whole_set() {
    HeadSet result = head_set();
    if (token_.kind != Token::Kind::end) {
      fail_here(fmt::format("expected '+' or the end of the set, found {}", found()));
    }
    return result;
  }

 private:
  // --- Tokens ---

  void advance() {
    const std::size_t behind = position_;
    while (position_ < text_.size() && (is_space(text_[position_]) || text_[position_] == '#')) {
      if (text_[position_] == '#') {
        position_ = std::min(text_.find('\n', position_), text_.size());
      } else {
        ++position_;
      }
    }
    const std::size_t begin = position_;
    if (begin == text_.size()) {
      token_ = {Token::Kind::end, {}, behind};
      return;
    }
    const char c = text_[begin];
    Token::Kind kind = Token::Kind::symbol;
    ++position_;
    if (is_letter(c)) {
      kind = Token::Kind::name;
      skip_while([](char d) { return is_letter(d) || is_digit(d); });
    } else if (is_digit(c)) {  // 1.5, 2e-3 and 4x4 become one token, accepted or refused as one
      kind = Token::Kind::number;
      while (position_ < text_.size() && continues_number()) ++position_;
    } else if (text_.substr(begin, 2) == "..") {
      ++position_;
    } else if (std::string_view("&|!(),:+-=$\"[].*/").find(c) == std::string_view::npos) {
      fail(text_, begin,
           fmt::format("unexpected character (byte 0x{:02x})", static_cast<unsigned char>(c)));
    }
    token_ = {kind, text_.substr(begin, position_ - begin), begin};
  }

  template <class Predicate>
  void skip_while(Predicate predicate) {
    while (position_ < text_.size() && predicate(text_[position_])) ++position_;
  }

  bool continues_number() const {
    const std::string_view rest = text_.substr(position_);
    const char c = rest.front();
    const char previous = text_[position_ - 1];
    const bool sign = c == '+' || c == '-';
    return is_letter(c) || is_digit(c) || (c == '.' && rest.substr(0, 2) != "..") ||
           (sign && (previous == 'e' || previous == 'E') && rest.size() > 1 && is_digit(rest[1]));
  }

  bool accept(char c) {
    if (!token_.is(c)) return false;
    advance();
    return true;
  }

  std::string found() const {
    return token_.kind == Token::Kind::end ? "the end of the text" : quote(token_.text);
  }

  [[noreturn]] void fail_here(const std::string& message) const { fail(text_, token_.at, message); }

  // --- Masks ---

  Mask any_of() {
    Mask result = all_of();
    while (accept('|')) result = std::move(result) | all_of();
    return result;
  }

  Mask all_of() {
    Mask result = negation();
    while (accept('&')) result = std::move(result) & negation();
    return result;
  }

  Mask negation() {
    if (!token_.is('!')) return primary();
    enter();
    advance();
    Mask result = !negation();
    --nesting_;
    return result;
  }

  Mask primary() {
    if (token_.is('(')) {
      enter();
      advance();
      Mask result = any_of();
      expect_end_of_mask(token_.is(')'), " or ')'");
      advance();
      --nesting_;
      return result;
    }
    if (token_.is("heads") || token_.is("kv_heads")) {
      fail_here(fmt::format("{}(...) must be the whole pattern: it cannot be part of a mask",
                            token_.text));
    }
    if (token_.kind != Token::Kind::name) {
      const bool doubled = token_.at > 0 && (token_.is('&') || token_.is('|')) &&
                           text_[token_.at - 1] == token_.text.front();
      fail_here(fmt::format("expected an atom, '!' or '(', found {}{}", found(),
                            doubled ? "; the operators are single: & and |" : ""));
    }
    return atom();
  }

  void enter() {
    if (++nesting_ > pattern::kMaxNesting) {
      fail_here(
          fmt::format("nested deeper than {} levels of parentheses and '!'", pattern::kMaxNesting));
    }
  }

  void expect_whole_mask() const {
    if (token_.is(')')) fail_here("this ')' closes nothing");
    expect_end_of_mask(token_.kind == Token::Kind::end, " or the end");
  }

  void expect_end_of_mask(bool ended, std::string_view closing) const {
    if (ended) return;
    if (token_.is("with")) fail_here("modifiers ('with ...') stand behind the whole mask only");
    fail_here(fmt::format("expected '&', '|'{}, found {}", closing, found()));
  }

  // A mask for all heads, with its modifiers.
  Pattern masked() {
    const Pattern result = any_of();
    if (!token_.is("with")) return result;
    Modifiers modifiers;
    do {
      advance();
      modifier(modifiers);
    } while (token_.is(',') && modifier_follows());
    return result.with(modifiers);
  }

  void modifier(Modifiers& modifiers) {
    const Token name = token_;
    std::string* const input = name.is("alibi")        ? &modifiers.alibi
                               : name.is("bias")       ? &modifiers.bias
                               : name.is("sink_logit") ? &modifiers.sink_logit
                                                       : nullptr;
    if (input == nullptr && !name.is("softcap") && !name.is("prune") && !name.is("score")) {
      fail_here(
          fmt::format("expected a modifier, found {}: they are softcap, prune, alibi, bias, score "
                      "and sink_logit",
                      found()));
    }
    const bool given = input != nullptr     ? !input->empty()
                       : name.is("softcap") ? modifiers.softcap > 0
                       : name.is("score")   ? !modifiers.score.empty()
                                            : !modifiers.prune.thresholds.empty();
    if (given) fail_here(fmt::format("{} is given twice", name.text));
    advance();
    if (name.is("score")) {
      const String string = string_argument(name.text);
      modifiers.score = expression(string, pattern::ExpressionUse::score).text();
      if (!accept(')')) fail_here(fmt::format("expected ')', found {}", found()));
      return add_inputs_of(modifiers, name.at);
    }
    if (!accept('(')) {
      fail_here(fmt::format("expected '(' after {}, found {}", name.text, found()));
    }
    if (name.is("softcap")) {
      modifiers.softcap = softcap();
    } else if (name.is("prune")) {
      modifiers.prune = prune();
    } else {
      if (token_.kind != Token::Kind::name) {
        fail_here(fmt::format("{} takes the name of a run-time input such as m, found {}",
                              name.text, found()));
      }
      const Token at = token_;
      const std::string problem = pattern::input_name_problem(at.text);
      if (!problem.empty()) fail_here(problem);
      *input = at.text;
      if (inputs_) {
        const std::string conflict = pattern::add_inputs(modifiers, *inputs_);
        if (!conflict.empty()) fail_here(conflict);
      }
      advance();
    }
    if (!accept(')')) fail_here(fmt::format("expected ')', found {}", found()));
  }

  // Behind a comma: in heads(...), a set of heads may stand there as well.
  bool modifier_follows() const {
    Parser ahead = *this;
    ahead.advance();
    return ahead.token_.kind == Token::Kind::name && !ahead.token_.is("else");
  }

  // prune's arguments: the input's name, then the others in any order.
  Prune prune() {
    const Token input = token_;
    const std::string problem = token_.kind != Token::Kind::name
                                    ? "prune takes the name of its thresholds, found " + found()
                                    : pattern::input_name_problem(token_.text);
    if (!problem.empty()) fail_here(problem);
    Prune result{.thresholds = std::string(token_.text)};
    advance();
    std::vector<std::string_view> given;
    while (accept(',')) {
      const Token name = token_;
      if (!name.is("kv") && !name.is("keep_sink")) {
        fail_here(fmt::format("prune takes a name, kv and keep_sink, found {}", found()));
      }
      if (std::find(given.begin(), given.end(), name.text) != given.end()) {
        fail_here(fmt::format("{} is given twice", name.text));
      }
      given.push_back(name.text);
      advance();
      if (!accept('='))
        fail_here(fmt::format("expected '=' after {}, found {}", name.text, found()));
      if (name.is("kv")) {
        const std::optional<long long> value = whole_number();
        if (value != 64 && value != 128) {
          fail_here(fmt::format("prune: kv is 64 or 128, found {}", found()));
        }
        result.kv = static_cast<int>(*value);
      } else {
        if (!token_.is("true") && !token_.is("false")) {
          fail_here(fmt::format("prune: keep_sink takes true or false, found {}", found()));
        }
        result.keep_sink = token_.is("true");
      }
      advance();
    }
    if (result.kv == 0) {
      fail_here("prune needs the keys of its tiles: kv=64 or kv=128, as the thresholds have");
    }
    if (inputs_) {
      const std::string conflict = pattern::add_inputs(Modifiers{.prune = result}, *inputs_);
      if (!conflict.empty()) fail(text_, input.at, conflict);
    }
    return result;
  }

  float softcap() {
    const std::size_t at = token_.at;
    const std::string sign = accept('-') ? "-" : "";
    float value = 0;
    const char* end = token_.text.data() + token_.text.size();
    const auto [stop, error] = std::from_chars(token_.text.data(), end, value);
    if (token_.kind != Token::Kind::number || stop != end) {
      fail_here(fmt::format("softcap takes a number, found {}", found()));
    }
    if (!sign.empty() || error != std::errc() || !(value > 0)) {
      fail(text_, at, pattern::softcap_out_of_range(sign + digits()));
    }
    advance();
    return value;
  }

  // --- Atoms ---

  struct String {
    std::string_view text;
    std::size_t at = 0;  // of its first character
  };

  // '("..."' of what takes a string; it ends at the next '"', for no expression has one.
  String string_argument(std::string_view name) {
    if (!accept('(')) fail_here(fmt::format("expected '(' after {}, found {}", name, found()));
    if (!token_.is('"')) {
      fail_here(fmt::format("{0} takes an expression in quotes, such as {0}(\"{1}\"), found {2}",
                            name, name == "expr" ? "k <= p" : "s * 2.0", found()));
    }
    const std::size_t end = text_.find('"', position_);
    if (end == text_.npos) fail_here("this '\"' is not closed");
    const String result{text_.substr(position_, end - position_), position_};
    position_ = end + 1;
    advance();
    return result;
  }

  pattern::Expression expression(const String& string, pattern::ExpressionUse use) const {
    try {
      return pattern::Expression::parse(string.text, use);
    } catch (const pattern::ExpressionProblem& problem) {
      fail(text_, string.at + problem.at, problem.message);
    }
  }

  Mask expression_mask(const Token& name) {
    const String string = string_argument(name.text);
    expression(string, pattern::ExpressionUse::mask);  // refused here, where the whole text is
    Mask result = expr(string.text);
    if (!accept(')')) fail_here(fmt::format("expected ')', found {}", found()));
    add_inputs_of(result, name.at);
    return result;
  }

  // Refuses a mask or modifiers whose inputs do not go with those before.
  template <class Part>
  void add_inputs_of(const Part& part, std::size_t at) {
    if (!inputs_) return;
    const std::string problem = pattern::add_inputs(part, *inputs_);
    if (!problem.empty()) fail(text_, at, problem);
  }

  Mask atom() {
    const Token name = token_;
    if (name.is("expr")) {
      count_atom();
      advance();
      return expression_mask(name);
    }
    const int index = pattern::find_atom(name.text);
    if (index < 0) fail_here(pattern::unknown_atom(name.text));
    count_atom();
    const AtomInfo& info = pattern::atom_table()[index];
    advance();

    std::vector<Numbers> given(info.num_params());
    if (token_.is('(')) arguments(info, given);
    Numbers numbers;
    for (int i = 0; i < info.num_params(); ++i) {
      const AtomParam& param = info.params[i];
      if (given[i].empty()) {
        if (param.fallback == kRequired) fail(text_, name.at, pattern::missing(info, param));
        given[i].assign(param.num_numbers(), param.fallback);
      } else if (param.kind == ParamKind::axes || param.kind == ParamKind::flags) {
        const int num_axes = pattern::num_axes(info, values(given[0]).data());
        const std::string problem = pattern::spread_over_axes(info, param, num_axes, given[i]);
        if (!problem.empty()) fail(text_, name.at, problem);
      }
      numbers.insert(numbers.end(), given[i].begin(), given[i].end());
    }
    const std::string conflict = pattern::conflict(index, values(numbers).data());
    if (!conflict.empty()) fail(text_, name.at, conflict);
    Mask result = Mask::atom(info.name, std::move(numbers));
    add_inputs_of(result, name.at);
    return result;
  }

  void count_atom() {
    if (++num_atoms_ > pattern::kMaxAtoms) {
      fail_here(fmt::format("the mask has more than {} atoms", pattern::kMaxAtoms));
    }
  }

  void arguments(const AtomInfo& info, std::vector<Numbers>& given) {
    advance();
    if (accept(')')) return;
    bool named = false;
    const int num_params = info.num_params();
    for (int next = 0;; ++next) {
      int index = next;
      if (token_.kind == Token::Kind::name && equals_sign_follows()) {
        named = true;
        index = parameter(info);
        if (!given[index].empty()) {
          fail_here(fmt::format("{} is given twice", info.params[index].name));
        }
        advance();
        advance();
      } else if (named) {
        fail_here(fmt::format("expected NAME=VALUE, found {}: values without a name come first",
                              found()));
      } else if (index >= num_params) {
        fail_here(num_params == 0 ? fmt::format("{} takes no arguments", info.name)
                                  : fmt::format("{} takes {} ({}), this is one more", info.name,
                                                num_params, parameter_names(info)));
      }
      const std::size_t at = token_.at;
      given[index] = argument(info, info.params[index]);
      const ParamKind kind = info.params[index].kind;
      const bool per_axis = kind == ParamKind::axes || kind == ParamKind::flags;
      if (!per_axis && given[index].front().input.empty()) {
        const std::string problem =
            pattern::argument_problem(info, info.params[index], values(given[index]).data());
        if (!problem.empty()) fail(text_, at, problem);
      }
      if (accept(')')) return;
      if (!accept(',')) fail_here(fmt::format("expected ',' or ')', found {}", found()));
    }
  }

  bool equals_sign_follows() const {
    Parser ahead = *this;
    ahead.advance();
    return ahead.token_.is('=');
  }

  int parameter(const AtomInfo& info) const {
    const int num_params = info.num_params();
    for (int i = 0; i < num_params; ++i) {
      if (token_.text == info.params[i].name) return i;
    }
    fail_here(num_params == 0 ? fmt::format("{} takes no arguments", info.name)
                              : fmt::format("{} has no argument {}: it takes {}", info.name,
                                            quote(token_.text), parameter_names(info)));
  }

  static std::string parameter_names(const AtomInfo& info) {
    std::string names;
    for (int i = 0; i < info.num_params(); ++i) {
      names += (i == 0 ? "" : ", ") + std::string(info.params[i].name);
    }
    return names;
  }

  static std::vector<int> values(const Numbers& numbers) {
    std::vector<int> result;
    for (const Number& number : numbers) result.push_back(number.value);
    return result;
  }

  // What stands at the current token is none of a parameter's values.
  [[noreturn]] void fail_argument(const AtomInfo& info, const AtomParam& param) const {
    fail_here(fmt::format("{}: {} takes {}, found {}", info.name, param.name,
                          pattern::expected_form(param), found()));
  }

  // The name of a run-time input.
  Number input_name(const AtomInfo& info, const AtomParam& param) {
    if (token_.kind != Token::Kind::name) fail_argument(info, param);
    const std::string problem = pattern::input_name_problem(token_.text);
    if (!problem.empty()) fail_here(problem);
    Number result = input(std::string(token_.text));
    advance();
    return result;
  }

  // An argument's numbers, in bounds; argument_problem judges them together.
  Numbers argument(const AtomInfo& info, const AtomParam& param) {
    if (token_.is('$')) {
      const std::string problem = pattern::input_problem(info, param);
      if (!problem.empty()) fail_here(problem);
      advance();
      if (token_.kind != Token::Kind::name) {
        fail_here(
            fmt::format("expected the name of a run-time input after '$', found {}", found()));
      }
      return {input_name(info, param)};
    }
    switch (param.kind) {
      case ParamKind::integer:
        return {integer(info, param, 0)};
      case ParamKind::boolean:
      case ParamKind::choice:
        return {word(info, param)};
      case ParamKind::range: {
        const int first = integer(info, param, 0);
        if (!token_.is_dots()) fail_argument(info, param);
        advance();
        return {first, integer(info, param, 1)};
      }
      case ParamKind::pair: {
        if (token_.is('(')) return pair(info, param);
        const int both = integer(info, param, 0);
        return {both, both};
      }
      case ParamKind::input:
        return {input_name(info, param)};
      case ParamKind::grid:
        return grid(info, param);
      case ParamKind::axes:
      case ParamKind::flags:
        return per_axis(info, param);
      case ParamKind::pieces:
        break;
    }
    return pieces(info, param);
  }

  int word(const AtomInfo& info, const AtomParam& param) {
    const bool boolean = param.kind != ParamKind::choice;
    const int value = token_.kind != Token::Kind::name ? -1
                      : !boolean                       ? pattern::find_choice(param, token_.text)
                      : token_.text == "true"          ? 1
                      : token_.text == "false"         ? 0
                                                       : -1;
    if (value < 0) fail_argument(info, param);
    advance();
    return value;
  }

  // Number i of an argument.
  int integer(const AtomInfo& info, const AtomParam& param, int i) {
    const std::size_t at = token_.at;
    const bool negative = accept('-');
    const std::optional<long long> magnitude = whole_number();
    if (!magnitude) fail_argument(info, param);
    const long long value = negative ? -*magnitude : *magnitude;
    if (!pattern::bounds(param, i).contains(value)) {
      fail(text_, at, pattern::out_of_range(info, param, i, (negative ? "-" : "") + digits()));
    }
    advance();
    return static_cast<int>(value);
  }

  Numbers pair(const AtomInfo& info, const AtomParam& param) {
    if (!accept('(')) fail_argument(info, param);
    Numbers numbers;
    if (param.kind == ParamKind::pieces && token_.is("inf")) {
      advance();
      numbers.push_back(kMaxNumber);
    } else {
      numbers.push_back(integer(info, param, 0));
    }
    if (!accept(',')) fail_argument(info, param);
    numbers.push_back(integer(info, param, 1));
    if (!accept(')')) fail_argument(info, param);
    return numbers;
  }

  // "30x48x80" is one token.
  Numbers grid(const AtomInfo& info, const AtomParam& param) {
    if (token_.kind != Token::Kind::number) fail_argument(info, param);
    Numbers numbers;
    const Token whole = token_;
    for (std::string_view rest = whole.text;;) {
      const std::size_t end = std::min(rest.find('x'), rest.size());
      token_ = {Token::Kind::number, rest.substr(0, end),
                static_cast<std::size_t>(rest.data() - text_.data())};
      if (end == 0 || !whole_number() || numbers.size() == kMaxAxes) {
        token_ = whole;
        fail_argument(info, param);
      }
      if (!pattern::bounds(param, 0).contains(*whole_number())) {
        fail_here(pattern::out_of_range(info, param, 0, digits()));
      }
      numbers.push_back(static_cast<int>(*whole_number()));
      if (end == rest.size()) break;
      rest.remove_prefix(end + 1);
    }
    advance();
    numbers.insert(numbers.begin(), kMaxAxes - numbers.size(), Number(0));
    return numbers;
  }

  // One number, or a tuple of them.
  Numbers per_axis(const AtomInfo& info, const AtomParam& param) {
    const auto entry = [&] {
      return param.kind == ParamKind::flags ? word(info, param) : integer(info, param, 0);
    };
    if (!accept('(')) return {entry()};
    Numbers numbers;
    do {
      numbers.push_back(entry());
    } while (static_cast<int>(numbers.size()) < kMaxAxes && accept(','));
    if (!accept(')')) fail_argument(info, param);
    return numbers;
  }

  Numbers pieces(const AtomInfo& info, const AtomParam& param) {
    if (!accept('[')) fail_argument(info, param);
    Numbers numbers;
    do {
      if (static_cast<int>(numbers.size()) == 2 * kMaxPieces) {
        fail_here(fmt::format("{}: {} takes at most {} pairs, this is one more", info.name,
                              param.name, kMaxPieces));
      }
      const Numbers next = pair(info, param);
      numbers.insert(numbers.end(), next.begin(), next.end());
    } while (accept(','));
    if (!accept(']')) fail_argument(info, param);
    numbers.resize(2 * kMaxPieces, 0);
    return numbers;
  }

  // The current token's value; whatever does not fit saturates. Empty when it is not a number.
  std::optional<long long> whole_number() const {
    if (token_.kind != Token::Kind::number) return {};
    long long value = 0;
    const char* end = token_.text.data() + token_.text.size();
    const auto [stop, error] = std::from_chars(token_.text.data(), end, value);
    if (stop != end) return {};
    return error == std::errc() ? value : std::numeric_limits<long long>::max();
  }

  std::string digits() const {  // in a message, without quotes
    constexpr std::size_t kLongest = 24;
    return std::string(token_.text.substr(0, kLongest)) +
           (token_.text.size() > kLongest ? "..." : "");
  }

  // --- Heads ---

  std::vector<Pattern::HeadClass> head_classes() {
    if (!accept('(')) fail_here(fmt::format("expected '(' after heads, found {}", found()));
    std::vector<Pattern::HeadClass> classes;
    bool rest = false;
    for (;;) {
      if (rest && token_.is("else")) fail_here("'else' stands twice");
      HeadSet set = head_set();
      rest = rest || set.rest;
      if (!accept(':')) {
        fail_here(fmt::format("expected {}':' after a set of heads, found {}",
                              set.rest ? "" : "'-', '+' or ", found()));
      }
      num_atoms_ = 0;
      const Pattern mask = masked();
      classes.push_back({std::move(set), mask.classes()[0].mask, mask.classes()[0].modifiers});
      if (accept(')')) return classes;
      expect_end_of_mask(token_.is(','), ", ',' or ')'");
      advance();
    }
  }

  HeadSet head_set() {
    HeadSet set;
    if (token_.is("else")) {
      advance();
      set.rest = true;
      return set;
    }
    do {
      const std::size_t at = token_.at;
      const int first = head_number();
      const int last = accept('-') ? head_number() : first;
      if (last < first) {
        fail(text_, at,
             fmt::format("the range {}-{} is empty: write the lower head first", first, last));
      }
      set.ranges.push_back({first, last});
    } while (accept('+'));
    return set;
  }

  int head_number() {
    const std::optional<long long> value = whole_number();
    if (!value) {
      fail_here(fmt::format("expected a head number or 'else', found {}", found()));
    }
    if (*value > kMaxNumber) {
      fail_here(fmt::format("head {} is out of range: 0 to {} are allowed", digits(), kMaxNumber));
    }
    advance();
    return static_cast<int>(*value);
  }

  std::string_view text_;
  std::size_t position_ = 0;  // behind token_
  Token token_;
  int nesting_ = 0;
  int num_atoms_ = 0;
  std::optional<std::vector<InputInfo>> inputs_;  // so far; of patterns, masks may use them anyhow
};

}  // namespace

Mask Mask::parse(std::string_view text) { return Parser(text).whole_mask(); }

pattern::Expression pattern::parse_expression(std::string_view text, ExpressionUse use) {
  try {
    return Expression::parse(text, use);
  } catch (const ExpressionProblem& problem) {
    fail(text, problem.at, problem.message);
  }
}

Mask expr(std::string_view condition) {
  using pattern::Expression;
  auto expression = std::make_shared<const Expression>(
      pattern::parse_expression(condition, pattern::ExpressionUse::mask));
  Mask mask;
  mask.op_ = Mask::Op::expression;
  mask.inputs_.emplace_back();
  for (const Expression::Tensor& tensor : expression->tensors()) {
    mask.inputs_.push_back(tensor.name);
  }
  mask.numbers_.resize(mask.inputs_.size());
  mask.expression_ = std::move(expression);
  return mask;
}

Pattern Pattern::parse(std::string_view text) { return Parser(text).whole_pattern(); }

HeadSet::HeadSet(const char* text) : HeadSet(std::string_view(text)) {}

HeadSet::HeadSet(std::string_view text) : HeadSet(Parser(text).whole_set()) {}

}  // namespace girih
