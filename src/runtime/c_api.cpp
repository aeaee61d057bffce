// The C interface over the run-time API. No exception leaves it: each becomes a status and a
// message that the thread keeps.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "girih/girih.h"
#include "girih/girih.hpp"
#include "girih/select_largest.cuh"
#include "runtime/settings.hpp"

using girih::Errc;
using girih::Error;

struct girih_program {
  girih::jit::Program program;
  std::string text;
};

struct girih_kernel {
  girih::jit::Kernel kernel;
};

namespace {

// --- Errors -------------------------------------------------------------------------------------

thread_local std::string last_error;

girih_status fail(girih_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {  // not even memory for the message
    last_error.clear();
  }
  return status;
}

girih_status status_of(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_argument:
      return GIRIH_INVALID_ARGUMENT;
    case Errc::unsupported:
      return GIRIH_UNSUPPORTED;
    case Errc::compile_failed:
      return GIRIH_COMPILE_FAILED;
    case Errc::cache_io:
      return GIRIH_CACHE_IO;
    case Errc::driver:
      return GIRIH_DRIVER;
    case Errc::no_device:
      return GIRIH_NO_DEVICE;
    case Errc::jit_disabled:
      return GIRIH_JIT_DISABLED;
    case Errc::internal:
      break;
  }
  return GIRIH_INTERNAL;
}

template <class Body>
girih_status guarded(Body&& body) noexcept {
  try {
    body();
    return GIRIH_OK;
  } catch (const Error& error) {
    return fail(status_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(GIRIH_INTERNAL, "out of memory");
  } catch (const std::exception& error) {
    return fail(GIRIH_INTERNAL, error.what());
  } catch (...) {
    return fail(GIRIH_INTERNAL, "an exception that is no std::exception");
  }
}

// --- Arguments ----------------------------------------------------------------------------------

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Errc::invalid_argument, message);
}

template <class T>
T& required(const char* name, T* pointer) {
  if (pointer == nullptr) refuse(fmt::format("{} is null", name));
  return *pointer;
}

// A caller's struct as this version knows it: members that the caller's header did not have are
// zero, and members that this version does not have must be.
template <class Struct>
Struct known_part(const char* type, const char* name, const Struct* given) {
  const std::size_t size = required(name, given).size;
  if (size < sizeof(size)) {
    refuse(fmt::format("{}.size is {}: set it to sizeof({})", name, size, type));
  }
  Struct known{};
  std::memcpy(&known, given, std::min(size, sizeof(Struct)));
  const char* const bytes = reinterpret_cast<const char*>(given);
  if (size > sizeof(Struct) &&
      std::any_of(bytes + sizeof(Struct), bytes + size, [](char byte) { return byte != 0; })) {
    refuse(
        fmt::format("{}.size is {}, but {} has {} bytes in version {} of the library, and the "
                    "others are not zero: use the header that came with the library",
                    name, size, type, sizeof(Struct), GIRIH_VERSION));
  }
  return known;
}

void check_reserved(const char* name, std::int32_t value) {
  if (value != 0) refuse(fmt::format("{}.reserved is {}: it must be 0", name, value));
}

enum class Types { of_attention, of_combine };

girih::DType dtype_of(const char* name, girih_dtype dtype, Types types = Types::of_attention) {
  switch (dtype) {
    case GIRIH_FLOAT16:
      return girih::DType::float16;
    case GIRIH_BFLOAT16:
      return girih::DType::bfloat16;
    case GIRIH_FLOAT32:
      if (types == Types::of_combine) return girih::DType::float32;
      [[fallthrough]];
    default:
      refuse(fmt::format(
          "{}.dtype is {}: it must be GIRIH_FLOAT16 ({}){} GIRIH_BFLOAT16 ({}){}", name, dtype,
          +GIRIH_FLOAT16, types == Types::of_combine ? "," : " or", +GIRIH_BFLOAT16,
          types == Types::of_combine ? fmt::format(" or GIRIH_FLOAT32 ({})", +GIRIH_FLOAT32) : ""));
  }
}

