// The verb that finds prune's thresholds in files: what it computes on the CPU, what it writes, and
// the files that it refuses.
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "girih/error.hpp"
#include "girih/prune.hpp"
#include "program.hpp"
#include "tensor_file.hpp"

using namespace girih::tests;

namespace {

std::string bytes_of(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string npy(const std::string& type, const std::string& shape, const std::string& values,
                bool fortran = false) {
  std::string header = "{'descr': '" + type +
                       "', 'fortran_order': " + (fortran ? "True" : "False") +
                       ", 'shape': " + shape + ", }";
  header.resize((10 + header.size() + 64) / 64 * 64 - 11, ' ');
  header += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  return bytes + header + values;
}

std::string safetensors(const std::string& header, const std::string& values) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + values;
}

constexpr int kTokens = 512, kWidth = 16;

// [tokens, heads, width]: the first element is what value(token, head) says.
template <class Value>
std::vector<float> tensor(int heads, const Value& value) {
  std::vector<float> values(static_cast<std::size_t>(kTokens * heads * kWidth));
  for (int token = 0; token < kTokens; ++token) {
    for (int head = 0; head < heads; ++head) {
      values[static_cast<std::size_t>((token * heads + head) * kWidth)] = value(token, head);
    }
  }
  return values;
}

// Scores of a query head are its number, plus 1, times the key's tile in this list.
constexpr float kOfTile[] = {3, 5, 4, 1, 2, 6, 0, 7};
std::vector<float> queries() {
  return tensor(2, [](int, int head) { return static_cast<float>(head + 1); });
}
std::vector<float> keys() {
  return tensor(1, [](int token, int) { return kOfTile[token / 64] - (token % 64 == 9 ? 0 : 8); });
}

struct Thresholds {
  Json header;
  std::vector<float> values;
};
Thresholds read_thresholds(const fs::path& path) {
  const std::string bytes = read(path);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  Thresholds result{Json::parse(bytes.substr(sizeof(length), length)), {}};
  const std::string data = bytes.substr(sizeof(length) + length);
  result.values.resize(data.size() / sizeof(float));
  std::memcpy(result.values.data(), data.data(), data.size());
  return result;
}

}  // namespace

