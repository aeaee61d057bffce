// Keys, the format of entries, and the folder: damage, distrust, failures, races and locks.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <set>
#include <thread>

#include "cache/disk_cache.hpp"
#include "cache/entry.hpp"
#include "cache/key.hpp"
#include "cache/maintain.hpp"
#include "girih/error.hpp"
#include "sandbox.hpp"
#include "support/fs.hpp"

using namespace girih::cache;
using girih::tests::in_child;
using girih::tests::start_child;
using girih::tests::TemporaryFolder;
using girih::tests::wait_for;
namespace fs = std::filesystem;
namespace support = girih::support;

namespace {

KeyParts parts() {
  return {"0.1.0",
          "sm_90a",
          "extern \"C\" __global__ void girih_fwd();\n",
          {{"girih/a.cuh", "00ff"}, {"girih/b.cuh", "ff00"}},
          {"--std=c++20", "--no-cache"}};
}

/// An entry with every field set, for the key of `parts()`.
Entry entry_with(const std::string& cubin) {
  const KeyParts made_from = parts();
  Entry entry;
  entry.key = make_key(made_from).hex;
  entry.arch = made_from.arch;
  entry.generator_version = made_from.generator_version;
  entry.pattern = "causal & (sink(128) | window(left=255))";
  entry.source = made_from.source;
  entry.manifest = made_from.manifest;
  entry.options = made_from.options;
  entry.symbol = "girih_fwd";
  entry.registers = 168;
  entry.spill_bytes = 4;
  entry.stack_bytes = 8;
  entry.shared_bytes = 99328;
  entry.threads = 128;
  entry.compile_ms = 412.625;
  entry.compiler = "NVRTC 13.0";
  entry.cubin = cubin;
  return entry;
}

const Key kKey = make_key(parts());
const Entry kEntry =
    entry_with(std::string("\x7f"
                           "ELF\0cubin",
                           10));

DiskCache named(const fs::path& folder, std::vector<fs::path> layers = {}) {
  return DiskCache({folder, false, std::move(layers)});
}
DiskCache per_user(const fs::path& folder) { return DiskCache({folder, true, {}}); }

std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  for (const auto& file : fs::recursive_directory_iterator(folder))
    if (!file.is_directory()) files.push_back(file.path());
  return files;
}

fs::path aside(fs::path path) { return path += ".bad"; }

void overwrite(const fs::path& path, const std::string& bytes) {
  REQUIRE(support::write_file_atomically(path, bytes) == "");
}

int mode_of(const fs::path& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 ? static_cast<int>(info.st_mode & 0777) : -1;
}

}  // namespace

// --- Keys ---------------------------------------------------------------------------------------

TEST_CASE("a key is the same on every machine") {
  // Pinned: whoever changes this makes every existing cache useless.
  CHECK(kKey.hex == "44a70ed382cbef1e1640c43c35662134");
  CHECK(kKey.arch == "sm_90a");
  CHECK(kKey.relative_path() ==
        fs::path("sm_90a") / kKey.hex.substr(0, 2) / (kKey.hex.substr(2) + ".girih"));
}

TEST_CASE("a key changes with each of its parts and nothing else") {
  const std::map<std::string, std::function<void(KeyParts&)>> changes = {
      {"generator", [](KeyParts& p) { p.generator_version = "0.1.1"; }},
      {"arch", [](KeyParts& p) { p.arch = "sm_90"; }},
      {"source", [](KeyParts& p) { p.source += " "; }},
      {"template name", [](KeyParts& p) { p.manifest[0].first = "girih/c.cuh"; }},
      {"template digest", [](KeyParts& p) { p.manifest[1].second = "ff01"; }},
      {"one template less", [](KeyParts& p) { p.manifest.pop_back(); }},
      {"option", [](KeyParts& p) { p.options[0] = "--std=c++17"; }},
      {"order of options", [](KeyParts& p) { std::swap(p.options[0], p.options[1]); }},
      {"no options", [](KeyParts& p) { p.options.clear(); }},
      // The same characters, otherwise divided.
      {"between fields", [](KeyParts& p) { p.generator_version = "0.1.0s", p.arch = "m_90a"; }},
      {"between options", [](KeyParts& p) { p.options = {"--std=c++20--no-cache"}; }},
      {"between lists",
       [](KeyParts& p) {
         p.options.insert(p.options.begin(), {p.manifest[1].first, p.manifest[1].second});
         p.manifest.pop_back();
       }},
  };
  std::set<std::string> keys{kKey.hex};
  for (const auto& [name, change] : changes) {
    CAPTURE(name);
    KeyParts changed = parts();
    change(changed);
    CHECK(keys.insert(make_key(changed).hex).second);
  }
  CHECK(in_child([] {
          ::setenv("GIRIH_CACHE_DIR", "/elsewhere", 1);
          ::setenv("LC_ALL", "de_DE.UTF-8", 1);
          if (::chdir("/") != 0) return 1;
          return make_key(parts()) == kKey ? 0 : 2;
        }) == 0);
}

