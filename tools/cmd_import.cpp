// girih import duo|minference FILE --layer N: a published per-head configuration as pattern text,
// with comments that say where its numbers come from.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <sstream>
#include <system_error>

#include "common.hpp"
#include "girih/shared/geometry.cuh"
#include "support/fs.hpp"
#include "support/json.hpp"

namespace girih::tools {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Errc::invalid_argument, message);
}

std::string contents(const std::string& file) {
  const auto text = support::read_file(file);
  if (!text) {
    refuse(fmt::format("cannot read '{}' ({}): it must exist and be readable", file,
                       std::generic_category().message(errno)));
  }
  return *text;
}

void check_layer(int layer, std::size_t num_layers, const std::string& file) {
  if (0 <= layer && static_cast<std::size_t>(layer) < num_layers) return;
  refuse(fmt::format("--layer {} is out of range: {} has layers 0 to {}", layer, file,
                     num_layers - 1));
}

// Sink and local tokens, the query's own included: "causal & (sink(128) | window(left=255))".
std::string streaming_text(int sink, int local) {
  if (local == 0) return fmt::format("causal & sink({})", sink);
  if (sink == 0) return fmt::format("causal & window(left={})", local - 1);
  return fmt::format("causal & (sink({}) | window(left={}))", sink, local - 1);
}

// Classes of heads by mask text, in the order of their first heads; one class is a plain mask.
std::string heads_text(const char* unit, const std::vector<std::string>& mask_of_head) {
  std::vector<std::pair<std::string, std::vector<int>>> classes;
  for (std::size_t head = 0; head < mask_of_head.size(); ++head) {
    auto found = std::find_if(classes.begin(), classes.end(), [&](const auto& head_class) {
      return head_class.first == mask_of_head[head];
    });
    if (found == classes.end()) found = classes.insert(found, {mask_of_head[head], {}});
    found->second.push_back(static_cast<int>(head));
  }
  if (classes.size() == 1) return classes[0].first;
  std::string text = fmt::format("{}(", unit);
  for (std::size_t i = 0; i < classes.size(); ++i) {
    const bool last = i + 1 == classes.size();
    text += fmt::format("{}: {}{}", last ? "else" : ranges_text(classes[i].second),
                        classes[i].first, last ? ")" : ", ");
  }
  return text;
}

// --- DuoAttention

using Gates = std::vector<std::vector<double>>;  // [layer][KV head]

Gates read_gates(const std::string& file) {
  Gates gates;
  std::istringstream lines(contents(file));
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::vector<double> row;
    const char* at = line.data();
    const char* const end = at + line.size();
    const auto skip_blanks = [&] {
      while (at != end && (*at == ' ' || *at == '\t' || *at == '\r')) ++at;
    };
    for (skip_blanks(); at != end; skip_blanks()) {
      double gate = 0;
      const auto [next, error] = std::from_chars(at, end, gate);
      if (error != std::errc() || !std::isfinite(gate)) {
        refuse(
            fmt::format("line {} of {}: column {} is no number: a line is a layer, a column a "
                        "KV head, separated by tabs",
                        number, file, row.size() + 1));
      }
      row.push_back(gate);
      at = next;
    }
    if (row.empty()) continue;
    if (!gates.empty() && row.size() != gates[0].size()) {
      refuse(
          fmt::format("line {} of {} has {} columns and the first line {}: every layer has the "
                      "same number of KV heads",
                      number, file, row.size(), gates[0].size()));
    }
    gates.push_back(std::move(row));
  }
  if (gates.empty()) refuse(fmt::format("{} holds no gates", file));
  return gates;
}

// The least gate of a full head when a share `sparsity` of all heads, of all layers, streams.
double threshold_at(const Gates& gates, double sparsity) {
  std::vector<double> all;
  for (const auto& row : gates) all.insert(all.end(), row.begin(), row.end());
  std::sort(all.begin(), all.end());
  if (sparsity >= 1) return kInfinity;
  const double rank = sparsity * static_cast<double>(all.size() - 1);
  return all[static_cast<std::size_t>(std::ceil(rank))];
}

