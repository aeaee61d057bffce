// The host's reading of a pattern: which heads see the same, what their rows see, how much that is.
#pragma once

#include "common.hpp"
#include "girih/shared/geometry.cuh"
#include "pattern/interpret.hpp"
#include "verify/pruning.hpp"
#include "verify/verify.hpp"

namespace girih::tools {

/// Of one sequence, aligned bottom-right, in the first of the problem's heads.
Geometry geometry_of(int seqlen_q, int seqlen_k, const Problem& problem);
/// Of every sequence of a case, which are equally long.
Geometry geometry_of(const verify::Case& c);

/// Heads that see the same: a class of the pattern, or a part of one whose mask tells heads apart.
struct HeadGroup {
  Mask mask;               ///< with the numbers that run-time inputs give these heads
  std::vector<int> heads;  ///< query heads of the whole model, ascending
  Geometry geometry;       ///< of the first of them
  std::size_t pattern_class;
};

/// @throws Error invalid_argument where the lengths do not go with the pattern's grids.
void check_lengths(const Pattern& pattern, const Geometry& geometry);

/// Every class has a group, be it one without heads; classes in order, then groups by their first
/// head. `geometry` is that of the problem's first head, with the inputs of one sequence.
/// @throws Error invalid_argument when a head is covered never or twice, and as check_lengths.
std::vector<HeadGroup> head_groups(const Pattern& pattern, const Problem& problem,
                                   const Geometry& geometry);

/// What a mask shows in one head, and which tiles a kernel visits. Where counting would take more
/// than about a second times a share, an estimate by some tiles, which takes about as long.
struct Counts {
  pattern::TileCounts tiles;
  double visible = 0;
  int sampled_rows = 0;  ///< 0: all were counted
  int sampled_keys = 0;  ///< of each of those rows; 0: all
};
/// @throws Error invalid_argument where looking at a single tile takes too long.
Counts count_or_estimate(const Mask& mask, const Geometry& geometry, int block_m, int block_n,
                         double share);
/// Of an estimate: "from 1088 of 131072 rows and 4096 of their 131072 keys".
std::string sample_text(int sampled_rows, int sampled_keys, int seqlen_q, int seqlen_k);

/// Likewise: cells by some of their elements.
struct HeadPicture {
  std::string cells;
  bool sampled;
};
HeadPicture picture_of(const Mask& mask, const Geometry& geometry, double share);

/// Run-time inputs as the host's reading takes them: Geometry::inputs.
class HostInputs {
 public:
  /// `data` in the order of Pattern::inputs(); `geometry` is that of every sequence.
  HostInputs(const std::vector<verify::InputData>& data, int num_heads, const Geometry& geometry);
  const InputView* views() const { return views_.data(); }

 private:
  void add_tensors(const std::vector<verify::InputData>& data);

  std::vector<std::vector<std::uint32_t>> words_;
  std::vector<InputView> views_;
};

/// The rows of a case as bits. @throws as head_groups.
verify::MaskRow reading_of(const Pattern& pattern, const verify::Case& c);

/// The same without the tiles that are pruned, by the normal values that the case's seed gives. As
/// prune_reading changes the case's thresholds. Needs a GPU's memory where some may be skipped.
verify::PrunedReading reading_of_pruned(const Pattern& pattern, verify::Case& c);

/// Floating-point operations of the visible elements, all heads and sequences.
double visible_flop(const Pattern& pattern, const verify::Case& c);

}  // namespace girih::tools
