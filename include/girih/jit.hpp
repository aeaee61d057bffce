// The run-time API: a pattern becomes a kernel, a kernel is launched.
//
//   auto attention = girih::jit::compile(pattern);
//   attention({.q = q, .k = k, .v = v, .out = out, .stream = stream});
//
// The first call for a problem plans, compiles (or finds the cubin in the cache) and loads; later
// calls only launch. Kernel::launch never compiles, allocates device memory, formats text or
// takes a lock.
#pragma once

#include <cstddef>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "girih/pattern.hpp"
#include "girih/problem.hpp"

struct CUstream_st;  // CUstream, so that no CUDA header is needed here

namespace girih::jit {

/// Whether a cache miss may compile.
enum class Mode { automatic, off };

/// Where a tile that nobody asked for comes from.
enum class Tune {
  db,         ///< the fastest on record (of `girih tune`, say), else the plan's own
  off,        ///< the plan's own
  automatic,  ///< as db, but a Program called with lengths that have no record measures them first
};

/// Whether run-time inputs are looked through for entries out of range, which waits for the GPU.
enum class Check { no, yes };

/// Each field left empty takes its value from the environment variable named beside it.
struct Options {
  TileConfig tile = {};                                 ///< zeros: chosen from records or by plan
  std::optional<Mode> mode = {};                        ///< GIRIH_JIT=auto|off
  std::optional<Tune> tune = {};                        ///< GIRIH_TUNE=db|auto|off
  std::optional<Check> check_inputs = {};               ///< GIRIH_CHECK_INPUTS=no|yes: of calls
  std::optional<std::filesystem::path> cache_dir = {};  ///< GIRIH_CACHE_DIR
  std::optional<std::vector<std::filesystem::path>> cache_layers =
      {};                                                  ///< GIRIH_CACHE_LAYERS (a:b)
  std::optional<std::filesystem::path> nvrtc = {};         ///< GIRIH_NVRTC
  std::optional<std::filesystem::path> template_dir = {};  ///< GIRIH_TEMPLATE_DIR
  std::optional<std::filesystem::path> dump_dir = {};      ///< GIRIH_DUMP
};

/// Arguments of one launch. Tensors are device memory aligned to 16 bytes; their strides are
/// multiples of 8 elements, and the last dimension is contiguous. Shapes, in layout bshd:
///   q    [batch, seqlen_q, num_heads, head_dim]
///   k    [batch, seqlen_k, num_heads_kv, head_dim]
///   v    [batch, seqlen_k, num_heads_kv, head_dim_v]
///   out  [batch, seqlen_q, num_heads, head_dim_v]
/// A row that sees no key gives out = 0 and lse = empty_lse.
struct Args {
  Tensor q, k, v, out;
  Layout layout = Layout::bshd;
  /// Natural log, contiguous [batch, num_heads, seqlen_q]; thd: [num_heads, total_q]. May be null.
  float* lse = nullptr;
  std::optional<float> softmax_scale = {};  ///< default 1 / sqrt(head_dim); finite and >= 0
  float empty_lse = -std::numeric_limits<float>::infinity();  ///< or +infinity

  /// Positions of the first query and key. Default of q_start: each sequence's last query stands
  /// at its last key, that is q_start = k_start + seqlen_k - seqlen_q.
  std::optional<int> q_start = {};
  int k_start = 0;

  /// Lengths of their own, each a device array of int32 or null. Values are trusted to lie within
  /// the tensors; where one exceeds the maximum length, the maximum holds.
  const int* seqused_k = nullptr;     ///< [batch]: a sequence's keys from this one on do not exist
  const int* leftpad_k = nullptr;     ///< [batch]: nor do the first so many; key 0 comes after them
                                      ///< (kernels of neighborhoods: see Problem::partial_keys)
  const int* cu_seqlens_q = nullptr;  ///< thd: [num_sequences + 1], starts of the packed sequences
  const int* cu_seqlens_k = nullptr;  ///< thd: [num_sequences + 1]
  int num_sequences = 0;              ///< thd
  int max_seqlen_q = 0;               ///< thd: no sequence has more queries
  int max_seqlen_k = 0;               ///< thd: nor more keys

  /// What the pattern's run-time inputs hold, by name: all of Pattern::inputs().
  std::vector<Input> inputs = {};

  int max_ctas = 0;  ///< caps the grid, for tests; 0 is no cap
  CUstream_st* stream = nullptr;
  friend bool operator==(const Args&, const Args&) = default;
};

/// Device scratch memory; see Kernel::workspace_bytes.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
  friend bool operator==(const Workspace&, const Workspace&) = default;
};

