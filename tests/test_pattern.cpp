// Masks and patterns as values: the operators, their limits, and the heads that a pattern covers.
#include <doctest/doctest.h>

#include <climits>
#include <cmath>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "girih/problem.hpp"
#include "pattern/interpret.hpp"
#include "texts.hpp"

using girih::causal;
using girih::dense;
using girih::Mask;
using girih::Pattern;
using girih::sink;
using girih::window;
using girih::tests::contains;

namespace {

template <class Action>
std::string refusal(Action&& action) {
  try {
    action();
  } catch (const girih::Error& error) {
    CHECK(error.code() == girih::Errc::invalid_argument);
    return error.what();
  }
  FAIL("accepted");
  return {};
}

// 5 for each whole number, and what is left out where it may be anything else.
std::vector<girih::Number> plain_numbers(const girih::AtomInfo& info) {
  if (std::string_view(info.name) == "blocks") return {girih::input("m"), 128, 64};
  if (std::string_view(info.name) == "neighborhood") {
    return {0, 25, 30, 1, 5, 6, 1, 5, 5, 1, 5, 5, 0, 1, 0};
  }
  std::vector<girih::Number> numbers;
  for (int i = 0; i < info.num_params(); ++i) {
    const girih::AtomParam& param = info.params[i];
    if (param.kind == girih::ParamKind::input) {
      numbers.push_back(girih::input("d"));
      continue;
    }
    const bool words = param.kind == girih::ParamKind::boolean ||
                       param.kind == girih::ParamKind::choice ||
                       param.kind == girih::ParamKind::pieces;
    const bool alone = std::string_view(param.name) == "step";  // not beside another's default
    numbers.insert(numbers.end(), param.num_numbers(), words || alone ? param.fallback : 5);
  }
  return numbers;
}

}  // namespace

TEST_CASE("operators flatten, keep the order and remove double negation") {
  const Mask mask = causal() & (sink(128) | window({.left = 255}));
  CHECK(mask.op() == Mask::Op::all_of);
  REQUIRE(mask.operands().size() == 2);
  CHECK(mask.operands()[1].op() == Mask::Op::any_of);
  CHECK(mask.text() == "causal & (sink(128) | window(left=255))");

  CHECK((dense() & (causal() & sink(1))) == ((dense() & causal()) & sink(1)));
  CHECK((dense() | (causal() | sink(1))).operands().size() == 3);
  CHECK((dense() & causal()) != (causal() & dense()));
  CHECK(sink(1) != sink(2));
  CHECK(!!causal() == causal());
  CHECK(!!!(causal() & dense()) == !(causal() & dense()));
  CHECK(((!(causal() | dense())) & !causal()).text() == "!(causal | dense) & !causal");
}

TEST_CASE("operands survive being used twice") {
  Mask mask = causal() & sink(1);
  const Mask both = mask & mask;
  CHECK(both.text() == "causal & sink(1) & causal & sink(1)");
  CHECK(mask.text() == "causal & sink(1)");
  mask = mask | mask;
  CHECK(mask.text() == "causal & sink(1) | causal & sink(1)");
}

TEST_CASE("atoms by name agree with the functions and with the table") {
  CHECK(Mask::atom("causal") == causal());
  CHECK(Mask::atom("window", {255, -1}) == window({.left = 255}));
  CHECK(Mask::atom("sink", {3}).numbers() == std::vector<int>{3});
  for (const girih::AtomInfo& info : girih::pattern::atom_table()) {
    const Mask mask = Mask::atom(info.name, plain_numbers(info));
    CHECK(std::string(girih::pattern::atom_table()[mask.atom_index()].name) == info.name);
    CHECK(Mask::parse(mask.text()) == mask);
  }
}

