// What tests say of messages.
#pragma once

#include <string>

#include "girih/error.hpp"

namespace girih::tests {

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

/// Of the Error that a function throws.
template <class Function>
std::string message_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

}  // namespace girih::tests
