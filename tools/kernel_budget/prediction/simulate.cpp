// Simulates one of the four parts of an SM; the head of __init__.py describes the model.
//
// Reads a program and then runs from standard input, and writes a line for each run:
//   program PROLOGUE BODY BETWEEN EPILOGUE   instructions, then as many lines as program.py writes
//   run WARPS BLOCKS RESIDENT TILES PASSES LATENCY BYTES_A_CYCLE LOAD_BYTES SEED
// WARPS of each block are in this part. A block has TILES, each with PASSES of the body, and runs
// BETWEEN between two tiles. A warp loads LOAD_BYTES in total. The output line has the cycles of
// the run, the instructions issued, and the mean of the bytes in flight.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int kRegisters = 528;
constexpr double kSharedBytesACycle = 32;
constexpr double kStartWithin = 400, kReplacedAfter = 100;  // cycles: first blocks, later blocks
constexpr double kJitter = 0.4;                             // of the latency, in all

enum Pipe { kFma, kFmaHeavy, kFmaBoth, kAlu, kXu, kFp64, kLsu, kUniform, kBranchUnit, kPipes };
enum Kind { kCompute, kLoad, kStore, kShared, kBarrier, kFence, kAtomic, kBranch };

struct Instruction {
  int pipe, occupied, latency, kind, bytes;
  std::vector<int> writes, reads;
};

struct Program {
  std::vector<Instruction> code;            // prologue, body, between, epilogue
  int body = 0, between = 0, epilogue = 0;  // where they begin
};

struct Run {
  int warps, blocks, resident, tiles, passes;
  double latency, bandwidth, load_bytes;
  uint64_t seed;
};

// SplitMix64, which gives the same numbers with every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  double uniform() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }

 private:
  uint64_t state_;
};

struct Warp {
  int slot = 0, at = 0, passed = 0;
  bool done = true;
  double ready = kNever;  // when the operands of its next instruction are available
  double to_load = 0;     // bytes
  std::vector<double> there = std::vector<double>(kRegisters, 0.0);
};

struct Slot {
  int running = 0, waiting = 0;  // warps; the latter wait at a barrier
};

class Part {
 public:
  Part(const Program& program, const Run& run)
      : program_(program), run_(run), random_(run.seed), slots_(run.resident) {
    warps_.resize(run.resident * run.warps);
    for (int s = 0; s < run.resident; ++s) start(s, random_.uniform() * kStartWithin);
  }

  void simulate() {
    double now = 0;
    while (running_ > 0) {
      const int n = static_cast<int>(warps_.size());
      double next = kNever;
      bool issued = false;
      for (int k = 0; k < n && !issued; ++k) {
        const int w = (last_ + k) % n;
        if (warps_[w].done) continue;
        const double when = std::max(warps_[w].ready, pipe_free(instruction(warps_[w])));
        if (when <= now) {
          issue(w, now);
          last_ = w;
          issued = true;
        } else {
          next = std::min(next, when);
        }
      }
      end_ = std::max(end_, now);
      now = issued ? now + 1 : std::max(now + 1, next);
    }
    end_ = std::max(end_, memory_free_);
  }

  void report() const {
    std::printf("%.3f %lld %.1f\n", end_, static_cast<long long>(issued_), requested_ / end_);
  }

 private:
  const Instruction& instruction(const Warp& w) const { return program_.code[w.at]; }

  void start(int s, double now) {
    if (started_ == run_.blocks) return;
    ++started_;
    slots_[s] = {run_.warps, 0};
    for (int k = 0; k < run_.warps; ++k) {
      Warp& w = warps_[s * run_.warps + k];
      std::fill(w.there.begin(), w.there.end(), 0.0);
      w.slot = s;
      w.at = w.passed = 0;
      w.done = false;
      w.to_load = run_.load_bytes;
      w.ready = now;
      ++running_;
      step_over(w, now);
    }
  }

  double pipe_free(const Instruction& i) const {
    switch (i.pipe) {
      case kFma:
        return std::min(pipes_[kFma], pipes_[kFmaHeavy]);
      case kFmaBoth:
        return std::max(pipes_[kFma], pipes_[kFmaHeavy]);
      default:
        return pipes_[i.pipe];
    }
  }

  void occupy(const Instruction& i, double now) {
    const double until = now + i.occupied;
    if (i.pipe == kFmaBoth) {
      pipes_[kFma] = pipes_[kFmaHeavy] = until;
    } else if (i.pipe == kFma) {  // the light one, unless it is busy
      pipes_[pipes_[kFma] <= now ? kFma : kFmaHeavy] = until;
    } else {
      pipes_[i.pipe] = until;
    }
  }

  // Data between memory or shared memory and registers. Returns when the last byte has passed.
  double transfer(double now, int bytes) {
    data_free_ = std::max(data_free_, now) + bytes / kSharedBytesACycle;
    return data_free_;
  }

