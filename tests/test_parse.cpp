// Pattern text: what is accepted and how it prints, and every refusal with its caret.
#include <doctest/doctest.h>

#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "oracle/oracle.hpp"
#include "texts.hpp"

using girih::Mask;
using girih::Pattern;
using girih::tests::contains;

namespace {

std::string printed(std::string_view text) { return Pattern::parse(text).text(); }

template <class Parse>
std::string refusal_of(Parse&& parse) {
  try {
    parse();
  } catch (const girih::Error& error) {
    CHECK(error.code() == girih::Errc::invalid_argument);
    return error.what();
  }
  FAIL("accepted");
  return {};
}

std::string refusal(std::string_view text) {
  return refusal_of([&] { Pattern::parse(text); });
}

// Column of the caret in a message, counted from 0 within the shown text.
std::size_t caret(const std::string& message) {
  return message.size() - message.rfind('\n') - std::string_view("\n  ").size() - 1;
}

}  // namespace

TEST_CASE("canonical text is a fixed point") {
  for (const char* text :
       {"dense",
        "causal",
        "sink(0)",
        "sink(64)",
        "window",
        "window(left=255)",
        "window(right=0)",
        "window(left=1, right=2)",
        "window(left=536870912)",
        "!causal",
        "!(causal & sink(1))",
        "causal & (sink(64) | window(left=255))",
        "causal & sink(1) | window(left=2)",
        "causal & !window(left=2) & sink(4)",
        "!sink(1) | !(sink(2) | causal)",
        "causal & (dense | sink(3) & (dense | causal))",
        "heads(else: causal)",
        "last_keys(3) | first_queries(1) | last_queries(100)",
        "queries(-8..0) & keys(0..536870912)",
        "queries(0..0)",
        "causal & chunk(8192)",
        "block_window(block=64)",
        "block_window(left=3, block=64)",
        "block_window(left=0, right=1, block=16)",
        "block_streaming(sink=1, local=0)",
        "block_streaming(sink=1, local=2, block=64, causal=false)",
        "strided(local=16, stride=8, block=64)",
        "strided(local=(4, 0), stride=3, block=2, offset=-1, heads=kv, step=-5)",
        "strided(local=2, stride=3, block=2, step=0, dense_heads=2)",
        "strided(local=2, stride=3, block=2, homo=true)",
        "strided(local=(0, 1), stride=3, block=2, dense_heads=1, relative=true)",
        "strided(block=16, ranges=[(inf, 8)])",
        "strided(block=16, offset=1, ranges=[(-3, 2), (0, 1), (4, 1), (inf, 1048576)])",
        "dilated(7)",
        "causal & dilated($d)",
        "neighborhood(4096, window=255)",
        "neighborhood(256x256, window=80)",
        "neighborhood(30x48x80, window=(18, 24, 24))",
        "neighborhood(8x1, window=(3, 1), causal=(true, false))",
        "neighborhood(1x8, window=(1, 3), stride=(1, 2), dilation=(1, 2), causal=true)",
        "neighborhood(30x48x80, window=9, stride=(1, 8, 8), dilation=3, causal=(true, false, "
        "false)) "
        "| sink(1)",
        "causal with softcap(30)",
        "causal with softcap(0.1)",
        "causal with alibi(slopes)",
        "columns(rows) | !columns(masked) & causal",
        "causal with softcap(30), alibi(s), bias(b), sink_logit(z)",
        "heads(0: causal with alibi(s), 1: dense with bias(b), sink_logit(s), else: sink(1))",
        "dense with softcap(1e-40)",
        "dense with softcap(3.4028235e+38)",
        "!sink(1) | dense with softcap(16777216)",
        "blocks(m, q=128, kv=64)",
        "causal & !blocks(_2, q=16, kv=16) | sink($prefix)",
        "window(left=$w)",
        "window(left=$w, right=$w)",
        "window(left=3, right=$r)",
        "block_window(right=0, block=$b)",
        "block_streaming(sink=$s, local=$l, block=$b, causal=false)",
        "last_keys($n) | first_queries($n) | last_queries($n) | chunk($n)",
        "heads(0: blocks(m, q=32, kv=64), 1-3: causal & blocks(m, q=32, kv=64) with softcap(3), "
        "else: sink($m2))",
        "heads(0: causal with softcap(50), 1: dense, else: sink(1) | causal with softcap(2.5))",
        "heads(0-15: causal, 16+18-20: sink(4) | dense, else: causal & sink(1))",
        "kv_heads(0: dense, 1-7: causal)"}) {
    CAPTURE(text);
    CHECK(printed(text) == text);
    CHECK(Pattern::parse(printed(text)) == Pattern::parse(text));
  }
}

