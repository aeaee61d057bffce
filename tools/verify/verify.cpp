#include "verify/verify.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <unordered_set>

#include "girih/error.hpp"
#include "pattern/expression.hpp"
#include "verify/parallel.hpp"

namespace girih::verify {
namespace {

// Rows of one key and the like come out exact from the naive computation too; then the float32
// sums, approximate exponentials and the reciprocal (some 2^-22 each, of values of order one) must
// still fit.
constexpr double kErrorFloor = 1e-6;

// Times the naive error. A right kernel's errors are distributed like the naive ones, for both
// round probabilities and results. Of a whole output the largest two are seldom far apart; of a
// group of some 64 rows one is more than twice the other in 0.3 % of groups.
constexpr double kAllowedOfAll = 2;
constexpr double kAllowedOfGroup = 3;

// Products of 8- and 11-bit significands are exact in float32. What lse suffers is the rounding of
// their sums (128 terms, 2^-24 each of a partial sum), of the exponentials (2^-22) and of the sum
// of those: some 1e-5, and a little more where scores are large. Longer rows than 10^4 keys, where
// a lost key hides in this, are what the exact mask test is for.
double allowed_lse_error(double lse) { return 1e-4 + 1e-5 * std::fabs(lse); }

bool is_finite(DType dtype, std::uint16_t bits) {
  const int exponent_mask = dtype == DType::bfloat16 ? 0x7f80 : 0x7c00;
  return (bits & exponent_mask) != exponent_mask;
}

// Multiplications of a row's scores or of its output, whichever are more.
double products_per_row(const Workload& workload) {
  const Problem& problem = workload.parameters.problem;
  return static_cast<double>(workload.longest_k()) * std::max(problem.head_dim, problem.width_v());
}

bool chosen_cpu(const Workload& workload, std::size_t num_rows) {
  if (workload.parameters.changes.any()) return true;
  const Case::Reference reference = workload.parameters.reference;
  if (reference != Case::Reference::automatic) return reference == Case::Reference::cpu;
  return static_cast<double>(num_rows) * products_per_row(workload) <= 0x1p27;
}

std::int64_t row_budget(const Workload& workload) {
  if (workload.parameters.max_rows > 0) return workload.parameters.max_rows;
  const std::int64_t rows = workload.num_rows();
  if (workload.parameters.changes.any()) {  // only the CPU knows them: some seconds
    const double most = 0x1p33 / std::max(products_per_row(workload), 1.0);
    return std::clamp<std::int64_t>(static_cast<std::int64_t>(most), 256, 4096);
  }
  // 2^38 products take the naive kernel less than a second.
  return static_cast<double>(rows) * products_per_row(workload) <= 0x1p38 ? rows : 4096;
}

std::vector<RowCheck> check_rows(const Workload& workload, std::span<const Row> rows,
                                 const MaskRow& mask_row, bool on_cpu, GpuReference& on_gpu) {
  const Case& c = workload.parameters;
  const auto words = static_cast<std::size_t>(mask_words(workload.longest_k()));
  const auto width = static_cast<std::size_t>(c.problem.width_v());

  // Masks and references of a part at a time: at most 128 MB and 200 MB.
  const std::size_t part_size =
      std::clamp<std::size_t>((std::size_t{1} << 25) / std::max<std::size_t>(words, 1), 1, 65536);
  std::vector<RowCheck> checks(rows.size());
  for (std::size_t begin = 0; begin < rows.size(); begin += part_size) {
    const std::span<const Row> part = rows.subspan(begin, std::min(part_size, rows.size() - begin));
    std::vector<std::uint32_t> masks(part.size() * words, 0);
    std::vector<std::int64_t> num_visible(part.size(), 0);
    parallel_for(static_cast<std::int64_t>(part.size()), [&](std::int64_t index) {
      const auto i = static_cast<std::size_t>(index);
      const std::span<std::uint32_t> mask = std::span(masks).subspan(i * words, words);
      mask_row(part[i], mask);
      for (const std::uint32_t word : mask) num_visible[i] += std::popcount(word);
    });
    ReferenceRows reference = on_cpu ? reference_on_cpu(workload.host_inputs(), part, masks)
                                     : on_gpu(workload.device_inputs(), part, masks);
    for (std::size_t i = 0; i < part.size(); ++i) {
      const Row row = part[i];
      if (std::isinf(reference.lse[i])) reference.lse[i] = static_cast<double>(c.empty_lse);
      const float lse = c.with_lse ? workload.lse_at(row) : 0.0f;
      checks[begin + i] = check_row(c.problem.dtype, row, num_visible[i], reference, i,
                                    {workload.out_row(row), width}, c.with_lse ? &lse : nullptr);
    }
  }
  return checks;
}

// Every element of the outputs, in rows that nobody compares as well.
std::int64_t count_not_finite(const Workload& workload) {
  const Case& c = workload.parameters;
  std::int64_t count = 0;
  for (int b = 0; b < c.batch; ++b) {
    for (int q = 0; q < workload.sequences[static_cast<std::size_t>(b)].seqlen_q; ++q) {
      for (int h = 0; h < c.problem.num_heads; ++h) {
        const std::uint16_t* out = workload.out_row({b, h, q});
        for (int j = 0; j < c.problem.width_v(); ++j) {
          count += !is_finite(c.problem.dtype, out[j]);
        }
        if (!c.with_lse) continue;
        const float lse = workload.lse_at({b, h, q});
        count += std::isnan(lse) || lse == -c.empty_lse;
      }
    }
  }
  return count;
}

std::vector<double> time_kernel(const jit::Kernel& kernel, const jit::Args& args,
                                jit::Workspace workspace) {
  const auto launch = [&] { kernel.launch(args, workspace); };
  std::vector<double> times = time_launches({}, launch);
  if (median(times) >= 1.0) return times;
  return time_launches({.repeats = 30, .flush_l2 = true}, launch);
}

}  // namespace

RowCheck check_row(DType dtype, Row row, std::int64_t num_visible, const ReferenceRows& reference,
                   std::size_t index, std::span<const std::uint16_t> out, const float* lse) {
  RowCheck check;
  check.row = row;
  check.num_visible = num_visible;
  for (std::size_t j = 0; j < out.size(); ++j) {
    const double got = static_cast<double>(widen(dtype, out[j]));
    const double expected = reference.out[index * out.size() + j];
    if (!std::isfinite(got) && check.broken.empty()) {
      check.broken = fmt::format("out[{}] is not finite", j);
      check.got = got;
      check.expected = expected;
    }
    if (!check.broken.empty()) continue;
    if (num_visible == 0 && got != 0) {
      check.broken = fmt::format("out[{}] of a row that sees nothing", j);
    }
    const double error = std::fabs(got - expected);
    if (error >= check.error) {
      check.error = error;
      check.got = got;
      check.expected = expected;
    }
    const double naive = static_cast<double>(reference.naive_lowp[index * out.size() + j]);
    check.naive_error = std::max(check.naive_error, std::fabs(naive - expected));
  }
  if (lse != nullptr) {
    check.got_lse = static_cast<double>(*lse);
    check.expected_lse = reference.lse[index];
    if (std::isinf(check.expected_lse)) {
      check.lse_error = check.got_lse == check.expected_lse ? 0 : HUGE_VAL;
    } else {
      const double error = std::fabs(check.got_lse - check.expected_lse);
      check.lse_error = std::isnan(error) ? HUGE_VAL : error;
    }
  }
  return check;
}

void judge(std::span<const RowCheck> rows, Report& report) {
  std::vector<std::size_t> order(rows.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return rows[a].num_visible > rows[b].num_visible;
  });

