// The forward cases of Block-Sparse-Attention's own tests, those without dropout: 14,400 launches
// that mix dense, block-sparse and streaming heads over packed sequences.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "support.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::Pattern;
using girih::verify::Case;
using girih::verify::InputData;
using girih::verify::Report;

namespace {

constexpr int kBlock = 128;

struct Mode {
  bool causal;
  bool exact;  // streaming in tokens, not in blocks
  int sink, local;
};

struct Lengths {
  int q, k;
};

struct PeerCase {
  DType dtype;
  int num_heads, num_heads_kv, head_dim;
  Lengths longest;
  Mode mode;
  double density;
  int batch;
};

std::vector<PeerCase> peer_cases() {
  constexpr Lengths kLongest[] = {{113, 203},   {128, 217},  {113, 211},   {108, 256},
                                  {256, 512},   {512, 256},  {1024, 1024}, {1023, 1024},
                                  {1024, 1023}, {2048, 2048}};
  constexpr Mode kModes[] = {
      {true, true, 1, 3}, {true, true, 64, 256}, {true, false, 1, 3}, {false, false, 1, 3}};
  std::vector<PeerCase> cases;
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    for (const int num_heads : {16, 32}) {
      for (const int num_heads_kv : {num_heads, 1, 8}) {
        for (const int head_dim : {32, 64, 128}) {
          for (const Lengths longest : kLongest) {
            for (const Mode& mode : kModes) {
              for (const double density : {0.0, 0.1, 0.3, 0.7, 1.0}) {
                for (const int batch : {1, 2}) {
                  cases.push_back(
                      {dtype, num_heads, num_heads_kv, head_dim, longest, mode, density, batch});
                }
              }
            }
          }
        }
      }
    }
  }
  return cases;
}

// Dense heads, then a third with block masks, then a third that stream.
int num_dense(const PeerCase& peer) { return peer.num_heads - 2 * (peer.num_heads / 3); }
int num_masked(const PeerCase& peer) { return peer.num_heads / 3; }

std::string text_of(const PeerCase& peer) {
  const Mode& mode = peer.mode;
  const std::string streaming =
      mode.exact ? fmt::format("causal & (sink({}) | window(left={}))", mode.sink, mode.local - 1)
                 : fmt::format("block_streaming(sink={}, local={}, block={}, causal={})", mode.sink,
                               mode.local, kBlock, mode.causal);
  const int masked = num_dense(peer), streams = masked + num_masked(peer);
  return fmt::format("heads(0-{}: {}, {}-{}: {}blocks(m, q=128, kv=128), {}-{}: {})", masked - 1,
                     mode.causal ? "causal" : "dense", masked, streams - 1,
                     mode.causal ? "causal & " : "", streams, peer.num_heads - 1, streaming);
}

// As the peer's tests make them: causal rows choose among the blocks up to the diagonal of the
// plane's last row, and at least one of them.
InputData random_planes(const PeerCase& peer, std::mt19937_64& random) {
  InputData data{.name = "m", .batch = peer.batch, .heads = peer.num_heads};
  data.num_q_blocks = (peer.longest.q + kBlock - 1) / kBlock;
  data.num_kv_blocks = (peer.longest.k + kBlock - 1) / kBlock;
  data.form = static_cast<girih::verify::BlockForm>(random() % 5);
  for (int plane = 0; plane < peer.batch * peer.num_heads; ++plane) {
    for (int i = 0; i < data.num_q_blocks; ++i) {
      const int last = data.num_kv_blocks - (data.num_q_blocks - i);  // causal: of the row
      const int available = peer.mode.causal ? std::max(last + 1, 0) : data.num_kv_blocks;
      int count = static_cast<int>(peer.density * available);
      if (peer.density > 0 && available > 0) count = std::max(count, 1);
      std::vector<std::uint8_t> row(static_cast<std::size_t>(data.num_kv_blocks), 0);
      std::fill_n(row.begin(), count, std::uint8_t{1});
      std::shuffle(row.begin(), row.begin() + available, random);
      data.visible.insert(data.visible.end(), row.begin(), row.end());
    }
  }
  return data;
}

void set_keys(long long begin, long long end, std::span<std::uint32_t> words) {
  for (long long k = std::max(begin, 0LL); k < end; ++k) {
    words[static_cast<std::size_t>(k / 32)] |= 1u << (k % 32);
  }
}

