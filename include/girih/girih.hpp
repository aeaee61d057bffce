// Everything a host program needs: patterns, problems and the JIT.
#pragma once

#include "girih/combine.hpp"
#include "girih/compat.hpp"
#include "girih/error.hpp"
#include "girih/estimate.hpp"
#include "girih/jit.hpp"
#include "girih/pattern.hpp"
#include "girih/problem.hpp"
#include "girih/prune.hpp"
#include "girih/version.hpp"
