// What estimates have in common: their operands' checks, and kernels for each type and width. And
// the arguments of columns and slashes, turned into kernel parameters.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <tuple>

#include "girih/estimate.hpp"
#include "girih/estimate_slash.cuh"
#include "girih/select_largest.cuh"
#include "runtime/cubin.hpp"

namespace girih::runtime {

/// Q and K, and what scores are multiplied with to be powers of two.
struct EstimateOperands {
  DType dtype;
  int head_dim;
  int batch, heads, heads_kv;
  int seqlen_q, seqlen_k;
  Strides q_strides, k_strides;
  float softmax_scale_log2;  ///< more than 0
};

/// Formats text only when it throws.
/// @throws Error invalid_argument, unsupported naming the argument, the value and what it should
/// be.
EstimateOperands check_operands(const Tensor& q, const Tensor& k, Layout layout,
                                std::optional<float> softmax_scale);

/// @throws Error invalid_argument, unsupported.
void check_width(DType dtype, int head_dim);

/// Two kernels of one cubin, in a context, for a type and width.
struct EstimateKernels {
  std::shared_ptr<Loaded> loaded;
  CUfunction main = nullptr, other = nullptr;
  plan::Arch arch;
  int num_sms = 0;
};

/// What the estimates' kernels differ in.
struct EstimateKind {
  const char* what;    ///< for messages: "estimates"
  const char* binder;  ///< the function that binds them, for messages
  Source (*source)(const plan::Arch&, DType, int head_dim, const Settings&);
  const char* other;  ///< the second kernel's symbol
};

/// The kernels of one kind of estimates, for every context, type and width.
class BoundEstimates {
 public:
  explicit BoundEstimates(const EstimateKind& kind) : kind_(kind) {}

  /// Of the current context; null where they are not bound.
  const EstimateKernels* find(DType dtype, int head_dim);
  /// In the current context.
  void bind(DType dtype, int head_dim, const jit::Options& options);
  /// Binds what is not bound, which is refused while `stream` is being captured.
  const EstimateKernels& find_or_bind(DType dtype, int head_dim, CUstream stream);

 private:
  using Key = std::tuple<unsigned long long, DType, int>;  // context, type, width
  EstimateKind kind_;
  std::shared_mutex mutex_;
  std::map<Key, EstimateKernels> kernels_;
};

void launch_estimate(CUfunction function, int num_ctas, int threads, int shared_bytes,
                     CUstream stream, void* params);

/// Calls `launch` with memory from the driver's pool, which is given back behind what it enqueued.
void with_scratch(std::size_t bytes, CUstream stream,
                  const std::function<void(CUdeviceptr)>& launch);

/// What the two kernels are launched with, but for their scratch memory.
struct EstimatePlan {
  EstimateParams estimate;
  SelectParams select;
  DType dtype;
  int head_dim;
  int shared_bytes;  ///< of the first kernel
  std::size_t parts_bytes, sums_bytes;

  std::size_t workspace_bytes() const { return sums_bytes + parts_bytes; }
};

/// Query heads of one KV head that a CTA takes at most: what fits every GPU's shared memory.
int most_estimate_heads(int head_dim);

/// Formats text only when it throws. @throws Error as check_operands.
EstimatePlan estimate_plan(const jit::EstimateArgs& args, int num_sms);
}  // namespace girih::runtime
