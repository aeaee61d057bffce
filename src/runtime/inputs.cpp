#include "runtime/inputs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <variant>

#include "girih/error.hpp"
#include "girih/prune.hpp"
#include "girih/shared/expression.cuh"
#include "girih/shared/geometry.cuh"

namespace girih::runtime {
namespace {

static_assert(pattern::kMaxHeads <= kMostSmall, "InputView::plane divides heads");

constexpr std::size_t kAlignment = 256;                    // of each input's part of the workspace
constexpr std::int64_t kMaxWords = std::int64_t{1} << 40;  // of an input: sums cannot overflow
constexpr std::int64_t kMaxPlaneWords = 2147483647;        // a SlashEntry counts them

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Errc::invalid_argument, message);
}

std::string names_of(std::span<const InputInfo> wanted) {
  std::string names;
  for (const InputInfo& input : wanted) names += (names.empty() ? "" : ", ") + input.name;
  return names;
}

// A place for so many words in the workspace; null where only the size is asked for.
uint32* reserve_words(InputPlan& plan, char* workspace, std::int64_t words) {
  if (plan.workspace_bytes == 0) plan.workspace_bytes = kWorkspaceHeadBytes;
  const std::size_t offset = plan.workspace_bytes;
  const std::size_t bytes = static_cast<std::size_t>(words) * sizeof(uint32);
  plan.workspace_bytes = (offset + bytes + kAlignment - 1) / kAlignment * kAlignment;
  return workspace == nullptr ? nullptr : reinterpret_cast<uint32*>(workspace + offset);
}

// The work of finding an expression's tiles, in as few planes as it can tell apart, and where they
// are read.
void plan_tiles(const plan::ConditionTiles& tiles, int place, const InputExtents& extents,
                char* workspace, InputPlan& plan) {
  if (extents.batch == 0 || extents.seqlen_q == 0 || extents.seqlen_k == 0) return;
  const int heads = tiles.by_head ? extents.num_heads : tiles.by_head_kv ? extents.num_heads_kv : 1;
  const bool own = tiles.by_batch || (tiles.by_length && extents.ragged);
  BuildTilesParams params{};
  params.condition = tiles.condition;
  std::copy(tiles.places.begin(), tiles.places.end(), params.places);
  params.planes_per_batch = heads;
  params.num_planes = heads * (own ? extents.batch : 1);
  params.heads_per_plane = extents.num_heads / heads;
  params.shared_by_batch = own ? 0 : 1;
  params.num_rows = ceil_div(extents.seqlen_q, TileBits::kBlock);
  params.words_per_row = ceil_div(ceil_div(extents.seqlen_k, TileBits::kBlock), 32);
  const std::int64_t plane = std::int64_t{2} * params.num_rows * params.words_per_row;
  if (plane > kMaxWords / params.num_planes) {
    refuse(
        fmt::format("an expression has {} planes of {} x {} tiles: their bits would take more "
                    "than {} bytes of workspace",
                    params.num_planes, params.num_rows, 32 * params.words_per_row,
                    kMaxWords * static_cast<std::int64_t>(sizeof(uint32))));
  }
  params.bits = reserve_words(plan, workspace, params.num_planes * plane);

  InputView& view = plan.views[static_cast<std::size_t>(place)];
  view.data = params.bits;
  view.batch_stride = own ? heads * plane : 0;
  view.head_stride = plane;
  view.row_stride = params.words_per_row;
  view.heads_per_plane = params.heads_per_plane;
  plan.tiles.push_back(params);
}

// Checks and lays out one input.
class InputPlanner {
 public:
  InputPlanner(const InputInfo& wanted, int index, int place, const InputExtents& extents,
               char* workspace, InputPlan& plan)
      : wanted_(wanted),
        index_(index),
        place_(place),
        extents_(extents),
        workspace_(workspace),
        plan_(plan) {}

