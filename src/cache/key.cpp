// Keys: the digest of an unambiguous serialisation of the parts.
#include "cache/key.hpp"

#include <cstdint>

#include "support/hash.hpp"

namespace girih::cache {
namespace {

/// Lengths before contents and counts before lists, so that no two different lists of parts give
/// the same bytes.
class Canonical {
 public:
  void number(std::uint64_t n) {
    for (int shift = 0; shift < 64; shift += 8) bytes_ += static_cast<char>(n >> shift & 0xff);
  }
  void text(const std::string& s) {
    number(s.size());
    bytes_ += s;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace

Key make_key(const KeyParts& parts) {
  Canonical canonical;
  canonical.text("girih key 1");  // the version of this serialisation
  canonical.text(parts.generator_version);
  canonical.text(parts.arch);
  canonical.text(parts.source);
  canonical.number(parts.manifest.size());
  for (const auto& [name, digest] : parts.manifest) {
    canonical.text(name);
    canonical.text(digest);
  }
  canonical.number(parts.options.size());
  for (const std::string& option : parts.options) canonical.text(option);
  return {parts.arch, support::digest(canonical.bytes())};
}

std::filesystem::path Key::relative_path() const {
  return std::filesystem::path(arch) / hex.substr(0, 2) / (hex.substr(2) + ".girih");
}

}  // namespace girih::cache