TEST_CASE("spelling is normalised") {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"causal()", "causal"},
      {"  causal\t&\r\n sink( 64 )  ", "causal & sink(64)"},
      {"window(255)", "window(left=255)"},
      {"window(3, 4)", "window(left=3, right=4)"},
      {"window(3, right=4)", "window(left=3, right=4)"},
      {"window(right=4, left=3)", "window(left=3, right=4)"},
      {"window(left=-1, right=-1)", "window"},
      {"window(- 1, 0)", "window(right=0)"},
      {"window()", "window"},
      {"sink(n=007)", "sink(7)"},
      {"!!causal", "causal"},
      {"!!!(causal)", "!causal"},
      {"!(!causal)", "causal"},
      {"((causal) & (sink(1) & (dense)))", "causal & sink(1) & dense"},
      {"(causal & dense) | sink(1)", "causal & dense | sink(1)"},
      {"(causal | dense) | (sink(1) | dense)", "causal | dense | sink(1) | dense"},
      {"!(causal)&dense|dense", "!causal & dense | dense"},
      {"heads(0-0 + 2 : causal , else:dense)", "heads(0+2: causal, else: dense)"},
      {"heads(else: causal, 3: dense)", "heads(else: causal, 3: dense)"},
      {"queries(positions = -1 .. 3)", "queries(-1..3)"},
      {"keys(007..8)", "keys(7..8)"},
      {"block_window(1, 2, 64)", "block_window(left=1, right=2, block=64)"},
      {"block_window(block=64, right=-1, left=0)", "block_window(left=0, block=64)"},
      {"block_streaming(1, 2, 128, true)", "block_streaming(sink=1, local=2)"},
      {"strided((3, 3), 8, 64)", "strided(local=3, stride=8, block=64)"},
      {"strided(stride=8,block=64,offset=0,heads=q,homo=false,relative=false,local=( 3 ,0))",
       "strided(local=(3, 0), stride=8, block=64)"},
      {"strided(block=2, ranges=[ (2,1) ,(inf , 4)])",
       "strided(block=2, ranges=[(2, 1), (inf, 4)])"},
      {"blocks(m, 128, 64)", "blocks(m, q=128, kv=64)"},
      {"neighborhood(064x8, (7, 7), 1, (2, 1), false)",
       "neighborhood(64x8, window=7, dilation=(2, 1))"},
      {"neighborhood(window=(3), grid=8, causal=( true ))",
       "neighborhood(8, window=3, causal=true)"},
      {"neighborhood(8x8x8, stride=1, causal=(true, true, true), window=8)",
       "neighborhood(8x8x8, window=8, causal=true)"},
      {"blocks( kv = 64 , input = heads , q = 0128 )", "blocks(heads, q=128, kv=64)"},
      {"sink( $ n )", "sink($n)"},
      {"sink(n=$n)", "sink($n)"},
      {"window($a, right=$_b)", "window(left=$a, right=$_b)"},
      {"causal with softcap(30.0)", "causal with softcap(30)"},
      {"causal with softcap(3e+1)", "causal with softcap(30)"},
      {"causal with sink_logit( z ),bias(b), softcap(2)",
       "causal with softcap(2), bias(b), sink_logit(z)"},
      {"causal with softcap( 2.50 )", "causal with softcap(2.5)"},
      {"(causal) with # Gemma\n softcap(50)", "causal with softcap(50)"},
      {"heads(0: dense with softcap(1), 1: causal)", "heads(0: dense with softcap(1), 1: causal)"},
      {"# streaming\nheads( # mixed: \xe2\x88\xa7 \n 0: causal, # one\n else: dense)\n# end",
       "heads(0: causal, else: dense)"},
  };
  for (const auto& [text, canonical] : cases) {
    CAPTURE(text);
    CHECK(printed(text) == canonical);
  }
}

