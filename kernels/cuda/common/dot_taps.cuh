// The taps of a correlation window: dot products of one feature vector of frame 1 with those of frame 2.
//
// A warp takes its queries one after the other. Eight lanes share a tap, so a warp has four taps at hand and a group
// reads 128 consecutive bytes of each; every group keeps eight taps in flight, whose partial sums are reduced together
// with seven shuffles for all eight (log2(8) per tap otherwise). Any flow is equally fast: nothing is shared between
// queries except through the caches.
#pragma once

#include "common/window.cuh"

namespace daflow {
namespace cuda {

constexpr int kGroupLanes = 8;                    // lanes that share a tap
constexpr int kGroups = kWarpSize / kGroupLanes;  // taps side by side
constexpr int kGroupTaps = 8;                     // taps of a group in flight
constexpr int kBatchTaps = kGroups * kGroupTaps;  // taps of a warp between reductions
static_assert(kGroupTaps == kGroupLanes, "the reduction leaves one tap with each lane");

// Every lane of a group comes with eight partial sums; lane s leaves with the sum of values[s] over the group.
__device__ __forceinline__ float reduce_transposed(float (&values)[kGroupTaps], int lane) {
#pragma unroll
  for (int half = kGroupTaps / 2; half >= 1; half /= 2) {
    const bool upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? values[i + half] : values[i];
      const float given = upper ? values[i] : values[i + half];
      values[i] = kept + shuffle_xor(given, half);
    }
  }
  return values[0];
}

// The taps of one query: out[tap] = <f1, f2 at that tap>, zero outside the level. A whole warp takes part.
template <class T, int kCount>
__device__ __forceinline__ void query_taps(const Chunk& chunk, const Centre& centre, const T* f1, const MapView& level,
                                           const T* image, int channels, float* out) {
  const int lane = lane_index() % kGroupLanes, group = lane_index() / kGroupLanes;
  const int columns = chunk.columns(), taps = chunk.taps();
  const SmallDivisor by_columns(columns);
#pragma unroll 1  // registers are scarce
  for (int base = 0; base < taps; base += kBatchTaps) {
    const T* source[kGroupTaps];
    uint32_t live = 0;  // bit i: tap i of the group is inside the level
    int row = by_columns.quotient(base + group);
    int column = base + group - row * columns;
#pragma unroll
    for (int i = 0; i < kGroupTaps; ++i) {
      const int x = centre.first_x + chunk.first_x + column, y = centre.first_y + chunk.first_y + row;
      const bool use = base + group + i * kGroups < taps && inside(x, level.width) && inside(y, level.height);
      // A tap outside reads f1 instead, so that all loads are unconditional and overlap; its sum is dropped.
      source[i] = use ? image + y * level.stride_y + x * level.stride_x : f1;
      live |= (use ? 1u : 0u) << i;
      for (column += kGroups; column >= columns; column -= columns) ++row;
    }
    float sums[kGroupTaps] = {};
    if (any_in_warp(live != 0)) {
#pragma unroll 1  // eight loads in flight are enough; more would spill
      for (int c = lane * kCount; c < channels; c += kGroupLanes * kCount) {
        float a[kCount];
        load_floats(f1 + c, a);
#pragma unroll
        for (int i = 0; i < kGroupTaps; ++i) {
          float b[kCount];
          load_floats(source[i] + c, b);
#pragma unroll
          for (int j = 0; j < kCount; ++j) sums[i] = fused_multiply_add(a[j], b[j], sums[i]);
        }
      }
    }
    const float sum = reduce_transposed(sums, lane);
    const int tap = base + group + lane * kGroups;
    if (tap < taps) out[tap] = (live >> lane & 1u) != 0 ? sum : 0.0f;
  }
}

// Fills taps[query * stride + tap] for the tile of the block.
template <class T, int kCount>
__device__ __forceinline__ void dot_taps(const WindowParams& p, const Tile& tile, int64_t b, const Chunk& chunk,
                                         const Centre* centres, const MapView& fmap1, const MapView& level,
                                         int channels, float* taps, int stride) {
  const T* f1 = static_cast<const T*>(fmap1.data) + b * fmap1.stride_b;
  const T* image = static_cast<const T*>(level.data) + b * level.stride_b;
#pragma unroll 1  // registers are scarce
  for (int i = 0; i < kWarpQueries; ++i) {
    const int query = warp_index() * kWarpQueries + i;
    if (!tile.holds(p, query)) continue;  // the same for the whole warp
    query_taps<T, kCount>(chunk, centres[query], f1 + tile.y(query) * fmap1.stride_y + tile.x(query) * fmap1.stride_x,
                          level, image, channels, taps + query * stride);
  }
}

// Whether dot_taps may read 16 bytes at a time.
template <class Params>
bool all_vectorizable(const Params& p) {
  bool all = vectorizable(p.fmap1, p.channels, p.dtype);
  for (int level = 0; level < p.window.num_levels; ++level)
    all = all && vectorizable(p.levels[level], p.channels, p.dtype);
  return all;
}

}  // namespace cuda
}  // namespace daflow
