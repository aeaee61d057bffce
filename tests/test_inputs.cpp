// Run-time inputs of a launch: what a kernel is handed for each form, where bits go in the
// workspace, and every refusal.
#include <doctest/doctest.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "runtime/inputs.hpp"

using namespace girih;
using runtime::InputExtents;
using runtime::InputPlan;

namespace {

// Device memory that is never touched.
template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
void* const kWorkspace = at<void>(1 << 20);
constexpr const float* kNoFloats = nullptr;
constexpr const std::int32_t* kNoIntegers = nullptr;

constexpr InputExtents kExtents{
    .num_heads = 8, .num_heads_kv = 2, .batch = 3, .seqlen_q = 1000, .seqlen_k = 2000};

// 128 x 64: 8 rows of 32 blocks cover the sequences, one word a row.
const std::string kPattern = "causal & blocks(m, q=128, kv=64)";

InputPlan plan_for(const std::string& pattern, const std::vector<Input>& given,
                   const InputExtents& extents = kExtents, void* workspace = kWorkspace) {
  return runtime::plan_inputs(Pattern::parse(pattern).inputs(), given, extents, workspace);
}

template <class Data>
InputPlan plan_with(const Data& data, const InputExtents& extents = kExtents) {
  return plan_for(kPattern, {{"m", data}}, extents);
}

std::string refusal_of(const std::string& pattern, const std::vector<Input>& given,
                       const InputExtents& extents = kExtents) {
  try {
    plan_for(pattern, given, extents);
  } catch (const Error& error) {
    CHECK(error.code() == Errc::invalid_argument);
    return error.what();
  }
  return "(accepted)";
}

template <class Data>
std::string refusal(const Data& data, const InputExtents& extents = kExtents) {
  return refusal_of(kPattern, {{"m", data}}, extents);
}

BlockList list() {
  return {.kv_block_indptr = at<std::int32_t>(0x1000),
          .kv_block_indices = at<std::int32_t>(0x2000),
          .num_indices = 77,
          .batch = 3,
          .heads = 8,
          .num_q_blocks = 8,
          .num_kv_blocks = 32};
}

BlockTable table() {
  return {.kv_num_blocks = at<std::int32_t>(0x1000),
          .kv_block_indices = at<std::int32_t>(0x2000),
          .row_capacity = 5,
          .batch = 3,
          .heads = 8,
          .num_q_blocks = 8,
          .num_kv_blocks = 32};
}

BlockMask mask() {
  return {.data = at<void>(0x1001), .batch = 3, .heads = 8, .num_q_blocks = 8, .num_kv_blocks = 32};
}

BlockBits bits() {
  return {.data = at<std::uint32_t>(0x1004),
          .batch = 3,
          .heads = 8,
          .num_q_blocks = 8,
          .num_kv_blocks = 32};
}

HeadNumbers numbers() { return {.data = at<std::int32_t>(0x1000), .batch = 3, .heads = 8}; }

TokenIndices indices() {
  return {{.data = at<std::int32_t>(0x1000), .batch = 3, .heads = 8, .num_tokens = 1000},
          {.data = at<std::int32_t>(0x2004), .heads = 2, .num_tokens = 2048}};
}

SlashLists slashes() {
  return {.vertical = at<std::int32_t>(0x1000),
          .slash = at<std::int32_t>(0x2004),
          .num_vertical = 30,
          .num_slash = 800,
          .batch = 3,
          .heads = 8};
}

InputPlan plan_indices(const TokenIndices& given, const InputExtents& extents = kExtents) {
  return plan_for("causal & segments(d)", {{"d", given}}, extents);
}

std::string refusal_of_indices(const TokenIndices& given, const InputExtents& extents = kExtents) {
  return refusal_of("causal & segments(d)", {{"d", given}}, extents);
}

template <class Data, class Change>
Data changed(Data data, Change&& change) {
  change(data);
  return data;
}

// The strides of a view count words.
void check_view(const InputView& view, const void* data, std::int64_t batch_stride,
                std::int64_t head_stride, int row_stride, int heads_per_plane) {
  CHECK(view.data == data);
  CHECK(view.batch_stride == batch_stride);
  CHECK(view.head_stride == head_stride);
  CHECK(view.row_stride == row_stride);
  CHECK(view.heads_per_plane == heads_per_plane);
}

char* in_workspace(std::size_t offset) { return static_cast<char*>(kWorkspace) + offset; }

}  // namespace

namespace {

InputPlan plan_values(const std::string& modifier, const Values& given) {
  return plan_for("causal with " + modifier, {{"v", given}});
}
std::string refusal_of_values(const std::string& modifier, const Values& given) {
  return refusal_of("causal with " + modifier, {{"v", given}});
}

ColumnIntervals columns() {
  return {.start = at<std::int32_t>(0x1000),
          .end = at<std::int32_t>(0x2000),
          .batch = 3,
          .heads = 2,
          .num_keys = 2048};
}

}  // namespace

// --- What a kernel is handed ---------------------------------------------------------------------