girih::Layout layout_of(const char* name, girih_layout layout) {
  switch (layout) {
    case GIRIH_BSHD:
      return girih::Layout::bshd;
    case GIRIH_BHSD:
      return girih::Layout::bhsd;
    case GIRIH_THD:
      return girih::Layout::thd;
    default:
      refuse(fmt::format(
          "{}.layout is {}: it must be GIRIH_BSHD ({}), GIRIH_BHSD ({}) or GIRIH_THD ({})", name,
          layout, +GIRIH_BSHD, +GIRIH_BHSD, +GIRIH_THD));
  }
}

bool is_given(const char* text) { return text != nullptr && *text != '\0'; }

girih::jit::Options options_of(const girih_options* pointer) {
  girih::jit::Options options;
  if (pointer == nullptr) return options;
  const girih_options c = known_part("girih_options", "options", pointer);
  if (is_given(c.cache_dir)) options.cache_dir = c.cache_dir;
  if (is_given(c.cache_layers)) options.cache_layers = girih::runtime::split_paths(c.cache_layers);
  if (is_given(c.nvrtc)) options.nvrtc = c.nvrtc;
  if (is_given(c.template_dir)) options.template_dir = c.template_dir;
  if (is_given(c.dump_dir)) options.dump_dir = c.dump_dir;
  switch (c.jit) {
    case GIRIH_JIT_DEFAULT:
      break;
    case GIRIH_JIT_AUTO:
      options.mode = girih::jit::Mode::automatic;
      break;
    case GIRIH_JIT_OFF:
      options.mode = girih::jit::Mode::off;
      break;
    default:
      refuse(
          fmt::format("options.jit is {}: it must be GIRIH_JIT_DEFAULT ({}), GIRIH_JIT_AUTO "
                      "({}) or GIRIH_JIT_OFF ({})",
                      c.jit, +GIRIH_JIT_DEFAULT, +GIRIH_JIT_AUTO, +GIRIH_JIT_OFF));
  }
  switch (c.tune) {
    case GIRIH_TUNE_DEFAULT:
      break;
    case GIRIH_TUNE_DB:
      options.tune = girih::jit::Tune::db;
      break;
    case GIRIH_TUNE_OFF:
      options.tune = girih::jit::Tune::off;
      break;
    case GIRIH_TUNE_AUTO:
      options.tune = girih::jit::Tune::automatic;
      break;
    default:
      refuse(fmt::format(
          "options.tune is {}: it must be GIRIH_TUNE_DEFAULT ({}), GIRIH_TUNE_DB ({}), "
          "GIRIH_TUNE_OFF ({}) or GIRIH_TUNE_AUTO ({})",
          c.tune, +GIRIH_TUNE_DEFAULT, +GIRIH_TUNE_DB, +GIRIH_TUNE_OFF, +GIRIH_TUNE_AUTO));
  }
  if (c.check_inputs != 0) options.check_inputs = girih::jit::Check::yes;
  options.tile = {.block_m = c.block_m,
                  .block_n = c.block_n,
                  .num_stages = c.num_stages,
                  .num_warps = c.num_warps,
                  .num_q_stages = c.num_q_stages,
                  .portable = c.portable != 0};
  return options;
}

girih::Problem problem_of(const girih_problem* pointer) {
  const girih_problem c = known_part("girih_problem", "problem", pointer);
  return {.dtype = dtype_of("problem", c.dtype),
          .head_dim = c.head_dim,
          .num_heads = c.num_heads,
          .num_heads_kv = c.num_heads_kv == 0 ? c.num_heads : c.num_heads_kv,
          .head_dim_v = c.head_dim_v == c.head_dim ? 0 : c.head_dim_v,
          .layout = layout_of("problem", c.layout),
          .head_offset = c.head_offset,
          .num_heads_total = c.num_heads_total,
          .shared_inputs = c.shared_inputs != 0,
          .partial_keys = c.partial_keys != 0};
}

girih::Tensor tensor_of(const char* name, const girih_tensor* pointer,
                        Types types = Types::of_attention) {
  const girih_tensor c = known_part("girih_tensor", name, pointer);
  check_reserved(name, c.reserved);
  girih::Tensor tensor{.data = c.data, .dtype = dtype_of(name, c.dtype, types)};
  std::copy(std::begin(c.shape), std::end(c.shape), tensor.shape.begin());
  std::copy(std::begin(c.stride), std::end(c.stride), tensor.stride.begin());
  return tensor;
}

