// Sums by atomics, in two kinds: float32 (fast; the rounding depends on the order in which threads arrive) and exact
// (the same bits in every run).
//
// Why fixed point for the exact kind: integer addition is associative, so 64-bit atomics give one answer whatever the
// order, with no sorting, no lists of who writes where, and the scatter kernel stays the same. The unit is chosen on
// the device, without a host sync, from a bound on every term and on their number: 2^62 units hold the largest possible
// sum, so nothing overflows and a term keeps at least 62 - log2(terms) bits below the largest one (46 for 65536 terms,
// against 24 of float32). It costs twice the memory and traffic of float32 sums, a pass over the inputs for the bound
// and a pass that converts. The alternative, gathering per target over queries sorted by window row, needs a sort and
// loses its balance where many windows meet.
//
// If an input of the sum is not finite, or a product would leave the range of float32, the whole tensor of sums is NaN
// (float sums would have NaN or Inf in the elements concerned): an overflow is seen, never hidden.
#pragma once

#include "common/bilinear.h"
#include "common/device.cuh"

namespace daflow {
namespace cuda {

struct FloatSum {
  using type = float;
  __device__ __forceinline__ FloatSum(const uint32_t*, float, int64_t, int) {}
  __device__ __forceinline__ void add(float* target, float value) const { atomic_add(target, value); }
  // kCount neighbours: one, or a multiple of four from a 16-byte boundary on.
  template <int kCount>
  __device__ __forceinline__ void add(float* target, const float (&values)[kCount]) const {
    if constexpr (kCount == 1) {
      atomic_add(target, values[0]);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; j += 4) atomic_add_vector(target + j, values + j);
    }
  }
  __device__ __forceinline__ float total(float sum) const { return sum; }
};

// Exponent e with |value| < 2^e; of a bound that is finite and not zero.
__device__ __forceinline__ int exponent_above(float bound) {
  const int field = static_cast<int>(float_bits(bound) >> 23 & 0xffu);
  return (field == 0 ? 1 : field) - 126;
}

struct ExactSum {
  using type = int64_t;
  float up_a, up_b;      // value * up_a * up_b: in units; two factors, because one could leave the range of float
  float down_a, down_b;  // and back
  bool finite;

  // Terms are |factor| * bounds[0] * bounds[1] ... at most, and no more than `terms` of them meet in one element.
  __device__ __forceinline__ ExactSum(const uint32_t* bounds, float factor, int64_t terms, int count) {
    finite = is_finite(factor);
    bool zero = factor == 0.0f;
    int exponent = zero || !finite ? 0 : exponent_above(factor);
    for (int i = 0; i < count; ++i) {
      const float bound = bits_float(bounds[i]);
      finite = finite && is_finite(bound);
      zero = zero || bound == 0.0f;
      if (finite) exponent += exponent_above(bound);
    }
    finite = finite && (zero || exponent <= 127);
    int carry = 0;
    while (terms >> carry != 0) ++carry;
    int shift = 62 - carry - (exponent < -149 ? -149 : exponent);
    if (zero || !finite) shift = 0;
    const int half = shift / 2;
    up_a = power_of_two(half);
    up_b = power_of_two(shift - half);
    down_a = power_of_two(-half);
    down_b = power_of_two(half - shift);
  }
  __device__ __forceinline__ void add(int64_t* target, float value) const {
    if (finite) atomic_add(target, round_to_int64(value * up_a * up_b));
  }
  __device__ __forceinline__ void add(int64_t* target, const float (&values)[1]) const { add(target, values[0]); }
  __device__ __forceinline__ float total(int64_t sum) const {
    return finite ? int64_to_float(sum) * down_a * down_b : bits_float(0x7fc00000u);
  }

 private:
  static __device__ __forceinline__ float power_of_two(int exponent) {  // -126 ... 127
    return bits_float(static_cast<uint32_t>(exponent + 127) << 23);
  }
};

}  // namespace cuda
}  // namespace daflow