  // Returns when the data arrive from memory.
  double request(double now, int bytes) {
    memory_free_ = std::max(memory_free_, now + run_.latency / 2) + bytes / run_.bandwidth;
    const double jitter = (random_.uniform() - 0.5) * kJitter;
    return memory_free_ + run_.latency * (0.5 + jitter);
  }

  void issue(int index, double now) {
    Warp& w = warps_[index];
    const Instruction& i = instruction(w);
    ++issued_;
    occupy(i, now);
    double result = now + i.latency, next = now + 1;
    switch (i.kind) {
      case kLoad:
        if (w.to_load >= i.bytes) {
          w.to_load -= i.bytes;
          result = std::max(request(now, i.bytes), transfer(now, i.bytes));
          requested_ += (result - now) * i.bytes;
        }
        break;
      case kStore:
        request(transfer(now, i.bytes), i.bytes);
        break;
      case kShared:
        result = transfer(now, i.bytes) + i.latency;
        break;
      case kFence:
        next = now + run_.latency / 2;
        break;
      case kAtomic:
        result = now + run_.latency / 2;
        break;
      case kBranch:
        next = now + i.latency;
        break;
      default:
        break;
    }
    for (const int r : i.writes) w.there[r] = result;
    const bool at_barrier = i.kind == kBarrier;
    advance(w);
    if (w.at == static_cast<int>(program_.code.size())) return finish(w, now);
    if (at_barrier) {
      arrive(w, now + i.latency);
    } else {
      w.ready = next;
      step_over(w, next);
    }
  }

  void advance(Warp& w) {
    const bool ends_pass = w.at + 1 == program_.between;
    ++w.at;
    const int all = run_.tiles * run_.passes;
    if (ends_pass && ++w.passed == all) {
      w.at = program_.epilogue;
    } else if (ends_pass && w.passed % run_.passes != 0) {
      w.at = program_.body;
    } else if (w.at == program_.epilogue && w.passed < all) {  // the next tile
      w.at = program_.body;
    }
  }

  // The time at which the operands of a warp's next instruction are available.
  void step_over(Warp& w, double next) {
    const Instruction& i = instruction(w);
    for (const int r : i.reads) next = std::max(next, w.there[r]);
    for (const int r : i.writes) next = std::max(next, w.there[r] - i.latency);
    w.ready = next;
  }

  void arrive(Warp& w, double released) {
    Slot& slot = slots_[w.slot];
    w.ready = kNever;
    if (++slot.waiting < slot.running) return;
    slot.waiting = 0;
    for (int k = 0; k < run_.warps; ++k) {
      Warp& other = warps_[w.slot * run_.warps + k];
      if (!other.done) step_over(other, released);
    }
  }

  void finish(Warp& w, double now) {
    w.done = true;
    --running_;
    if (--slots_[w.slot].running == 0) start(w.slot, now + kReplacedAfter);
  }

  const Program& program_;
  const Run run_;
  Random random_;
  std::vector<Slot> slots_;
  std::vector<Warp> warps_;
  double pipes_[kPipes] = {};
  double memory_free_ = 0, data_free_ = 0, end_ = 0, requested_ = 0;
  int64_t issued_ = 0;
  int last_ = 0, started_ = 0, running_ = 0;
};

bool read_registers(std::vector<int>& to) {
  int n = 0;
  if (std::scanf("%d", &n) != 1) return false;
  to.resize(n);
  for (int& r : to) {
    if (std::scanf("%d", &r) != 1 || r < 0 || r >= kRegisters) return false;
  }
  return true;
}

bool read_program(Program& program) {
  int prologue, body, between, epilogue;
  if (std::scanf("%d %d %d %d", &prologue, &body, &between, &epilogue) != 4 || body < 1) {
    return false;
  }
  program.code.assign(prologue + body + between + epilogue, {});
  program.body = prologue;
  program.between = prologue + body;
  program.epilogue = prologue + body + between;
  for (Instruction& i : program.code) {
    if (std::scanf("%d %d %d %d %d", &i.pipe, &i.occupied, &i.latency, &i.kind, &i.bytes) != 5 ||
        i.pipe < 0 || i.pipe >= kPipes || !read_registers(i.writes) || !read_registers(i.reads)) {
      return false;
    }
  }
  return true;
}

bool read_run(Run& r) {
  unsigned long long seed = 0;
  if (std::scanf("%d %d %d %d %d %lf %lf %lf %llu", &r.warps, &r.blocks, &r.resident, &r.tiles,
                 &r.passes, &r.latency, &r.bandwidth, &r.load_bytes, &seed) != 9) {
    return false;
  }
  r.seed = seed;
  return r.warps > 0 && r.blocks > 0 && r.resident > 0 && r.tiles > 0 && r.passes > 0 &&
         r.bandwidth > 0;
}

}  // namespace

int main() {
  Program program;
  char word[16];
  while (std::scanf("%15s", word) == 1) {
    Run run{};
    if (std::string(word) == "program") {
      if (!read_program(program)) return 1;
    } else if (!read_run(run) || program.code.empty()) {
      return 1;
    } else {
      Part part(program, run);
      part.simulate();
      part.report();
    }
  }
  return 0;
}
