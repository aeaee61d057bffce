// Matrices of S2-Attention as its authors' code draws them, a character for each block: blocks of 2
// tokens, 16 tokens, 2 local blocks and a stride of 3, one pattern for all heads.
#pragma once

#include <string_view>

namespace oracle {

struct GoldenBlocks {
  const char* text;  ///< Girih's pattern
  bool causal;       ///< what is ahead in the blocks of the diagonal is hidden
  std::string_view rows[8];

  bool visible(long long q, long long k) const {
    return rows[q / 2][static_cast<std::size_t>(k / 2)] == '1' && (!causal || k <= q);
  }
};
constexpr int kGoldenTokens = 16;

inline constexpr GoldenBlocks kGoldenStrided[] = {
    {"causal & strided(local=2, stride=3, block=2, homo=true)",
     true,
     {"10000000", "11000000", "11100000", "10110000", "10011000", "10011100", "10010110",
      "10010011"}},
    {"strided(local=2, stride=3, block=2, relative=true)",
     false,
     {"11001001", "11100100", "01110010", "00111001", "10011100", "01001110", "00100111",
      "10010011"}}};

}  // namespace oracle
