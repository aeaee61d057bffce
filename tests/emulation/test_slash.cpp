// The GPU's side of vertical_slash on emulated warps, against the definition: the rows of bits that
// the lists become, and the key tiles that are gathered from them, in which every key that a block
// of rows sees must occur once.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/attn/gather_slash.cuh"
#include "girih/build_slash.cuh"
#include "oracle/oracle.hpp"

namespace {

using namespace girih;
using emulation::below;
using Phase = BuildSlashParams::Phase;

// Lists of every plane and what the kernel makes of them.
struct Built {
  FwdParams params{};
  BuildSlashParams build{};
  std::vector<int> lengths, columns, distances;
  std::vector<int> num_clusters;
  std::vector<uint32> bits;
  std::vector<SlashCluster> clusters;
  std::vector<SlashLink> links;
  InputView view;
  int out_of_range = 0, ignored = 0;

  // `long_sequence`: of more keys, and distances, than are collected at once.
  explicit Built(std::mt19937& random, bool long_sequence = false) {
    const int batch = 1 + below(random, 2), heads = 1 + below(random, 2);
    Geometry& longest = params.geometry;
    longest.seqlen_q = 1 + below(random, below(random, 4) == 0 ? 4000 : 400);
    longest.seqlen_k = 1 + below(random, below(random, 4) == 0 ? 5000 : 700);
    if (long_sequence) longest = {150 + below(random, 250), 210000 + below(random, 500), 0, 0};
    params.bottom_right = below(random, 4) != 0 || long_sequence;
    if (!params.bottom_right) {
      longest.k_start = below(random, 50);
      longest.q_start = below(random, 800) - 200;
    }
    for (int b = 0; b < batch; ++b) {
      const int length = 1 + below(random, longest.seqlen_k);
      lengths.push_back(long_sequence ? longest.seqlen_k : length);
    }
    params.seqused_k = lengths.data();

    build.seqlen_k = longest.seqlen_k;
    build.num_distances =
        SlashPlane::kRows - 1 +
        max(params.bottom_right ? longest.seqlen_k : longest.diagonal(longest.seqlen_q), 0);
    build.num_columns = below(random, 3) == 0 ? 0 : below(random, longest.seqlen_k + 1);
    if (below(random, 2) == 0) build.num_columns /= 8;
    build.num_distances_given = below(random, below(random, 3) == 0 ? 300 : 20);
    if (long_sequence) build.num_columns += kAtPieces, build.num_distances_given += kAtPieces;
    build.num_planes = batch * heads;
    build.planes_per_batch = build.planes_per_source_batch = heads;
    fill(random, columns, build.num_planes * build.num_columns, build.seqlen_k, build.seqlen_k);
    fill(random, distances, build.num_planes * build.num_distances_given, build.num_distances, 200);
    if (long_sequence) {
      put_at_piece(random, columns, build.num_columns, 32 * BuildSlash::kSharedWords);
      put_at_piece(random, distances, build.num_distances_given,
                   32 * (BuildSlash::kSharedWords - 4));
    }
    build.columns = columns.data();
    build.distances = distances.data();
    build.num_ignored = &ignored;
    build.num_blocks = ceil_div(longest.seqlen_q, SlashPlane::kRows);
    build.words_per_row = SlashPlane::words_per_row(longest.seqlen_k);
    const int64 plane_words = build.plane_words();
    constexpr uint32 kPoison = 0xdeadbeef;
    bits.assign(static_cast<std::size_t>(build.num_planes * plane_words), kPoison);
    const auto planes = static_cast<std::size_t>(build.num_planes);
    num_clusters.assign(planes, -7);
    clusters.assign(planes * static_cast<std::size_t>(build.most_clusters()), {-7, -7});
    links.assign(planes * static_cast<std::size_t>(build.most_links()), {-7, -7, -7});
    build.bits = bits.data();
    build.num_clusters = num_clusters.data();
    build.clusters = clusters.data();
    build.links = links.data();
    view = {bits.data(), heads * plane_words, plane_words, build.words_per_row, 1};

    gridDim.x = 1 + below(random, 3);
    for (const Phase phase : {Phase::collect, Phase::link, Phase::windows}) {
      build.phase = phase;
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        emulation::cta.run(kBuildSlashThreads, [&] { BuildSlash::run(build, params); });
      }
    }
  }
  Built(const Built&) = delete;
  Built& operator=(const Built&) = delete;