// Members of other kinds hint at a mistake: at the wrong kind, or at data in the wrong place.
void check_members_of_kind(const std::string& where, const girih_input& c) {
  enum : unsigned {
    kList = 1,
    kTable = 2,
    kMask = 4,
    kBits = 8,
    kNumbers = 16,
    kIndices = 32,
    kSlash = 64,
    kThresholds = 128,
    kValues = 256,
    kColumns = 512,
    kPlanes = kList | kTable | kMask | kBits | kNumbers | kIndices | kSlash | kColumns
  };
  const auto is_set = [](const std::int64_t(&numbers)[4]) {
    return std::any_of(std::begin(numbers), std::end(numbers), [](auto n) { return n != 0; });
  };
  static constexpr const char* kNames[] = {
      "GIRIH_BLOCK_LIST",   "GIRIH_BLOCK_TABLE",     "GIRIH_BLOCK_MASK",     "GIRIH_BLOCK_BITS",
      "GIRIH_HEAD_NUMBERS", "GIRIH_TOKEN_INDICES",   "GIRIH_VERTICAL_SLASH", "GIRIH_THRESHOLDS",
      "GIRIH_VALUES",       "GIRIH_COLUMN_INTERVALS"};
  if (c.kind < GIRIH_BLOCK_LIST || c.kind > GIRIH_COLUMN_INTERVALS) {
    refuse(fmt::format(
        "{}.kind is {}: it must be from GIRIH_BLOCK_LIST ({}) to GIRIH_COLUMN_INTERVALS ({})",
        where, c.kind, +GIRIH_BLOCK_LIST, +GIRIH_COLUMN_INTERVALS));
  }
  const int kind = c.kind - GIRIH_BLOCK_LIST;
  const struct {
    const char* name;
    bool given;
    unsigned kinds;
  } members[] = {{"batch", c.batch != 0, kPlanes},
                 {"heads", c.heads != 0, kPlanes | kThresholds},
                 {"num_q_blocks", c.num_q_blocks != 0, kList | kTable | kMask | kBits},
                 {"num_kv_blocks", c.num_kv_blocks != 0, kList | kTable | kMask | kBits},
                 {"row_capacity", c.row_capacity != 0, kTable},
                 {"indptr", c.indptr != nullptr, kList},
                 {"counts", c.counts != nullptr, kTable},
                 {"indices", c.indices != nullptr, kList | kTable},
                 {"num_indices", c.num_indices != 0, kList},
                 {"plane_stride", c.plane_stride != 0, kList},
                 {"data", c.data != nullptr, ~(kList | kTable)},
                 {"batch_stride", c.batch_stride != 0, kMask | kBits | kIndices | kColumns},
                 {"head_stride", c.head_stride != 0, kMask | kBits | kIndices | kColumns},
                 {"row_stride", c.row_stride != 0, kMask | kBits},
                 {"k_data", c.k_data != nullptr, kIndices | kSlash | kColumns},
                 {"k_batch_stride", c.k_batch_stride != 0, kIndices},
                 {"k_head_stride", c.k_head_stride != 0, kIndices},
                 {"k_batch", c.k_batch != 0, kIndices},
                 {"k_heads", c.k_heads != 0, kIndices},
                 {"num_tokens", c.num_tokens != 0, kIndices | kSlash | kColumns},
                 {"k_num_tokens", c.k_num_tokens != 0, kIndices | kSlash},
                 {"num_columns", c.num_columns != 0, kThresholds},
                 {"kv_block_size", c.kv_block_size != 0, kThresholds},
                 {"shape", is_set(c.shape), kValues},
                 {"stride", is_set(c.stride), kValues},
                 {"type", c.type != 0, kValues},
                 {"rank", c.rank != 0, kValues},
                 {"second_start", c.second_start != nullptr, kColumns},
                 {"second_end", c.second_end != nullptr, kColumns},
                 {"key_stride", c.key_stride != 0, kColumns}};
  for (const auto& [name, given, kinds] : members) {
    if (!given || (kinds >> kind & 1) != 0) continue;
    refuse(fmt::format("{}.{} is set, but {} has none: leave it zero", where, name, kNames[kind]));
  }
}

