// Reports to ThreadSanitizer which operations order memory. In other builds, the functions here do
// nothing.
//
// Each CUDA thread runs as a separate TSan thread (see Runners in block.cpp). Only the following
// operations order it with respect to other threads:
//
//   token       an address for releases and acquires of clocks; barriers have two
//   fence       takes a snapshot of the thread's clock; a later atomic publishes it
//   atomic      publishes the last snapshot to the address, and collects the snapshots that others
//               published there; a later fence acquires this collection
//
// If the fence on one of the two sides is missing, nothing is ordered, as in the PTX memory model
// (a "release pattern" and an "acquire pattern", PTX ISA 8.7). TSan has no such operations. A
// snapshot is therefore a TSan thread that is created at the fence, because it inherits its
// creator's clock.
#pragma once

#if defined(EMU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emu::detail::race {

#if defined(EMU_TSAN)

constexpr bool kDetecting = true;

inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }

inline void* create() { return __tsan_create_fiber(0); }
inline void destroy(void* thread) {
  if (thread) __tsan_destroy_fiber(thread);
}

// Runs `action` as another TSan thread.
template <typename Action>
inline void as(void* thread, Action action) {
  void* const self = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync);
  action();
  __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
}

// Runs `action` as a temporary TSan thread, so that the caller does not acquire the same clocks.
template <typename Action>
inline void as_new(Action action) {
  void* const thread = create();
  as(thread, action);
  destroy(thread);
}

class Fences {
 public:
  void fence() {
    if (collection_) {
      as(collection_, [this] { release(this); });
      acquire(this);
    }
    destroy(snapshot_);
    snapshot_ = create();
  }

  void atomic(const void* address) {
    void* const token = const_cast<void*>(address);
    if (snapshot_) as(snapshot_, [=] { release(token); });
    if (!collection_) collection_ = create();
    as(collection_, [=] { acquire(token); });
  }

  void finish() {  // must not run as the thread that owns this object
    destroy(snapshot_);
    destroy(collection_);
    snapshot_ = collection_ = nullptr;
  }

 private:
  void* snapshot_ = nullptr;
  void* collection_ = nullptr;
};

#else

constexpr bool kDetecting = false;

inline void release(void*) {}
inline void acquire(void*) {}
inline void* create() { return nullptr; }
inline void destroy(void*) {}
template <typename Action>
inline void as(void*, Action) {}
template <typename Action>
inline void as_new(Action) {}

class Fences {
 public:
  void fence() {}
  void atomic(const void*) {}
  void finish() {}
};

#endif

}  // namespace emu::detail::race
