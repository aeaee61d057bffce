// The C interface (C99), in libgirih.so: a pattern's text becomes a program, a program is bound to
// a problem, and the kernel that this gives is launched. Unstable until version 1.0: compile
// against the header that came with the library.
//
//   girih_program* program = NULL;
//   if (girih_compile("causal & window(left=4095)", NULL, &program) != GIRIH_OK)
//     puts(girih_last_error());
//   girih_args args = {.size = sizeof(args), .q = &q, .k = &k, .v = &v, .out = &out};
//   girih_attention(program, &args);
//
// Structs: `size` is sizeof the struct, as the caller's compiler sees it; later versions add
// members at the end. Every other member may be left zero: that is "not given", unless said
// otherwise.
//
// Functions may be called from any thread. Handles may be shared by threads; freeing one while
// another thread uses it is the caller's mistake. Strings are UTF-8 and end with a zero.
#ifndef GIRIH_GIRIH_H
#define GIRIH_GIRIH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define GIRIH_C_API __attribute__((visibility("default")))
#else
#define GIRIH_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;  // CUstream and cudaStream_t point to it

// --- Results ------------------------------------------------------------------------------------

typedef int32_t girih_status;
enum {
  GIRIH_OK = 0,
  GIRIH_INVALID_ARGUMENT = 1,  // the caller's input is wrong
  GIRIH_UNSUPPORTED = 2,       // well formed, but no kernel does it; the message lists the reasons
  GIRIH_COMPILE_FAILED = 3,    // NVRTC is missing or refused the source
  GIRIH_CACHE_IO = 4,          // a cache operation that was asked for explicitly failed
  GIRIH_DRIVER = 5,            // a CUDA driver call failed
  GIRIH_NO_DEVICE = 6,         // no driver, no device or no current context
  GIRIH_JIT_DISABLED = 7,      // a cache miss while compilation is switched off
  GIRIH_INTERNAL = 8           // a defect in Girih, or no memory left
};

// "ok", "invalid_argument", ...; "unknown" for other numbers.
GIRIH_C_API const char* girih_status_name(girih_status status);

// What this thread's last failed call has to say: the value, the limit and the remedy. Valid until
// this thread's next failed call; "" before the first one.
GIRIH_C_API const char* girih_last_error(void);

// The library's version, such as "0.1.0".
GIRIH_C_API const char* girih_version(void);

// --- Programs -----------------------------------------------------------------------------------

// A pattern ready to be bound to problems; remembers the kernels that it has bound.
typedef struct girih_program girih_program;

typedef int32_t girih_jit;
enum {
  GIRIH_JIT_DEFAULT = 0,  // as the environment variable GIRIH_JIT says
  GIRIH_JIT_AUTO = 1,     // what is not cached is compiled
  GIRIH_JIT_OFF = 2       // what is not cached is GIRIH_JIT_DISABLED
};

typedef int32_t girih_tune;
enum {
  GIRIH_TUNE_DEFAULT = 0,  // as the environment variable GIRIH_TUNE says
  GIRIH_TUNE_DB = 1,       // a tile that was measured, where there is a record
  GIRIH_TUNE_OFF = 2,      // the tile that Girih would choose without records
  GIRIH_TUNE_AUTO = 3      // as DB; girih_attention measures lengths without a record first
};

// What is not given (NULL, "" or 0) comes from the variable named beside it, or is chosen by Girih.
typedef struct girih_options {
  size_t size;
  const char* cache_dir;     // GIRIH_CACHE_DIR
  const char* cache_layers;  // GIRIH_CACHE_LAYERS: folders, separated by ':'
  const char* nvrtc;         // GIRIH_NVRTC: the library, or its folder
  const char* template_dir;  // GIRIH_TEMPLATE_DIR
  const char* dump_dir;      // GIRIH_DUMP
  girih_jit jit;             // GIRIH_JIT
  int32_t block_m;           // the tile: query rows,
  int32_t block_n;           // keys,
  int32_t num_stages;        // K/V tiles in flight
  int32_t num_warps;
  girih_tune tune;       // GIRIH_TUNE
  int32_t num_q_stages;  // Q tiles in flight, in Hopper's kernel
  int32_t portable;      // 1: the kernel that runs on every GPU, where one has its own
  int32_t check_inputs;  // 1: girih_attention waits for the GPU and refuses inputs with entries out
                         // of range; 0: as the environment variable GIRIH_CHECK_INPUTS says
} girih_options;

