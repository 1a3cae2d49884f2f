// The AVX-512 instructions that csrc/cpu names, for machines without them: included before the kernels of levels 2 and
// 3 where CMake is given DAFLOW_EMULATE_AVX512. The compiler splits their 64-byte vectors for AVX2. Source: Intel 64
// and IA-32 Architectures Software Developer's Manual, volume 2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace avx512_host {

// N lanes at p, those outside the mask zero and not read.
template <class Vector, class Lane>
inline Vector load(uint64_t mask, const void* p) {
  constexpr size_t n = sizeof(Vector) / sizeof(Lane);
  Lane lanes[n] = {};
  for (size_t i = 0; i < n; ++i)
    if (mask >> i & 1) std::memcpy(&lanes[i], static_cast<const char*>(p) + i * sizeof(Lane), sizeof(Lane));
  Vector v;
  std::memcpy(&v, lanes, sizeof v);
  return v;
}

inline __m512 widen_halves(__mmask16 mask, __m256i halves) {
  __m256 parts[2];
  parts[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
  parts[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
  return load<__m512, float>(mask, parts);
}

inline __m512i widen_words(__mmask16 mask, __m256i words) {
  __m256i parts[2];
  parts[0] = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(words));
  parts[1] = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words, 1));
  return load<__m512i, uint32_t>(mask, parts);
}

inline __m512i shift_left(__mmask16 mask, __m512i v, unsigned count) {
  uint32_t lanes[16];
  std::memcpy(lanes, &v, sizeof v);
  for (uint32_t& lane : lanes) lane <<= count;
  return load<__m512i, uint32_t>(mask, lanes);
}

inline __m512 permute(__mmask16 mask, __m512i index, __m512 v) {
  uint32_t indices[16];
  float in[16], out[16];
  std::memcpy(indices, &index, sizeof index);
  std::memcpy(in, &v, sizeof v);
  for (int i = 0; i < 16; ++i) out[i] = in[indices[i] % 16];
  return load<__m512, float>(mask, out);
}

// Adds the product of the odd, then of the even bfloat16 of every lane; keeps denormals, which the instruction takes
// for zero and flushes.
inline __m512 dot_bfloat16(__m512 sums, __m512bh a, __m512bh b) {
  uint32_t of_a[16], of_b[16];
  float out[16];
  std::memcpy(of_a, &a, sizeof a);
  std::memcpy(of_b, &b, sizeof b);
  std::memcpy(out, &sums, sizeof sums);
  const auto bits_float = [](uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  };
  for (int i = 0; i < 16; ++i) {
    out[i] += bits_float(of_a[i] & 0xffff0000u) * bits_float(of_b[i] & 0xffff0000u);
    out[i] += bits_float(of_a[i] << 16) * bits_float(of_b[i] << 16);
  }
  return load<__m512, float>(~uint64_t{0}, out);
}

}  // namespace avx512_host

#define _mm256_maskz_loadu_epi16(mask, p) avx512_host::load<__m256i, uint16_t>(mask, p)
#define _mm512_loadu_si512(p) avx512_host::load<__m512i, uint32_t>(~uint64_t{0}, p)
#define _mm512_maskz_loadu_epi16(mask, p) avx512_host::load<__m512i, uint16_t>(mask, p)
#define _mm512_maskz_loadu_ps(mask, p) avx512_host::load<__m512, float>(mask, p)
#define _mm512_maskz_cvtph_ps(mask, v) avx512_host::widen_halves(mask, v)
#define _mm512_maskz_cvtepu16_epi32(mask, v) avx512_host::widen_words(mask, v)
#define _mm512_maskz_slli_epi32(mask, v, count) avx512_host::shift_left(mask, v, count)
#define _mm512_maskz_permutexvar_ps(mask, index, v) avx512_host::permute(mask, index, v)
#define _mm512_stream_si512(p, v) (*(p) = (v))
#define _mm512_dpbf16_ps(sums, a, b) avx512_host::dot_bfloat16(sums, a, b)
