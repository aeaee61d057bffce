// The CPU's float64 reference, and what is built on it: conversions, closed forms, the choice of
// rows, and that a comparison finds what is wrong.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <stdexcept>

#include "girih/error.hpp"
#include "verify/parallel.hpp"
#include "verify/reference.hpp"
#include "verify/verify.hpp"

using girih::DType;
using girih::Layout;
using girih::Tensor;
using namespace girih::verify;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The value of a bit pattern from its definition; finite patterns only.
double value_of(DType dtype, int bits) {
  const int fraction_bits = dtype == DType::bfloat16 ? 7 : 10;
  const int bias = dtype == DType::bfloat16 ? 127 : 15;
  const int exponent = (bits & 0x7fff) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                    : std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
  return bits & 0x8000 ? -magnitude : magnitude;
}

int infinity_of(DType dtype) { return dtype == DType::bfloat16 ? 0x7f80 : 0x7c00; }

// Contiguous tensors with values of the caller's.
struct Attention {
  DType dtype;
  int batch, seqlen_q, seqlen_k, num_heads, num_heads_kv, head_dim;
  std::vector<std::uint16_t> q, k, v;
  float softmax_scale = 0.5f;

  Attention(DType type, int b, int sq, int sk, int h, int h_kv, int d)
      : dtype(type),
        batch(b),
        seqlen_q(sq),
        seqlen_k(sk),
        num_heads(h),
        num_heads_kv(h_kv),
        head_dim(d),
        q(static_cast<std::size_t>(b * sq * h * d)),
        k(static_cast<std::size_t>(b * sk * h_kv * d)),
        v(static_cast<std::size_t>(b * sk * h_kv * d)) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (auto* tensor : {&q, &k, &v}) {
      for (auto& element : *tensor) element = narrow(dtype, normal(random));
    }
  }

  std::size_t kv_index(int b, int key, int g, int j) const {
    return static_cast<std::size_t>(((b * seqlen_k + key) * num_heads_kv + g) * head_dim + j);
  }
  double value(int b, int key, int g, int j) const {
    return static_cast<double>(widen(dtype, v[kv_index(b, key, g, j)]));
  }
  double score(Row row, int key) const {
    const int g = row.h / (num_heads / num_heads_kv);
    double sum = 0;
    for (int j = 0; j < head_dim; ++j) {
      const auto index =
          static_cast<std::size_t>(((row.b * seqlen_q + row.q) * num_heads + row.h) * head_dim + j);
      sum += static_cast<double>(widen(dtype, q[index])) *
             static_cast<double>(widen(dtype, k[kv_index(row.b, key, g, j)]));
    }
    return sum;
  }
  AttentionInputs inputs() {
    return {Tensor::contiguous(q.data(), dtype, {batch, seqlen_q, num_heads, head_dim}),
            Tensor::contiguous(k.data(), dtype, {batch, seqlen_k, num_heads_kv, head_dim}),
            Tensor::contiguous(v.data(), dtype, {batch, seqlen_k, num_heads_kv, head_dim}),
            softmax_scale};
  }
  ReferenceRows reference(const std::vector<Row>& rows, const std::vector<std::uint32_t>& masks) {
    return reference_on_cpu(inputs(), rows, masks);
  }
};

}  // namespace

