// The scheduler behind cuda_host.h: coroutines for the threads of a block, and the meetings they wait at.
#include "common/runtime.cuh"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_host {
namespace {

constexpr int kWarpSize = 32;
constexpr size_t kUnaskedSharedBytes = 48 * 1024;
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kCanaryBytes = 64;
constexpr unsigned char kCanary = 0xa5;

// ---- coroutines -----------------------------------------------------------------------------------------------------
#ifdef __x86_64__
// Saves the callee-saved registers on the running stack and continues on another one: 20 times faster than swapcontext,
// which asks the kernel about signals.
extern "C" void cuda_host_switch(void** save, void* resume);
asm(R"(
.text
.globl cuda_host_switch
.hidden cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
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
.size cuda_host_switch, .-cuda_host_switch
)");

class Coroutine {
 public:
  void start(unsigned char* stack, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack + kStackBytes);
    *--top = nullptr;  // keeps the stack aligned as a call leaves it
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer_ = top;
  }
  void resume() { cuda_host_switch(&caller_, stack_pointer_); }
  void suspend() { cuda_host_switch(&stack_pointer_, caller_); }

 private:
  void* stack_pointer_ = nullptr;
  void* caller_ = nullptr;
};
#else
class Coroutine {
 public:
  void start(unsigned char* stack, void (*entry)()) {
    getcontext(&self_);
    self_.uc_stack.ss_sp = stack;
    self_.uc_stack.ss_size = kStackBytes;
    self_.uc_link = nullptr;
    makecontext(&self_, entry, 0);
  }
  void resume() { swapcontext(&caller_, &self_); }
  void suspend() { swapcontext(&self_, &caller_); }

 private:
  ucontext_t self_, caller_;
};
#endif

// One stack with a page below it that faults, so that an overflow is a crash and not a wrong result.
struct Stack {
  Stack() {
    page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    base = static_cast<unsigned char*>(
        mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base == MAP_FAILED) throw std::runtime_error("no memory for a thread's stack");
    mprotect(base, page, PROT_NONE);
  }
  Stack(const Stack&) = delete;
  ~Stack() { munmap(base, kStackBytes + page); }
  unsigned char* data() const { return base + page; }
  unsigned char* base;
  size_t page;
};

// ---- the running block ----------------------------------------------------------------------------------------------
enum class State { kReady, kWaiting, kDone };

struct Copy {
  void* shared;
  const void* global;  // null for zeros
  int group;
};

struct Thread {
  Coroutine coroutine;
  State state = State::kReady;
  Meeting meeting = Meeting::kBlock;
  Site site{"", 0};
  uint32_t value = 0;
  int argument = 0;
  void* lane = nullptr;  // of kCombine
  void (*function)(void* const*) = nullptr;
  std::vector<Copy> copies;  // that have not arrived
  int group = 0;             // copies started now belong to it
};

struct Poisoned {
  void* memory;
  size_t bytes;
};

std::mutex launch_mutex;
uint64_t seed = 0;
std::string message;
std::vector<Poisoned>& shared_arrays() {
  static std::vector<Poisoned> arrays;
  return arrays;
}
std::vector<std::unique_ptr<Stack>> stacks;
std::vector<Thread> threads;
std::vector<unsigned char> dynamic_memory;
unsigned char* dynamic_start = nullptr;
const std::function<void()>* body = nullptr;
int running = -1;
std::string failure;                // of the running launch
uint64_t products = 0, copies = 0;  // of the last launch
uint64_t launches = 0;
size_t static_bytes = 0;  // of the running launch
std::mt19937_64 copy_order;

std::string spell(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }
const char* spell(Meeting meeting) {
  switch (meeting) {
    case Meeting::kBlock: return "block barrier";
    case Meeting::kWarp: return "warp barrier";
    case Meeting::kShuffle: return "shuffle";
    case Meeting::kCombine: return "matrix instruction";
    default: return "vote";
  }
}
std::string spell_waiting(int thread) {
  const Thread& waiting = threads[thread];
  const std::string name = "thread " + std::to_string(thread);
  if (waiting.state == State::kDone) return name + " has finished";
  return name + " waits at the " + spell(waiting.meeting) + " of " + spell(waiting.site);
}

void thread_entry() {
  Thread& self = threads[running];
  try {
    (*body)();
  } catch (const std::exception& error) {
    if (failure.empty()) failure = error.what();
  }
  self.state = State::kDone;
  self.coroutine.suspend();
}