TEST_CASE("bits are read where they lie and need no workspace") {
  const InputPlan plan = plan_with(bits());
  CHECK(plan.lists.size() == 0);
  CHECK(plan.workspace_bytes == 0);
  check_view(plan.views[0], at<void>(0x1004), 64, 8, 1, 1);

  const auto spread = changed(bits(), [](BlockBits& b) {
    b.batch_stride = 1000;
    b.head_stride = 100;
    b.row_stride = 7;
  });
  check_view(plan_with(spread).views[0], at<void>(0x1004), 1000, 100, 7, 1);

  // A row of 33 blocks takes two words; more blocks than the sequences have are fine.
  const auto wide = changed(bits(), [](BlockBits& b) {
    b.num_q_blocks = 10;
    b.num_kv_blocks = 33;
  });
  check_view(plan_with(wide).views[0], at<void>(0x1004), 8 * 10 * 2, 10 * 2, 2, 1);
}

TEST_CASE("planes are shared by key/value heads, by all heads and by sequences") {
  const auto with = [](int batch, int heads) {
    return plan_with(changed(bits(),
                             [&](BlockBits& b) {
                               b.batch = batch;
                               b.heads = heads;
                             }))
        .views[0];
  };
  check_view(with(3, 2), at<void>(0x1004), 16, 8, 1, 4);
  check_view(with(3, 1), at<void>(0x1004), 8, 8, 1, 8);
  check_view(with(1, 8), at<void>(0x1004), 0, 8, 1, 1);
  // Of three sequences, the last; of eight heads in groups of four, the sixth.
  const InputView view = with(3, 2);
  CHECK(view.plane(2, 5) == view.data + 2 * 16 + 8);
  CHECK(with(1, 1).plane(2, 5) == view.data);
}

TEST_CASE("strides of a dimension that is shared are not stepped over") {
  const auto one_batch = changed(bits(), [](BlockBits& b) {
    b.batch = 1;
    b.batch_stride = 12345;
    b.head_stride = 100;
    b.row_stride = 7;
  });
  CHECK(plan_with(one_batch).views[0].batch_stride == 0);
}

TEST_CASE("lists are built behind the counts of what was ignored") {
  const InputPlan plan = plan_with(list());
  CHECK(plan.lists.size() == 1);
  CHECK(plan.lists[0].input == 0);
  check_view(plan.views[0], in_workspace(256), 64, 8, 1, 1);
  CHECK(plan.workspace_bytes == 256 + 3 * 8 * 8 * sizeof(std::uint32_t));

  const BuildListsParams& build = plan.lists[0].params;
  CHECK(build.indptr == at<int>(0x1000));
  CHECK(build.indices == at<int>(0x2000));
  CHECK(build.counts == nullptr);
  CHECK(build.mask == nullptr);
  CHECK(build.num_indices == 77);
  CHECK(build.plane_stride == 0);
  CHECK(build.planes_per_batch == 8);
  CHECK(build.num_planes == 24);
  CHECK(build.num_rows == 8);
  CHECK(build.num_columns == 32);
  CHECK(build.words_per_row == 1);
  CHECK(static_cast<const void*>(build.bits) == in_workspace(256));
  CHECK(build.num_ignored == nullptr);

  const auto by_plane = changed(list(), [](BlockList& l) { l.plane_stride = 9; });
  CHECK(plan_with(by_plane).lists[0].params.plane_stride == 9);
}

TEST_CASE("tables are built from their counts and capacity") {
  const InputPlan plan = plan_with(changed(table(), [](BlockTable& t) {
    t.batch = 1;
    t.heads = 2;
    t.num_kv_blocks = 65;
  }));
  const BuildListsParams& build = plan.lists[0].params;
  CHECK(build.indptr == nullptr);
  CHECK(build.mask == nullptr);
  CHECK(build.counts == at<int>(0x1000));
  CHECK(build.indices == at<int>(0x2000));
  CHECK(build.row_capacity == 5);
  CHECK(build.num_planes == 2);
  CHECK(build.words_per_row == 3);
  check_view(plan.views[0], in_workspace(256), 0, 8 * 3, 3, 4);
  CHECK(plan.workspace_bytes == 256 + 256);  // 192 bytes of bits, in whole steps of 256
}

TEST_CASE("byte masks are built from their strides, contiguous where all are 0") {
  const InputPlan plan = plan_with(mask());
  const BuildListsParams& build = plan.lists[0].params;
  CHECK(static_cast<const void*>(build.mask) == at<void>(0x1001));
  CHECK(build.indptr == nullptr);
  CHECK(build.counts == nullptr);
  CHECK(build.batch_stride == 8 * 8 * 32);
  CHECK(build.plane_stride == 8 * 32);
  CHECK(build.row_stride == 32);
  CHECK(build.planes_per_batch == 8);
  CHECK(build.num_planes == 24);

  // A plane that lies once for every head, as an expanded tensor has it.
  const auto expanded = changed(mask(), [](BlockMask& m) {
    m.batch_stride = 900;
    m.row_stride = 40;
  });
  const InputPlan strided = plan_with(expanded);
  CHECK(strided.lists[0].params.batch_stride == 900);
  CHECK(strided.lists[0].params.plane_stride == 0);
  CHECK(strided.lists[0].params.row_stride == 40);
  check_view(strided.views[0], in_workspace(256), 64, 8, 1, 1);  // the bits are contiguous
}

