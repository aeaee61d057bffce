// Names of the public enumerations.
#include "girih/error.hpp"

#include "girih/problem.hpp"

namespace girih {

const char* to_string(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_argument:
      return "invalid_argument";
    case Errc::unsupported:
      return "unsupported";
    case Errc::compile_failed:
      return "compile_failed";
    case Errc::cache_io:
      return "cache_io";
    case Errc::driver:
      return "driver";
    case Errc::no_device:
      return "no_device";
    case Errc::jit_disabled:
      return "jit_disabled";
    case Errc::internal:
      return "internal";
  }
  return "unknown";
}

const char* to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::float16:
      return "fp16";
    case DType::bfloat16:
      return "bf16";
    case DType::float32:
      return "fp32";
  }
  return "unknown";
}

const char* to_string(Layout layout) noexcept {
  switch (layout) {
    case Layout::bshd:
      return "bshd";
    case Layout::bhsd:
      return "bhsd";
    case Layout::thd:
      return "thd";
  }
  return "unknown";
}

}  // namespace girih
