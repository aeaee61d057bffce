// expr("...") and score("...") in patterns: their text and inputs, what is visible, which tiles are
// visited, what reaches a compiler, and every refusal.
#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "girih/shared/score.cuh"
#include "pattern/expression.hpp"
#include "pattern/interpret.hpp"
#include "pattern/places.hpp"
#include "plan/plan.hpp"
#include "runtime/inputs.hpp"
#include "seek.hpp"
#include "texts.hpp"

using namespace girih;
using namespace girih::tests;
using Kind = oracle::Expr::Kind;

namespace {

std::string refusal_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.code() == Errc::invalid_argument);
    return error.what();
  }
  return "(accepted)";
}

std::string refusal(const std::string& text) {
  return refusal_of([&] { Pattern::parse(text); });
}

// The message, and the column under which its caret stands in the line above it.
struct Pointed {
  std::string message;
  std::size_t column;
};
Pointed pointed(const std::string& text) {
  const std::string all = refusal(text);
  const std::size_t line = all.find('\n'), caret = all.rfind('\n');
  REQUIRE(line != caret);
  return {all.substr(0, line), all.find('^', caret) - caret - 3};  // two blanks stand before both
}

// --- Tensors and the oracle's reading of conditions over them

constexpr int kBatch = 2, kHeads = 4, kTokens = 300;

// doc [batch, kTokens], limit [heads], table [5, 7]
struct Tensors {
  std::vector<std::int32_t> doc, limit, table;
  std::vector<InputInfo> inputs;
  std::vector<InputView> views;

  explicit Tensors(std::mt19937_64& random) {
    for (int b = 0; b < kBatch; ++b) {
      for (int i = 0, document = 0; i < kTokens; ++i) {
        document += below(random, 20) == 0;
        doc.push_back(document);
      }
    }
    for (int h = 0; h < kHeads; ++h) limit.push_back(below(random, 60));
    for (int i = 0; i < 35; ++i) table.push_back(below(random, 3) - 1);
  }

  int doc_at(long long b, long long i) const {
    return doc[static_cast<std::size_t>(b * kTokens + i)];
  }
  int table_at(long long i, long long j) const {
    i = std::min(std::max(i, 0LL), 4LL);
    j = std::min(std::max(j, 0LL), 6LL);
    return table[static_cast<std::size_t>(7 * i + j)];
  }

  // In the places that a mask's own inputs have.
  void lay_out(const Mask& mask) {
    inputs = Pattern(mask).inputs();
    views.assign(static_cast<std::size_t>(pattern::num_places(inputs, 0)), {});
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      TensorView view{};
      const auto set = [&](const std::vector<std::int32_t>& values, std::vector<int> extents) {
        view.data = values.data();
        int stride = 1;
        for (std::size_t d = extents.size(); d-- > 0; stride *= extents[d]) {
          view.extents[d] = extents[d];
          view.strides[d] = stride;
        }
      };
      if (inputs[i].name == "doc") set(doc, {kBatch, kTokens});
      if (inputs[i].name == "limit") set(limit, {kHeads});
      if (inputs[i].name == "table") set(table, {5, 7});
      void* const place = &views[static_cast<std::size_t>(place_of(static_cast<int>(i)))];
      std::memcpy(place, &view, sizeof(view));
    }
  }
  int place_of(int i) const { return pattern::place_of(inputs, i); }

  Mask with_places(const Mask& mask) const {
    return mask.with_inputs(
        [&](const std::string& name) { return place_of(pattern::find_input(inputs, name)); });
  }
};

oracle::Expr condition(std::string text,
                       std::function<bool(const oracle::Sizes&, long long, long long)> holds) {
  oracle::Expr expr{Kind::condition, {}, {}};
  expr.condition = {std::move(text), std::move(holds), false};
  return expr;
}