TEST_CASE("numbers are one for all or one for each sequence and head") {
  const auto with = [](int batch, int heads) {
    return plan_for("sink($n)", {{"n", changed(numbers(), [&](HeadNumbers& n) {
                                    n.batch = batch;
                                    n.heads = heads;
                                  })}});
  };
  CHECK(with(3, 8).workspace_bytes == 0);
  check_view(with(3, 8).views[0], at<void>(0x1000), 8, 1, 0, 1);
  check_view(with(3, 2).views[0], at<void>(0x1000), 2, 1, 0, 4);
  check_view(with(1, 8).views[0], at<void>(0x1000), 0, 1, 0, 1);
  const InputView shared = with(1, 1).views[0];
  CHECK(shared.plane(2, 7) == shared.data);
}

TEST_CASE("inputs stand in the pattern's order, whatever order they are given in") {
  const std::string pattern =
      "sink($n) | blocks(a, q=128, kv=64) | blocks(b, q=128, kv=64) | blocks(c, q=128, kv=64)";
  const InputPlan plan =
      plan_for(pattern, {{"c", mask()}, {"b", bits()}, {"a", list()}, {"n", numbers()}});
  CHECK(plan.views[0].data == at<std::uint32_t>(0x1000));
  CHECK(plan.views[2].data == at<std::uint32_t>(0x1004));
  CHECK(plan.lists.size() == 2);
  CHECK(plan.lists[0].input == 1);
  CHECK(plan.lists[1].input == 3);
  // 768 bytes of bits each.
  check_view(plan.views[1], in_workspace(256), 64, 8, 1, 1);
  check_view(plan.views[3], in_workspace(256 + 768), 64, 8, 1, 1);
  CHECK(plan.workspace_bytes == 256 + 2 * 768);
}

TEST_CASE("the size of a workspace is known before there is one") {
  CHECK(plan_for(kPattern, {{"m", list()}}, kExtents, nullptr).workspace_bytes ==
        plan_with(list()).workspace_bytes);
  CHECK(plan_for("causal", {}).workspace_bytes == 0);
}

TEST_CASE("a launch without elements needs no data and builds nothing") {
  for (const auto& empty : {changed(kExtents, [](InputExtents& e) { e.batch = 0; }),
                            changed(kExtents, [](InputExtents& e) { e.seqlen_q = 0; }),
                            changed(kExtents, [](InputExtents& e) { e.seqlen_k = 0; })}) {
    const BlockList nothing{.num_q_blocks = 8, .num_kv_blocks = 32};
    const InputPlan plan = plan_with(nothing, empty);
    CHECK(plan.lists.size() == 0);
    CHECK(plan.workspace_bytes == 0);
    CHECK_NOTHROW(plan_for("columns(c)", {{"c", ColumnIntervals{.num_keys = 2000}}}, empty));
    CHECK_NOTHROW(plan_for("causal with bias(v)", {{"v", Values(kNoFloats, {2000})}}, empty));
    CHECK_NOTHROW(plan_for("expr(\"t[k] < q\")", {{"t", Values(kNoIntegers, {2000})}}, empty));
  }
}

TEST_CASE("a launch without keys reads what belongs to rows and heads, one without rows nothing") {
  const struct {
    const char* pattern;
    Input given;
  } inputs[] = {
      {"sink($v)", {"v", HeadNumbers{}}},
      {"causal with alibi(v)", {"v", Values(kNoFloats, {8})}},
      {"causal with sink_logit(v)", {"v", Values(kNoFloats, {8})}},
      {"causal with score(\"s + v[h]\")", {"v", Values(kNoFloats, {8})}},
      {"causal with prune(v, kv=64)", {"v", Thresholds{.num_columns = 8, .kv_block_size = 64}}}};
  for (const auto& [pattern, given] : inputs) {
    CAPTURE(pattern);
    InputExtents no_keys = kExtents, no_rows = kExtents, no_batch = kExtents;
    no_keys.seqlen_k = no_rows.seqlen_q = no_batch.batch = 0;
    CHECK(refusal_of(pattern, {given}, no_keys) == "the input 'v' has no data");
    CHECK(refusal_of(pattern, {given}, no_rows) == "(accepted)");
    CHECK(refusal_of(pattern, {given}, no_batch) == "(accepted)");
  }
  InputExtents no_keys = kExtents;
  no_keys.seqlen_k = 0;
  CHECK(refusal_of("causal with score(\"s + v[k]\")", {{"v", Values(at<float>(0x1000), {0})}},
                   no_keys) ==
        "the input 'v' has 0 elements in dimension 0: it must have at least one, which is read "
        "even where no key exists");
}

// --- Refusals ------------------------------------------------------------------------------------

TEST_CASE("an input that is missing is refused with what the pattern wants") {
  CHECK(refusal_of(kPattern, {}) ==
        "the input 'm' is missing: the pattern wants blocks [batch, heads, ceil(seqlen_q / 128), "
        "ceil(seqlen_k / 64)]");
  CHECK(refusal_of("sink($n) | window(left=$w)", {{"n", numbers()}}) ==
        "the input 'w' is missing: the pattern wants int32 [batch, heads]");
}