TEST_CASE("widening follows the definition of the type for every bit pattern") {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    int wrong = 0;
    for (int bits = 0; bits < 0x10000; ++bits) {
      const float got = widen(dtype, static_cast<std::uint16_t>(bits));
      const int magnitude = bits & 0x7fff;
      if (magnitude > infinity_of(dtype)) {
        wrong += !std::isnan(got);
      } else if (magnitude == infinity_of(dtype)) {
        wrong += static_cast<double>(got) != (bits & 0x8000 ? -kInfinity : kInfinity);
      } else {
        wrong += static_cast<double>(got) != value_of(dtype, bits);
        wrong += std::signbit(got) != ((bits & 0x8000) != 0);
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("narrowing is exact on every value of the type and nearest-even between them") {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    int wrong = 0;
    const auto expect = [&](float value, int bits) {
      wrong += narrow(dtype, value) != bits;
      wrong += narrow(dtype, -value) != (bits | 0x8000);
    };
    for (int bits = 0; bits < infinity_of(dtype); ++bits) {
      const float low = widen(dtype, static_cast<std::uint16_t>(bits));
      expect(low, bits);
      // The largest value's upper neighbour is where the next exponent would begin.
      const int next = bits + 1;
      const double high = value_of(dtype, next);
      const auto middle = static_cast<float>((static_cast<double>(low) + high) / 2);
      expect(middle, bits % 2 == 0 ? bits : next);
      expect(std::nextafter(middle, 0.0f), bits);
      expect(std::nextafter(middle, HUGE_VALF), next);
    }
    CHECK(wrong == 0);
    CHECK(narrow(dtype, HUGE_VALF) == infinity_of(dtype));
    CHECK(narrow(dtype, -HUGE_VALF) == (infinity_of(dtype) | 0x8000));
    for (const std::uint32_t nan : {0x7fc00000u, 0x7f800001u, 0xffffffffu}) {
      CHECK(std::isnan(widen(dtype, narrow(dtype, std::bit_cast<float>(nan)))));
    }
  }
}

TEST_CASE("a row that sees one key copies its value, exactly in either precision") {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    Attention attention(dtype, 2, 3, 40, 4, 2, 64);
    for (const Row row : {Row{0, 0, 0}, Row{1, 1, 2}, Row{1, 2, 1}, Row{0, 3, 2}}) {
      const auto result = attention.reference({row}, {0, 1u << 5});  // key 37
      int wrong = 0;
      for (int j = 0; j < 64; ++j) {
        const double expected = attention.value(row.b, 37, row.h / 2, j);
        wrong += result.out[static_cast<std::size_t>(j)] != expected;
        wrong += static_cast<double>(result.naive_lowp[static_cast<std::size_t>(j)]) != expected;
      }
      CHECK(wrong == 0);
      CHECK(result.lse[0] == doctest::Approx(0.5 * attention.score(row, 37)).epsilon(1e-12));
    }
  }
}

TEST_CASE("two keys are weighted by the logistic function of their scores' difference") {
  Attention attention(DType::bfloat16, 1, 2, 33, 2, 1, 128);
  const Row row{0, 1, 1};
  const auto result = attention.reference({row}, {1u << 3, 1});  // keys 3 and 32
  const double a = 0.5 * attention.score(row, 3), b = 0.5 * attention.score(row, 32);
  const double weight = 1 / (1 + std::exp(b - a));
  for (int j = 0; j < 128; ++j) {
    const double expected =
        weight * attention.value(0, 3, 0, j) + (1 - weight) * attention.value(0, 32, 0, j);
    CHECK(result.out[static_cast<std::size_t>(j)] == doctest::Approx(expected).epsilon(1e-12));
  }
  CHECK(result.lse[0] == doctest::Approx(a + std::log1p(std::exp(b - a))).epsilon(1e-12));
}

TEST_CASE("a softcap bends the scores of its heads and leaves the others") {
  Attention attention(DType::bfloat16, 1, 2, 33, 3, 1, 128);
  AttentionInputs inputs = attention.inputs();
  inputs.softcaps = {0.5f, 0.0f, 1e6f};
  const auto result =
      reference_on_cpu(inputs, std::vector<Row>{{0, 0, 1}, {0, 1, 1}, {0, 2, 1}},
                       std::vector<std::uint32_t>{1u << 3, 1, 1u << 3, 1, 1u << 3, 1});
  for (int h = 0; h < 3; ++h) {
    const double cap = h == 0 ? 0.5 : 1e6;  // so large that it is as good as none
    const double a = cap * std::tanh(0.5 * attention.score({0, h, 1}, 3) / cap);
    const double b = cap * std::tanh(0.5 * attention.score({0, h, 1}, 32) / cap);
    const double weight = 1 / (1 + std::exp(b - a));
    const double expected =
        weight * attention.value(0, 3, 0, 7) + (1 - weight) * attention.value(0, 32, 0, 7);
    const auto row = static_cast<std::size_t>(h);
    const double got = result.out[row * 128 + 7];
    const double exact = h == 0 ? 1e-12 : 1e-7;
    CHECK(got == doctest::Approx(expected).epsilon(exact));
    CHECK(result.lse[row] == doctest::Approx(a + std::log1p(std::exp(b - a))).epsilon(exact));
    CHECK(std::fabs(static_cast<double>(result.naive_lowp[row * 128 + 7]) - got) < 0.05);
  }
}

TEST_CASE("scores are changed element by element, and a sink takes its part of the sum") {
  Attention attention(DType::bfloat16, 1, 2, 33, 2, 1, 128);
  AttentionInputs inputs = attention.inputs();
  inputs.softcaps = {0.0f, 2.0f};
  inputs.changes.score = [](double score, Row row, int key) {
    return 0.5 * score + 0.25 * row.h - 0.125 * key;
  };
  inputs.changes.sink_logit = [](Row row) { return row.h == 0 ? 1.5 : -HUGE_VAL; };
  const std::vector<Row> rows = {{0, 0, 1}, {0, 1, 1}, {0, 0, 0}, {0, 1, 0}};
  const auto result = reference_on_cpu(
      inputs, rows, std::vector<std::uint32_t>{1u << 3, 1, 1u << 3, 1, 0, 0, 0, 0});
  for (int h = 0; h < 2; ++h) {
    const auto changed = [&](int key) {
      double score = 0.5 * attention.score({0, h, 1}, key);
      if (h == 1) score = 2 * std::tanh(score / 2);
      return 0.5 * score + 0.25 * h - 0.125 * key;
    };
    const double a = std::exp(changed(3)), b = std::exp(changed(32));
    const double sum = a + b + (h == 0 ? std::exp(1.5) : 0);
    const auto row = static_cast<std::size_t>(h);
    const double expected =
        a / sum * attention.value(0, 3, 0, 7) + b / sum * attention.value(0, 32, 0, 7);
    CHECK(result.out[row * 128 + 7] == doctest::Approx(expected).epsilon(1e-12));
    CHECK(result.lse[row] == doctest::Approx(std::log(sum)).epsilon(1e-12));
    CHECK(std::fabs(static_cast<double>(result.naive_lowp[row * 128 + 7]) - expected) < 0.05);
  }
  CHECK(result.lse[2] == 1.5);  // sees nothing but the sink
  CHECK(result.lse[3] == -HUGE_VAL);
  CHECK(result.out[2 * 128] == 0);
}

TEST_CASE("sequences may start anywhere, and V may be narrower than K") {
  Attention attention(DType::float16, 1, 5, 40, 2, 1, 64);
  AttentionInputs inputs = attention.inputs();
  inputs.q.shape[0] = 2;  // sequence 0 has query 0, sequence 1 the others; keys likewise from 10 on
  inputs.starts = {{0, 0, 0},
                   {inputs.q.stride[1], 10 * inputs.k.stride[1], 10 * inputs.v.stride[1]}};
  inputs.v.shape[3] = 48;
  const auto result = reference_on_cpu(inputs, std::vector<Row>{{1, 1, 2}, {0, 1, 0}},
                                       std::vector<std::uint32_t>{1u << 7, 0, 1u << 7, 0});
  REQUIRE(result.out.size() == 2 * 48);
  int wrong = 0;
  for (int j = 0; j < 48; ++j) {
    wrong += result.out[static_cast<std::size_t>(j)] != attention.value(0, 17, 0, j);
    wrong += result.out[static_cast<std::size_t>(48 + j)] != attention.value(0, 7, 0, j);
  }
  CHECK(wrong == 0);
  CHECK(result.lse[0] == doctest::Approx(0.5 * attention.score({0, 1, 3}, 17)).epsilon(1e-12));
  CHECK(result.lse[1] == doctest::Approx(0.5 * attention.score({0, 1, 0}, 7)).epsilon(1e-12));
}

TEST_CASE("equal scores average the visible values and count the keys in lse") {
  Attention attention(DType::float16, 1, 1, 70, 1, 1, 64);
  std::fill(attention.q.begin(), attention.q.end(), std::uint16_t{0});
  const auto result = attention.reference({{0, 0, 0}}, {0xffff0000u, 0xffffffffu, 1});
  for (int j = 0; j < 64; ++j) {
    double sum = 0;
    for (int key = 16; key <= 64; ++key) sum += attention.value(0, key, 0, j);
    CHECK(result.out[static_cast<std::size_t>(j)] == doctest::Approx(sum / 49).epsilon(1e-12));
  }
  CHECK(result.lse[0] == doctest::Approx(std::log(49.0)).epsilon(1e-12));
}

TEST_CASE("a row that sees nothing is zero with lse minus infinity, also without keys") {
  Attention attention(DType::bfloat16, 1, 2, 40, 2, 2, 64);
  auto result = attention.reference({{0, 1, 1}}, {0, 0});
  CHECK(std::count(result.out.begin(), result.out.end(), 0.0) == 64);
  CHECK(std::count(result.naive_lowp.begin(), result.naive_lowp.end(), 0.0f) == 64);
  CHECK(result.lse[0] == -kInfinity);

  Attention no_keys(DType::bfloat16, 1, 2, 0, 2, 2, 64);
  result = no_keys.reference({{0, 1, 1}}, {});
  CHECK(std::count(result.out.begin(), result.out.end(), 0.0) == 64);
  CHECK(result.lse[0] == -kInfinity);
}

TEST_CASE("the naive computation errs by units of the type, on values of the type") {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    Attention attention(dtype, 1, 1, 96, 1, 1, 128);
    const auto result = attention.reference({{0, 0, 0}}, {~0u, ~0u, ~0u});
    double error = 0, largest = 0;
    int foreign = 0;
    for (std::size_t j = 0; j < 128; ++j) {
      const float naive = result.naive_lowp[j];
      foreign += widen(dtype, narrow(dtype, naive)) != naive;
      error = std::max(error, std::fabs(static_cast<double>(naive) - result.out[j]));
      largest = std::max(largest, std::fabs(result.out[j]));
    }
    const double unit = dtype == DType::bfloat16 ? 0x1p-8 : 0x1p-11;
    CHECK(foreign == 0);
    CHECK(error > unit * largest / 16);
    CHECK(error < unit * largest * 16);
  }
}