girih::Values values_of(const std::string& where, const girih_input& c) {
  if (c.type != GIRIH_VALUES_FLOAT32 && c.type != GIRIH_VALUES_INT32) {
    refuse(
        fmt::format("{}.type is {}: it must be GIRIH_VALUES_FLOAT32 ({}) or GIRIH_VALUES_INT32 "
                    "({})",
                    where, c.type, +GIRIH_VALUES_FLOAT32, +GIRIH_VALUES_INT32));
  }
  girih::Values values;
  values.data = c.data;
  values.type =
      c.type == GIRIH_VALUES_INT32 ? girih::Values::Type::int32 : girih::Values::Type::float32;
  values.rank = c.rank;
  std::copy(std::begin(c.shape), std::end(c.shape), values.shape.begin());
  std::copy(std::begin(c.stride), std::end(c.stride), values.stride.begin());
  return values;
}

girih::Input input_of(int index, const girih_input* pointer) {
  const std::string where = fmt::format("inputs[{}]", index);
  const girih_input c = known_part("girih_input", where.c_str(), pointer);
  check_members_of_kind(where, c);
  const int batch = c.batch == 0 ? 1 : c.batch;
  const int heads = c.heads == 0 ? 1 : c.heads;
  const auto blocks = [&](auto data) {
    data.batch = batch;
    data.heads = heads;
    data.num_q_blocks = c.num_q_blocks;
    data.num_kv_blocks = c.num_kv_blocks;
    return data;
  };
  const auto strided = [&](auto data) {
    data.batch_stride = c.batch_stride;
    data.head_stride = c.head_stride;
    data.row_stride = c.row_stride;
    return blocks(data);
  };
  girih::Input input{.name = &required((where + ".name").c_str(), c.name), .data = {}};
  switch (c.kind) {
    case GIRIH_BLOCK_LIST:
      input.data = blocks(girih::BlockList{.kv_block_indptr = c.indptr,
                                           .kv_block_indices = c.indices,
                                           .num_indices = c.num_indices,
                                           .plane_stride = c.plane_stride});
      break;
    case GIRIH_BLOCK_TABLE:
      input.data = blocks(girih::BlockTable{.kv_num_blocks = c.counts,
                                            .kv_block_indices = c.indices,
                                            .row_capacity = c.row_capacity});
      break;
    case GIRIH_BLOCK_MASK:
      input.data = strided(girih::BlockMask{.data = c.data});
      break;
    case GIRIH_BLOCK_BITS:
      input.data = strided(girih::BlockBits{.data = static_cast<const std::uint32_t*>(c.data)});
      break;
    case GIRIH_HEAD_NUMBERS:
      input.data = girih::HeadNumbers{
          .data = static_cast<const std::int32_t*>(c.data), .batch = batch, .heads = heads};
      break;
    case GIRIH_TOKEN_INDICES:
      input.data = girih::TokenIndices{.q = {.data = static_cast<const std::int32_t*>(c.data),
                                             .batch = batch,
                                             .heads = heads,
                                             .num_tokens = c.num_tokens,
                                             .batch_stride = c.batch_stride,
                                             .head_stride = c.head_stride},
                                       .k = {.data = c.k_data,
                                             .batch = c.k_batch == 0 ? 1 : c.k_batch,
                                             .heads = c.k_heads == 0 ? 1 : c.k_heads,
                                             .num_tokens = c.k_num_tokens,
                                             .batch_stride = c.k_batch_stride,
                                             .head_stride = c.k_head_stride}};
      break;
    case GIRIH_VERTICAL_SLASH:
      input.data = girih::SlashLists{.vertical = static_cast<const std::int32_t*>(c.data),
                                     .slash = c.k_data,
                                     .num_vertical = c.num_tokens,
                                     .num_slash = c.k_num_tokens,
                                     .batch = batch,
                                     .heads = heads};
      break;
    case GIRIH_THRESHOLDS:
      input.data = girih::Thresholds{.data = static_cast<const float*>(c.data),
                                     .heads = heads,
                                     .num_columns = c.num_columns,
                                     .kv_block_size = c.kv_block_size};
      break;
    case GIRIH_COLUMN_INTERVALS:
      input.data = girih::ColumnIntervals{.start = static_cast<const std::int32_t*>(c.data),
                                          .end = c.k_data,
                                          .second_start = c.second_start,
                                          .second_end = c.second_end,
                                          .batch = batch,
                                          .heads = heads,
                                          .num_keys = c.num_tokens,
                                          .key_stride = c.key_stride == 0 ? 1 : c.key_stride,
                                          .batch_stride = c.batch_stride,
                                          .head_stride = c.head_stride};
      break;
    case GIRIH_VALUES:
      input.data = values_of(where, c);
      break;
    default:  // was refused
      break;
  }
  return input;
}