// Each as text and, beside it, as this test reads it. p is the key at the row's position.
std::vector<oracle::Expr> conditions(const Tensors& t, int batch, int head) {
  using Sizes = oracle::Sizes;
  const auto diagonal = [](const Sizes& s, long long q) { return q + s.q_start - s.k_start; };
  return {
      condition("k <= p", [=](const Sizes& s, auto q, auto k) { return k <= diagonal(s, q); }),
      condition("q / 16 == k / 16 || k < 3",
                [](const Sizes&, auto q, auto k) { return q / 16 == k / 16 || k < 3; }),
      condition("(p - k) % 5 == 0",
                [=](const Sizes& s, auto q, auto k) { return (diagonal(s, q) - k) % 5 == 0; }),
      condition("doc[b][q] == doc[b][k]",
                [&t, batch](const Sizes&, auto q, auto k) {
                  return t.doc_at(batch, q) == t.doc_at(batch, k);
                }),
      condition("abs(p - k) <= limit[h]",
                [=, &t](const Sizes& s, auto q, auto k) {
                  return std::abs(diagonal(s, q) - k) <= t.limit[static_cast<std::size_t>(head)];
                }),
      condition("table[q / 8 - 1][k / 8] > 0 ? k >= Sk - 20 : q < Sq / 2",
                [&t](const Sizes& s, auto q, auto k) {
                  return t.table_at(q / 8 - 1, k / 8) > 0 ? k >= s.seqlen_k - 20
                                                          : q < s.seqlen_q / 2;
                }),
      condition("h % 2 == 0 && g + k > q",
                [](const Sizes& s, auto q, auto k) {
                  return s.head % 2 == 0 && s.head / s.group_size + k > q;
                }),
      condition("min(q, k) * 0.25 < 4.0 || !(k != q)",
                [](const Sizes&, auto q, auto k) { return std::min(q, k) < 16 || k == q; }),
      condition("1 < 0", [](const Sizes&, auto, auto) { return false; }),
      condition("0 == 0", [](const Sizes&, auto, auto) { return true; }),
  };
}

// Puts one of the conditions at some places of an expression.
void put(oracle::Expr& expr, std::mt19937_64& random, const std::vector<oracle::Expr>& all,
         bool& some) {
  for (oracle::Expr& operand : expr.operands) put(operand, random, all, some);
  if (!expr.operands.empty() || (some && below(random, 3) != 0)) return;
  expr = all[static_cast<std::size_t>(below(random, static_cast<int>(all.size())))];
  some = true;
}

Case condition_case(std::mt19937_64& random, int depth) {
  Case c = random_case(random, depth);
  c.batch = below(random, kBatch);
  c.local_head = below(random, kHeads);
  return c;
}

}  // namespace

// --- Text ---------------------------------------------------------------------------------------

TEST_CASE("a condition's text is canonical and parses to the same mask") {
  for (const auto& [text, canonical] :
       {std::pair{"expr(\"k<=p\")", "expr(\"k <= p\")"},
        {"causal & !expr( \"((q/64)==(k/64))\" )", "causal & !expr(\"q / 64 == k / 64\")"},
        {"heads(0: expr(\"t[ k ]>0\") with softcap(30), else: expr(\"t[q]>0\") | sink(4))",
         "heads(0: expr(\"t[k] > 0\") with softcap(30), else: expr(\"t[q] > 0\") | sink(4))"},
        {"expr(\"k < 1  # not a comment\n\")", nullptr}}) {
    CAPTURE(text);
    if (canonical == nullptr) {
      CHECK(contains(refusal(text), "unexpected character"));
      continue;
    }
    CHECK(Pattern::parse(text).text() == canonical);
    CHECK(Pattern::parse(canonical) == Pattern::parse(text));
  }
  CHECK(expr("k<=p") == Mask::parse("expr(\"k <= p\")"));
  CHECK(expr("k <= p") != expr("k < p"));
  CHECK(expr("k <= p") != causal());
  CHECK((causal() & !expr("q / 2 == k")).text() == "causal & !expr(\"q / 2 == k\")");
}

TEST_CASE("a condition's tensors are the pattern's inputs, with what indexes them") {
  const Pattern pattern =
      Pattern::parse("expr(\"doc[b][q] == doc[b][k] && far[p - k][h] > 0\") & segments(s)");
  REQUIRE(pattern.inputs().size() == 3);
  CHECK(pattern.inputs()[0].kind == InputInfo::Kind::int_tensor);
  CHECK(pattern.inputs()[0].rank == 2);
  CHECK(pattern.inputs()[0].description() == "int32 [batch, seqlen_q or seqlen_k]");
  CHECK(pattern.inputs()[1].description() == "int32 [any, num_heads]");
  CHECK(pattern.inputs()[0].decides_visibility());
  // Of two expressions together.
  const Pattern both = Pattern::parse("expr(\"t[q] > 0\") & expr(\"t[k] > 0\")");
  CHECK(both.inputs().size() == 1);
  CHECK(both.inputs()[0].description() == "int32 [seqlen_q or seqlen_k]");
  CHECK(
      contains(refusal("expr(\"t[q] > 0\") & expr(\"t[q][k] > 0\")"), "the input 't' is used as"));
  CHECK(contains(refusal("expr(\"t[q] > 0\") & segments(t)"), "the input 't' is used as int32 ["));
  CHECK(contains(refusal("sink($t) & expr(\"t[q] > 0\")"), "give the two different names"));
}

