// The tuner's GPU: compiles a pattern's kernels, checks sampled rows of each and times launches.
#pragma once

#include <string>
#include <vector>

#include "girih/jit.hpp"
#include "tune/tuner.hpp"
#include "tune/tuning_db.hpp"
#include "verify/verify.hpp"

namespace girih::tools {

struct TuneRequest {
  Pattern pattern;
  Problem problem = {};
  jit::Options options = {};      ///< their tile is not used
  verify::Case parameters = {};   ///< batch, seqlen_q, seqlen_k and seed of the inputs
  verify::MaskRow mask_row = {};  ///< of the parameters
  double budget_seconds = 60;
};

struct TuneResult {
  tune::Outcome outcome;              ///< the first candidate is the heuristic one
  std::vector<tune::Record> records;  ///< of what was timed
};

/// What the records will call this GPU. @throws Error no_device.
tune::DeviceId present_device();

/// In the current context of the present device.
TuneResult tune_on_gpu(const TuneRequest& request);

/// Where the records of these options go. @throws Error invalid_argument when there is no cache.
std::filesystem::path tuning_file_of(const jit::Options& options);

}  // namespace girih::tools