// The structs of an array, as far apart as the caller's compiler put them.
template <class Struct, class Body>
void for_each(const char* name, const char* type, const Struct* first, int count, Body&& body) {
  const char* next = reinterpret_cast<const char*>(first);
  for (int i = 0; i < count; ++i) {
    const auto* const given = reinterpret_cast<const Struct*>(next);
    if (required(fmt::format("args.{}", name).c_str(), given).size != first->size) {
      refuse(fmt::format("{0}[{1}].size is {2}, but {0}[0].size is {3}: set each to sizeof({4})",
                         name, i, given->size, first->size, type));
    }
    body(i, given);
    next += first->size;
  }
}

girih::jit::Args args_of(const girih_args* pointer) {
  const girih_args c = known_part("girih_args", "args", pointer);
  constexpr std::uint32_t kKnownBits = GIRIH_GIVEN_SOFTMAX_SCALE | GIRIH_GIVEN_Q_START;
  if ((c.given & ~kKnownBits) != 0) {
    refuse(fmt::format("args.given is {:#x}: the known bits are {:#x}", c.given, kKnownBits));
  }
  const bool scale_given = (c.given & GIRIH_GIVEN_SOFTMAX_SCALE) != 0;
  const bool q_start_given = (c.given & GIRIH_GIVEN_Q_START) != 0;
  if (!scale_given && c.softmax_scale != 0) {
    refuse(fmt::format("args.softmax_scale is {}, but args.given lacks GIRIH_GIVEN_SOFTMAX_SCALE",
                       c.softmax_scale));
  }
  if (!q_start_given && c.q_start != 0) {
    refuse(fmt::format("args.q_start is {}, but args.given lacks GIRIH_GIVEN_Q_START", c.q_start));
  }
  girih::jit::Args args{.q = tensor_of("q", c.q),
                        .k = tensor_of("k", c.k),
                        .v = tensor_of("v", c.v),
                        .out = tensor_of("out", c.out)};
  args.layout = layout_of("args", c.layout);
  args.lse = c.lse;
  if (scale_given) args.softmax_scale = c.softmax_scale;
  if (c.empty_lse != 0) args.empty_lse = c.empty_lse;
  if (q_start_given) args.q_start = c.q_start;
  args.k_start = c.k_start;
  args.seqused_k = c.seqused_k;
  args.leftpad_k = c.leftpad_k;
  args.cu_seqlens_q = c.cu_seqlens_q;
  args.cu_seqlens_k = c.cu_seqlens_k;
  args.num_sequences = c.num_sequences;
  args.max_seqlen_q = c.max_seqlen_q;
  args.max_seqlen_k = c.max_seqlen_k;
  args.max_ctas = c.max_ctas;
  args.stream = c.stream;
  check_reserved("args", c.reserved);
  if (c.num_inputs < 0)
    refuse(fmt::format("args.num_inputs is {}: it must be 0 or more", c.num_inputs));
  for_each("inputs", "girih_input", c.inputs, c.num_inputs,
           [&](int i, const girih_input* input) { args.inputs.push_back(input_of(i, input)); });
  return args;
}

girih::jit::CombineArgs combine_args_of(const girih_combine_args* pointer) {
  const girih_combine_args c = known_part("girih_combine_args", "args", pointer);
  check_reserved("args", c.reserved);
  girih::jit::CombineArgs args{.parts = {},
                               .out = tensor_of("out", c.out, Types::of_combine),
                               .lse = c.lse,
                               .layout = layout_of("args", c.layout)};
  if (c.empty_lse != 0) args.empty_lse = c.empty_lse;
  args.stream = c.stream;
  if (c.num_parts < 0) {
    refuse(fmt::format("args.num_parts is {}: it must be 0 or more", c.num_parts));
  }
  for_each("parts", "girih_part", c.parts, c.num_parts, [&](int i, const girih_part* given) {
    const std::string name = fmt::format("parts[{}]", i);
    const girih_part part = known_part("girih_part", name.c_str(), given);
    args.parts.push_back(
        {tensor_of((name + ".out").c_str(), part.out, Types::of_combine), part.lse});
  });
  return args;
}