  std::vector<double> allowed(rows.size(), 0);  // stays zero for rows that see nothing
  double closest = -1;
  // Limits the rows order[begin] to order[end - 1], and returns by how much.
  const auto limit_rows = [&](std::size_t begin, std::size_t end, double factor) {
    double error = 0, naive_error = 0;
    for (std::size_t i = begin; i < end; ++i) {
      error = std::max(error, rows[order[i]].error);
      naive_error = std::max(naive_error, rows[order[i]].naive_error);
    }
    const double limit = factor * naive_error + kErrorFloor;
    for (std::size_t i = begin; i < end; ++i) {
      double& of_row = allowed[order[i]];
      of_row = of_row == 0 ? limit : std::min(of_row, limit);
    }
    const bool closer = error / limit > closest;
    if (closer) {
      closest = error / limit;
      report.error = error;
      report.allowed_error = limit;
    }
    return closer;
  };
  const auto visible = [&](std::size_t i) { return rows[order[i]].num_visible; };

  std::size_t num_seeing = 0;
  while (num_seeing < order.size() && visible(num_seeing) > 0) ++num_seeing;
  if (num_seeing > 0 && limit_rows(0, num_seeing, kAllowedOfAll)) report.closest = "all rows";

  // Groups, longest rows first: within a factor of two, and large enough that the naive errors'
  // maximum is not a matter of luck alone.
  constexpr std::size_t kLeastRows = 64;
  const auto magnitude = [&](std::size_t i) {
    return std::bit_width(static_cast<std::uint64_t>(visible(i)));
  };
  for (std::size_t begin = 0; begin < num_seeing;) {
    std::size_t end = begin + 1;
    while (end < num_seeing && (magnitude(end) == magnitude(begin) || end - begin < kLeastRows)) {
      ++end;
    }
    if (limit_rows(begin, end, kAllowedOfGroup)) {
      report.closest = fmt::format("rows of {} to {} keys", visible(end - 1), visible(begin));
    }
    begin = end;
  }

