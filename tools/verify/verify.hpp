// Runs a kernel on a workload and compares its rows with a float64 reference. Knows no patterns:
// what a row sees comes from the caller.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "girih/jit.hpp"
#include "verify/reference.hpp"
#include "verify/workload.hpp"

namespace girih::verify {

/// What was found out about one row.
struct RowCheck {
  Row row{};
  std::int64_t num_visible = 0;
  double error = 0;              ///< max |out - reference|
  double naive_error = 0;        ///< max |naive_lowp - reference|
  double got = 0, expected = 0;  ///< of the element with the largest error
  double lse_error = 0;
  double got_lse = 0, expected_lse = 0;
  std::string broken;  ///< what no tolerance excuses, e.g. "out is not finite"
};

/// Compares one row: `out` holds head_dim_v bit patterns, `lse` may be null, `index` is the row's
/// place in `reference`.
RowCheck check_row(DType dtype, Row row, std::int64_t num_visible, const ReferenceRows& reference,
                   std::size_t index, std::span<const std::uint16_t> out, const float* lse);

struct Failure {
  Row row{};
  std::string what;
  double got = 0;
  double expected = 0;
};

struct Report {
  std::int64_t rows_total = 0;
  std::int64_t rows_checked = 0;
  std::int64_t rows_wrong = 0;
  std::vector<Failure> failures;  ///< the first few
  /// Of all rows, or of the group of rows that came closer to its limit: the largest error, what
  /// is allowed, and which rows these are, e.g. "all rows" or "rows of 64 to 127 keys".
  double error = 0;
  double allowed_error = 0;
  std::string closest;
  double lse_error = 0;              ///< largest
  std::int64_t not_finite = 0;       ///< elements of all rows, checked or not
  std::int64_t touched_padding = 0;  ///< elements written outside the outputs
  std::string reference;             ///< "CPU" or "GPU"
  std::vector<double> milliseconds;  ///< of the timed launches, sorted
  jit::KernelInfo kernel;

  bool ok() const { return rows_wrong == 0 && not_finite == 0 && touched_padding == 0; }
};

/// Judges rows by their errors, against what a naive implementation in the tensors' precision is
/// off by. The output as a whole may be off by twice that. Errors shrink as rows grow, and short
/// rows must not excuse long ones: rows that see about as many keys as one another may together be
/// off by three times what the naive implementation is off by in them.
void judge(std::span<const RowCheck> rows, Report& report);

/// Rows to check of sequences with `seqlens_q` rows: all, or `max_rows` that hold, for every class
/// of heads, the first row and the longest sequence's last row and as many rows beside multiples of
/// 64 as fit into half of them, then random ones.
std::vector<Row> select_rows(std::span<const int> seqlens_q, std::span<const int> class_of_head,
                             std::int64_t max_rows, std::uint64_t seed);

/// Sets the bits of the keys that a row sees, of its own sequence's, in words that are zero and
/// hold the longest sequence. Called from several threads.
using MaskRow = std::function<void(Row row, std::span<std::uint32_t> words)>;

/// Of each head, 0 for none.
std::vector<float> softcaps_of(const Pattern& pattern, std::span<const int> class_of_head);

/// What the pattern's other modifiers do to scores, with the case's inputs.
ScoreChanges changes_of(const Pattern& pattern, const Case& c);

/// Binds, launches and checks. @throws Error what binding and launching throw.
Report verify_attention(const jit::Program& program, const Case& c, const MaskRow& mask_row,
                        GpuReference& gpu_reference);

}  // namespace girih::verify
