// Planes of run-time inputs as the oracle has them: what is given to one sequence and head.
#pragma once

#include <cstdint>
#include <vector>

#include "../oracle/oracle.hpp"
#include "verify/inputs.hpp"

namespace gpu_tests {

/// Of a block mask.
inline oracle::Expr blocks_of(const girih::verify::InputData& data, int plane, int q_block,
                              int kv_block) {
  const std::uint8_t* first = data.row(plane, 0);
  const std::int64_t size = std::int64_t{data.num_q_blocks} * data.num_kv_blocks;
  return {oracle::Expr::Kind::blocks,
          {},
          {},
          {},
          {.name = data.name,
           .q = q_block,
           .kv = kv_block,
           .columns = data.num_kv_blocks,
           .visible = std::vector<char>(first, first + size)}};
}

/// Of columns and slashes, for some rows of a sequence of these sizes.
inline oracle::Expr slashes_of(const girih::verify::InputData& data, int plane,
                               const oracle::Sizes& sizes, const std::vector<int>& rows) {
  oracle::Expr expr{oracle::Expr::Kind::vertical_slash, {}, {}};
  expr.slash.name = data.name;
  expr.slash.distances.insert(0);
  for (int i = 0; i < data.num_vertical; ++i) {
    expr.slash.columns.insert(
        data.vertical[static_cast<std::size_t>(plane * data.num_vertical + i)]);
  }
  for (int i = 0; i < data.num_slash; ++i) {
    const auto distance = data.slash[static_cast<std::size_t>(plane * data.num_slash + i)];
    if (distance >= 0) expr.slash.distances.insert(distance);
  }
  expr.slash.remember(sizes, rows);
  return expr;
}

/// Of numbers of tokens.
inline oracle::Expr indices_of(oracle::Expr::Kind kind, const girih::verify::InputData& data,
                               int plane) {
  const auto row = [&](const std::vector<std::int32_t>& numbers, int length) {
    const auto first = numbers.begin() + std::int64_t{plane} * length;
    return std::vector<long long>(first, first + length);
  };
  oracle::Expr expr{kind, {}, {}};
  const bool shared = data.key_numbers.empty();
  expr.indices = {data.name, row(data.numbers, data.seqlen_q),
                  row(shared ? data.numbers : data.key_numbers, data.seqlen_k)};
  return expr;
}

/// Of intervals of rows.
inline oracle::Expr columns_of(const girih::verify::InputData& data, int plane) {
  oracle::Expr expr{oracle::Expr::Kind::columns, {}, {}};
  expr.columns.name = data.name;
  const std::int32_t* bound =
      data.bounds.data() + std::int64_t{plane} * data.seqlen_k * 2 * data.num_intervals;
  for (int k = 0; k < data.seqlen_k; ++k) {
    expr.columns.rows.emplace_back();
    for (int i = 0; i < data.num_intervals; ++i, bound += 2) {
      expr.columns.rows.back().emplace_back(bound[0], bound[1]);
    }
  }
  return expr;
}

}  // namespace gpu_tests
