// Loops that the compiler turns into vector code, once per instruction set and picked at load. Contraction is off
// everywhere (-ffp-contract=off), so all of them give the same bits.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define DAFLOW_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DAFLOW_SIMD
#endif

namespace daflow::scene {

// The nearest whole number, ties to even; |x| < 2^22.
inline float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

inline float magnitude(float x) { return x < 0 ? -x : x; }

// sin(2 pi x) and cos(2 pi x) for |x| <= 1/2. The factor in front has the exact zeros, which makes the sine continuous
// from period to period; it is the sine's polynomial, not the sine itself, that defines the deformation.
inline float sine(float x) {
  const float z = x * x;
  const float p = 25.1327383f + z * (-64.8348859f + z * (67.0429372f + z * (-38.0943765f + z * 12.1356842f)));
  return x * (0.25f - z) * p;
}

inline float cosine(float x) {
  const float z = x * x;
  const float p = 15.9999939f + z * (-59.8253347f + z * (81.7200042f + z * (-57.7419550f + z * 21.6095123f)));
  return (0.0625f - z) * p;
}

}  // namespace daflow::scene
