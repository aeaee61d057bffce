// Log lines. The level is read once: a process does not change its mind.
#include "support/log.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <mutex>
#include <set>
#include <string>

#include "support/env.hpp"

namespace girih::support {
namespace {

void write_line(LogLevel level, std::string_view message) {
  const char* const name = level == LogLevel::warn   ? "warning"
                           : level == LogLevel::info ? "info"
                                                     : "debug";
  const std::string line = fmt::format("girih: {}: {}\n", name, message);
  // A log line that cannot be written is lost; there is nowhere to say so.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

LogLevel level_from_environment() {
  const std::string text = env("LOG").value_or("warn");
  if (text == "off") return LogLevel::off;
  if (text == "info") return LogLevel::info;
  if (text == "debug") return LogLevel::debug;
  if (text != "warn")
    write_line(LogLevel::warn,
               fmt::format("GIRIH_LOG={} is not off, warn, info or debug; using warn", text));
  return LogLevel::warn;
}

}  // namespace

bool log_enabled(LogLevel level) {
  static const LogLevel limit = level_from_environment();
  return level != LogLevel::off && level <= limit;
}

void log(LogLevel level, std::string_view message) {
  if (log_enabled(level)) write_line(level, message);
}

void log_once(LogLevel level, std::string_view topic, std::string_view message) {
  if (!log_enabled(level)) return;
  static std::mutex mutex;
  static std::set<std::string, std::less<>> topics;
  {
    const std::lock_guard guard(mutex);
    if (!topics.emplace(topic).second) return;
  }
  write_line(level, message);
}

}  // namespace girih::support