TEST_CASE("functions and text say the same") {
  const std::vector<std::pair<Mask, const char*>> cases = {
      {girih::last_keys(7), "last_keys(7)"},
      {girih::first_queries(7), "first_queries(7)"},
      {girih::last_queries(0), "last_queries(0)"},
      {girih::queries(-3, 4), "queries(-3..4)"},
      {girih::keys(3, 3), "keys(3..3)"},
      {girih::chunk(8192), "chunk(8192)"},
      {girih::block_window({.right = 0, .block = 64}), "block_window(right=0, block=64)"},
      {girih::block_streaming({.sink = 1, .local = 2}), "block_streaming(sink=1, local=2)"},
      {girih::block_streaming({.sink = 1, .local = 2, .block = 64, .causal = false}),
       "block_streaming(sink=1, local=2, block=64, causal=false)"},
      {girih::strided({.local = 16, .stride = 8, .block = 64}),
       "strided(local=16, stride=8, block=64)"},
      {girih::strided({.local = {{4, 0}}, .stride = 8, .block = 64, .relative = true}),
       "strided(local=(4, 0), stride=8, block=64, relative=true)"},
      {girih::strided({.local = 1,
                       .stride = 8,
                       .block = 64,
                       .offset = 1,
                       .kv_heads = true,
                       .step = -1,
                       .dense_heads = 2}),
       "strided(local=1, stride=8, block=64, offset=1, heads=kv, step=-1, dense_heads=2)"},
      {girih::dilated(3), "dilated(3)"},
      {girih::dilated(girih::input("d")), "dilated($d)"},
      {girih::neighborhood({.grid = {30, 48, 80}, .window = {18, 24, 24}}),
       "neighborhood(30x48x80, window=(18, 24, 24))"},
      {girih::neighborhood({.grid = {256, 256}, .window = 80, .stride = 16}),
       "neighborhood(256x256, window=80, stride=16)"},
      {girih::neighborhood({.grid = {64}, .window = 7, .dilation = 4, .causal = true}),
       "neighborhood(64, window=7, dilation=4, causal=true)"},
      {girih::neighborhood({.grid = {4, 5, 6},
                            .window = {3, 3, 2},
                            .stride = {3, 1, 1},
                            .dilation = {1, 1, 3},
                            .causal = {true, false, false}}),
       "neighborhood(4x5x6, window=(3, 3, 2), stride=(3, 1, 1), dilation=(1, 1, 3), causal=(true, "
       "false, false))"},
      {girih::blocks("m", {.q = 32, .kv = 64}), "blocks(m, q=32, kv=64)"},
      {girih::blocks("m", {}), "blocks(m, q=128, kv=128)"},
      {sink(girih::input("n")), "sink($n)"},
      {window({.left = girih::input("w")}), "window(left=$w)"},
      {window({.left = 3, .right = girih::input("w")}), "window(left=3, right=$w)"},
      {girih::last_keys(girih::input("n")) | girih::first_queries(girih::input("n")),
       "last_keys($n) | first_queries($n)"},
      {girih::last_queries(girih::input("_n1")), "last_queries($_n1)"},
      {girih::chunk(girih::input("n")), "chunk($n)"},
      {girih::block_window({.left = girih::input("l"), .block = girih::input("b")}),
       "block_window(left=$l, block=$b)"},
      {girih::block_streaming({.sink = girih::input("s"), .local = 2}),
       "block_streaming(sink=$s, local=2)"},
      {girih::strided(
           {.block = 16, .homo = true, .ranges = {{-1, 2}, {girih::StridedBlocks::kNoEnd, 3}}}),
       "strided(block=16, homo=true, ranges=[(-1, 2), (inf, 3)])"},
  };
  for (const auto& [mask, text] : cases) {
    CHECK(mask.text() == text);
    CHECK(mask == Mask::parse(text));
  }
}