TEST_CASE("a bad condition is refused at its character in the pattern's text") {
  const Pointed unknown = pointed("causal & expr(\"k <= x\")");
  CHECK(contains(unknown.message, "unknown name 'x'"));
  CHECK(unknown.column == 20);
  CHECK(pointed("expr(\"k\")").column == 6);
  CHECK(contains(pointed("expr(\"k\")").message, "a mask is a condition such as k <= p"));
  CHECK(pointed("expr(\"k <= p").column == 5);
  CHECK(contains(pointed("expr(\"k <= p").message, "this '\"' is not closed"));
  CHECK(contains(pointed("expr").message, "expected '(' after expr, found the end"));
  CHECK(contains(pointed("expr(k <= p)").message, "expr takes an expression in quotes"));
  CHECK(contains(pointed("expr(\"k <= p\"").message, "expected ')', found the end"));
  CHECK(contains(pointed("expr(\"k <= p\", 3)").message, "expected ')', found ','"));
  CHECK(contains(pointed("expr(\"\")").message, "expected a number, a name or '('"));
  CHECK(contains(pointed("causal with expr(\"k\")").message, "expected a modifier"));
  CHECK(contains(refusal_of([] { expr("k <="); }), "k <=\n"));
  std::string many;
  for (int i = 0; i < 17; ++i) {
    many += (i > 0 ? " | " : "") + ("expr(\"k == " + std::to_string(i)) + "\")";
  }
  CHECK(contains(refusal(many), "more than 16 different expr(...)"));
}

TEST_CASE("hostile conditions are refused soon, and nothing of them is emitted") {
  for (const char* text : {"k < 1\"); asm(\"trap;",
                           "k < 1; asm(\"trap;\")",
                           "asm(\"trap;\") < 1",
                           "k < 1 } { ",
                           "k < 1 // x",
                           "k < 1 /* x */",
                           "#include <x>",
                           "k < 1\\",
                           "k < __LINE__",
                           "threadIdx.x < 1",
                           "*k < 1",
                           "&k < 1",
                           "at.k < 1",
                           "k = 1",
                           "k, 1",
                           "printf(1) < 1",
                           "k < 'a'",
                           "k < 1u",
                           "k < (int)p",
                           "\xff\xfe < 1"}) {
    CAPTURE(text);
    CHECK(refusal("expr(\"" + std::string(text) + "\")") != "(accepted)");
  }
  const std::string deep(10 * 1024, '(');
  CHECK(contains(refusal("expr(\"" + deep + "\")"), "nested deeper than 64 levels"));
  CHECK(contains(refusal("expr(\"" + deep), "is not closed"));
  CHECK(contains(refusal("expr(\"" + std::string(70000, 'k') + "\")"), "at most 65536 are read"));

  // What is accepted reaches a compiler as its tree alone: no name, no blank of the text.
  const std::string hostile_name = "asm_volatile_trap";
  const plan::KernelSpec spec =
      plan::make_plan(Pattern::parse("expr(\"" + hostile_name + "[k]   <   7\")"), {.head_dim = 64},
                      plan::Arch::parse("sm_90a"))
          .spec;
  const std::string source = codegen::emit(spec);
  CHECK_FALSE(contains(source, hostile_name));
  CHECK(contains(source, "return (element<1>(0, at.k) < 7);"));
}

// --- What is visible ----------------------------------------------------------------------------

TEST_CASE("a condition shows exactly its elements, alone and in expressions") {
  std::mt19937_64 random(51);
  const Tensors fixed(random);
  for (int i = 0; i < 1500; ++i) {
    Case c = condition_case(random, 1 + i % 4);
    bool some = false;
    put(c.expr, random, conditions(fixed, c.batch, c.local_head), some);
    Tensors tensors = fixed;
    const Mask parsed = Mask::parse(oracle::text(c.expr));
    tensors.lay_out(parsed);
    const Mask mask = tensors.with_places(parsed);
    c.inputs = tensors.views.data();
    const Geometry geometry = c.geometry();
    std::int64_t wrong = 0, count = 0;
    for (int q = 0; q < geometry.seqlen_q; ++q) {
      for (int k = 0; k < geometry.seqlen_k; ++k) {
        const bool expected = oracle::visible(c.expr, c.sizes, q, k);
        const uint32 word = pattern::row_bits(mask, geometry, q, k / 16 * 16);
        count += expected;
        wrong += expected != ((word >> k % 16 & 1) != 0);
      }
    }
    if (wrong == 0 && count == pattern::count_visible(mask, geometry)) continue;
    FAIL(c.words());
  }
}