// What estimates know of girih_args' softmax_scale.
template <class Args>
std::optional<float> scale_of(const Args& c) {
  const bool given = (c.given & GIRIH_GIVEN_SOFTMAX_SCALE) != 0;
  if ((c.given & ~static_cast<unsigned>(GIRIH_GIVEN_SOFTMAX_SCALE)) != 0) {
    refuse(fmt::format("args.given is {}: it must be 0 or GIRIH_GIVEN_SOFTMAX_SCALE ({})", c.given,
                       +GIRIH_GIVEN_SOFTMAX_SCALE));
  }
  if (!given && c.softmax_scale != 0) {
    refuse("args.softmax_scale is set without GIRIH_GIVEN_SOFTMAX_SCALE in args.given");
  }
  return given ? std::optional(c.softmax_scale) : std::nullopt;
}

girih::jit::EstimateArgs estimate_args_of(const girih_estimate_args* pointer) {
  const girih_estimate_args c = known_part("girih_estimate_args", "args", pointer);
  check_reserved("args", c.reserved);
  const std::optional<float> softmax_scale = scale_of(c);
  girih::jit::EstimateArgs args{.q = tensor_of("q", c.q),
                                .k = tensor_of("k", c.k),
                                .layout = layout_of("args", c.layout),
                                .softmax_scale = softmax_scale,
                                .num_vertical = c.num_vertical,
                                .num_slash = c.num_slash,
                                .vertical = c.vertical,
                                .slash = c.slash,
                                .workspace = {c.workspace, c.workspace_bytes},
                                .stream = c.stream};
  // What more heads have is not looked at: they are refused.
  const std::int64_t heads = std::clamp<std::int64_t>(
      args.q.shape[args.layout == girih::Layout::bhsd ? 1 : 2], 0, girih::SelectParams::kMostHeads);
  if (c.head_vertical != nullptr) {
    args.head_vertical.assign(c.head_vertical, c.head_vertical + heads);
  }
  if (c.head_slash != nullptr) args.head_slash.assign(c.head_slash, c.head_slash + heads);
  return args;
}

girih::jit::EstimateBlocksArgs estimate_blocks_args_of(const girih_estimate_blocks_args* pointer) {
  const girih_estimate_blocks_args c = known_part("girih_estimate_blocks_args", "args", pointer);
  const std::optional<float> softmax_scale = scale_of(c);
  girih::jit::EstimateBlocksArgs args{.q = tensor_of("q", c.q),
                                      .k = tensor_of("k", c.k),
                                      .layout = layout_of("args", c.layout),
                                      .softmax_scale = softmax_scale,
                                      .causal = c.not_causal == 0,
                                      .keep_sink = c.keep_sink != 0,
                                      .mask = c.mask,
                                      .stream = c.stream};
  if (c.q_block != 0) args.q_block = c.q_block;
  if (c.kv_block != 0) args.kv_block = c.kv_block;
  if (c.stride != 0) args.stride = c.stride;
  if (c.top_k != 0) args.top_k = c.top_k;
  if (c.threshold != 0) args.threshold = c.threshold;
  return args;
}

}  // namespace

// --- The interface ------------------------------------------------------------------------------

const char* girih_status_name(girih_status status) {
  if (status == GIRIH_OK) return "ok";
  for (int code = 0; code <= static_cast<int>(Errc::internal); ++code) {
    if (status_of(static_cast<Errc>(code)) == status) return to_string(static_cast<Errc>(code));
  }
  return "unknown";
}

const char* girih_last_error(void) { return last_error.c_str(); }

const char* girih_version(void) { return GIRIH_VERSION; }

girih_status girih_compile(const char* pattern, const girih_options* options,
                           girih_program** program) {
  return guarded([&] {
    required("program", program) = nullptr;
    girih::Pattern parsed = girih::Pattern::parse(&required("pattern", pattern));
    std::string text = parsed.text();
    *program = new girih_program{girih::jit::compile(std::move(parsed), options_of(options)), text};
  });
}

const char* girih_program_text(const girih_program* program) {
  const char* text = nullptr;
  guarded([&] { text = required("program", program).text.c_str(); });
  return text;
}

void girih_program_free(girih_program* program) { delete program; }

