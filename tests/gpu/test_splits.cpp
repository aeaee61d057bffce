// Rows of block lists that see much more than the others, whose keys are divided: masks and values
// are as exact, results the same bits in every launch, and lengths may change after lists are
// built. On Hopper each case checks that there was something to divide.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "hashed_workload.hpp"
#include "planes.hpp"
#include "runtime/splits.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::Pattern;
using girih::verify::BlockForm;
using girih::verify::InputData;
using Kind = oracle::Expr::Kind;

namespace {

// Blocks of so many queries and keys.
struct Blocks {
  int q, kv;
};

// One row of blocks in the middle of each plane sees every key, the others one block each.
InputData full_row(const Case& c, Blocks size, BlockForm form) {
  const int planes = c.problem.num_heads_kv;
  const int rows = (c.seqlen_q + size.q - 1) / size.q;
  const int columns = (c.seqlen_k + size.kv - 1) / size.kv;
  InputData data =
      girih::verify::random_blocks("m", c.batch, planes, rows, columns, 0.0, 0, c.seed);
  data.form = form;
  for (int plane = 0; plane < c.batch * planes; ++plane) {
    for (int row = 0; row < rows; ++row) {
      std::uint8_t* const first =
          data.visible.data() + (std::int64_t{plane} * rows + row) * columns;
      first[(7 * row + plane) % columns] = 1;
      if (row == rows / 2) std::fill_n(first, columns, std::uint8_t{1});
    }
  }
  return data;
}

// For each sequence the expression of each KV head, which has kHashes heads.
std::vector<std::vector<oracle::Expr>> classes_of(const InputData& data, const Case& c, Blocks size,
                                                  bool under_causal) {
  std::vector<std::vector<oracle::Expr>> sequences(static_cast<std::size_t>(c.batch));
  for (int b = 0; b < c.batch; ++b) {
    for (int head = 0; head < c.problem.num_heads; head += kHashes) {
      const oracle::Expr plane =
          blocks_of(data, data.plane(b, head, c.problem.num_heads), size.q, size.kv);
      sequences[static_cast<std::size_t>(b)].push_back(under_causal ? both(causal(), plane)
                                                                    : plane);
    }
  }
  return sequences;
}

// Some rows of each sequence, among them all of the full one, the first and the last.
std::vector<Expected> expected_rows(const std::vector<std::vector<oracle::Expr>>& sequences,
                                    const Case& c, Blocks size) {
  const int full = (c.seqlen_q + size.q - 1) / size.q / 2 * size.q;
  std::vector<Expected> expected;
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  for (std::size_t b = 0; b < sizes.size(); ++b) {
    const auto seqlen_q = static_cast<int>(sizes[b].seqlen_q);
    std::vector<int> rows;
    for (int q = 0; q < seqlen_q; ++q) {
      const bool chosen = q % 61 == 0 || q == seqlen_q - 1 || (full <= q && q < full + size.q);
      if (chosen) rows.push_back(q);
    }
    expected.emplace_back(sequences[b], sizes[b], rows);
  }
  return expected;
}

int num_split_tiles(const std::vector<unsigned char>& workspace_head) {
  girih::SplitHeader header{};
  constexpr std::size_t kOffset = girih::runtime::kSplitHeaderOffset;
  if (workspace_head.size() < kOffset + sizeof header) return 0;
  std::memcpy(&header, workspace_head.data() + kOffset, sizeof header);
  return header.num_split_tiles;
}

std::optional<girih::jit::Kernel> bound_kernel(const std::string& pattern, const Problem& problem) {
  const std::vector<Binding> bindings = {{pattern, problem, {}}};
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);
  return bound[0].kernel;
}

void check_split(const girih::jit::Kernel& kernel, const std::vector<unsigned char>& head,
                 int least) {
  if (kernel.info().kernel == "fwd_sm90") CHECK(num_split_tiles(head) >= least);
}

void check_masks(const Case& c, Blocks size, BlockForm form, bool under_causal) {
  const InputData data = full_row(c, size, form);
  const auto sequences = classes_of(data, c, size, under_causal);
  const auto kernel = bound_kernel(pattern_text(sequences[0], kHashes), c.problem);
  if (!kernel) return;
  HashedWorkload workload(with_input(c, data), c.seed);
  const auto outcome = workload.check(*kernel, expected_rows(sequences, c, size));
  CHECK_OUTCOME(outcome, fmt::format("blocks {} x {}{}, {} x {}, {}", size.q, size.kv,
                                     under_causal ? " under causal" : "", c.seqlen_q, c.seqlen_k,
                                     describe(c.problem)));
  check_split(*kernel, workload.workspace_head(), 1);
}

Case split_case(int head_dim, int num_classes, int batch, Lengths lengths,
                DType dtype = DType::bfloat16, int head_dim_v = 0) {
  Case c = mask_case(make_problem(dtype, head_dim, num_classes * kHashes, num_classes, head_dim_v),
                     batch, lengths);
  c.seed = 40 + static_cast<std::uint64_t>(head_dim + lengths.q);
  return c;
}

}  // namespace