TEST_CASE("an input that the pattern does not know is refused with those that it has") {
  CHECK(refusal_of(kPattern + " | sink($n)", {{"m", bits()}, {"n", numbers()}, {"mask", bits()}}) ==
        "there is no input 'mask': the pattern's inputs are m, n");
  CHECK(refusal_of("causal", {{"m", bits()}}) == "there is no input 'm': the pattern has none");
}

TEST_CASE("an input that is given twice is refused") {
  CHECK(refusal_of(kPattern, {{"m", bits()}, {"m", list()}}) == "the input 'm' is given twice");
}

TEST_CASE("blocks for a number and numbers for blocks are refused") {
  CHECK(refusal(numbers()) ==
        "the input 'm' was given numbers, but the pattern wants blocks [batch, heads, "
        "ceil(seqlen_q / 128), ceil(seqlen_k / 64)]");
  const std::string wanted =
      "the input 'n' was given blocks, but the pattern wants int32 [batch, heads]";
  CHECK(refusal_of("sink($n)", {{"n", list()}}) == wanted);
  CHECK(refusal_of("sink($n)", {{"n", table()}}) == wanted);
  CHECK(refusal_of("sink($n)", {{"n", mask()}}) == wanted);
  CHECK(refusal_of("sink($n)", {{"n", bits()}}) == wanted);
}

TEST_CASE("numbers for what expressions index are refused with what they should be given as") {
  const std::string refused = refusal_of("expr(\"n[b][k] > 0\")", {{"n", numbers()}});
  CHECK(refused.starts_with("the input 'n' was given numbers, but the pattern wants int32 "));
  CHECK(refused.ends_with(": give it as Values, in Python girih.Values(tensor)"));
}

TEST_CASE("a batch that is neither 1 nor the launch's is refused") {
  const std::string expected =
      "has batch 2: it must be 1, for all to share it, or the number of sequences, 3";
  CHECK(refusal(changed(list(), [](BlockList& l) { l.batch = 2; })) == "the input 'm' " + expected);
  CHECK(refusal_of("sink($n)", {{"n", changed(numbers(), [](HeadNumbers& n) { n.batch = 2; })}}) ==
        "the input 'n' " + expected);
}

TEST_CASE("heads that are neither 1 nor the launch's are refused") {
  CHECK(refusal(changed(mask(), [](BlockMask& m) { m.heads = 4; })) ==
        "the input 'm' has heads 4: it must be 1, for all to share it, 2 or 8");
  CHECK(refusal(changed(mask(), [](BlockMask& m) { m.heads = 0; })) ==
        "the input 'm' has heads 0: it must be 1, for all to share it, 2 or 8");
  const auto alike = changed(kExtents, [](InputExtents& e) { e.num_heads_kv = 8; });
  CHECK(refusal(changed(mask(), [](BlockMask& m) { m.heads = 2; }), alike) ==
        "the input 'm' has heads 2: it must be 1, for all to share it, or 8");
}

TEST_CASE("planes that do not cover the sequences are refused") {
  CHECK(refusal(changed(table(), [](BlockTable& t) { t.num_q_blocks = 7; })) ==
        "the input 'm' has num_q_blocks 7: it must be at least 8, for seqlen_q 1000 in blocks of "
        "128, and at most 536870912");
  CHECK(refusal(changed(bits(), [](BlockBits& b) { b.num_kv_blocks = 31; })) ==
        "the input 'm' has num_kv_blocks 31: it must be at least 32, for seqlen_k 2000 in blocks "
        "of 64, and at most 536870912");
  CHECK(refusal(changed(mask(), [](BlockMask& m) { m.num_kv_blocks = 536870913; })) ==
        "the input 'm' has num_kv_blocks 536870913: it must be at least 32, for seqlen_k 2000 in "
        "blocks of 64, and at most 536870912");
  CHECK(refusal(changed(list(), [](BlockList& l) { l.num_q_blocks = -1; }),
                changed(kExtents, [](InputExtents& e) { e.seqlen_q = 0; })) ==
        "the input 'm' has num_q_blocks -1: it must be at least 0, for seqlen_q 0 in blocks of "
        "128, and at most 536870912");
}

TEST_CASE("null arrays are refused by name") {
  CHECK(refusal(changed(list(), [](BlockList& l) { l.kv_block_indptr = nullptr; })) ==
        "the input 'm' has no kv_block_indptr");
  CHECK(refusal(changed(list(), [](BlockList& l) { l.kv_block_indices = nullptr; })) ==
        "the input 'm' has no kv_block_indices");
  CHECK(refusal(changed(table(), [](BlockTable& t) { t.kv_num_blocks = nullptr; })) ==
        "the input 'm' has no kv_num_blocks");
  CHECK(refusal(changed(table(), [](BlockTable& t) { t.kv_block_indices = nullptr; })) ==
        "the input 'm' has no kv_block_indices");
  CHECK(refusal(changed(mask(), [](BlockMask& m) { m.data = nullptr; })) ==
        "the input 'm' has no data");
  CHECK(refusal(changed(bits(), [](BlockBits& b) { b.data = nullptr; })) ==
        "the input 'm' has no data");
  CHECK(refusal_of("sink($n)", {{"n", HeadNumbers{}}}) == "the input 'n' has no data");
}

