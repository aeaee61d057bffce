#include "tune/tuner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <thread>

namespace girih::tune {
namespace {

constexpr double kTie = 1.01;

void compile_all(std::vector<Timing>& timings, const Callbacks& callbacks, const Limits& limits) {
  const double end = callbacks.clock() + limits.compile_seconds;
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < timings.size(); i = next++) {
      Timing& timing = timings[i];
      if (callbacks.clock() >= end) {
        timing.dropped = "not compiled: there was no time left";
        continue;
      }
      try {
        const Compiled compiled = callbacks.compile(timing.tile);
        if (compiled.spill_bytes > 0 || compiled.stack_bytes > 0) {
          timing.dropped = fmt::format("spills {} bytes, {} bytes of stack", compiled.spill_bytes,
                                       compiled.stack_bytes);
        }
      } catch (const std::exception& error) {
        timing.dropped = error.what();
      }
    }
  };
  std::vector<std::jthread> threads;
  const int useful = std::min(limits.num_threads, static_cast<int>(timings.size()));
  for (int i = 1; i < useful; ++i) threads.emplace_back(work);
  work();
}

double fastest_median(const std::vector<Timing>& timings) {
  double fastest = std::numeric_limits<double>::infinity();
  for (const Timing& timing : timings) {
    if (!timing.ms.empty()) fastest = std::min(fastest, timing.median());
  }
  return fastest;
}

// What three launches show to be far behind need not be known exactly, except what the others are
// compared with.
bool wants_more(const Timing& timing, bool first, double fastest, const Limits& limits) {
  if (!timing.dropped.empty()) return false;
  const int repeats = static_cast<int>(timing.ms.size());
  if (repeats < 3) return true;
  if (!first && timing.median() > limits.hopeless * fastest) return false;
  return repeats < limits.min_repeats ||
         (repeats < limits.max_repeats && timing.spread() > limits.settled);
}

void add(Timing& timing, const std::vector<double>& ms) {
  for (const double value : ms) {
    if (!std::isfinite(value) || value <= 0) {
      timing.dropped = fmt::format("a launch took {} ms", value);
      timing.ms.clear();
      return;
    }
    timing.ms.push_back(value);
  }
  std::sort(timing.ms.begin(), timing.ms.end());
}

int best_of(const std::vector<Timing>& timings) {
  const double fastest = fastest_median(timings);
  for (std::size_t i = 0; i < timings.size(); ++i) {
    if (timings[i].ms.empty()) continue;
    const double limit = i == 0 ? fastest * kTie : fastest;
    if (timings[i].median() <= limit) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

double Timing::quantile(double q) const {
  return ms[static_cast<std::size_t>(std::lround(q * static_cast<double>(ms.size() - 1)))];
}

Outcome tune(std::span<const TileConfig> candidates, const Callbacks& callbacks,
             const Limits& limits) {
  Outcome outcome;
  for (const TileConfig& tile : candidates) outcome.timings.push_back({tile, {}, {}});
  compile_all(outcome.timings, callbacks, limits);

  const double end = callbacks.clock() + limits.budget_seconds;
  for (bool measured = true; measured;) {
    measured = false;
    const double fastest = fastest_median(outcome.timings);
    for (Timing& timing : outcome.timings) {
      const bool first = &timing == &outcome.timings.front();
      if (!wants_more(timing, first, fastest, limits)) continue;
      if (callbacks.clock() >= end) {
        measured = false;
        break;
      }
      try {
        if (timing.ms.empty()) timing.dropped = callbacks.check(timing.tile);
        if (timing.dropped.empty()) add(timing, callbacks.measure(timing.tile));
      } catch (const std::exception& error) {
        timing.dropped = error.what();
        timing.ms.clear();
      }
      measured = true;
    }
  }
  outcome.best = best_of(outcome.timings);
  return outcome;
}

}  // namespace girih::tune