// --- The format ---------------------------------------------------------------------------------

TEST_CASE("an entry survives its bytes, whatever its cubin holds") {
  std::string every_byte;
  for (int byte = 0; byte < 256; ++byte) every_byte += static_cast<char>(byte);
  for (const std::string& cubin : {std::string(), kEntry.cubin, every_byte}) {
    const Entry entry = entry_with(cubin);
    const std::string bytes = serialize(entry);
    Entry read;
    std::string problem;
    REQUIRE(deserialize(bytes, read, problem));
    CHECK(read == entry);
    CHECK((bytes.size() - cubin.size()) % 64 == 0);  // the cubin is aligned in the file
  }
}

TEST_CASE("text that is not UTF-8 does not make an entry unwritable") {
  Entry entry = kEntry;
  entry.pattern = "caus\xff";
  Entry read;
  std::string problem;
  REQUIRE(deserialize(serialize(entry), read, problem));
  CHECK(read.pattern == "caus\xef\xbf\xbd");
  CHECK(read.cubin == entry.cubin);
}

TEST_CASE("an entry cut at any byte is refused") {
  const std::string bytes = serialize(kEntry);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CAPTURE(size);
    Entry read;
    std::string problem;
    CHECK(!deserialize(bytes.substr(0, size), read, problem));
    CHECK(!problem.empty());
    CHECK(read == Entry{});
  }
}

TEST_CASE("an entry with any byte changed is refused") {
  const std::string bytes = serialize(kEntry);
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (const char flip : {'\x01', '\x80', '\xff'}) {
      CAPTURE(at);
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      Entry read;
      std::string problem;
      CHECK(!deserialize(changed, read, problem));
    }
  Entry read;
  std::string problem;
  CHECK(!deserialize(bytes + '\0', read, problem));
}

TEST_CASE("a refused entry says what is wrong with it") {
  const auto problem_of = [](const std::string& bytes) {
    Entry read;
    std::string problem;
    CHECK(!deserialize(bytes, read, problem));
    return problem;
  };
  std::string other_version = serialize(kEntry);
  other_version[7] = 2;
  CHECK(problem_of("") == "empty");
  CHECK(problem_of("GIRIH") == "truncated");
  CHECK(problem_of(std::string(100, 'x')) == "not a cache entry");
  CHECK(problem_of(other_version) == "another version of the format");
  CHECK(problem_of(serialize(kEntry).substr(0, 200)) ==
        "truncated or altered: its checksum differs");
}

// --- The folder ---------------------------------------------------------------------------------

TEST_CASE("what is put is found again, by another cache object too") {
  const TemporaryFolder folder;
  for (const DiskCache& cache : {named(folder / "a/b"), per_user(folder / "c/d")}) {
    CHECK(!cache.get(kKey));
    CHECK(cache.put(kKey, kEntry));
    CHECK(cache.get(kKey) == kEntry);
    const Entry newer = entry_with("another cubin");
    CHECK(cache.put(kKey, newer));
    CHECK(cache.get(kKey) == newer);
  }
  CHECK(named(folder / "a/b").get(kKey) == entry_with("another cubin"));
  CHECK(files_below(folder.path()).size() == 2);
  CHECK(named(folder / "a/b").path_of(kKey) == (folder / "a/b") / "v1" / "sm_90a" /
                                                   kKey.hex.substr(0, 2) /
                                                   (kKey.hex.substr(2) + ".girih"));
}

TEST_CASE("folders are made by the first write, for their owner only") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "x/y");
  CHECK(!cache.get(kKey));
  CHECK(!fs::exists(folder / "x"));
  REQUIRE(cache.put(kKey, kEntry));
  for (fs::path made = cache.path_of(kKey).parent_path(); made != folder.path();
       made = made.parent_path())
    CHECK(mode_of(made) == 0700);
  CHECK((mode_of(cache.path_of(kKey)) & 0022) == 0);
}