TEST_CASE("all rows are chosen when they fit, each once") {
  const std::vector<int> class_of_head = {0, 1, 1};
  const auto rows = select_rows(std::vector<int>{5, 5}, class_of_head, 30, 1);
  std::set<std::tuple<int, int, int>> distinct;
  for (const Row row : rows) distinct.insert({row.b, row.h, row.q});
  CHECK(rows.size() == 30);
  CHECK(distinct.size() == 30);
  CHECK(select_rows(std::vector<int>{0, 0}, class_of_head, 30, 1).empty());
}

TEST_CASE("a choice of rows holds ends and tile edges of every class of heads") {
  const std::vector<int> class_of_head = {0, 0, 1, 2, 2, 2, 0, 1};
  const int seqlen_q = 1000;
  const std::vector<int> seqlens_q(3, seqlen_q);
  const auto rows = select_rows(seqlens_q, class_of_head, 600, 7);
  CHECK(rows.size() == 600);
  std::set<std::tuple<int, int, int>> distinct;
  std::set<std::pair<int, int>> seen;  // class, q
  for (const Row row : rows) {
    CHECK((0 <= row.b && row.b < 3 && 0 <= row.h && row.h < 8 && 0 <= row.q && row.q < seqlen_q));
    distinct.insert({row.b, row.h, row.q});
    seen.insert({class_of_head[static_cast<std::size_t>(row.h)], row.q});
  }
  CHECK(distinct.size() == rows.size());
  for (int head_class = 0; head_class < 3; ++head_class) {
    for (const int q : {0, 63, 64, 65, 127, 128, 129, 959, 960, 961, 999}) {
      CHECK(seen.count({head_class, q}) == 1);
    }
  }
  const auto again = select_rows(seqlens_q, class_of_head, 600, 7);
  CHECK(std::equal(rows.begin(), rows.end(), again.begin(),
                   [](Row a, Row b) { return a.b == b.b && a.h == b.h && a.q == b.q; }));
}

