// GPU architectures by name, and the limits that tiles must respect.
#pragma once

#include <string>
#include <string_view>

namespace girih::plan {

struct Arch {
  int number = 0;      ///< 90 for sm_90 and sm_90a
  std::string suffix;  ///< "", "a" or "f"

  /// "sm_90a" @throws Error invalid_argument when it is no such name, unsupported below sm_80.
  static Arch parse(std::string_view name);

  std::string name() const;                    ///< "sm_90a"
  Arch plain() const { return {number, ""}; }  ///< without features of one generation only

  int shared_bytes_per_cta() const;  ///< dynamic, the most a CTA can opt in to
  int shared_bytes_per_sm() const;
};

}  // namespace girih::plan
