// Patterns that girih/compat.hpp makes from other libraries' arguments, launched with what their
// functions are given, against those libraries' own rules.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "girih/compat.hpp"
#include "support.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::InputInfo;
using girih::Layout;
using girih::Pattern;
using girih::verify::Case;
using girih::verify::GpuReference;
using girih::verify::InputData;
using girih::verify::Row;
using girih::verify::Sequence;
namespace compat = girih::compat;

namespace {

// Whether a row sees a key of its sequence.
using Sees = std::function<bool(const Sequence& sequence, Row row, int key)>;

void check(const std::string& what, const Pattern& pattern, const Case& c, const Sees& sees) {
  GpuReference gpu_reference;
  const auto mask = [&, sequences = girih::verify::sequences_of(c)](
                        Row row, std::span<std::uint32_t> words) {
    const Sequence& sequence = sequences[static_cast<std::size_t>(row.b)];
    for (int key = 0; key < sequence.seqlen_k; ++key) {
      if (sees(sequence, row, key)) words[static_cast<std::size_t>(key / 32)] |= 1u << (key % 32);
    }
  };
  for (const girih::TileConfig& tile : kKernels) {
    const girih::verify::Report report = girih::verify::verify_attention(
        girih::jit::compile(pattern, {.tile = tile}), c, mask, gpu_reference);
    ++kernels_bound;
    rows_checked += report.rows_checked;
    CHECK(report.rows_checked > 0);
    CHECK_MESSAGE(
        report.ok(),
        fmt::format("{}: {}, {}, tile {}: {} of {} rows wrong, error {:.3g} of {:.3g} in "
                    "{}, lse {:.3g}, first: {}",
                    what, pattern.text(), describe(c.problem), describe(tile), report.rows_wrong,
                    report.rows_checked, report.error, report.allowed_error, report.closest,
                    report.lse_error, report.failures.empty() ? "none" : report.failures[0].what));
  }
}

Case case_of(const girih::Problem& problem, int batch, int seqlen_q, int seqlen_k) {
  Case c;
  c.problem = problem;
  c.batch = batch;
  c.seqlen_q = seqlen_q;
  c.seqlen_k = seqlen_k;
  return c;
}

int position_of(const Sequence& sequence, Row row) {
  return row.q + sequence.seqlen_k - sequence.seqlen_q;
}

// Rounded up, also below zero.
int blocks_of_128(int tokens) { return tokens / 128 + (tokens % 128 > 0 ? 1 : 0); }

// Of the function named `what`; the packed sequences are longer and shorter than their keys.
void check_block_sparse(const std::string& what, const compat::BlockSparseAttn& arguments) {
  const compat::BlockSparseHeads made = compat::block_sparse_attn(arguments);
  const int num_heads = static_cast<int>(arguments.head_mask_type.size());
  Case c = case_of(make_problem(DType::bfloat16, 64, num_heads, 2, 0, Layout::thd), 4, 517, 300);
  c.lengths.q = {300, 113, 128, 517};
  c.lengths.k = {300, 203, 1, 300};
  c.empty_lse = HUGE_VALF;

  // What the function's caller has, a plane for each head whose type is 1, and what a launch takes:
  // one for each head. Those of other heads show everything, and are not looked at.
  const int num_planes = static_cast<int>(std::ranges::count(arguments.head_mask_type, 1));
  const InputData base =
      girih::verify::random_blocks("m", c.batch, std::max(num_planes, 1), blocks_of_128(c.seqlen_q),
                                   blocks_of_128(c.seqlen_k), 0.5, 0, 7);
  if (num_planes > 0) {
    InputData data = base;
    data.heads = num_heads;
    data.visible.clear();
    const int size = base.num_q_blocks * base.num_kv_blocks;
    for (int b = 0; b < c.batch; ++b) {
      for (const int plane : made.planes) {
        const std::uint8_t* from = base.row(b * num_planes + std::max(plane, 0), 0);
        for (int i = 0; i < size; ++i) data.visible.push_back(plane < 0 ? 1 : from[i]);
      }
    }
    c.inputs = {data};
  }

  int next_plane = 0;
  std::vector<int> plane_of_head;
  for (const int type : arguments.head_mask_type) {
    plane_of_head.push_back(type > 1 ? type - 1 : next_plane);
    next_plane += type == 1;
  }
  check(what, made.pattern, c, [&](const Sequence& sequence, Row row, int key) {
    const auto h = static_cast<std::size_t>(row.h);
    const int position = position_of(sequence, row), type = arguments.head_mask_type[h];
    if (arguments.is_causal && key > position) return false;
    if (type == 0) return true;
    if (type > 0) {
      return base.row(row.b * num_planes + plane_of_head[h], row.q / 128)[key / 128] != 0;
    }
    const int sink_size = arguments.streaming_info[2 * h];
    const int local = arguments.streaming_info[2 * h + 1];
    if (arguments.exact_streaming) return key < sink_size || key > position - local;
    const int end = arguments.is_causal
                        ? row.q / 128 + 1 + blocks_of_128(sequence.seqlen_k - sequence.seqlen_q)
                        : blocks_of_128(sequence.seqlen_k);
    return key / 128 < sink_size || key / 128 >= end - local;
  });
}

InputData thresholds_of(const Case& c, int kv) {
  InputData data{.kind = InputInfo::Kind::thresholds, .name = "t"};
  data.heads = c.problem.num_heads;
  data.num_columns = 3;
  data.prune_kv = kv;
  for (int h = 0; h < data.heads; ++h) {  // even heads keep what they may skip, the others nothing
    data.thresholds.insert(data.thresholds.end(), 3, h % 2 == 0 ? -HUGE_VALF : HUGE_VALF);
  }
  return data;
}

}  // namespace