TEST_CASE("a per-user cache works under any umask") {
  const TemporaryFolder folder;
  for (const mode_t mask : {mode_t{0}, mode_t{0002}, mode_t{0077}})
    CHECK(in_child([&] {
            ::umask(mask);
            const DiskCache cache = per_user(folder / fmt::format("umask-{}", mask));
            return cache.put(kKey, kEntry) && cache.get(kKey) == kEntry ? 0 : 1;
          }) == 0);
}

TEST_CASE("without a folder nothing is kept and nothing fails") {
  const DiskCache cache = named({});
  CHECK(!cache.put(kKey, kEntry));
  CHECK(!cache.get(kKey));
  CHECK(!cache.lock(kKey).exclusive());
  CHECK(cache.path_of(kKey).empty());
}

TEST_CASE("the default folder follows XDG_CACHE_HOME, then HOME") {
  const auto default_with = [](const char* xdg, const char* home, const fs::path& expected) {
    return in_child([&] {
      xdg != nullptr ? ::setenv("XDG_CACHE_HOME", xdg, 1) : ::unsetenv("XDG_CACHE_HOME");
      home != nullptr ? ::setenv("HOME", home, 1) : ::unsetenv("HOME");
      return default_directory() == expected ? 0 : 1;
    });
  };
  CHECK(default_with("/x", "/srv/u", "/x/girih") == 0);
  CHECK(default_with(nullptr, "/srv/u", "/srv/u/.cache/girih") == 0);
  CHECK(default_with("", "/srv/u", "/srv/u/.cache/girih") == 0);
  CHECK(default_with("relative", "/srv/u", "/srv/u/.cache/girih") == 0);
  CHECK(default_with(nullptr, nullptr, "") == 0);
  CHECK(default_with(nullptr, "", "") == 0);
}

TEST_CASE("layers are looked up after the folder, in order, and never written") {
  const TemporaryFolder folder;
  const Entry first = entry_with("first"), second = entry_with("second"), own = entry_with("own");
  REQUIRE(named(folder / "1").put(kKey, first));
  REQUIRE(named(folder / "2").put(kKey, second));
  const DiskCache cache = named(folder / "own", {folder / "missing", folder / "1", folder / "2"});
  CHECK(cache.get(kKey) == first);
  CHECK(!fs::exists(folder / "own"));
  REQUIRE(cache.put(kKey, own));
  CHECK(cache.get(kKey) == own);
  CHECK(named({}, {folder / "2"}).get(kKey) == second);

  overwrite(named(folder / "1").path_of(kKey), "damaged");
  fs::remove_all(folder / "own");
  CHECK(cache.get(kKey) == second);
  CHECK(files_below(folder / "1").size() == 1);  // left as it is
  CHECK(support::read_file(named(folder / "1").path_of(kKey)) == "damaged");
}

TEST_CASE("a damaged or foreign entry is a miss, put aside, and replaced by the next put") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder.path());
  const fs::path path = cache.path_of(kKey);
  REQUIRE(cache.put(kKey, kEntry));
  const std::string good = serialize(kEntry);

  std::map<std::string, std::string> damages = {{"empty", ""},
                                                {"foreign",
                                                 "\x7f"
                                                 "ELF not ours"}};
  damages["version"] = good;
  damages["version"][7] = 2;
  for (const std::size_t at :
       {std::size_t{0}, std::size_t{8}, std::size_t{24}, good.size() / 2, good.size() - 1}) {
    damages[fmt::format("cut at {}", at)] = good.substr(0, at);
    damages[fmt::format("changed at {}", at)] = good;
    damages[fmt::format("changed at {}", at)][at] ^= 0x10;
  }
  Entry other_arch = kEntry, other_key = kEntry;
  other_arch.arch = "sm_90";
  other_key.key = std::string(32, '0');
  damages["for another arch"] = serialize(other_arch);
  damages["of another key"] = serialize(other_key);

  for (const auto& [name, bytes] : damages) {
    CAPTURE(name);
    overwrite(path, bytes);
    CHECK(!cache.get(kKey));
    CHECK(!fs::exists(path));
    CHECK(support::read_file(aside(path)) == bytes);
    CHECK(cache.put(kKey, kEntry));
    CHECK(cache.get(kKey) == kEntry);
    fs::remove(aside(path));
  }
}