  Geometry geometry(int plane) const {
    Geometry geometry = sequence_of(params, plane / build.planes_per_batch).geometry;
    geometry.inputs = &view;
    geometry.batch = plane / build.planes_per_batch;
    geometry.local_head = plane % build.planes_per_batch;
    return geometry;
  }

  oracle::Expr expr(int plane) const {
    oracle::Expr expr{oracle::Expr::Kind::vertical_slash, {}, {}};
    expr.slash.distances.insert(0);
    for (int i = 0; i < build.num_distances_given; ++i) {
      const int distance =
          distances[static_cast<std::size_t>(plane * build.num_distances_given + i)];
      if (distance >= 0) expr.slash.distances.insert(distance);
    }
    for (int i = 0; i < build.num_columns; ++i) {
      expr.slash.columns.insert(columns[static_cast<std::size_t>(plane * build.num_columns + i)]);
    }
    return expr;
  }

 private:
  static constexpr int kAtPieces = 40;  // entries of a plane's list, around where a piece ends

  void put_at_piece(std::mt19937& random, std::vector<int>& list, int row, int end_of_piece) {
    for (int plane = 0; plane < build.num_planes; ++plane) {
      const int spread = plane % 2 == 0 ? 200 : 4000;  // one cluster, or several
      for (int i = 0; i < kAtPieces; ++i) {
        int& entry = list[static_cast<std::size_t>(plane * row + i)];
        const int limit = &list == &columns ? build.seqlen_k : build.num_distances;
        out_of_range -= entry >= limit;
        entry = i == 0 ? limit : end_of_piece - spread / 2 + below(random, spread);
        out_of_range += entry >= limit;
      }
    }
  }

  void fill(std::mt19937& random, std::vector<int>& list, int count, int limit, int near) {
    for (int i = 0; i < count; ++i) {
      const int entry = below(random, below(random, 2) == 0 ? near : limit + 2);
      list.push_back(below(random, 10) == 0 ? -1 : entry);
      out_of_range += list.back() >= limit;
    }
  }
};

oracle::Sizes sizes_of(const Geometry& g) { return {g.seqlen_q, g.seqlen_k, g.q_start, g.k_start}; }

// A box of keys and what the blocks of rows see of it.
struct Box {
  int key;
  uint32 seen[kSlashBlocks];
  friend bool operator==(const Box&, const Box&) = default;
};
using Boxes = std::vector<Box>;

// The boxes that windows become, in order: runs of keys that the same blocks have in windows fill
// boxes from their first key on, but for what the box with the rest of the run before took.
// has(part, key): whether a block has a key before `end` in a window. A row of boxes for each set
// of blocks that see them whole, and the rest.
template <class Has>
std::vector<Boxes> boxes_of(int end, const Has& has) {
  std::vector<uint32> parts(static_cast<std::size_t>(end + kSlashBox));
  for (int key = 0; key < end; ++key) {
    for (int part = 0; part < kSlashBlocks; ++part) {
      parts[static_cast<std::size_t>(key)] |= has(part, key) ? 1u << part : 0u;
    }
  }
  std::vector<Boxes> rows(std::size_t{1} << kSlashBlocks);
  for (int key = 0; key < end;) {
    const auto at = parts.begin() + key;
    if (*at == 0) {
      ++key;
      continue;
    }
    Box box{key, {}};
    for (int i = 0; i < kSlashBox; ++i) {
      for (int part = 0; part < kSlashBlocks; ++part) box.seen[part] |= (at[i] >> part & 1) << i;
    }
    const bool whole = std::all_of(at, at + kSlashBox, [&](uint32 other) { return other == *at; });
    rows[whole ? *at - 1 : rows.size() - 1].push_back(box);
    key += kSlashBox;
  }
  return rows;
}