TEST_CASE("compat: Block-Sparse-Attention's functions see what its rules say") {
  const std::vector<int> info = {0, 0, 0, 0, 1, 3, 0, 0, 0, 0, 0, 2, 0, 0, 2, 1};
  const std::vector<int> tokens = {0, 0, 0, 0, 5, 70, 0, 0, 0, 0, 0, 20, 0, 0, 130, 0};
  const std::vector<int> mixed = {0, 1, -1, 1, 0, -1, 1, -1}, streams = {0, 0, -1, 0, 0, -1, 0, -1};
  for (const bool is_causal : {false, true}) {
    check_block_sparse("block_sparse_attn_func",
                       {.head_mask_type = mixed, .streaming_info = info, .is_causal = is_causal});
    check_block_sparse("block_streaming_attn_func",
                       {.head_mask_type = streams, .streaming_info = info, .is_causal = is_causal});
  }
  check_block_sparse("block_sparse_attn_func", {.head_mask_type = mixed,
                                                .streaming_info = tokens,
                                                .is_causal = true,
                                                .exact_streaming = true});
  check_block_sparse("token_streaming_attn_func", {.head_mask_type = streams,
                                                   .streaming_info = tokens,
                                                   .is_causal = true,
                                                   .exact_streaming = true});
  check_block_sparse("block_sparse_attn_func, planes by number",
                     {.head_mask_type = {2, 1, 0, 1, 3, 1, 0, 2}, .is_causal = true});
}

TEST_CASE("compat: S2-Attention's modules see what its rules say") {
  const compat::LocalStride base{
      .num_heads = 4, .block_size = 16, .local_blocks = 2, .vert_stride = 9};
  std::vector<std::pair<std::string, compat::LocalStride>> modules = {{"dkernel", base}};
  const auto add = [&](const char* name) -> compat::LocalStride& {
    return modules.emplace_back(name, base).second;
  };
  add("homogeneous heads").homo_head = true;
  add("dense heads").num_dense_heads = 1;
  compat::LocalStride& phi = add("Phi-3-small in vLLM");
  phi.num_kv_heads = 2;
  phi.head_sliding_offset = 1;
  phi.vert_stride = 3;
  add("not causal").causal = false;

  for (const auto& [name, module] : modules) {
    const bool by_kv_head = module.num_kv_heads.has_value();
    const int num_heads = by_kv_head ? *module.num_kv_heads : module.num_heads;
    for (const auto& [seqlen_q, seqlen_k] : {std::pair{400, 400}, {113, 403}}) {
      Case c =
          case_of(make_problem(DType::float16, 64, module.num_heads, 2), 2, seqlen_q, seqlen_k);
      if (!module.causal) c.q_start = 0;
      check(name, Pattern(compat::local_stride(module)), c,
            [&](const Sequence& sequence, Row row, int key) {
              const int group = module.num_heads / num_heads;
              const int head = module.homo_head ? 0 : row.h / group;
              const int stride = module.vert_stride, local = module.local_blocks;
              const int j = key / module.block_size;
              if (!module.causal) {  // strides count from the local blocks
                const int i = row.q / module.block_size;
                return (std::max(i - j - local + 1, 0) + std::max(j - i - local + 1, 0)) % stride ==
                       0;
              }
              const int position = position_of(sequence, row);
              if (key > position) return false;
              const int step = std::max(1, stride / module.num_heads);
              return position / module.block_size - j < local ||
                     (j + head * step + module.head_sliding_offset) % stride == 0 ||
                     row.h / group >= num_heads - module.num_dense_heads;
            });
    }
  }
}

