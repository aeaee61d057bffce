#include "reading.hpp"

#include <algorithm>

#include "pattern/interpret.hpp"

namespace girih::tools {
namespace {

std::vector<int> class_of_head(const Pattern& pattern, const Problem& problem) {
  return pattern.class_of_head(problem.num_heads, problem.num_heads_kv, problem.head_offset,
                               problem.num_heads_total);
}

// From the geometry of the problem's first head.
Geometry in_head(Geometry geometry, int h) {
  geometry.head += h;
  geometry.head_kv += h / geometry.group_size;
  return geometry;
}

}  // namespace

Geometry geometry_of(int seqlen_q, int seqlen_k, const Problem& problem) {
  return {.seqlen_q = seqlen_q,
          .seqlen_k = seqlen_k,
          .q_start = seqlen_k - seqlen_q,
          .head = problem.head_offset,
          .head_kv = problem.head_offset / problem.group_size(),
          .group_size = problem.group_size(),
          .num_heads = problem.heads_total()};
}

Geometry geometry_of(const verify::Case& c) {
  Geometry geometry = geometry_of(c.seqlen_q, c.seqlen_k, c.problem);
  geometry.q_start = c.q_start.value_or(c.k_start + c.seqlen_k - c.seqlen_q);
  geometry.k_start = c.k_start;
  return geometry;
}

std::vector<HeadGroup> head_groups(const Pattern& pattern, const Problem& problem,
                                   const Geometry& geometry) {
  const std::vector<int> classes = class_of_head(pattern, problem);
  std::vector<HeadGroup> groups;
  for (std::size_t c = 0; c < pattern.classes().size(); ++c) {
    const Mask& mask = pattern.classes()[c].mask;
    const std::size_t first_group = groups.size();
    for (int h = 0; h < problem.num_heads; ++h) {
      if (classes[static_cast<std::size_t>(h)] != static_cast<int>(c)) continue;
      const Geometry own = in_head(geometry, h);
      const auto alike = [&](const HeadGroup& group) {
        return pattern::same_for_heads(mask, group.geometry, own);
      };
      const auto group = std::find_if(groups.begin() + static_cast<std::ptrdiff_t>(first_group),
                                      groups.end(), alike);
      if (group != groups.end()) {
        group->heads.push_back(own.head);
      } else {
        groups.push_back({mask, {own.head}, own});
      }
    }
    if (groups.size() == first_group) groups.push_back({mask, {}, geometry});
  }
  return groups;
}

verify::MaskRow reading_of(const Pattern& pattern, const verify::Case& c) {
  return [classes = pattern.classes(), classes_of_heads = class_of_head(pattern, c.problem),
          first = geometry_of(c)](verify::Row row, std::span<std::uint32_t> words) {
    const auto head_class =
        static_cast<std::size_t>(classes_of_heads[static_cast<std::size_t>(row.h)]);
    const Geometry geometry = in_head(first, row.h);
    for (const Span span : pattern::row_spans(classes[head_class].mask, geometry, row.q)) {
      for (int key = span.lo; key < span.hi; ++key) {
        words[static_cast<std::size_t>(key / 32)] |= 1u << (key % 32);
      }
    }
  };
}

double visible_flop(const Pattern& pattern, const verify::Case& c) {
  double elements = 0;
  for (const HeadGroup& group : head_groups(pattern, c.problem, geometry_of(c))) {
    if (group.heads.empty()) continue;
    elements += static_cast<double>(group.heads.size()) *
                static_cast<double>(pattern::count_visible(group.mask, group.geometry));
  }
  return 2.0 * c.batch * elements * (c.problem.head_dim + c.problem.width_v());
}

}  // namespace girih::tools
