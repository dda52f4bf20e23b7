#include "torch/rng.h"

#include <ATen/CPUGeneratorImpl.h>

#ifdef VAE_FUSED_WITH_CUDA
#include <ATen/cuda/CUDAGeneratorImpl.h>
#endif

#include "math/normal.h"

namespace vae_fused {
namespace {

// The seed is the whole 64-bit output of the Mersenne twister, so two draws from one generator
// collide with probability 2^-64. The offset starts at 0.
RngKey reserve_cpu(const OptionalGenerator& generator) {
  auto* gen = at::get_generator_or_default<at::CPUGeneratorImpl>(
      generator, at::detail::getDefaultCPUGenerator());
  std::lock_guard<std::mutex> lock(gen->mutex_);
  RngKey key;
  key.seed = gen->random64();
  return key;
}

#ifdef VAE_FUSED_WITH_CUDA
// A CUDA generator is a Philox counter that counts words per thread. Thread k of a torch kernel
// draws from subsequence k. Our kernels draw `blocks` blocks of four words from subsequence 0 only,
// and reserve all of these words. During graph capture, the counter is on the device, and each
// replay advances it.
RngKey reserve_cuda(const OptionalGenerator& generator, at::Device device, uint64_t blocks) {
  auto* gen = at::get_generator_or_default<at::CUDAGeneratorImpl>(
      generator, at::cuda::detail::getDefaultCUDAGenerator(device.index()));
  std::lock_guard<std::mutex> lock(gen->mutex_);
  const at::PhiloxCudaState state = gen->philox_cuda_state(4 * blocks);
  RngKey key;
  key.shift = 2;
  if (state.captured_) {
    key.seed_ptr = reinterpret_cast<const uint64_t*>(state.seed_.ptr);
    key.offset_ptr = reinterpret_cast<const uint64_t*>(state.offset_.ptr);
    key.offset = state.offset_intragraph_;
  } else {
    key.seed = state.seed_.val;
    key.offset = state.offset_.val;
  }
  return key;
}
#endif

}  // namespace

int64_t noise_blocks(const Tensor& t) {
  const int64_t normals = t.scalar_type() == at::kDouble ? math::kNormalsPerBlock<double>
                                                         : math::kNormalsPerBlock<float>;
  return (t.numel() + normals - 1) / normals;
}

RngKey reserve_key(const OptionalGenerator& generator, at::Device device,
                   [[maybe_unused]] int64_t blocks) {
#ifdef VAE_FUSED_WITH_CUDA
  if (device.is_cuda()) return reserve_cuda(generator, device, static_cast<uint64_t>(blocks));
#endif
  TORCH_CHECK(device.is_cpu(), "vae_fused: tensors must be on a device with compiled kernels, got ",
              device);
  return reserve_cpu(generator);
}

RngKey key_of(const Tensor& key) {
  RngKey result;
  result.seed_ptr = static_cast<const uint64_t*>(key.const_data_ptr());
  result.offset_ptr = result.seed_ptr + 1;
  return result;
}

}  // namespace vae_fused
