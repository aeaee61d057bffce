// Plans: architectures by name, what of a pattern is compiled in and what is a number of the head
// table, and every refusal with its message.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "girih/shared/atoms.cuh"
#include "plan/plan.hpp"
#include "plans.hpp"
#include "texts.hpp"

using namespace girih;
using plan::Arch;
using plan::make_plan;
using plan::Plan;
using tests::error_of;
using tests::plan_for;

namespace {

// The head table as the kernel sees it (HeadTable::Row), softcaps checked to be none and left out:
// rows of a class and as many numbers as the structure with the most has, at least one.
std::vector<std::vector<int>> rows_of(const Plan& plan) {
  int most = 1;
  for (const std::string& structure : plan.spec.structures) {
    const std::size_t numbers =
        tests::count_of(structure, "Leaf<Sink>") + 2 * tests::count_of(structure, "Leaf<Window>");
    most = std::max(most, static_cast<int>(numbers));
  }
  const int width = 2 + most;
  REQUIRE(static_cast<int>(plan.head_table.size()) == plan.spec.head_capacity * width);
  std::vector<std::vector<int>> rows;
  for (auto at = plan.head_table.begin(); at != plan.head_table.end(); at += width) {
    CHECK(at[1] == 0);
    rows.push_back({at[0]});
    rows.back().insert(rows.back().end(), at + 2, at + width);
  }
  return rows;
}

const std::string kStreaming = "causal & (sink(128) | window(left=255))";
const std::string kStreamingType = "All<Leaf<Causal>, Any<Leaf<Sink>, Leaf<Window>>>";

Problem heads_64(int num_heads, int num_heads_kv) {
  return {.head_dim = 64, .num_heads = num_heads, .num_heads_kv = num_heads_kv};
}

}  // namespace

TEST_CASE("architectures are read with their suffix") {
  const Arch plain = Arch::parse("sm_80");
  CHECK(plain.number == 80);
  CHECK(plain.suffix == "");
  CHECK(plain.name() == "sm_80");
  const Arch hopper = Arch::parse("sm_90a");
  CHECK(hopper.number == 90);
  CHECK(hopper.suffix == "a");
  CHECK(hopper.name() == "sm_90a");
  CHECK(hopper.plain().name() == "sm_90");
  CHECK(Arch::parse("sm_120f").name() == "sm_120f");
  CHECK(Arch::parse("sm_130").number == 130);  // newer than this library
}

TEST_CASE("what is no architecture is refused with an example") {
  for (const char* name : {"", "sm_", "sm_a", "90", "sm90", "SM_90", "compute_90", "sm_90b",
                           "sm_90aa", "sm_90 ", " sm_90", "sm_-90", "sm_0", "sm_99999999999"}) {
    const Error error = error_of([&] { Arch::parse(name); });
    CHECK(error.code() == Errc::invalid_argument);
    CHECK(error.what() ==
          fmt::format("'{}' is not a GPU architecture: write sm_80, sm_90 or sm_90a", name));
  }
  const Error old = error_of([] { Arch::parse("sm_75"); });
  CHECK(old.code() == Errc::unsupported);
  CHECK(old.what() == std::string("sm_75 is not supported: the kernels need sm_80 or newer"));
}

TEST_CASE("the portable kernel is for the plain architecture, Hopper's for its own features") {
  const auto check = [](const char* asked, const TileConfig& tile, const char* arch,
                        plan::KernelFamily family) {
    const Plan plan = plan_for("causal", {}, asked, tile);
    CHECK(plan.spec.arch.name() == arch);
    CHECK(plan.spec.family == family);
  };
  for (const char* asked : {"sm_90", "sm_90a"}) {
    check(asked, {}, "sm_90a", plan::KernelFamily::fwd_sm90);
    check(asked, {.portable = true}, "sm_90", plan::KernelFamily::fwd_sm80);
    check(asked, {.num_warps = 4}, "sm_90", plan::KernelFamily::fwd_sm80);  // Hopper's has 12 or 16
  }
  check("sm_100a", {}, "sm_100", plan::KernelFamily::fwd_sm80);
  check("sm_89", {.portable = true}, "sm_89", plan::KernelFamily::fwd_sm80);
}