TEST_CASE("split rows: one of all keys beside rows of one block shows exactly its keys") {
  check_masks(split_case(128, 1, 1, {8192, 8192}), {128, 128}, BlockForm::list, false);
  check_masks(split_case(64, 2, 1, {300, 16384}), {128, 128}, BlockForm::table, true);
  check_masks(split_case(192, 1, 2, {5000, 9001}), {128, 128}, BlockForm::plane_list, false);
  check_masks(split_case(256, 2, 1, {1023, 20000}), {128, 128}, BlockForm::bytes, true);
  check_masks(split_case(128, 1, 3, {2049, 6001}, DType::float16), {64, 128}, BlockForm::list,
              false);
  check_masks(split_case(96, 1, 1, {700, 9999}, DType::float16, 48), {32, 64}, BlockForm::list,
              false);
  Case c = split_case(64, 1, 1, {700, 9000});
  c.empty_lse = HUGE_VALF;
  check_masks(c, {128, 128}, BlockForm::list, true);
}

TEST_CASE("split rows: few query tiles of many keys show exactly theirs") {
  check_masks(split_case(128, 1, 1, {128, 32768}), {128, 128}, BlockForm::list, false);
  check_masks(split_case(64, 3, 1, {1, 40000}), {128, 128}, BlockForm::list, false);
  check_masks(split_case(256, 1, 2, {17, 30001}), {128, 128}, BlockForm::bytes, true);
}

TEST_CASE("split rows: key tiles gathered from small blocks show exactly their keys") {
  for (const int kv_block : {16, 32, 64}) {
    check_masks(split_case(128, 1, 1, {1500, 9001}), {128, kv_block}, BlockForm::list, false);
    check_masks(split_case(64, 1, 2, {260, 16000}), {128, kv_block}, BlockForm::table, true);
  }
}

TEST_CASE("split rows: query heads that share tiles see exactly their keys") {
  for (const auto& [size, head_dim] :
       {std::pair{Blocks{64, 64}, 128}, {Blocks{64, 16}, 64}, {Blocks{32, 32}, 256}}) {
    Case c = split_case(head_dim, 2, 2, {1000, 10000});
    c.problem.shared_inputs = true;
    check_masks(c, size, BlockForm::list, head_dim == 64);
  }
}

TEST_CASE("split rows: packed, shortened and padded sequences show exactly their keys") {
  for (const Layout layout : {Layout::bhsd, Layout::thd}) {
    for (const Blocks size : {Blocks{128, 128}, Blocks{32, 64}}) {
      Case c = split_case(64, 1, 4, {400, 9000});
      c.problem.layout = layout;
      if (layout == Layout::thd) {
        c.lengths.q = {400, 0, 390, 205};
        c.lengths.k = {9000, 500, 8190, 0};
      } else {
        c.lengths.used_k = {9000, 0, 8100, 129};
        c.lengths.leftpad_k = {500, 0, 1, 128};
      }
      check_masks(c, size, BlockForm::list, false);
    }
  }
}

TEST_CASE("split rows: lengths may change between building lists and a launch") {
  constexpr Blocks kSize{128, 128};
  Case longer = split_case(128, 1, 2, {600, 12000});
  Case shorter = longer;
  longer.lengths.used_k = {12000, 11000};
  shorter.lengths.used_k = {6100, 900};
  const InputData data = full_row(longer, kSize, BlockForm::list);
  longer.inputs = shorter.inputs = {data};
  const auto sequences = classes_of(data, longer, kSize, false);
  const auto kernel = bound_kernel(pattern_text(sequences[0], kHashes), longer.problem);
  if (!kernel) return;
  HashedWorkload of_longer(longer, 1), of_shorter(shorter, 1);
  CHECK_OUTCOME(of_shorter.check(*kernel, expected_rows(sequences, shorter, kSize), &of_longer),
                "shorter than when the lists were built");
  check_split(*kernel, of_shorter.workspace_head(), 1);
  CHECK_OUTCOME(of_longer.check(*kernel, expected_rows(sequences, longer, kSize), &of_shorter),
                "longer than when the lists were built");
  check_split(*kernel, of_longer.workspace_head(), 1);

  // Tensors of other sizes: what was planned for the others does not count.
  Case small = split_case(128, 1, 2, {600, 6000});
  small.inputs = {data};
  HashedWorkload of_small(small, 1);
  CHECK_OUTCOME(of_small.check(*kernel, expected_rows(sequences, small, kSize), &of_longer),
                "a smaller tensor than when the lists were built");
  CHECK_OUTCOME(of_longer.check(*kernel, expected_rows(sequences, longer, kSize), &of_small),
                "a larger tensor than when the lists were built");
}

