// Attention of chosen rows in float64, on the CPU or by a naive kernel on the GPU, and beside it
// what a naive implementation in the tensors' own precision would give.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/module.hpp"
#include "girih/problem.hpp"
#include "girih/reference.cuh"

namespace girih::verify {

/// The bit pattern of `value` rounded to `dtype`, to nearest even; too large values become
/// infinite, NaN stays NaN.
std::uint16_t narrow(DType dtype, float value);

float widen(DType dtype, std::uint16_t bits);

using Row = ReferenceRow;  ///< {b, h, q}, h a query head

/// Words of a row's mask: bit k % 32 of word k / 32 says whether key k is visible.
inline int mask_words(int seqlen_k) { return (seqlen_k + 31) / 32; }

/// What is done to scores after the softcap.
struct ScoreChanges {
  std::function<double(double score, Row row, int key)> score = {};  ///< natural; empty: nothing
  std::function<double(Row row)> sink_logit = {};                    ///< -inf for none; empty: none
  bool any() const { return score || sink_logit; }
};

struct AttentionInputs {
  /// In host memory for the CPU, in device memory for the GPU. Shapes and strides in the order
  /// [batch, seqlen, heads, width], whatever the layout; seqlen is the longest sequence's.
  Tensor q, k, v;
  float softmax_scale = 1;
  std::vector<ReferenceStart> starts = {};  ///< of sequences; empty: by the batch strides
  std::vector<float> softcaps = {};         ///< of query heads, 0 for none; empty: none at all
  ScoreChanges changes = {};                ///< known to the CPU alone

  int seqlen_k() const { return static_cast<int>(k.shape[1]); }
  int head_dim() const { return static_cast<int>(q.shape[3]); }
  int head_dim_v() const { return static_cast<int>(v.shape[3]); }
  int group_size() const { return static_cast<int>(q.shape[2] / k.shape[2]); }
  ReferenceStart start(int b) const;
};

/// A row that sees nothing has out = 0 and lse = its sink's logit, or -inf.
struct ReferenceRows {
  std::vector<double> out;  ///< [rows, head_dim_v]
  std::vector<double> lse;  ///< [rows], natural log
  /// [rows, head_dim_v]: scores rounded to the dtype, softmax in float32, probabilities rounded,
  /// their product with V summed in float32, and the sum rounded.
  std::vector<float> naive_lowp;
};

/// `masks` holds mask_words(seqlen_k) words a row, zeros after the sequence's last key.
ReferenceRows reference_on_cpu(const AttentionInputs& inputs, std::span<const Row> rows,
                               std::span<const std::uint32_t> masks);

/// The cubin of the naive kernel. @throws Error compile_failed.
std::string compile_reference(const std::string& arch);

/// The naive kernel, compiled when it is first used.
class GpuReference {
 public:
  /// As reference_on_cpu, in the current context. Widths: multiples of 8 up to 256.
  ReferenceRows operator()(const AttentionInputs& inputs, std::span<const Row> rows,
                           std::span<const std::uint32_t> masks);

 private:
  std::unique_ptr<cuda::Module> module_;
};

}  // namespace girih::verify