// Whether threads [first, last) all wait for the same meeting; a mix that can never meet is a failure.
bool all_met(int first, int last, bool whole_block) {
  int waiting = -1, other = -1;
  for (int t = first; t < last; ++t) {
    const Thread& thread = threads[t];
    const bool here = thread.state == State::kWaiting && (thread.meeting == Meeting::kBlock) == whole_block;
    if (here && waiting < 0) {
      waiting = t;
    } else if (!here) {
      other = t;
    } else if (!(thread.site == threads[waiting].site) || thread.meeting != threads[waiting].meeting ||
               thread.argument != threads[waiting].argument) {
      failure = "threads of one " + std::string(whole_block ? "block" : "warp") +
                " meet at different places: " + spell_waiting(waiting) + ", " + spell_waiting(t);
      return false;
    }
  }
  return waiting >= 0 && other < 0;
}

// Ends the meetings that are complete; true if there was one.
bool release() {
  const int count = static_cast<int>(threads.size());
  bool released = false;
  for (int first = 0; first < count; first += kWarpSize) {
    const int last = first + kWarpSize;
    if (!all_met(first, last, false)) continue;
    uint32_t values[kWarpSize], any = 0;
    for (int t = first; t < last; ++t) {
      values[t - first] = threads[t].value;
      any |= threads[t].value;
    }
    for (int t = first; t < last; ++t) {
      Thread& thread = threads[t];
      if (thread.meeting == Meeting::kShuffle) thread.value = values[(t - first) ^ thread.argument];
      if (thread.meeting == Meeting::kAny) thread.value = any;
      thread.state = State::kReady;
    }
    if (threads[first].meeting == Meeting::kCombine) {
      void* lanes[kWarpSize];
      for (int t = first; t < last; ++t) lanes[t - first] = threads[t].lane;
      threads[first].function(lanes);
    }
    released = true;
  }
  if (failure.empty() && all_met(0, count, true)) {
    for (Thread& thread : threads) thread.state = State::kReady;
    released = true;
  }
  return released && failure.empty();
}

// Every thread that waits for nothing runs once, in the order of the mode; false if there was none.
bool run_round(std::mt19937_64& random, std::vector<int>& order) {
  std::vector<bool> asleep(threads.size() / kWarpSize, false);
  if (seed != 0) {
    std::shuffle(order.begin(), order.end(), random);
    for (size_t warp = 0; warp < asleep.size(); ++warp) asleep[warp] = random() % 2 != 0;  // warps drift apart
  }
  bool ready = false;
  for (const int t : order) {
    if (threads[t].state != State::kReady) continue;
    ready = true;
    if (asleep[t / kWarpSize]) continue;
    running = t;
    threadIdx = dim3(static_cast<unsigned>(t), 0, 0);
    threads[t].coroutine.resume();
    if (!failure.empty()) return true;
  }
  return ready;
}

void run_block(std::mt19937_64& random, std::vector<int>& order) {
  std::memset(dynamic_memory.data(), 0xff, dynamic_memory.size());
  std::memset(dynamic_memory.data() + dynamic_memory.size() - kCanaryBytes, kCanary, kCanaryBytes);
  for (const Poisoned& array : shared_arrays()) std::memset(array.memory, 0xff, array.bytes);
  for (size_t t = 0; t < threads.size(); ++t) {
    threads[t].state = State::kReady;
    threads[t].copies.clear();
    threads[t].group = 0;
    threads[t].coroutine.start(stacks[t]->data(), thread_entry);
  }
  for (;;) {
    const bool ran = run_round(random, order);
    if (!failure.empty()) return;
    if (release() || ran) continue;
    if (!failure.empty()) return;
    int waiting = -1, missing = -1;
    for (int t = 0; t < static_cast<int>(threads.size()); ++t) {
      if (threads[t].state == State::kWaiting && waiting < 0) waiting = t;
    }
    if (waiting < 0) break;  // all have finished
    for (int t = 0; t < static_cast<int>(threads.size()) && missing < 0; ++t) {
      const bool same = threads[t].state == State::kWaiting && threads[t].site == threads[waiting].site;
      if (!same) missing = t;
    }
    failure = "deadlock: " + spell_waiting(waiting) + (missing < 0 ? "" : " but " + spell_waiting(missing));
    return;
  }
  for (size_t i = dynamic_memory.size() - kCanaryBytes; i < dynamic_memory.size(); ++i) {
    if (dynamic_memory[i] != kCanary) failure = "a write past the end of dynamic shared memory";
  }
}

}  // namespace

uint32_t meet(Meeting kind, uint32_t value, int argument, Site site) {
  Thread& self = threads[running];
  self.state = State::kWaiting;
  self.meeting = kind;
  self.site = site;
  self.value = value;
  self.argument = argument;
  self.coroutine.suspend();
  return self.value;
}