TEST_CASE("functions refuse what text refuses") {
  CHECK(refusal([] { girih::keys(4, 3); }) ==
        "keys: 4..3 is no range: write the lower number first");
  CHECK(contains(refusal([] { girih::keys(-1, 3); }), "keys: positions = -1 is out of range"));
  CHECK(contains(refusal([] { girih::chunk(0); }), "chunk: n = 0 is out of range"));
  CHECK(contains(refusal([] { girih::block_window({.left = 1}); }), "block = 0 is out of range"));
  CHECK(contains(refusal([] { girih::block_streaming({.sink = -1}); }), "sink = -1"));
  const auto strided = [](girih::StridedBlocks blocks) {
    return refusal([&] { girih::strided(blocks); });
  };
  CHECK(contains(strided({.local = 2, .stride = 3}), "block = 0 is out of range"));
  CHECK(contains(strided({.stride = 3, .block = 2}), "local is missing"));
  CHECK(contains(strided({.local = 2, .block = 2}), "stride is missing"));
  CHECK(contains(strided({.local = {{-1, 2}}, .stride = 3, .block = 2}), "local = -1"));
  CHECK(contains(strided({.local = -1, .stride = 3, .block = 2}), "local is missing"));
  CHECK(contains(strided({.local = 1, .stride = 3, .block = 2, .ranges = {{1 << 29, 3}}}),
                 "ranges replace local and stride"));
  CHECK(contains(strided({.block = 2, .ranges = {{3, 3}}}), "must end with inf, not with 3"));
  CHECK(contains(strided({.block = 2, .ranges = {{1 << 29, 3}, {1 << 29, 3}}}),
                 "goes on behind inf"));
  CHECK(strided({.block = 2, .ranges = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {1 << 29, 3}}}) ==
        "strided: 5 ranges are too many: at most 4 are allowed");
  const auto neighborhood = [](girih::GridNeighborhood grid) {
    return refusal([&] { girih::neighborhood(grid); });
  };
  CHECK(neighborhood({}) == "neighborhood: a grid has 1 to 3 axes, not 0");
  CHECK(neighborhood({.grid = {2, 2, 2, 2}, .window = 1}) ==
        "neighborhood: a grid has 1 to 3 axes, not 4");
  CHECK(contains(neighborhood({.grid = {8, 8}}), "window = 0 is out of range"));
  CHECK(contains(neighborhood({.grid = {0, 8}, .window = 1}), "grid = 0 is out of range"));
  CHECK(contains(neighborhood({.grid = {8, 0}, .window = 1}), "grid = 0 is out of range"));
  CHECK(contains(neighborhood({.grid = {8, 8}, .window = {1, 2, 3}}), "window has 3 entries"));
  CHECK(contains(neighborhood({.grid = {8, 8}, .window = std::initializer_list<int>{}}),
                 "window has 0 entries"));
  CHECK(contains(neighborhood({.grid = {8, 8}, .window = 3, .causal = 2}),
                 "causal = 2 is out of range: 0 to 1 are allowed"));
  CHECK(contains(neighborhood({.grid = {8, 8}, .window = 9}),
                 "axis 0 of the grid has 8 tokens, window 9"));
  CHECK(contains(refusal([] {
                   Mask::atom("block_streaming", {1, 2, 3, 2});
                 }),
                 "causal = 2 is out of range: 0 to 1 are allowed"));
}

TEST_CASE("a soft cap belongs to a class of heads") {
  const Pattern capped = Pattern(causal()).with_softcap(30);
  CHECK(capped.text() == "causal with softcap(30)");
  CHECK(capped == Pattern::parse("causal with softcap(30)"));
  CHECK(capped != Pattern(causal()));
  CHECK(capped != capped.with_softcap(31));
  CHECK(capped.classes()[0].modifiers.softcap == 30);

  const Pattern mixed = girih::heads({{"0", causal(), {.softcap = 2.5f}}, {"else", dense()}});
  CHECK(mixed.text() == "heads(0: causal with softcap(2.5), else: dense)");
  CHECK(mixed == Pattern::parse(mixed.text()));
  CHECK(mixed.with_softcap(1).text() ==
        "heads(0: causal with softcap(1), else: dense with softcap(1))");

  for (const float bad : {0.0f, -1.0f, INFINITY, NAN}) {
    CHECK(contains(refusal([&] { capped.with_softcap(bad); }),
                   "is out of range: a finite number above 0 is needed"));
  }
  CHECK(contains(refusal([] {
                   girih::heads({{"else", dense(), {.softcap = -1}}});
                 }),
                 "softcap(-1) is out of range"));
}

