// Values under soft caps, slopes, biases of keys and sinks, against what the definitions make of
// them.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>

#include "values.hpp"

using namespace gpu_tests;
using girih::verify::Row;

namespace {

// Inputs of six heads, two of them KV heads, and what the definitions make of them.
struct Modified {
  girih::verify::InputData slopes, bias, sinks;
  explicit Modified(const Case& c, int heads, float largest_sink)
      : slopes(girih::verify::random_values("s", 1, c.problem.num_heads, 0, 0.3, c.seed)),
        bias(girih::verify::random_values("b", c.batch, heads, c.seqlen_k, 2, c.seed + 1)),
        sinks(girih::verify::random_values("z", 1, c.problem.num_heads, 0, 1, c.seed + 2)) {
    sinks.values[0] = largest_sink;
    sinks.values[1] = -HUGE_VALF;
  }
};

double at(const girih::verify::InputData& data, const Case& c, Row row, int key, int width) {
  const int b = data.batch == 1 ? 0 : row.b;
  const int plane = b * data.heads + row.h * data.heads / c.problem.num_heads;
  return static_cast<double>(data.values[static_cast<std::size_t>(plane * width + key)]);
}

}  // namespace

TEST_CASE("soft caps of some heads, of all and at every scale are right") {
  GpuReference gpu_reference;
  const std::vector<oracle::Expr> kinds = {dense(), causal(), streaming(16, 64)};
  unsigned turn = 0;
  for (const int head_dim : {64, 128, 256}) {
    for (const float scale : {0.05f, 1.0f, 8.0f}) {  // scores far below the cap, and far above
      const DType dtype = ++turn % 2 == 0 ? DType::bfloat16 : DType::float16;
      Case c = make_case(make_problem(dtype, head_dim, 6, 2), 2, 203, 300);
      c.softmax_scale = scale;
      c.seed = turn;
      CAPTURE(scale);
      for (const girih::TileConfig& tile : kKernels) {
        if (tile.portable && dtype == DType::float16) continue;
        c.softcaps = {30, 30, 0, 0, 0.5f, 0.5f};
        check_values("heads(0-1: dense with softcap(30), 2-3: causal, 4-5: " +
                         oracle::text(kinds[2]) + " with softcap(0.5))",
                     kinds, c, gpu_reference, tile);
        c.softcaps.assign(6, 50);
        check_values("causal with softcap(50)", {causal()}, c, gpu_reference, tile);
        c.softcaps.clear();  // the program's
        check_values("causal with softcap(5)", {causal()}, c, gpu_reference, tile);
      }
    }
  }
}

TEST_CASE("slopes, biases and sinks of some heads and of all are right at every width") {
  GpuReference gpu_reference;
  const std::vector<oracle::Expr> kinds = {dense(), causal(), streaming(16, 64)};
  unsigned turn = 0;
  for (const bool portable : {false, true}) {
    girih::TileConfig tile;
    tile.portable = portable;
    for (const int head_dim : {64, 128, 192, 256}) {
      const DType dtype = ++turn % 2 == 0 ? DType::bfloat16 : DType::float16;
      Case c = make_case(make_problem(dtype, head_dim, 6, 2), 2, 203, 300);
      c.seed = turn;
      const int bias_heads = turn % 3 == 0 ? 1 : turn % 3 == 1 ? 2 : 6;
      const Modified data(c, bias_heads, turn % 2 == 0 ? 60.0f : 5.0f);
      const int off = 300 - 203;
      const auto alibi = [=](double s, Row row, int key) {
        return s - at(data.slopes, c, row, 0, 1) * std::abs(row.q + off - key);
      };
      const auto bias = [=](double s, Row row, int key) {
        return s + at(data.bias, c, row, key, 300);
      };
      const auto sink = [=](Row row) { return at(data.sinks, c, row, 0, 1); };

      Case all = c;
      all.inputs = {data.slopes, data.bias, data.sinks};
      all.softcaps.assign(6, 20);
      all.changes.score = [=](double s, Row row, int key) {
        return bias(alibi(s, row, key), row, key);
      };
      all.changes.sink_logit = sink;
      check_values("causal with softcap(20), alibi(s), bias(b), sink_logit(z)", {causal()}, all,
                   gpu_reference, tile);

      Case mixed = all;
      mixed.softcaps = {0, 0, 0, 0, 2, 2};
      mixed.changes.score = [=](double s, Row row, int key) {
        return row.h < 2 ? alibi(s, row, key) : row.h < 4 ? s : bias(s, row, key);
      };
      mixed.changes.sink_logit = [=](Row row) {
        return row.h < 2 ? -HUGE_VAL : row.h < 4 ? sink(row) : -HUGE_VAL;
      };
      check_values("heads(0-1: dense with alibi(s), 2-3: causal with sink_logit(z), 4-5: " +
                       oracle::text(kinds[2]) + " with softcap(2), bias(b))",
                   kinds, mixed, gpu_reference, tile);

      Case sinks = c;  // nothing but the sum changes
      sinks.inputs = {data.sinks};
      sinks.changes.sink_logit = sink;
      check_values("causal with sink_logit(z)", {causal()}, sinks, gpu_reference, tile);
    }
  }
}

