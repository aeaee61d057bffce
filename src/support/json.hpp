// What nlohmann::json says of text that it cannot read.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace girih::support {

/// Without the library's own name for the error: "parse error at line 1, column 2: ...".
inline std::string message_of(const nlohmann::json::exception& error) {
  const std::string text = error.what();  // "[json.exception.parse_error.101] parse error at ..."
  const std::size_t end = text.find("] ");
  return text.starts_with("[json.exception") && end != text.npos ? text.substr(end + 2) : text;
}

}  // namespace girih::support