// Parses a pattern. `options` may be NULL. The text is not kept. On failure *program is NULL.
GIRIH_C_API girih_status girih_compile(const char* pattern, const girih_options* options,
                                       girih_program** program);

// The pattern's canonical text, valid as long as the program. NULL for a NULL program.
GIRIH_C_API const char* girih_program_text(const girih_program* program);

// NULL is fine. Kernels that the program has bound stay valid.
GIRIH_C_API void girih_program_free(girih_program* program);

// --- Kernels ------------------------------------------------------------------------------------

typedef int32_t girih_dtype;
enum {  // 0 is refused: a type must be given
  GIRIH_FLOAT16 = 1,
  GIRIH_BFLOAT16 = 2,
  GIRIH_FLOAT32 = 3  // of the tensors of girih_combine alone
};

typedef int32_t girih_layout;
enum {
  GIRIH_BSHD = 0,  // [batch, seqlen, heads, head_dim]
  GIRIH_BHSD = 1,  // [batch, heads, seqlen, head_dim]
  GIRIH_THD = 2    // packed sequences, [1, total, heads, head_dim], with cu_seqlens
};

// The part of a problem that a kernel is compiled for. Lengths are arguments of the launch.
typedef struct girih_problem {
  size_t size;
  girih_dtype dtype;
  int32_t head_dim;      // width of a head of Q and K
  int32_t num_heads;     // query heads
  int32_t num_heads_kv;  // key/value heads; 0: as num_heads
  int32_t head_dim_v;    // of V and out; 0: as head_dim
  girih_layout layout;
  // On a tensor-parallel rank, where patterns count the whole model's heads: the number of the
  // first query head here, and how many the model has (0: num_heads).
  int32_t head_offset;
  int32_t num_heads_total;
  // 1 promises that the query heads of one KV head see the same blocks of run-time inputs, so that
  // they may share a tile; whoever breaks it gets right results, slowly.
  int32_t shared_inputs;
  // 1 says that launches may give seqused_k or leftpad_k, or tensors whose heads lie 2^31 elements
  // apart, which only kernels of neighborhoods must know: their tiles are then tokens in a row, not
  // bricks of the grid, and visit more.
  int32_t partial_keys;
} girih_problem;

// A compiled, loaded kernel, for the context that was current when it was bound.
typedef struct girih_kernel girih_kernel;

// Plans, compiles or fetches, and loads for the current context. On failure *kernel is NULL.
GIRIH_C_API girih_status girih_bind(const girih_program* program, const girih_problem* problem,
                                    girih_kernel** kernel);

// NULL is fine. What was launched runs to its end.
GIRIH_C_API void girih_kernel_free(girih_kernel* kernel);

// How a kernel came about and what it uses. Strings are valid as long as the kernel.
typedef struct girih_kernel_info {
  size_t size;
  const char* arch;      // of the cubin, such as "sm_90"
  const char* key;       // in the cache
  const char* compiler;  // such as "NVRTC 13.0"
  double compile_ms;     // of the NVRTC call that made the cubin, whenever that was
  int32_t cache_hit;     // 1: nothing was compiled for this bind
  int32_t block_m, block_n, num_stages, num_warps;
  int32_t threads;    // per CTA
  int32_t registers;  // per thread
  int32_t spill_bytes, stack_bytes;
  int32_t shared_bytes;  // dynamic, per CTA
  const char* kernel;    // "fwd_sm80", which runs on every GPU, or "fwd_sm90", Hopper's
  int32_t num_q_stages;  // of Hopper's; else 0
  int32_t reserved;      // 0
} girih_kernel_info;