TEST_CASE("the host's seeks of conditions are sound, and exact where they stand alone") {
  std::mt19937_64 random(52);
  const Tensors fixed(random);
  Tightness alone, mixed;
  for (int i = 0; i < 1500; ++i) {
    Case c = condition_case(random, 1 + i % 3);
    bool some = false;
    put(c.expr, random, conditions(fixed, c.batch, c.local_head), some);
    Tensors tensors = fixed;
    const Mask parsed = Mask::parse(oracle::text(c.expr));
    tensors.lay_out(parsed);
    c.inputs = tensors.views.data();
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, tensors.with_places(parsed), q0,
                         c.expr.kind == Kind::condition ? alone : mixed);
    }
  }
  CHECK(alone.truth.visited > 0);
  CHECK(alone.inexact == 0);
}

TEST_CASE("what a condition shows is not known without its tensors") {
  const Mask mask = Mask::parse("causal & expr(\"doc[k] > 0\")");
  CHECK(contains(refusal_of([&] {
                   pattern::visible(mask, Geometry{4, 4}, 3, 0);
                 }),
                 "depends on the run-time input 'doc'"));
  CHECK(pattern::visible(expr("k <= p"), Geometry{4, 4}, 3, 0));
}

// --- What kernels do ----------------------------------------------------------------------------

namespace {

// As an entry has them.
struct SameDocument : ExpressionTensors<int> {
  static constexpr int kNumTensors = 1;
  bool operator()(const ElementIndices& at) const {
    return element<2, 0x1>(0, at.b, at.q) == element<2, 0x1>(0, at.b, at.k) && at.k <= at.p;
  }
};

}  // namespace

TEST_CASE("a kernel's seeks go by the tiles that were found, and its rows by the condition") {
  std::mt19937_64 random(53);
  using Structure = Expr<SameDocument>;
  static_assert(Structure::kNumNumbers == 2);
  std::int64_t seen_tiles[3] = {};
  for (int i = 0; i < 300; ++i) {
    Tensors tensors(random);
    const int seqlen_q = 1 + below(random, kTokens), seqlen_k = 1 + below(random, kTokens);
    Geometry g{seqlen_q, seqlen_k, seqlen_k - seqlen_q, 0};
    g.batch = below(random, kBatch);

    // Place 0: the tiles, of both sequences. From place 1 on: the tensor.
    const int rows = ceil_div(seqlen_q, TileBits::kBlock);
    const int words = ceil_div(ceil_div(seqlen_k, TileBits::kBlock), 32);
    std::vector<uint32> bits(static_cast<std::size_t>(kBatch * rows * 2 * words), 0xdeadbeef);
    InputView views[3];
    TensorView doc{};
    doc.data = tensors.doc.data();
    doc.extents[0] = kBatch;
    doc.extents[1] = kTokens;
    doc.strides[0] = kTokens;
    doc.strides[1] = 1;
    void* const place = views + 1;
    std::memcpy(place, &doc, sizeof(doc));
    views[0].data = bits.data();
    views[0].batch_stride = rows * 2 * words;
    views[0].row_stride = words;
    g.inputs = views;
    const int numbers[] = {0, 1};
    const auto sees = [&](int q, int k) {
      return tensors.doc_at(g.batch, q) == tensors.doc_at(g.batch, k) && k <= g.diagonal(q);
    };
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < ceil_div(seqlen_k, TileBits::kBlock); ++column) {
        bool some = false, all = true;
        for (int q = row * 64; q < min(row * 64 + 64, seqlen_q); ++q) {
          for (int k = column * 64; k < min(column * 64 + 64, seqlen_k); ++k) {
            (sees(q, k) ? some : all) = sees(q, k);
          }
        }
        for (const auto& [which, value] :
             {std::pair{TileBits::kSome, some}, {TileBits::kAll, all}}) {
          uint32& word = bits[static_cast<std::size_t>(
              ((g.batch * rows + row) * 2 + which) * words + column / 32)];
          const uint32 bit = 1u << column % 32;
          word = value ? word | bit : word & ~bit;
        }
      }
    }

    for (int q = 0; q < seqlen_q; ++q) {
      const int first_key = below(random, seqlen_k);
      const uint32 row = Structure::row_bits(numbers, g, q, KeyWord{first_key});
      for (int k = first_key; k < min(first_key + 32, seqlen_k); ++k) {
        REQUIRE((row >> (k - first_key) & 1) == (sees(q, k) ? 1u : 0u));
      }
    }
    CHECK(Structure::row_bits(numbers, g, seqlen_q, KeyWord{0}) == 0);
    CHECK(Structure::row_bits(numbers, g, 0, KeyWord{seqlen_k}) == 0);

    static constexpr int kBlockM[] = {64, 128, 192, 16}, kBlockN[] = {16, 64, 80, 128, 176};
    const int block_m = one_of(random, kBlockM), block_n = one_of(random, kBlockN);
    const KeyTiles tiles{block_n, seqlen_k};
    for (int q0 = 0; q0 < seqlen_q; q0 += block_m) {
      const QueryRows tile_rows{q0, min(q0 + block_m, seqlen_q)};
      for (int n = 0; n < tiles.count(); ++n) {
        const Run run = Structure::seek(numbers, g, tile_rows, tiles, n);
        REQUIRE(run.end > n);
        REQUIRE(run.end <= tiles.count());
        // Exactly what the blocks that the tile touches say.
        bool some = false, all = true;
        for (int q = q0 / 64 * 64; q < min(round_up(tile_rows.end, 64), seqlen_q); ++q) {
          const int end = min(round_up(min((n + 1) * block_n, seqlen_k), 64), seqlen_k);
          for (int k = n * block_n / 64 * 64; k < end; ++k) (sees(q, k) ? some : all) = sees(q, k);
        }
        const TileKind kind = !some ? TileKind::empty : all ? TileKind::full : TileKind::partial;
        ++seen_tiles[static_cast<int>(kind)];
        REQUIRE(run.kind == kind);
      }
    }
  }
  for (const std::int64_t count : seen_tiles) CHECK(count > 10);
}