  void operator()(const BlockList& list) {
    check_blocks(list);
    check_pointer("kv_block_indptr", list.kv_block_indptr, 4);
    check_indices("num_indices", list.num_indices, list.kv_block_indices);
    check_not_negative("plane_stride", list.plane_stride);
    BuildListsParams params{};
    params.indptr = list.kv_block_indptr;
    params.indices = list.kv_block_indices;
    params.num_indices = list.num_indices;
    params.plane_stride = list.plane_stride;
    build(list, params);
  }

  void operator()(const BlockTable& table) {
    check_blocks(table);
    check_pointer("kv_num_blocks", table.kv_num_blocks, 4);
    check_indices("row_capacity", table.row_capacity, table.kv_block_indices);
    BuildListsParams params{};
    params.counts = table.kv_num_blocks;
    params.indices = table.kv_block_indices;
    params.row_capacity = table.row_capacity;
    build(table, params);
  }

  void operator()(const BlockMask& mask) {
    check_blocks(mask);
    check_pointer("data", mask.data, 1);
    const Steps steps = steps_of(mask, mask.num_kv_blocks);
    BuildListsParams params{};
    params.mask = static_cast<const unsigned char*>(mask.data);
    params.batch_stride = steps.batch;
    params.plane_stride = steps.head;
    params.row_stride = steps.row;
    build(mask, params);
  }

  void operator()(const BlockBits& bits) {
    check_blocks(bits);
    check_pointer("data", bits.data, 4);
    const Steps steps = steps_of(bits, ceil_div(bits.num_kv_blocks, 32));
    if (steps.row > kMaxNumber)
      fail("row_stride", steps.row, fmt::format("at most {}", kMaxNumber));
    InputView& view = plan_.views[index_];
    view.data = bits.data;
    view.batch_stride = bits.batch == 1 ? 0 : steps.batch;
    view.head_stride = steps.head;
    view.row_stride = static_cast<int>(steps.row);
    view.heads_per_plane = extents_.num_heads / bits.heads;
  }

  void operator()(const HeadNumbers& numbers) {
    if (wanted_.is_tensor()) {
      wrong_kind("numbers", ": give it as Values, in Python girih.Values(tensor)");
    }
    if (wanted_.kind != InputInfo::Kind::number) wrong_kind("numbers");
    check_extents(numbers.batch, numbers.heads);
    check_pointer("data", numbers.data, 4);
    InputView& view = plan_.views[index_];
    view.data = reinterpret_cast<const uint32*>(numbers.data);
    view.batch_stride = numbers.batch == 1 ? 0 : numbers.heads;
    view.head_stride = 1;
    view.heads_per_plane = extents_.num_heads / numbers.heads;
  }

  void operator()(const Thresholds& thresholds) {
    if (wanted_.kind != InputInfo::Kind::thresholds) wrong_kind("thresholds");
    check_extents(1, thresholds.heads);
    check_pointer("data", thresholds.data, 4);
    if (thresholds.kv_block_size != wanted_.kv_block_size) {
      refuse(fmt::format(
          "the input '{}' holds thresholds for tiles of {} keys, but the pattern "
          "prunes tiles of {}: calibrate for these, or write kv={}",
          wanted_.name, thresholds.kv_block_size, wanted_.kv_block_size, thresholds.kv_block_size));
    }
    if (extents_.softmax_scale && !serve_softmax_scale(thresholds, *extents_.softmax_scale)) {
      refuse(
          fmt::format("the input '{}' holds thresholds for softmax_scale {}, but the launch has "
                      "{}: launch with softmax_scale {}, or calibrate for the other",
                      wanted_.name, *thresholds.softmax_scale, *extents_.softmax_scale,
                      *thresholds.softmax_scale));
    }
    if (thresholds.num_columns < 1 || thresholds.num_columns > kMaxNumber) {
      fail("num_columns", thresholds.num_columns, fmt::format("from 1 to {}", kMaxNumber));
    }
    InputView& view = plan_.views[index_];
    view.data = reinterpret_cast<const uint32*>(thresholds.data);
    view.head_stride = thresholds.num_columns;
    view.row_stride = thresholds.num_columns;
    view.heads_per_plane = extents_.num_heads / thresholds.heads;
  }

