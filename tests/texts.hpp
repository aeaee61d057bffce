// What tests say of texts, messages among them.
#pragma once

#include <cstddef>
#include <string>

#include "girih/error.hpp"

namespace girih::tests {

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

inline std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
  return count;
}

/// The Error that a function throws.
template <class Function>
Error error_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error;
  }
  return {Errc::internal, "(nothing was thrown)"};
}

/// And its message.
template <class Function>
std::string message_of(Function function) {
  return error_of(function).what();
}

}  // namespace girih::tests
