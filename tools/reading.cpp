#include "reading.hpp"

#include "pattern/interpret.hpp"

namespace girih::tools {

Geometry geometry_of(int seqlen_q, int seqlen_k) {
  return {.seqlen_q = seqlen_q, .seqlen_k = seqlen_k, .q_start = seqlen_k - seqlen_q};
}

Geometry geometry_of(const verify::Case& c) {
  const int q_start = c.q_start.value_or(c.k_start + c.seqlen_k - c.seqlen_q);
  return {c.seqlen_q, c.seqlen_k, q_start, c.k_start};
}

std::vector<std::vector<int>> heads_of_classes(const Pattern& pattern, const Problem& problem) {
  std::vector<std::vector<int>> heads(pattern.classes().size());
  int head = 0;
  for (const int head_class : pattern.class_of_head(problem.num_heads, problem.num_heads_kv)) {
    heads[static_cast<std::size_t>(head_class)].push_back(head++);
  }
  return heads;
}

verify::MaskRow reading_of(const Pattern& pattern, const verify::Case& c) {
  return [classes = pattern.classes(),
          class_of_head = pattern.class_of_head(c.problem.num_heads, c.problem.num_heads_kv),
          geometry = geometry_of(c)](verify::Row row, std::span<std::uint32_t> words) {
    const auto head_class =
        static_cast<std::size_t>(class_of_head[static_cast<std::size_t>(row.h)]);
    for (const Span span : pattern::row_spans(classes[head_class].mask, geometry, row.q)) {
      for (int key = span.lo; key < span.hi; ++key) {
        words[static_cast<std::size_t>(key / 32)] |= 1u << (key % 32);
      }
    }
  };
}

double visible_flop(const Pattern& pattern, const verify::Case& c) {
  const auto heads = heads_of_classes(pattern, c.problem);
  double elements = 0;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    if (heads[i].empty()) continue;
    elements +=
        static_cast<double>(heads[i].size()) *
        static_cast<double>(pattern::count_visible(pattern.classes()[i].mask, geometry_of(c)));
  }
  return 2.0 * c.batch * elements * (c.problem.head_dim + c.problem.width_v());
}

}  // namespace girih::tools