TEST_CASE("! binds before & and & before |") {
  CHECK(Mask::parse("dense & !causal | sink(1)") ==
        ((girih::dense() & !girih::causal()) | girih::sink(1)));
  CHECK(Mask::parse("!causal & dense") == ((!girih::causal()) & girih::dense()));
  CHECK(Mask::parse("sink(1) | dense & !causal") ==
        (girih::sink(1) | (girih::dense() & !girih::causal())));
}

TEST_CASE("random expressions print and parse back") {
  std::mt19937_64 random(11);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = oracle::text(oracle::random_expr(random, 1 + i % 6, 1 << 29));
    const Mask mask = Mask::parse(text);
    if (mask == Mask::parse(mask.text()) && mask.text() == Mask::parse(mask.text()).text())
      continue;
    FAIL(text, " prints as ", mask.text());
  }
}

TEST_CASE("a refusal shows the line with a caret under the character") {
  CHECK(refusal("causal & widow(left=3)") ==
        "unknown atom 'widow': did you mean 'window'? the atoms are dense, causal, window, sink, "
        "last_keys, first_queries, last_queries, queries, keys, chunk, block_window, "
        "block_streaming, strided, dilated, neighborhood, blocks, segments, index_ge, index_gt, "
        "vertical_slash, columns, expr\n"
        "  causal & widow(left=3)\n"
        "           ^");
  CHECK(refusal("causal &\n  sink(-1)\n| dense") ==
        "2:8: sink: n = -1 is out of range: 0 to 536870912 are allowed\n"
        "    sink(-1)\n"
        "         ^");
  CHECK(refusal("") == "expected an atom, '!' or '(', found the end of the text\n  \n  ^");
}