TEST_CASE("indices outside of a tensor are read as the nearest inside") {
  const std::int32_t values[] = {0, 1, 2, 10, 11, 12};
  InputView views[2];
  TensorView view{};
  view.data = values;
  view.extents[0] = 2;
  view.extents[1] = 3;
  view.strides[0] = 3;
  view.strides[1] = 1;
  std::memcpy(static_cast<void*>(views), &view, sizeof(view));
  const int places[] = {0};
  const ExpressionTensors<int> tensors{views, places};
  CHECK(tensors.element<2>(0, 1, 2) == 12);
  CHECK(tensors.element<2>(0, -2147483647 - 1, 2147483647) == 2);
  CHECK(tensors.element<2>(0, 2147483647, -5) == 10);
  CHECK(tensors.element<2, 0x1>(0, 1, -5) == 10);  // the first is known to be inside
}

TEST_CASE("a plan has each condition once, by its code, and the places of its tensors") {
  const auto plan_of = [](const std::string& text) {
    return plan::make_plan(Pattern::parse(text),
                           {.head_dim = 64, .num_heads = 8, .num_heads_kv = 2},
                           plan::Arch::parse("sm_90a"));
  };
  const plan::Plan plan = plan_of(
      "heads(0-3: expr(\"a[k] > 0\") & sink($n), 4-7: expr(\"b1[k] > 0 && h < 3\") | expr(\"a[k] > "
      "0\"))");
  // Inputs a, n, b1 lie in places 0 to 2, the tensors from 3 and 5 on, the tiles in 7 and 8.
  CHECK(plan.spec.num_inputs == 9);
  CHECK(plan.spec.expressions.size() == 2);
  CHECK(plan.spec.builds_tiles());
  REQUIRE(plan.tiles.size() == 2);
  CHECK(plan.tiles[0].places == std::vector<int>{3});
  CHECK(plan.tiles[1].places == std::vector<int>{5});
  CHECK(plan.tiles[0].condition != plan.tiles[1].condition);
  CHECK_FALSE(plan.tiles[0].by_head);
  CHECK(plan.tiles[1].by_head);
  const Pattern pattern = Pattern::parse("sink($n) & expr(\"a[k] > 0\")");
  CHECK(plan::numbers_of(pattern.classes()[0].mask, pattern.inputs(),
                         pattern::conditions_of(pattern)) == std::vector<int>{0, 4, 2});

  // Names of tensors are no part of the kernel, and one condition in two places is one.
  CHECK(codegen::emit(plan_of("expr(\"x[k] > 0\")").spec) ==
        codegen::emit(plan_of("expr(\"y[k]>0\")").spec));
  CHECK(codegen::emit(plan_of("expr(\"x[k] > 0\")").spec) !=
        codegen::emit(plan_of("expr(\"x[k] > 1\")").spec));
  CHECK(plan_of("expr(\"k < 3\") | causal & expr(\"k < 3\")").spec.expressions.size() == 1);
  // What only heads of another rank see is not compiled here.
  Problem rank{.head_dim = 64, .num_heads = 2, .num_heads_kv = 2};
  rank.num_heads_total = 4;
  const plan::Plan part =
      plan::make_plan(Pattern::parse("heads(0-1: causal, 2-3: expr(\"k < 3\"))"), rank,
                      plan::Arch::parse("sm_90a"));
  CHECK_FALSE(part.spec.builds_tiles());
  REQUIRE(part.tiles.size() == 1);
  CHECK(part.tiles[0].condition == -1);
}