TEST_CASE("calibrate writes thresholds midway between tile maxima, and says what they are for") {
  const Program program;
  const std::string q = (program.folder() / "q.npy").string();
  const std::string k = (program.folder() / "k.npy").string();
  const std::string out = (program.folder() / "t.safetensors").string();
  write(q, npy("<f4", "(512, 2, 16)", bytes_of(queries())));
  write(k, npy("<f4", "(1, 512, 1, 16)", bytes_of(keys())));
  const Arguments common{
      "calibrate", "causal with prune(t, kv=64)", "--cpu", "--softmax-scale", "1", "-o", out};
  const Json said = program.json(common + Arguments{"--q", q, "--k", k, "--kept-tiles", "2"});
  CHECK(said["num_heads"] == 2);
  CHECK(said["num_columns"] == 4);
  CHECK(said["examples"] == 1);
  CHECK(said["on"] == "CPU");
  CHECK(said["keep_all"] == 4);

  // Tiles before rows 256: 3 5 4 1; before 384: 3 5 4 1 2 6. Of 128 rows on there are just two.
  const float none = -std::numeric_limits<float>::infinity();
  const Thresholds found = read_thresholds(out);
  CHECK(found.values == std::vector<float>{none, none, 3.5f, 4.5f, none, none, 7, 9});
  CHECK(found.header["thresholds"]["dtype"] == "F32");
  CHECK(found.header["thresholds"]["shape"] == Json({2, 4}));
  CHECK(found.header["thresholds"]["data_offsets"] == Json({0, 32}));
  const Json& metadata = found.header["__metadata__"];
  CHECK(metadata["kv"] == "64");
  CHECK(metadata["kept_tiles"] == "2");
  CHECK(metadata["rows"] == "128");
  CHECK(metadata["examples"] == "1");
  CHECK(metadata["pattern"] == "causal with prune(t, kv=64)");
  CHECK(metadata["head_dim"] == "16");
  CHECK(metadata["dtype"] == "bf16");
  CHECK(metadata["softmax_scale"] == "1");

  // The library reads what was written, and so do fills.
  const girih::CalibratedThresholds loaded = girih::load_thresholds(out);
  CHECK(loaded.values == found.values);
  CHECK(loaded.num_heads == 2);
  CHECK(loaded.num_columns == 4);
  CHECK(loaded.kv == 64);
  CHECK(loaded.head_dim == 16);
  CHECK(loaded.softmax_scale == 1.0f);
  CHECK(loaded.pattern == "causal with prune(t, kv=64)");
  const girih::Thresholds view = loaded.on_device(loaded.values.data());
  CHECK(view.heads == 2);
  CHECK(view.num_columns == 4);
  CHECK(view.kv_block_size == 64);
  CHECK(view.softmax_scale == 1.0f);
  const auto filled = [&](const char* kv, const char* heads, const char* head_dim) {
    return Arguments{"explain",    std::string("causal with prune(t, kv=") + kv + ")",
                     "--arch",     "sm_90a",
                     "--heads",    heads,
                     "--head-dim", head_dim,
                     "--seqlen-k", "256",
                     "--fill",     "t=@" + out};
  };
  CHECK(program.json(filled("64", "2", "16"))["tile"]["block_n"] == 64);
  check_refused(filled("128", "2", "16"), 2, "invalid_argument",
                {"thresholds for tiles of 64 keys, but the pattern prunes tiles of 128"}, program);
  check_refused(filled("64", "4", "16"), 2, "invalid_argument",
                {"thresholds of 2 heads, but there are 4"}, program);
  check_refused(filled("64", "2", "64"), 2, "invalid_argument",
                {"calibrated at head_dim 16, not 64"}, program);
  // Pictures are of any head_dim.
  CHECK(program
            .run({"show", "causal with prune(t, kv=64)", "--heads", "2", "--seqlen-q", "256",
                  "--seqlen-k", "256", "--fill", "t=@" + out})
            .exit_code == 0);

  // Whatever launches has the same softmax_scale; the default is written as well.
  const Arguments here{
      "causal with prune(t, kv=64)", "--heads", "2", "--head-dim", "16", "--fill", "t=@" + out};
  for (const char* verb : {"verify", "bench"}) {
    check_refused(Arguments{verb} + here, 2, "invalid_argument",
                  {"calibrated with softmax_scale 1, not 0.25: give --softmax-scale 1"}, program);
  }
  check_refused(Arguments{"calibrate", "causal", "--softmax-scale", "-1", "-o", out, "--q", q,
                          "--k", k, "--kept-tiles", "2"},
                2, "invalid_argument", {"--softmax-scale -1 must be finite and not negative"},
                program);
  program.json(
      {"calibrate", "causal", "--cpu", "-o", out, "--q", q, "--k", k, "--kept-tiles", "2"});
  CHECK(read_thresholds(out).header["__metadata__"]["softmax_scale"] == "0.25");
  check_refused(Arguments{"verify", "--softmax-scale", "0.5"} + here, 2, "invalid_argument",
                {"calibrated with softmax_scale 0.25, not 0.5: give --softmax-scale 0.25"},
                program);

  // Other modifiers than a softcap come behind the decision.
  const std::string more =
      "heads(0: causal with prune(t, kv=64), 1: causal with alibi(a), "
      "score(\"s * w[h]\"))";
  program.json({"calibrate", more, "--cpu", "--softmax-scale", "1", "-o", out, "--q", q, "--k", k,
                "--kept-tiles", "2"});
  CHECK(read_thresholds(out).values == found.values);

  // The pattern's tiles are calibrated for, and --kv may only agree.
  const std::string wide = "heads(0: causal, 1: causal with prune(t, kv=128))";
  const Arguments one{"--cpu", "--softmax-scale", "1", "-o", out, "--q", q, "--k",
                      k,       "--kept-tiles",    "1"};
  CHECK(program.json(Arguments{"calibrate", wide} + one)["kv"] == 128);
  CHECK(program.json(Arguments{"calibrate", wide, "--kv", "128"} + one)["kv"] == 128);
  CHECK(read_thresholds(out).header["__metadata__"]["kv"] == "128");
  check_refused(Arguments{"calibrate", wide, "--kv", "64"} + one, 2, "invalid_argument",
                {"--kv 64 contradicts the pattern, which prunes tiles of 128 keys"}, program);
  CHECK(program.json(Arguments{"calibrate", "causal"} + one)["kv"] == 64);

  // Tiles of 128: 5 4 6 7; with a window the first is hidden from rows 384 on.
  program.json({"calibrate", "causal", "--cpu", "--softmax-scale", "1", "-o", out, "--q", q, "--k",
                k, "--kept-tiles", "1", "--kv", "128"});
  CHECK(read_thresholds(out).values ==
        std::vector<float>{none, none, 4.5f, 5.5f, none, none, 9, 11});
  program.json({"calibrate", "causal & window(left=200)", "--cpu", "--softmax-scale", "1", "-o",
                out, "--q", q, "--k", k, "--kept-tiles", "2", "--kv", "128"});
  CHECK(read_thresholds(out).values[3] == none);
}

