// .safetensors files: the length of a header in JSON, the header, and the bytes of its tensors.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace girih::support {

/// Examples of Q and K for long sequences are large, and so may be files that hold many tensors.
inline constexpr long kMaxTensorFileBytes = 64L << 30;

/// A whole file in memory. What cannot be read throws Error invalid_argument, which names the file.
class SafetensorsFile {
 public:
  struct Tensor {
    std::string dtype;  ///< as the format spells it: "F32"
    std::vector<std::int64_t> shape;
    std::string_view bytes;  ///< of the file; how many the shape has is not looked at
  };

  explicit SafetensorsFile(const std::string& path);

  std::vector<std::string> names() const;  ///< of its tensors, in order
  bool contains(const std::string& name) const;
  /// @param source what errors about its bytes call it.
  Tensor tensor(const std::string& name, const std::string& source) const;
  std::map<std::string, std::string> metadata() const;

 private:
  std::string path_;
  std::string bytes_;
  std::size_t data_ = 0;  // where tensors' bytes begin
  nlohmann::json header_;
};

}  // namespace girih::support