TEST_CASE("rows that see nothing have the logit of their sink as lse, or what was asked for") {
  GpuReference gpu_reference;
  for (const bool portable : {false, true}) {
    girih::TileConfig tile;
    tile.portable = portable;
    Case c = make_case(make_problem(DType::bfloat16, 64, 6, 2), 1, 300, 100);  // 200 empty rows
    c.empty_lse = HUGE_VALF;
    const Modified data(c, 1, 3);
    c.inputs = {data.sinks};
    c.changes.sink_logit = [=](Row row) { return at(data.sinks, c, row, 0, 1); };
    check_values("causal with sink_logit(z)", {causal()}, c, gpu_reference, tile);
  }
}

TEST_CASE("modifiers follow packed sequences, positions, gathered tiles and packed heads") {
  GpuReference gpu_reference;
  Case packed = make_packed_case(make_problem(DType::bfloat16, 128, 6, 2), {203, 1, 150, 77},
                                 {300, 64, 0, 131});
  const Modified data(packed, 2, 4);
  packed.inputs = {data.slopes, data.bias, data.sinks};
  const std::vector<int> offs = {300 - 203, 64 - 1, 0 - 150, 131 - 77};
  packed.changes.score = [=](double s, Row row, int key) {
    return s -
           at(data.slopes, packed, row, 0, 1) *
               std::abs(row.q + offs[static_cast<std::size_t>(row.b)] - key) +
           at(data.bias, packed, row, key, 300);
  };
  packed.changes.sink_logit = [=](Row row) { return at(data.sinks, packed, row, 0, 1); };
  for (const girih::TileConfig& tile : kKernels) {
    check_values("causal with alibi(s), bias(b), sink_logit(z)", {causal()}, packed, gpu_reference,
                 tile);
  }

  Case moved = make_case(make_problem(DType::float16, 64, 6, 2), 1, 100, 200);
  moved.q_start = 5000;
  moved.k_start = 4950;
  const Modified other(moved, 6, 4);
  moved.inputs = {other.slopes};
  moved.changes.score = [=](double s, Row row, int key) {
    return s - at(other.slopes, moved, row, 0, 1) * std::abs(row.q + 50 - key);
  };
  for (const girih::TileConfig& tile : kKernels) {
    check_values("causal with alibi(s)", {causal()}, moved, gpu_reference, tile);
  }

  // Small blocks: key tiles are gathered, and heads of a KV head share a tile.
  for (const bool shared : {false, true}) {
    Case gathered = make_case(make_problem(DType::bfloat16, 64, 6, 2), 1, 256, 256);
    gathered.problem.num_heads = 4;
    gathered.problem.shared_inputs = shared;
    const Modified values(gathered, 4, 4);
    girih::verify::InputData blocks =
        girih::verify::random_blocks("m", 1, 1, 4, 8, 0.5, 0, 3);  // 64 x 32
    gathered.inputs = {blocks, values.slopes, values.bias};
    gathered.changes.score = [=](double s, Row row, int key) {
      return s - at(values.slopes, gathered, row, 0, 1) * std::abs(row.q - key) +
             at(values.bias, gathered, row, key, 256);
    };
    oracle::Expr expr{oracle::Expr::Kind::blocks, {}, {}};
    expr.blocks = {"m", 64, 32, 8, {blocks.visible.begin(), blocks.visible.end()}};
    for (const girih::TileConfig& tile : kKernels) {
      check_values("blocks(m, q=64, kv=32) with alibi(s), bias(b)", {expr}, gathered, gpu_reference,
                   tile);
    }
  }
}

TEST_CASE("slopes are right in tiles of 16 keys, the narrowest") {
  GpuReference gpu_reference;
  for (const int head_dim : {64, 224}) {
    Case c = make_case(make_problem(DType::bfloat16, head_dim, 6, 2), 2, 203, 300);
    const Modified data(c, 1, 5);
    c.inputs = {data.slopes};
    c.changes.score = [=](double s, Row row, int key) {
      return s - at(data.slopes, c, row, 0, 1) * std::abs(row.q + 97 - key);
    };
    check_values("causal with alibi(s)", {causal()}, c, gpu_reference,
                 {.block_m = 128, .block_n = 16});
  }
}

TEST_CASE("sanitizer: slopes, biases and sinks are right") {
  GpuReference gpu_reference;
  Case c = make_case(make_problem(DType::bfloat16, 64, 6, 2), 2, 113, 203);
  c.max_ctas = 2;
  const Modified data(c, 2, 4);
  c.inputs = {data.slopes, data.bias, data.sinks};
  c.changes.score = [=](double s, Row row, int key) {
    return s - at(data.slopes, c, row, 0, 1) * std::abs(row.q + 90 - key) +
           at(data.bias, c, row, key, 203);
  };
  c.changes.sink_logit = [=](Row row) { return at(data.sinks, c, row, 0, 1); };
  for (const girih::TileConfig& tile : kKernels) {
    check_values("causal with alibi(s), bias(b), sink_logit(z)", {causal()}, c, gpu_reference,
                 tile);
  }
}