// --- What a launch is given ---------------------------------------------------------------------

namespace {

constexpr runtime::InputExtents kExtents{
    .num_heads = 8, .num_heads_kv = 2, .batch = 3, .seqlen_q = 1000, .seqlen_k = 5000};

runtime::InputPlan plan_launch(const std::string& text, const std::vector<Input>& given,
                               const runtime::InputExtents& extents = kExtents) {
  const Pattern pattern = Pattern::parse(text);
  const plan::Plan plan = plan::make_plan(
      pattern, {.head_dim = 64, .num_heads = 8, .num_heads_kv = 2}, plan::Arch::parse("sm_90a"));
  return runtime::plan_inputs(pattern.inputs(), given, extents, reinterpret_cast<void*>(1 << 20),
                              plan.tiles);
}

const auto* const kInts = reinterpret_cast<const std::int32_t*>(0x4000);
const auto* const kFloats = reinterpret_cast<const float*>(0x4000);

std::string launch_refusal(const std::string& text, const Values& given) {
  return refusal_of([&] { plan_launch(text, {{"t", given}}); });
}

}  // namespace

TEST_CASE("tensors are handed over by their strides, and shared where their extent is 1") {
  Values values(kInts, {3, 1, 6000});
  values.stride = {7000, 5, 1};
  const runtime::InputPlan plan = plan_launch("expr(\"t[b][h][k] > 0\")", {{"t", values}});
  const TensorView& view = TensorView::at(plan.views.data(), 1);
  CHECK(view.data == kInts);
  CHECK(view.extents[0] == 3);
  CHECK(view.extents[1] == 1);
  CHECK(view.extents[2] == 6000);
  CHECK(view.strides[0] == 7000);
  CHECK(view.strides[1] == 0);
  CHECK(view.strides[2] == 1);
}

TEST_CASE("tiles are found in as few planes as the condition tells apart") {
  const auto planes = [](const std::string& condition, bool ragged = false) {
    runtime::InputExtents extents = kExtents;
    extents.ragged = ragged;
    const runtime::InputPlan plan = plan_launch("expr(\"" + condition + "\")", {}, extents);
    REQUIRE(plan.tiles.size() == 1);
    const BuildTilesParams& build = plan.tiles[0];
    const InputView& view = plan.views[0];
    CHECK(build.num_rows == 16);
    CHECK(build.words_per_row == 3);
    CHECK(view.data == build.bits);
    CHECK(view.row_stride == 3);
    CHECK(view.head_stride == 16 * 2 * 3);
    CHECK(view.heads_per_plane == build.heads_per_plane);
    CHECK(view.heads_per_plane * build.planes_per_batch == 8);
    CHECK((view.batch_stride == 0) == (build.shared_by_batch != 0));
    CHECK(plan.workspace_bytes >= sizeof(uint32) * 96 * static_cast<std::size_t>(build.num_planes));
    return build.num_planes;
  };
  CHECK(planes("q / 2 == k") == 1);
  CHECK(planes("k <= p") == 1);
  CHECK(planes("k <= p", true) == 3);
  CHECK(planes("q / 2 == k", true) == 1);
  CHECK(planes("k < Sk - 3", true) == 3);
  CHECK(planes("k < b") == 3);
  CHECK(planes("k < h") == 8);
  CHECK(planes("k < g") == 2);
  CHECK(planes("k < h + g + b") == 24);
  runtime::InputExtents none = kExtents;
  none.seqlen_k = 0;
  CHECK(plan_launch("expr(\"k < h\")", {}, none).tiles.empty());
}