  void operator()(const TokenIndices& indices) {
    if (wanted_.kind != InputInfo::Kind::indices) wrong_kind("indices of tokens");
    const bool shared = is_left_out(indices.k);
    if (shared && extents_.seqlen_q != extents_.seqlen_k) {
      refuse(
          fmt::format("the input '{}' has indices for queries only, which serve the keys as well "
                      "where seqlen_q and seqlen_k are equal, but these are {} and {}: give k",
                      wanted_.name, extents_.seqlen_q, extents_.seqlen_k));
    }
    const TokenRows& k = shared ? indices.q : indices.k;
    check_tokens("q", indices.q, "seqlen_q", extents_.seqlen_q);
    if (!shared) check_tokens("k", k, "seqlen_k", extents_.seqlen_k);
    if (reads_nothing()) return;

    BuildNumbersParams params{};
    params.num_sides = 2;
    params.words_per_span = TokenNumbers::kIndexWordsPerSpan;
    params.num_row_blocks = ceil_div(extents_.seqlen_q, TokenNumbers::kBlock);
    const int batch = std::max(indices.q.batch, k.batch);
    params.planes_per_batch = std::max(indices.q.heads, k.heads);
    params.sources[0] = source_of(indices.q, params.planes_per_batch, extents_.seqlen_q);
    params.sources[1] = source_of(k, params.planes_per_batch, extents_.seqlen_k);
    build_numbers(params, batch, std::max(extents_.seqlen_q, extents_.seqlen_k));
  }

  void operator()(const SlashLists& lists) {
    if (wanted_.kind != InputInfo::Kind::slashes) wrong_kind("columns and slashes");
    check_extents(lists.batch, lists.heads);
    check_list("vertical", lists.num_vertical, lists.vertical);
    check_list("slash", lists.num_slash, lists.slash);
    if (reads_nothing()) return;

    BuildSlashParams params{};
    params.columns = lists.vertical;
    params.distances = lists.slash;
    params.num_columns = lists.num_vertical;
    params.num_distances_given = lists.num_slash;
    params.planes_per_source_batch = lists.batch == 1 ? 0 : lists.heads;
    params.planes_per_batch = lists.heads;  // windows follow the lengths: no sequences share
    params.num_planes = extents_.batch * lists.heads;
    params.num_blocks = ceil_div(extents_.seqlen_q, SlashPlane::kRows);
    params.words_per_row = SlashPlane::words_per_row(extents_.seqlen_k);
    params.seqlen_k = extents_.seqlen_k;
    params.num_distances = extents_.num_distances;
    const std::int64_t plane = params.plane_words();
    const std::int64_t most = std::min<std::int64_t>(kMaxWords / params.num_planes, kMaxPlaneWords);
    if (plane > most) {
      refuse(
          fmt::format("the input '{}' has {} planes for {} queries x {} keys: their windows "
                      "would take more than {} bytes of workspace",
                      wanted_.name, params.num_planes, extents_.seqlen_q, extents_.seqlen_k,
                      most * params.num_planes * static_cast<std::int64_t>(sizeof(uint32))));
    }
    params.bits = reserve(params.num_planes * plane);
    const std::int64_t planes = params.num_planes;
    constexpr std::int64_t kLinkWords = sizeof(SlashLink) / sizeof(uint32);
    constexpr std::int64_t kClusterWords = sizeof(SlashCluster) / sizeof(uint32);
    params.clusters =
        reinterpret_cast<SlashCluster*>(reserve(planes * kClusterWords * params.most_clusters()));
    params.num_clusters = reinterpret_cast<int*>(reserve(planes));
    params.links = reinterpret_cast<SlashLink*>(reserve(planes * kLinkWords * params.most_links()));

    InputView& view = plan_.views[index_];
    view.data = params.bits;
    view.batch_stride = params.planes_per_batch * plane;
    view.head_stride = plane;
    view.row_stride = params.words_per_row;
    view.heads_per_plane = extents_.num_heads / lists.heads;
    plan_.slashes.push_back({index_, params});
  }