void add_duo(CLI::App& app, Context& context) {
  struct Options {
    std::string file;
    int layer = 0, sink = 128, recent = 256;
    std::optional<double> sparsity, threshold;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* verb = add_verb(app, context, "duo",
                            "DuoAttention's gates (TSV, a line a layer, a column a KV head)");
  verb->add_option("FILE", options->file, "full_attention_heads.tsv")->required();
  verb->add_option("--layer", options->layer, "Counted from 0")->required();
  verb->add_option("--sparsity", options->sparsity,
                   "Share of the heads of all layers that streams, 0 to 1");
  verb->add_option("--threshold", options->threshold, "The least gate of a full head");
  verb->add_option("--sink", options->sink, "First tokens that streaming heads see")
      ->capture_default_str();
  verb->add_option("--recent", options->recent,
                   "Last tokens that they see, the query's own included")
      ->capture_default_str();

  verb->callback([options, &context] {
    if (options->sparsity.has_value() == options->threshold.has_value()) {
      refuse("what makes a head full? Give either --sparsity S, e.g. 0.5, or --threshold X");
    }
    if (options->sparsity && !(0 <= *options->sparsity && *options->sparsity <= 1)) {
      refuse(fmt::format("--sparsity {} is out of range: give 0 to 1", *options->sparsity));
    }
    if (options->threshold && std::isnan(*options->threshold)) {
      refuse("--threshold nan is above no gate and below none: give a number");
    }
    check_range("--sink", options->sink, 0, kMaxNumber);
    check_range("--recent", options->recent, 0, kMaxNumber);
    if (options->sink == 0 && options->recent == 0) {
      refuse("--sink 0 --recent 0 leaves streaming heads nothing to see");
    }
    const Gates gates = read_gates(options->file);
    check_layer(options->layer, gates.size(), options->file);

    const double threshold =
        options->sparsity ? threshold_at(gates, *options->sparsity) : *options->threshold;
    std::size_t full = 0, full_in_layer = 0;
    for (const auto& row : gates) {
      for (const double gate : row) full += gate >= threshold;
    }
    std::vector<std::string> mask_of_head;
    for (const double gate : gates[static_cast<std::size_t>(options->layer)]) {
      full_in_layer += gate >= threshold;
      mask_of_head.push_back(gate >= threshold ? "causal"
                                               : streaming_text(options->sink, options->recent));
    }
    const std::size_t all = gates.size() * gates[0].size();
    const Pattern pattern = Pattern::parse(heads_text("kv_heads", mask_of_head));
    if (context.json) {
      return print_json({{"pattern", pattern.text()},
                         {"layer", options->layer},
                         {"num_layers", gates.size()},
                         {"num_heads_kv", gates[0].size()},
                         {"threshold", std::isfinite(threshold) ? Json(threshold) : Json()},
                         {"full_heads", full_in_layer},
                         {"full_heads_of_all_layers", full},
                         {"heads_of_all_layers", all}});
    }
    print(
        fmt::format("# DuoAttention, layer {} of {}, {} KV heads: full where the gate is at "
                    "least {:.6g}\n"
                    "# ({} of {} heads of all layers, {} of {} in this one), else streaming\n{}\n",
                    options->layer, gates.size(), gates[0].size(), threshold, full, all,
                    full_in_layer, gates[0].size(), pattern.text()));
  });
}

// --- MInference

struct HeadConfig {
  std::string kind;
  int vertical = 0, slash = 0;
  double score = 0;
};

std::vector<HeadConfig> read_layer(const Json& layer) {
  if (!layer.is_object()) refuse("the layer must be an object whose members are heads");
  std::map<int, HeadConfig> by_head;  // a JSON object has no order
  for (const auto& [name, value] : layer.items()) {
    int head = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), head);
    if (error != std::errc() || end != name.data() + name.size()) {
      refuse(fmt::format("'{}' is no head number", name));
    }
    const auto member = [&name](const char* what) {
      return fmt::format("head {}'s {}", name, what);
    };
    if (!value.is_array() || value.size() != 4 || !value[3].is_number()) {
      refuse(
          fmt::format("head {} must be [kind, vertical, slash, score], its score a number", name));
    }
    if (by_head.contains(head)) refuse(fmt::format("head {} is there twice", head));
    by_head[head] = {string_of(member("kind"), value[0]),
                     integer_of(member("vertical size"), value[1], 0, kMaxNumber),
                     integer_of(member("slash size"), value[2], 0, kMaxNumber),
                     value[3].get<double>()};
  }
  std::vector<HeadConfig> heads;
  for (const auto& [head, config] : by_head) {
    if (head != static_cast<int>(heads.size())) {
      refuse(fmt::format("head {} is missing: heads are 0 to {}", heads.size(),
                         by_head.rbegin()->first));
    }
    heads.push_back(config);
  }
  return heads;
}

