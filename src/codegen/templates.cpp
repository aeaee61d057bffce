// Which templates a source reaches, and their digests. Digests and includes of the embedded
// templates are computed once a process, so that a cache hit costs microseconds.
#include "codegen/templates.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <system_error>

#include "girih/error.hpp"
#include "support/fs.hpp"
#include "support/hash.hpp"

namespace girih::codegen {
namespace {

struct Template {
  TemplateFile file;
  std::vector<std::string> includes;
};

std::string_view without_leading_blanks(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(" \t"), text.size()));
}

/// Whether the end of `line` lies inside a /* comment */, given whether its start does.
bool ends_in_comment(std::string_view line, bool inside) {
  while (true) {
    if (inside) {
      const std::size_t end = line.find("*/");
      if (end == line.npos) return true;
      line.remove_prefix(end + 2);
      inside = false;
    } else {
      const std::size_t start = line.find("/*");
      if (start == line.npos || line.find("//") < start) return false;
      line.remove_prefix(start + 2);
      inside = true;
    }
  }
}

/// X of a line `#include "X"` or `#include <X>` where X is below girih/; empty otherwise.
std::string_view included_name(std::string_view line) {
  line = without_leading_blanks(line);
  if (!line.starts_with('#')) return {};
  line = without_leading_blanks(line.substr(1));
  constexpr std::string_view kInclude = "include";
  if (!line.starts_with(kInclude)) return {};
  line = without_leading_blanks(line.substr(kInclude.size()));
  if (!line.starts_with('"') && !line.starts_with('<')) return {};
  const std::size_t end = line.find(line.front() == '"' ? '"' : '>', 1);
  if (end == line.npos) return {};
  const std::string_view name = line.substr(1, end - 1);
  return name.starts_with("girih/") ? name : std::string_view{};
}

std::vector<std::string> includes_of(std::string_view text) {
  std::vector<std::string> names;
  bool in_comment = false;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    if (!in_comment)
      if (const std::string_view name = included_name(line); !name.empty())
        names.emplace_back(name);
    in_comment = ends_in_comment(line, in_comment);
  }
  return names;
}

Template make_template(std::string name, std::string text) {
  std::vector<std::string> includes = includes_of(text);
  std::string digest = support::digest(text);
  return {{std::move(name), std::move(text), std::move(digest)}, std::move(includes)};
}

/// The embedded template of that name, or null.
const Template* find_embedded(const std::string& name) {
  static const auto kTemplates = [] {
    std::map<std::string, Template> templates;
    for (const EmbeddedTemplate& t : embedded_templates())
      templates.emplace(t.name, make_template(std::string(t.name), std::string(t.text)));
    return templates;
  }();
  const auto found = kTemplates.find(name);
  return found == kTemplates.end() ? nullptr : &found->second;
}

}  // namespace

std::vector<TemplateFile> reachable_templates(
    std::string_view source, const std::optional<std::filesystem::path>& template_dir) {
  std::error_code ignored;
  if (template_dir && !std::filesystem::is_directory(*template_dir / "girih", ignored))
    throw Error(Errc::invalid_argument,
                fmt::format("the template folder {} has no folder `girih` in it; name the folder "
                            "`templates` of Girih's source tree",
                            template_dir->string()));

  struct Wanted {
    std::string name;
    std::string includer;
  };
  std::vector<Wanted> wanted;
  const auto want = [&](const std::vector<std::string>& names, const std::string& includer) {
    for (const std::string& name : names) wanted.push_back({name, includer});
  };
  want(includes_of(source), "the emitted source");

  std::map<std::string, TemplateFile> reached;
  while (!wanted.empty()) {
    const auto [name, includer] = std::move(wanted.back());
    wanted.pop_back();
    if (reached.contains(name)) continue;

    std::optional<std::string> text;
    if (template_dir) text = support::read_file(*template_dir / name);
    if (text) {
      Template overriding = make_template(name, *std::move(text));
      want(overriding.includes, name);
      reached.emplace(name, std::move(overriding.file));
    } else if (const Template* embedded = find_embedded(name)) {
      want(embedded->includes, name);
      reached.emplace(name, embedded->file);
    } else {
      throw Error(Errc::internal,
                  fmt::format("there is no template \"{}\", which {} includes", name, includer));
    }
  }

  std::vector<TemplateFile> files;
  for (auto& [name, file] : reached) files.push_back(std::move(file));
  return files;
}

}  // namespace girih::codegen
