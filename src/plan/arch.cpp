#include "plan/arch.hpp"

#include <fmt/format.h>

#include <charconv>

#include "girih/error.hpp"

namespace girih::plan {

Arch Arch::parse(std::string_view name) {
  Arch arch;
  const bool prefixed = name.starts_with("sm_");
  const char* first = name.data() + (prefixed ? 3 : 0);
  const char* last = name.data() + name.size();
  const auto [end, error] = std::from_chars(first, last, arch.number);
  arch.suffix.assign(end, last);
  const bool suffix_known = arch.suffix.empty() || arch.suffix == "a" || arch.suffix == "f";
  if (!prefixed || error != std::errc() || !suffix_known || arch.number <= 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("'{}' is not a GPU architecture: write sm_80, sm_90 or sm_90a", name));
  }
  if (arch.number < 80) {
    throw Error(Errc::unsupported,
                fmt::format("{} is not supported: the kernels need sm_80 or newer", name));
  }
  return arch;
}

std::string Arch::name() const { return fmt::format("sm_{}{}", number, suffix); }

// CUDA C++ Programming Guide, "Compute Capabilities". An architecture that is not in the table
// gets what every supported one has.
int Arch::shared_bytes_per_cta() const {
  switch (number) {
    case 80:
    case 87:
      return 163 * 1024;
    case 90:
    case 100:
    case 103:
    case 110:
      return 227 * 1024;
    default:
      return 99 * 1024;
  }
}

int Arch::shared_bytes_per_sm() const { return shared_bytes_per_cta() + 1024; }

}  // namespace girih::plan
