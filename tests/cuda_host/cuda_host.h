// CUDA on the CPU, for tests: gives the kernels of kernels/cuda a grid, blocks, shared memory, barriers, warp
// collectives and atomics, so that the very source nvcc compiles also runs under g++ and can be compared with a
// reference. Included instead of the CUDA headers when DAFLOW_CUDA_HOST is defined.
//
// The threads of a block are coroutines; each runs until it reaches a barrier or a warp collective. Blocks run one
// after the other. Found and reported with the source line: a barrier or collective that part of the threads never
// reaches, threads that meet at different ones, misaligned vector access, writes past dynamic shared memory. Shared
// memory is all NaN when a block starts. With a seed (cuda_host_set_seed) threads, warps and blocks run in shuffled
// order, which brings out missing barriers and results that depend on the order of atomics.
//
// Not modelled: memory ordering weaker than program order, bank conflicts, partial warps, anything about speed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#ifndef __forceinline__
#define __forceinline__ inline
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
extern "C" const char* cudaGetErrorString(cudaError_t error);  // of a launch failure: what went wrong, and where

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

// 0: threads and blocks in index order; else the seed of a shuffled order.
extern "C" __attribute__((visibility("default"))) void cuda_host_set_seed(uint64_t seed);
// How many products of warps the last launch made; and 16-byte pieces it copied asynchronously, zeros aside.
extern "C" __attribute__((visibility("default"))) uint64_t cuda_host_products();
extern "C" __attribute__((visibility("default"))) uint64_t cuda_host_copies();
// The message of the last launch that failed.
extern "C" __attribute__((visibility("default"))) const char* cuda_host_message();

namespace cuda_host {

// Where a wrapper was called from.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};
// The last parameters of a wrapper: its caller's place.
#define CUDA_HOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

enum class Meeting { kBlock, kWarp, kShuffle, kAny, kCombine };

// asked: for more than the 48 KB of shared memory that a block has otherwise.
cudaError_t run(const std::function<void()>& kernel, dim3 grid, dim3 block, size_t shared_bytes, bool asked);
constexpr size_t kMaxSharedBytes = 99 * 1024;  // the least that a block can ask for on sm_80 and later
// The calling thread waits for its block or warp; returns what the collective gives to this thread.
uint32_t meet(Meeting kind, uint32_t value, int argument, Site site);
// The calling thread waits for its warp; then `function` is called once with what every lane has brought.
void combine(void* lane, void (*function)(void* const* lanes), Site site);
// One more product of a warp (mma_host.h).
void count_product();
// 16 bytes to shared memory, zeros from a null pointer, some time before a wait for all but `pending` groups returns.
void start_copy(void* shared, const void* global);
void commit_copies();
void wait_for_copies(int pending);
[[noreturn]] void fail(const char* what, Site site);
unsigned char* dynamic_shared();
// Memory that becomes NaN at every start of a block.
void poison_each_block(void* memory, size_t bytes);
// The number of the running launch; and that its kernel has a static array of so many bytes.
uint64_t launch_number();
void count_static(size_t bytes);

// A __shared__ array: one per declaration, bounds checked.
template <class T, int kCount>
class Shared {
 public:
  Shared() {
    std::memset(data_, 0xff, sizeof data_);
    poison_each_block(data_, sizeof data_);
  }
  T& operator[](int index) {
    if (index < 0 || index >= kCount) fail("index outside a shared array", {"index", index});
    count();
    return data_[index];
  }
  operator T*() {
    count();
    return data_;
  }

 private:
  void count() {
    if (seen_ == launch_number()) return;
    seen_ = launch_number();
    count_static(sizeof data_);
  }
  alignas(16) T data_[kCount];
  uint64_t seen_ = 0;
};

template <class Vector>
void check_aligned(const void* address, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(Vector) != 0) fail("misaligned vector access", site);
}

uint16_t float_to_half(float value);
float half_to_float(uint16_t bits);

}  // namespace cuda_host

// ---- the wrappers of kernels/cuda/common/{runtime,device}.cuh -------------------------------------------------------
#define DAFLOW_SHARED(type, name, count) static ::cuda_host::Shared<type, (count)> name

namespace daflow {
namespace cuda {

template <class Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   const Params& params) {
  return cuda_host::run([&] { kernel(params); }, grid, block, shared_bytes, shared_bytes > kPlainSharedBytes);
}

inline size_t most_dynamic_bytes() { return cuda_host::kMaxSharedBytes - kStaticSharedBytes; }
inline unsigned char* dynamic_shared() { return cuda_host::dynamic_shared(); }

inline void sync_block(CUDA_HOST_SITE) { cuda_host::meet(cuda_host::Meeting::kBlock, 0, 0, {file, line}); }
inline void sync_warp(CUDA_HOST_SITE) { cuda_host::meet(cuda_host::Meeting::kWarp, 0, 0, {file, line}); }
inline float shuffle_xor(float value, int mask, CUDA_HOST_SITE) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = cuda_host::meet(cuda_host::Meeting::kShuffle, bits, mask, {file, line});
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline int shuffle_xor(int value, int mask, CUDA_HOST_SITE) {
  return static_cast<int>(
      cuda_host::meet(cuda_host::Meeting::kShuffle, static_cast<uint32_t>(value), mask, {file, line}));
}
inline bool any_in_warp(bool predicate, CUDA_HOST_SITE) {
  return cuda_host::meet(cuda_host::Meeting::kAny, predicate, 0, {file, line}) != 0;
}
inline uint32_t ballot(bool predicate, CUDA_HOST_SITE) {
  const uint32_t bit = static_cast<uint32_t>(predicate) << threadIdx.x % 32;
  return cuda_host::meet(cuda_host::Meeting::kAny, bit, 0, {file, line});
}
inline int count_bits(uint32_t word) { return __builtin_popcount(word); }

inline void atomic_add(float* target, float value) { *target += value; }
inline void atomic_add(int64_t* target, int64_t value) {
  *target = static_cast<int64_t>(static_cast<uint64_t>(*target) + static_cast<uint64_t>(value));  // wraps, as on a GPU
}
constexpr bool kVectorReductions = true;
inline void atomic_add_vector(float* target, const float* values, CUDA_HOST_SITE) {
  cuda_host::check_aligned<uint4>(target, {file, line});
  for (int i = 0; i < 4; ++i) target[i] += values[i];
}
inline void atomic_max(uint32_t* target, uint32_t value) {
  if (value > *target) *target = value;
}

template <class T>
T load(const T* address) {
  return *address;
}
inline uint4 load_vector(const void* address, CUDA_HOST_SITE) {
  cuda_host::check_aligned<uint4>(address, {file, line});
  uint4 value;
  std::memcpy(&value, address, sizeof value);
  return value;
}
inline void store_vector(void* address, uint4 value, CUDA_HOST_SITE) {
  cuda_host::check_aligned<uint4>(address, {file, line});
  std::memcpy(address, &value, sizeof value);
}

inline float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float half_to_float(uint16_t bits) { return cuda_host::half_to_float(bits); }
inline void half2_to_float(uint32_t word, float* low, float* high) {
  *low = cuda_host::half_to_float(static_cast<uint16_t>(word));
  *high = cuda_host::half_to_float(static_cast<uint16_t>(word >> 16));
}
inline uint16_t float_to_half(float value) { return cuda_host::float_to_half(value); }
inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline int64_t round_to_int64(float value) { return static_cast<int64_t>(std::nearbyint(value)); }
inline float int64_to_float(int64_t value) { return static_cast<float>(value); }

}  // namespace cuda
}  // namespace daflow
