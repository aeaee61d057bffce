#include "fill.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "girih/error.hpp"
#include "girih/shared/geometry.cuh"
#include "pattern/atoms.hpp"

namespace girih::tools {
namespace {

constexpr const char* kForm =
    "NAME=random:DENSITY[:SKEW] for blocks, NAME=INTEGER for a number, NAME=documents:MEAN (of "
    "log-normal lengths) or NAME=random:COUNT (unsorted) for indices of tokens, "
    "NAME=random:COLUMNS:DISTANCES for columns and slashes, NAME=keep (every tile), "
    "NAME=skip:SHARE (of the tiles that may be) or NAME=@FILE (that girih calibrate wrote) for "
    "thresholds, NAME=rows:MOST[:INTERVALS] for columns, NAME=normal:DEVIATION or NAME=slopes "
    "(ALiBi's) "
    "for values of heads and keys (not given: normal:1), NAME=random:COUNT or NAME=documents:MEAN "
    "for int32 tensors of expressions, NAME=normal:DEVIATION for float32 ones, and then "
    "[,heads=1|kv|q][,batch=1|all][,as=list|plane_list|table|bytes|bits][,extent=NUMBER, of "
    "dimensions of tensors that are indexed by more than a name]";

[[noreturn]] void refuse(const std::string& fill, const std::string& why) {
  throw Error(Errc::invalid_argument, fmt::format("--fill {}: {}; write {}", fill, why, kForm));
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

template <class Value>
Value number(const std::string& fill, const std::string& text, Value least, Value most) {
  Value value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() ||
      !(least <= value && value <= most)) {
    refuse(fill, fmt::format("'{}' is no number from {} to {}", text, least, most));
  }
  return value;
}

verify::BlockForm form_of(const std::string& fill, const std::string& text) {
  using enum verify::BlockForm;
  const std::pair<const char*, verify::BlockForm> forms[] = {{"list", list},
                                                             {"plane_list", plane_list},
                                                             {"table", table},
                                                             {"bytes", bytes},
                                                             {"bits", bits}};
  for (const auto& [name, form] : forms) {
    if (text == name) return form;
  }
  refuse(fill, fmt::format("'{}' is no form of blocks", text));
}

// More data than this would take minutes to make, and is a mistake: it is refused before any is
// made.
void check_size(const std::string& fill, int batch, int heads, double bytes_of_plane) {
  constexpr double kMostBytes = 4.0 * (1 << 30);
  const double bytes = bytes_of_plane * batch * heads;
  if (bytes <= kMostBytes) return;
  throw Error(
      Errc::invalid_argument,
      fmt::format("--fill {}: {} planes of {:.3g} bytes are more than the {:.0f} bytes that "
                  "are made: take shorter sequences, larger blocks, fewer entries, heads=1 "
                  "or batch=1",
                  fill, std::int64_t{batch} * heads, bytes_of_plane, kMostBytes));
}

// An expression's tensor by what the fill says in front of its first comma.
verify::InputData tensor_of(const std::string& fill, const InputInfo& wanted,
                            const std::string& description, const verify::TensorExtents& extents,
                            std::uint64_t seed) {
  const std::vector<std::string> words = split(description, ':');
  const bool integers = wanted.kind == InputInfo::Kind::int_tensor;
  if (integers && words.size() == 2 && words[0] == "random") {
    return verify::random_int_tensor(wanted, extents, number(fill, words[1], 1, kMaxNumber), seed);
  }
  if (integers && words.size() == 2 && words[0] == "documents") {
    return verify::document_tensor(wanted, extents, number(fill, words[1], 1.0, 1e9), seed);
  }
  if (!integers && words.size() == 2 && words[0] == "normal") {
    return verify::random_float_tensor(wanted, extents, number(fill, words[1], 0.0, 1e9), seed);
  }
  refuse(fill, fmt::format("'{}' does not describe {}", description, wanted.description()));
}

// What girih calibrate wrote for this pattern's tiles and these heads.
verify::InputData thresholds_of_file(const std::string& path, const InputInfo& wanted,
                                     const Problem& problem, const FillOptions& options) {
  CalibratedThresholds file = load_thresholds(path);
  if (file.kv != wanted.kv_block_size) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{} holds thresholds for tiles of {} keys, but the pattern prunes tiles "
                    "of {}: calibrate for these, or write kv={}",
                    path, file.kv, wanted.kv_block_size, file.kv));
  }
  if (file.num_heads != problem.num_heads) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} holds thresholds of {} heads, but there are {}: give --heads {}",
                            path, file.num_heads, problem.num_heads, file.num_heads));
  }
  if (options.has_head_dim && file.head_dim != 0 && file.head_dim != problem.head_dim) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} was calibrated at head_dim {}, not {}: give --head-dim {}", path,
                            file.head_dim, problem.head_dim, file.head_dim));
  }
  const std::optional<float> softmax_scale = options.softmax_scale;
  if (softmax_scale && !serve_softmax_scale(file.on_device(nullptr), *softmax_scale)) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{} was calibrated with softmax_scale {}, not {}: give --softmax-scale {}",
                    path, *file.softmax_scale, *softmax_scale, *file.softmax_scale));
  }
  verify::InputData data{.kind = wanted.kind, .name = wanted.name};
  data.heads = file.num_heads;
  data.num_columns = file.num_columns;
  data.prune_kv = file.kv;
  data.thresholds = std::move(file.values);
  return data;
}

}  // namespace