TEST_CASE("a list without an index needs no indices") {
  CHECK_NOTHROW(plan_with(changed(list(), [](BlockList& l) {
    l.kv_block_indices = nullptr;
    l.num_indices = 0;
  })));
  CHECK_NOTHROW(plan_with(changed(table(), [](BlockTable& t) {
    t.kv_block_indices = nullptr;
    t.row_capacity = 0;
  })));
}

TEST_CASE("misaligned arrays are refused by name") {
  const std::string where = " at 0x1002, which is not aligned to 4 bytes";
  auto* const odd = at<std::int32_t>(0x1002);
  CHECK(refusal(changed(list(), [&](BlockList& l) { l.kv_block_indptr = odd; })) ==
        "the input 'm' has its kv_block_indptr" + where);
  CHECK(refusal(changed(list(), [&](BlockList& l) { l.kv_block_indices = odd; })) ==
        "the input 'm' has its kv_block_indices" + where);
  CHECK(refusal(changed(table(), [&](BlockTable& t) { t.kv_num_blocks = odd; })) ==
        "the input 'm' has its kv_num_blocks" + where);
  CHECK(refusal(changed(table(), [&](BlockTable& t) { t.kv_block_indices = odd; })) ==
        "the input 'm' has its kv_block_indices" + where);
  CHECK(refusal(changed(bits(), [](BlockBits& b) { b.data = at<std::uint32_t>(0x1002); })) ==
        "the input 'm' has its data" + where);
  CHECK(
      refusal_of("sink($n)", {{"n", changed(numbers(), [&](HeadNumbers& n) { n.data = odd; })}}) ==
      "the input 'n' has its data" + where);
}

TEST_CASE("negative lengths and strides are refused") {
  CHECK(refusal(changed(list(), [](BlockList& l) { l.num_indices = -1; })) ==
        "the input 'm' has num_indices -1: it must be 0 or more");
  CHECK(refusal(changed(list(), [](BlockList& l) { l.plane_stride = -2; })) ==
        "the input 'm' has plane_stride -2: it must be 0 or more");
  CHECK(refusal(changed(table(), [](BlockTable& t) { t.row_capacity = -3; })) ==
        "the input 'm' has row_capacity -3: it must be 0 or more");
  CHECK(refusal(changed(mask(), [](BlockMask& m) { m.batch_stride = -4; })) ==
        "the input 'm' has batch_stride -4: it must be 0 or more");
  CHECK(refusal(changed(mask(), [](BlockMask& m) { m.head_stride = -5; })) ==
        "the input 'm' has head_stride -5: it must be 0 or more");
  CHECK(refusal(changed(bits(), [](BlockBits& b) { b.row_stride = -6; })) ==
        "the input 'm' has row_stride -6: it must be 0 or more");
}

TEST_CASE("rows of bits too far apart for an int are refused") {
  CHECK(refusal(changed(bits(), [](BlockBits& b) { b.row_stride = 1LL << 31; })) ==
        "the input 'm' has row_stride 2147483648: it must be at most 536870912");
}

TEST_CASE("planes whose bits no workspace could hold are refused") {
  CHECK(refusal(changed(mask(),
                        [](BlockMask& m) {
                          m.num_q_blocks = 1 << 29;
                          m.num_kv_blocks = 1 << 29;
                        })) ==
        "the input 'm' has 24 planes of 536870912 x 536870912 blocks: their bits would take more "
        "than 4398046511104 bytes of workspace");
}

// --- Indices of tokens ---------------------------------------------------------------------------

TEST_CASE(
    "indices are laid out in the workspace, a plane for each sequence and head that differs") {
  const InputPlan plan = plan_indices(indices());
  REQUIRE(plan.numbers.size() == 1);
  CHECK(plan.lists.size() == 0);
  const BuildNumbersParams& build = plan.numbers[0].params;
  CHECK(build.num_sides == 2);
  CHECK(build.num_planes == 3 * 8);
  CHECK(build.planes_per_batch == 8);
  CHECK(build.num_spans == 2);  // of 1024 tokens, for 2000
  CHECK(build.words_per_span == TokenNumbers::kIndexWordsPerSpan);
  CHECK(build.num_row_blocks == 32);  // of 32 rows, for 1000
  CHECK(build.out == reinterpret_cast<int*>(in_workspace(256)));
  CHECK(build.sources[0].numbers == at<std::int32_t>(0x1000));
  CHECK(build.sources[0].batch_stride == 8 * 1000);
  CHECK(build.sources[0].head_stride == 1000);
  CHECK(build.sources[0].planes_per_head == 1);
  CHECK(build.sources[0].num_tokens == 1000);
  CHECK(build.sources[1].numbers == at<std::int32_t>(0x2004));
  CHECK(build.sources[1].batch_stride == 0);  // all sequences share them
  CHECK(build.sources[1].head_stride == 2048);
  CHECK(build.sources[1].planes_per_head == 4);
  CHECK(build.sources[1].num_tokens == 2000);  // no sequence has more

  const std::int64_t plane = 2 * TokenNumbers::kIndexWordsPerSpan;
  check_view(plan.views[0], in_workspace(256), 8 * plane, plane, 2, 1);
  CHECK(plan.workspace_bytes >= 256 + 24 * static_cast<std::size_t>(plane) * 4);
  CHECK(plan.workspace_bytes < 512 + 24 * static_cast<std::size_t>(plane) * 4);
}