// Fills in the first info->size bytes of *info; the caller sets info->size.
GIRIH_C_API girih_status girih_kernel_get_info(const girih_kernel* kernel, girih_kernel_info* info);

// --- Launches -----------------------------------------------------------------------------------

// A view of device memory: aligned to 16 bytes, the last dimension contiguous, the other strides
// multiples of 8 elements.
typedef struct girih_tensor {
  size_t size;
  void* data;
  int64_t shape[4];   // in the order of the layout
  int64_t stride[4];  // in elements
  girih_dtype dtype;
  int32_t reserved;  // 0
} girih_tensor;

// How the data of a run-time input lies in device memory. A plane is what one sequence and head
// sees: a row for each block of queries, with the blocks of keys that are visible to it.
typedef int32_t girih_input_kind;
enum {
  GIRIH_BLOCK_LIST = 1,    // row i: entries of `indices` from indptr[i] up to indptr[i + 1] (CSR)
  GIRIH_BLOCK_TABLE = 2,   // row i: the first counts[i] entries of the i-th row of `indices`
  GIRIH_BLOCK_MASK = 3,    // row i: a byte of `data` for each block of keys, not 0 where visible
  GIRIH_BLOCK_BITS = 4,    // row i: 32-bit words of `data`; block j is bit j % 32 of word j / 32
  GIRIH_HEAD_NUMBERS = 5,  // no planes: an int32 of `data` for each sequence and head
  // A plane is a row: an int32 of `data` for each query, one of `k_data` for each key.
  GIRIH_TOKEN_INDICES = 6,
  // A plane is a list of columns in `data` and one of distances in `k_data`, in any order, whose
  // other entries than keys and distances are ignored: pad with -1.
  GIRIH_VERTICAL_SLASH = 7,
  // No planes: a float32 of `data` for each head and each 128 positions of queries.
  GIRIH_THRESHOLDS = 8,
  GIRIH_VALUES = 9,  // no planes: numbers of `data` in `rank` dimensions
  // A plane is a row: for each key an int32 of `data`, its first row, one of `k_data`, behind its
  // last row, and the same of `second_start` and `second_end` where these are given.
  GIRIH_COLUMN_INTERVALS = 10
};

typedef int32_t girih_values_type;
enum { GIRIH_VALUES_FLOAT32 = 0, GIRIH_VALUES_INT32 = 1 };

