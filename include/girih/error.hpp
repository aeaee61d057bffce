// The one exception type of the library. A message says what was wrong, the value, the limit and
// the remedy, so that it can be shown to a user as it is.
#pragma once

#include <stdexcept>
#include <string>

namespace girih {

enum class Errc {
  invalid_argument,  ///< the caller's input is wrong
  unsupported,       ///< well formed, but no kernel does it; the message lists every reason
  compile_failed,    ///< NVRTC is missing or refused the source
  cache_io,          ///< a cache operation that the caller asked for explicitly failed
  driver,            ///< a CUDA driver call failed
  no_device,         ///< no driver, no device or no current context
  jit_disabled,      ///< a cache miss while compilation is switched off
  internal,          ///< a defect in Girih
};

class Error : public std::runtime_error {
 public:
  Error(Errc code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Errc code() const noexcept { return code_; }

 private:
  Errc code_;
};

/// The enumerator's name, e.g. "invalid_argument".
const char* to_string(Errc code) noexcept;

}  // namespace girih
