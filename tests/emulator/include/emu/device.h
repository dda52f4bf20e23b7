// Device functions other than warp operations (warp.h): thread and block indices, barriers, fences,
// atomics, cached loads and stores, reinterpretation.
//
// Memory order for the race detector (race.h): __syncthreads and __syncwarp order memory among the
// threads that they join. An atomic alone orders nothing. A fence before the atomic of one thread
// and a fence after the atomic of another thread together order the memory of these two threads.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "emu/types.h"

namespace emu::detail {

struct Place {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern const Place* here;  // the place of the running thread; null outside kernels

struct Site {
  const char* file;
  int line;
};

// Waits for all threads of the block that have not exited. Sets `arrived` to their number, and
// returns how many of them passed a non-zero predicate.
int barrier(int predicate, int* arrived, Site site);
void fence();
void observed_atomic(const void* address);  // after each atomic

template <typename To, typename From>
inline To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Sets *address = update(old) and returns old. It compares bit patterns, so it also works for
// float.
template <typename T, typename Update>
inline T atomic(T* address, Update update) {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Word));
  Word* const word = reinterpret_cast<Word*>(address);
  Word old = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &old, reinterpret<Word>(update(reinterpret<T>(old))),
                                      false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  observed_atomic(address);
  return reinterpret<T>(old);
}

}  // namespace emu::detail

#define threadIdx (::emu::detail::here->thread)
#define blockIdx (::emu::detail::here->block)
#define blockDim (::emu::detail::here->block_dim)
#define gridDim (::emu::detail::here->grid_dim)
constexpr int warpSize = 32;

// The default arguments are evaluated at the call site, so they give the line in the kernel.
#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMU_SITE) {
  int arrived;
  emu::detail::barrier(0, &arrived, {file, line});
}
inline int __syncthreads_count(int predicate, EMU_SITE) {
  int arrived;
  return emu::detail::barrier(predicate, &arrived, {file, line});
}
inline int __syncthreads_or(int predicate, EMU_SITE) {
  return __syncthreads_count(predicate, file, line) != 0;
}
inline int __syncthreads_and(int predicate, EMU_SITE) {
  int arrived;
  const int count = emu::detail::barrier(predicate, &arrived, {file, line});
  return count == arrived;
}

inline void __threadfence() { emu::detail::fence(); }
inline void __threadfence_block() { emu::detail::fence(); }
inline void __threadfence_system() { emu::detail::fence(); }

template <typename T>
inline T atomicAdd(T* address, T value) {
  return emu::detail::atomic(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
inline T atomicSub(T* address, T value) {
  return emu::detail::atomic(address, [=](T old) { return static_cast<T>(old - value); });
}
template <typename T>
inline T atomicMax(T* address, T value) {
  return emu::detail::atomic(address, [=](T old) { return old > value ? old : value; });
}
template <typename T>
inline T atomicMin(T* address, T value) {
  return emu::detail::atomic(address, [=](T old) { return old < value ? old : value; });
}
template <typename T>
inline T atomicOr(T* address, T value) {
  return emu::detail::atomic(address, [=](T old) { return old | value; });
}
template <typename T>
inline T atomicAnd(T* address, T value) {
  return emu::detail::atomic(address, [=](T old) { return old & value; });
}
template <typename T>
inline T atomicExch(T* address, T value) {
  return emu::detail::atomic(address, [=](T) { return value; });
}
template <typename T>
inline T atomicCAS(T* address, T expected, T value) {
  return emu::detail::atomic(address, [=](T old) { return old == expected ? value : old; });
}
inline unsigned int atomicInc(unsigned int* address, unsigned int last) {
  return emu::detail::atomic(address, [=](unsigned int old) { return old >= last ? 0 : old + 1; });
}
inline unsigned int atomicDec(unsigned int* address, unsigned int last) {
  return emu::detail::atomic(
      address, [=](unsigned int old) { return old == 0 || old > last ? last : old - 1; });
}

// Accesses with cache hints are ordinary accesses here. A T is dereferenced as a whole, so that
// -fsanitize=alignment checks it.
#define EMU_LOAD(name)              \
  template <typename T>             \
  inline T name(const T* address) { \
    return *address;                \
  }
#define EMU_STORE(name)                   \
  template <typename T>                   \
  inline void name(T* address, T value) { \
    *address = value;                     \
  }
EMU_LOAD(__ldg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldlu)
EMU_LOAD(__ldcv)
EMU_STORE(__stwb)
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwt)
#undef EMU_LOAD
#undef EMU_STORE

inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<uint64_t>(a) * b) >> 32);
}
inline unsigned int __float_as_uint(float x) { return emu::detail::reinterpret<unsigned>(x); }
inline float __uint_as_float(unsigned int x) { return emu::detail::reinterpret<float>(x); }
inline int __float_as_int(float x) { return emu::detail::reinterpret<int>(x); }
inline float __int_as_float(int x) { return emu::detail::reinterpret<float>(x); }
inline long long __double_as_longlong(double x) { return emu::detail::reinterpret<long long>(x); }
inline double __longlong_as_double(long long x) { return emu::detail::reinterpret<double>(x); }
inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