void add_fill_options(CLI::App& verb, FillOptions& options) {
  verb.add_option("--fill", options.fills, std::string("Data of a run-time input: ") + kForm)
      ->type_name("NAME=...")
      ->allow_extra_args(false);
}

std::vector<verify::InputData> read_fills(const FillOptions& options, const Pattern& pattern,
                                          const Problem& problem, int batch, int seqlen_q,
                                          int seqlen_k) {
  std::vector<verify::InputData> inputs;
  std::vector<std::string> names;
  for (const std::string& fill : options.fills) {
    names.push_back(fill.substr(0, fill.find('=')));
    if (pattern::find_input(pattern.inputs(), names.back()) < 0) {
      refuse(fill, "the pattern has no such input");
    }
    if (std::count(names.begin(), names.end(), names.back()) > 1) {
      refuse(fill, "this input is given twice");
    }
  }
  for (const InputInfo& wanted : pattern.inputs()) {
    const auto found = std::find(names.begin(), names.end(), wanted.name);
    if (found == names.end() && wanted.decides_visibility()) {
      throw Error(Errc::invalid_argument,
                  fmt::format("the input '{}' is missing: the pattern wants {}; give --fill {}",
                              wanted.name, wanted.description(), kForm));
    }
    const std::string fill = found == names.end()
                                 ? wanted.name + "=normal:1"
                                 : options.fills[static_cast<std::size_t>(found - names.begin())];
    const std::vector<std::string> parts = split(fill.substr(fill.find('=') + 1), ',');
    if (fill.find('=') == fill.npos) refuse(fill, "it has no '='");

    int heads = problem.num_heads, sequences = batch, free_extent = 64;
    verify::BlockForm form = verify::BlockForm::list;
    for (std::size_t i = 1; i < parts.size(); ++i) {
      const std::string key = parts[i].substr(0, parts[i].find('='));
      const std::string value = parts[i].substr(std::min(key.size() + 1, parts[i].size()));
      if (key == "heads" && (value == "1" || value == "kv" || value == "q")) {
        heads = value == "1" ? 1 : value == "kv" ? problem.num_heads_kv : problem.num_heads;
      } else if (key == "batch" && (value == "1" || value == "all")) {
        sequences = value == "1" ? 1 : batch;
      } else if (key == "as" && wanted.kind == InputInfo::Kind::blocks) {
        form = form_of(fill, value);
      } else if (key == "extent" && wanted.is_tensor()) {
        free_extent = number(fill, value, 1, kMaxNumber);
      } else {
        refuse(fill, fmt::format("'{}' cannot be read", parts[i]));
      }
    }

    const std::uint64_t seed = options.seed + 1000 * inputs.size();
    const std::vector<std::string> words = split(parts[0], ':');
    if (wanted.is_tensor()) {
      const verify::TensorExtents extents{.batch = sequences,
                                          .num_heads = heads == 1 ? 1 : problem.num_heads,
                                          .num_heads_kv = heads == 1 ? 1 : problem.num_heads_kv,
                                          .seqlen_q = seqlen_q,
                                          .seqlen_k = seqlen_k,
                                          .free = free_extent};
      inputs.push_back(tensor_of(fill, wanted, parts[0], extents, seed));
      continue;
    }
    if (wanted.kind == InputInfo::Kind::number) {
      verify::InputData data{.kind = wanted.kind, .name = wanted.name};
      data.batch = sequences;
      data.heads = heads;
      data.numbers.assign(static_cast<std::size_t>(data.batch) * static_cast<std::size_t>(heads),
                          number(fill, parts[0], -kMaxNumber, kMaxNumber));
      inputs.push_back(std::move(data));
      continue;
    }
    if (wanted.kind == InputInfo::Kind::thresholds) {
      verify::InputData data{.kind = wanted.kind, .name = wanted.name};
      if (parts[0].starts_with('@')) {
        inputs.push_back(thresholds_of_file(parts[0].substr(1), wanted, problem, options));
        continue;
      }
      if (words.size() == 2 && words[0] == "skip") {
        data.skip = number(fill, words[1], 0.0, 1.0);
      } else if (words.size() != 1 || words[0] != "keep") {
        refuse(fill, fmt::format("'{}' does not describe thresholds", parts[0]));
      }
      data.heads = heads;
      data.num_columns = std::max(ceil_div(seqlen_k, 128), 1);
      data.prune_kv = wanted.kv_block_size;
      data.thresholds.assign(
          static_cast<std::size_t>(heads) * static_cast<std::size_t>(data.num_columns),
          -std::numeric_limits<float>::infinity());
      inputs.push_back(std::move(data));
      continue;
    }
    if (wanted.kind == InputInfo::Kind::head_values && parts[0] == "slopes") {
      inputs.push_back(verify::alibi_slopes(wanted.name, problem.num_heads));
      continue;
    }
    if (!wanted.decides_visibility()) {
      if (words.size() != 2 || words[0] != "normal") {
        refuse(fill, fmt::format("'{}' does not describe values", parts[0]));
      }
      const bool of_keys = wanted.kind == InputInfo::Kind::key_values;
      check_size(fill, sequences, heads, of_keys ? 4.0 * seqlen_k : 4.0);
      inputs.push_back(verify::random_values(wanted.name, sequences, heads, of_keys ? seqlen_k : 0,
                                             number(fill, words[1], 0.0, 1e9), seed));
      continue;
    }
    if (wanted.kind == InputInfo::Kind::columns) {
      if (words[0] != "rows" || words.size() < 2 || words.size() > 3) {
        refuse(fill, fmt::format("'{}' does not describe intervals of rows", parts[0]));
      }
      const int intervals = words.size() == 3 ? number(fill, words[2], 1, 2) : 1;
      check_size(fill, sequences, heads, 8.0 * intervals * seqlen_k);
      inputs.push_back(verify::random_columns(wanted.name, sequences, heads, seqlen_q, seqlen_k,
                                              intervals, number(fill, words[1], 1, kMaxNumber),
                                              seed));
      continue;
    }
    if (wanted.kind == InputInfo::Kind::indices) {
      check_size(fill, sequences, heads, 4.0 * (1.0 * seqlen_q + seqlen_k));
      if (words.size() == 2 && words[0] == "documents") {
        inputs.push_back(verify::random_documents(wanted.name, sequences, heads, seqlen_q, seqlen_k,
                                                  number(fill, words[1], 1.0, 1e9), seed));
      } else if (words.size() == 2 && words[0] == "random") {
        inputs.push_back(verify::random_indices(wanted.name, sequences, heads, seqlen_q, seqlen_k,
                                                number(fill, words[1], 1, kMaxNumber), seed));
      } else {
        refuse(fill, fmt::format("'{}' does not describe indices of tokens", parts[0]));
      }
      continue;
    }
    if (wanted.kind == InputInfo::Kind::slashes) {
      if (words.size() != 3 || words[0] != "random") {
        refuse(fill, fmt::format("'{}' does not describe columns and slashes", parts[0]));
      }
      const int columns = number(fill, words[1], 0, kMaxNumber);
      const int distances = number(fill, words[2], 0, kMaxNumber);
      check_size(fill, sequences, heads, 4.0 * (1.0 * columns + distances));
      inputs.push_back(verify::random_slashes(wanted.name, sequences, heads, seqlen_k, columns,
                                              distances, seed));
      continue;
    }
    if (words[0] != "random" || words.size() < 2 || words.size() > 3) {
      refuse(fill, fmt::format("'{}' does not describe blocks", parts[0]));
    }
    const double density = number(fill, words[1], 0.0, 1.0);
    const double skew = words.size() == 3 ? number(fill, words[2], 0.0, 100.0) : 0.0;
    const int rows = ceil_div(seqlen_q, wanted.q_block_size);
    const int columns = ceil_div(seqlen_k, wanted.kv_block_size);
    check_size(fill, sequences, heads, 1.0 * rows * columns);
    inputs.push_back(
        verify::random_blocks(wanted.name, sequences, heads, rows, columns, density, skew, seed));
    inputs.back().form = form;
  }
  return inputs;
}

}  // namespace girih::tools