TEST_CASE("structure and numbers follow the mask's text") {
  const auto structure = [](const char* text) { return plan::structure_of(Mask::parse(text)); };
  const auto numbers = [](const char* text) {
    return plan::numbers_of(Mask::parse(text), Pattern::parse(text).inputs());
  };

  CHECK(structure("dense") == "Leaf<Dense>");
  CHECK(numbers("dense").empty());
  CHECK(numbers("window(right=3)") == std::vector<int>{-1, 3});

  const char* nested = "!(sink(4) | causal & window(left=9, right=2)) & (sink(5) | !causal)";
  CHECK(structure(nested) ==
        "All<Not<Any<Leaf<Sink>, All<Leaf<Causal>, Leaf<Window>>>>, "
        "Any<Leaf<Sink>, Not<Leaf<Causal>>>>");
  CHECK(numbers(nested) == std::vector<int>{4, 9, 2, 5});

  CHECK(structure("causal & sink(1) & sink(2)") == "All<Leaf<Causal>, Leaf<Sink>, Leaf<Sink>>");
  CHECK(numbers("causal & sink(1) & sink(2)") == std::vector<int>{1, 2});
  // Order is meaning: numbers are handed over in it.
  CHECK(structure("sink(1) & causal") != structure("causal & sink(1)"));
}

TEST_CASE("a number from an input is handed over as the input's place, and its structure says so") {
  const auto structure = [](const char* text) { return plan::structure_of(Mask::parse(text)); };
  CHECK(structure("window(left=$w)") == "Leaf<Window, 0x1>");
  CHECK(structure("window(left=3, right=$w)") == "Leaf<Window, 0x2>");
  CHECK(structure("!window(left=$w, right=$v)") == "Not<Leaf<Window, 0x3>>");
  CHECK(structure("block_window(left=1, block=$b)") == "Leaf<BlockWindow, 0x4>");
  CHECK(structure("causal & (sink($n) | blocks(m, q=128, kv=64))") ==
        "All<Leaf<Causal>, Any<Leaf<Sink, 0x1>, Leaf<Blocks>>>");

  // Places start at 0, also where an atom could not take that as its value.
  const Pattern pattern = Pattern::parse(
      "heads(0: chunk($c) | window(left=3, right=$w), "
      "else: blocks(m, q=128, kv=64) & sink(5) & window(left=$w, right=$c))");
  const auto numbers = [&](std::size_t c) {
    return plan::numbers_of(pattern.classes()[c].mask, pattern.inputs());
  };
  CHECK(numbers(0) == std::vector<int>{0, 3, 1});
  CHECK(numbers(1) == std::vector<int>{2, 128, 64, 5, 1, 0});
  const Plan planned = plan_for(pattern.text(), heads_64(4, 4));
  CHECK(planned.spec.num_inputs == 3);
  CHECK(planned.spec.builds_lists);
  // Rows of the head table: class, soft cap, numbers.
  const std::vector<int>& table = planned.head_table;
  REQUIRE(table.size() == 32 * 8);
  CHECK(std::vector(table.begin(), table.begin() + 8) == std::vector{1, 0, 0, 3, 1, 0, 0, 0});
  CHECK(std::vector(table.begin() + 8, table.begin() + 16) ==
        std::vector{0, 0, 2, 128, 64, 5, 1, 0});
}

TEST_CASE("names and sizes of inputs are no part of a kernel, unless its tile goes with them") {
  const auto source = [](const char* pattern) {
    return codegen::emit(plan_for(pattern, heads_64(4, 4)).spec);
  };
  CHECK(source("blocks(m, q=128, kv=128) & sink($n)") ==
        source("blocks(n, q=128, kv=128) & sink($sink)"));
  CHECK(source("causal & sink($n)") != source("causal & sink(3)"));
  CHECK(source("sink($n) | window(left=$n)") != source("sink($n) | window(left=$m)"));
  const auto tile_for = [](const char* pattern) {
    const TileConfig tile = plan_for(pattern, heads_64(4, 4), "sm_80").spec.tile;
    return std::pair(tile.block_m, tile.block_n);
  };
  // A tile lies within a block down to 64 rows and 32 keys.
  const auto [rows, keys] = tile_for("blocks(m, q=128, kv=128)");
  CHECK(tile_for("blocks(m, q=64, kv=32)") == std::pair(64, 32));
  CHECK(tile_for("blocks(m, q=16, kv=16)") == std::pair(64, 32));
  CHECK(tile_for("blocks(m, q=128, kv=32) | blocks(n, q=32, kv=128)") == std::pair(64, 32));
  CHECK(rows == 128);
  CHECK(keys >= 32);
}

