// Simulates one of the four parts of an SM; the head of __init__.py describes the model.
#include <algorithm>
#include <cstdint>
#include <limits>
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
  std::vector<Instruction> code;  // prologue, body, between, epilogue
  int body, between, epilogue;    // where they begin
};

// `warps` of each block are in this part. A block has `tiles`, each with `passes` of the body, and
// runs `between` between two tiles. A warp loads `load_bytes` in total.
struct Run {
  int warps, blocks, resident, tiles, passes;
  double bandwidth, load_bytes, latency;  // bytes per cycle, bytes, cycles
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
  int slot = 0, at = 0, passed = 0;
  bool done = true;
  double ready = kNever;  // when the operands of its next instruction are available
  double to_load = 0;     // bytes
  std::vector<double> there = std::vector<double>(kRegisters);  // when registers are available
};

class Part {
 public:
  Part(const Program& program, const Run& run)
      : program_(program),
        run_(run),
        random_{run.seed * 0x9E3779B97F4A7C15u + 1},
        warps_(run.resident * run.warps) {
    for (int s = 0; s < run.resident; ++s) start(s, random_.uniform() * kStartWithin);
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
        if (warps_[w].done) continue;
        const double when = std::max(warps_[w].ready, pipe_free(program_.code[warps_[w].at].pipe));
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

  int issued() const { return issued_; }

 private:
  void start(int s, double now) {
    if (started_ == run_.blocks) return;
    ++started_;
    for (int k = 0; k < run_.warps; ++k) {
      Warp& w = warps_[s * run_.warps + k];
      w = Warp();
      w.slot = s;
      w.done = false;
      w.to_load = run_.load_bytes;
      ++running_;
      step_over(w, now);
    }
  }

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
    const Instruction& i = program_.code[w.at];
    ++issued_;
    occupy(i.pipe, now, now + i.occupied);
    double result = now + i.latency, next = now + 1;
    if (i.kind == kLoad && w.to_load >= i.bytes) {
      w.to_load -= i.bytes;
      result = std::max(request(now, i.bytes), transfer(now, i.bytes));
    } else if (i.kind == kStore) {
      request(transfer(now, i.bytes), i.bytes);
    } else if (i.kind == kShared) {
      result = transfer(now, i.bytes) + i.latency;
    } else if (i.kind == kAtomic) {
      result = now + run_.latency / 2;
    } else if (i.kind == kFence) {
      next = now + run_.latency / 2;
    } else if (i.kind == kBranch) {
      next = now + i.latency;
    }
    for (const int r : i.writes) w.there[r] = result;
    advance(w);
    if (w.at == static_cast<int>(program_.code.size())) {
      finish(w, now);
    } else if (i.kind == kBarrier) {
      arrive(w, now + i.latency);
    } else {
      step_over(w, next);
    }
  }

  void advance(Warp& w) {
    const bool ends_pass = ++w.at == program_.between;
    const int all = run_.tiles * run_.passes;
    if (ends_pass && ++w.passed == all) {
      w.at = program_.epilogue;
    } else if (ends_pass && w.passed % run_.passes != 0) {
      w.at = program_.body;
    } else if (w.at == program_.epilogue && w.passed < all) {  // the next tile
      w.at = program_.body;
    }
  }

  // A warp proceeds to its next instruction, whose operands become available at some time.
  void step_over(Warp& w, double next) {
    const Instruction& i = program_.code[w.at];
    for (const int r : i.reads) next = std::max(next, w.there[r]);
    for (const int r : i.writes) next = std::max(next, w.there[r] - i.latency);
    w.ready = next;
  }

  void arrive(Warp& w, double released) {
    w.ready = kNever;
    if (has_any(w.slot, [](const Warp& other) { return other.ready != kNever; })) return;
    for (Warp& other : warps_) {
      if (other.slot == w.slot && !other.done) step_over(other, released);
    }
  }

  void finish(Warp& w, double now) {
    w.done = true;
    --running_;
    if (!has_any(w.slot, [](const Warp&) { return true; })) start(w.slot, now + kReplacedAfter);
  }

  template <typename Is>
  bool has_any(int slot, Is is) const {
    return std::any_of(warps_.begin(), warps_.end(),
                       [&](const Warp& w) { return w.slot == slot && !w.done && is(w); });
  }

  const Program& program_;
  const Run run_;
  Random random_;
  std::vector<Warp> warps_;
  double pipes_[kPipes] = {};
  double memory_free_ = 0, data_free_ = 0;
  int issued_ = 0, started_ = 0, running_ = 0;
};

}  // namespace

// `lengths` are the numbers of instructions of the four sections of `code`, which has for each of
// them pipe, cycles, latency, kind, bytes, and twice a number of registers and the registers.
// `run` has the fields of a Run.
extern "C" double simulate(const int* lengths, const int* code, const double* run, int* issued) {
  Program program{{}, lengths[0], lengths[0] + lengths[1], lengths[0] + lengths[1] + lengths[2]};
  program.code.resize(program.epilogue + lengths[3]);
  for (Instruction& i : program.code) {
    for (int* field : {&i.pipe, &i.occupied, &i.latency, &i.kind, &i.bytes}) *field = *code++;
    for (std::vector<int>* registers : {&i.writes, &i.reads}) {
      registers->assign(code + 1, code + 1 + *code);
      code += 1 + *code;
    }
  }
  const auto whole = [run](int field) { return static_cast<int>(run[field]); };
  Part part(program,
            {whole(0), whole(1), whole(2), whole(3), whole(4), run[5], run[6], run[7], whole(8)});
  const double cycles = part.simulate();
  *issued = part.issued();
  return cycles;
}
