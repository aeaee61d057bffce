// Reading and writing the format of cache entries.
#include "cache/entry.hpp"

#include <cstdint>
#include <nlohmann/json.hpp>

#include "support/hash.hpp"

namespace girih::cache {
namespace {

constexpr std::string_view kMagic{"GIRIH\0\0", 7};
constexpr char kFormatVersion = 1;
constexpr std::size_t kChecksumAt = 8;
constexpr std::size_t kLengthAt = kChecksumAt + 16;
constexpr std::size_t kDescriptionAt = kLengthAt + 8;
constexpr std::size_t kAlignment = 64;  // of the cubin in the file

// The fields of an entry that its description holds, by name.
void for_each_field(auto& entry, auto visit) {
  visit("key", entry.key);
  visit("arch", entry.arch);
  visit("generator_version", entry.generator_version);
  visit("pattern", entry.pattern);
  visit("source", entry.source);
  visit("manifest", entry.manifest);
  visit("options", entry.options);
  visit("symbol", entry.symbol);
  visit("registers", entry.registers);
  visit("spill_bytes", entry.spill_bytes);
  visit("stack_bytes", entry.stack_bytes);
  visit("shared_bytes", entry.shared_bytes);
  visit("threads", entry.threads);
  visit("compile_ms", entry.compile_ms);
  visit("compiler", entry.compiler);
}

}  // namespace

std::string serialize(const Entry& entry) {
  using Json = nlohmann::ordered_json;
  Json description;
  for_each_field(entry, [&](const char* name, const auto& field) { description[name] = field; });
  // A pattern's text may be anything: bytes that are not UTF-8 become U+FFFD rather than an error.
  std::string text = description.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize(
      (kDescriptionAt + text.size() + kAlignment - 1) / kAlignment * kAlignment - kDescriptionAt,
      ' ');

  std::string covered;  // by the checksum
  for (int shift = 0; shift < 64; shift += 8)
    covered += static_cast<char>(std::uint64_t{text.size()} >> shift & 0xff);
  covered += text;
  covered += entry.cubin;

  std::string bytes(kMagic);
  bytes += kFormatVersion;
  bytes += support::digest_bytes(covered);
  bytes += covered;
  return bytes;
}

bool deserialize(std::string_view bytes, Entry& entry, std::string& problem) {
  const auto refuse = [&](const char* why) {
    problem = why;
    return false;
  };
  if (bytes.empty()) return refuse("empty");
  if (bytes.size() < kDescriptionAt) return refuse("truncated");
  if (!bytes.starts_with(kMagic)) return refuse("not a cache entry");
  if (bytes[kMagic.size()] != kFormatVersion) return refuse("another version of the format");
  if (bytes.substr(kChecksumAt, 16) != support::digest_bytes(bytes.substr(kLengthAt)))
    return refuse("truncated or altered: its checksum differs");

  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i)
    length = length << 8 | static_cast<unsigned char>(bytes[kLengthAt + static_cast<unsigned>(i)]);
  if (length > bytes.size() - kDescriptionAt) return refuse("its description is too long");

  try {
    const auto description = nlohmann::json::parse(bytes.substr(kDescriptionAt, length));
    Entry read;
    for_each_field(read,
                   [&](const char* name, auto& field) { description.at(name).get_to(field); });
    read.cubin = bytes.substr(kDescriptionAt + length);
    entry = std::move(read);
    return true;
  } catch (const nlohmann::json::exception&) {
    return refuse("its description is not understood");
  }
}

}  // namespace girih::cache