TEST_CASE("calibrate takes masks with run-time inputs, as --fill makes them") {
  const Program program;
  const std::string q = (program.folder() / "q.npy").string();
  const std::string k = (program.folder() / "k.npy").string();
  const std::string out = (program.folder() / "t.safetensors").string();
  write(q, npy("<f4", "(512, 2, 16)", bytes_of(queries())));
  write(k, npy("<f4", "(512, 1, 16)", bytes_of(keys())));
  const auto thresholds = [&](const std::string& pattern, const Arguments& fills) {
    program.json(Arguments{"calibrate", pattern, "--cpu", "--softmax-scale", "1", "-o", out, "--q",
                           q, "--k", k, "--kept-tiles", "1"} +
                 fills);
    return read_thresholds(out).values;
  };
  const std::vector<float> causal = thresholds("causal", {});
  CHECK(thresholds("causal & blocks(m, q=64, kv=64)", {"--fill", "m=random:1"}) == causal);
  CHECK(thresholds("causal & segments(d) with alibi(a)", {"--fill", "d=documents:1000000000"}) ==
        causal);
  CHECK(thresholds("causal & expr(\"k < limit[b]\")", {"--fill", "limit=random:1"}) ==
        std::vector<float>(8, -std::numeric_limits<float>::infinity()));
  const std::vector<float> few = thresholds("causal & sink(200)", {});
  CHECK(few != causal);
  CHECK(thresholds("causal & sink($n)", {"--fill", "n=200", "--seed", "3"}) == few);
  const Json metadata = read_thresholds(out).header["__metadata__"];
  CHECK(metadata["fill"] == "n=200");
  CHECK(metadata["seed"] == "3");
  // Every file has blocks of its own, and so has a seed.
  const Arguments half{"--fill", "m=random:0.5", "--seed"};
  const std::string blocks = "causal & blocks(m, q=64, kv=64)";
  const auto first = thresholds(blocks, half + Arguments{"4"});
  CHECK(first == thresholds(blocks, half + Arguments{"4"}));
  CHECK(first != thresholds(blocks, half + Arguments{"5"}));
}

