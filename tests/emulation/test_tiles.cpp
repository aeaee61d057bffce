// The kernel that finds the tiles of conditions, on emulated warps, against every element of them:
// of sequences and heads that differ, and of planes that several share.
#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/build_tiles.cuh"

namespace {

using namespace girih;
using emulation::below;

// As an entry has them.
struct SameDocument : ExpressionTensors<int> {
  static constexpr int kNumTensors = 1;
  bool operator()(const ElementIndices& at) const {
    return element<2, 0x1>(0, at.b, at.q) == element<2, 0x1>(0, at.b, at.k) && at.k <= at.p;
  }
};
struct ByHeadAndLength : ExpressionTensors<int> {
  static constexpr int kNumTensors = 0;
  bool operator()(const ElementIndices& at) const {
    return at.k < 40 * at.h - 100 * at.local_g || at.q > at.Sq - 9 || at.k > at.Sk - at.g;
  }
};
struct BlockCausal : ExpressionTensors<int> {
  static constexpr int kNumTensors = 0;
  bool operator()(const ElementIndices& at) const { return at.q / 100 >= at.k / 100; }
};
using Kernel = BuildTiles<SameDocument, ByHeadAndLength, BlockCausal>;

struct Launch {
  FwdParams params{};
  int batch = 0, group_size = 0, num_heads = 0;
  std::vector<int> lengths, documents;
  InputView views[2];

  explicit Launch(std::mt19937& random) {
    batch = 1 + below(random, 2);
    group_size = 1 + below(random, 2);
    num_heads = group_size * (1 + below(random, 2));
    Geometry& g = params.geometry;
    g.seqlen_q = 1 + below(random, 200);
    g.seqlen_k = 1 + below(random, below(random, 8) == 0 ? 2300 : 300);
    g.group_size = group_size;
    g.head = 2 * num_heads;  // of a rank
    g.head_kv = g.head / group_size;
    params.bottom_right = true;
    const int tokens = max(g.seqlen_q, g.seqlen_k);
    for (int i = 0, document = 0; i < batch * tokens; ++i) {
      document += below(random, 150) == 0 ? 1 : 0;
      documents.push_back(document);
    }
    TensorView view{};
    view.data = documents.data();
    view.extents[0] = batch;
    view.extents[1] = tokens;
    view.strides[0] = tokens;
    view.strides[1] = 1;
    void* const place = views;
    std::memcpy(place, &view, sizeof(view));
  }

  void shorten(std::mt19937& random) {
    for (int b = 0; b < batch; ++b) lengths.push_back(1 + below(random, params.geometry.seqlen_k));
    params.seqused_k = lengths.data();
  }

  // The bits of a condition, in as many planes as are wanted.
  std::vector<uint32> build(int condition, bool by_batch, int heads, std::mt19937& random) const {
    BuildTilesParams p{};
    p.condition = condition;
    p.planes_per_batch = heads;
    p.num_planes = heads * (by_batch ? batch : 1);
    p.heads_per_plane = num_heads / heads;
    p.shared_by_batch = by_batch ? 0 : 1;
    p.num_rows = ceil_div(params.geometry.seqlen_q, TileBits::kBlock);
    p.words_per_row = ceil_div(ceil_div(params.geometry.seqlen_k, TileBits::kBlock), 32);
    std::vector<uint32> bits(
        static_cast<std::size_t>(p.num_planes * p.num_rows * 2 * p.words_per_row), 0xdeadbeef);
    p.bits = bits.data();
    gridDim.x = 1 + below(random, 3);
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      emulation::cta.run(kBuildTilesThreads, [&] { Kernel::run(p, params, views); });
    }
    return bits;
  }

  Geometry geometry(int b, int head) const {
    Geometry g = sequence_of(params, b).geometry;
    g.head += head;
    g.head_kv += head / group_size;
    g.batch = b;
    g.local_head = head;
    g.inputs = views;
    return g;
  }
};

// What bits say of a tile must be so for its elements: exactly, or where planes are shared by
// sequences of different lengths without a false promise.
template <class Condition>
void check(const Launch& launch, const std::vector<uint32>& bits, bool by_batch, int heads,
           bool exact) {
  static constexpr int kPlaces[] = {0};
  const Condition condition{{launch.views, kPlaces}};
  const Geometry& longest = launch.params.geometry;
  const int rows = ceil_div(longest.seqlen_q, 64);
  const int words = ceil_div(ceil_div(longest.seqlen_k, 64), 32);
  std::int64_t wrong = 0;
  for (int b = 0; b < launch.batch; ++b) {
    for (int head = 0; head < launch.num_heads; ++head) {
      const Geometry g = launch.geometry(b, head);
      const int plane = (by_batch ? b : 0) * heads + head / (launch.num_heads / heads);
      const uint32* own = bits.data() + static_cast<std::ptrdiff_t>(plane) * rows * 2 * words;
      const TileBits tiles{own, words};
      for (int row = 0; row * 64 < g.seqlen_q; ++row) {
        for (int column = 0; column * 64 < g.seqlen_k; ++column) {
          bool some = false, all = true;
          for (int q = row * 64; q < min(row * 64 + 64, g.seqlen_q); ++q) {
            for (int k = column * 64; k < min(column * 64 + 64, g.seqlen_k); ++k) {
              const bool holds = condition(ElementIndices(g, q, k));
              some |= holds;
              all &= holds;
            }
          }
          const uint32 bit = 1u << column % 32;
          const bool says_some = (tiles.word(row, TileBits::kSome, column / 32) & bit) != 0;
          const bool says_all = (tiles.word(row, TileBits::kAll, column / 32) & bit) != 0;
          wrong += exact ? says_some != some || says_all != all
                         : (some && !says_some) || (says_all && !all);
        }
      }
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("tiles of a condition are those in which it holds for some and for all elements") {
  std::mt19937 random(61);
  for (int i = 0; i < 12; ++i) {
    Launch launch(random);
    const bool ragged = i % 2 == 1;
    if (ragged) launch.shorten(random);
    check<SameDocument>(launch, launch.build(0, true, 1, random), true, 1, true);
    check<ByHeadAndLength>(launch, launch.build(1, true, launch.num_heads, random), true,
                           launch.num_heads, true);
    if (!ragged) {
      check<ByHeadAndLength>(launch, launch.build(1, false, launch.num_heads, random), false,
                             launch.num_heads, true);
    }
    check<BlockCausal>(launch, launch.build(2, false, 1, random), false, 1, !ragged);
  }
}
