// Element types of the per-ISA kernels and their conversion to the type they are accumulated in; for *_isa.cpp only.
// Everything lives in the namespace of the instruction set, so that the linker never mixes code of two sets.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/isa_dispatch.h"

#if DAFLOW_ISA_LEVEL >= 1
#include <immintrin.h>
#endif

namespace daflow {
namespace DAFLOW_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// float for everything up to float, double for double
template <class E>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class E>
using accumulate_t = typename Accumulate<E>::type;

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

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }

inline void narrow(float value, float* out) { *out = value; }
inline void narrow(double value, double* out) { *out = value; }
inline void narrow(double value, float* out) { *out = static_cast<float>(value); }
inline void narrow(float value, double* out) { *out = value; }
inline void narrow(float value, BFloat16* out) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  out->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

#if DAFLOW_ISA_LEVEL >= 1
inline float widen(Half value) { return _cvtsh_ss(value.bits); }
inline void narrow(float value, Half* out) { out->bits = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
#else
inline float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const float scaled = bits_float(magnitude << 13) * 0x1p112f;  // moves the exponent; exact, also for subnormals
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return bits_float(float_bits(scaled) | special | sign);
}
inline void narrow(float value, Half* out) {
  const uint32_t sign = (float_bits(value) >> 16) & 0x8000u;
  const uint32_t magnitude = float_bits(value) & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x47800000u) {
    half = 0x7c00u;  // 65536 and above
  } else if (magnitude < 0x38800000u) {
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;  // subnormal: the addition rounds
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(half | sign);
}
#endif

// A double accumulator stored in a narrow type is rounded twice, as torch's own cast does.
inline void narrow(double value, Half* out) { narrow(static_cast<float>(value), out); }
inline void narrow(double value, BFloat16* out) { narrow(static_cast<float>(value), out); }

// out[i] = in[i], widened to the accumulator.
template <class E, class A>
inline void widen_row(const E* in, A* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = widen(in[i]);
}

// out[i] = in[i], rounded once.
template <class A, class E>
inline void narrow_row(const A* in, E* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) narrow(in[i], out + i);
}

#if DAFLOW_ISA_LEVEL >= 1
inline void widen_row(const Half* in, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  for (; i < n; ++i) out[i] = widen(in[i]);
}

inline void narrow_row(const float* in, Half* out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) narrow(in[i], out + i);
}
#endif

// Calls f(E()) with the element type of a dtype.
template <class F>
inline void dispatch_element(Element dtype, const F& f) {
  switch (dtype) {
    case Element::f32: f(float()); return;
    case Element::f16: f(Half()); return;
    case Element::bf16: f(BFloat16()); return;
    case Element::f64: f(double()); return;
  }
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