  void operator()(const ColumnIntervals& columns) {
    if (wanted_.kind != InputInfo::Kind::columns) wrong_kind("intervals of columns");
    check_extents(columns.batch, columns.heads);
    check_pointer("start", columns.start, 4);
    check_pointer("end", columns.end, 4);
    if (columns.second_start != nullptr || columns.second_end != nullptr) {
      check_pointer("second_start", columns.second_start, 4);
      check_pointer("second_end", columns.second_end, 4);
    }
    if (columns.num_keys < extents_.seqlen_k || columns.num_keys > kMaxNumber) {
      fail("num_keys", columns.num_keys,
           fmt::format("at least seqlen_k, {}, and at most {}", extents_.seqlen_k, kMaxNumber));
    }
    if (columns.key_stride < 1 || columns.key_stride > kMaxNumber) {
      fail("key_stride", columns.key_stride, fmt::format("from 1 to {}", kMaxNumber));
    }
    check_not_negative("batch_stride", columns.batch_stride);
    check_not_negative("head_stride", columns.head_stride);
    if (reads_nothing()) return;

    const std::int32_t* const sides[] = {columns.start, columns.end, columns.second_start,
                                         columns.second_end};
    BuildNumbersParams params{};
    params.num_sides = Columns::kSides;
    params.words_per_span = Columns::kSides * TokenNumbers::kWordsPerSpan;
    params.planes_per_batch = columns.heads;
    for (int side = 0; side < Columns::kSides; ++side) {
      params.sources[side] = source_of({.data = sides[side],
                                        .batch = columns.batch,
                                        .heads = columns.heads,
                                        .num_tokens = columns.num_keys,
                                        .batch_stride = columns.batch_stride,
                                        .head_stride = columns.head_stride},
                                       columns.heads, extents_.seqlen_k, columns.key_stride);
    }
    build_numbers(params, columns.batch, extents_.seqlen_k);
  }

  void operator()(const Values& values) {
    if (wanted_.is_tensor()) return index_tensor(values);
    const bool of_keys = wanted_.kind == InputInfo::Kind::key_values;
    if (!of_keys && wanted_.kind != InputInfo::Kind::head_values) wrong_kind("values");
    if (values.type != Values::Type::float32) wrong_kind("int32 values");
    const auto [shape, stride] = aligned(values, of_keys ? 3 : 2);
    check_extents(shape[0], shape[1]);
    check_pointer("data", values.data, 4);
    if (of_keys && (shape[2] < extents_.seqlen_k || shape[2] > kMaxNumber)) {
      fail("a last extent of", shape[2],
           fmt::format("at least seqlen_k, {}, and at most {}", extents_.seqlen_k, kMaxNumber));
    }
    if (of_keys && shape[2] > 1 && stride[2] != 1) {
      fail("a last stride of", stride[2], "1: its last dimension must be contiguous");
    }
    InputView& view = plan_.views[index_];
    view.data = static_cast<const uint32*>(values.data);
    view.batch_stride = shape[0] == 1 ? 0 : stride[0];
    view.head_stride = stride[1];
    view.heads_per_plane = extents_.num_heads / static_cast<int>(shape[1]);
  }

 private:
  struct Dimensions {
    std::array<std::int64_t, 4> shape, stride;
  };