TEST_CASE("a tensor-parallel rank has a part of the model's heads") {
  const Pattern mixed = Pattern::parse("heads(0-2: causal, 3+5: dense, else: sink(1))");
  CHECK(mixed.class_of_head(8, 8) == std::vector<int>{0, 0, 0, 1, 2, 1, 2, 2});
  CHECK(mixed.class_of_head(4, 4, 0, 8) == std::vector<int>{0, 0, 0, 1});
  CHECK(mixed.class_of_head(4, 2, 4, 8) == std::vector<int>{2, 1, 2, 2});
  const girih::Problem rank{
      .num_heads = 4, .num_heads_kv = 2, .head_offset = 4, .num_heads_total = 8};
  CHECK(mixed.class_of_head(rank) == std::vector<int>{2, 1, 2, 2});
  const Pattern by_kv = Pattern::parse("kv_heads(0: causal, 1-2: dense, 3: sink(1))");
  CHECK(by_kv.class_of_head(4, 2, 4, 8) == std::vector<int>{1, 1, 2, 2});
  CHECK(Pattern(causal()).class_of_head(2, 1, 6, 8) == std::vector<int>{0, 0});

  const auto refused = [&](int num_heads, int num_heads_kv, int offset, int total) {
    return refusal([&] { mixed.class_of_head(num_heads, num_heads_kv, offset, total); });
  };
  // The whole model's heads are judged, on every rank alike.
  CHECK(refused(2, 2, 0, 5) == "head 5 in set '3+5' does not exist: there are 5, numbered 0-4");
  CHECK(refused(4, 4, 5, 8) ==
        "head_offset 5 with num_heads 4 does not fit num_heads_total 8: heads head_offset to "
        "head_offset + num_heads - 1 must be among them");
  CHECK(contains(refused(4, 4, -1, 8), "head_offset -1 with num_heads 4 does not fit"));
  CHECK(contains(refused(4, 4, 4, 0), "head_offset 4 with num_heads 4 does not fit"));
  CHECK(contains(refused(4, 4, 0, 3), "does not fit num_heads_total 3"));
  CHECK(contains(refused(4, 4, 0, -8), "does not fit num_heads_total -8"));
  CHECK(contains(refused(4, 4, INT_MAX, INT_MAX), "2147483647 heads are more than 65536"));
  CHECK(refused(4, 2, 3, 8) ==
        "head_offset 3 and num_heads_total 8 must be multiples of the 2 query heads that share a "
        "key/value head");
  CHECK(contains(refused(4, 2, 2, 9), "num_heads_total 9 must be multiples of the 2"));
}

TEST_CASE("bad atoms are refused with the value and the limit") {
  CHECK(refusal([] { Mask::atom("sinks", {1}); }) ==
        "unknown atom 'sinks': did you mean 'sink'? the atoms are dense, causal, window, sink, "
        "last_keys, first_queries, last_queries, queries, keys, chunk, block_window, "
        "block_streaming, strided, dilated, neighborhood, blocks, segments, index_ge, index_gt, "
        "vertical_slash, columns, expr");
  CHECK(refusal([] { Mask::atom("window", {1}); }) == "window takes 2 numbers, not 1");
  CHECK(refusal([] { sink(-1); }) == "sink: n = -1 is out of range: 0 to 536870912 are allowed");
  CHECK(contains(refusal([] { window({.left = -2}); }), "window: left = -2 is out of range"));
  CHECK(
      contains(refusal([] { window({.right = INT_MAX}); }), "right = 2147483647 is out of range"));
  CHECK(sink(girih::kMaxNumber).text() == "sink(536870912)");
}

TEST_CASE("masks built without end are refused before they can harm") {
  Mask deep = causal();
  int levels = 0;
  const std::string message = refusal([&] {
    for (;; ++levels) deep = sink(1) | !(deep & dense());
  });
  CHECK(message == "the mask is nested deeper than 64 levels of parentheses and '!'");
  CHECK(levels == 21);  // each but the first adds a ! and two pairs of parentheses
  CHECK(Mask::parse(deep.text()) == deep);

  Mask wide = causal();
  CHECK(refusal([&] {
          for (;;) wide = wide | window({.left = 3});
        }) == "the mask has more than 1024 atoms");
}