// A run-time input of a pattern: m of blocks(m, q=128, kv=64), n of sink($n), d of segments(d), v
// of vertical_slash(v), c of columns(c), t of prune(t, kv=64), s of alibi(s), or x of expr("x[k] >
// 0"). Members that its kind does not have stay zero. Entries of `indices` may stand in any order,
// and those outside 0 to num_kv_blocks - 1 are ignored.
typedef struct girih_input {
  size_t size;
  const char* name;
  girih_input_kind kind;
  int32_t batch;          // the number of sequences, or 1 where all share; 0: 1; not of thresholds
  int32_t heads;          // num_heads, num_heads_kv, or 1 where all share; 0: 1
  int32_t num_q_blocks;   // of a plane: ceil(seqlen_q / q) or more,
  int32_t num_kv_blocks;  // ceil(seqlen_k / kv) or more
  int32_t row_capacity;   // table: entries in a row of `indices`
  const int32_t* indptr;  // list: contiguous [batch, heads, num_q_blocks + 1]
  const int32_t* counts;  // table: contiguous [batch, heads, num_q_blocks]
  // list: contiguous [num_indices]; table: [batch, heads, num_q_blocks, row_capacity]
  const int32_t* indices;
  int64_t num_indices;  // list: nothing is read from there on
  // list: 0 where indptr counts from the first index of all, or else how far apart, in entries, the
  // first indices of two planes lie: each plane's indptr then counts from its own.
  int64_t plane_stride;
  // mask, bits: [batch, heads, num_q_blocks, row]; numbers: [batch, heads]; indices: [batch, heads,
  // num_tokens], the last contiguous; vertical_slash: contiguous [batch, heads, num_tokens];
  // thresholds: [heads, num_columns]
  const void* data;
  // Of mask, in bytes, and of bits and indices, in words; all 0: contiguous. Indices have no rows.
  int64_t batch_stride, head_stride, row_stride;
  // Indices: those of the keys, likewise. NULL: `data` serves both, where seqlen_q is seqlen_k.
  // Vertical_slash: contiguous [batch, heads, k_num_tokens].
  const int32_t* k_data;
  int64_t k_batch_stride, k_head_stride;
  int32_t k_batch, k_heads;  // 0: 1
  int32_t num_tokens;        // indices: seqlen_q or more; vertical_slash: columns
  int32_t k_num_tokens;      // seqlen_k or more; distances
  int32_t num_columns;       // thresholds: those beyond the last position have the last one
  int32_t kv_block_size;     // thresholds: keys of the tiles that they were calibrated for
  // Values: the dimensions that the pattern wants, such as [batch, heads, seqlen_k]. Leading ones
  // may be left out, and all share; so do they where the extent of batch or heads is 1. What
  // expressions index has a dimension for each index; int32 of expr, float32 of score.
  int64_t shape[4];  // the first `rank`
  // In elements. All 0 mean contiguous, not one number for all: copy a tensor expanded in every
  // dimension, or give it extents of 1.
  int64_t stride[4];
  girih_values_type type;
  int32_t rank;
  // Intervals of columns, of which k_data, second_start and second_end are strided as `data` is,
  // and num_tokens is seqlen_k or more.
  const int32_t *second_start, *second_end;
  int64_t key_stride;  // 0: 1
} girih_input;

// Bits of girih_args.given, for members that have no value to spare for "not given".
enum { GIRIH_GIVEN_SOFTMAX_SCALE = 1, GIRIH_GIVEN_Q_START = 2 };

// Arguments of one launch. Shapes, in layout bshd:
//   q    [batch, seqlen_q, num_heads, head_dim]
//   k    [batch, seqlen_k, num_heads_kv, head_dim]
//   v    [batch, seqlen_k, num_heads_kv, head_dim_v]
//   out  [batch, seqlen_q, num_heads, head_dim_v]
// A row that sees no key gives out = 0 and lse = empty_lse. The structs of tensors and inputs are
// read during the call only.
typedef struct girih_args {
  size_t size;
  const girih_tensor *q, *k, *v, *out;
  // Device memory or NULL: natural log, contiguous [batch, num_heads, seqlen_q]; thd: [num_heads,
  // total_q].
  float* lse;
  // Device arrays of int32 or NULL. Values are trusted to lie within the tensors; where one exceeds
  // the maximum length, the maximum holds.
  const int32_t* seqused_k;     // [batch]: a sequence's keys from this one on do not exist
  const int32_t* leftpad_k;     // [batch]: nor do the first so many; key 0 comes after them
  const int32_t* cu_seqlens_q;  // thd: [num_sequences + 1], starts of the packed sequences
  const int32_t* cu_seqlens_k;  // thd: [num_sequences + 1]
  struct CUstream_st* stream;   // NULL: the default stream
  girih_layout layout;
  uint32_t given;         // GIRIH_GIVEN_...; a member set without its bit is refused
  float softmax_scale;    // finite and >= 0; not given: 1 / sqrt(head_dim)
  float empty_lse;        // -infinity or +infinity; 0: -infinity
  int32_t q_start;        // position of the first query; not given: k_start + seqlen_k - seqlen_q
  int32_t k_start;        // position of the first key
  int32_t num_sequences;  // thd
  int32_t max_seqlen_q;   // thd: no sequence has more queries
  int32_t max_seqlen_k;   // thd: nor more keys
  int32_t max_ctas;       // caps the grid, for tests; 0: no cap
  const girih_input* inputs;  // [num_inputs]: each that the pattern names, in any order
  int32_t num_inputs;
  int32_t reserved;  // 0
} girih_args;
// Where the pattern has a neighborhood(AxBxC, ...), q must have A * B * C rows (thd: max_seqlen_q)
// and k as many, or more with extra keys behind the grid; GIRIH_INVALID_ARGUMENT otherwise.