TEST_CASE("calibrate averages over files of every type and layout") {
  const Program program;
  const std::string q = (program.folder() / "q.npy").string();
  const std::string both = (program.folder() / "both.safetensors").string();
  const std::string out = (program.folder() / "t.safetensors").string();
  std::vector<float> transposed(queries().size());
  for (int token = 0; token < kTokens; ++token) {
    for (int head = 0; head < 2; ++head) {
      transposed[static_cast<std::size_t>((head * kTokens + token) * kWidth)] =
          static_cast<float>(head + 1);
    }
  }
  std::string doubles(transposed.size() * sizeof(double), '\0');
  for (std::size_t i = 0; i < transposed.size(); ++i) {
    const auto value = static_cast<double>(transposed[i]);
    std::memcpy(doubles.data() + i * sizeof(double), &value, sizeof(double));
  }
  write(q, npy("<f8", "(1, 2, 512, 16)", doubles));
  std::string bfloats, more;
  for (const float key : keys()) {
    for (std::string* bytes : {&bfloats, &more}) {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(bytes == &more ? 2 * key : key);
      *bytes += static_cast<char>(bits >> 16 & 0xff);
      *bytes += static_cast<char>(bits >> 24);
    }
  }
  const std::string entry = R"("dtype":"BF16","shape":[1,512,16],"data_offsets":)";
  write(both, safetensors("{\"__metadata__\":{\"a\":\"b\"},\"k\":{" + entry +
                              "[0,16384]},\"more\":{" + entry + "[16384,32768]}}",
                          bfloats + more));
  const Json said = program.json({"calibrate", "causal", "--cpu", "--softmax-scale", "1", "-o", out,
                                  "--layout", "bhsd", "--dtype", "fp16", "--kept-tiles", "2", "--q",
                                  q + "," + q, "--k", both + ":k," + both + ":more"});
  CHECK(said["examples"] == 2);
  const float none = -std::numeric_limits<float>::infinity();
  CHECK(read_thresholds(out).values ==
        std::vector<float>{none, none, 5.25f, 6.75f, none, none, 10.5f, 13.5f});
  // What was written is read as well.
  const std::string other = (program.folder() / "other.safetensors").string();
  check_refused(
      {"calibrate", "causal", "--cpu", "-o", other, "--kept-tiles", "2", "--q", q, "--k", out}, 2,
      "invalid_argument", {"has 2 dimensions: it must have 4"}, program);
}

TEST_CASE("calibrate looks at its output before it computes, and keeps what it reads") {
  const Program program;
  const std::string k = (program.folder() / "k.safetensors").string();
  write(k, "anything");
  const auto refused = [&](const std::string& output, const std::vector<std::string>& parts) {
    check_refused({"calibrate", "causal with prune(t, kv=64)", "--cpu", "--kept-tiles", "2", "--q",
                   "nowhere.npy", "--k", k + ":k", "--fill",
                   "t=@" + (program.folder() / "t").string() + ",heads=1", "-o", output},
                  2, "invalid_argument", parts, program);
  };
  refused("/nonexistent/t", {"/nonexistent/t", "No such file or directory"});
  refused(program.folder().path().string(), {"Is a directory"});
  refused("", {"No such file or directory"});
  refused(k, {"'" + k + "' is read, too"});
  fs::create_symlink(k, program.folder() / "link");
  refused((program.folder() / "link").string(), {"is read, too"});
  write(program.folder() / "t", "thresholds");
  refused((program.folder() / "t").string(), {"is read, too"});
  CHECK(read(k) == "anything");
  refused((program.folder() / "out").string(), {"nowhere.npy: cannot be read"});
}

