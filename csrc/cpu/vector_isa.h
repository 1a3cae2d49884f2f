// SIMD vectors of the instruction set being compiled, and the two forms in which features enter a product; for
// *_isa.cpp only. Built on the vector extension of GCC and Clang, so that arithmetic is written with + and *.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/elements_isa.h"

namespace daflow {
namespace DAFLOW_ISA {

constexpr int kVectorBytes = DAFLOW_ISA_LEVEL >= 2 ? 64 : (DAFLOW_ISA_LEVEL == 1 ? 32 : 16);
constexpr int kVectorRegisters = DAFLOW_ISA_LEVEL >= 2 ? 32 : 16;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
constexpr T round_up(T value, T multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

template <class T>
inline Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}
template <class T>
inline void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}

// Writes past the caches, where the instruction set can; p is aligned to the vector.
template <class T>
inline void stream(T* p, Vector<T> v) {
#if DAFLOW_ISA_LEVEL >= 2
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif DAFLOW_ISA_LEVEL == 1
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
  store(p, v);
#endif
}

// Keeps a loaded vector in its register: GCC would rather load it again for every use.
template <class V>
inline void keep(V& v) {
#if DAFLOW_ISA_LEVEL >= 2 && defined(DAFLOW_EMULATE_AVX512)
  asm("" : "+m"(v));
#elif DAFLOW_ISA_LEVEL >= 2
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

// x * a + y * b, in the same bits wherever it stands: left to itself the compiler fuses the sum with one product, with
// the other or with none.
template <class V>
inline V blend(V x, V a, V y, V b) {
  V left = x * a, right = y * b;
  keep(left);
  keep(right);
  return left + right;
}

#if DAFLOW_ISA_LEVEL >= 2
// Lane i becomes lane index[i] of v. maskz: the plain form starts from an undefined vector, which GCC warns about.
inline Vector<float> permute(Vector<float> v, Vector<int> index) {
  return (Vector<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)v);
}
#elif DAFLOW_ISA_LEVEL == 1
inline Vector<float> permute(Vector<float> v, Vector<int> index) {
  return (Vector<float>)_mm256_permutevar8x32_ps((__m256)v, (__m256i)index);
}
#endif

// ---- loads that widen to the accumulator; the second form reads n < lanes elements and fills up with zeros ----------

template <class E>
inline Vector<accumulate_t<E>> load_wide(const E* p) {
  Vector<accumulate_t<E>> v;
  for (int i = 0; i < lanes<accumulate_t<E>>; ++i) v[i] = widen(p[i]);
  return v;
}
inline Vector<float> load_wide(const float* p) { return load(p); }
inline Vector<double> load_wide(const double* p) { return load(p); }

template <class E>
inline Vector<accumulate_t<E>> load_wide(const E* p, int64_t n) {
  Vector<accumulate_t<E>> v{};
  for (int64_t i = 0; i < n; ++i) v[i] = widen(p[i]);
  return v;
}

#if DAFLOW_ISA_LEVEL >= 2
inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
// maskz with a full mask: the plain intrinsics start from an undefined vector, which GCC warns about
inline Vector<float> widen_vector(Half, __m256i bits) { return (Vector<float>)_mm512_maskz_cvtph_ps(0xffff, bits); }
inline Vector<float> widen_vector(BFloat16, __m256i bits) {
  return (Vector<float>)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16);
}
inline Vector<float> load_wide(const Half* p) { return widen_vector(Half(), _mm256_loadu_si256((const __m256i*)p)); }
inline Vector<float> load_wide(const BFloat16* p) {
  return widen_vector(BFloat16(), _mm256_loadu_si256((const __m256i*)p));
}
inline Vector<float> load_wide(const float* p, int64_t n) {
  return (Vector<float>)_mm512_maskz_loadu_ps(first_lanes(n), p);
}
inline Vector<float> load_wide(const Half* p, int64_t n) {
  return widen_vector(Half(), _mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline Vector<float> load_wide(const BFloat16* p, int64_t n) {
  return widen_vector(BFloat16(), _mm256_maskz_loadu_epi16(first_lanes(n), p));
}
#elif DAFLOW_ISA_LEVEL == 1
inline Vector<float> load_wide(const Half* p) {
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
inline Vector<float> load_wide(const BFloat16* p) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return (Vector<float>)_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
#endif

// Writes the first n values, or all where there are fewer, each rounded once.
template <class A, class E>
inline void store_narrow(E* out, Vector<A> v, int64_t n) {
  if constexpr (std::is_same_v<E, A>)
    if (n >= lanes<A>) return store(out, v);
  A values[lanes<A>];
  store(values, v);
  narrow_row(values, out, n < lanes<A> ? n : lanes<A>);
}

// ---- products of features: Operand holds `step` channels --------------------------------------------------------

// Every channel widened to a lane of the accumulator.
template <class E>
struct Widened {
  using Element = E;
  using Sum = accumulate_t<E>;
  using Operand = Vector<Sum>;
  static constexpr int step = lanes<Sum>;
  static Operand load(const E* p) { return load_wide(p); }
  static Operand load(const E* p, int64_t n) { return load_wide(p, n); }
  static void multiply_add(Vector<Sum>& sum, Operand a, Operand b) { sum += a * b; }
};

template <class E>
struct ProductsOf {
  using type = Widened<E>;
};

#if DAFLOW_ISA_LEVEL >= 3
// Two bfloat16 channels per lane, which the dot-product instruction multiplies exactly and adds in float32.
struct BFloat16Pairs {
  using Element = BFloat16;
  using Sum = float;
  using Operand = __m512i;
  static constexpr int step = 32;
  static Operand load(const Element* p) { return _mm512_loadu_si512(p); }
  static Operand load(const Element* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1ull), p);
  }
  static void multiply_add(Vector<float>& sum, Operand a, Operand b) {
    sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
template <>
struct ProductsOf<BFloat16> {
  using type = BFloat16Pairs;
};
#endif

template <class E>
using Products = typename ProductsOf<E>::type;

// ---- sums and transposes --------------------------------------------------------------------------------------------

// Lanes of the 128-bit parts of a vector: within them any two lanes change places in one instruction.
template <class T>
constexpr int part_lanes = 16 / static_cast<int>(sizeof(T));

// In every span of lanes the even units of a, then those of b; or the odd ones. This is the lane of (a, b) that comes
// to `lane`.
constexpr int dealt_lane(int lane, int lanes, int unit, int span, bool odd) {
  const int at = lane % span % (span / 2);
  const int from = lane / span * span + (2 * (at / unit) + (odd ? 1 : 0)) * unit + at % unit;
  return lane % span < span / 2 ? from : lanes + from;
}

template <class T, int Unit, int Span, bool Odd, size_t... I>
inline Vector<T> deal(Vector<T> a, Vector<T> b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, dealt_lane(I, lanes<T>, Unit, Span, Odd)...);
#else
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  return __builtin_shuffle(a, b, Vector<Index>{dealt_lane(I, lanes<T>, Unit, Span, Odd)...});
#endif
}
template <class T, int Unit, int Span, bool Odd>
inline Vector<T> deal(Vector<T> a, Vector<T> b) {
  return deal<T, Unit, Span, Odd>(a, b, std::make_index_sequence<lanes<T>>());
}

// Lane j = the sum of the lanes of v[j]: of every v[j] taken in the same order.
// Items shrink from `Width` lanes to one, first within the parts.
template <class T, int J, int Width = lanes<T>>
inline Vector<T> fold(const Vector<T> (&v)[J]) {
  if constexpr (J == 1) {
    return v[0];
  } else {
    constexpr bool within = Width > lanes<T> / part_lanes<T>;
    constexpr int unit = within ? 1 : part_lanes<T>, span = within ? part_lanes<T> : lanes<T>;
    Vector<T> folded[J / 2];
#pragma GCC unroll 16
    for (int j = 0; j < J / 2; ++j) {
      const Vector<T> a = v[2 * j], b = v[2 * j + 1];
      folded[j] = deal<T, unit, span, false>(a, b) + deal<T, unit, span, true>(a, b);
    }
    return fold<T, J / 2, Width / 2>(folded);
  }
}
template <class T>
inline Vector<T> sums_of_lanes(const Vector<T> (&v)[lanes<T>]) {
  return fold<T, lanes<T>>(v);
}

// Transposes squares of `Span / Unit` units: the rows Step vectors apart, the columns the units of a span.
template <class T, int Unit, int Span, int Step, int Rounds = Span / Unit>
inline void transpose_units(Vector<T> (&v)[lanes<T>]) {
  if constexpr (Rounds > 1) {
    constexpr int rows = Span / Unit;
    Vector<T> next[lanes<T>];
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T> / 2; ++i) {
      const int group = i / (rows / 2), pair = i % (rows / 2);
      const int first = group / Step * rows * Step + group % Step;
      const Vector<T> a = v[first + 2 * pair * Step], b = v[first + (2 * pair + 1) * Step];
      next[first + pair * Step] = deal<T, Unit, Span, false>(a, b);
      next[first + (pair + rows / 2) * Step] = deal<T, Unit, Span, true>(a, b);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T>; ++i) v[i] = next[i];
    transpose_units<T, Unit, Span, Step, Rounds / 2>(v);
  }
}

// Transposes a square of vectors: afterwards lane q of v[j] is what lane j of v[q] was.
template <class T>
inline void transpose(Vector<T> (&v)[lanes<T>]) {
  transpose_units<T, 1, part_lanes<T>, 1>(v);
  transpose_units<T, part_lanes<T>, lanes<T>, part_lanes<T>>(v);
}

// The sum of the lanes.
template <class T>
inline T sum_lanes(Vector<T> v) {
  T sum = 0;
  for (int i = 0; i < lanes<T>; ++i) sum += v[i];
  return sum;
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