TEST_CASE("queries' indices serve the keys where both are as many") {
  constexpr InputExtents square{
      .num_heads = 8, .num_heads_kv = 2, .batch = 3, .seqlen_q = 1500, .seqlen_k = 1500};
  const TokenIndices documents{
      {.data = at<std::int32_t>(0x1000), .batch = 3, .num_tokens = 1600, .batch_stride = 5000}};
  const InputPlan plan = plan_indices(documents, square);
  REQUIRE(plan.numbers.size() == 1);
  for (const auto& source : std::span(plan.numbers[0].params.sources).first(2)) {
    CHECK(source.numbers == at<std::int32_t>(0x1000));
    CHECK(source.batch_stride == 5000);
    CHECK(source.num_tokens == 1500);
  }
  const std::int64_t plane = 2 * TokenNumbers::kIndexWordsPerSpan;
  check_view(plan.views[0], in_workspace(256), plane, plane, 2, 8);
  CHECK(refusal_of_indices(documents) ==
        "the input 'd' has indices for queries only, which serve the keys as well where seqlen_q "
        "and seqlen_k are equal, but these are 1000 and 2000: give k");
}

TEST_CASE("indices and lists share a workspace without touching one another") {
  const InputPlan plan = plan_for(kPattern + " & segments(d) & !index_gt(e)",
                                  {{"e", indices()}, {"d", indices()}, {"m", mask()}}, kExtents);
  REQUIRE(plan.lists.size() == 1);
  REQUIRE(plan.numbers.size() == 2);
  CHECK(plan.views[0].data == plan.lists[0].params.bits);
  const auto* const first = reinterpret_cast<char*>(plan.numbers[0].params.out);
  const auto* const second = reinterpret_cast<char*>(plan.numbers[1].params.out);
  CHECK(first >= reinterpret_cast<char*>(plan.lists[0].params.bits + 3 * 8 * 8));
  CHECK(second - first >= 24 * 2 * TokenNumbers::kIndexWordsPerSpan * 4);
  CHECK(reinterpret_cast<std::uintptr_t>(second) % 16 == 0);
}

TEST_CASE("bad indices are refused with what they should be") {
  using Indices = TokenIndices;
  CHECK(
      refusal_of_indices(changed(indices(), [](Indices& i) { i.q.num_tokens = 999; })) ==
      "the input 'd' has 999 numbers a row in q: it must be at least 1000, for seqlen_q 1000, and "
      "at most 536870912");
  CHECK(refusal_of_indices(changed(indices(), [](Indices& i) { i.k.num_tokens = 1999; })) ==
        "the input 'd' has 1999 numbers a row in k: it must be at least 2000, for seqlen_k 2000, "
        "and at most 536870912");
  CHECK(refusal_of_indices(changed(indices(), [](Indices& i) { i.q.data = nullptr; })) ==
        "the input 'd' has no q");
  CHECK(refusal_of_indices(changed(indices(), [](Indices& i) { i.k.data = nullptr; })) ==
        "the input 'd' has no k");
  CHECK(refusal_of_indices(changed(indices(), [](Indices& i) {
          i.k.data = at<std::int32_t>(0x2002);
        })) == "the input 'd' has its k at 0x2002, which is not aligned to 4 bytes");
  CHECK(refusal_of_indices(changed(indices(), [](Indices& i) { i.k.heads = 4; })) ==
        "the input 'd' has heads 4: it must be 1, for all to share it, 2 or 8");
  CHECK(refusal_of_indices(changed(indices(), [](Indices& i) { i.q.batch = 2; })) ==
        "the input 'd' has batch 2: it must be 1, for all to share it, or the number of sequences, "
        "3");
  CHECK(refusal_of_indices(changed(indices(), [](Indices& i) { i.q.batch_stride = -1; })) ==
        "the input 'd' has batch_stride -1: it must be 0 or more");
  CHECK(refusal(indices()) ==
        "the input 'm' was given indices of tokens, but the pattern wants blocks [batch, heads, "
        "ceil(seqlen_q / 128), ceil(seqlen_k / 64)]");
  CHECK(refusal_of("segments(d)", {{"d", numbers()}}) ==
        "the input 'd' was given numbers, but the pattern wants int32 [batch, heads, seqlen_q] for "
        "queries and [batch, heads, seqlen_k] for keys");
}

// --- Columns and slashes -------------------------------------------------------------------------