void combine(void* lane, void (*function)(void* const*), Site site) {
  threads[running].lane = lane;
  threads[running].function = function;
  meet(Meeting::kCombine, 0, 0, site);
}

void count_product() { ++products; }

namespace {
void perform(const Copy& copy) {
  if (copy.global == nullptr) {
    std::memset(copy.shared, 0, 16);
  } else {
    std::memcpy(copy.shared, copy.global, 16);
  }
}
}  // namespace

void start_copy(void* shared, const void* global) {
  if (global != nullptr) ++copies;
  const Copy copy = {shared, global, threads[running].group};
  if (seed != 0 && copy_order() % 2 != 0) {
    perform(copy);
  } else {
    threads[running].copies.push_back(copy);
  }
}

void commit_copies() { ++threads[running].group; }

void wait_for_copies(int pending) {
  Thread& self = threads[running];
  const auto arrived = [&](const Copy& copy) { return copy.group < self.group - pending; };
  for (const Copy& copy : self.copies) {
    if (arrived(copy)) perform(copy);
  }
  self.copies.erase(std::remove_if(self.copies.begin(), self.copies.end(), arrived), self.copies.end());
}

void fail(const char* what, Site site) { throw std::runtime_error(std::string(what) + " at " + spell(site)); }

unsigned char* dynamic_shared() { return dynamic_start; }

void poison_each_block(void* memory, size_t bytes) { shared_arrays().push_back({memory, bytes}); }

uint64_t launch_number() { return launches; }

void count_static(size_t bytes) { static_bytes += bytes; }

cudaError_t run(const std::function<void()>& kernel, dim3 grid, dim3 block, size_t shared_bytes, bool asked) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  const size_t count = block.x;
  if (count == 0 || count > 1024 || count % kWarpSize != 0 || block.y != 1 || block.z != 1 || grid.x == 0 ||
      grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 || shared_bytes > kMaxSharedBytes) {
    return cudaErrorInvalidConfiguration;
  }
  failure.clear();
  products = copies = 0;
  ++launches;
  static_bytes = 0;
  copy_order.seed(seed);
  body = &kernel;
  blockDim = block;
  gridDim = grid;
  threads.assign(count, Thread());
  while (stacks.size() < count) stacks.push_back(std::make_unique<Stack>());
  dynamic_memory.assign(shared_bytes + kCanaryBytes, 0);  // operator new aligns it to 16 bytes
  dynamic_start = dynamic_memory.data();

  std::mt19937_64 random(seed);
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::vector<uint64_t> blocks(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (seed != 0) std::shuffle(blocks.begin(), blocks.end(), random);
  for (const uint64_t index : blocks) {
    blockIdx = dim3(static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                    static_cast<unsigned>(index / grid.x / grid.y));
    run_block(random, order);
    const size_t most = asked ? kMaxSharedBytes : kUnaskedSharedBytes;
    if (failure.empty() && static_bytes + shared_bytes > most) {
      failure = "a block needs " + std::to_string(static_bytes + shared_bytes) + " bytes of shared memory, " +
                std::to_string(static_bytes) + " of them static, and has " + std::to_string(most);
    }
    if (failure.empty()) continue;
    message = failure + " (block " + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ")";
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1fu, fraction = bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000u : 0;
  const float magnitude = std::fabs(value);
  if (value != value) return 0x7fff;
  if (magnitude == 0) return sign;
  if (magnitude >= 65520.0f) return sign | 0x7c00u;
  int exponent;
  std::frexp(magnitude, &exponent);                                    // magnitude in [2^(exponent-1), 2^exponent)
  const int unit = std::max(exponent - 11, -24);                       // exponent of the last bit kept
  const float rounded = std::nearbyint(std::ldexp(magnitude, -unit));  // to nearest even
  const int whole = static_cast<int>(rounded);  // <= 2048; a carry moves into the exponent by itself
  return static_cast<uint16_t>(sign + (static_cast<uint32_t>(unit + 24) << 10) + static_cast<uint32_t>(whole));
}

}  // namespace cuda_host

extern "C" const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return cuda_host::message.c_str();
  }
}
extern "C" void cuda_host_set_seed(uint64_t seed) { cuda_host::seed = seed; }
extern "C" uint64_t cuda_host_products() { return cuda_host::products; }
extern "C" uint64_t cuda_host_copies() { return cuda_host::copies; }
extern "C" const char* cuda_host_message() { return cuda_host::message.c_str(); }