  // As `rank` dimensions, leading ones that were left out of extent 1.
  Dimensions aligned(const Values& values, int rank) const {
    if (values.rank < 1 || values.rank > rank) {
      fail("a rank of", values.rank,
           fmt::format("from 1 to {}: the pattern wants {}", rank, wanted_.description()));
    }
    const auto is_zero = [](std::int64_t stride) { return stride == 0; };
    const bool contiguous = std::all_of(values.stride.begin(), values.stride.end(), is_zero);
    Dimensions result{};
    std::int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
      const int own = i - (rank - values.rank);
      const auto to = static_cast<std::size_t>(i), from = static_cast<std::size_t>(max(own, 0));
      result.shape[to] = own < 0 ? 1 : values.shape[from];
      result.stride[to] = own < 0 ? 0 : contiguous ? step : values.stride[from];
      if (result.shape[to] < 0 || result.shape[to] > kMaxNumber) {
        fail("an extent of", result.shape[to], fmt::format("from 0 to {}", kMaxNumber));
      }
      if (result.stride[to] < 0 || result.stride[to] > kMaxWords) {
        fail("a stride of", result.stride[to], fmt::format("from 0 to {}", kMaxWords));
      }
      step *= std::max<std::int64_t>(result.shape[to], 1);
    }
    return result;
  }

  struct Steps {
    std::int64_t batch, head, row;
  };

  // Gives numbers of tokens their place in the workspace; sides and their sources are known.
  void build_numbers(BuildNumbersParams& params, int batch, int num_tokens) {
    params.num_planes = batch * params.planes_per_batch;
    params.num_spans = ceil_div(num_tokens, TokenNumbers::kSpan);
    const std::int64_t plane = std::int64_t{params.words_per_span} * params.num_spans;
    if (plane > kMaxNumber) {
      refuse(
          fmt::format("the input '{}' is for {} tokens: their numbers would take {} words a "
                      "plane, more than {}",
                      wanted_.name, num_tokens, plane, kMaxNumber));
    }
    params.out = reinterpret_cast<int*>(reserve(params.num_planes * plane));

    InputView& view = plan_.views[index_];
    view.data = reinterpret_cast<const uint32*>(params.out);
    view.batch_stride = batch == 1 ? 0 : params.planes_per_batch * plane;
    view.head_stride = plane;
    view.row_stride = params.num_spans;
    view.heads_per_plane = extents_.num_heads / params.planes_per_batch;
    plan_.numbers.push_back({index_, params});
  }

  [[noreturn]] void fail(const char* what, std::int64_t value, const std::string& expected) const {
    refuse(fmt::format("the input '{}' has {} {}: it must be {}", wanted_.name, what, value,
                       expected));
  }

  [[noreturn]] void wrong_kind(const char* given, const char* remedy = "") const {
    refuse(fmt::format("the input '{}' was given {}, but the pattern wants {}{}", wanted_.name,
                       given, wanted_.description(), remedy));
  }

  // A launch without rows reads nothing. One without keys reads what rows and heads have: the sum
  // of a row has its sink, and Hopper's kernel computes the scores of a tile that is all masked,
  // whose mask and modifiers take their numbers and tensors first. Keys' own data it leaves alone.
  bool reads_nothing() const {
    using Kind = InputInfo::Kind;
    if (extents_.batch == 0 || extents_.seqlen_q == 0) return true;
    const bool of_keys = wanted_.kind != Kind::number && wanted_.kind != Kind::thresholds &&
                         wanted_.kind != Kind::head_values && wanted_.kind != Kind::float_tensor;
    return extents_.seqlen_k == 0 && of_keys;
  }

  void check_pointer(const char* what, const void* pointer, std::uintptr_t alignment) const {
    if (reads_nothing()) return;
    if (pointer == nullptr) refuse(fmt::format("the input '{}' has no {}", wanted_.name, what));
    if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0) {
      refuse(fmt::format("the input '{}' has its {} at {}, which is not aligned to {} bytes",
                         wanted_.name, what, pointer, alignment));
    }
  }

  void check_not_negative(const char* what, std::int64_t value) const {
    if (value < 0) fail(what, value, "0 or more");
  }

  void check_indices(const char* what, std::int64_t count, const std::int32_t* indices) const {
    check_not_negative(what, count);
    if (count > 0) check_pointer("kv_block_indices", indices, 4);
  }

  void check_list(const char* what, int count, const std::int32_t* list) const {
    if (count < 0 || count > kMaxNumber) {
      refuse(fmt::format("the input '{}' has {} entries a row in {}: it must be 0 to {}",
                         wanted_.name, count, what, kMaxNumber));
    }
    if (count > 0) check_pointer(what, list, 4);
  }

  void check_extents(std::int64_t batch, std::int64_t heads) const {
    if (batch != 1 && batch != extents_.batch) {
      fail("batch", batch,
           fmt::format("1, for all to share it, or the number of sequences, {}", extents_.batch));
    }
    if (heads != 1 && heads != extents_.num_heads_kv && heads != extents_.num_heads) {
      fail("heads", heads,
           extents_.num_heads_kv == extents_.num_heads
               ? fmt::format("1, for all to share it, or {}", extents_.num_heads)
               : fmt::format("1, for all to share it, {} or {}", extents_.num_heads_kv,
                             extents_.num_heads));
    }
  }

  void check_covers(const char* what, int num_blocks, int block_size, const char* length_name,
                    int length) const {
    if (num_blocks >= ceil_div(length, block_size) && num_blocks <= kMaxNumber) return;
    fail(what, num_blocks,
         fmt::format("at least {}, for {} {} in blocks of {}, and at most {}",
                     ceil_div(length, block_size), length_name, length, block_size, kMaxNumber));
  }

  static bool is_left_out(const TokenRows& rows) {
    return rows.data == nullptr && rows.num_tokens == 0;
  }

  void check_tokens(const char* side, const TokenRows& rows, const char* length_name,
                    int length) const {
    check_extents(rows.batch, rows.heads);
    check_pointer(side, rows.data, 4);
    if (rows.num_tokens < length || rows.num_tokens > kMaxNumber) {
      refuse(fmt::format(
          "the input '{}' has {} numbers a row in {}: it must be at least {}, for "
          "{} {}, and at most {}",
          wanted_.name, rows.num_tokens, side, length, length_name, length, kMaxNumber));
    }
    check_not_negative("batch_stride", rows.batch_stride);
    check_not_negative("head_stride", rows.head_stride);
  }

  // Numbers beyond the longest sequence are left where they are.
  static BuildNumbersParams::Source source_of(const TokenRows& rows, int planes_per_batch,
                                              int length, std::int64_t token_stride = 1) {
    const bool contiguous = rows.batch_stride == 0 && rows.head_stride == 0;
    const std::int64_t head = contiguous ? token_stride * rows.num_tokens : rows.head_stride;
    const std::int64_t batch = contiguous ? rows.heads * head : rows.batch_stride;
    return {.numbers = rows.data,
            .batch_stride = rows.batch == 1 ? 0 : batch,
            .head_stride = head,
            .token_stride = token_stride,
            .planes_per_head = planes_per_batch / rows.heads,
            .num_tokens = length};
  }

  template <class BlockData>
  void check_blocks(const BlockData& blocks) const {
    if (wanted_.kind != InputInfo::Kind::blocks) wrong_kind("blocks");
    check_extents(blocks.batch, blocks.heads);
    check_covers("num_q_blocks", blocks.num_q_blocks, wanted_.q_block_size, "seqlen_q",
                 extents_.seqlen_q);
    check_covers("num_kv_blocks", blocks.num_kv_blocks, wanted_.kv_block_size, "seqlen_k",
                 extents_.seqlen_k);
  }

  template <class BlockData>
  Steps steps_of(const BlockData& blocks, std::int64_t row_length) const {
    if (blocks.batch_stride == 0 && blocks.head_stride == 0 && blocks.row_stride == 0) {
      const std::int64_t plane = blocks.num_q_blocks * row_length;
      return {blocks.heads * plane, plane, row_length};
    }
    const std::pair<const char*, std::int64_t> strides[] = {{"batch_stride", blocks.batch_stride},
                                                            {"head_stride", blocks.head_stride},
                                                            {"row_stride", blocks.row_stride}};
    for (const auto& [name, stride] : strides) {
      check_not_negative(name, stride);
    }
    return {blocks.batch_stride, blocks.head_stride, blocks.row_stride};
  }

  // What an expression reads by its own indices.
  void index_tensor(const Values& values) {
    const bool integers = wanted_.kind == InputInfo::Kind::int_tensor;
    if ((values.type == Values::Type::int32) != integers) {
      wrong_kind(integers ? "float32 values" : "int32 values");
    }
    if (values.rank != wanted_.rank) {
      fail("a rank of", values.rank,
           fmt::format("{}: the pattern wants {}", wanted_.rank, wanted_.description()));
    }
    const Dimensions dimensions = aligned(values, wanted_.rank);
    check_pointer("data", values.data, 4);
    TensorView view{};
    view.data = values.data;
    constexpr std::int64_t kMostElements = std::numeric_limits<int>::max();
    std::int64_t reach = 0;  // of the last element
    for (int i = 0; i < wanted_.rank; ++i) {
      const auto at = static_cast<std::size_t>(i);
      check_dimension(i, dimensions.shape[at]);
      const std::int64_t stride = dimensions.shape[at] == 1 ? 0 : dimensions.stride[at];
      const std::int64_t steps = std::max<std::int64_t>(dimensions.shape[at] - 1, 0);
      if (stride > kMostElements || steps * stride > kMostElements - reach) {
        fail("a stride of", stride,
             fmt::format("such that no element lies {} or more behind the first",
                         kMostElements + 1));
      }
      reach += steps * stride;
      view.extents[i] = static_cast<int>(dimensions.shape[at]);
      view.strides[i] = static_cast<int>(stride);
    }
    void* const place = &plan_.views[static_cast<std::size_t>(place_)];
    std::memcpy(place, &view, sizeof(view));
  }

  // Whether a tensor's dimension has an element for all that index it by themselves.
  void check_dimension(int i, std::int64_t extent) const {
    const struct {
      const char* variable;
      int needed;
      bool may_be_shared;
    } variables[] = {{"b", extents_.batch, true},
                     {"h", extents_.num_heads, true},
                     {"g", extents_.num_heads_kv, true},
                     {"q", extents_.seqlen_q, false},
                     {"k", extents_.seqlen_k, false}};
    const auto refuse_extent = [&](const std::string& expected) {
      refuse(fmt::format("the input '{}' has {} elements in dimension {}: it must have {}",
                         wanted_.name, extent, i, expected));
    };
    if (reads_nothing()) return;
    if (extent < 1) {
      refuse_extent(extents_.seqlen_k == 0 ? "at least one, which is read even where no key exists"
                                           : "at least one");
    }
    int bit = 0;
    for (const auto& [variable, needed, may_be_shared] : variables) {
      const bool indexes = (wanted_.indexed_by[static_cast<std::size_t>(i)] >> bit++ & 1) != 0;
      if (!indexes || extent >= needed || (may_be_shared && extent == 1)) continue;
      refuse_extent(fmt::format("at least {}, for it is indexed by {}{}", needed, variable,
                                may_be_shared ? ", or 1, for all to share it" : ""));
    }
  }

  uint32* reserve(std::int64_t words) { return reserve_words(plan_, workspace_, words); }

  // Gives the bits of a list or byte mask their place in the workspace.
  template <class BlockData>
  void build(const BlockData& blocks, BuildListsParams params) {
    if (reads_nothing()) return;
    params.planes_per_batch = blocks.heads;
    params.num_planes = blocks.batch * blocks.heads;
    params.num_rows = blocks.num_q_blocks;
    params.num_columns = blocks.num_kv_blocks;
    params.words_per_row = ceil_div(blocks.num_kv_blocks, 32);
    const std::int64_t plane = std::int64_t{params.num_rows} * params.words_per_row;
    if (plane > kMaxWords / params.num_planes) {
      refuse(
          fmt::format("the input '{}' has {} planes of {} x {} blocks: their bits would take more "
                      "than {} bytes of workspace",
                      wanted_.name, params.num_planes, params.num_rows, params.num_columns,
                      kMaxWords * static_cast<std::int64_t>(sizeof(uint32))));
    }
    params.bits = reserve(params.num_planes * plane);

    InputView& view = plan_.views[index_];
    view.data = params.bits;
    view.batch_stride = blocks.batch == 1 ? 0 : blocks.heads * plane;
    view.head_stride = plane;
    view.row_stride = params.words_per_row;
    view.heads_per_plane = extents_.num_heads / blocks.heads;
    plan_.lists.push_back({index_, params});
  }

  const InputInfo& wanted_;
  int index_;
  int place_;
  const InputExtents& extents_;
  char* workspace_;
  InputPlan& plan_;
};
static_assert(kWorkspaceHeadBytes % kAlignment == 0);

}  // namespace