TEST_CASE("every refusal names what is wrong and where") {
  struct Refused {
    std::string_view text;
    std::string_view message;
    std::size_t at;
  };
  const Refused cases[] = {
      // expressions
      {"causal &", "expected an atom, '!' or '(', found the end of the text", 8},
      {"causal &  # and then?", "found the end of the text", 8},
      {"| causal", "expected an atom, '!' or '(', found '|'", 0},
      {"causal && dense", "the operators are single: & and |", 8},
      {"causal || dense", "the operators are single: & and |", 8},
      {"causal & | dense", "found '|'", 9},
      {"causal dense", "expected '&', '|' or the end, found 'dense'", 7},
      {"causal, dense", "expected '&', '|' or the end, found ','", 6},
      {"(causal", "expected '&', '|' or ')', found the end of the text", 7},
      {"(causal dense)", "expected '&', '|' or ')', found 'dense'", 8},
      {"causal)", "this ')' closes nothing", 6},
      {"()", "expected an atom, '!' or '(', found ')'", 1},
      {"3", "expected an atom, '!' or '(', found '3'", 0},
      {"!", "expected an atom", 1},
      // atoms
      {"hash", "unknown atom 'hash': the atoms are dense, causal, window, sink", 0},
      {"Causal", "did you mean 'causal'?", 0},
      {"true", "unknown atom 'true'", 0},
      {"block(m)", "did you mean 'blocks'?", 0},
      {"sink", "sink needs its number n: sink(n)", 0},
      {"dense & sink()", "sink needs its number n", 8},
      {"sink(1, 2)", "sink takes 1 (n), this is one more", 8},
      {"window(1, 2, 3)", "window takes 2 (left, right), this is one more", 13},
      {"causal(1)", "causal takes no arguments", 7},
      {"causal(n=1)", "causal takes no arguments", 7},
      {"window(width=3)", "window has no argument 'width': it takes left, right", 7},
      {"window(left=3, left=4)", "left is given twice", 15},
      {"window(3, left=4)", "left is given twice", 10},
      {"window(left=3, 4)", "values without a name come first", 15},
      {"sink(1", "expected ',' or ')', found the end of the text", 6},
      {"sink(1 2)", "expected ',' or ')', found '2'", 7},
      {"sink(1,)", "this is one more", 7},
      {"window(1,)", "window: right takes a whole number, found ')'", 9},
      {"sink(n=)", "sink: n takes a whole number, found ')'", 7},
      // numbers
      {"sink(1.5)", "sink: n takes a whole number, found '1.5'", 5},
      {"sink(1e3)", "found '1e3'", 5},
      {"sink(4x4)", "found '4x4'", 5},
      {"sink(true)", "sink: n takes a whole number, found 'true'", 5},
      {"window(left=inf)", "left takes a whole number, found 'inf'", 12},
      {"sink(\"a\")", "found '\"'", 5},
      {"sink([1])", "found '['", 5},
      {"sink(--1)", "found '-'", 6},
      {"window(left=-2)", "window: left = -2 is out of range: -1 to 536870912 are allowed", 12},
      {"window(1, -7)", "window: right = -7 is out of range", 10},
      {"sink(536870913)", "sink: n = 536870913 is out of range", 5},
      {"sink(99999999999999999999999999)", "n = 999999999999999999999999... is out of range", 5},
      {"sink(-99999999999999999999)", "n = -99999999999999999999 is out of range", 5},
      // the other forms of arguments
      {"queries(3)",
       "queries: positions takes a range such as 0..128, whose end is not in it, "
       "found ')'",
       9},
      {"queries(3...5)", "takes a range such as 0..128, whose end is not in it, found '.'", 11},
      {"queries(..5)", "takes a range such as 0..128, whose end is not in it, found '..'", 8},
      {"queries(5..3)", "queries: 5..3 is no range: write the lower number first", 8},
      {"queries(-536870913..3)", "positions = -536870913 is out of range", 8},
      {"keys(-1..4)", "keys: positions = -1 is out of range: 0 to 536870912 are allowed", 5},
      {"keys(1..536870913)", "positions = 536870913 is out of range", 8},
      {"keys", "keys needs its range of positions: keys(0..128)", 0},
      {"chunk(0)", "chunk: n = 0 is out of range: 1 to 536870912 are allowed", 6},
      {"dense & block_window(1, 2)", "block_window needs block: give block=NUMBER", 8},
      {"block_window(block=0)", "block_window: block = 0 is out of range", 19},
      {"block_window(-2, 1, 16)", "left = -2 is out of range: -1 to", 13},
      {"block_streaming(sink=1)", "block_streaming needs local: give local=NUMBER", 0},
      {"block_streaming(-1, 2)", "block_streaming: sink = -1 is out of range", 16},
      {"block_streaming(1, 2, 16, yes)", "block_streaming: causal takes true or false, found 'yes'",
       26},
      {"block_streaming(1, 2, causal=1)", "causal takes true or false, found '1'", 29},
      {"block_streaming(1, 2, causal=$c)",
       "block_streaming: causal takes true or false, and no run-time input", 29},
      {"strided(local=2, stride=3)", "strided needs block: give block=NUMBER", 0},
      {"strided(stride=3, block=2)", "strided: local is missing: give local and stride, or ranges",
       0},
      {"strided(local=2, block=2)", "strided: stride is missing: give local and stride, or ranges",
       0},
      {"strided(local=x)",
       "strided: local takes a whole number or a pair such as (4, 2), found 'x'", 14},
      {"strided(local=(1))", "local takes a whole number or a pair such as (4, 2), found ')'", 16},
      {"strided(local=(1, 2, 3))", "a pair such as (4, 2), found ','", 19},
      {"strided(local=(1, -2))", "strided: local = -2 is out of range: 0 to 536870912", 18},
      {"strided(2, 0, 2)", "strided: stride = 0 is out of range: 1 to 1048576 are allowed", 11},
      {"strided(2, 1048577, 2)", "stride = 1048577 is out of range", 11},
      {"strided(2, 3, 2, step=-4097)", "step = -4097 is out of range: -4096 to 4096", 22},
      {"strided(2, 3, 2, offset=-268435457)", "offset = -268435457 is out of range", 24},
      {"strided(block=2, ranges=[(268435457, 3), (inf, 3)])",
       "ranges = 268435457 is out of range: -268435456 to 268435456 are allowed", 26},
      {"strided(2, 3, 2, heads=v)", "strided: heads takes q or kv, found 'v'", 23},
      {"strided(2, 3, 2, heads=1)", "heads takes q or kv, found '1'", 23},
      {"strided(2, 3, 2, homo=true, step=3)", "homo heads are all alike: they have no step", 0},
      {"strided(2, 3, 2, homo=true, dense_heads=1)", "none can be dense", 0},
      {"strided(0, 3, 2, relative=true)",
       "strided: relative needs a local block on one side at least", 0},
      {"strided(2, 3, 2, relative=true, offset=1)", "it does not depend on the head", 0},
      {"strided(2, 3, 2, relative=true, step=1)", "it does not depend on the head", 0},
      {"strided(2, 3, 2, relative=true, homo=true)", "it does not depend on the head", 0},
      {"strided(block=2, ranges=4)",
       "strided: ranges takes a list such as [(4, 1), (inf, 8)], found '4'", 24},
      {"strided(block=2, ranges=[])", "ranges takes a list such as", 25},
      {"strided(block=2, ranges=[4])", "such as [(4, 1), (inf, 8)], found '4'", 25},
      {"strided(block=2, ranges=[(4, 1)])", "strided: ranges must end with inf, not with 4", 24},
      {"strided(block=2, ranges=[(4, 1), (4, 2), (inf, 3)])",
       "strided: ranges must ascend, but 4 follows 4", 24},
      {"strided(block=2, ranges=[(4, 1), (inf, 3), (5, 2)])", "ranges goes on behind inf", 24},
      {"strided(block=2, ranges=[(4, 0), (inf, 3)])",
       "strided: ranges = 0 is out of range: 1 to 1048576 are allowed", 29},
      {"strided(block=2, ranges=[(inf, inf)])", "found 'inf'", 31},
      {"strided(block=2, ranges=[(1, 1), (2, 1), (3, 1), (4, 2), (inf, 3)])",
       "strided: ranges takes at most 4 pairs, this is one more", 57},
      {"strided(block=2, ranges=[(4, 1), (inf, 3)", "found the end of the text", 41},
      {"strided(block=2, ranges=[(4, 1), (inf, 3)], local=3)",
       "strided: ranges replace local and stride", 0},
      {"strided(block=2, ranges=[(inf, 3)], stride=3)", "ranges replace local and stride", 0},
      {"strided(block=2, ranges=[(inf, 3)], relative=true)",
       "relative goes with local and stride, not with ranges", 0},
      // run-time inputs
      {"blocks", "blocks needs the name of a run-time input: blocks(m, ...)", 0},
      {"segments", "segments needs the name of a run-time input: segments(m)", 0},
      {"index_ge(3)", "index_ge: input takes the name of a run-time input such as m, found '3'", 9},
      {"vertical_slash", "vertical_slash needs the name of a run-time input: vertical_slash(m)", 0},
      {"vertical_slash(v) & segments(v)", "the input 'v' is used as int32 [batch, heads, num_", 20},
      {"segments($d)", "segments: input is a run-time input by itself: leave out the '$'", 9},
      {"segments(d) & sink($d)", "the input 'd' is used as int32 [batch, heads, seqlen_q]", 14},
      {"dense & blocks()", "blocks needs the name of a run-time input", 8},
      {"blocks(q=128, kv=64)", "blocks needs the name of a run-time input", 0},
      {"blocks(3, q=128, kv=64)",
       "blocks: input takes the name of a run-time input such as m, found '3'", 7},
      {"blocks(\"m\", q=128, kv=64)", "input takes the name of a run-time input such as m, found",
       7},
      {"blocks($m, q=128, kv=64)", "blocks: input is a run-time input by itself: leave out the '$'",
       7},
      {"blocks(m)", "blocks needs q: give q=NUMBER", 0},
      {"causal & blocks(m, q=128)", "blocks needs kv: give kv=NUMBER", 9},
      {"blocks(m, n, q=128, kv=64)", "blocks: q takes a whole number, found 'n'", 10},
      {"blocks(m, 128, 64, 1)", "blocks takes 3 (input, q, kv), this is one more", 19},
      {"blocks(m, q=128, kv=64, input=n)", "input is given twice", 24},
      {"blocks(m, size=64)", "blocks has no argument 'size': it takes input, q, kv", 10},
      {"blocks(m, q=8, kv=64)", "blocks: q = 8 is out of range: 16 to 128 are allowed", 12},
      {"blocks(m, q=64, kv=256)", "blocks: kv = 256 is out of range: 16 to 128 are allowed", 19},
      {"dense | blocks(m, q=48, kv=64)", "blocks: q and kv must be 16, 32, 64 or 128", 8},
      {"blocks(m, q=64, kv=$k)", "blocks: kv cannot be a run-time input", 19},
      {"dilated(0)", "dilated: d = 0 is out of range: 1 to 536870912 are allowed", 8},
      {"neighborhood", "neighborhood needs its grid: neighborhood(30x48x80, ...)", 0},
      {"neighborhood(8x8)", "neighborhood needs window: give window=NUMBER", 0},
      {"neighborhood(8x, window=1)",
       "neighborhood: grid takes a grid of one to three axes such as 30x48x80, found '8x'", 13},
      {"neighborhood(8x8x8x8, window=1)", "one to three axes such as 30x48x80, found '8x8x8x8'",
       13},
      {"neighborhood((8, 8), window=1)", "one to three axes such as 30x48x80, found '('", 13},
      {"neighborhood(8x0, window=1)",
       "neighborhood: grid = 0 is out of range: 1 to 536870912 are allowed", 15},
      {"neighborhood(8x536870913, window=1)", "grid = 536870913 is out of range", 15},
      {"neighborhood(32768x32768, window=1)", "the grid has more than 2^29 tokens", 0},
      {"neighborhood(8x8, window=0)", "neighborhood: window = 0 is out of range", 25},
      {"neighborhood(8x8, window=x)",
       "window takes a whole number, or one for each axis such as (18, 24, 24), found 'x'", 25},
      {"neighborhood(8x8, window=(3, 3, 3))",
       "neighborhood: window has 3 entries, but the grid has 2 axes: give one each, or one for all",
       0},
      {"neighborhood(8, window=(3, 3))", "window has 2 entries, but the grid has 1 axis", 0},
      {"neighborhood(8x8, window=(1, 2, 3, 4))", "found ','", 33},
      {"neighborhood(8x8, window=(1, 2", "found the end of the text", 30},
      {"neighborhood(8x16, window=(3, 9), dilation=2)",
       "neighborhood: axis 1 of the grid has 16 tokens, window 9, stride 1 and dilation 2: window "
       "* "
       "dilation must not exceed the axis",
       0},
      {"neighborhood(8x16, window=3, stride=(4, 1))",
       "axis 0 of the grid has 8 tokens, window 3, stride 4 and dilation 1: stride must not exceed "
       "the window",
       0},
      {"neighborhood(8x8, window=3, causal=1)",
       "causal takes true or false, or one for each axis such as (true, false, false), found '1'",
       35},
      {"neighborhood(8x8, window=$w)", "and no run-time input", 25},
      {"strided(local=2, stride=$s, block=2)", "strided: stride cannot be a run-time input", 24},
      {"strided(local=$l, stride=3, block=2)",
       "strided: local takes a whole number or a pair such as (4, 2), and no run-time input", 14},
      {"queries($a..3)",
       "queries: positions takes a range such as 0..128, whose end is not in it, "
       "and no run-time input",
       8},
      {"queries(3..$b)", "queries: positions takes a range", 11},
      {"sink($)", "expected the name of a run-time input after '$', found ')'", 6},
      {"sink($3)", "expected the name of a run-time input after '$', found '3'", 6},
      {"sink($$n)", "found '$'", 6},
      {"sink($", "found the end of the text", 6},
      {"sink(-$n)", "sink: n takes a whole number, found '$'", 6},
      {"sink(n)", "sink: n takes a whole number, found 'n'", 5},
      {"$n", "expected an atom, '!' or '(', found '$'", 0},
      {"heads($h: causal)", "expected a head number or 'else', found '$'", 6},
      {"sink($a2345678901234567890123456789012345678901234567890123456789012345)",
       "the input's name 'a234567890123456789012345678901234567890...' has 65 characters: at most "
       "64 are allowed",
       6},
      {"blocks(m, q=64, kv=64) & sink($m)",
       "the input 'm' is used as blocks [batch, heads, ceil(seqlen_q / 64), ceil(seqlen_k / 64)] "
       "and as int32 [batch, heads]: give the two different names",
       25},
      {"heads(0: blocks(m, q=64, kv=64), else: causal & blocks(m, q=64, kv=32))",
       "ceil(seqlen_k / 64)] and as blocks [batch, heads, ceil(seqlen_q / 64), ceil(seqlen_k / "
       "32)]",
       48},
      // modifiers
      {"causal with",
       "expected a modifier, found the end of the text: they are softcap, prune, alibi, bias, "
       "score and sink_logit",
       11},
      {"causal with aliby(slopes)", "expected a modifier, found 'aliby'", 12},
      {"causal with alibi", "expected '(' after alibi, found the end of the text", 17},
      {"causal with alibi()", "alibi takes the name of a run-time input such as m, found ')'", 18},
      {"causal with bias($b)", "bias takes the name of a run-time input such as m, found '$'", 17},
      {"causal with bias(3)", "bias takes the name of a run-time input such as m, found '3'", 17},
      {"causal with bias(a, b)", "expected ')', found ','", 18},
      {"causal with alibi(a), alibi(b)", "alibi is given twice", 22},
      {"causal with alibi(a), bias(a)",
       "the input 'a' is used as float32 [batch, heads] and as float32 [batch, heads, seqlen_k]",
       27},
      {"segments(d) with sink_logit(d)", "the input 'd' is used as int32 [batch, heads, seqlen_q]",
       28},
      {"causal with softcap", "expected '(' after softcap, found the end of the text", 19},
      {"causal with softcap()", "softcap takes a number, found ')'", 20},
      {"causal with softcap(x)", "softcap takes a number, found 'x'", 20},
      {"causal with softcap(4x4)", "softcap takes a number, found '4x4'", 20},
      {"causal with softcap($c)", "softcap takes a number, found '$'", 20},
      {"causal with softcap(0)", "softcap(0) is out of range: a finite number above 0 is needed",
       20},
      {"causal with softcap(-30)", "softcap(-30) is out of range", 20},
      {"causal with softcap(1e99)", "softcap(1e99) is out of range", 20},
      {"causal with softcap(30, 2)", "expected ')', found ','", 22},
      {"causal with softcap(30), softcap(2)", "softcap is given twice", 25},
      {"causal with softcap(30), causal", "expected a modifier, found 'causal'", 25},
      {"causal with softcap(30) & dense", "expected '&', '|' or the end, found '&'", 24},
      {"(causal with softcap(30)) | dense", "stand behind the whole mask only", 8},
      {"heads(0: dense with softcap(1)", "found the end of the text", 30},
      {"heads(0: dense) with softcap(1)",
       "heads(...) is the whole pattern: expected the end, found 'with'", 16},
      // heads
      {"heads", "expected '(' after heads, found the end of the text", 5},
      {"heads()", "expected a head number or 'else', found ')'", 6},
      {"heads(causal)", "expected a head number or 'else', found 'causal'", 6},
      {"heads(0 causal)", "expected '-', '+' or ':' after a set of heads, found 'causal'", 8},
      {"heads(else+3: causal)", "expected ':' after a set of heads, found '+'", 10},
      {"heads(0-: causal)", "expected a head number or 'else', found ':'", 8},
      {"heads(-1: causal)", "expected a head number or 'else', found '-'", 6},
      {"heads(0+else: causal)", "expected a head number or 'else', found 'else'", 8},
      {"heads(5-3: causal)", "the range 5-3 is empty: write the lower head first", 6},
      {"heads(0-4000000000: causal)", "head 4000000000 is out of range", 8},
      {"heads(0: causal", "expected '&', '|', ',' or ')', found the end", 15},
      {"heads(0: causal; 1: dense)", "unexpected character (byte 0x3b)", 15},
      {"heads(else: causal, else: dense)", "'else' stands twice", 20},
      {"heads(0: causal,)", "expected a head number or 'else', found ')'", 16},
      {"heads(0: causal) & dense", "heads(...) is the whole pattern: expected the end, found '&'",
       17},
      {"causal & heads(0: dense)", "heads(...) must be the whole pattern", 9},
      {"(heads(0: dense))", "heads(...) must be the whole pattern", 1},
      {"heads(0: kv_heads(0: dense))", "kv_heads(...) must be the whole pattern", 9},
      // characters
      {"causal \xe2\x88\xa7 dense", "unexpected character (byte 0xe2)", 7},
      {std::string_view("causal\0dense", 12), "unexpected character (byte 0x00)", 6},
      {"causal @", "unexpected character (byte 0x40)", 7},
  };
  for (const auto& [text, message, at] : cases) {
    CAPTURE(text);
    const std::string what = refusal(text);
    CAPTURE(what);
    CHECK(contains(what, std::string(message)));
    CHECK(caret(what) == at);
  }
}