// What a head sees, as text; lists of run-time data are named by their kind.
std::string mask_text(const HeadConfig& head) {
  if (head.kind == "vertical_and_slash") return "vertical_slash(vs)";
  if (head.kind == "block_sparse") return "causal & blocks(top, q=64, kv=64)";
  if (head.kind == "stream_llm") {
    if (head.vertical == 0 && head.slash == 0) refuse("stream_llm 0, 0 sees nothing");
    return streaming_text(head.vertical, head.slash);
  }
  refuse(fmt::format("kind '{}' is not known: vertical_and_slash, block_sparse and stream_llm are",
                     head.kind));
}

void add_minference(CLI::App& app, Context& context) {
  struct Options {
    std::string file;
    int layer = 0;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* verb = add_verb(app, context, "minference",
                            "MInference's best patterns (JSON, a list of layers by query head)");
  verb->add_option("FILE", options->file, "*_best_pattern.json")->required();
  verb->add_option("--layer", options->layer, "Counted from 0")->required();

  verb->callback([options, &context] {
    const std::string text = contents(options->file);
    std::vector<HeadConfig> heads;
    std::vector<std::string> mask_of_head;
    std::size_t num_layers = 0;
    try {
      const Json layers = Json::parse(text);
      num_layers = layers.size();
      if (!layers.is_array() || layers.empty()) refuse("it is no list of layers");
      check_layer(options->layer, num_layers, "the file");
      heads = read_layer(layers[static_cast<std::size_t>(options->layer)]);
      if (heads.empty()) refuse("the layer has no heads");
      for (const HeadConfig& head : heads) mask_of_head.push_back(mask_text(head));
    } catch (const Json::exception& error) {
      refuse(
          fmt::format("{} is not MInference's format ([{{\"0\": [kind, vertical, slash, score], "
                      "…}}, …]): {}",
                      options->file, support::message_of(error)));
    } catch (const Error& error) {
      refuse(fmt::format("{}: {}", options->file, error.what()));
    }
    const std::string pattern = Pattern::parse(heads_text("heads", mask_of_head)).text();
    if (context.json) {
      Json json{{"pattern", pattern},
                {"layer", options->layer},
                {"num_layers", num_layers},
                {"num_heads", heads.size()},
                {"heads", Json::array()}};
      for (const HeadConfig& head : heads) {
        json["heads"].push_back({{"kind", head.kind},
                                 {"vertical_size", head.vertical},
                                 {"slash_size", head.slash},
                                 {"score", head.score}});
      }
      return print_json(json);
    }
    std::map<std::tuple<std::string, int, int>, std::vector<int>> by_size;
    for (std::size_t i = 0; i < heads.size(); ++i) {
      by_size[{heads[i].kind, heads[i].vertical, heads[i].slash}].push_back(static_cast<int>(i));
    }
    std::string comments = fmt::format("# MInference, layer {} of {}, {} query heads\n",
                                       options->layer, num_layers, heads.size());
    for (const auto& [key, numbers] : by_size) {
      const auto& [kind, vertical, slash] = key;
      comments +=
          fmt::format("#   {} {} {}: heads {}\n", kind, vertical, slash, ranges_text(numbers));
    }
    if (pattern.find("(vs)") != std::string::npos) {
      comments += "# vs holds, for each head, as many columns and diagonals as its two sizes say\n";
    }
    print(comments + pattern + "\n");
  });
}

}  // namespace

void add_import(CLI::App& app, Context& context) {
  CLI::App* import =
      app.add_subcommand("import", "Turn a published configuration of a layer into a pattern");
  import->require_subcommand(1);
  add_duo(*import, context);
  add_minference(*import, context);
}

}  // namespace girih::tools
