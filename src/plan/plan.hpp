// From a pattern and a problem to a kernel: what is supported and why not, which tiles, and what
// of the pattern is compiled in (its structure) or handed over at launch (its numbers).
#pragma once

#include <compare>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "girih/pattern.hpp"
#include "girih/problem.hpp"
#include "plan/arch.hpp"
#include "plan/bricks.hpp"

namespace girih::plan {

/// fwd_sm80 runs on every architecture from sm_80 up, fwd_sm90 on Hopper.
enum class KernelFamily { fwd_sm80, fwd_sm90 };
const char* to_string(KernelFamily family);

/// The only input of codegen::emit: the same spec gives the same bytes.
struct KernelSpec {
  KernelFamily family = KernelFamily::fwd_sm80;
  Arch arch;
  DType dtype = DType::bfloat16;
  int head_dim = 0;
  int head_dim_v = 0;
  TileConfig tile;
  int key_box = 0;          ///< keys that fwd_sm90 copies together, a divisor of block_n
  bool pack_heads = false;  ///< whether its warpgroups have the same rows of different query heads
  bool gathers = false;     ///< whether it gathers keys of vertical_slash (shared/slash.cuh)
  bool pass_over = true;    ///< whether they pass over key tiles that only others see
  bool elaborate = false;   ///< whether masks need registers that three of them usually have
  std::optional<Bricks> bricks;  ///< that its tiles are; else tiles are rows and keys in a row
  bool softcap = false;          ///< whether some head has one
  bool prune = false;            ///< whether some head is pruned
  bool splits = false;           ///< whether fwd_sm90 may split query tiles (shared/splits.cuh)
  bool tile_maxima = false;      ///< whether tile maxima are wanted, not attention; of fwd_sm80
  int min_ctas_per_sm = 1;       ///< what the register allocation aims at
  /// The structures of the pattern's head classes as C++ types, sorted: two patterns with the same
  /// set of structures share a kernel.
  std::vector<std::string> structures;
  /// The expressions of these structures, sorted: those of masks first.
  struct Expression {
    bool of_scores = false;
    std::string name;  ///< as a type
    int num_tensors = 0;
    std::string code;  ///< see pattern::Expression::code
    friend auto operator<=>(const Expression&, const Expression&) = default;
  };
  std::vector<Expression> expressions;
  bool builds_tiles() const {  ///< whether some of them are of masks
    return !expressions.empty() && !expressions.front().of_scores;
  }
  bool has_scores() const { return !expressions.empty() && expressions.back().of_scores; }
  int num_inputs = 0;           ///< places in the table of run-time inputs: pattern/places.hpp
  bool builds_lists = false;    ///< whether some of them are blocks
  bool builds_numbers = false;  ///< whether some of them are indices of tokens
  bool builds_slashes = false;  ///< whether some of them are columns and slashes
  int head_capacity = 1;        ///< rows of the head table; 1 for a pattern without `heads`
};

/// Whether some structure contains one of these, such as "Leaf<Causal>".
bool any_contains(const std::vector<std::string>& structures,
                  std::initializer_list<std::string_view> parts);

/// How many keys the rows see that make most of the work, where the sequence is long.
enum class KeysPerRow { many, some, few };

/// What of a pattern matters to its tile.
struct PatternTraits {
  KeysPerRow keys = KeysPerRow::many;
  bool softcap = false;              ///< whether some class of heads has one
  bool scores = false;               ///< whether some class modifies scores otherwise
  bool score_expressions = false;    ///< whether by expressions
  bool elaborate = false;            ///< whether its masks take many registers
  bool token_indices = false;        ///< whether only those of indices of tokens do
  bool documents = false;            ///< whether there is nothing else but `causal`: that takes few
  bool neighborhoods = false;        ///< whether some of them are neighborhoods: that takes more
  bool mixed_neighborhoods = false;  ///< whether one stands beside other atoms: still more
  bool strided = false;              ///< whether some of them are strided, which takes more, too
  bool slashes = false;              ///< whether one is vertical_slash alone
  bool mixed_slashes = false;        ///< and stands beside others
  int q_block_size = 0;              ///< of the finest run-time block mask; 0 where there is none
  int kv_block_size = 0;
  int prune_kv = 0;  ///< keys of the tiles that heads are pruned by; 0 where none is
};

/// What the tiles of an expression of the pattern's masks depend on, beside its tensors.
struct ConditionTiles {
  int condition = 0;        ///< of the kernel's that mask, in the order of KernelSpec::expressions
  std::vector<int> places;  ///< of its tensors
  bool by_batch = false;    ///< on the sequence's number,
  bool by_length = false;   ///< its lengths,
  bool by_head = false;     ///< the query head,
  bool by_head_kv = false;  ///< the key/value head
};

struct Plan {
  KernelSpec spec;
  PatternTraits traits;
  DilatedGrid grid{};  ///< that bricks are of
  int threads = 0;
  int shared_bytes = 0;  ///< dynamic, per CTA
  /// The HeadTable that launches pass: head_capacity rows of {class, softcap as float bits,
  /// numbers...}, where heads are pruned followed by a PruneWord.
  std::vector<int> head_table;
  std::vector<ConditionTiles> tiles;  ///< of pattern::conditions_of
};

/// @throws Error invalid_argument for a problem that makes no sense, unsupported with every
/// reason for one that no kernel does.
Plan make_plan(const Pattern& pattern, const Problem& problem, const Arch& arch,
               const TileConfig& requested = {});

/// Of a kernel that finds the highest scores of tiles of 128 rows and `kv` keys, and neither reads
/// V nor writes an output. @throws Error as make_plan.
Plan make_tile_maxima_plan(const Pattern& pattern, const Problem& problem, const Arch& arch,
                           int kv);

/// A mask's structure as a C++ type: "All<Leaf<Causal>, Leaf<Sink>>".
std::string structure_of(const Mask& mask);
/// With modifiers other than softcap, "With<Leaf<Causal>, Alibi>".
std::string structure_of(const Pattern::HeadClass& head_class);

/// The numbers of a mask's atoms, in the order of its text; what comes from an input is the input's
/// place. `conditions` are those of the pattern.
std::vector<int> numbers_of(const Mask& mask, const std::vector<InputInfo>& inputs,
                            const std::vector<const pattern::Expression*>& conditions = {});
/// Then those of its modifiers.
std::vector<int> numbers_of(const Pattern::HeadClass& head_class,
                            const std::vector<InputInfo>& inputs,
                            const std::vector<const pattern::Expression*>& conditions = {});

}  // namespace girih::plan