TEST_CASE("columns and slashes get a plane for each sequence and head that differs") {
  InputExtents extents = kExtents;
  extents.num_distances = 2063;
  const InputPlan plan = plan_for("vertical_slash(v)", {{"v", slashes()}}, extents);
  REQUIRE(plan.slashes.size() == 1);
  CHECK(plan.lists.size() == 0);
  const BuildSlashParams& build = plan.slashes[0].params;
  CHECK(build.columns == at<int>(0x1000));
  CHECK(build.distances == at<int>(0x2004));
  CHECK(build.num_columns == 30);
  CHECK(build.num_distances_given == 800);
  CHECK(build.planes_per_source_batch == 8);
  CHECK(build.num_planes == 3 * 8);
  CHECK(build.planes_per_batch == 8);
  CHECK(build.num_blocks == 16);     // of 64 rows, for 1000
  CHECK(build.words_per_row == 64);  // one more than 2000 keys fill, a multiple of 4
  CHECK(build.seqlen_k == 2000);
  CHECK(build.num_distances == 2063);
  CHECK(build.bits == reinterpret_cast<uint32*>(in_workspace(256)));
  const std::int64_t plane = 64 + 2 * 16 + 16 * (64 + 64);  // columns, entries, windows
  CHECK(build.clusters == reinterpret_cast<SlashCluster*>(build.bits + 24 * plane));
  CHECK(build.most_clusters() == 32);  // 65 distances apart and more
  check_view(plan.views[0], in_workspace(256), 8 * plane, plane, 64, 1);
  CHECK(reinterpret_cast<char*>(build.num_clusters) >=
        reinterpret_cast<char*>(build.clusters + 24 * 32));
  CHECK(reinterpret_cast<char*>(build.links) >= reinterpret_cast<char*>(build.num_clusters + 24));
  CHECK(in_workspace(plan.workspace_bytes) >=
        reinterpret_cast<char*>(build.links + 24 * (32 + 16)));

  // Sequences share lists, not windows: these follow from their lengths.
  SlashLists shared = slashes();
  shared.batch = shared.heads = 1;
  const InputPlan of_shared = plan_for("vertical_slash(v)", {{"v", shared}}, extents);
  CHECK(of_shared.slashes[0].params.planes_per_source_batch == 0);
  CHECK(of_shared.slashes[0].params.num_planes == 3);
  check_view(of_shared.views[0], in_workspace(256), plane, plane, 64, 8);
}

TEST_CASE("bad columns and slashes are refused with what they should be") {
  const auto refusal_of_slashes = [](const SlashLists& lists) {
    return refusal_of("vertical_slash(v)", {{"v", lists}});
  };
  CHECK(refusal_of_slashes(changed(slashes(), [](SlashLists& l) { l.num_vertical = -1; })) ==
        "the input 'v' has -1 entries a row in vertical: it must be 0 to 536870912");
  CHECK(refusal_of_slashes(changed(slashes(), [](SlashLists& l) { l.slash = nullptr; })) ==
        "the input 'v' has no slash");
  CHECK(refusal_of_slashes(changed(slashes(), [](SlashLists& l) {
          l.slash = nullptr;
          l.num_slash = 0;
        })) == "(accepted)");
  CHECK(refusal_of_slashes(changed(slashes(), [](SlashLists& l) { l.heads = 3; })) ==
        "the input 'v' has heads 3: it must be 1, for all to share it, 2 or 8");
  InputExtents long_sequences = kExtents;
  long_sequences.seqlen_q = long_sequences.seqlen_k = 3 << 20;
  CHECK(refusal_of("vertical_slash(v)", {{"v", slashes()}}, long_sequences) ==
        "the input 'v' has 24 planes for 3145728 queries x 3145728 keys: their windows would take "
        "more than 206158430112 bytes of workspace");
  CHECK(refusal(slashes()) ==
        "the input 'm' was given columns and slashes, but the pattern wants blocks [batch, heads, "
        "ceil(seqlen_q / 128), ceil(seqlen_k / 64)]");
}

// --- Values and columns
// ---------------------------------------------------------------------------

TEST_CASE("values of modifiers are read where they lie, and leading dimensions may be left out") {
  const auto* const data = at<float>(0x1004);
  check_view(plan_values("alibi(v)", Values(data, {3, 8})).views[0], data, 8, 1, 0, 1);
  check_view(plan_values("sink_logit(v)", Values(data, {8})).views[0], data, 0, 1, 0, 1);
  check_view(plan_values("alibi(v)", Values(data, {3, 1})).views[0], data, 1, 1, 0, 8);
  check_view(plan_values("bias(v)", Values(data, {3, 2, 2048})).views[0], data, 4096, 2048, 0, 4);
  check_view(plan_values("bias(v)", Values(data, {2000})).views[0], data, 0, 0, 0, 8);
  Values strided(data, {3, 8, 2000});
  strided.stride = {70000, 9000, 1, 0};
  check_view(plan_values("bias(v)", strided).views[0], data, 70000, 9000, 0, 1);
  CHECK(plan_values("bias(v)", strided).workspace_bytes == 0);
}