// The keys that a row sees, by the peer's rules: a row's position is q + seqlen_k - seqlen_q.
girih::verify::MaskRow peer_mask(const PeerCase& peer, const Case& c) {
  return [peer, sequences = girih::verify::sequences_of(c), planes = c.inputs[0]](
             girih::verify::Row row, std::span<std::uint32_t> words) {
    const girih::verify::Sequence& sequence = sequences[static_cast<std::size_t>(row.b)];
    const Mode& mode = peer.mode;
    const long long seqlen_k = sequence.seqlen_k, offset = seqlen_k - sequence.seqlen_q;
    const long long position = row.q + offset;
    const long long end = mode.causal ? std::min(position + 1, seqlen_k) : seqlen_k;
    if (row.h < num_dense(peer)) return set_keys(0, end, words);
    if (row.h < num_dense(peer) + num_masked(peer)) {
      const std::uint8_t* bits =
          planes.row(planes.plane(row.b, row.h, peer.num_heads), row.q / kBlock);
      for (long long j = 0; j * kBlock < end; ++j) {
        if (bits[j] != 0) set_keys(j * kBlock, std::min((j + 1) * kBlock, end), words);
      }
      return;
    }
    const auto blocks_up_to = [](long long n) {  // rounding up, below zero as well
      return n / kBlock + (n % kBlock > 0 ? 1 : 0);
    };
    const long long unit = mode.exact ? 1 : kBlock;
    const long long last_block =
        mode.causal ? row.q / kBlock + 1 + blocks_up_to(offset) : blocks_up_to(seqlen_k);
    const long long local =
        mode.exact ? position + 1 - mode.local : (last_block - mode.local) * kBlock;
    set_keys(0, std::min(mode.sink * unit, end), words);
    set_keys(local, end, words);
  };
}

void check_peer_cases(const std::vector<PeerCase>& cases, const girih::TileConfig& tile = {}) {
  girih::verify::GpuReference gpu_reference;
  std::vector<Binding> bindings;
  for (const PeerCase& peer : cases) {
    bindings.push_back(
        {text_of(peer),
         make_problem(peer.dtype, peer.head_dim, peer.num_heads, peer.num_heads_kv, 0, Layout::thd),
         tile});
  }
  const std::vector<Bound> bound = bind_all(bindings);  // compiles each kernel once
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const PeerCase& peer = cases[i];
    std::mt19937_64 random(42 + i);
    const auto lengths = [&](int longest) {  // up to 20 short
      std::vector<int> result;
      for (int b = 0; b < peer.batch; ++b) {
        result.push_back(std::max(1, longest - static_cast<int>(random() % 21)));
      }
      return result;
    };
    Case c;
    c.problem = bindings[i].problem;
    c.batch = peer.batch;
    c.seqlen_q = peer.longest.q;
    c.seqlen_k = peer.longest.k;
    c.lengths.q = lengths(peer.longest.q);
    c.lengths.k = lengths(peer.longest.k);
    c.inputs = {random_planes(peer, random)};
    c.max_rows = 384;
    c.seed = i;
    CHECK_MESSAGE(bound[i].kernel, bindings[i].pattern << ": " << bound[i].message);
    const Report report = girih::verify::verify_attention(
        girih::jit::compile(Pattern::parse(bindings[i].pattern), {.tile = tile}), c,
        peer_mask(peer, c), gpu_reference);
    rows_checked += report.rows_checked;
    CHECK_MESSAGE(
        report.ok(),
        fmt::format("case {}: {} {}, {} x {}, density {}, batch {}: {} rows wrong, error "
                    "{:.3g} of {:.3g} in {}, first: {}, tile {}",
                    i, bindings[i].pattern, describe(c.problem), c.seqlen_q, c.seqlen_k,
                    peer.density, peer.batch, report.rows_wrong, report.error, report.allowed_error,
                    report.closest, report.failures.empty() ? "none" : report.failures[0].what,
                    describe(tile)));
  }
  MESSAGE(fmt::format("{} cases", cases.size()));
}

}  // namespace

namespace {

// Every `step`-th case; a prime meets every value of every axis.
std::vector<PeerCase> sample_of(std::size_t step) {
  const std::vector<PeerCase> all = peer_cases();
  CHECK(all.size() == 14400);
  std::vector<PeerCase> sample;
  for (std::size_t i = 0; i < all.size(); i += step) sample.push_back(all[i]);
  return sample;
}

}  // namespace

TEST_CASE("a sample of Block-Sparse-Attention's 14,400 forward cases is right") {
  const std::vector<PeerCase> sample = sample_of(13);
  CHECK(sample.size() >= 1000);
  check_peer_cases(sample);
}

TEST_CASE("a smaller sample of Block-Sparse-Attention's cases is right in the portable kernel") {
  check_peer_cases(sample_of(97), kPortable);
}

TEST_CASE("all of Block-Sparse-Attention's 14,400 forward cases are right" * doctest::skip()) {
  check_peer_cases(peer_cases());
}