TEST_CASE("long lines are cut and odd bytes replaced in a message") {
  const std::string wide = std::string(200, ' ') + "oops" + std::string(200, ' ') + "| dense";
  const std::string message = refusal(wide);
  CHECK(message.size() < 500);
  const std::size_t excerpt = message.find("\n  ...") + 3;
  CHECK(message.substr(excerpt + caret(message), 4) == "oops");

  const std::string tabs = refusal("# \xc3\xa9\n\tcausal \t\xc3\xa9");
  CHECK(contains(tabs, "2:10: unexpected character (byte 0xc3)\n   causal  ?\n"));
  CHECK(caret(tabs) == 9);
}

TEST_CASE("nesting is limited to 64 levels") {
  const auto nested = [](int levels) {
    return std::string(levels, '(') + "causal" + std::string(levels, ')');
  };
  CHECK(printed(nested(64)) == "causal");
  CHECK(contains(refusal(nested(65)), "nested deeper than 64 levels"));
  CHECK(printed(std::string(64, '!') + "causal") == "causal");
  CHECK(contains(refusal(std::string(65, '!') + "causal"), "nested deeper than 64 levels"));
  CHECK(contains(refusal(std::string(60000, '(')), "nested deeper than 64 levels"));
  CHECK(contains(refusal(std::string(60000, '!')), "nested deeper than 64 levels"));
}