TEST_CASE("a choice of rows stays within sequences of different lengths") {
  const std::vector<int> seqlens_q = {0, 700, 1, 0, 1000, 64};
  const std::vector<int> class_of_head = {0, 1, 0, 1};
  for (const std::int64_t max_rows : {500, 100000}) {
    const auto rows = select_rows(seqlens_q, class_of_head, max_rows, 3);
    std::set<std::tuple<int, int, int>> distinct;
    std::set<int> sequences;
    int outside = 0, last = 0;
    for (const Row row : rows) {
      outside += row.q < 0 || row.q >= seqlens_q[static_cast<std::size_t>(row.b)];
      last += row.b == 4 && row.q == 999;
      distinct.insert({row.b, row.h, row.q});
      sequences.insert(row.b);
    }
    CHECK(rows.size() == static_cast<std::size_t>(std::min<std::int64_t>(max_rows, 1765 * 4)));
    CHECK(distinct.size() == rows.size());
    CHECK(outside == 0);
    CHECK(last >= 2);  // in a head of each class
    CHECK(sequences.count(1) + sequences.count(4) + sequences.count(5) == 3);
  }
}

TEST_CASE("lengths of sequences follow from maxima, packing, used keys and padding") {
  Case c;
  c.batch = 4;
  c.seqlen_q = 10;
  c.seqlen_k = 20;
  c.k_start = 3;
  const auto expect = [&](int b, Sequence expected) {
    const Sequence got = sequences_of(c)[static_cast<std::size_t>(b)];
    CAPTURE(b);
    CHECK(got.seqlen_q == expected.seqlen_q);
    CHECK(got.seqlen_k == expected.seqlen_k);
    CHECK(got.q_start == expected.q_start);
    CHECK(got.k_start == expected.k_start);
    CHECK(got.batch == expected.batch);
    CHECK(got.q_row == expected.q_row);
    CHECK(got.k_row == expected.k_row);
  };
  expect(2, {10, 20, 13, 3, 2, 0, 0});
  c.lengths.used_k = {0, 20, 15, 99};
  c.lengths.leftpad_k = {0, 20, 4, 19};
  expect(0, {10, 0, -7, 3, 0, 0, 0});
  expect(1, {10, 0, -7, 3, 1, 0, 20});
  expect(2, {10, 11, 4, 3, 2, 0, 4});
  expect(3, {10, 1, -6, 3, 3, 0, 19});

  c.problem.layout = Layout::thd;
  c.lengths.q = {10, 0, 12, 1};
  c.lengths.k = {7, 20, 30, 2};
  c.lengths.leftpad_k.clear();
  expect(1, {0, 20, 23, 3, 0, 10, 7});
  expect(2, {10, 15, 8, 3, 0, 10, 27});  // 12 queries, of which the maximum admits 10
  expect(3, {1, 2, 4, 3, 0, 22, 57});
  c.q_start = 5;
  expect(3, {1, 2, 5, 3, 0, 22, 57});
}