  constexpr std::size_t kShownFailures = 10;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const RowCheck& check = rows[i];
    const auto fail = [&](std::string what, double got, double expected) {
      if (report.failures.size() < kShownFailures) {
        report.failures.push_back({check.row, std::move(what), got, expected});
      }
    };
    const bool out_wrong = !check.broken.empty() || !(check.error <= allowed[i]);
    const bool lse_wrong =
        !(check.lse_error <=
          (std::isinf(check.expected_lse) ? 0.0 : allowed_lse_error(check.expected_lse)));
    if (out_wrong) {
      fail(check.broken.empty() ? fmt::format("out is off by more than {:.3g}", allowed[i])
                                : check.broken,
           check.got, check.expected);
    }
    if (lse_wrong) fail("lse", check.got_lse, check.expected_lse);
    report.rows_wrong += out_wrong || lse_wrong;
    report.lse_error = std::max(report.lse_error, check.lse_error);
  }
  report.rows_checked += static_cast<std::int64_t>(rows.size());
}

std::vector<Row> select_rows(std::span<const int> seqlens_q, std::span<const int> class_of_head,
                             std::int64_t max_rows, std::uint64_t seed) {
  const int num_heads = static_cast<int>(class_of_head.size());
  std::vector<std::int64_t> ends;  // of the sequences, were their rows behind one another
  for (const int seqlen_q : seqlens_q) ends.push_back(seqlen_q + (ends.empty() ? 0 : ends.back()));
  const std::int64_t rows_of_head = ends.empty() ? 0 : ends.back();
  std::vector<Row> rows;
  if (rows_of_head * num_heads <= max_rows) {
    for (std::size_t b = 0; b < seqlens_q.size(); ++b) {
      for (int h = 0; h < num_heads; ++h) {
        for (int q = 0; q < seqlens_q[b]; ++q) rows.push_back({static_cast<int>(b), h, q});
      }
    }
    return rows;
  }

  std::mt19937_64 random(seed);
  const auto below = [&](std::int64_t bound) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(bound));
  };
  std::vector<std::vector<int>> heads_of_class;
  for (int h = 0; h < num_heads; ++h) {
    const auto head_class = static_cast<std::size_t>(class_of_head[static_cast<std::size_t>(h)]);
    heads_of_class.resize(std::max(heads_of_class.size(), head_class + 1));
    heads_of_class[head_class].push_back(h);
  }
  std::vector<std::pair<int, int>> longest_first;  // length, sequence
  for (std::size_t b = 0; b < seqlens_q.size(); ++b) {
    longest_first.emplace_back(seqlens_q[b], static_cast<int>(b));
  }
  std::sort(longest_first.begin(), longest_first.end(), std::greater<>());
  const int longest = longest_first[0].first;

  std::unordered_set<std::int64_t> taken;
  const auto take = [&](Row row) {
    const std::int64_t end = ends[static_cast<std::size_t>(row.b)];
    if (taken.insert((end - 1 - row.q) * num_heads + row.h).second) rows.push_back(row);
  };
  const auto take_in = [&](const std::vector<int>& heads, int q) {  // of a sequence that has it
    if (heads.empty()) return;
    const auto too_short = std::partition_point(longest_first.begin(), longest_first.end(),
                                                [q](const auto& entry) { return entry.first > q; });
    const std::int64_t sequence = below(too_short - longest_first.begin());
    const std::int64_t head = below(static_cast<std::int64_t>(heads.size()));
    take({longest_first[static_cast<std::size_t>(sequence)].second,
          heads[static_cast<std::size_t>(head)], q});
  };

  for (const std::vector<int>& heads : heads_of_class) {
    take_in(heads, 0);
    take_in(heads, longest - 1);
  }
  std::vector<int> edges;  // beside the first rows of tiles
  for (int edge = 64; edge < longest; edge += 64) {
    for (int q = edge - 1; q <= std::min(edge + 1, longest - 1); ++q) edges.push_back(q);
  }
  std::shuffle(edges.begin(), edges.end(), random);
  for (std::size_t i = 0; i < edges.size(); ++i) {
    for (const std::vector<int>& heads : heads_of_class) {
      if (static_cast<std::int64_t>(rows.size()) < max_rows / 2) take_in(heads, edges[i]);
    }
  }
  while (static_cast<std::int64_t>(rows.size()) < max_rows) {
    const std::int64_t row = below(rows_of_head);
    const auto end = std::upper_bound(ends.begin(), ends.end(), row);
    take({static_cast<int>(end - ends.begin()), static_cast<int>(below(num_heads)),
          static_cast<int>(row - (end == ends.begin() ? 0 : end[-1]))});
  }
  return rows;
}