TEST_CASE("values that cannot be right are refused") {
  const auto* const data = at<float>(0x1000);
  const std::string name = "the input 'v' has ";
  CHECK(refusal_of_values("alibi(v)", Values(data, {3, 5})) ==
        name + "heads 5: it must be 1, for all to share it, 2 or 8");
  CHECK(refusal_of_values("alibi(v)", Values(data, {2, 8})).find("has batch 2") !=
        std::string::npos);
  CHECK(refusal_of_values("alibi(v)", Values(data, {1, 3, 8})) ==
        name + "a rank of 3: it must be from 1 to 2: the pattern wants float32 [batch, heads]");
  CHECK(refusal_of_values("bias(v)", Values(data, {1, 1, 3, 8, 2000})).find("a rank of 5") !=
        std::string::npos);
  CHECK(refusal_of_values("bias(v)", Values()).find("a rank of 0") != std::string::npos);
  CHECK(refusal_of_values("bias(v)", Values(data, {1999})).find("at least seqlen_k, 2000") !=
        std::string::npos);
  CHECK(refusal_of_values("bias(v)", Values(data, {-1, 2000})).find("an extent of -1") !=
        std::string::npos);
  Values strided(data, {2000});
  strided.stride = {2, 0, 0, 0};
  CHECK(refusal_of_values("bias(v)", strided) ==
        name + "a last stride of 2: it must be 1: its last dimension must be contiguous");
  CHECK(refusal_of_values("bias(v)", Values(at<float>(0x1002), {2000})).find("not aligned to 4") !=
        std::string::npos);
  CHECK(refusal_of_values("bias(v)", Values(at<float>(0), {2000})) == name + "no data");
  CHECK(refusal_of_values("bias(v)", Values(at<std::int32_t>(0x1000), {2000})) ==
        "the input 'v' was given int32 values, but the pattern wants float32 [batch, heads, "
        "seqlen_k]");
  CHECK(refusal_of("causal with bias(v)", {{"v", numbers()}}).find("was given numbers") !=
        std::string::npos);
  CHECK(refusal_of("causal & sink($v)", {{"v", Values(data, {8})}}).find("was given values") !=
        std::string::npos);
}

TEST_CASE("intervals of columns are laid out as four sides of each plane") {
  const auto plan_columns = [](const ColumnIntervals& given) {
    return plan_for("columns(c)", {{"c", given}});
  };
  const InputPlan plan = plan_columns(columns());
  REQUIRE(plan.numbers.size() == 1);
  const BuildNumbersParams& build = plan.numbers[0].params;
  CHECK(build.num_sides == 4);
  CHECK(build.num_planes == 6);
  CHECK(build.num_row_blocks == 0);  // rows have no numbers
  CHECK(build.num_spans == 2);       // of 1024 keys; the rest of num_keys stays where it is
  CHECK(build.sources[0].numbers == at<std::int32_t>(0x1000));
  CHECK(build.sources[1].numbers == at<std::int32_t>(0x2000));
  CHECK(build.sources[2].numbers == nullptr);
  CHECK(build.sources[3].numbers == nullptr);
  CHECK(build.sources[0].batch_stride == 2 * 2048);
  CHECK(build.sources[0].head_stride == 2048);
  CHECK(build.sources[0].token_stride == 1);
  CHECK(build.sources[0].num_tokens == 2000);
  const std::int64_t plane = 4 * std::int64_t{TokenNumbers::kWordsPerSpan} * 2;
  check_view(plan.views[0], build.out, 2 * plane, plane, 2, 4);
  CHECK(plan.workspace_bytes >= static_cast<std::size_t>(6 * plane * 4));

  // Bounds beside one another.
  const auto beside = changed(columns(), [](ColumnIntervals& c) {
    c.end = c.start + 1;
    c.second_start = c.start + 2;
    c.second_end = c.start + 3;
    c.key_stride = 4;
  });
  const InputPlan other = plan_columns(beside);
  CHECK(other.numbers[0].params.sources[3].numbers == at<std::int32_t>(0x100c));
  CHECK(other.numbers[0].params.sources[3].token_stride == 4);
  CHECK(other.numbers[0].params.sources[3].head_stride == 4 * 2048);
}

TEST_CASE("intervals of columns that cannot be right are refused") {
  const auto refused = [](auto&& change) {
    return refusal_of("columns(c)", {{"c", changed(columns(), change)}});
  };
  const std::string name = "the input 'c' has ";
  CHECK(refused([](ColumnIntervals& c) {
          c.num_keys = 1999;
        }).find("num_keys 1999: it must be at least seqlen_k, 2000") != std::string::npos);
  CHECK(refused([](ColumnIntervals& c) { c.end = nullptr; }) == name + "no end");
  CHECK(refused([](ColumnIntervals& c) { c.second_end = c.end; }) == name + "no second_start");
  CHECK(refused([](ColumnIntervals& c) { c.key_stride = 0; }).find("key_stride 0") !=
        std::string::npos);
  CHECK(refused([](ColumnIntervals& c) { c.head_stride = -1; }).find("head_stride -1") !=
        std::string::npos);
  CHECK(refused([](ColumnIntervals& c) { c.heads = 3; }).find("heads 3") != std::string::npos);
  CHECK(refusal_of("columns(c)", {{"c", indices()}}) ==
        "the input 'c' was given indices of tokens, but the pattern wants int32 starts and ends "
        "[batch, heads, seqlen_k]");
}