TEST_CASE("split rows: every launch gives the same bits, on few multiprocessors or all") {
  Case c;
  c.problem = make_problem(DType::bfloat16, 128, 8, 2);
  c.seqlen_q = 3000;
  c.seqlen_k = 8192;
  c.inputs = {full_row(c, {128, 64}, BlockForm::list)};
  const auto kernel = bound_kernel(
      "heads(0-3: causal & (sink(16) | window(left=99)), else: blocks(m, q=128, kv=64))",
      c.problem);
  if (!kernel) return;
  girih::verify::Workload workload(c);
  workload.fill_normal(1);
  girih::verify::Buffer memory(kernel->workspace_bytes(workload.args()));
  const std::vector<std::uint16_t> first = check_repeats(*kernel, workload, memory);
  std::vector<unsigned char> head(256);
  memory.download(head.data(), head.size());
  check_split(*kernel, head, 1);
  for (const int max_ctas : {1, 2, 7, 100}) {
    workload.parameters.max_ctas = max_ctas;
    CHECK(bits_of_launch(*kernel, workload, memory) == first);
  }
  workload.parameters.max_ctas = 0;

  // A captured launch has no counter.
  const girih::jit::Program program = girih::jit::compile(Pattern::parse(
      "heads(0-3: causal & (sink(16) | window(left=99)), else: blocks(m, q=128, kv=64))"));
  program.bind(c.problem);
  CUstream stream = nullptr;
  girih::cuda::check(DRIVER(cuStreamCreate)(&stream, CU_STREAM_NON_BLOCKING), "stream");
  girih::jit::Args args = workload.args();
  args.stream = stream;
  girih::cuda::check(DRIVER(cuStreamBeginCapture)(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), "begin");
  program(args);
  CUgraph graph = nullptr;
  girih::cuda::check(DRIVER(cuStreamEndCapture)(stream, &graph), "end");
  CUgraphExec executable = nullptr;
  girih::cuda::check(DRIVER(cuGraphInstantiate)(&executable, graph, 0), "instantiate");
  for (int i = 0; i < 3; ++i) {
    workload.poison_outputs();
    girih::verify::synchronize();
    girih::cuda::check(DRIVER(cuGraphLaunch)(executable, stream), "launch");
    girih::verify::synchronize();
    workload.download_outputs();
    CHECK(result_bits(workload) == first);
  }
  DRIVER(cuGraphExecDestroy)(executable);
  DRIVER(cuGraphDestroy)(graph);
  DRIVER(cuStreamDestroy)(stream);
}

TEST_CASE("split rows: values are right, with softcap too") {
  girih::verify::GpuReference gpu_reference;
  struct Variant {
    DType dtype;
    int head_dim;
    Blocks size;
    const char* text;
  };
  for (const auto& [dtype, head_dim, size, text] :
       {Variant{DType::bfloat16, 128, {128, 128}, "blocks(m, q=128, kv=128)"},
        Variant{DType::float16, 64, {128, 32}, "blocks(m, q=128, kv=32)"},
        Variant{DType::bfloat16, 256, {64, 64}, "blocks(m, q=64, kv=64)"},
        Variant{DType::bfloat16, 128, {128, 128}, "blocks(m, q=128, kv=128) with softcap(20)"}}) {
    Case c;
    c.problem = make_problem(dtype, head_dim, 4, 1);
    c.batch = 2;
    c.seqlen_q = 500;
    c.seqlen_k = 8200;
    c.head_gap = 8;
    c.inputs = {full_row(c, size, BlockForm::list)};
    const InputData data = c.inputs[0];
    std::vector<oracle::Expr> planes;
    for (int b = 0; b < c.batch; ++b) {
      planes.push_back(blocks_of(data, data.plane(b, 0, 4), size.q, size.kv));
    }
    const auto sizes = sizes_of(c);
    const auto report = girih::verify::verify_attention(
        girih::jit::compile(Pattern::parse(text)), c,
        [&](girih::verify::Row row, std::span<std::uint32_t> words) {
          const auto b = static_cast<std::size_t>(row.b);
          set_visible_bits(planes[b], in_head(sizes[b], row.h), row.q, words);
        },
        gpu_reference);
    ++kernels_bound;
    rows_checked += report.rows_checked;
    CAPTURE(text);
    CHECK(report.rows_checked > 0);
    CHECK_MESSAGE(report.ok(), fmt::format("{} rows of {} wrong, error {:.3g} of {:.3g} allowed",
                                           report.rows_wrong, report.rows_checked, report.error,
                                           report.allowed_error));
  }
}

TEST_CASE("sanitizer: split rows show exactly their keys") {
  for (const Blocks size : {Blocks{128, 128}, Blocks{128, 32}}) {
    Case c = split_case(64, 1, 1, {150, 4800});
    c.max_ctas = 2;
    check_masks(c, size, BlockForm::list, false);
  }
  Case shared = split_case(64, 1, 1, {70, 4800});
  shared.problem.shared_inputs = true;
  shared.max_ctas = 2;
  check_masks(shared, {64, 64}, BlockForm::bytes, true);
}
