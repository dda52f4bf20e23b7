// Each fiber has a stack, and the switches between fibers are explicit. Each switch is announced to
// the sanitizers, because AddressSanitizer needs the bounds of the stack in use, and
// ThreadSanitizer needs the thread that the fiber represents.
//
// The emulator's own sources are compiled without instrumentation, so that the scheduler's accesses
// cause no reports. EMU_ASAN or EMU_TSAN selects the runtime with which the program is linked.
#pragma once

#include <cstddef>

namespace emu::detail {

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // lowest address; null for the fiber of an OS thread
  size_t stack_size = 0;
  void* asan_fake_stack = nullptr;
  void* tsan_thread = nullptr;
#if defined(EMU_UCONTEXT)
  void* context = nullptr;
#endif
};

// The fiber of the calling OS thread.
Fiber this_thread();

// Makes the first switch to `fiber` call entry(), which must not return.
void prepare(Fiber& fiber, void (*entry)());

// Runs `to` until something switches back to `from`. If `last` is true, `from` never runs again.
// `os_thread` is the fiber of the OS thread on which both run.
void switch_fiber(Fiber& from, Fiber& to, Fiber& os_thread, bool last = false);

// A new fiber must call this function first.
void entered(Fiber& os_thread);

// Zeroed memory for which ThreadSanitizer has recorded no accesses. When the memory is freed,
// ThreadSanitizer discards the accesses that it has recorded by then. ThreadSanitizer must not
// mistake the memory of a block for that of the previous block.
class Pages {
 public:
  explicit Pages(size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

class Stack {
 public:
  Stack();
  void assign(Fiber& fiber) const;
  void forget_frames() const;  // after its fiber was abandoned

 private:
  Pages pages_;
};

}  // namespace emu::detail
