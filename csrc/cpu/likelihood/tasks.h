// Maps a call of the likelihood family to its tiles.
#pragma once

#include "cpu/isa_table.h"
#include "iteration/matrix.h"
#include "params/likelihood.h"

namespace vae_fused::cpu {

// The context of a body: a call, and data that its tiles share.
template <typename Params>
struct LikelihoodTask {
  const Params& params;
  math::LikelihoodOptions<float> options;
  double* partials = nullptr;  // where a body writes its own partial sums
  double* totals = nullptr;    // where backward adds the value of nll, one sum per task

  explicit LikelihoodTask(const Params& params, double* partials = nullptr,
                          double* totals = nullptr)
      : params(params),
        options(math::narrowed<float>(params.observations.options)),
        partials(partials),
        totals(totals) {}

  VAE_FUSED_HD double* total_of(int64_t t) const { return totals ? totals + t : nullptr; }

  VAE_FUSED_HD const math::LikelihoodOptions<float>& options_of(float) const { return options; }
  VAE_FUSED_HD const math::LikelihoodOptions<double>& options_of(double) const {
    return params.observations.options;
  }
};

// Returns row r of a tile, which consists of whole rows or of a part of one row.
VAE_FUSED_HD Tile row_of(const Tile& tile, int r) {
  const int cols = tile.n / tile.rows;
  return {tile.begin + int64_t{r} * cols, tile.row + r, cols, 1};
}

// Returns the index, among the sums of a call, of the sums of a row that `row_of` returned. If the
// tile is a part of a row, the index is t, the index of the tile.
VAE_FUSED_HD int64_t part_of(const Space& space, const Tile& row, int64_t t) {
  return space.tiles_per_row > 1 ? t : row.row;
}

struct SoftmaxTask {
  const SoftmaxParams& params;
  double* partials;
};

// A backward task computes the same columns of several rows, and sums the gradients of the
// parameters that the rows share.
constexpr int64_t kColumnsOfTask = kTile;
constexpr TaskShape kTaskShape = {kColumnsOfTask, 8, 32, 64};

struct LikelihoodTable {
  Bodies nll[kLikelihoodKinds], backward[kLikelihoodKinds], dot[kLikelihoodKinds];
  Bodies softmax;
};
VAE_FUSED_ISA_TABLE(LikelihoodTable, kLikelihood)

inline const LikelihoodTable& likelihood_table() { return VAE_FUSED_TABLE_IN_USE(kLikelihood); }

}  // namespace vae_fused::cpu
