// A vae_fused operator that is called through the dispatcher, so that a tracer or a fake tensor
// mode records the operator itself instead of its kernel.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <utility>

namespace vae_fused {

template <typename Signature>
class Op {
 public:
  Op(const char* name, const char* overload)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>()) {
  }
  template <typename... Args>
  auto operator()(Args&&... args) const {
    return handle_.call(std::forward<Args>(args)...);
  }

 private:
  c10::TypedOperatorHandle<Signature> handle_;
};

// Declares `op`, an operator with the signature of `function`. The operator is looked up only once.
#define VAE_FUSED_OP(function, name, overload) \
  static const Op<decltype(vae_fused::function)> op("vae_fused::" name, overload)

}  // namespace vae_fused
