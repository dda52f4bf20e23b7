// Fibers: a stack each, switched by hand. The sanitizers are told of each switch: AddressSanitizer
// needs the bounds of the stack that runs, ThreadSanitizer the thread that it stands for.
//
// The emulator's own sources are compiled without instrumentation, so that the scheduler's accesses
// are nobody's race; EMU_ASAN or EMU_TSAN says which runtime the program is linked with.
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

// Runs `to` until something switches back to `from`. With `last`, nothing will. `os_thread` is the
// fiber of the OS thread that both run on.
void switch_fiber(Fiber& from, Fiber& to, Fiber& os_thread, bool last = false);

// The first call on a new fiber.
void entered(Fiber& os_thread);

// Zeroed memory that ThreadSanitizer has never seen touched, and forgets when it goes: what a block
// uses must not look like what the block before it used.
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
