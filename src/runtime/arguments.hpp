// Arguments of a launch: checked against the problem, and turned into kernel parameters.
#pragma once

#include <span>

#include "cuda/tensor_map.hpp"
#include "girih/jit.hpp"
#include "girih/shared/params.cuh"
#include "girih/shared/tensor_map.cuh"
#include "pattern/grid.hpp"
#include "plan/bricks.hpp"

namespace girih::runtime {

/// The problem that these tensors pose. @throws Error invalid_argument when their shapes disagree.
Problem problem_of(const jit::Args& args);

/// The tensors of `params`, as the Hopper kernel wants them, which copies so many rows of a head at
/// once. @throws Error driver.
FwdTensorMaps tensor_maps(const jit::Args& args, const FwdParams& params, const Problem& problem,
                          int query_rows, int key_rows);

/// Keys and values in boxes of one row. @throws Error driver.
FwdRowMaps row_maps(const jit::Args& args, const FwdParams& params, const Problem& problem);

/// A tensor over a grid of tokens, in boxes of a brick of a dilation group: see shared/bricks.cuh.
/// @throws Error invalid_argument where the copy engine cannot take it.
cuda::TiledTensor tensor_over_grid(const Tensor& tensor, const void* data, const Strides& strides,
                                   const Problem& problem, const DilatedGrid& grid,
                                   const GridPoint& brick);

/// Whether the copy engine cannot take some tensor so for the distance of its heads: then tiles
/// must be tokens in a row, as with Problem::partial_keys.
bool is_too_far_for_bricks(const jit::Args& args);

/// Queries, keys and values so. @throws Error driver, or as tensor_over_grid().
FwdBrickMaps brick_maps(const jit::Args& args, const FwdParams& params, const Problem& problem,
                        const DilatedGrid& grid, const plan::Bricks& bricks);

/// @throws Error invalid_argument for sequences of fewer keys than tensors have.
void refuse_partial_keys(const jit::Args& args);

/// Everything but the order of tiles, for a pattern with these grids. Formats text only when it
/// throws.
/// @throws Error invalid_argument naming the tensor, the value and what it should be.
FwdParams forward_params(const jit::Args& args, const Problem& problem,
                         std::span<const pattern::Grid> grids = {});

}  // namespace girih::runtime
