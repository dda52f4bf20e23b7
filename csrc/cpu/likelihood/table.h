// A table of the functions that compute tiles, for one instruction set. It has one function for
// each kind and dtype.
#pragma once

#include "cpu/likelihood/backward_tile.h"
#include "cpu/likelihood/forward_tile.h"
#include "cpu/likelihood/softmax_tile.h"

namespace vae_fused::cpu::VAE_FUSED_TARGET {
namespace {

template <class L>
constexpr Bodies kNllOf = {nll_tiles<L, float>, nll_tiles<L, double>, nll_tiles<L, Half>,
                           nll_tiles<L, BFloat16>};
template <class L>
constexpr Bodies kBackwardOf = {backward_tiles<L, float>, backward_tiles<L, double>,
                                backward_tiles<L, Half>, backward_tiles<L, BFloat16>};
// Only the mean of counts can be a softmax, so the other kinds have no dot function.
template <class L, Data data>
constexpr Bodies dot_of() {
  if constexpr (data == Data::kCountOfMean) {
    return {dot_tiles<L, float>, dot_tiles<L, double>, dot_tiles<L, Half>, dot_tiles<L, BFloat16>};
  } else {
    return {};
  }
}

}  // namespace

#define VAE_FUSED_NLL(name, data) kNllOf<math::name>,
#define VAE_FUSED_BACKWARD(name, data) kBackwardOf<math::name>,
#define VAE_FUSED_DOT(name, data) dot_of<math::name, Data::data>(),

const LikelihoodTable kLikelihood = {
    {VAE_FUSED_LIKELIHOODS(VAE_FUSED_NLL)},
    {VAE_FUSED_LIKELIHOODS(VAE_FUSED_BACKWARD)},
    {VAE_FUSED_LIKELIHOODS(VAE_FUSED_DOT)},
    {softmax_tiles<float>, softmax_tiles<double>, softmax_tiles<Half>, softmax_tiles<BFloat16>},
};

#undef VAE_FUSED_NLL
#undef VAE_FUSED_BACKWARD
#undef VAE_FUSED_DOT

}  // namespace vae_fused::cpu::VAE_FUSED_TARGET