// How often the blocks of rows of the query tile at `first_row` see each key before it; and the
// boxes among what was gathered.
template <int kBlockN>
std::vector<std::vector<int>> gathered(const Geometry& g, int first_row, int num_blocks, int end,
                                       std::vector<Boxes>& boxes_seen) {
  using Gather = SlashGather<kBlockN>;
  boxes_seen.assign(Gather::kMasked + 1, {});
  std::vector<std::vector<int>> seen(kSlashBlocks,
                                     std::vector<int>(static_cast<std::size_t>(end), 0));
  typename Gather::Staging staging;
  int beyond = 0;
  emulation::cta.run(32, [&] {
    Gather gather(staging);
    const auto count = [&](int part, int key) { ++seen[part].at(static_cast<std::size_t>(key)); };
    const auto emit = [&](int row, int first, int entries) {
      const bool boxes = row < Gather::kSingle;
      const int columns = entries * (boxes ? kSlashBox : 1);
      for (int i = 0; threadIdx.x == 0 && boxes && i < entries; ++i) {
        Box box{staging.box(row, first + i), {}};
        for (int part = 0; part < kSlashBlocks; ++part) {
          const uint32 word = staging.seen(row, first, entries, part, i / 2);
          box.seen[part] = word >> i % 2 * kSlashBox & 0xffff;
        }
        boxes_seen[static_cast<std::size_t>(row)].push_back(box);
      }
      for (int i = 0; threadIdx.x == 0 && i < kBlockN; ++i) {
        for (int part = 0; part < kSlashBlocks; ++part) {
          if ((staging.seen(row, first, entries, part, i / 32) >> i % 32 & 1) == 0) continue;
          if (i >= columns) {  // behind the last entry: nobody may see it
            ++beyond;
          } else {
            count(part, boxes ? staging.box(row, first + i / kSlashBox) + i % kSlashBox
                              : staging.single.keys[i]);
          }
        }
      }
      __syncwarp();
    };
    const auto emit_tiles = [&](bool fills, int row, int first) {
      for (uint32 lanes = __ballot_sync(0xffffffff, fills); lanes != 0; lanes &= lanes - 1) {
        const int lane = lowest_bit(lanes);
        emit(__shfl_sync(0xffffffff, row, lane), __shfl_sync(0xffffffff, first, lane),
             Gather::kBoxes);
      }
    };
    gather.run(SlashPlane::of(g, 0), first_row / SlashPlane::kRows, num_blocks, end, emit,
               emit_tiles);
  });
  CHECK(beyond == 0);
  return seen;
}

}  // namespace

TEST_CASE("the rows of bits that lists become show exactly their columns and windows") {
  std::mt19937 random(1);
  const int numbers[] = {0};
  const VerticalSlash atom(numbers);
  // Blocks that have their own row, another's, and that of one whose second window is another.
  int num_own = 0, num_shared = 0, num_found = 0;
  for (int i = 0; i < 150; ++i) {
    const Built built(random);
    CHECK(built.ignored == built.out_of_range);
    for (int plane = 0; plane < built.build.num_planes; ++plane) {
      const Geometry g = built.geometry(plane);
      const SlashPlane rows = SlashPlane::of(g, 0);
      for (int block = 0; block < ceil_div(g.seqlen_q, SlashPlane::kRows); ++block) {
        const auto has_row_of = [&](int other) {
          return rows.windows(block).words ==
                 rows.columns + built.build.row_at(other) + (other - block) * SlashPlane::kStep;
        };
        int owner = block;
        while (owner % SlashPlane::kShared != SlashPlane::kShared - 1 && !has_row_of(owner))
          ++owner;
        REQUIRE(has_row_of(owner));
        ++(owner == block ? num_own : num_shared);
        const auto second_window = [&](int of) {
          const BuildSlashParams& p = built.build;
          return built
              .links[static_cast<std::size_t>(plane * p.most_links() + p.most_clusters() + of)]
              .next;
        };
        num_found += second_window(owner) != second_window(block);
      }
      oracle::Expr expr = built.expr(plane);
      std::int64_t wrong = 0;
      for (int q = 0; q < g.seqlen_q; q += 1 + q % 7) {
        expr.slash.remember(sizes_of(g), {q});
        for (int k = 0; k < g.seqlen_k; k += 32) {
          const uint32 word = atom.row_bits(g, q, {k});
          for (int bit = 0; bit < std::min(32, g.seqlen_k - k); ++bit) {
            wrong += oracle::visible(expr, sizes_of(g), q, k + bit) != ((word >> bit & 1) != 0);
          }
        }
      }
      REQUIRE(wrong == 0);
    }
  }
  CHECK(num_shared > 500);
  CHECK(num_own > 300);
  CHECK(num_found > 100);
}

