// The only place that names CUDA's device intrinsics: thin wrappers, which tests/cuda_host provides on the CPU.
// Blocks are one-dimensional and a whole number of warps.
#pragma once

#include "common/runtime.cuh"

#ifndef DAFLOW_CUDA_HOST
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DAFLOW_SHARED(type, name, count) __shared__ type name[count]

namespace daflow {
namespace cuda {

extern __shared__ uint4 dynamic_shared_memory[];
__device__ __forceinline__ unsigned char* dynamic_shared() {
  return reinterpret_cast<unsigned char*>(dynamic_shared_memory);
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
__device__ __forceinline__ bool any_in_warp(bool predicate) { return __any_sync(0xffffffffu, predicate) != 0; }

// Bit i: the predicate of lane i.
__device__ __forceinline__ uint32_t ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }
__device__ __forceinline__ int count_bits(uint32_t word) { return __popc(word); }

__device__ __forceinline__ void atomic_add(float* target, float value) { atomicAdd(target, value); }
__device__ __forceinline__ void atomic_add(int64_t* target, int64_t value) {
  // two's complement: the unsigned sum is the signed one
  atomicAdd(reinterpret_cast<unsigned long long*>(target), static_cast<unsigned long long>(value));
}
// Whether four neighbouring floats are added in one reduction.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kVectorReductions = true;
#else
constexpr bool kVectorReductions = false;
#endif
// target[0 ... 3] += values, each on its own; target is 16-byte aligned.
__device__ __forceinline__ void atomic_add_vector(float* target, const float* values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)), "f"(values[0]),
               "f"(values[1]), "f"(values[2]), "f"(values[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) atomicAdd(target + i, values[i]);
#endif
}
__device__ __forceinline__ void atomic_max(uint32_t* target, uint32_t value) { atomicMax(target, value); }

// Reads that no thread of the kernel writes: through the read-only path.
template <class T>
__device__ __forceinline__ T load(const T* address) {
  return __ldg(address);
}
__device__ __forceinline__ uint4 load_vector(const void* address) {
  return __ldg(reinterpret_cast<const uint4*>(address));
}
__device__ __forceinline__ void store_vector(void* address, uint4 value) { *reinterpret_cast<uint4*>(address) = value; }

__device__ __forceinline__ float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ uint32_t float_bits(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float bits_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ void half2_to_float(uint32_t word, float* low, float* high) {
  const float2 both = __half22float2(__halves2half2(__ushort_as_half(static_cast<uint16_t>(word)),
                                                    __ushort_as_half(static_cast<uint16_t>(word >> 16))));
  *low = both.x;
  *high = both.y;
}
__device__ __forceinline__ uint16_t float_to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }
__device__ __forceinline__ uint16_t float_to_bfloat16(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ int64_t round_to_int64(float value) { return __float2ll_rn(value); }
__device__ __forceinline__ float int64_to_float(int64_t value) { return __ll2float_rn(value); }

}  // namespace cuda
}  // namespace daflow
#endif

namespace daflow {
namespace cuda {

constexpr int kWarpSize = 32;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// The sum over groups of `width` lanes (a power of two), in every lane; in a fixed order.
__device__ __forceinline__ float sum_over_lanes(float value, int width) {
  for (int step = width / 2; step > 0; step /= 2) value += shuffle_xor(value, step);
  return value;
}

}  // namespace cuda
}  // namespace daflow
