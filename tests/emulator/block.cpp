// Runs one block. Its threads are fibers, which run in random order between the points where they
// wait for each other. To wait, a fiber only records the reason and then yields to the scheduler,
// which makes all decisions.
#include "block.h"

#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "emu/warp.h"
#include "fiber.h"
#include "race.h"

namespace emu::detail {

const Place* here = nullptr;

namespace {

enum class State { kReady, kBarrier, kWarp, kDone };

struct Thread {
  Place place;
  Fiber fiber;
  State state;
  int id, lane, warp;
  // The operation for which the thread waits, and the result of that operation.
  Site site;
  WarpOp op;
  unsigned int mask;
  uint64_t value;
  int source;
  Rendezvous met;
  int barrier_count, barrier_arrived;
  // The tokens that the thread releases at a __syncwarp. It alternates between the two, as a block
  // does at its barriers.
  alignas(8) char warp_token[2][8];
  unsigned int warp_syncs;
  race::Fences fences;
};

struct Warp {
  unsigned int alive, waiting;
};

constexpr int kMaxThreads = 1024;

// Barriers alternate between two tokens, so that a thread that leaves one barrier does not acquire
// the clocks of threads that have already reached the next one.
struct Block {
  const Work* work;
  void* done_token;
  alignas(8) char start_token[8];
  alignas(8) char barrier_token[2][8];
  int generation;
  int count, alive, at_barrier, ready_count;
  Fiber scheduler;
  Warp warps[kMaxThreads / 32];
  int ready[kMaxThreads];
  Thread threads[kMaxThreads];
};

// The resources of a running thread: a stack, and its own thread of the race detector.
struct Runner {
  Stack stack;
  void* const race_thread = race::create();

  Runner() = default;
  Runner(const Runner&) = delete;
  ~Runner() { race::destroy(race_thread); }
};

// With the race detector, a new runner takes 0.2 ms and 0.8 MB. Runners are therefore reused once
// the host has waited for their launches, because all of their accesses then precede any later
// ones. Until then, the last kMost threads of all streams have separate runners, because otherwise
// accesses by different blocks would appear to be ordered. A race between two blocks is not found
// if the later one reuses the runners of the earlier one, which happens at distances of a multiple
// of kMost threads.
class Runners {
 public:
  Runner& take() {
    if (used_.size() == kMost) {
      used_.push_back(std::move(used_.front()));
      used_.pop_front();
    } else if (idle_.empty()) {
      used_.push_back(std::make_unique<Runner>());
    } else {
      used_.push_back(std::move(idle_.back()));
      idle_.pop_back();
    }
    return *used_.back();
  }

  void rest() {
    for (auto& runner : used_) idle_.push_back(std::move(runner));
    used_.clear();
  }

  void forget_frames() const {
    for (const auto& runner : used_) runner->stack.forget_frames();
  }

