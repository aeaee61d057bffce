#include "progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "support/log.hpp"

namespace girih::tools {
namespace {

constexpr int kBarWidth = 24;
constexpr const char* kClearLine = "\r\033[K";

std::string duration_text(double seconds) {
  const auto rounded = static_cast<long>(seconds + 0.5);
  if (rounded < 60) return fmt::format("{} s", rounded);
  if (rounded < 3600) return fmt::format("{} min {:02} s", rounded / 60, rounded % 60);
  return fmt::format("{} h {:02} min", rounded / 3600, rounded / 60 % 60);
}

std::size_t terminal_width() {
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

Progress::Progress(std::string verb, std::size_t total)
    : verb_(std::move(verb)),
      total_(total),
      silent_(!support::log_enabled(support::LogLevel::warn)),
      bar_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (bar_ && done_ > 0) write(kClearLine);
}

void Progress::write(const std::string& text) const {
  if (silent_) return;
  // Progress that cannot be written is lost, as log lines are.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

void Progress::step(const std::string& what) {
  const std::lock_guard lock(mutex_);
  ++done_;
  const std::chrono::duration<double> elapsed = Clock::now() - begin_;
  const double left =
      elapsed.count() / static_cast<double>(done_) * static_cast<double>(total_ - done_);
  const std::string remaining = done_ < total_ ? "about " + duration_text(left) + " left"
                                               : "in " + duration_text(elapsed.count());
  if (!bar_) {
    write(fmt::format("girih: {}: {}/{} {}, {}\n", verb_, done_, total_, what, remaining));
    return;
  }
  const int filled = static_cast<int>(kBarWidth * done_ / std::max<std::size_t>(total_, 1));
  std::string line = fmt::format("{} [{:#<{}}{:.<{}}] {}/{}, {}  {}", verb_, "", filled, "",
                                 kBarWidth - filled, done_, total_, remaining, what);
  line.resize(std::min(line.size(), terminal_width() - 1));
  write(kClearLine + line);
}

}  // namespace girih::tools