TEST_CASE("the longest masks still parse back") {
  const Mask atom = !window({.left = girih::kMaxNumber, .right = girih::kMaxNumber});
  Mask mask = atom & atom;
  for (int i = 0; i < 9; ++i) mask = i % 2 == 0 ? (mask | mask) : (mask & mask);
  REQUIRE(mask.text().size() > 40000);
  CHECK(Mask::parse(mask.text()) == mask);
  CHECK(contains(refusal([&] {
                   std::vector<Pattern::HeadClass> classes;
                   for (int h = 0; h < 2; ++h) classes.push_back({std::to_string(h).c_str(), mask});
                   girih::heads(classes);
                 }),
                 "the pattern's text is longer than 65536 bytes"));
}

TEST_CASE("a mask whose atoms are long is refused before its text is too long to parse") {
  const Mask atom = girih::strided({.block = girih::kMaxNumber,
                                    .offset = -girih::kMaxNumber / 2,
                                    .kv_heads = true,
                                    .step = -4096,
                                    .dense_heads = girih::kMaxNumber,
                                    .ranges = {{-girih::kMaxNumber / 2, 4096},
                                               {1 - girih::kMaxNumber / 2, 4096},
                                               {2 - girih::kMaxNumber / 2, 4096},
                                               {girih::kMaxNumber, 4096}}});
  Mask mask = atom;
  CHECK(refusal([&] {
          for (;;) mask = mask | atom;
        }) == "the mask's text is longer than 65536 bytes: use fewer atoms");
  CHECK(mask.operands().size() > 300);
  CHECK(Mask::parse(mask.text()) == mask);
}

TEST_CASE("equal patterns hash alike") {
  const Pattern a = Pattern::parse("heads(0-3: causal, else: dense)");
  const Pattern b = girih::heads({{"0-3", causal()}, {"else", dense()}});
  CHECK(a == b);
  CHECK(std::hash<Pattern>()(a) == std::hash<Pattern>()(b));
  CHECK(a != girih::kv_heads({{"0-3", causal()}, {"else", dense()}}));
  CHECK(Pattern(causal()) != girih::heads({{"else", causal()}}));
  CHECK(std::unordered_set<Pattern>{a, b, Pattern(causal())}.size() == 2);
}

TEST_CASE("a pattern is one mask for all heads or one for each set") {
  const Pattern uniform = causal();
  CHECK_FALSE(uniform.per_head());
  REQUIRE(uniform.classes().size() == 1);
  CHECK(uniform.classes()[0].heads == girih::HeadSet());
  CHECK(uniform.class_of_head(4, 2) == std::vector<int>{0, 0, 0, 0});

  const Pattern mixed = girih::heads({{"1+3", causal()}, {"else", dense()}});
  CHECK(mixed.per_head());
  CHECK(mixed.head_unit() == Pattern::HeadUnit::query);
  CHECK(mixed.text() == "heads(1+3: causal, else: dense)");
  CHECK(mixed.class_of_head(5, 1) == std::vector<int>{1, 0, 1, 0, 1});
  CHECK(girih::heads({{"0-1", causal()}, {"else", dense()}}).class_of_head(2, 2) ==
        std::vector<int>{0, 0});
}

TEST_CASE("kv_heads gives a whole group its kv head's mask") {
  const Pattern pattern = girih::kv_heads({{"0", causal()}, {"1", dense()}});
  CHECK(pattern.head_unit() == Pattern::HeadUnit::kv);
  CHECK(pattern.text() == "kv_heads(0: causal, 1: dense)");
  CHECK(pattern.class_of_head(6, 2) == std::vector<int>{0, 0, 0, 1, 1, 1});
}