std::vector<float> softcaps_of(const Pattern& pattern, std::span<const int> class_of_head) {
  std::vector<float> softcaps;
  for (const int head_class : class_of_head) {
    const auto index = static_cast<std::size_t>(head_class);
    softcaps.push_back(pattern.classes()[index].modifiers.softcap);
  }
  return softcaps;
}

namespace {

// score("...") by its tree, in float64.
class ScoreReading {
 public:
  ScoreReading(const std::string& text, const Case& c)
      : expression_(pattern::parse_expression(text, pattern::ExpressionUse::score)),
        problem_(c.problem),
        sequences_(sequences_of(c)) {
    for (const pattern::Expression::Tensor& tensor : expression_.tensors()) {
      const auto found = std::find_if(c.inputs.begin(), c.inputs.end(), [&](const InputData& data) {
        return data.name == tensor.name;
      });
      if (found != c.inputs.end()) tensors_.push_back(*found);
    }
  }

  double at(double score, Row row, int key) const {
    const Sequence& s = sequences_[static_cast<std::size_t>(row.b)];
    const int head = problem_.head_offset + row.h;
    return expression_.evaluate({.b = row.b,
                                 .h = head,
                                 .g = head / problem_.group_size(),
                                 .q = row.q,
                                 .k = key,
                                 .p = row.q + s.q_start - s.k_start,
                                 .Sq = s.seqlen_q,
                                 .Sk = s.seqlen_k,
                                 .s = score,
                                 .local_h = row.h,
                                 .local_g = row.h / problem_.group_size()},
                                [&](int tensor, std::span<const int> indices) {
                                  return element(tensors_.at(static_cast<std::size_t>(tensor)),
                                                 indices);
                                });
  }

 private:
  static double element(const InputData& tensor, std::span<const int> indices) {
    std::size_t at = 0;
    for (std::size_t i = 0; i < indices.size(); ++i) {
      at = at * static_cast<std::size_t>(tensor.shape[i]) +
           static_cast<std::size_t>(std::clamp(indices[i], 0, tensor.shape[i] - 1));
    }
    return static_cast<double>(tensor.values[at]);
  }

  pattern::Expression expression_;
  Problem problem_;
  std::vector<Sequence> sequences_;
  std::vector<InputData> tensors_;
};

}  // namespace