TEST_CASE("compat: FlashAttention's windows, soft caps and slopes are right") {
  struct Arguments {
    bool causal;
    int left, right;
    float softcap;
    bool alibi;
  };
  for (const auto& [causal, left, right, softcap, alibi] : {Arguments{false, -1, -1, 0, false},
                                                            {true, 20, -1, 5, false},
                                                            {false, 7, 9, 0, true},
                                                            {false, -1, 3, 30, false},
                                                            {true, -1, -1, 0, true}}) {
    for (const auto& [seqlen_q, seqlen_k] : {std::pair{113, 203}, {203, 113}}) {
      Case c = case_of(make_problem(DType::bfloat16, 128, 4, 2), 2, seqlen_q, seqlen_k);
      c.empty_lse = HUGE_VALF;
      if (softcap > 0) c.softcaps.assign(4, softcap);
      if (alibi) {
        const InputData slopes = girih::verify::random_values("slopes", 2, 4, 0, 0.3, 5);
        c.inputs = {slopes};
        c.changes.score = [=](double s, Row row, int key) {
          const float slope = slopes.values[static_cast<std::size_t>(row.b * 4 + row.h)];
          return s - double{slope} * std::abs(row.q + seqlen_k - seqlen_q - key);
        };
      }
      const Pattern pattern = compat::flash_attn({.causal = causal,
                                                  .window_left = left,
                                                  .window_right = right,
                                                  .softcap = softcap,
                                                  .alibi_slopes = alibi ? "slopes" : ""});
      check("flash_attn_func", pattern, c, [=](const Sequence& sequence, Row row, int key) {
        const int position = position_of(sequence, row);
        return (left < 0 || key >= position - left) && (right < 0 || key <= position + right) &&
               (!causal || key <= position);
      });
    }
  }
}

TEST_CASE("compat: BSFA's thresholds skip all key tiles but the rows' own, or none") {
  struct Arguments {
    bool causal;
    int left, right;
  };
  for (const auto& [given, left, right] :
       {Arguments{false, -1, -1}, {true, -1, -1}, {false, -1, 0}, {false, 200, 0}}) {
    const bool causal = given || right == 0;  // a window that ends at the diagonal protects it, too
    for (const int kv : {64, 128}) {
      compat::BlockSparseFlashAttn arguments;
      arguments.causal = given;
      arguments.window_left = left;
      arguments.window_right = right;
      arguments.kv = kv;
      Case c = case_of(make_problem(DType::bfloat16, 64, 4, 2), 2, 300, 500);
      c.inputs = {thresholds_of(c, kv)};
      check("block_sparse_flash_attn_func", compat::block_sparse_flash_attn(arguments), c,
            [=, left = left](const Sequence& sequence, Row row, int key) {
              if (causal && key > position_of(sequence, row)) return false;
              if (left >= 0 && key < position_of(sequence, row) - left) return false;
              if (row.h % 2 == 0) return true;
              if (!causal) return key / kv == (sequence.seqlen_k - 1) / kv;
              const int first =  // position of the first of the tile's 128 rows
                  row.q / 128 * 128 + sequence.seqlen_k - sequence.seqlen_q;
              return key / kv >= first / kv && key / kv <= (first + 127) / kv;
            });
    }
  }
}
