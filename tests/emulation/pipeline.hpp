// What tests of the Hopper kernel's consumers have in common: stages whose contents are tiles'
// numbers, copies that end in any order, products that a warpgroup's warps begin together, and the
// producer's warps as fwd_sm90 has them, of each one lane.
//
// A Kernel has kNumStages, kNumQStages, kNumVisits, kNumWorks, kConsumers (warps), kLayout and
// Control.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <new>
#include <utility>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/attn/pipeline_sm90.cuh"
#include "girih/attn/ring.cuh"
#include "girih/ptx/wgmma.cuh"

namespace emulation {

using girih::uint32;
using girih::uint64;

// What lies in a stage: the number of a tile, or nothing, and how often that has changed.
struct Content {
  static constexpr int kNothing = -1;
  int tile = kNothing;
  uint32 changes = 0;
  void set(int number) { *this = {number, changes + 1}; }
  bool operator==(const Content&) const = default;
};

inline Content& content_at(uint32 address) {
  return *reinterpret_cast<Content*>(shared_memory(address));
}

// A row of 64 query rows has a content of its own, for each warpgroup stages its own output.
template <class Kernel>
unsigned char* queries_at(unsigned char* shared, int stage, int warpgroup) {
  return shared + stage * Kernel::kLayout.q_stage_bytes + warpgroup * 64 * girih::kPanelRowBytes;
}

template <class Kernel>
void clear_stages(unsigned char* shared) {
  for (int i = 0; i < Kernel::kNumQStages; ++i) {
    for (int w = 0; w < Kernel::kConsumers / 4; ++w) {
      new (queries_at<Kernel>(shared, i, w)) Content{};
    }
  }
  for (int i = 0; i < Kernel::kNumStages; ++i) {
    new (shared + Kernel::kLayout.k_offset + i * Kernel::kLayout.k_stage_bytes) Content{};
    new (shared + Kernel::kLayout.v_offset + i * Kernel::kLayout.v_stage_bytes) Content{};
  }
}

// Tiles come in any order, some time after their copies have begun.
class CopyEngine {
 public:
  void clear() {
    copies_.clear();
    no_more_ = false;
  }
  void begin(int tile, const uint64& full, const std::vector<unsigned char*>& to) {
    for (const Copy& other : copies_) {
      if (other.full == &full) cta.fail("a copy begins before the stage's last has ended");
    }
    constexpr int kMostTurns = 300;
    const int turns = below(cta.random(), 4) == 0 ? below(cta.random(), kMostTurns) : 0;
    Copy copy{{}, tile, &full, turns};
    for (unsigned char* at : to) {
      copy.to.push_back(reinterpret_cast<Content*>(at));
      copy.to.back()->set(Content::kNothing);
    }
    copies_.push_back(copy);
  }
  void stop() { no_more_ = true; }
  void run() {
    while (true) {
      cta.wait_until([&] { return no_more_ || !copies_.empty(); });
      if (copies_.empty()) return;
      const auto next = copies_.begin() + below(cta.random(), static_cast<int>(copies_.size()));
      if (next->turns-- > 0) {
        cta.rest();
        continue;
      }
      const Copy copy = *next;
      copies_.erase(next);
      for (Content* content : copy.to) content->set(copy.tile);
      girih::arrive(*copy.full);
      cta.rest();
    }
  }

 private:
  struct Copy {
    std::vector<Content*> to;
    int tile;
    const uint64* full;
    int turns;  // that it takes
  };
  std::vector<Copy> copies_;
  bool no_more_ = false;
};

// Products of a warpgroup are those of its four warps together: all begin the same ones.
class Products {
 public:
  Products(int warpgroups, int lanes, bool in_step)
      : lanes_(lanes), in_step_(in_step), warpgroups_(static_cast<std::size_t>(warpgroups)) {}

