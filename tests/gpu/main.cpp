// Tests that need a GPU. Without one: "skipped: <reason>", exit code 0. The last line is a count
// that tools/gpu_check quotes. doctest's options choose tests, e.g. --test-case='sanitizer:*'.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdio>

#include "support.hpp"

namespace {

doctest::TestRunStats totals;

// Names each test case with its time, and keeps the counts.
class Progress : public doctest::IReporter {
 public:
  explicit Progress(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& stats) override { totals = stats; }
  void test_case_start(const doctest::TestCaseData& test) override {
    name_ = test.m_name;
    begin_ = std::chrono::steady_clock::now();
  }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin_;
    fmt::print("{:7.2f} s  {}\n", seconds.count(), name_);
    std::fflush(stdout);
  }
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}

 private:
  const char* name_ = "";
  std::chrono::steady_clock::time_point begin_;
};
REGISTER_LISTENER("progress", 1, Progress);

}  // namespace

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  std::string reason;
  std::optional<girih::verify::Device> device;
  if (girih::verify::device_available(&reason)) {
    device.emplace();
    fmt::print("{}, {}, driver for CUDA {}\n", device->name(), device->arch(), device->driver());
  } else {
    fmt::print("skipped: {}\n", reason);
    context.addFilter("test-case-exclude", "*");
  }
  std::fflush(stdout);
  const int exit_code = context.run();
  if (context.shouldExit()) return exit_code;  // --help and the like
  fmt::print("{} kernels bound, {} rows checked\n", gpu_tests::kernels_bound.load(),
             gpu_tests::rows_checked.load());
  const auto run = totals.numTestCasesPassingFilters;
  fmt::print("{} passed, {} failed, {} skipped\n", run - totals.numTestCasesFailed,
             totals.numTestCasesFailed, totals.numTestCases - run);
  return exit_code;
}