TEST_CASE("the program shows and explains pruned patterns") {
  const Program program;
  const Arguments square{"--seqlen-q", "256", "--seqlen-k", "256"};
  const std::string pattern = "causal with prune(t, kv=64)";
  const Json shown = program.json(Arguments{"show", pattern, "--fill", "t=keep"} + square);
  CHECK(shown["density"] == program.json(Arguments{"show", "causal"} + square)["density"]);
  CHECK(shown["pattern"] == pattern);
  check_refused(Arguments{"show", pattern, "--fill", "t=random:1"} + square, 2, "invalid_argument",
                {"'random:1' does not describe thresholds"}, program);
  check_refused(Arguments{"show", pattern, "--fill", "t=skip:1.5"} + square, 2, "invalid_argument",
                {"'1.5' is no number from 0 to 1"}, program);
  check_refused(Arguments{"show", pattern, "--fill", "t=@nowhere"} + square, 2, "invalid_argument",
                {"nowhere: cannot be read"}, program);
  check_refused(Arguments{"show", pattern, "--fill", "t=@/"} + square, 2, "invalid_argument",
                {"/: cannot be read: Is a directory"}, program);
  check_refused(Arguments{"show", pattern, "--fill", "t=@/dev/zero"} + square, 2,
                "invalid_argument", {"/dev/zero: cannot be read: File too large"}, program);
  const Json explained =
      program.json(Arguments{"explain", pattern, "--arch", "sm_90a", "--fill", "t=keep"} + square);
  CHECK(explained["tile"]["block_m"] == 128);
  CHECK(explained["tile"]["block_n"] == 64);
  check_refused({"source", "causal with prune(t, kv=128)", "--arch", "sm_80", "--head-dim", "256"},
                3, "unsupported", {"calibrate for kv=64"}, program);
}