  // The thread's product number `index`; end() is what it leaves.
  void begin(std::size_t index, int what, std::function<void()> end) {
    Warpgroup& own = warpgroups_[static_cast<std::size_t>(threadIdx.x / 128 - 1)];
    if (index == own.begun.size()) {
      own.begun.push_back(what);
      own.begun_by.push_back(0);
    }
    if (own.begun[index] != what) cta.fail("warps of a warpgroup begin different products");
    ++own.begun_by[index];
    products[threadIdx.x].push_back([this, &own, index, end = std::move(end)] {
      if (in_step_) cta.wait_until([&] { return own.begun_by[index] == 4 * lanes_; });
      end();
    });
  }

 private:
  struct Warpgroup {
    std::vector<int> begun, begun_by;  // and by how many threads
  };
  int lanes_;
  bool in_step_;  // whether warps of a warpgroup wait for one another's products
  std::vector<Warpgroup> warpgroups_;
};

// --- The producer's warps ---

// Announces visits, in the scheduler's place.
template <class Kernel>
class Announcer {
 public:
  explicit Announcer(typename Kernel::Control& control) : control_(control) {}

  typename Kernel::Work& describe(int first_row) {
    const auto works = girih::ring_at<Kernel::kNumWorks>(count_++);
    girih::wait(control_.work_empty[works.stage], works.parity ^ 1);
    typename Kernel::Work& work = control_.work[works.stage];
    work = {};
    work.first_row = first_row;
    return work;
  }
  void announce(const typename Kernel::Visit& visit) {
    girih::wait(control_.visit_empty[visits_.stage], visits_.parity ^ 1);
    control_.visits[visits_.stage] = visit;
    girih::arrive(control_.visit_full[visits_.stage]);
    visits_.advance();
  }
  void end() {
    describe(-1);
    announce({girih::kFirstVisit | girih::kLastVisit, {0}});
  }