TEST_CASE("what is not a file in an entry's place is put aside without waiting for it") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder.path());
  const fs::path path = cache.path_of(kKey);
  fs::create_directories(path);
  CHECK(!cache.get(kKey));
  CHECK(fs::is_directory(aside(path)));
  fs::remove(aside(path));
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  CHECK(!cache.get(kKey));
  CHECK(fs::is_fifo(aside(path)));
}

// --- Trust --------------------------------------------------------------------------------------

TEST_CASE("the per-user folder refuses symbolic links below it, a named one follows them") {
  const TemporaryFolder folder;
  REQUIRE(named(folder / "elsewhere").put(kKey, kEntry));
  const fs::path real = named(folder / "elsewhere").path_of(kKey);
  const DiskCache strict = per_user(folder / "cache"), trusting = named(folder / "cache");
  const fs::path path = strict.path_of(kKey);

  SUBCASE("an entry") {
    REQUIRE(strict.put(kKey, kEntry));
    fs::remove(path);
    fs::create_symlink(real, path);
    CHECK(trusting.get(kKey) == kEntry);
    CHECK(!strict.get(kKey));
    CHECK(fs::is_symlink(aside(path)));
    CHECK(fs::exists(real));
  }
  SUBCASE("a folder on the way") {
    fs::create_directory(folder / "cache");
    fs::permissions(folder / "cache", fs::perms::owner_all);
    fs::create_symlink(folder / "elsewhere/v1", folder / "cache/v1");
    CHECK(trusting.get(kKey) == kEntry);
    CHECK(!strict.get(kKey));
    CHECK(!strict.put(kKey, entry_with("planted")));
    CHECK(!strict.lock(kKey).exclusive());
    CHECK(trusting.get(kKey) == kEntry);
  }
  SUBCASE("but the folder itself may be one, to another disk") {
    fs::create_symlink(folder / "elsewhere", folder / "cache");
    CHECK(strict.get(kKey) == kEntry);
  }
}

TEST_CASE("a folder that everyone can write to is not used") {
  const TemporaryFolder folder;
  const DiskCache strict = per_user(folder / "cache"), trusting = named(folder / "cache");
  REQUIRE(trusting.put(kKey, kEntry));
  const fs::path entry = trusting.path_of(kKey);
  for (const fs::path& loose : {folder / "cache", entry.parent_path()}) {
    CAPTURE(loose);
    const auto before = fs::status(loose).permissions();
    fs::permissions(loose, fs::perms(0777));
    CHECK(!trusting.get(kKey));
    CHECK(!trusting.put(kKey, kEntry));
    CHECK(!strict.get(kKey));
    CHECK(!named({}, {folder / "cache"}).get(kKey));

    fs::permissions(loose, fs::perms(0770));  // its group: trusted only where it was named
    CHECK(trusting.get(kKey) == kEntry);
    CHECK(!strict.get(kKey));
    fs::permissions(loose, before);
    CHECK(strict.get(kKey) == kEntry);
  }
  fs::permissions(folder / "cache", fs::perms(0777));
  CHECK(!trusting.lock(kKey).exclusive());
  fs::permissions(folder / "cache", fs::perms(0700));
  fs::permissions(entry, fs::perms(0666));
  CHECK(!trusting.get(kKey));
}

TEST_CASE("the per-user folder must belong to the user") {
  if (::geteuid() != 0) {
    MESSAGE("skipped: only root can give files away");
    return;
  }
  const TemporaryFolder folder;
  REQUIRE(named(folder / "cache").put(kKey, kEntry));
  const fs::path entry = named(folder / "cache").path_of(kKey);
  for (const fs::path& given : {folder / "cache", entry.parent_path(), entry}) {
    CAPTURE(given);
    REQUIRE(::chown(given.c_str(), 65534, 65534) == 0);
    CHECK(named(folder / "cache").get(kKey) == kEntry);
    CHECK(!per_user(folder / "cache").get(kKey));
    if (fs::exists(aside(entry))) fs::rename(aside(entry), entry);
    REQUIRE(::chown(given.c_str(), 0, 0) == 0);
    CHECK(per_user(folder / "cache").get(kKey) == kEntry);
  }
}

// --- Failures -----------------------------------------------------------------------------------