TEST_CASE("heads covered never, twice or not there are named") {
  const auto classes = [](const char* text, int num_heads, int num_heads_kv) {
    return refusal([&] { Pattern::parse(text).class_of_head(num_heads, num_heads_kv); });
  };
  CHECK(classes("heads(0-3: causal, 3-7: dense)", 8, 8) ==
        "head 3 is covered twice: by set '0-3' and by set '3-7'");
  CHECK(classes("heads(0+0: causal, else: dense)", 8, 8) ==
        "head 0 is covered twice: by set '0+0' and by set '0+0'");
  CHECK(classes("heads(0-3: causal, 5-7: dense)", 8, 8) ==
        "head 4 of 8 is covered by no set: name it, or add 'else: MASK'");
  CHECK(classes("heads(0-8: causal)", 8, 8) ==
        "head 8 in set '0-8' does not exist: there are 8, numbered 0-7");
  CHECK(classes("heads(20-30: causal, else: dense)", 8, 8) ==
        "head 20 in set '20-30' does not exist: there are 8, numbered 0-7");
  CHECK(classes("kv_heads(0: causal)", 8, 2) ==
        "kv head 1 of 2 is covered by no set: name it, or add 'else: MASK'");
  CHECK(classes("kv_heads(0-7: causal)", 8, 2) ==
        "kv head 2 in set '0-7' does not exist: there are 2, numbered 0-1");
  CHECK(contains(classes("causal", 8, 3), "num_heads 8 and num_heads_kv 3"));
  CHECK(contains(classes("causal", 0, 1), "num_heads 0 and num_heads_kv 1"));
  CHECK(contains(classes("kv_heads(else: causal)", 8, -1), "num_heads_kv -1"));
}

TEST_CASE("sets of heads that C++ code fills in are checked") {
  const auto with = [](girih::HeadSet set) {
    return refusal([&] { girih::heads({{set, causal()}}); });
  };
  girih::HeadSet set;
  CHECK(contains(with(set), "either 'else' or one or more ranges"));
  set.ranges = {{3, 2}};
  CHECK(contains(with(set), "heads 3-2 are not a range"));
  set.ranges = {{-1, 2}};
  CHECK(contains(with(set), "heads -1-2 are not a range"));
  set.ranges = {{0, 2}};
  set.rest = true;
  CHECK(contains(with(set), "either 'else' or one or more ranges"));
  CHECK(contains(refusal([] { girih::heads({}); }), "at least one set of heads"));
  CHECK(contains(refusal([] {
                   girih::heads({{"else", causal()}, {"else", dense()}});
                 }),
                 "'else' stands twice"));
}

// --- Run-time inputs ----------------------------------------------------------------------------

namespace {

using girih::InputInfo;

std::vector<std::string> input_names(const Pattern& pattern) {
  std::vector<std::string> names;
  for (const InputInfo& input : pattern.inputs()) names.push_back(input.name);
  return names;
}

}  // namespace

TEST_CASE("a pattern lists its run-time inputs once each, by order of appearance") {
  const Pattern pattern = Pattern::parse(
      "heads(0: causal & (sink($b) | blocks(m, q=128, kv=64)), "
      "1: window(left=$w, right=$b) | !blocks(a, q=16, kv=32), "
      "else: blocks(m, q=128, kv=64) & sink($a2))");
  CHECK(input_names(pattern) == std::vector<std::string>{"b", "m", "w", "a", "a2"});
  CHECK(pattern.inputs()[0] == InputInfo{.name = "b", .kind = InputInfo::Kind::number});
  CHECK(pattern.inputs()[1] == InputInfo{.name = "m",
                                         .kind = InputInfo::Kind::blocks,
                                         .q_block_size = 128,
                                         .kv_block_size = 64});
  CHECK(pattern.inputs()[0].description() == "int32 [batch, heads]");
  CHECK(pattern.inputs()[1].description() ==
        "blocks [batch, heads, ceil(seqlen_q / 128), ceil(seqlen_k / 64)]");
  CHECK(Pattern::parse("causal & sink(3)").inputs().empty());

  const Pattern tokens = Pattern::parse("causal & segments(d) & !index_gt(d) | index_ge(i)");
  CHECK(input_names(tokens) == std::vector<std::string>{"d", "i"});
  CHECK(tokens.inputs()[0] == InputInfo{.name = "d", .kind = InputInfo::Kind::indices});
  CHECK(tokens.inputs()[0].description() ==
        "int32 [batch, heads, seqlen_q] for queries and [batch, heads, seqlen_k] for keys");
  CHECK(tokens == Pattern((girih::causal() & girih::segments("d") & !girih::index_gt("d")) |
                          girih::index_ge("i")));
  CHECK(Pattern::parse(tokens.text()) == tokens);

  const Pattern slashes = Pattern::parse("vertical_slash(v) | sink(3)");
  CHECK(slashes == Pattern(girih::vertical_slash("v") | sink(3)));
  CHECK(slashes.inputs()[0] == InputInfo{.name = "v", .kind = InputInfo::Kind::slashes});
  CHECK(slashes.inputs()[0].description() ==
        "int32 [batch, heads, num_vertical] for columns and [batch, heads, num_slash] for "
        "distances");

  const Pattern built = girih::heads({{"0", girih::blocks("m", {.q = 64})}, {"else", sink(7)}});
  CHECK(input_names(built) == std::vector<std::string>{"m"});
  CHECK(input_names(built.with_softcap(3)) == std::vector<std::string>{"m"});
  CHECK(input_names(girih::kv_heads({{"else", sink(girih::input("n"))}})) ==
        std::vector<std::string>{"n"});
}