// Device scratch memory that launches with these arguments need: 0 unless some of the inputs are
// block lists, tables or masks, indices of tokens, intervals of columns, or columns and slashes, or
// the pattern has expr("..."). Bits of blocks, numbers, thresholds and values, also those that
// expressions index, are read where they lie.
GIRIH_C_API girih_status girih_workspace_bytes(const girih_kernel* kernel, const girih_args* args,
                                               size_t* bytes);

// Enqueues on args->stream what prepares the block lists, tables, masks, indices, intervals,
// columns and slashes among the inputs, and the tiles of expr("..."), in `workspace`: once for any
// number of launches with the same ones, and of slashes and expressions with the same lengths and
// positions, and the same elements of their tensors. `check` other than 0 waits for the stream and
// refuses entries out of range, which are ignored otherwise, and thresholds that are NaN, which
// keep every tile otherwise. Also plans which rows of lists and masks are split: for this kernel
// and, to be fast, for these lengths.
GIRIH_C_API girih_status girih_build_lists(const girih_kernel* kernel, const girih_args* args,
                                           void* workspace, size_t workspace_bytes, int32_t check);

// Enqueues one attention forward on args->stream; does not wait for it. Never compiles or
// allocates device memory. `workspace`: at least girih_workspace_bytes of device memory aligned to
// 16 bytes, into which girih_build_lists has built for this kernel; NULL where that is 0. Launches
// that may run at once need one each where block lists, tables or masks were built.
GIRIH_C_API girih_status girih_launch(const girih_kernel* kernel, const girih_args* args,
                                      void* workspace, size_t workspace_bytes);

// Binds to the tensors' types and heads on first use, builds lists into memory from the driver's
// pool where that is needed, and launches. While the stream is being captured only an already bound
// problem is accepted.
GIRIH_C_API girih_status girih_attention(const girih_program* program, const girih_args* args);

// --- Merging partial results --------------------------------------------------------------------

// Attention over a part of the keys, as a launch writes it. Rows whose lse is infinite, of either
// sign, have seen nothing there: they count as nothing, and their out is not read.
typedef struct girih_part {
  size_t size;
  const girih_tensor* out;  // of any type; read during the call only
  const float* lse;
} girih_part;

// Arguments of one merge: out = sum of exp(part.lse - lse) * part.out, and lse the logarithm of the
// sum of exp(part.lse). The last dimension of the tensors is a multiple of 8; every lse is as that
// of girih_args.
typedef struct girih_combine_args {
  size_t size;
  const girih_part* parts;  // [num_parts], 1 to 64
  const girih_tensor* out;  // may be one of the parts' tensors
  float* lse;               // may be one of the parts', or NULL
  struct CUstream_st* stream;
  int32_t num_parts;
  girih_layout layout;
  float empty_lse;   // of a row that no part has seen: -infinity or +infinity; 0: -infinity
  int32_t reserved;  // 0
} girih_combine_args;

// Enqueues one merge on args->stream. The first call in a context compiles the kernel, or finds it
// in the cache, and loads it, which is refused while the stream is being captured.
GIRIH_C_API girih_status girih_combine(const girih_combine_args* args);

// Does ahead of time what the first call of girih_combine does in the current context. `options`
// may be NULL; tile and tune do not matter.
GIRIH_C_API girih_status girih_bind_combine(const girih_options* options);

// --- Estimating columns and slashes -------------------------------------------------------------