/// How a kernel came about and what it uses.
struct KernelInfo {
  std::string arch;    ///< of the cubin, e.g. "sm_90a"
  std::string kernel;  ///< "fwd_sm80", which runs everywhere, or "fwd_sm90", Hopper's
  std::string key;     ///< in the cache
  TileConfig tile;
  /// "given", "tuned", "tuned on another GPU" (of the same architecture; a hint) or "heuristic"
  std::string tile_source;
  int registers = 0;  ///< per thread
  int spill_bytes = 0;
  int stack_bytes = 0;
  int shared_bytes = 0;   ///< dynamic, per CTA
  int threads = 0;        ///< per CTA
  double compile_ms = 0;  ///< of the NVRTC call that made the cubin, whenever that was
  bool cache_hit = false;
  std::string compiler;  ///< e.g. "NVRTC 13.0"
};

/// A compiled, loaded kernel: a cheap handle, safe to copy and to launch from several threads.
class Kernel {
 public:
  /// Enqueues one attention forward on args.stream. Block lists, byte masks, indices of tokens,
  /// intervals of columns, slashes and the tiles of expressions must have been built into the
  /// workspace by this kernel, on this stream or before it. Where block lists or byte masks were
  /// built, results of parts of rows go into the workspace too: launches that may run at once need
  /// one each.
  /// @throws Error invalid_argument before anything is launched; driver when the launch fails.
  void launch(const Args& args, Workspace workspace = {}) const;

  /// Scratch that build_lists and launch need for these arguments. Patterns without block lists,
  /// byte masks, indices of tokens, intervals of columns, slashes or expr(...) need none: bits,
  /// numbers, thresholds and Values are read where they lie.
  /// Block lists of long sequences take up to 2 * block_m * (head_dim_v + 1) floats for each
  /// multiprocessor of Hopper, 17 MB at head_dim_v 128.
  std::size_t workspace_bytes(const Args& args) const;

  /// Enqueues on args.stream what prepares the block lists, byte masks, indices of tokens,
  /// intervals of columns and slashes among args.inputs, and the tiles of expr(...): once for any
  /// number of launches with the same ones and workspace, and of slashes and expressions with the
  /// same lengths and positions, and the same elements of their tensors. Does nothing where there
  /// are none. With Check::yes it waits for the stream and refuses lists with entries out of range,
  /// which are ignored otherwise, and thresholds that are NaN, which keep every tile otherwise.
  ///
  /// On Hopper also finds out which rows of block lists or byte masks see so much that they would
  /// keep one multiprocessor busy when the others are done: their keys are divided. That is by
  /// the lengths and positions of these args; a launch with others is as right, but may be slower.
  /// @throws Error as launch.
  void build_lists(const Args& args, Workspace workspace, Check check = Check::no) const;

  const Problem& problem() const;
  const KernelInfo& info() const;

  struct Impl;  // opaque
  explicit Kernel(std::shared_ptr<const Impl> impl);

 private:
  std::shared_ptr<const Impl> impl_;
};

/// A pattern ready to be bound to problems; remembers the kernels it has bound. What a kernel was
/// loaded from stays in the driver until the process ends, so that handles never dangle and a later
/// program finds it there.
class Program {
 public:
  explicit Program(Pattern pattern, Options options = {});

  const Pattern& pattern() const;

  /// Plans, compiles or fetches, and loads for the current context's device.
  /// @throws Error unsupported, compile_failed, jit_disabled, no_device, driver.
  Kernel bind(const Problem& problem) const;

  /// Binds to the tensors' types and heads on first use, then launches. Lists are built into memory
  /// that is taken from and given back to the driver's pool in the order of the stream, with
  /// Options::check_inputs. While args.stream is being captured only an already bound problem is
  /// accepted, and nothing can be checked. The tensors' heads count as the whole model's: on a
  /// tensor-parallel rank bind() and launch the kernel.
  ///
  /// With Tune::automatic the first use of a problem that bind() has not bound, with lengths in
  /// other powers of two than before, takes some seconds: it compiles other tiles and times them on
  /// args.stream with these inputs, into outputs of its own, and records the times. Where there is
  /// no memory for those outputs it warns and goes on without.
  void operator()(const Args& args) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

Program compile(Pattern pattern, Options options = {});
Kernel compile(const Pattern& pattern, const Problem& problem, Options options = {});

/// What a kernel would be, without a device: for ahead-of-time compilation and for tools.
struct Artifact {
  KernelInfo info;
  std::string source;  ///< the emitted entry
  std::string cubin;
  std::string ptx;  ///< only when asked for
  std::string log;  ///< ptxas' resource report and warnings; empty on a cache hit
};

enum class Emit { source, cubin, ptx };

/// Runs the path up to `emit` for an architecture such as "sm_80" or "sm_90a"; needs no GPU and
/// no driver. Emit::ptx always compiles.
Artifact build(const Pattern& pattern, const Problem& problem, const std::string& arch,
               Options options = {}, Emit emit = Emit::cubin);

}  // namespace girih::jit