girih_status girih_bind(const girih_program* program, const girih_problem* problem,
                        girih_kernel** kernel) {
  return guarded([&] {
    required("kernel", kernel) = nullptr;
    const girih::jit::Program& handle = required("program", program).program;
    *kernel = new girih_kernel{handle.bind(problem_of(problem))};
  });
}

void girih_kernel_free(girih_kernel* kernel) { delete kernel; }

girih_status girih_kernel_get_info(const girih_kernel* kernel, girih_kernel_info* info) {
  return guarded([&] {
    const girih::jit::KernelInfo& from = required("kernel", kernel).kernel.info();
    const std::size_t size = required("info", info).size;
    if (size < sizeof(size)) {
      refuse(fmt::format("info.size is {}: set it to sizeof(girih_kernel_info)", size));
    }
    const girih_kernel_info known{.size = size,
                                  .arch = from.arch.c_str(),
                                  .key = from.key.c_str(),
                                  .compiler = from.compiler.c_str(),
                                  .compile_ms = from.compile_ms,
                                  .cache_hit = from.cache_hit ? 1 : 0,
                                  .block_m = from.tile.block_m,
                                  .block_n = from.tile.block_n,
                                  .num_stages = from.tile.num_stages,
                                  .num_warps = from.tile.num_warps,
                                  .threads = from.threads,
                                  .registers = from.registers,
                                  .spill_bytes = from.spill_bytes,
                                  .stack_bytes = from.stack_bytes,
                                  .shared_bytes = from.shared_bytes,
                                  .kernel = from.kernel.c_str(),
                                  .num_q_stages = from.tile.num_q_stages,
                                  .reserved = 0};
    std::memset(static_cast<void*>(info), 0, size);
    std::memcpy(static_cast<void*>(info), &known, std::min(size, sizeof(known)));
  });
}

girih_status girih_workspace_bytes(const girih_kernel* kernel, const girih_args* args,
                                   size_t* bytes) {
  return guarded([&] {
    required("bytes", bytes) = required("kernel", kernel).kernel.workspace_bytes(args_of(args));
  });
}

girih_status girih_build_lists(const girih_kernel* kernel, const girih_args* args, void* workspace,
                               size_t workspace_bytes, int32_t check) {
  return guarded([&] {
    required("kernel", kernel)
        .kernel.build_lists(args_of(args), {workspace, workspace_bytes},
                            check != 0 ? girih::jit::Check::yes : girih::jit::Check::no);
  });
}

girih_status girih_launch(const girih_kernel* kernel, const girih_args* args, void* workspace,
                          size_t workspace_bytes) {
  return guarded([&] {
    required("kernel", kernel).kernel.launch(args_of(args), {workspace, workspace_bytes});
  });
}

girih_status girih_attention(const girih_program* program, const girih_args* args) {
  return guarded([&] { required("program", program).program(args_of(args)); });
}

girih_status girih_combine(const girih_combine_args* args) {
  return guarded([&] { girih::jit::combine(combine_args_of(args)); });
}

girih_status girih_bind_combine(const girih_options* options) {
  return guarded([&] { girih::jit::bind_combine(options_of(options)); });
}

girih_status girih_estimate_workspace_bytes(const girih_estimate_args* args, size_t* bytes) {
  return guarded([&] {
    size_t& needed = required("bytes", bytes);
    needed = girih::jit::estimate_workspace_bytes(estimate_args_of(args));
  });
}

girih_status girih_estimate_slashes(const girih_estimate_args* args) {
  return guarded([&] { girih::jit::estimate_slashes(estimate_args_of(args)); });
}

girih_status girih_bind_estimate(girih_dtype dtype, int32_t head_dim,
                                 const girih_options* options) {
  return guarded([&] {
    girih::jit::bind_estimate(dtype_of("argument", dtype), head_dim, options_of(options));
  });
}

girih_status girih_estimate_blocks(const girih_estimate_blocks_args* args) {
  return guarded([&] { girih::jit::estimate_blocks(estimate_blocks_args_of(args)); });
}

girih_status girih_bind_estimate_blocks(girih_dtype dtype, int32_t head_dim,
                                        const girih_options* options) {
  return guarded([&] {
    girih::jit::bind_estimate_blocks(dtype_of("argument", dtype), head_dim, options_of(options));
  });
}