// Arguments of one estimate: of each sequence and query head the keys, and the distances from a
// query back to a key, that the last 64 queries see most, as MInference estimates what
// GIRIH_VERTICAL_SLASH is to hold. The first 30 keys and the distances below 100 come before all
// others.
typedef struct girih_estimate_args {
  size_t size;
  const girih_tensor *q, *k;  // as those of girih_args; head_dim is a multiple of 16 up to 256
  int32_t* vertical;          // device memory, contiguous [batch, num_heads, num_vertical]
  int32_t* slash;             // likewise; both ascend, -1 behind what there is
  struct CUstream_st* stream;
  int32_t num_vertical, num_slash;
  girih_layout layout;  // GIRIH_BSHD or GIRIH_BHSD
  uint32_t given;       // 0 or GIRIH_GIVEN_SOFTMAX_SCALE
  float softmax_scale;
  int32_t reserved;  // 0
  // Host memory, for up to 256 query heads: how many each is to have, none more than num_vertical
  // and num_slash, the rows' width. NULL: as many as these say, each.
  const int32_t *head_vertical, *head_slash;  // [num_heads]
  void* workspace;  // aligned to 16 bytes; NULL: scratch memory comes from the driver's pool
  size_t workspace_bytes;
} girih_estimate_args;

// How much workspace these arguments need on the current context's GPU. Never compiles.
GIRIH_C_API girih_status girih_estimate_workspace_bytes(const girih_estimate_args* args,
                                                        size_t* bytes);

// Enqueues one estimate on args->stream. The first call
// for a type and width in a context compiles the kernels, or finds them in the cache, and loads
// them, which is refused while the stream is being captured.
GIRIH_C_API girih_status girih_estimate_slashes(const girih_estimate_args* args);

// Does ahead of time what the first call of girih_estimate_slashes does in the current context.
// `options` may be NULL; tile and tune do not matter.
GIRIH_C_API girih_status girih_bind_estimate(girih_dtype dtype, int32_t head_dim,
                                             const girih_options* options);

// --- Estimating blocks --------------------------------------------------------------------------

// Arguments of one estimate: of each sequence and query head, which blocks of keys each block of
// queries should see. Scores are those of the blocks' means, as MInference has them, or with a
// stride sums along antidiagonals, as XAttention does. Of each row of blocks those with the largest
// probabilities are taken; blocks that hold positions of the row's own queries come before all
// others, unless it is not causal, and with keep_sink the first does.
typedef struct girih_estimate_blocks_args {
  size_t size;
  const girih_tensor *q, *k;  // as those of girih_args; head_dim is a multiple of 16 up to 256
  uint8_t* mask;  // device memory, contiguous [batch, num_heads, num_q_blocks, num_kv_blocks]: 0, 1
  struct CUstream_st* stream;
  girih_layout layout;  // GIRIH_BSHD or GIRIH_BHSD
  uint32_t given;       // 0 or GIRIH_GIVEN_SOFTMAX_SCALE
  float softmax_scale;
  int32_t q_block, kv_block;  // tokens: 64 or 128; 64 where not given
  int32_t stride;             // 4, 8 or 16; the blocks' means where not given
  int32_t top_k;              // this many blocks of a row, or:
  float threshold;            // as many as have this share of its probabilities, above 0, up to 1
  int32_t not_causal;         // 0 or 1
  int32_t keep_sink;          // 0 or 1
} girih_estimate_blocks_args;

// Enqueues one estimate on args->stream, with scratch memory from the driver's pool. The first call
// for a type and width in a context compiles the kernels, or finds them in the cache, and loads
// them, which is refused while the stream is being captured.
GIRIH_C_API girih_status girih_estimate_blocks(const girih_estimate_blocks_args* args);

// Does ahead of time what the first call of girih_estimate_blocks does in the current context.
// `options` may be NULL; tile and tune do not matter.
GIRIH_C_API girih_status girih_bind_estimate_blocks(girih_dtype dtype, int32_t head_dim,
                                                    const girih_options* options);

#ifdef __cplusplus
}
#endif

#endif