TEST_CASE("a cache that cannot be written is a cache without entries") {
  const TemporaryFolder folder;
  overwrite(folder / "file", "x");
  for (const fs::path& impossible : {folder / "file", folder / "file/cache", fs::path("/proc/x")}) {
    CAPTURE(impossible);
    const DiskCache cache = named(impossible);
    CHECK(!cache.get(kKey));
    CHECK(!cache.lock(kKey).exclusive());
    CHECK(!cache.put(kKey, kEntry));
    CHECK(!cache.get(kKey));
  }
}

TEST_CASE("a read-only folder still serves its entries") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "cache");
  REQUIRE(cache.put(kKey, kEntry));
  std::vector<fs::path> folders;
  for (fs::path p = cache.path_of(kKey).parent_path(); p != folder.path(); p = p.parent_path())
    folders.push_back(p);
  fs::permissions(folder.path(), fs::perms(0755));
  for (const fs::path& p : folders) fs::permissions(p, fs::perms(0555));
  CHECK(in_child([&] {
          if (::geteuid() == 0 && ::seteuid(65534) != 0) return 1;  // root can write anyway
          if (cache.get(kKey) != kEntry) return 2;
          if (cache.put(kKey, entry_with("new"))) return 3;
          if (cache.lock(kKey).exclusive()) return 4;
          return cache.get(kKey) == kEntry ? 0 : 5;
        }) == 0);
  for (const fs::path& p : folders) fs::permissions(p, fs::perms(0755));
}

TEST_CASE("a full disk leaves no entry and no rubbish") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "cache");
  CHECK(in_child([&] {
          // The limit holds for a log file too: the warning must not go there.
          ::dup2(::open("/dev/null", O_WRONLY), STDERR_FILENO);
          const rlimit limit{4096, 4096};
          ::setrlimit(RLIMIT_FSIZE, &limit);
          if (cache.put(kKey, entry_with(std::string(1 << 20, 'x')))) return 1;
          if (!files_below(folder.path()).empty()) return 2;
          if (cache.get(kKey)) return 3;
          return cache.put(kKey, kEntry) ? 0 : 4;  // a small one fits
        }) == 0);
  CHECK(cache.get(kKey) == kEntry);
}

TEST_CASE("a writer killed at any time leaves the old entry, the new one or none") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "cache");
  const Entry a = entry_with(std::string(4 << 20, 'a')), b = entry_with(std::string(4 << 20, 'b'));
  const fs::path path = cache.path_of(kKey);
  const auto temporaries = [&] {
    const auto files = files_below(folder.path());
    return std::count_if(files.begin(), files.end(), [](const fs::path& file) {
      return file.filename().string().starts_with(support::kTemporaryPrefix);
    });
  };

  bool found = false;
  std::ptrdiff_t killed_in_the_middle = 0;
  for (int round = 0; round < 20; ++round) {
    const pid_t writer = start_child([&] {
      while (true) {
        cache.put(kKey, a);
        cache.put(kKey, b);
      }
      return 0;
    });
    // Half of the time as soon as it writes, half of the time whenever.
    const std::ptrdiff_t before = killed_in_the_middle;
    if (round % 2 == 0)
      while (temporaries() == before) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 2 == 0 ? round / 4 : 2 * round));
    ::kill(writer, SIGKILL);
    CHECK(wait_for(writer) == 128 + SIGKILL);
    killed_in_the_middle = temporaries();

    const auto entry = cache.get(kKey);
    CHECK(!fs::exists(aside(path)));
    CHECK((entry || !found));
    if (entry) CHECK((*entry == a || *entry == b));
    found = found || entry.has_value();
  }
  CHECK(killed_in_the_middle > 0);
  CHECK(cache.put(kKey, a));
  CHECK(cache.get(kKey) == a);
}

TEST_CASE("what killed writers left is removed after an hour") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "cache");
  REQUIRE(cache.put(kKey, kEntry));
  const fs::path shelf = cache.path_of(kKey).parent_path();
  const fs::path old = shelf / fmt::format("{}old", support::kTemporaryPrefix);
  const fs::path fresh = shelf / fmt::format("{}fresh", support::kTemporaryPrefix);
  overwrite(old, "x");
  overwrite(fresh, "x");
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::hours(2));
  REQUIRE(cache.put(kKey, kEntry));
  CHECK(!fs::exists(old));
  CHECK(fs::exists(fresh));
  CHECK(cache.get(kKey) == kEntry);
}

// --- Locks --------------------------------------------------------------------------------------