TEST_CASE("modifiers name the inputs that they read, behind those of the masks") {
  const girih::Modifiers modifiers{.softcap = 2, .alibi = "s", .bias = "b", .sink_logit = "z"};
  const Pattern pattern = Pattern(girih::segments("d")).with(modifiers);
  CHECK(pattern.text() == "segments(d) with softcap(2), alibi(s), bias(b), sink_logit(z)");
  CHECK(pattern == Pattern::parse(pattern.text()));
  CHECK(input_names(pattern) == std::vector<std::string>{"d", "s", "b", "z"});
  CHECK(pattern.inputs()[1].description() == "float32 [batch, heads]");
  CHECK(pattern.inputs()[2].description() == "float32 [batch, heads, seqlen_k]");
  CHECK(pattern.inputs()[0].decides_visibility());
  CHECK_FALSE(pattern.inputs()[1].decides_visibility());
  CHECK(input_names(pattern.with({})) == std::vector<std::string>{"d"});
  CHECK(pattern.with_softcap(3).classes()[0].modifiers.alibi == "s");

  CHECK(contains(refusal([] { Pattern(dense()).with({.alibi = "a b"}); }),
                 "'a b' is no name of an input"));
  CHECK(contains(refusal([] { Pattern(girih::columns("m")).with({.bias = "m"}); }),
                 "the input 'm' is used as int32 starts and ends [batch, heads, seqlen_k] and as "
                 "float32 [batch, heads, seqlen_k]"));
}

TEST_CASE("one name for two kinds of input is refused, also across heads") {
  const Mask blocks = girih::blocks("m", {.q = 64, .kv = 64});
  const std::string two_kinds =
      "the input 'm' is used as blocks [batch, heads, ceil(seqlen_q / 64), ceil(seqlen_k / 64)] "
      "and "
      "as int32 [batch, heads]: give the two different names";
  CHECK(refusal([&] { Pattern(blocks & sink(girih::input("m"))); }) == two_kinds);
  CHECK(refusal([&] {
          girih::heads({{"0", blocks}, {"else", sink(girih::input("m"))}});
        }) == two_kinds);
  CHECK(contains(refusal([&] { Pattern(blocks | girih::blocks("m", {.q = 64, .kv = 32})); }),
                 "and as blocks [batch, heads, ceil(seqlen_q / 64), ceil(seqlen_k / 32)]"));
  // A mask that is no pattern yet may be put together with the other one renamed.
  CHECK(Mask::parse((blocks & sink(girih::input("m"))).text()) ==
        (blocks & sink(girih::input("m"))));
}

TEST_CASE("a pattern has at most 16 run-time inputs") {
  Mask mask = sink(girih::input("n0"));
  for (int i = 1; i < 16; ++i) mask = mask | sink(girih::input("n" + std::to_string(i)));
  CHECK(Pattern(mask | sink(girih::input("n3"))).inputs().size() == 16);
  const std::string refused =
      "the input 'last' is one more than the 16 run-time inputs a pattern can have";
  const Mask last = girih::chunk(girih::input("last"));
  CHECK(refusal([&] { Pattern(mask & last); }) == refused);
  CHECK(refusal([&] { girih::heads({{"0", mask}, {"else", last}}); }) == refused);
  CHECK(refusal([&] { Pattern::parse("heads(0: " + mask.text() + ",\n else: chunk($last))"); }) ==
        "2:8: " + refused + "\n   else: chunk($last))\n         ^");
}