namespace {

// 100 rows of 8 elements whose reference is 1, whose naive error is 0.01, and what a kernel gave.
struct Judged {
  ReferenceRows reference;
  std::vector<std::int64_t> num_visible;
  std::vector<std::uint16_t> out;
  std::vector<float> lse;

  Judged()
      : reference{std::vector<double>(800, 1.0), std::vector<double>(100, 2.0),
                  std::vector<float>(800, 1.01f)},
        num_visible(100, 10),
        out(800, narrow(DType::bfloat16, 1.0f)),
        lse(100, 2.0f) {}

  void make_empty(std::size_t row) {
    num_visible[row] = 0;
    for (std::size_t j = 0; j < 8; ++j) {
      reference.out[row * 8 + j] = 0;
      reference.naive_lowp[row * 8 + j] = 0;
      out[row * 8 + j] = 0;
    }
    reference.lse[row] = -kInfinity;
    lse[row] = -HUGE_VALF;
  }

  Report report() const {
    std::vector<RowCheck> checks;
    for (std::size_t i = 0; i < 100; ++i) {
      checks.push_back(check_row(DType::bfloat16, {0, 0, static_cast<int>(i)}, num_visible[i],
                                 reference, i, std::span(out).subspan(i * 8, 8), &lse[i]));
    }
    Report result;
    judge(checks, result);
    return result;
  }
};

}  // namespace

TEST_CASE("right rows and right empty rows pass") {
  Judged judged;
  judged.make_empty(3);
  judged.out[8] = narrow(DType::bfloat16, 1.015625f);  // within 0.02
  const Report report = judged.report();
  CHECK(report.ok());
  CHECK(report.rows_checked == 100);
  CHECK(report.error == doctest::Approx(0.015625));
  CHECK(report.allowed_error == doctest::Approx(0.02).epsilon(1e-3));
  CHECK(report.closest == "all rows");
}