 private:
  // Each release and acquire of TSan takes time in proportion to the number of its threads. The
  // largest blocks of the kernels have 256 threads.
  static constexpr size_t kMost = 1280;
  static_assert(kMost >= kMaxThreads, "a block needs separate runners");
  std::deque<std::unique_ptr<Runner>> used_, idle_;
};

Block* block = nullptr;
Thread* current = nullptr;
Runners runners;

void yield() { switch_fiber(current->fiber, block->scheduler, block->scheduler); }

void run_thread() {
  entered(block->scheduler);
  block->work->body();
  race::release(block->done_token);
  current->state = State::kDone;
  switch_fiber(current->fiber, block->scheduler, block->scheduler, true);
}

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  block->ready[block->ready_count++] = thread.id;
}

// ---------------------------------------------------------------------------------------------
// Reports
// ---------------------------------------------------------------------------------------------

const char* name_of(WarpOp op) {
  switch (op) {
    case WarpOp::kSync:
      return "__syncwarp";
    case WarpOp::kShuffle:
      return "__shfl_sync";
    case WarpOp::kShuffleUp:
      return "__shfl_up_sync";
    case WarpOp::kShuffleDown:
      return "__shfl_down_sync";
    case WarpOp::kShuffleXor:
      return "__shfl_xor_sync";
    case WarpOp::kAny:
      return "__any_sync";
    case WarpOp::kAll:
      return "__all_sync";
    case WarpOp::kBallot:
      return "__ballot_sync";
  }
  return "?";
}

std::string describe(const Thread& thread) {
  char text[64];
  std::string where = std::string(" at ") + (thread.site.file ? thread.site.file : "?") + ":" +
                      std::to_string(thread.site.line);
  if (thread.state == State::kDone) return "have exited";
  if (thread.state == State::kBarrier) return "wait in __syncthreads" + where;
  if (thread.state == State::kReady) return "could run";
  std::snprintf(text, sizeof text, "wait in %s with mask 0x%08x", name_of(thread.op), thread.mask);
  return text + where;
}

// "0..31, 40, 42, ..."
std::string ranges(const std::vector<int>& ids) {
  constexpr int kMost = 8;
  std::string text;
  int listed = 0;
  for (size_t i = 0; i < ids.size(); ++listed) {
    size_t end = i;
    while (end + 1 < ids.size() && ids[end + 1] == ids[end] + 1) ++end;
    if (listed == kMost) return text + ", ... (" + std::to_string(ids.size()) + " in all)";
    if (listed > 0) text += ", ";
    text += std::to_string(ids[i]);
    if (end > i) text += ".." + std::to_string(ids[end]);
    i = end + 1;
  }
  return text;
}

// Reports a fault, with the block and the state of each of its threads.
std::string report(const std::string& what) {
  const Place& place = block->threads[0].place;
  const auto triple = [](unsigned x, unsigned y, unsigned z) {
    return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
  };
  std::string text = "emulator: " + what + " in block " +
                     triple(place.block.x, place.block.y, place.block.z) + " of grid " +
                     triple(place.grid_dim.x, place.grid_dim.y, place.grid_dim.z);
  std::map<std::string, std::vector<int>> doing;
  for (int i = 0; i < block->count; ++i) doing[describe(block->threads[i])].push_back(i);
  for (const auto& [activity, ids] : doing) text += "\n  threads " + ranges(ids) + " " + activity;
  return text;
}

// ---------------------------------------------------------------------------------------------
// Waiting for each other
// ---------------------------------------------------------------------------------------------

std::string finish_barrier() {
  if (block->alive == 0 || block->at_barrier != block->alive) return "";
  int first_line = 0, count = 0;
  for (int i = 0; i < block->count; ++i) {
    const Thread& thread = block->threads[i];
    if (thread.state != State::kBarrier) continue;
    if (first_line == 0) first_line = thread.site.line;
    if (thread.site.line != first_line) return report("threads meet at different __syncthreads");
    count += thread.value != 0;
  }
  block->at_barrier = 0;
  ++block->generation;
  for (int i = 0; i < block->count; ++i) {
    Thread& thread = block->threads[i];
    if (thread.state != State::kBarrier) continue;
    thread.barrier_count = count;
    thread.barrier_arrived = block->alive;
    make_ready(thread);
  }
  return "";
}

// Resumes the lanes that `thread` waits for if all of them have arrived.
std::string finish_rendezvous(const Thread& thread) {
  Warp& warp = block->warps[thread.warp];
  Thread* const lanes = block->threads + thread.warp * 32;
  const unsigned int mask = thread.mask, taking_part = mask & warp.alive;
  const WarpOp op = thread.op;
  if (!(mask >> thread.lane & 1u)) return report("a lane is not in its own mask");
  if (taking_part & ~warp.waiting) return "";
  unsigned int ballot = 0;
  for (int i = 0; i < 32; ++i) {
    if (!(taking_part >> i & 1u)) continue;
    if (lanes[i].op != op || lanes[i].mask != mask) return report("lanes disagree");
    if (!(taking_part >> lanes[i].source & 1u)) {
      return report("lane " + std::to_string(i) + " reads from lane " +
                    std::to_string(lanes[i].source) + ", which takes no part,");
    }
    ballot |= static_cast<unsigned>(lanes[i].value != 0) << i;
  }
  for (int i = 0; i < 32; ++i) {
    if (!(taking_part >> i & 1u)) continue;
    lanes[i].met = {lanes[lanes[i].source].value, ballot, taking_part};
    make_ready(lanes[i]);
  }
  warp.waiting &= ~taking_part;
  return "";
}

// Handles the state of `thread` after it has yielded.
std::string proceed(Thread& thread) {
  Warp& warp = block->warps[thread.warp];
  switch (thread.state) {
    case State::kReady:
      break;
    case State::kBarrier:
      ++block->at_barrier;
      return finish_barrier();
    case State::kWarp:
      warp.waiting |= 1u << thread.lane;
      return finish_rendezvous(thread);
    case State::kDone: {
      --block->alive;
      warp.alive &= ~(1u << thread.lane);
      // This may have been the last lane for which others were waiting.
      for (int i = 0; i < 32; ++i) {
        if (!(warp.waiting >> i & 1u)) continue;
        const std::string fault = finish_rendezvous(block->threads[thread.warp * 32 + i]);
        if (!fault.empty()) return fault;
      }
      return finish_barrier();
    }
  }
  return "";
}

// Orders the threads after the earlier work of the stream, but not after other blocks of the
// launch.
void prepare_threads(const Work& work, uint3 index, void* after) {
  race::as_new([=] {
    if (after) race::acquire(after);
    race::release(block->start_token);
  });
  const dim3 dim = work.block;
  for (int i = 0; i < block->count; ++i) {
    Thread& thread = *new (&block->threads[i]) Thread();
    const unsigned int id = static_cast<unsigned>(i);
    thread.place = {{id % dim.x, id / dim.x % dim.y, id / (dim.x * dim.y)}, index, dim, work.grid};
    thread.id = i;
    thread.lane = i % 32;
    thread.warp = i / 32;
    block->warps[thread.warp].alive |= 1u << thread.lane;
    const Runner& runner = runners.take();
    race::as(runner.race_thread, [] { race::acquire(block->start_token); });
    thread.fiber.tsan_thread = runner.race_thread;
    runner.stack.assign(thread.fiber);
    prepare(thread.fiber, run_thread);
    make_ready(thread);
  }
}

}  // namespace

