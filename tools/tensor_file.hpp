// Tensors in files: NumPy's .npy, and .safetensors. Values are read as float32, whatever they were.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace girih::tools {

struct FileTensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;  ///< in row-major order
};

/// "FILE.npy", or "FILE.safetensors:NAME"; NAME may be left out where there is one tensor. float16,
/// bfloat16 (safetensors only), float32 and float64. @throws Error invalid_argument.
FileTensor read_tensor(const std::string& source);

/// FILE of such a text.
std::string file_of(const std::string& source);

/// One float32 tensor and what there is to say about it, as bytes of a .safetensors file.
std::string safetensors_bytes(const std::string& name, const FileTensor& tensor,
                              const std::vector<std::pair<std::string, std::string>>& metadata);

}  // namespace girih::tools
