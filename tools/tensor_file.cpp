#include "tensor_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <system_error>

#include "girih/error.hpp"
#include "girih/problem.hpp"
#include "support/fs.hpp"
#include "support/safetensors.hpp"
#include "verify/reference.hpp"

namespace girih::tools {
namespace {

static_assert(std::endian::native == std::endian::little, "files are, too");

constexpr std::string_view kSafetensors = ".safetensors";
constexpr std::int64_t kMostElements = std::int64_t{1} << 33;

[[noreturn]] void refuse(const std::string& source, const std::string& why) {
  throw Error(Errc::invalid_argument, fmt::format("{}: {}", source, why));
}

std::string bytes_of_file(const std::string& path) {
  std::optional<std::string> bytes = support::read_file(path, support::kMaxTensorFileBytes);
  if (!bytes) {
    refuse(path, fmt::format("cannot be read: {}", std::generic_category().message(errno)));
  }
  return std::move(*bytes);
}

std::int64_t product(const std::string& source, const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) {
    if (extent < 0) refuse(source, fmt::format("has a dimension of {}", extent));
    if (extent > 0 && count > kMostElements / extent) {
      refuse(source, fmt::format("has more than {} elements", kMostElements));
    }
    count *= extent;
  }
  return count;
}

template <class Stored, class Widen>
std::vector<float> widened(const char* data, std::int64_t count, const Widen& widen) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, data + i * sizeof(Stored), sizeof(Stored));
    values[i] = widen(stored);
  }
  return values;
}

// `type` as safetensors spells it.
FileTensor tensor_of(const std::string& source, const std::string& type,
                     std::vector<std::int64_t> shape, std::string_view bytes) {
  const std::int64_t count = product(source, shape);
  const std::int64_t size = type == "F64" ? 8 : type == "F32" ? 4 : 2;
  if (type != "F16" && type != "BF16" && type != "F32" && type != "F64") {
    refuse(source,
           fmt::format("is of type {}: float16, bfloat16, float32 and float64 are read", type));
  }
  if (static_cast<std::int64_t>(bytes.size()) != count * size) {
    refuse(source, fmt::format("has {} bytes of values, not the {} of its shape", bytes.size(),
                               count * size));
  }
  FileTensor tensor{std::move(shape), {}};
  if (type == "F64") {
    tensor.values = widened<double>(bytes.data(), count,
                                    [](double value) { return static_cast<float>(value); });
  } else if (type == "F32") {
    tensor.values = widened<float>(bytes.data(), count, [](float value) { return value; });
  } else {
    const DType dtype = type == "F16" ? DType::float16 : DType::bfloat16;
    tensor.values = widened<std::uint16_t>(
        bytes.data(), count, [dtype](std::uint16_t bits) { return verify::widen(dtype, bits); });
  }
  return tensor;
}

// The value behind 'key': in a header, which is a Python dictionary.
std::string_view npy_field(const std::string& source, std::string_view header,
                           std::string_view key) {
  const std::string quoted = fmt::format("'{}':", key);
  const std::size_t at = header.find(quoted);
  if (at == header.npos) refuse(source, fmt::format("has no {} in its header", quoted));
  const std::size_t begin = header.find_first_not_of(' ', at + quoted.size());
  if (begin == header.npos) refuse(source, "ends in its header");
  return header.substr(begin);
}

FileTensor read_npy(const std::string& path) {
  const std::string bytes = bytes_of_file(path);
  const std::string_view view = bytes;
  if (!view.starts_with("\x93NUMPY") || view.size() < 12) refuse(path, "is no .npy file");
  if (view[6] < 1 || view[6] > 3) {
    refuse(path, fmt::format("is of version {} of .npy: 1 to 3 are read", int{view[6]}));
  }
  const bool first_version = view[6] == 1;
  std::uint32_t length = 0;
  std::memcpy(&length, view.data() + 8, first_version ? 2 : 4);
  const std::size_t begin = first_version ? 10 : 12;
  if (view.size() < begin + length) refuse(path, "ends in its header");
  const std::string_view header = view.substr(begin, length);

  const std::string_view order = npy_field(path, header, "fortran_order");
  if (order.starts_with("True")) {
    refuse(path, "is in Fortran's order: save numpy.ascontiguousarray of it");
  }
  if (!order.starts_with("False")) refuse(path, "has a 'fortran_order' that is no True or False");
  const std::string_view descr = npy_field(path, header, "descr");
  std::string type;
  for (const auto& [name, known] :
       {std::pair{"'<f2'", "F16"}, {"'<f4'", "F32"}, {"'<f8'", "F64"}}) {
    if (descr.starts_with(name)) type = known;
  }
  if (type.empty()) {
    refuse(path, fmt::format("is of type {}: '<f2', '<f4' and '<f8' are read",
                             descr.substr(0, descr.find(','))));
  }
  std::string_view dimensions = npy_field(path, header, "shape");
  const std::size_t end = dimensions.find(')');
  if (!dimensions.starts_with('(') || end == dimensions.npos) refuse(path, "has no shape");
  if (dimensions.substr(1, end - 1).find_first_not_of("0123456789, ") != dimensions.npos) {
    refuse(path,
           fmt::format("has the shape {}: whole numbers are read", dimensions.substr(0, end + 1)));
  }
  std::vector<std::int64_t> shape;
  std::int64_t extent = -1;
  for (const char c : dimensions.substr(1, end)) {
    if ('0' <= c && c <= '9') {
      extent = std::max<std::int64_t>(extent, 0) * 10 + (c - '0');
      if (extent > kMostElements) refuse(path, "is too large");
    } else if (extent >= 0) {
      shape.push_back(extent);
      extent = -1;
    }
  }
  return tensor_of(path, type, std::move(shape), view.substr(begin + length));
}

FileTensor read_safetensors(const std::string& source, const std::string& path, std::string name) {
  const support::SafetensorsFile file(path);
  const std::vector<std::string> names = file.names();
  if (name.empty() && names.size() == 1) name = names.front();
  if (name.empty() || !file.contains(name)) {
    refuse(path, fmt::format("write {}:NAME; its tensors are {}", path, fmt::join(names, ", ")));
  }
  support::SafetensorsFile::Tensor tensor = file.tensor(name, source);
  return tensor_of(source, tensor.dtype, std::move(tensor.shape), tensor.bytes);
}

}  // namespace

FileTensor read_tensor(const std::string& source) {
  const std::string file = file_of(source);
  if (!file.ends_with(kSafetensors)) return read_npy(file);
  return read_safetensors(source, file, source.substr(std::min(file.size() + 1, source.size())));
}

std::string file_of(const std::string& source) {
  const std::size_t at = source.rfind(kSafetensors);
  if (at == source.npos) return source;
  const std::size_t end = at + kSafetensors.size();
  return end < source.size() && source[end] == ':' ? source.substr(0, end) : source;
}

std::string safetensors_bytes(const std::string& name, const FileTensor& tensor,
                              const std::vector<std::pair<std::string, std::string>>& metadata) {
  nlohmann::ordered_json header;
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  const std::size_t size = tensor.values.size() * sizeof(float);
  header[name] = {
      {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {std::size_t{0}, size}}};
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // values are aligned
  const std::uint64_t length = text.size();
  std::string bytes(sizeof(length) + text.size() + size, '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  std::memcpy(bytes.data() + sizeof(length), text.data(), text.size());
  if (size > 0)
    std::memcpy(bytes.data() + sizeof(length) + text.size(), tensor.values.data(), size);
  return bytes;
}

}  // namespace girih::tools