TEST_CASE("a comparison finds every kind of wrong row") {
  Judged judged;
  const auto expect_row = [&](int q, const char* what) {
    const Report report = judged.report();
    CHECK(report.rows_wrong == 1);
    CHECK(!report.ok());
    REQUIRE(report.failures.size() == 1);
    CHECK(report.failures[0].row.q == q);
    CHECK(report.failures[0].what.find(what) != std::string::npos);
  };
  SUBCASE("an element beyond the tolerance") {
    judged.out[8 * 7 + 3] = narrow(DType::bfloat16, 1.03125f);
    expect_row(7, "off by more than 0.02");
  }
  SUBCASE("an element that is not finite") {
    judged.out[8 * 9] = 0xffff;
    expect_row(9, "out[0] is not finite");
  }
  SUBCASE("an empty row that is not zero") {
    judged.make_empty(5);
    judged.out[8 * 5 + 7] = 1;  // the smallest value there is
    expect_row(5, "sees nothing");
  }
  SUBCASE("an empty row that is NaN") {
    judged.make_empty(5);
    judged.out[8 * 5 + 7] = 0x7fff;
    expect_row(5, "not finite");
  }
  SUBCASE("an empty row whose lse is finite") {
    judged.make_empty(5);
    judged.lse[5] = 0;
    expect_row(5, "lse");
  }
  SUBCASE("lse beyond the tolerance") {
    judged.lse[99] = 2.0005f;
    expect_row(99, "lse");
  }
  SUBCASE("lse that was not written") {
    judged.lse[0] = std::nanf("");
    expect_row(0, "lse");
  }
}

TEST_CASE("short rows with large errors do not excuse long ones") {
  Judged judged;
  for (std::size_t row = 0; row < 70; ++row) {  // long rows, where the naive result is closer
    judged.num_visible[row] = 5000;
    for (std::size_t j = 0; j < 8; ++j) judged.reference.naive_lowp[row * 8 + j] = 1.003f;
  }
  CHECK(judged.report().ok());
  judged.out[8] = narrow(DType::bfloat16, 1.0078125f);  // 2.6 times what the long rows' naive is
  Report report = judged.report();
  CHECK(report.ok());
  CHECK(report.closest == "rows of 5000 to 5000 keys");
  CHECK(report.error == doctest::Approx(0.0078125));
  CHECK(report.allowed_error == doctest::Approx(0.009).epsilon(1e-3));

  judged.out[8] = narrow(DType::bfloat16, 1.015625f);  // 5.2 times, though 1.6 of the short ones'
  report = judged.report();
  CHECK(report.rows_wrong == 1);
  REQUIRE(report.failures.size() == 1);
  CHECK(report.failures[0].what.find("off by more than 0.009") != std::string::npos);
  judged.out[8] = narrow(DType::bfloat16, 1.0f);
  judged.out[8 * 80] = narrow(DType::bfloat16, 1.015625f);  // a short row may
  CHECK(judged.report().ok());
}

TEST_CASE("a group of rows within its own limit does not excuse the output as a whole") {
  Judged judged;
  judged.out[8 * 80] = narrow(DType::bfloat16, 1.0234375f);  // of 0.02 and 0.03
  const Report report = judged.report();
  CHECK(report.rows_wrong == 1);
  CHECK(report.closest == "all rows");
  CHECK(report.allowed_error == doctest::Approx(0.02).epsilon(1e-3));
}

TEST_CASE("a parallel loop visits every index once and passes on an exception") {
  std::vector<int> visits(1000, 0);
  parallel_for(1000, [&](std::int64_t i) { ++visits[static_cast<std::size_t>(i)]; });
  CHECK(std::count(visits.begin(), visits.end(), 1) == 1000);
  CHECK_THROWS_WITH_AS(parallel_for(100,
                                    [](std::int64_t i) {
                                      if (i == 50) throw std::runtime_error("index 50");
                                    }),
                       "index 50", std::runtime_error);
  parallel_for(0, [](std::int64_t) { FAIL("called"); });
}

TEST_CASE("the float64 kernel compiles for portable and Hopper architectures") {
  for (const char* arch : {"sm_80", "sm_90"}) {
    CHECK(
        compile_reference(arch).starts_with("\x7f"
                                            "ELF"));
  }
}
