// Runs a kernel on random inputs inside poisoned memory and compares its rows with a float64
// reference. Knows no patterns: what a row sees comes from the caller.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "girih/jit.hpp"
#include "verify/device.hpp"
#include "verify/reference.hpp"

namespace girih::verify {

/// One launch to be checked.
struct Case {
  Problem problem;
  int batch = 1;
  int seqlen_q = 0;
  int seqlen_k = 0;
  std::optional<float> softmax_scale;
  std::optional<int> q_start;
  int k_start = 0;
  int max_ctas = 0;
  int row_gap = 0;  ///< elements of padding after each row's heads; a multiple of 8
  bool with_lse = true;
  std::uint64_t seed = 1;
  std::int64_t max_rows = 0;  ///< to check; 0: all of them where that is cheap, else 4096
  enum class Reference { automatic, cpu, gpu } reference = Reference::automatic;
  bool timed = false;

  std::int64_t num_rows() const { return std::int64_t{batch} * problem.num_heads * seqlen_q; }
};

/// A bshd tensor in host and device memory, both of the same layout: NaN rows before it, after it
/// and between its sequences, more of them than the largest tile has, so that whatever is read
/// there shows in the result. Starts as NaN all over.
class PaddedTensor {
 public:
  PaddedTensor(DType dtype, std::array<std::int64_t, 4> shape, std::int64_t row_gap = 0);

  /// The head_dim elements of one row and head on the host.
  std::uint16_t* row(std::int64_t b, std::int64_t s, std::int64_t h);
  const std::uint16_t* row(std::int64_t b, std::int64_t s, std::int64_t h) const;

  /// Standard normal values, the same for the same seed wherever they are made.
  void fill_normal(std::uint64_t seed);

  void poison();    ///< device
  void upload();    ///< host to device
  void download();  ///< device to host
  /// Elements of the host copy's padding that are not poison any more.
  std::int64_t touched_padding() const;

  Tensor host() const;
  Tensor device() const;

 private:
  std::int64_t offset(std::int64_t b, std::int64_t s, std::int64_t h) const;
  Tensor view(void* memory) const;

  DType dtype_;
  std::array<std::int64_t, 4> shape_;
  std::array<std::int64_t, 4> stride_;
  std::int64_t first_;  // element
  std::vector<std::uint16_t> host_;
  Buffer device_;
};

/// The tensors of a case. The inputs start as NaN: fill and upload them.
struct Workload {
  explicit Workload(const Case& c);

  void fill_normal(std::uint64_t seed);  ///< q, k and v, on both sides
  void poison_outputs();
  void download_outputs();
  /// Elements written outside out and lse, as of download_outputs().
  std::int64_t touched_padding() const;
  float lse_at(Row row) const;

  /// Arguments of the launch. The case and its tensors must outlive them.
  jit::Args args() const;
  AttentionInputs host_inputs() const;
  AttentionInputs device_inputs() const;

  Case parameters;
  PaddedTensor q, k, v, out;
  Buffer lse_device;       // padded like lse
  std::vector<float> lse;  // [padding, batch, num_heads, seqlen_q, padding]
};

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

/// Compares one row: `out` holds head_dim bit patterns, `lse` may be null, `index` is the row's
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
  /// The largest error and what is allowed, of the group of rows that came closest to its limit.
  double error = 0;
  double allowed_error = 0;
  double lse_error = 0;              ///< largest
  std::int64_t not_finite = 0;       ///< elements of all rows, checked or not
  std::int64_t touched_padding = 0;  ///< elements written outside the outputs
  std::string reference;             ///< "CPU" or "GPU"
  std::vector<double> milliseconds;  ///< of the timed launches, sorted
  jit::KernelInfo kernel;

  bool ok() const { return rows_wrong == 0 && not_finite == 0 && touched_padding == 0; }
};

/// Judges rows by their errors. A row may be off by twice what a naive implementation in the
/// tensors' precision is off by, taken over the rows that see about as many keys: errors shrink
/// as rows grow, and short rows must not excuse long ones.
void judge(std::span<const RowCheck> rows, Report& report);

/// Rows to check: all, or `max_rows` that hold, for every class of heads, the first and last row
/// and as many rows beside multiples of 64 as fit into half of them, then random ones.
std::vector<Row> select_rows(int batch, int seqlen_q, std::span<const int> class_of_head,
                             std::int64_t max_rows, std::uint64_t seed);

/// Sets the bits of the keys that query head h sees in row q, in words that are zero. Called from
/// several threads.
using MaskRow = std::function<void(int h, int q, std::span<std::uint32_t> words)>;

/// The default q_start and softmax_scale of a launch are resolved here as the library does it.
int q_start_of(const Case& c);
float softmax_scale_of(const Case& c);

/// Binds, launches and checks. @throws Error what binding and launching throw.
Report verify_attention(const jit::Program& program, const Case& c, const MaskRow& mask_row,
                        GpuReference& gpu_reference);

}  // namespace girih::verify