namespace {

using Clock = std::chrono::steady_clock;

/// Starts a child that takes the lock of kKey and keeps it until it is killed; returns when it
/// has it.
pid_t start_holder(const DiskCache& cache) {
  int ready[2];
  if (::pipe(ready) != 0) return -1;
  const pid_t holder = start_child([&] {
    const auto lock = cache.lock(kKey);
    if (!lock.exclusive()) return 1;
    if (::write(ready[1], "x", 1) != 1) return 2;
    while (true) ::pause();
    return 0;
  });
  char byte = 0;
  ::close(ready[1]);
  const bool held = ::read(ready[0], &byte, 1) == 1;
  ::close(ready[0]);
  CHECK(held);
  return holder;
}

}  // namespace

TEST_CASE("of eight processes on one empty cache one compiles and all get its bytes") {
  const TemporaryFolder folder;
  int gate[2];
  REQUIRE(::pipe(gate) == 0);
  std::vector<pid_t> children;
  for (int i = 0; i < 8; ++i)
    children.push_back(start_child([&] {
      ::close(gate[1]);
      char byte = 0;
      if (::read(gate[0], &byte, 1) != 0) return 1;  // until the parent opens the gate
      const DiskCache cache = named(folder / "cache");
      std::optional<Entry> entry = cache.get(kKey);
      if (!entry) {
        const auto lock = cache.lock(kKey);
        if (!lock.exclusive()) return 2;
        entry = cache.get(kKey);
        if (!entry) {
          const int compilations =
              ::open((folder / "compilations").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
          if (::write(compilations, "x", 1) != 1) return 3;
          std::this_thread::sleep_for(std::chrono::milliseconds(200));
          entry = entry_with(fmt::format("compiled by {}", ::getpid()));
          if (!cache.put(kKey, *entry)) return 4;
        }
      }
      const std::string why = support::write_file_atomically(
          folder / fmt::format("result-{}", ::getpid()), entry->cubin);
      return why.empty() ? 0 : 5;
    }));
  ::close(gate[0]);
  ::close(gate[1]);

  std::set<std::string> results;
  for (const pid_t child : children) {
    CHECK(wait_for(child) == 0);
    results.insert(support::read_file(folder / fmt::format("result-{}", child)).value_or("none"));
  }
  CHECK(support::read_file(folder / "compilations") == "x");
  CHECK(results.size() == 1);
  CHECK(results.begin()->starts_with("compiled by "));
  CHECK(files_below(folder / "cache").size() == 1);  // no lock file stays behind
}

TEST_CASE("threads of one process exclude one another too") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "cache");
  int inside = 0, most = 0, entered = 0;  // guarded by the lock under test
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        const auto lock = cache.lock(kKey);
        if (!lock.exclusive()) continue;
        most = std::max(most, ++inside);
        ++entered;
        std::this_thread::yield();
        --inside;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(most == 1);
  CHECK(entered == 30);
}

TEST_CASE("a lock is waited for no longer than asked, and other keys are free") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "cache");
  const auto held = cache.lock(kKey);
  REQUIRE(held.exclusive());
  const Clock::time_point start = Clock::now();
  CHECK(!cache.lock(kKey, 100).exclusive());
  CHECK(Clock::now() - start >= std::chrono::milliseconds(100));
  CHECK(Clock::now() - start < std::chrono::seconds(10));
  CHECK(!cache.lock(kKey, 0).exclusive());

  KeyParts other = parts();
  other.source += "// other";
  CHECK(cache.lock(make_key(other), 0).exclusive());
}

TEST_CASE("a lock is free again when its holder is done, moved from or killed") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "cache");
  { const auto lock = cache.lock(kKey); }
  CHECK(cache.lock(kKey, 0).exclusive());
  {
    auto lock = cache.lock(kKey, 0);
    const auto moved = std::move(lock);
    CHECK(moved.exclusive());
    CHECK(!lock.exclusive());
    CHECK(!cache.lock(kKey, 0).exclusive());
  }
  CHECK(cache.lock(kKey, 0).exclusive());

  const pid_t holder = start_holder(cache);
  CHECK(!cache.lock(kKey, 50).exclusive());
  ::kill(holder, SIGKILL);
  CHECK(wait_for(holder) == 128 + SIGKILL);
  const auto lock = cache.lock(kKey, 5000);
  CHECK(lock.exclusive());
}