TEST_CASE("the length of a text and the number of atoms are limited") {
  const std::string longest = "causal" + std::string(64 * 1024 - 6, ' ');
  CHECK(printed(longest) == "causal");
  CHECK(contains(refusal(longest + ' '), "the text has 65537 bytes; at most 65536 are read"));

  std::string many = "causal";
  for (int i = 1; i < 1024; ++i) many += "|causal";
  CHECK(Mask::parse(many).operands().size() == 1024);
  const std::string message = refusal(many + "|dense");
  CHECK(contains(message, "the mask has more than 1024 atoms"));
  CHECK(contains(refusal("heads(0: " + many + ", 1: " + many + "|dense)"), "more than 1024 atoms"));
  CHECK(Pattern::parse("heads(0: " + many + ", 1: " + many + ")").classes().size() == 2);
}

TEST_CASE("a mask has no heads") {
  CHECK(Mask::parse("causal | sink(2)").text() == "causal | sink(2)");
  const std::string message = refusal_of([] { Mask::parse("heads(0: causal)"); });
  CHECK(contains(message, "heads(...) must be the whole pattern"));
}

TEST_CASE("sets of heads parse by themselves") {
  const girih::HeadSet set("0-3+8+12-15");
  CHECK_FALSE(set.rest);
  REQUIRE(set.ranges.size() == 3);
  CHECK(set.ranges[1] == girih::HeadSet::Range{8, 8});
  CHECK(set.ranges[2] == girih::HeadSet::Range{12, 15});
  CHECK(girih::HeadSet("else").rest);
  CHECK(girih::HeadSet(" 3 ") == girih::HeadSet("3-3"));
  const std::string message = refusal_of([] { girih::HeadSet("0-3,8"); });
  CHECK(contains(message, "expected '+' or the end of the set, found ','"));
  CHECK(caret(message) == 3);
  CHECK(contains(refusal_of([] { girih::HeadSet(""); }), "expected a head number or 'else'"));
}