 private:
  typename Kernel::Control& control_;
  girih::Ring<Kernel::kNumVisits> visits_;
  uint32 count_ = 0;
};

template <class Kernel>
void load_queries_and_keys(typename Kernel::Control& control, unsigned char* shared,
                           CopyEngine& copies) {
  using girih::arrive, girih::wait;
  girih::Ring<Kernel::kNumVisits> visits;
  girih::Ring<Kernel::kNumStages> keys;
  uint32 count = 0;
  for (int number = 0;; ++number) {
    wait(control.visit_full[visits.stage], visits.parity);
    const auto visit = control.visits[visits.stage];
    const auto& work = control.work[count % Kernel::kNumWorks];
    if (visit.flags & girih::kFirstVisit) {
      const auto queries = girih::ring_at<Kernel::kNumQStages>(count);
      const bool none_left = work.first_row < 0;
      wait(control.q_empty[queries.stage], queries.parity ^ 1);
      if (none_left) {
        arrive(control.q_full[queries.stage]);
        break;
      }
      std::vector<unsigned char*> to;
      for (int w = 0; w < Kernel::kConsumers / 4; ++w) {
        to.push_back(queries_at<Kernel>(shared, queries.stage, w));
      }
      copies.begin(static_cast<int>(count), control.q_full[queries.stage], to);
    }
    wait(control.k_empty[keys.stage], keys.parity ^ 1);
    control.tiles[keys.stage] = visit;
    copies.begin(number, control.k_full[keys.stage],
                 {shared + Kernel::kLayout.k_offset + keys.stage * Kernel::kLayout.k_stage_bytes});
    arrive(control.visit_empty[visits.stage]);
    visits.advance();
    if (visit.flags & girih::kLastVisit) arrive(control.work_empty[count++ % Kernel::kNumWorks]);
    keys.advance();
  }
}

// load(visit, number, copy) calls copy() if V of the visit is to be copied.
template <class Kernel, class Load>
void load_values(typename Kernel::Control& control, unsigned char* shared, CopyEngine& copies,
                 const Load& load) {
  using girih::arrive, girih::wait;
  girih::Ring<Kernel::kNumVisits> visits;
  girih::Ring<Kernel::kNumStages> values;
  uint32 count = 0;
  for (int number = 0;; ++number) {
    wait(control.visit_full[visits.stage], visits.parity);
    const auto visit = control.visits[visits.stage];
    arrive(control.visit_empty[visits.stage]);
    visits.advance();
    const auto& work = control.work[count % Kernel::kNumWorks];
    if (work.first_row < 0) break;
    if (visit.flags & girih::kLastVisit) arrive(control.work_empty[count++ % Kernel::kNumWorks]);
    wait(control.v_empty[values.stage], values.parity ^ 1);
    load(visit, number, [&] {
      copies.begin(
          number, control.v_full[values.stage],
          {shared + Kernel::kLayout.v_offset + values.stage * Kernel::kLayout.v_stage_bytes});
      values.advance();
    });
  }
}

template <class Kernel>
void store_output(typename Kernel::Control& control, CopyEngine& copies) {
  using girih::arrive, girih::wait;
  for (uint32 count = 0;; ++count) {
    const auto queries = girih::ring_at<Kernel::kNumQStages>(count);
    wait(control.q_full[queries.stage], queries.parity);
    const auto work_stage = count % Kernel::kNumWorks;
    if (control.work[work_stage].first_row < 0) break;
    wait(control.out_full[queries.stage], queries.parity);
    arrive(control.q_empty[queries.stage]);
    arrive(control.work_empty[work_stage]);
  }
  copies.stop();  // all output is there, so that everything has been read
}

template <class Kernel>
void init_barriers(typename Kernel::Control& control) {
  const auto init_all = [](auto& barriers, int arrivals) {
    for (const uint64& barrier : barriers) {
      girih::mbarrier_init(girih::shared_address(&barrier), arrivals);
    }
  };
  init_all(control.work_empty, Kernel::kConsumers + 3);
  init_all(control.visit_full, 1);
  init_all(control.visit_empty, 2);
  init_all(control.q_full, 1);
  init_all(control.q_empty, 1);
  init_all(control.out_full, Kernel::kConsumers);
  init_all(control.k_full, 1);
  init_all(control.k_empty, Kernel::kConsumers);
  init_all(control.v_full, 1);
  init_all(control.v_empty, Kernel::kConsumers);
}

// --- In the end ---

// Whether no phase has some of its arrivals alone.
template <class Barriers>
bool are_whole(const Barriers& barriers) {
  return std::all_of(std::begin(barriers), std::end(barriers), [](const uint64& barrier) {
    const auto state = Mbarrier::at(girih::shared_address(&barrier));
    return state.missing == state.arrivals;
  });
}

// Whether both have had as many phases.
template <class Barriers>
bool are_even(const Barriers& full, const Barriers& empty) {
  return std::equal(std::begin(full), std::end(full), std::begin(empty), [](auto& a, auto& b) {
    return Mbarrier::at(girih::shared_address(&a)).phase ==
           Mbarrier::at(girih::shared_address(&b)).phase;
  });
}

// Of the visit that ends the walk one of the loaders does not say that it has read it.
template <class Control>
bool barriers_are_at_rest(const Control& c) {
  return are_whole(c.work_empty) && are_whole(c.visit_full) && are_whole(c.q_full) &&
         are_whole(c.q_empty) && are_whole(c.out_full) && are_whole(c.k_full) &&
         are_whole(c.k_empty) && are_whole(c.v_full) && are_whole(c.v_empty) &&
         are_even(c.k_full, c.k_empty) && are_even(c.v_full, c.v_empty) &&
         are_even(c.out_full, c.q_empty);
}

// A number in [0, 1).
inline float noise(int tile, int thread, int element) {
  uint32 bits = static_cast<uint32>(tile * 384 + thread) * 16 + static_cast<uint32>(element);
  bits = (bits ^ bits >> 15) * 0x2c1b3c6du;
  bits = (bits ^ bits >> 12) * 0x297a2d39u;
  return static_cast<float>((bits ^ bits >> 15) >> 8) / (1 << 24);
}

}  // namespace emulation
