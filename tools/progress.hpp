// How far a long verb is: on stderr, a bar where that is a terminal, else a line a step.
#pragma once

#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>

namespace girih::tools {

/// Thread-safe. Silent with GIRIH_LOG=off.
class Progress {
 public:
  Progress(std::string verb, std::size_t total);
  ~Progress();  ///< leaves the cursor at the start of a line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// One more step is done; `what` says which.
  void step(const std::string& what);

 private:
  using Clock = std::chrono::steady_clock;
  void write(const std::string& text) const;

  std::mutex mutex_;
  std::string verb_;
  std::size_t total_, done_ = 0;
  Clock::time_point begin_ = Clock::now();
  bool silent_, bar_;
};

}  // namespace girih::tools
