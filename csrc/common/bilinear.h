// The one definition of the four-tap weights: where a real-valued position reads and how much each tap counts.
// Free of torch and of the standard library; for host C++, the per-ISA translation units and CUDA device code.
#pragma once

// Always inlined: a copy kept out of line would be shared by translation units of different instruction sets.
#if defined(__CUDACC__)
#define DAFLOW_INLINE __host__ __device__ __forceinline__
#else
#define DAFLOW_INLINE inline __attribute__((always_inline))
#endif

namespace daflow {

// True for 0 <= index < size, in one comparison.
DAFLOW_INLINE bool inside(int index, int size) { return static_cast<unsigned>(index) < static_cast<unsigned>(size); }

template <class T>
DAFLOW_INLINE bool is_finite(T value) {
  return value - value == T(0);
}

// A position on one axis: first = floor(position), fraction = position - first in [0, 1].
// Not live: no tap of the window can be inside (or the position is not finite); first and fraction are 0 then.
template <class T>
struct Split {
  int first;
  T fraction;
  int live;  // 0 or 1: a bool in a struct would keep GCC from making vectors of loops over positions
};

// Splits a position whose window reads the taps first - radius ... first + radius + 1 of an axis of `size` pixels.
// A dead position never becomes an integer, so NaN, Inf and 1e30 are safe.
template <class T>
DAFLOW_INLINE Split<T> split(T position, int size, int radius) {
  Split<T> result;
  result.live = size > 0 && position >= T(-1 - radius) && position < T(size) + T(radius);  // false for NaN
  const T safe = result.live ? position : T(0);
  const int truncated = static_cast<int>(safe);
  result.first = truncated - (T(truncated) > safe ? 1 : 0);
  result.fraction = safe - T(result.first);
  return result;
}

// The weight of the right tap: clamp(s (t - 1/2) + 1/2, 0, 1); s = 1 is t itself.
template <class T>
DAFLOW_INLINE T ramp(T fraction, T sharpness) {
  if (sharpness == T(1)) return fraction;
  const T weight = sharpness * (fraction - T(0.5)) + T(0.5);
  return weight < T(0) ? T(0) : (weight > T(1) ? T(1) : weight);
}

// d ramp / d fraction: s on the slope (both ends included, as torch.clamp has it), 0 where it is flat.
template <class T>
DAFLOW_INLINE T ramp_slope(T fraction, T sharpness) {
  if (sharpness == T(1)) return T(1);
  const T weight = sharpness * (fraction - T(0.5)) + T(0.5);
  return weight >= T(0) && weight <= T(1) ? sharpness : T(0);
}

// Two neighbouring taps of one axis: `first` weighs 1 - weight, `first + 1` weighs weight, and slope is the derivative
// of weight by position. Either tap may be outside the axis: it counts zero, or (border) clamp_tap moves it to the
// edge.
template <class T>
struct Taps {
  int first;
  T weight;
  T slope;
  int live;  // as in Split
};

template <class T>
DAFLOW_INLINE Taps<T> bilinear_taps(T position, int size, bool border, T sharpness) {
  T moved = position;
  bool free = true;  // false where the border holds the position, which then has no gradient
  if (border) {
    const T last = T(size - 1);
    moved = position < T(0) ? T(0) : (position > last ? last : position);
    free = moved == position;
    if (!is_finite(position)) moved = position;
  }
  const Split<T> axis = split(moved, size, 0);
  return {axis.first, ramp(axis.fraction, sharpness), free ? ramp_slope(axis.fraction, sharpness) : T(0), axis.live};
}

// The nearest pixel of the axis.
DAFLOW_INLINE int clamp_tap(int index, int size) { return index < 0 ? 0 : (index >= size ? size - 1 : index); }

}  // namespace daflow
