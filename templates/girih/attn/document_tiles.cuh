// Query tiles of heads that see documents packed in a sequence. They end where documents end: no
// rows wait for those of another document, which see other keys, and a tile that is not whole lies
// at a document's beginning, where causal rows see few keys. One whose rows are all of a document
// has the document for its sequence.
#pragma once

#include "girih/ptx/warp.cuh"
#include "girih/shared/structure.cuh"

namespace girih {

// Documents, or the one document that a query tile has for its sequence: then the tile's geometry
// has no inputs.
struct OwnDocument : Segments {
  using Segments::Segments;

  GIRIH_HD Run seek(const Geometry& g, QueryRows rows, KeyTiles tiles, int n) const {
    if (g.inputs == nullptr) return {tiles.count(), TileKind::full};
    return Segments::seek(g, rows, tiles, n);
  }
  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord word) const {
    return g.inputs == nullptr ? ~0u : Segments::row_bits(g, q, word);
  }
};

// Whether all heads see documents, whose numbers are the input that their first number says; and
// the classes of heads that may have one for their sequence.
template <class Classes>
struct DocumentClasses {
  static constexpr bool kAll = false;
  using Type = Classes;
};
template <>
struct DocumentClasses<HeadClasses<Leaf<Segments>>> {
  static constexpr bool kAll = true;
  using Type = HeadClasses<Leaf<OwnDocument>>;
};
template <>
struct DocumentClasses<HeadClasses<All<Leaf<Causal>, Leaf<Segments>>>> {
  static constexpr bool kAll = true;
  using Type = HeadClasses<All<Leaf<Causal>, Leaf<OwnDocument>>>;
};

// How the rows of a sequence are laid out in tiles.
struct DocumentTiles {
  const Geometry& geometry;
  TokenNumbers queries;

  __device__ __forceinline__ DocumentTiles(const Geometry& g, int slot)
      : geometry(g), queries(TokenNumbers::of(g, slot, 0)) {}

  __device__ __forceinline__ Span keys_of(int row) const {
    return queries.interval(Segments::kComparison, row);
  }

  // Where a block of kRows rows, whose first is `row`, begins instead: less than kRows rows before,
  // so that the row's document has whole tiles from there to its end, or where the document begins.
  // A block thus has less than 2 * kRows rows, one or two tiles, whatever the numbers are.
  // Documents of less than two tiles are not worth it.
  template <int kRows>
  __device__ __forceinline__ int begin(int row) const {
    if (row >= geometry.seqlen_q) return geometry.seqlen_q;
    const Span keys = keys_of(row);
    const int first = keys.lo - geometry.diagonal(0);
    const int end = min(keys.hi - geometry.diagonal(0), geometry.seqlen_q);
    if (row < first || row >= end || end - first < 2 * kRows) return row;
    return max(end - round_up(end - row, kRows), max(first, 0));
  }

  // The keys of the document that all rows [first_row, seqlen_q), at most kRows, are of; empty
  // where there is none. By a warp; its loads go together, for the scheduler has little time.
  template <int kRows>
  __device__ __forceinline__ Span document(int first_row) const {
    const Span keys = keys_of(first_row);
    bool same = true;
#pragma unroll
    for (int i = 0; i < kRows; i += 32) {
      const int row = first_row + i + fresh_thread_index() % 32;
      const Span own = keys_of(min(row, geometry.seqlen_q - 1));
      same &= own.lo == keys.lo && own.hi == keys.hi;
    }
    same = __all_sync(0xffffffff, same);
    return {keys.lo, same ? min(keys.hi, geometry.seqlen_k) : keys.lo};
  }
};

}  // namespace girih
