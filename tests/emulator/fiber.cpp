// The switch between fibers, their stacks, and the calls to the sanitizers. On x86-64, the switch
// is written in assembly, which is ten times cheaper than swapcontext with its two system calls.
// Other machines use ucontext.
#include "fiber.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(EMU_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(EMU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(EMU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emu::detail {

namespace {
constexpr size_t kStack = 128 * 1024;
constexpr size_t kGuard = 4096;  // inaccessible bytes below a stack, so that an overflow traps
}  // namespace

#if defined(EMU_UCONTEXT)

namespace {
ucontext_t& context_of(Fiber& fiber) {
  static ucontext_t os_thread;
  return fiber.context ? *static_cast<ucontext_t*>(fiber.context) : os_thread;
}
void raw_switch(Fiber& from, Fiber& to) { swapcontext(&context_of(from), &context_of(to)); }
}  // namespace

void prepare(Fiber& fiber, void (*entry)()) {
  constexpr size_t kContext = (sizeof(ucontext_t) + 63) / 64 * 64;
  fiber.context = fiber.stack + fiber.stack_size - kContext;
  ucontext_t& context = context_of(fiber);
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack;
  context.uc_stack.ss_size = fiber.stack_size - kContext;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#elif defined(__x86_64__)

// void emu_raw_switch(void** save, void* load): pushes the registers that a call must preserve and
// swaps stacks.
asm(R"(
  .pushsection .text
  .globl emu_raw_switch
  .hidden emu_raw_switch
  .type emu_raw_switch, @function
emu_raw_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emu_raw_switch, . - emu_raw_switch
  .popsection
)");
extern "C" void emu_raw_switch(void** save, void* load);

namespace {
void raw_switch(Fiber& from, Fiber& to) { emu_raw_switch(&from.stack_pointer, to.stack_pointer); }
}  // namespace

void prepare(Fiber& fiber, void (*entry)()) {
  // Pushes six registers, the address that `ret` jumps to, and a null return address for entry().
  // The stack is then aligned as after a call.
  auto** top = reinterpret_cast<void**>(fiber.stack + fiber.stack_size);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

#else
#error "define EMU_UCONTEXT on this machine"
#endif

Fiber this_thread() {
  Fiber fiber;
#if defined(EMU_TSAN)
  fiber.tsan_thread = __tsan_get_current_fiber();
#endif
  return fiber;
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] Fiber& os_thread,
                  [[maybe_unused]] bool last) {
#if defined(EMU_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.asan_fake_stack, to.stack, to.stack_size);
#endif
#if defined(EMU_TSAN)
  __tsan_switch_to_fiber(to.tsan_thread, __tsan_switch_to_fiber_no_sync);
#endif
  raw_switch(from, to);
#if defined(EMU_ASAN)
  // `from` runs again. The bounds of the OS thread's stack can be obtained only from this call.
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(from.asan_fake_stack, &bottom, &size);
  if (&from != &os_thread) {
    os_thread.stack = static_cast<char*>(const_cast<void*>(bottom));
    os_thread.stack_size = size;
  }
#endif
}

void entered([[maybe_unused]] Fiber& os_thread) {
#if defined(EMU_ASAN)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  os_thread.stack = static_cast<char*>(const_cast<void*>(bottom));
  os_thread.stack_size = size;
#endif
}

// ThreadSanitizer does not intercept the raw system call, so it does not mark the whole mapping as
// written by the caller. The destructor calls ThreadSanitizer's munmap, which discards all recorded
// accesses.
Pages::Pages(size_t bytes) : bytes_(bytes) {
  const long address = syscall(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == -1) {
    std::perror("emulator: no memory for a block");
    std::abort();
  }
  data_ = reinterpret_cast<char*>(address);
}

Pages::~Pages() { munmap(data_, bytes_); }

Stack::Stack() : pages_(kGuard + kStack) { mprotect(pages_.data(), kGuard, PROT_NONE); }

void Stack::assign(Fiber& fiber) const {
  fiber.stack = pages_.data() + kGuard;
  fiber.stack_size = kStack;
}

void Stack::forget_frames() const {
#if defined(EMU_ASAN)
  __asan_unpoison_memory_region(pages_.data() + kGuard, kStack);
#endif
}

}  // namespace emu::detail
