// Data for a pattern's run-time inputs: made on the host, handed to a launch in any of the forms
// that it takes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "girih/inputs.hpp"
#include "girih/shared/geometry.cuh"
#include "verify/device.hpp"

namespace girih::verify {

/// How blocks reach the kernel.
enum class BlockForm {
  list,        ///< BlockList whose indptr counts through all planes
  plane_list,  ///< BlockList whose planes have indices of their own
  table,       ///< BlockTable
  bytes,       ///< BlockMask
  bits,        ///< BlockBits
};

struct InputData {
  InputInfo::Kind kind = InputInfo::Kind::blocks;
  std::string name;
  int batch = 1, heads = 1;  ///< extents

  BlockForm form = BlockForm::list;
  int num_q_blocks = 0, num_kv_blocks = 0;
  std::vector<std::uint8_t> visible = {};  ///< [batch, heads, num_q_blocks, num_kv_blocks]

  std::vector<std::int32_t> numbers = {};  ///< [batch, heads]; of indices, the queries'
  /// Of indices, [batch, heads, seqlen_q] and [batch, heads, seqlen_k] tokens. Without key_numbers
  /// the launch is given `numbers` for both.
  int seqlen_q = 0, seqlen_k = 0;
  std::vector<std::int32_t> key_numbers = {};

  /// Of slashes, [batch, heads, num_vertical] keys and [batch, heads, num_slash] distances.
  int num_vertical = 0, num_slash = 0;
  std::vector<std::int32_t> vertical = {}, slash = {};
  /// Of prune: [heads, num_columns], and the keys of its tiles.
  std::vector<float> thresholds = {};
  int num_columns = 0, prune_kv = 0;
  double skip = 0;  ///< thresholds are to be such that this share of tiles is below; 0: as they are

  /// Of columns, [batch, heads, seqlen_k] keys with one or two intervals: the bounds of each beside
  /// one another, start, end, start, end.
  int num_intervals = 0;
  std::vector<std::int32_t> bounds = {};

  /// Of head_values [batch, heads], of key_values [batch, heads, seqlen_k], of float_tensor
  /// `shape`.
  std::vector<float> values = {};

  std::vector<int> shape = {};  ///< of tensors; the elements of int_tensor are `numbers`

  /// Index of the plane of sequence b and query head h of num_heads.
  int plane(int b, int h, int num_heads) const {
    return (batch == 1 ? 0 : b) * heads + h / (num_heads / heads);
  }
  const std::uint8_t* row(int plane_index, int q_block) const {
    return visible.data() +
           (static_cast<std::int64_t>(plane_index) * num_q_blocks + q_block) * num_kv_blocks;
  }
};

/// Blocks visible with probability `density` on the whole; rows of blocks differ the more the
/// larger `skew` is: theirs goes with the skew-th power of a uniform variable.
InputData random_blocks(std::string name, int batch, int heads, int num_q_blocks, int num_kv_blocks,
                        double density, double skew, std::uint64_t seed);

/// Indices that rise by one after lengths of a log-normal distribution (sigma 1) with this mean:
/// documents packed in a sequence. The keys' last seqlen_q tokens have the queries' numbers.
InputData random_documents(std::string name, int batch, int heads, int seqlen_q, int seqlen_k,
                           double mean, std::uint64_t seed);

/// Indices drawn from [0, count), each for itself.
InputData random_indices(std::string name, int batch, int heads, int seqlen_q, int seqlen_k,
                         int count, std::uint64_t seed);

/// Columns and slashes as benchmarks without a model take them: the first 30 keys and others drawn
/// uniformly, the 100 least distances and others whose logarithms are uniform. Where an entry is
/// drawn twice, there are fewer.
InputData random_slashes(std::string name, int batch, int heads, int seqlen_k, int num_vertical,
                         int num_slash, std::uint64_t seed);

/// The planes of slashes as kernels read them, one for each sequence and head: shared/slash.cuh.
/// `sequences` are their lengths and positions. Fills in the strides of a view of them.
std::vector<std::uint32_t> slash_planes(const InputData& slashes,
                                        const std::vector<Geometry>& sequences, int seqlen_q,
                                        int seqlen_k, InputView& view);

/// Intervals of rows about each key, `num_intervals` of them, whose lengths go up to `most`; a few
/// are empty, and some reach beyond the last row. They move on with the keys.
InputData random_columns(std::string name, int batch, int heads, int seqlen_q, int seqlen_k,
                         int num_intervals, int most, std::uint64_t seed);

/// Normal values with this standard deviation, one a head, or where seqlen_k is not 0 one a key.
InputData random_values(std::string name, int batch, int heads, int seqlen_k, double deviation,
                        std::uint64_t seed);

/// What decides the extents of a tensor that expressions index: the largest of what indexes a
/// dimension by itself, or `free` where nothing does.
struct TensorExtents {
  int batch = 1, num_heads = 1, num_heads_kv = 1, seqlen_q = 1, seqlen_k = 1;
  int free = 64;
};
/// Elements drawn from [0, count), each for itself.
InputData random_int_tensor(const InputInfo& wanted, const TensorExtents& extents, int count,
                            std::uint64_t seed);
/// Along the last dimension documents as random_documents has them.
InputData document_tensor(const InputInfo& wanted, const TensorExtents& extents, double mean,
                          std::uint64_t seed);
/// Normal values with this standard deviation.
InputData random_float_tensor(const InputInfo& wanted, const TensorExtents& extents,
                              double deviation, std::uint64_t seed);

/// ALiBi's slopes: 2^(-8 (h + 1) / heads) for head h.
InputData alibi_slopes(std::string name, int heads);

/// The planes of indices or columns as kernels read them: shared/token_numbers.cuh.
std::vector<std::uint32_t> number_planes(const InputData& indices, int& num_spans);

/// The rows of all planes as BlockBits has them, each ceil(num_kv_blocks / 32) words.
std::vector<std::uint32_t> bit_rows(const InputData& blocks);

/// An input on the device. Lists come in random order, with entries that must be ignored.
class DeviceInput {
 public:
  explicit DeviceInput(const InputData& data);
  const Input& input() const { return input_; }

 private:
  template <class T>
  const T* upload(const std::vector<T>& values);

  std::vector<Buffer> buffers_;
  Input input_;
};

}  // namespace girih::verify