TEST_CASE("tensors that cannot be right are refused before anything is launched") {
  CHECK(refusal_of([] { plan_launch("expr(\"t[k] > 0\")", {}); }) ==
        "the input 't' is missing: the pattern wants int32 [seqlen_k]");
  CHECK(contains(launch_refusal("expr(\"t[k] > 0\")", Values(kFloats, {5000})),
                 "was given float32 values, but the pattern wants int32 [seqlen_k]"));
  CHECK(contains(launch_refusal("expr(\"t[k] > 0\")", Values(kInts, {3, 5000})),
                 "has a rank of 2: it must be 1: the pattern wants int32 [seqlen_k]"));
  CHECK(contains(launch_refusal("expr(\"t[b][k] > 0\")", Values(kInts, {5000})),
                 "has a rank of 1: it must be 2"));
  CHECK(contains(launch_refusal("expr(\"t[b][k] > 0\")", Values(kInts, {3, 4999})),
                 "has 4999 elements in dimension 1: it must have at least 5000, for it is indexed "
                 "by k"));
  CHECK(contains(launch_refusal("expr(\"t[b][k] > 0\")", Values(kInts, {2, 5000})),
                 "it must have at least 3, for it is indexed by b, or 1, for all to share it"));
  CHECK(contains(launch_refusal("expr(\"t[h] > 0\")", Values(kInts, {2})), "at least 8"));
  CHECK(contains(launch_refusal("expr(\"t[q] > t[k]\")", Values(kInts, {1000})), "at least 5000"));
  CHECK(contains(launch_refusal("expr(\"t[p - k] > 0\")", Values(kInts, {0})),
                 "has 0 elements in dimension 0: it must have at least one"));
  CHECK(launch_refusal("expr(\"t[p - k] > 0\")", Values(kInts, {1})) == "(accepted)");
  CHECK(contains(launch_refusal("expr(\"t[k] > 0\")",
                                Values(static_cast<const std::int32_t*>(nullptr), {5000})),
                 "the input 't' has no data"));
  CHECK(contains(launch_refusal("expr(\"t[k] > 0\")",
                                Values(reinterpret_cast<const std::int32_t*>(0x4002), {5000})),
                 "not aligned to 4 bytes"));
  Values backwards(kInts, {5000});
  backwards.stride[0] = -1;
  CHECK(contains(launch_refusal("expr(\"t[k] > 0\")", backwards), "a stride of -1"));
  Values far(kInts, {3, 5000});
  far.stride = {1 << 30, 1};
  CHECK(
      contains(launch_refusal("expr(\"t[b][k] > 0\")", far),
               "a stride of 1073741824: it must be such that no element lies 2147483648 or more"));
  CHECK(contains(refusal_of([] {
                   plan_launch("expr(\"t[k] > 0\")", {{"t", HeadNumbers{.data = kInts}}});
                 }),
                 "was given numbers, but the pattern wants int32 [seqlen_k]"));
}

// --- Scores -------------------------------------------------------------------------------------

TEST_CASE("a score's text is canonical, whether it is parsed or given") {
  const Pattern parsed = Pattern::parse("causal with score(\"s*2+t[h]\"), softcap(30)");
  CHECK(parsed.text() == "causal with softcap(30), score(\"s * 2 + t[h]\")");
  CHECK(parsed == Pattern(causal()).with({.softcap = 30, .score = "s * 2+t[ h ]"}));
  CHECK(Pattern::parse(parsed.text()) == parsed);
  CHECK(heads({{"0", causal(), {.score = "(s)"}}, {"else", dense()}}).text() ==
        "heads(0: causal with score(\"s\"), else: dense)");
  REQUIRE(parsed.inputs().size() == 1);
  CHECK(parsed.inputs()[0].kind == InputInfo::Kind::float_tensor);
  CHECK(parsed.inputs()[0].description() == "float32 [num_heads]");
  CHECK_FALSE(parsed.inputs()[0].decides_visibility());
  const Pattern all = Pattern::parse(
      "causal with sink_logit(z), score(\"s + t[k]\"), bias(b), alibi(a), softcap(3)");
  CHECK(all.text() ==
        "causal with softcap(3), alibi(a), bias(b), score(\"s + t[k]\"), sink_logit(z)");
}