TEST_CASE("calibrate refuses files and arguments that make no sense") {
  const Program program;
  const auto file = [&](const char* name, const std::string& bytes) {
    const std::string path = (program.folder() / name).string();
    write(path, bytes);
    return path;
  };
  const std::string good = file("good.npy", npy("<f4", "(512, 1, 16)", bytes_of(keys())));
  const auto refused = [&](const std::string& q, const char* message, const Arguments& more = {}) {
    CAPTURE(q);
    Arguments arguments{"calibrate", "causal", "--cpu",
                        "--q",       q,        "--k",
                        good,        "-o",     (program.folder() / "out").string()};
    arguments = arguments + (more.empty() ? Arguments{"--kept-tiles", "2"} : more);
    check_refused(arguments, 2, "invalid_argument", {message}, program);
  };
  refused("nowhere.npy", "nowhere.npy: cannot be read");
  const std::string folder = program.folder().path().string();
  refused(folder, (folder + ": cannot be read: Is a directory").c_str());
  fs::create_directory(program.folder() / "a.safetensors");
  refused(folder + "/a.safetensors:q", "a.safetensors: cannot be read: Is a directory");
  refused("/dev/zero", "/dev/zero: cannot be read: File too large");
  refused(file("a.npy", "PK"), "is no .npy file");
  refused(file("b.npy", npy("<i4", "(512, 1, 16)", bytes_of(keys()))), "is of type '<i4'");
  refused(file("c.npy", npy("<f4", "(512, 1, 16)", bytes_of(keys()), true)), "in Fortran's order");
  refused(file("d.npy", npy("<f4", "(512, 1, 16)", "abcd")),
          "has 4 bytes of values, not the 32768");
  refused(file("k.npy", npy("<f4", "(512, -1, 16)", bytes_of(keys()))), "whole numbers are read");
  refused(file("l.npy", npy("<f4", "(512.5, 1, 16)", bytes_of(keys()))), "whole numbers are read");
  refused(file("m.npy", npy(">f4", "(512, 1, 16)", bytes_of(keys()))), "is of type '>f4'");
  refused(file("n.npy", npy("<f4", "(4294967296, 4294967296, 4294967296)", "")), "elements");
  refused(file("x.npy", npy("<f4", "(99999999999999999999, 1, 1)", "")), "is too large");
  refused(file("o.npy", npy("<f4", "(8000000, 8000000, 8000000)", "")), "elements");
  refused(file("p.npy", npy("<f4", "()", "abcd")), "has 0 dimensions");
  std::string header = npy("<f4", "(512, 1, 16)", bytes_of(keys()));
  refused(file("q.npy", std::string(header).replace(header.find("'shape'"), 7, "'Shape'")),
          "has no 'shape': in its header");
  refused(file("r.npy", std::string(header).replace(header.find("False"), 5, "maybe")),
          "is no True or False");
  refused(file("s.npy", std::string(header).replace(6, 1, "\x07")), "is of version 7 of .npy");
  std::vector<float> odd = keys();
  odd[35] = std::nanf("");
  refused(file("t.npy", npy("<f4", "(512, 1, 16)", bytes_of(odd))),
          "holds nan at element 35: examples must be finite");
  odd[35] = -std::numeric_limits<float>::infinity();
  refused(file("u.npy", npy("<f4", "(512, 1, 16)", bytes_of(odd))), "holds -inf at element 35");
  odd[35] = 70000;
  refused(file("v.npy", npy("<f4", "(512, 1, 16)", bytes_of(odd))),
          "holds 70000, more than fp16 can: give --dtype bf16",
          {"--kept-tiles", "2", "--dtype", "fp16"});
  odd.assign(odd.size(), 3e38f);  // whose products are infinite
  const std::string large = file("w.npy", npy("<f4", "(512, 1, 16)", bytes_of(odd)));
  check_refused({"calibrate", "causal", "--cpu", "--q", large, "--k", large, "--kept-tiles", "2",
                 "-o", (program.folder() / "out").string()},
                2, "invalid_argument", {"key tile 0 is inf: examples must have finite scores"},
                program);
  refused(file("e.npy", npy("<f4", "(8192,)", bytes_of(keys()))), "has 1 dimensions");
  refused(file("f.npy", npy("<f4", "(512, 2, 8)", bytes_of(keys()))), "head_dim must be equal");
  refused(file("g.safetensors", "short"), "is no .safetensors file");
  refused(file("h.safetensors", safetensors("{", "")), "has a header that cannot be read");
  refused(file("i.safetensors", safetensors(R"({"a":{},"b":{}})", "")), "its tensors are a, b");
  refused(file("j.safetensors",
               safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "")),
          "beyond the end");
  for (const std::string scale : {"nan", "inf", "-1"}) {
    refused("nowhere.npy", ("--softmax-scale " + scale + " must be finite").c_str(),
            {"--kept-tiles", "2", "--softmax-scale", scale});
  }
  refused(good + "," + good, "--q names 2 files and --k 1");
  refused(good, "kept_tiles 0 must be from 1", {"--kept-tiles", "0"});
  refused(good, "kv = 32 is not supported", {"--kept-tiles", "2", "--kv", "32"});
  check_refused({"calibrate", "causal & segments(d)", "--cpu", "--q", good, "--k", good,
                 "--kept-tiles", "2", "-o", "x"},
                2, "invalid_argument", {"the input 'd' is missing"}, program);
  check_refused({"calibrate", "causal with prune(t, kv=64)", "--cpu", "--q", good, "--k", good,
                 "--kept-tiles", "2", "--fill", "t=keep", "-o", "x"},
                2, "invalid_argument", {"--fill t=keep"}, program);
}