TEST_CASE("a process forked by a lock's holder does not keep the lock") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder / "cache");
  pid_t bystander = 0;
  {
    const auto lock = cache.lock(kKey);
    REQUIRE(lock.exclusive());
    bystander = start_child([] {
      ::pause();
      return 0;
    });
  }
  CHECK(cache.lock(kKey, 1000).exclusive());
  ::kill(bystander, SIGKILL);
  wait_for(bystander);
}

namespace {

/// Sets when a file was last used.
void set_age(const fs::path& path, std::chrono::hours age) {
  fs::last_write_time(path, fs::file_time_type::clock::now() - age);
}

/// Entries for `count` different keys in a folder, the first unused for longest.
std::vector<Key> fill(const fs::path& folder, int count) {
  std::vector<Key> keys;
  for (int i = 0; i < count; ++i) {
    KeyParts made_from = parts();
    made_from.source += std::to_string(i);
    Entry entry = entry_with(std::string(1000, 'x'));
    entry.source = made_from.source;
    keys.push_back(make_key(made_from));
    entry.key = keys.back().hex;
    REQUIRE(named(folder).put(keys.back(), entry));
    set_age(named(folder).path_of(keys.back()), std::chrono::hours(10 * (count - i)));
  }
  return keys;
}

Folder own(const fs::path& folder) { return {.path = folder, .writable = true}; }

}  // namespace

TEST_CASE("a hit stamps its file as used, at most once an hour, and never in a layer") {
  const TemporaryFolder folder, layer;
  const auto age = [](const fs::path& path) {
    return fs::file_time_type::clock::now() - fs::last_write_time(path);
  };
  REQUIRE(named(folder.path()).put(kKey, kEntry));
  const fs::path path = named(folder.path()).path_of(kKey);
  set_age(path, std::chrono::hours(5));
  CHECK(named(folder.path()).find(kKey).has_value());
  CHECK(age(path) > std::chrono::hours(4));  // find leaves no trace
  CHECK(named(folder.path()).get(kKey).has_value());
  CHECK(age(path) < std::chrono::hours(1));
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::minutes(30));
  CHECK(named(folder.path()).get(kKey).has_value());
  CHECK(age(path) > std::chrono::minutes(29));

  REQUIRE(named(layer.path()).put(kKey, kEntry));
  const fs::path in_layer = named(layer.path()).path_of(kKey);
  set_age(in_layer, std::chrono::hours(5));
  fs::remove(path);
  CHECK(named(folder.path(), {layer.path()}).get(kKey).has_value());
  CHECK(age(in_layer) > std::chrono::hours(4));
}

TEST_CASE("find says where an entry is and leaves a damaged one alone") {
  const TemporaryFolder folder, layer;
  REQUIRE(named(folder.path()).put(kKey, kEntry));
  REQUIRE(named(layer.path()).put(kKey, kEntry));
  const DiskCache cache = named(folder.path(), {layer.path()});
  CHECK(cache.find(kKey)->path == named(folder.path()).path_of(kKey));
  CHECK(cache.find(kKey)->entry == kEntry);
  REQUIRE(support::write_file_atomically(named(folder.path()).path_of(kKey), "damaged") == "");
  CHECK(cache.find(kKey)->path == named(layer.path()).path_of(kKey));
  CHECK(files_below(folder.path()).size() == 1);
  CHECK(!DiskCache({}).find(kKey).has_value());
}

TEST_CASE("a listing holds every entry, what is wrong with it, and what was put aside") {
  const TemporaryFolder folder;
  CHECK(list(own(folder / "none")).items.empty());

  const std::vector<Key> keys = fill(folder.path(), 3);
  const DiskCache cache = named(folder.path());
  { const auto lock = cache.lock(keys[0]); }  // the folder of locks is none of an architecture
  REQUIRE(support::write_file_atomically(cache.path_of(keys[1]), "damaged") == "");
  Entry forged = entry_with("cubin");
  forged.key = keys[2].hex;  // its checksum is right, its key is not made from its source
  REQUIRE(cache.put(keys[2], forged));
  fs::path aside = cache.path_of(keys[0]);
  aside += ".bad";
  REQUIRE(support::write_file_atomically(aside, "put aside") == "");

  const Listing listing = list(own(folder.path()));
  REQUIRE(listing.items.size() == 3);
  std::map<std::string, Item> by_key;
  for (const Item& item : listing.items) by_key.emplace(item.key.hex, item);
  const Item& good = by_key.at(keys[0].hex);
  CHECK(good.problem.empty());
  CHECK(good.key == keys[0]);
  CHECK(good.entry.pattern == kEntry.pattern);
  CHECK(good.entry.cubin.empty());
  CHECK(good.bytes == fs::file_size(cache.path_of(keys[0])));
  const auto age = std::chrono::system_clock::now() - good.last_used;
  CHECK(std::chrono::abs(age - std::chrono::hours(30)) < std::chrono::minutes(1));
  CHECK(by_key.at(keys[1].hex).problem == "truncated");
  CHECK(by_key.at(keys[2].hex).problem == "its key was not made from its contents");
  CHECK(listing.rubbish == std::vector<fs::path>{aside});
  CHECK(files_below(folder.path()).size() == 4);  // nothing was moved
}