ScoreChanges changes_of(const Pattern& pattern, const Case& c) {
  struct Values {
    const InputData* data = nullptr;
    double at(Row row, int num_heads, int key) const {
      const auto width = static_cast<std::size_t>(std::max(data->seqlen_k, 1));
      const auto plane = static_cast<std::size_t>(data->plane(row.b, row.h, num_heads));
      return static_cast<double>(data->values[plane * width + static_cast<std::size_t>(key)]);
    }
  };
  struct OfClass {
    Values alibi, bias, sink_logit;
    std::shared_ptr<const ScoreReading> score;
  };
  const auto values_of = [&](const std::string& name) {
    const auto found = std::find_if(c.inputs.begin(), c.inputs.end(),
                                    [&](const InputData& data) { return data.name == name; });
    return Values{name.empty() || found == c.inputs.end() ? nullptr : &*found};
  };
  std::vector<OfClass> classes;
  bool scores = false, sinks = false;
  for (const Pattern::HeadClass& head_class : pattern.classes()) {
    const Modifiers& modifiers = head_class.modifiers;
    classes.push_back({values_of(modifiers.alibi), values_of(modifiers.bias),
                       values_of(modifiers.sink_logit), nullptr});
    if (!modifiers.score.empty()) {
      classes.back().score = std::make_shared<const ScoreReading>(modifiers.score, c);
    }
    scores |= classes.back().alibi.data != nullptr || classes.back().bias.data != nullptr ||
              classes.back().score != nullptr;
    sinks |= classes.back().sink_logit.data != nullptr;
  }
  const auto class_of = [classes, of_head = pattern.class_of_head(c.problem)](int head) {
    return classes[static_cast<std::size_t>(of_head[static_cast<std::size_t>(head)])];
  };
  std::vector<int> diagonals;  // the key at the position of row 0
  for (const Sequence& s : sequences_of(c)) diagonals.push_back(s.q_start - s.k_start);
  const int num_heads = c.problem.num_heads;
  ScoreChanges changes;
  if (scores) {
    changes.score = [=](double score, Row row, int key) {
      const OfClass own = class_of(row.h);
      const int distance = row.q + diagonals[static_cast<std::size_t>(row.b)] - key;
      if (own.alibi.data) score -= own.alibi.at(row, num_heads, 0) * std::abs(distance);
      if (own.bias.data) score += own.bias.at(row, num_heads, key);
      return own.score ? own.score->at(score, row, key) : score;
    };
  }
  if (sinks) {
    changes.sink_logit = [=](Row row) {
      const OfClass own = class_of(row.h);
      return own.sink_logit.data ? own.sink_logit.at(row, num_heads, 0) : -HUGE_VAL;
    };
  }
  return changes;
}

Report verify_attention(const jit::Program& program, const Case& given, const MaskRow& mask_row,
                        GpuReference& gpu_reference) {
  Case c = given;
  const jit::Kernel kernel = program.bind(c.problem);
  const std::vector<int> class_of_head = program.pattern().class_of_head(c.problem);
  if (c.softcaps.empty()) c.softcaps = softcaps_of(program.pattern(), class_of_head);
  if (!c.changes.any()) c.changes = changes_of(program.pattern(), c);

  Workload workload(c);
  workload.fill_normal(c.seed);
  workload.poison_outputs();
  const std::size_t workspace_bytes = kernel.workspace_bytes(workload.args());
  const Buffer workspace_memory(workspace_bytes);
  const jit::Workspace workspace{workspace_bytes == 0 ? nullptr : workspace_memory.data(),
                                 workspace_bytes};
  kernel.build_lists(workload.args(), workspace);
  kernel.launch(workload.args(), workspace);
  synchronize();
  workload.download_outputs();

  std::vector<int> seqlens_q;
  for (const Sequence& sequence : workload.sequences) seqlens_q.push_back(sequence.seqlen_q);
  const std::vector<Row> rows = select_rows(seqlens_q, class_of_head, row_budget(workload), c.seed);
  const bool on_cpu = chosen_cpu(workload, rows.size());

  Report report;
  report.rows_total = workload.num_rows();
  report.reference = on_cpu ? "CPU" : "GPU";
  report.kernel = kernel.info();
  judge(check_rows(workload, rows, mask_row, on_cpu, gpu_reference), report);
  report.not_finite = count_not_finite(workload);
  report.touched_padding = workload.touched_padding();
  if (c.timed) report.milliseconds = time_kernel(kernel, workload.args(), workspace);
  return report;
}

}  // namespace girih::verify