TEST_CASE("files that are damaged anywhere are read as something, or refused") {
  const TemporaryFolder folder;
  const std::string npy_path = (folder / "a.npy").string();
  const std::string safe_path = (folder / "a.safetensors").string();
  const std::string good_npy = npy("<f4", "(2, 3, 4)", std::string(96, '\x3e'));
  const std::string good_safe =
      safetensors(R"({"__metadata__":{"kv":"64","rows":"128","pattern":"causal"},)"
                  R"("thresholds":{"dtype":"F32","shape":[4,6],"data_offsets":[0,96]}})",
                  std::string(96, '\x3e'));
  std::mt19937_64 random(3);
  constexpr std::string_view kBytes("0123456789()[]{},:'\"<>-. \0\xff\x7f", 34);
  int read = 0, refused = 0;
  const auto attempt = [&](const auto& reading) {
    try {
      reading();
      ++read;
    } catch (const girih::Error& error) {
      CHECK(error.code() == girih::Errc::invalid_argument);
      ++refused;
    }
  };
  for (int turn = 0; turn < 4000; ++turn) {
    const bool is_npy = turn % 2 == 0;
    std::string bytes = is_npy ? good_npy : good_safe;
    for (auto changes = random() % 4; changes > 0; --changes) {
      bytes[random() % bytes.size()] = kBytes[random() % kBytes.size()];
    }
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    const std::string& path = is_npy ? npy_path : safe_path;
    write(path, bytes);
    attempt([&] {
      const girih::tools::FileTensor tensor = girih::tools::read_tensor(path);
      std::int64_t count = 1;
      for (const std::int64_t extent : tensor.shape) count *= extent;
      CHECK(static_cast<std::int64_t>(tensor.values.size()) == count);
    });
    if (is_npy) continue;
    attempt([&] {
      const girih::CalibratedThresholds loaded = girih::load_thresholds(path);
      CHECK(loaded.values.size() == static_cast<std::size_t>(loaded.num_heads) *
                                        static_cast<std::size_t>(loaded.num_columns));
      CHECK((loaded.kv == 64 || loaded.kv == 128));
    });
  }
  CHECK(read > 500);
  CHECK(refused > 500);
}

TEST_CASE("thresholds of a file are refused for what they are not") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& metadata, const std::string& entry,
                           const std::string& values, const char* message) {
    const fs::path path = folder / "t.safetensors";
    write(path.string(),
          safetensors("{\"__metadata__\":" + metadata + ",\"thresholds\":" + entry + "}", values));
    std::string found;
    try {
      girih::load_thresholds(path.string());
    } catch (const girih::Error& error) {
      found = error.what();
    }
    CHECK_MESSAGE(found.find(message) != found.npos, found);
  };
  const std::string good = R"({"kv":"64","rows":"128"})";
  const std::string entry = R"({"dtype":"F32","shape":[1,2],"data_offsets":[0,8]})";
  const std::string values(8, '\0');
  refused(R"({"rows":"128"})", entry, values, "holds no thresholds of prune");
  refused(R"({"kv":"96","rows":"128"})", entry, values, "kv = 96 is not supported");
  refused(R"({"kv":"64","rows":"64"})", entry, values, "thresholds for 64 rows each: 128");
  for (const char* kv : {"", "6x", "-64", " 64", "+64", "536870913", "99999999999999999999"}) {
    refused(fmt::format(R"({{"kv":"{}","rows":"128"}})", kv), entry, values,
            fmt::format("says kv '{}', which is no number from 0 to 536870912", kv).c_str());
  }
  for (const char* scale : {"", "x", "-1", "nan", "inf", "0.1x"}) {
    refused(fmt::format(R"({{"kv":"64","rows":"128","softmax_scale":"{}"}})", scale), entry, values,
            fmt::format("says softmax_scale '{}', which must be a finite number", scale).c_str());
  }
  write((folder / "old.safetensors").string(),
        safetensors("{\"__metadata__\":" + good + ",\"thresholds\":" + entry + "}", values));
  CHECK_FALSE(girih::load_thresholds((folder / "old.safetensors").string()).softmax_scale);
  refused(good, R"({"dtype":"F16","shape":[1,2],"data_offsets":[0,8]})", values,
          "other than float32");
  refused(good, R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", values,
          "other than float32");
  refused(good, R"({"dtype":"F32","shape":[0,2],"data_offsets":[0,0]})", "", "0 heads x 2 columns");
  refused(good, R"({"dtype":"F32","shape":[2,2],"data_offsets":[0,8]})", values,
          "has 8 bytes of values, not the 16");
  refused(good, R"({"dtype":"F32","shape":[1,2],"data_offsets":[0,8]})", "abcd", "beyond the end");
  refused(good, entry, bytes_of({1, std::nanf("")}), "has NaN for head 0, column 1");
}