TEST_CASE("seeks through rows that lists become are sound") {
  std::mt19937 random(5);
  const int numbers[] = {0};
  const VerticalSlash atom(numbers);
  int num_empty = 0, num_full = 0;
  for (int i = 0; i < 60; ++i) {
    const Built built(random);
    const Geometry g = built.geometry(below(random, built.build.num_planes));
    oracle::Expr expr = built.expr(g.batch * built.build.planes_per_batch + g.local_head);
    const KeyTiles tiles{16 << below(random, 4), g.seqlen_k};
    const int block_m = 64 << below(random, 4);
    for (int begin = 0; begin < g.seqlen_q; begin += block_m * (1 + below(random, 3))) {
      const QueryRows rows{begin, min(begin + block_m, g.seqlen_q)};
      std::vector<int> all(static_cast<std::size_t>(rows.end - rows.begin));
      std::iota(all.begin(), all.end(), rows.begin);
      expr.slash.remember(sizes_of(g), all);
      for (int n = 0; n < tiles.count(); ++n) {
        const TileKind kind = atom.seek(g, rows, tiles, n).kind;
        if (kind == TileKind::partial) continue;
        ++(kind == TileKind::full ? num_full : num_empty);
        const int end = min((n + 1) * tiles.block_n, g.seqlen_k);
        std::int64_t wrong = 0;
        for (int q = rows.begin; q < rows.end; q += 1 + q % 5) {
          for (int k = n * tiles.block_n; k < end; ++k) {
            wrong += oracle::visible(expr, sizes_of(g), q, k) != (kind == TileKind::full);
          }
        }
        REQUIRE(wrong == 0);
      }
    }
  }
  CHECK(num_empty > 100);
  CHECK(num_full > 100);
}

