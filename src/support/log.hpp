// Messages for a person, on stderr: GIRIH_LOG=off|warn|info|debug, default warn.
#pragma once

#include <string_view>

namespace girih::support {

enum class LogLevel { off, warn, info, debug };

bool log_enabled(LogLevel level);
/// "girih: warning: ..." One write a message, so that lines of several threads do not mix.
void log(LogLevel level, std::string_view message);
/// The same, but only the first time that `topic` is used in this process.
void log_once(LogLevel level, std::string_view topic, std::string_view message);

}  // namespace girih::support