TEST_CASE("names and numbers that cannot be run-time inputs are refused") {
  const std::string rule = " is no name of an input: letters, digits and '_' are, a letter first";
  CHECK(refusal([] { girih::input(""); }) == "''" + rule);
  CHECK(refusal([] { girih::input("2w"); }) == "'2w'" + rule);
  CHECK(refusal([] { girih::blocks("a b", {}); }) == "'a b'" + rule);
  CHECK(refusal([] { girih::blocks("$m", {}); }) == "'$m'" + rule);
  CHECK(contains(refusal([] { girih::input(std::string(65, 'w')); }),
                 "has 65 characters: at most 64 are allowed"));
  CHECK(sink(girih::input(std::string(64, 'w'))).inputs()[0].size() == 64);
  girih::Number unchecked = 0;
  unchecked.input = "a-b";
  CHECK(refusal([&] { sink(unchecked); }) == "'a-b'" + rule);

  CHECK(refusal([] { girih::blocks("m", {.q = 96}); }) ==
        "blocks: q and kv must be 16, 32, 64 or 128");
  CHECK(refusal([] { girih::blocks("m", {.kv = 8}); }) ==
        "blocks: kv = 8 is out of range: 16 to 128 are allowed");
  CHECK(refusal([] {
          Mask::atom("blocks", {0, 128, 128});
        }) == "blocks needs the name of a run-time input: blocks(m, ...)");
  CHECK(refusal([] {
          Mask::atom("blocks", {girih::input("m"), girih::input("q"), 128});
        }) == "blocks: q cannot be a run-time input: its numbers must fit together");
  CHECK(refusal([] {
          Mask::atom("queries", {girih::input("a"), 3});
        }) ==
        "queries: positions takes a range such as 0..128, whose end is not in it, and no run-time "
        "input");
  CHECK(contains(refusal([] { Mask::atom("keys", {0, girih::input("b")}); }), "no run-time input"));
  CHECK(refusal([] {
          Mask::atom("block_streaming", {1, 2, 128, girih::input("c")});
        }) == "block_streaming: causal takes true or false, and no run-time input");
}

TEST_CASE("numbers from inputs are put in, the nearest that the atom takes") {
  const auto with = [](const char* text, int number) {
    const auto value = [&](const std::string& name) { return name == "m" ? 7 : number; };
    return Mask::parse(text).with_inputs(value);
  };
  CHECK(with("causal & (sink($n) | window(left=$w, right=2))", 5) ==
        Mask::parse("causal & (sink(5) | window(left=5, right=2))"));
  CHECK(with("!sink($n)", -3) == !sink(0));
  CHECK(with("chunk($n)", 0) == girih::chunk(1));
  CHECK(with("window(left=$n, right=4)", -9) == window({.left = -1, .right = 4}));
  CHECK(with("sink($n)", INT_MAX) == sink(girih::kMaxNumber));
  CHECK(with("sink($n)", INT_MIN) == sink(0));

  const Mask blocks = with("sink($n) | blocks(m, q=128, kv=64)", 1);
  CHECK(blocks.text() == "sink(1) | blocks(m, q=128, kv=64)");
  CHECK(blocks.operands()[1].numbers() == std::vector<int>{7, 128, 64});
  CHECK(blocks.operands()[1].inputs() == std::vector<std::string>{"m", "", ""});
}

TEST_CASE("what a mask shows is not known before its run-time inputs are") {
  const girih::Geometry geometry{64, 64, 0, 0};
  CHECK(refusal([&] {
          girih::pattern::count_visible(Mask::parse("causal & sink($n)"), geometry);
        }) == "what 'sink($n)' shows depends on the run-time input 'n': give it");
  CHECK(contains(refusal([&] { girih::pattern::visible(girih::blocks("m", {}), geometry, 0, 0); }),
                 "depends on the run-time input 'm'"));
}
