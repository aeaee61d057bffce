// XXH3-128 digests: fast, and long enough to name cache entries by content.
#pragma once

#include <string>
#include <string_view>

namespace girih::support {

/// 16 bytes, in the hash's canonical (big-endian) order.
std::string digest_bytes(std::string_view bytes);

/// The same as 32 hexadecimal digits.
std::string digest(std::string_view bytes);

}  // namespace girih::support