TEST_CASE("an entry is put aside only where it is still damaged") {
  const TemporaryFolder folder;
  const DiskCache cache = named(folder.path());
  REQUIRE(cache.put(kKey, kEntry));
  const fs::path path = cache.path_of(kKey);
  const auto listed = [&] {
    Listing listing = list(own(folder.path()));
    REQUIRE(listing.items.size() == 1);
    return listing.items.front();
  };
  overwrite(path, "damaged");
  Item replaced = listed(), gone = replaced, damaged = replaced;
  CHECK(!replaced.problem.empty());
  REQUIRE(cache.put(kKey, kEntry));  // by a job, behind the listing's back
  CHECK_FALSE(put_aside_if_damaged(own(folder.path()), replaced));
  CHECK(replaced.problem.empty());
  CHECK(cache.find(kKey));
  fs::remove(path);
  CHECK_FALSE(put_aside_if_damaged(own(folder.path()), gone));
  CHECK(!gone.problem.empty());
  overwrite(path, "damaged");
  CHECK(put_aside_if_damaged(own(folder.path()), damaged));
  CHECK(fs::exists(aside(path)));
  CHECK_FALSE(fs::exists(path));
}

TEST_CASE("a folder that is not to be trusted cannot be listed") {
  const TemporaryFolder folder;
  fill(folder.path(), 1);
  fs::permissions(folder.path(), fs::perms::all);
  CHECK_THROWS_WITH_AS(list(own(folder.path())), doctest::Contains("everyone can write to it"),
                       girih::Error);
}

TEST_CASE("pruning removes what is unused for longest, down to the limit") {
  const TemporaryFolder folder;
  const std::vector<Key> keys = fill(folder.path(), 4);
  const DiskCache cache = named(folder.path());
  const auto size = fs::file_size(cache.path_of(keys[0]));

  Pruned pruned = prune(own(folder.path()), {.max_bytes = 2 * size + 1}, true);
  CHECK(pruned.removed == 2);
  CHECK(pruned.kept_bytes == 2 * size);
  CHECK(files_below(folder.path()).size() == 4);  // a dry run

  pruned = prune(own(folder.path()), {.max_bytes = 2 * size + 1}, false);
  CHECK(pruned.removed == 2);
  CHECK(pruned.removed_bytes == 2 * size);
  CHECK(pruned.kept == 2);
  CHECK(pruned.failures.empty());
  CHECK(!cache.find(keys[0]));
  CHECK(!cache.find(keys[1]));
  CHECK(cache.find(keys[2]).has_value());
  CHECK(cache.find(keys[3]).has_value());

  CHECK(prune(own(folder.path()), {.max_bytes = 2 * size}, false).removed == 0);
  CHECK(prune(own(folder.path()), {.older_than = std::chrono::hours(15)}, false).removed == 1);
  CHECK(cache.find(keys[3]).has_value());
  CHECK(prune(own(folder.path()), {.all = true}, false).removed == 1);
  CHECK(files_below(folder.path()).empty());
}

TEST_CASE("pruning takes damaged entries first and always, and what was put aside") {
  const TemporaryFolder folder;
  const std::vector<Key> keys = fill(folder.path(), 3);
  const DiskCache cache = named(folder.path());
  REQUIRE(support::write_file_atomically(cache.path_of(keys[2]), "damaged") == "");
  fs::path aside = cache.path_of(keys[0]);
  aside += ".bad";
  REQUIRE(support::write_file_atomically(aside, "put aside") == "");
  const Pruned pruned = prune(own(folder.path()), {.max_bytes = 1 << 30}, false);
  CHECK(pruned.removed == 1);
  CHECK(pruned.kept == 2);
  CHECK(pruned.rubbish == 1);
  CHECK(files_below(folder.path()).size() == 2);
}