TEST_CASE("a bad score is refused at its character") {
  CHECK(pointed("causal with score(\"s + x\")").column == 23);
  CHECK(contains(pointed("causal with score(\"s + x\")").message, "unknown name 'x'"));
  CHECK(contains(refusal("causal with score(\"s\"), score(\"s\")"), "score is given twice"));
  CHECK(contains(refusal("causal with score(s)"), "score takes an expression in quotes"));
  CHECK(contains(refusal("causal with score(\"k < 3\")"), "a condition is no number"));
  CHECK(contains(refusal("causal with score(\"s\"; asm(\"trap;\")"), "unexpected character"));
  CHECK(contains(refusal("causal with score(\"s + t[k]\"), bias(t)"), "give the two different"));
  CHECK(contains(refusal("expr(\"t[k] > 0\") with score(\"s + t[k]\")"), "is used as int32"));
  CHECK(contains(refusal_of([] { Pattern(causal()).with({.score = "s +"}); }), "s +\n"));
  CHECK(contains(refusal_of([] {
                   plan_launch("causal with score(\"s + t[k]\")", {{"t", Values(kInts, {5000})}});
                 }),
                 "was given int32 values, but the pattern wants float32 [seqlen_k]"));
  CHECK(plan_launch("causal with score(\"s + t[k]\")", {{"t", Values(kFloats, {5000})}})
            .workspace_bytes == 0);
}

TEST_CASE("a plan has scores behind conditions, and beside pruning") {
  const auto plan_of = [](const std::string& text) {
    return plan::make_plan(Pattern::parse(text),
                           {.head_dim = 64, .num_heads = 8, .num_heads_kv = 2},
                           plan::Arch::parse("sm_90a"));
  };
  const plan::Plan plan = plan_of(
      "heads(0-3: expr(\"k < 9\") with score(\"s + t[h]\"), 4-7: causal with score(\"s * 2\"))");
  REQUIRE(plan.spec.expressions.size() == 3);
  CHECK_FALSE(plan.spec.expressions[0].of_scores);
  CHECK(plan.spec.expressions[2].of_scores);
  CHECK(plan.spec.builds_tiles());
  CHECK(plan.spec.has_scores());
  const plan::Plan alone = plan_of("causal with score(\"s * 2\")");
  CHECK_FALSE(alone.spec.builds_tiles());
  CHECK(alone.spec.structures[0].starts_with("With<Leaf<Causal>, Score<Score_"));
  const std::string source = codegen::emit(alone.spec);
  CHECK(contains(source, "return multiply(score, static_cast<float>(2));"));
  CHECK_FALSE(contains(source, "girih_build_tiles"));
  const plan::Plan pruned = plan_of("causal with prune(t, kv=64), score(\"s * 2\")");
  CHECK(pruned.spec.has_scores());
  CHECK(pruned.spec.structures[0] == alone.spec.structures[0]);
}

namespace {

struct Weighted : ExpressionTensors<float> {
  static constexpr int kNumTensors = 1;
  float operator()(float score, const ElementIndices& at) const {
    return add(multiply(score, 2.0f), element<1>(0, subtract(at.p, at.k)));
  }
};

}  // namespace

TEST_CASE("a kernel's score reads its tensors by the element's indices") {
  const float values[] = {0.5f, 1.5f, 2.5f};
  InputView views[2];
  TensorView view{};
  view.data = values;
  view.extents[0] = 3;
  view.strides[0] = 1;
  std::memcpy(static_cast<void*>(views), &view, sizeof(view));
  Geometry g{4, 6, 2, 0};
  g.inputs = views;
  const int numbers[] = {0};
  const ModifierChain<Score<Weighted>> chain(numbers, g);
  static_assert(With<Leaf<Causal>, Score<Weighted>, SinkLogit>::kNumNumbers == 2);
  static_assert(With<Leaf<Causal>, Score<Weighted>>::kScores);
  CHECK(chain(1.0f, {1, 3, 0}) == 2.5f);
  CHECK(chain(1.0f, {1, 2, 1}) == 3.5f);
  CHECK(chain(1.0f, {1, 5, -2}) == 2.5f);  // the nearest
  CHECK(chain(1.0f, {3, 0, 5}) == 4.5f);
}