void host_has_waited() { runners.rest(); }

std::string run_block(const Work& work, uint3 index, Random& random, void* after, void* done) {
  // The race detector needs fresh pages. Without the race detector, all blocks use the same pages,
  // and each block writes only the parts that it needs.
  std::optional<Pages> own_pages;
  static std::optional<Pages> kept_pages;
  std::optional<Pages>& pages = race::kDetecting ? own_pages : kept_pages;
  if (!pages) pages.emplace(sizeof(Block));
  block = reinterpret_cast<Block*>(pages->data());
  const int count = static_cast<int>(work.block.x * work.block.y * work.block.z);
  block->work = &work;
  block->done_token = done;
  block->generation = 0;
  block->count = block->alive = count;
  block->at_barrier = block->ready_count = 0;
  block->scheduler = this_thread();
  for (Warp& warp : block->warps) warp = {0, 0};
  prepare_threads(work, index, after);

  std::string fault;
  while (block->ready_count > 0 && fault.empty()) {
    const uint32_t pick = random.below(static_cast<uint32_t>(block->ready_count));
    current = &block->threads[block->ready[pick]];
    block->ready[pick] = block->ready[--block->ready_count];
    here = &current->place;
    switch_fiber(block->scheduler, current->fiber, block->scheduler);
    here = nullptr;
    fault = proceed(*current);
  }
  if (fault.empty() && block->alive > 0) fault = report("deadlock");
  if (!fault.empty()) runners.forget_frames();
  for (int i = 0; i < count; ++i) block->threads[i].fences.finish();
  if (!race::kDetecting) runners.rest();
  return fault;
}

// ---------------------------------------------------------------------------------------------
// Functions that device code calls
// ---------------------------------------------------------------------------------------------

int barrier(int predicate, int* arrived, Site site) {
  char* const token = block->barrier_token[block->generation % 2];
  current->value = predicate != 0;
  current->site = site;
  current->state = State::kBarrier;
  race::release(token);
  yield();
  race::acquire(token);
  *arrived = current->barrier_arrived;
  return current->barrier_count;
}

int lane() { return current->lane; }

Rendezvous meet(WarpOp op, unsigned int mask, uint64_t value, int source, Site site) {
  if (op == WarpOp::kSync) {
    value = current->warp_syncs++ % 2;
    race::release(current->warp_token[value]);
  }
  current->op = op;
  current->mask = mask;
  current->value = value;
  current->source = source;
  current->site = site;
  current->state = State::kWarp;
  yield();
  const Rendezvous met = current->met;
  if (race::kDetecting && op == WarpOp::kSync) {
    Thread* const lanes = block->threads + current->warp * 32;
    for (int i = 0; i < 32; ++i) {
      if (met.arrived >> i & 1u) race::acquire(lanes[i].warp_token[met.ballot >> i & 1u]);
    }
  }
  return met;
}

void fence() { current->fences.fence(); }
void observed_atomic(const void* address) { current->fences.atomic(address); }

}  // namespace emu::detail
