// Simulates one of the four parts of an SM; the head of __init__.py describes the model.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int kRegisters = 528;
constexpr double kSharedBytesACycle = 32;
constexpr double kStartWithin = 400;  // cycles
constexpr double kJitter = 0.4;       // of the latency, in all

enum Pipe { kFma, kFmaHeavy, kFmaBoth, kAlu, kXu, kFp64, kLsu, kUniform, kBranchUnit, kPipes };
enum Kind { kCompute, kLoad, kStore, kShared, kBranch };

struct Instruction {
  int pipe, occupied, latency, kind, bytes;
  std::vector<int> writes, reads;
};

using Loop = std::vector<Instruction>;

// `warps` of each of the `blocks` are in this part. Each warp passes the loop `passes` times.
struct Run {
  int warps, blocks, passes;
  double bandwidth, latency;  // bytes per cycle, cycles
  int seed;
};

// SplitMix64, which gives the same numbers with every standard library.
struct Random {
  uint64_t state;
  double uniform() {
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }
};

struct Warp {
  int at = 0, passed = 0;
  double ready = 0;  // when the operands of its next instruction are available; kNever at the end
  std::vector<double> there = std::vector<double>(kRegisters);  // when registers are available
};

class Part {
 public:
  Part(const Loop& loop, const Run& run)
      : loop_(loop),
        run_(run),
        random_{run.seed * 0x9E3779B97F4A7C15u + 1},
        warps_(run.blocks * run.warps),
        running_(run.blocks * run.warps) {
    for (int b = 0; b < run.blocks; ++b) {
      const double start = random_.uniform() * kStartWithin;
      for (int k = 0; k < run.warps; ++k) step_over(warps_[b * run.warps + k], start);
    }
  }

  // Returns the cycles of the run.
  double simulate() {
    double now = 0, end = 0;
    const int n = static_cast<int>(warps_.size());
    for (int last = 0; running_ > 0;) {
      double next = kNever;
      bool has_issued = false;
      for (int k = 0; k < n && !has_issued; ++k) {
        const int w = (last + k) % n;
        const double when = std::max(warps_[w].ready, pipe_free(loop_[warps_[w].at].pipe));
        if (when <= now) {
          issue(warps_[w], now);
          last = w;
          has_issued = true;
        } else {
          next = std::min(next, when);
        }
      }
      end = now;
      now = has_issued ? now + 1 : std::max(now + 1, next);
    }
    return std::max(end, memory_free_);
  }

 private:
  double pipe_free(int pipe) const {
    if (pipe == kFma) return std::min(pipes_[kFma], pipes_[kFmaHeavy]);
    if (pipe == kFmaBoth) return std::max(pipes_[kFma], pipes_[kFmaHeavy]);
    return pipes_[pipe];
  }

  void occupy(int pipe, double now, double until) {
    if (pipe == kFma && pipes_[kFma] > now) pipe = kFmaHeavy;  // the light one is busy
    if (pipe == kFmaBoth) pipes_[kFma] = pipes_[kFmaHeavy] = until;
    pipes_[pipe] = until;
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

  void issue(Warp& w, double now) {
    const Instruction& i = loop_[w.at];
    occupy(i.pipe, now, now + i.occupied);
    double result = now + i.latency, next = now + 1;
    if (i.kind == kLoad) {
      result = std::max(request(now, i.bytes), transfer(now, i.bytes));
    } else if (i.kind == kStore) {
      request(transfer(now, i.bytes), i.bytes);
    } else if (i.kind == kShared) {
      result = transfer(now, i.bytes) + i.latency;
    } else if (i.kind == kBranch) {
      next = now + i.latency;
    }
    for (const int r : i.writes) w.there[r] = result;
    w.at = (w.at + 1) % static_cast<int>(loop_.size());
    if (w.at == 0 && ++w.passed == run_.passes) {
      w.ready = kNever;
      --running_;
    } else {
      step_over(w, next);
    }
  }

  // A warp proceeds to its next instruction, whose operands become available at some time.
  void step_over(Warp& w, double next) {
    const Instruction& i = loop_[w.at];
    for (const int r : i.reads) next = std::max(next, w.there[r]);
    for (const int r : i.writes) next = std::max(next, w.there[r] - i.latency);
    w.ready = next;
  }

  const Loop& loop_;
  const Run run_;
  Random random_;
  std::vector<Warp> warps_;
  double pipes_[kPipes] = {};
  double memory_free_ = 0, data_free_ = 0;
  int running_;
};

}  // namespace

// `code` has for each of the `length` instructions its pipe, cycles, latency, kind and bytes, then
// twice a number of registers and the registers. `run` has the fields of a Run. Returns cycles.
extern "C" double simulate(int length, const int* code, const double* run) {
  Loop loop(length);
  for (Instruction& i : loop) {
    for (int* field : {&i.pipe, &i.occupied, &i.latency, &i.kind, &i.bytes}) *field = *code++;
    for (std::vector<int>* registers : {&i.writes, &i.reads}) {
      registers->assign(code + 1, code + 1 + *code);
      code += 1 + *code;
    }
  }
  const auto whole = [run](int field) { return static_cast<int>(run[field]); };
  return Part(loop, {whole(0), whole(1), whole(2), run[3], run[4], whole(5)}).simulate();
}
