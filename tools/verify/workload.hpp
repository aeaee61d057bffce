// One launch to be checked, and its tensors on the device inside poisoned memory.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "girih/jit.hpp"
#include "verify/device.hpp"
#include "verify/inputs.hpp"
#include "verify/reference.hpp"

namespace girih::verify {

/// Lengths of single sequences. Each vector is empty or has a number for every sequence.
struct SequenceLengths {
  std::vector<int> q, k;       ///< layout thd; empty: seqlen_q, seqlen_k of the case
  std::vector<int> used_k;     ///< Args::seqused_k
  std::vector<int> leftpad_k;  ///< Args::leftpad_k
};

struct Case {
  Problem problem;
  int batch = 1;     ///< sequences, in every layout
  int seqlen_q = 0;  ///< of every sequence, or the maximum where `lengths` says more
  int seqlen_k = 0;
  SequenceLengths lengths;
  std::vector<float> softcaps;    ///< of query heads, 0 for none; empty: the program's, or none
  ScoreChanges changes;           ///< empty: the program's, or none
  std::vector<InputData> inputs;  ///< of the pattern
  std::optional<float> softmax_scale;
  std::optional<int> q_start;
  int k_start = 0;
  float empty_lse = -std::numeric_limits<float>::infinity();
  int max_ctas = 0;
  int row_gap = 0;   ///< elements of padding after each row in memory; a multiple of 8
  int head_gap = 0;  ///< and after each head, be it of a row or, in bhsd, of a sequence
  bool with_lse = true;
  std::uint64_t seed = 1;
  std::int64_t max_rows = 0;  ///< to check; 0: all of them where that is cheap, else 4096
  enum class Reference { automatic, cpu, gpu } reference = Reference::automatic;
  bool timed = false;
};

/// One sequence of a case: what remains of its lengths, and where it lies in the tensors.
struct Sequence {
  int seqlen_q, seqlen_k;
  int q_start, k_start;       ///< positions of its first query and key
  std::int64_t batch;         ///< index into the tensors' batch dimension
  std::int64_t q_row, k_row;  ///< of its first query and key in there
};

/// The sequences as Args defines them.
std::vector<Sequence> sequences_of(const Case& c);

float softmax_scale_of(const Case& c);

/// A tensor in host and device memory, alike in both: rows of `width` elements, surrounded by NaN.
/// What follows the rows of a sequence (in bhsd, of a head) are more NaN rows than the largest tile
/// has, so that whatever is read there shows in the result; packed sequences touch one another.
/// Starts as NaN all over. Indices are (batch, row, head) in every layout.
class PaddedTensor {
 public:
  struct Shape {
    std::int64_t batch, rows, heads, width;
  };
  PaddedTensor(DType dtype, Layout layout, Shape shape, std::int64_t row_gap,
               std::int64_t head_gap);

  /// The elements of one row and head on the host.
  std::uint16_t* row(std::int64_t b, std::int64_t s, std::int64_t h);
  const std::uint16_t* row(std::int64_t b, std::int64_t s, std::int64_t h) const;

  /// Standard normal values, the same for the same seed in every layout and on every machine.
  void fill_normal(std::uint64_t seed);

  void poison();    ///< device
  void upload();    ///< host to device
  void download();  ///< device to host
  void download_row(std::int64_t b, std::int64_t s, std::int64_t h);
  /// Elements of the host copy that are not poison.
  std::int64_t count_written() const;
  /// Elements on the device that are not poison before and after the rows, where there are no gaps.
  std::int64_t count_written_around() const;

  const Shape& shape() const { return shape_; }
  /// Dimensions in the order [batch, row, head, width], whatever the layout.
  Tensor host() const;
  Tensor device() const;

 private:
  std::int64_t offset(std::int64_t b, std::int64_t s, std::int64_t h) const;
  Tensor view(void* memory) const;

  DType dtype_;
  Shape shape_;
  std::int64_t row_stride_, head_stride_, batch_stride_;
  std::int64_t first_;  // element
  std::vector<std::uint16_t> host_;
  Buffer device_;
};

/// The tensors of a case. The inputs start as NaN: fill and upload them.
struct Workload {
  explicit Workload(const Case& c);

  /// q, k and v, on both sides. Keys that belong to no sequence stay NaN.
  void fill_normal(std::uint64_t seed);
  void upload_inputs();
  void poison_outputs();
  void download_outputs();
  /// Only these rows. @return elements written before and after the rows of each batch.
  std::int64_t download_outputs(std::span<const Row> rows);
  /// Elements of out and lse written where no sequence has a row, as of download_outputs().
  std::int64_t touched_padding() const;

  std::int64_t num_rows() const;  ///< of all heads and sequences
  int longest_k() const;

  std::uint16_t* q_row(Row row);
  std::uint16_t* k_row(int b, int key, int head_kv);
  const std::uint16_t* out_row(Row row) const;
  float lse_at(Row row) const;

  /// Arguments of the launch. The case and its tensors must outlive them.
  jit::Args args() const;
  AttentionInputs host_inputs() const;
  AttentionInputs device_inputs() const;

  Case parameters;
  std::vector<Sequence> sequences;
  PaddedTensor q, k, v, out;
  Buffer lse_device;       // padded like lse
  std::vector<float> lse;  // [padding, what Args::lse is, padding]

 private:
  AttentionInputs inputs(Tensor q_view, Tensor k_view, Tensor v_view) const;

  // What the launch needs beside tensors; without a value where it gets null.
  std::vector<DeviceInput> pattern_inputs_;
  std::optional<Buffer> cu_seqlens_q_, cu_seqlens_k_, seqused_k_, leftpad_k_;
};

}  // namespace girih::verify