TEST_CASE("every number of an atom is handed over in the order of its parameters") {
  const auto numbers = [](const char* text) { return plan::numbers_of(Mask::parse(text), {}); };
  CHECK(numbers("queries(-3..4) & keys(5..6)") == std::vector<int>{-3, 4, 5, 6});
  CHECK(numbers("block_streaming(1, 2, causal=false)") == std::vector<int>{1, 2, 128, 0});
  const int automatic = kAutomatic;
  CHECK(numbers("strided(local=(4, 3), stride=8, block=64, offset=1, heads=kv)") ==
        std::vector<int>{4, 3, 8, 64, 1, 1, automatic, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  CHECK(
      numbers(
          "neighborhood(30x80, window=(5, 7), stride=2, dilation=(3, 4), causal=(true, false))") ==
      std::vector<int>{0, 30, 80, 1, 5, 7, 1, 2, 2, 1, 3, 4, 0, 1, 0});
  CHECK(numbers("strided(block=64, ranges=[(-2, 3), (inf, 9)], step=-1)") ==
        std::vector<int>{-1, -1, 0, 64, 0, 0, -1, 0, 0, 0, -2, 3, kMaxNumber, 9, 0, 0, 0, 0});
}

TEST_CASE("a soft cap is a number of the head table, and compiled in only where a head has one") {
  CHECK_FALSE(plan_for("causal", {}).spec.softcap);
  const auto softcap_of = [](const Plan& plan, std::size_t head) {
    return std::bit_cast<float>(
        plan.head_table[head * plan.head_table.size() / plan.spec.head_capacity + 1]);
  };
  const Plan all = plan_for("causal with softcap(30)", heads_64(4, 4));
  CHECK(all.spec.softcap);
  CHECK(all.spec.head_capacity == 1);
  CHECK(softcap_of(all, 0) == 30);

  const std::string some =
      "heads(0: causal with softcap(30), 1: causal, 2: dense with softcap(2.5)";
  const Plan mixed = plan_for(some + ", else: dense)", heads_64(4, 4));
  CHECK(mixed.spec.softcap);
  CHECK(mixed.spec.structures.size() == 2);  // a cap is no structure
  CHECK(softcap_of(mixed, 0) == 30);
  CHECK(softcap_of(mixed, 1) == 0);
  CHECK(softcap_of(mixed, 2) == 2.5f);
  CHECK(softcap_of(mixed, 3) == 0);
  // Other caps, the same kernel; a rank without capped heads, another one.
  const Plan other = plan_for("heads(0-2: dense with softcap(1), else: causal)", heads_64(4, 4));
  CHECK(codegen::emit(other.spec) == codegen::emit(mixed.spec));
  Problem rank = heads_64(1, 1);
  rank.num_heads_total = 4;
  rank.head_offset = 1;
  CHECK_FALSE(plan_for(some + ", else: dense)", rank).spec.softcap);
}

TEST_CASE("modifiers stand beside a class's structure, and their inputs behind its numbers") {
  const Plan plan = plan_for(
      "heads(0: sink(7) with alibi(s), 1: sink(8) with bias(b), sink_logit(z), else: sink(9))",
      heads_64(4, 4));
  CHECK(plan.spec.structures == std::vector<std::string>{"Leaf<Sink>", "With<Leaf<Sink>, Alibi>",
                                                         "With<Leaf<Sink>, Bias, SinkLogit>"});
  const std::size_t width =
      plan.head_table.size() / static_cast<std::size_t>(plan.spec.head_capacity);
  CHECK(width == 2 + 3);  // the mask's number and two inputs
  const auto row = [&](std::size_t head) {
    const auto first = plan.head_table.begin() + static_cast<std::ptrdiff_t>(head * width);
    return std::vector<int>(first, first + static_cast<std::ptrdiff_t>(width));
  };
  CHECK(row(0) == std::vector<int>{1, 0, 7, 0, 0});
  CHECK(row(1) == std::vector<int>{2, 0, 8, 1, 2});
  CHECK(row(2) == std::vector<int>{0, 0, 9, 0, 0});
  CHECK_FALSE(plan.spec.builds_lists);
  CHECK_FALSE(plan.spec.builds_numbers);
  CHECK(plan_for("causal & columns(c)", heads_64(4, 4)).spec.builds_numbers);
  // What they are called and hold chooses no tile: rows of the mask see few keys all the same.
  const std::string local = "causal & window(left=255)";
  CHECK(plan_for(local + " with sink_logit(z)", heads_64(4, 4)).traits.keys ==
        plan_for(local, heads_64(4, 4)).traits.keys);
}

TEST_CASE("a rank's head table is the model's from its first head on") {
  const std::string pattern = "heads(0-3: causal, 4-5: sink(7), else: sink(9))";
  Problem rank = heads_64(4, 2);
  rank.head_offset = 4;
  rank.num_heads_total = 8;
  const Plan plan = plan_for(pattern, rank);
  CHECK(plan.spec.structures == std::vector<std::string>{"Leaf<Sink>"});
  const auto rows = rows_of(plan);
  for (const int head : {0, 1, 2, 3}) CHECK(rows[head][1] == (head < 2 ? 7 : 9));

  for (const auto& [offset, total] : {std::pair(5, 8), {-2, 8}, {2, 4}, {0, 2}, {1, 8}, {0, 9}}) {
    rank.head_offset = offset;
    rank.num_heads_total = total;
    const Error error = error_of([&] { plan_for("causal", rank); });
    CHECK(error.code() == Errc::invalid_argument);
    CHECK(std::string(error.what()).find(fmt::format("head_offset {}", offset)) == 0);
  }
  rank.num_heads_total = 1 << 20;
  CHECK(std::string(error_of([&] { plan_for("causal", rank); }).what()) ==
        "1048576 heads are more than 65536");
}

TEST_CASE("head maps with the same set of structures share one kernel") {
  const std::vector<std::string> maps{
      "heads(0-15: causal, else: " + kStreaming + ")",
      "heads(0+3+7-9: causal & (sink(64) | window(left=1023)), else: causal)",
      "heads(0-7: causal & (sink(4) | window(left=7)), 8: causal, "
      "else: causal & (sink(0) | window(left=31, right=2)))"};
  std::vector<Plan> plans;
  for (const std::string& map : maps) plans.push_back(plan_for(map, heads_64(32, 8)));

  for (const Plan& plan : plans) {
    CHECK(plan.spec.structures == std::vector<std::string>{kStreamingType, "Leaf<Causal>"});
    CHECK(plan.spec.head_capacity == 32);
    CHECK(plan.spec.tile == plans[0].spec.tile);
    CHECK(plan.spec.min_ctas_per_sm == plans[0].spec.min_ctas_per_sm);
    CHECK(codegen::emit(plan.spec) == codegen::emit(plans[0].spec));
    CHECK(plan.threads == plans[0].threads);
    CHECK(plan.shared_bytes == plans[0].shared_bytes);
  }
  CHECK(plans[0].head_table != plans[1].head_table);
  CHECK(plans[0].head_table != plans[2].head_table);
  CHECK(plans[1].head_table != plans[2].head_table);

  // Nor does the number of heads matter while the table holds them.
  const Plan fewer = plan_for("heads(0: causal, else: " + kStreaming + ")", heads_64(20, 4));
  CHECK(codegen::emit(fewer.spec) == codegen::emit(plans[0].spec));
}

TEST_CASE("a head table's row is the head's class and the numbers of its mask") {
  const Plan plan = plan_for(
      "heads(0-1: causal, 2: " + kStreaming + ", else: causal & (sink(7) | window(left=8)))",
      heads_64(4, 1));
  const auto rows = rows_of(plan);
  REQUIRE(rows.size() == 32);
  const std::vector<int> causal{1, 0, 0, 0};  // structures are sorted: All<... before Leaf<...
  CHECK(rows[0] == causal);
  CHECK(rows[1] == causal);
  CHECK(rows[2] == std::vector<int>{0, 128, 255, -1});
  CHECK(rows[3] == std::vector<int>{0, 7, 8, -1});
  CHECK(rows[31] == causal);  // no such head: any row that is valid
}

TEST_CASE("the head table grows by powers of two from 32 rows") {
  const std::string map = "heads(0: causal, else: sink(4))";
  for (const auto& [num_heads, capacity] : {std::pair{2, 32}, std::pair{32, 32}, std::pair{33, 64},
                                            std::pair{64, 64}, std::pair{65, 128}}) {
    CAPTURE(num_heads);
    const Plan plan = plan_for(map, heads_64(num_heads, 1));
    CHECK(plan.spec.head_capacity == capacity);
    CHECK(static_cast<int>(rows_of(plan).size()) == capacity);
  }
}

TEST_CASE("one row serves a pattern without heads, whatever their number") {
  const Plan plan = plan_for(kStreaming, heads_64(8, 4));
  CHECK(plan.spec.head_capacity == 1);
  CHECK(plan.spec.structures == std::vector<std::string>{kStreamingType});
  CHECK(rows_of(plan) == std::vector<std::vector<int>>{{0, 128, 255, -1}});
}

TEST_CASE("a per-head pattern has a table even where all heads are alike") {
  for (const std::string& pattern : {"heads(else: " + kStreaming + ")",
                                     "heads(0-3: " + kStreaming + ", 4-7: " + kStreaming + ")",
                                     "kv_heads(0: " + kStreaming + ", else: " + kStreaming + ")"}) {
    CAPTURE(pattern);
    const Plan plan = plan_for(pattern, heads_64(8, 4));
    CHECK(plan.spec.head_capacity == 32);
    CHECK(plan.spec.structures == std::vector<std::string>{kStreamingType});
    CHECK(rows_of(plan)[7] == std::vector<int>{0, 128, 255, -1});
  }
  // The same structure with other numbers needs a row for each head.
  const Plan differing = plan_for("heads(0-3: sink(4), 4-7: sink(5))", heads_64(8, 4));
  CHECK(differing.spec.head_capacity == 32);
  CHECK(differing.spec.structures == std::vector<std::string>{"Leaf<Sink>"});
  CHECK(rows_of(differing)[3] == std::vector<int>{0, 4});
  CHECK(rows_of(differing)[4] == std::vector<int>{0, 5});
}

TEST_CASE("attention in float32, a type of merged results, is refused with its other reasons") {
  const Error error = error_of(
      [] { make_plan(causal(), {.dtype = DType::float32, .head_dim = 20}, Arch::parse("sm_90")); });
  CHECK(error.code() == Errc::unsupported);
  CHECK(error.what() ==
        std::string("dtype fp32 is not supported: fp16 and bf16 are; head_dim 20 is not supported "
                    "on sm_90: multiples of 16 from 16 to 256 are; pad to 32"));
}

TEST_CASE("classes that no head has are left out") {
  const Plan one = plan_for("heads(0-3: causal, else: window(left=5))", heads_64(4, 4));
  CHECK(one.spec.structures == std::vector<std::string>{"Leaf<Causal>"});
  CHECK(rows_of(one)[3] == std::vector<int>{0, 0});

  // The unused class has the most numbers; the kernel's rows are narrower.
  const Plan two =
      plan_for("heads(0-1: causal, 2-3: sink(9), else: window(left=5))", heads_64(4, 4));
  CHECK(two.spec.structures == std::vector<std::string>{"Leaf<Causal>", "Leaf<Sink>"});
  const auto rows = rows_of(two);
  CHECK(rows[1] == std::vector<int>{0, 0});
  CHECK(rows[2] == std::vector<int>{1, 9});
}

TEST_CASE("kv_heads give every query head of a group the same row") {
  const auto rows = rows_of(plan_for("kv_heads(0: causal, else: sink(6))", heads_64(8, 2)));
  for (int head = 0; head < 8; ++head) {
    CAPTURE(head);
    CHECK(rows[head] == (head < 4 ? std::vector<int>{0, 0} : std::vector<int>{1, 6}));
  }
}

TEST_CASE("a head that no set covers is refused by plan") {
  const Error error = error_of([] { plan_for("heads(0-3: causal, 5: sink(4))", heads_64(6, 1)); });
  CHECK(error.code() == Errc::invalid_argument);
  CHECK(error.what() ==
        std::string("head 4 of 6 is covered by no set: name it, or add 'else: MASK'"));
}

TEST_CASE("problems that make no sense are refused with their numbers") {
  struct Case {
    Problem problem;
    std::string message;
  };
  const std::string group = ": every key/value head serves the same number of query heads";
  for (const Case& bad : std::vector<Case>{
           {{.head_dim = 0}, "head_dim 0 must be positive"},
           {{.head_dim = -64}, "head_dim -64 must be positive"},
           {{.num_heads = 0}, "num_heads 0 and num_heads_kv 1 must be positive"},
           {{.num_heads = 4, .num_heads_kv = 0}, "num_heads 4 and num_heads_kv 0 must be positive"},
           {{.num_heads = 6, .num_heads_kv = 4},
            "num_heads 6 is not a multiple of num_heads_kv 4" + group},
           {{.num_heads = 2, .num_heads_kv = 4},
            "num_heads 2 is not a multiple of num_heads_kv 4" + group}}) {
    const Error error = error_of([&] { plan_for("causal", bad.problem); });
    CHECK(error.code() == Errc::invalid_argument);
    CHECK(error.what() == bad.message);
  }
}

TEST_CASE("head_dims without a kernel are refused with the next that has one") {
  struct Case {
    int head_dim;
    const char* remedy;
  };
  for (const Case& bad : {Case{1, "; pad to 16"}, Case{17, "; pad to 32"},
                          Case{250, "; pad to 256"}, Case{512, ""}}) {
    const auto expected = [&](const char* name) {
      return fmt::format("{} {} is not supported on sm_90a: multiples of 16 from 16 to 256 are{}",
                         name, bad.head_dim, bad.remedy);
    };
    const Error error = error_of([&] { plan_for("causal", {.head_dim = bad.head_dim}, "sm_90a"); });
    CHECK(error.code() == Errc::unsupported);
    CHECK(error.what() == expected("head_dim"));
    const Error error_v = error_of(
        [&] { plan_for("causal", {.head_dim = 64, .head_dim_v = bad.head_dim}, "sm_90a"); });
    CHECK(error_v.what() == expected("head_dim_v"));
  }
}

TEST_CASE("head tables beyond a kernel's parameters are refused") {
  const std::string map = "heads(0: causal, else: " + kStreaming + ")";
  const Plan most = plan_for(map, heads_64(1024, 8));
  CHECK(most.head_table.size() == 5 * 1024);

  const Error error = error_of([&] { plan_for(map, heads_64(2048, 8)); });
  CHECK(error.code() == Errc::unsupported);
  const std::string message = error.what();
  CHECK(message.starts_with("2048 heads with up to 3 numbers each take "));
  CHECK(
      message.ends_with(" bytes of kernel parameters, more than 32764: split the heads over "
                        "several launches"));
  // The same mask for all of them takes one row.
  CHECK(plan_for(kStreaming, heads_64(2048, 8)).spec.head_capacity == 1);
}

TEST_CASE(
    "scores that would keep the compiler for minutes are refused, whatever heads share them") {
  const auto score = [](int first, int count) {
    std::string text;
    for (int i = first; i < first + count; ++i) {
      text += fmt::format("{}tanh(s * {}.5)", text.empty() ? "" : " + ", i);
    }
    return fmt::format("causal with score(\"{}\")", text);
  };
  const Problem problem{.head_dim = 64, .num_heads = 4, .num_heads_kv = 4};
  CHECK_NOTHROW(plan_for(score(0, 8), problem));
  const Error error = error_of([&] { plan_for(score(0, 9), problem); });
  CHECK(error.code() == Errc::unsupported);
  const std::string message = error.what();
  CHECK(
      message.starts_with("score expressions of cost 413 are not supported in a kernel: the "
                          "limit is 400"));
  CHECK(message.ends_with("give heads with different scores or masks launches of their own"));
  // The same score counts once for each form of mask, and one of heads that are elsewhere not at
  // all.
  const auto heads = [&](const std::string& a, const std::string& b) {
    return fmt::format("heads(0-3: {}, else: {})", a, b);
  };
  Problem all = problem;
  all.num_heads = all.num_heads_kv = 8;
  CHECK_NOTHROW(plan_for(heads(score(0, 8), score(0, 8)), all));
  CHECK(std::string(error_of([&] { plan_for(heads(score(0, 5), score(5, 5)), all); }).what())
            .find("cost 458") != std::string::npos);
  const std::string dense = "dense" + score(0, 5).substr(std::string("causal").size());
  CHECK(std::string(error_of([&] { plan_for(heads(score(0, 5), dense), all); }).what())
            .find("cost 458") != std::string::npos);
  Problem first = problem;
  first.num_heads_total = 8;
  CHECK_NOTHROW(plan_for(heads(score(0, 8), score(8, 8)), first));
}