TEST_CASE("lists of more keys than are collected at once show exactly their columns and windows") {
  std::mt19937 random(3);
  const int numbers[] = {0};
  const VerticalSlash atom(numbers);
  for (int i = 0; i < 4; ++i) {
    const Built built(random, true);
    CHECK(built.ignored == built.out_of_range);
    for (int plane = 0; plane < built.build.num_planes; ++plane) {
      const Geometry g = built.geometry(plane);
      oracle::Expr expr = built.expr(plane);
      std::int64_t wrong = 0, visible = 0;
      for (int q = 0; q < g.seqlen_q; q += 64) {
        expr.slash.remember(sizes_of(g), {q});
        for (int k = 0; k < g.seqlen_k; ++k) {
          const bool sees = oracle::visible(expr, sizes_of(g), q, k);
          visible += sees;
          wrong += sees != ((atom.row_bits(g, q, {k / 32 * 32}) >> k % 32 & 1) != 0);
        }
      }
      CHECK(visible > 0);
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE(
    "every key before a query tile is gathered once for each block that sees it, in order", Size,
    gathered_once) {
  std::mt19937 random(2);
  for (int i = 0; i < 60; ++i) {
    const Built built(random, i == 0 && Size::value == 128);
    for (int plane = 0; plane < built.build.num_planes; ++plane) {
      const Geometry g = built.geometry(plane);
      oracle::Expr expr = built.expr(plane);
      for (int first_row = 0; first_row < g.seqlen_q;
           first_row += kSlashBlocks * SlashPlane::kRows) {
        std::vector<int> rows;  // a block's first
        for (int part = 0; part < kSlashBlocks; ++part) {
          const int row = first_row + part * SlashPlane::kRows;
          if (row < g.seqlen_q) rows.push_back(row);
        }
        const int end = min(max(g.diagonal(first_row), 0), g.seqlen_k);
        std::vector<Boxes> boxes;
        const auto seen =
            gathered<Size::value>(g, first_row, static_cast<int>(rows.size()), end, boxes);
        expr.slash.remember(sizes_of(g), rows);
        oracle::Expr windows = expr;
        windows.slash.columns.clear();
        windows.slash.remember(sizes_of(g), rows);
        const auto visible = [&](const oracle::Expr& mask, int part, int key) {
          const auto at = static_cast<std::size_t>(part);
          return at < rows.size() && oracle::visible(mask, sizes_of(g), rows[at], key);
        };
        REQUIRE(boxes ==
                boxes_of(end, [&](int part, int key) { return visible(windows, part, key); }));
        std::int64_t wrong = 0;
        for (int part = 0; part < kSlashBlocks; ++part) {
          for (int k = 0; k < end; ++k) {
            const int times = seen[static_cast<std::size_t>(part)][static_cast<std::size_t>(k)];
            wrong += times != visible(expr, part, k);
          }
        }
        REQUIRE(wrong == 0);
      }
    }
  }
}
TEST_CASE_TEMPLATE_INVOKE(gathered_once, std::integral_constant<int, 128>,
                          std::integral_constant<int, 112>, std::integral_constant<int, 96>,
                          std::integral_constant<int, 64>, std::integral_constant<int, 16>);

TEST_CASE("rows of any bits are gathered, however often they change") {
  std::mt19937 random(4);
  for (int i = 0; i < 40; ++i) {
    Geometry g{};
    g.seqlen_q = kSlashBlocks * SlashPlane::kRows;
    g.seqlen_k = 1 + below(random, 5000);
    const int words = SlashPlane::words_per_row(g.seqlen_k);
    std::vector<uint32> bits(
        static_cast<std::size_t>(SlashPlane::row_at(words, kSlashBlocks, kSlashBlocks)), 0);
    const auto word_at = [&](int row, int key) -> uint32& {  // of the columns, of a block
      const int64 first = row == 0 ? 0 : SlashPlane::row_at(words, kSlashBlocks, row - 1);
      return bits[static_cast<std::size_t>(first + key / 32)];
    };
    const auto has = [&](int row, int key) { return (word_at(row, key) >> key % 32 & 1) != 0; };
    for (int block = 0; block < kSlashBlocks; ++block) {
      const SlashEntry entry{static_cast<int>(SlashPlane::row_at(words, kSlashBlocks, block)), 0};
      std::memcpy(&bits[static_cast<std::size_t>(SlashPlane::entry_at(words, block))], &entry,
                  sizeof(entry));
    }
    for (int row = 0; row < 1 + kSlashBlocks; ++row) {
      const int longest = 1 << below(random, 9);  // of equal bits
      for (int begin = 0, end, value = 0; begin < 32 * words; begin = end, value ^= 1) {
        end = begin + 1 + below(random, longest);
        for (int key = begin; value != 0 && key < std::min(end, 32 * words); ++key) {
          word_at(row, key) |= 1u << key % 32;
        }
      }
    }
    const InputView view{bits.data(), 0, 0, words, 1};
    g.inputs = &view;
    const int end = below(random, g.seqlen_k + 1);
    std::vector<Boxes> boxes;
    const auto seen = gathered<128>(g, 0, kSlashBlocks, end, boxes);
    std::int64_t wrong = 0;
    for (int key = 0; key < end; ++key) {
      for (int part = 0; part < kSlashBlocks; ++part) {
        const int times = seen[static_cast<std::size_t>(part)][static_cast<std::size_t>(key)];
        wrong += times != (has(0, key) || has(1 + part, key) ? 1 : 0);
      }
    }
    REQUIRE(wrong == 0);
    REQUIRE(boxes == boxes_of(end, [&](int part, int key) { return has(1 + part, key); }));
  }
}