bool share_blocks(std::span<const Input> inputs, const Problem& problem) {
  int blocks = 0, shared = 0;
  for (const Input& input : inputs) {
    std::visit(
        [&]<class Data>(const Data& data) {
          if constexpr (requires { data.num_kv_blocks; }) {
            ++blocks;
            shared += data.heads == 1 || data.heads == problem.num_heads_kv;
          }
        },
        input.data);
  }
  return blocks > 0 && shared == blocks && problem.group_size() > 1;
}

InputPlan plan_inputs(std::span<const InputInfo> wanted, std::span<const Input> given,
                      const InputExtents& extents, void* workspace,
                      std::span<const plan::ConditionTiles> tiles) {
  InputPlan plan;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const auto same_name = [&](const Input& input) { return input.name == given[i].name; };
    if (pattern::find_input(wanted, given[i].name) < 0) {
      refuse(fmt::format("there is no input {}: {}", pattern::quote(given[i].name),
                         wanted.empty() ? "the pattern has none"
                                        : "the pattern's inputs are " + names_of(wanted)));
    }
    if (std::any_of(given.begin(), given.begin() + static_cast<std::ptrdiff_t>(i), same_name)) {
      refuse(fmt::format("the input '{}' is given twice", given[i].name));
    }
  }
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const auto found = std::find_if(given.begin(), given.end(), [&](const Input& input) {
      return input.name == wanted[i].name;
    });
    if (found == given.end()) {
      refuse(fmt::format("the input '{}' is missing: the pattern wants {}", wanted[i].name,
                         wanted[i].description()));
    }
    const int index = static_cast<int>(i);
    std::visit(InputPlanner(wanted[i], index, pattern::place_of(wanted, index), extents,
                            static_cast<char*>(workspace), plan),
               found->data);
  }
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    if (tiles[i].condition < 0) continue;  // of heads that are not here
    plan_tiles(tiles[i], pattern::place_of_tiles(wanted, static_cast<int>(i)), extents,
               static_cast<char*>(workspace), plan);
  }
  return plan;
}

void check_thresholds(const std::string& name, std::span<const float> thresholds, int num_columns) {
  const auto nan = std::find_if(thresholds.begin(), thresholds.end(),
                                [](float threshold) { return std::isnan(threshold); });
  if (nan == thresholds.end()) return;
  const std::ptrdiff_t at = nan - thresholds.begin();
  refuse(
      fmt::format("the input '{}' is NaN in head {}, column {}, where it keeps every tile: write "
                  "-inf if that is meant",
                  name, at / num_columns, at % num_columns));
}

}  // namespace girih::runtime
