// Where the positions of bilinear_sample read, and loops over them; shared by its forward and backward kernels; for
// *_isa.cpp only.
#pragma once

#include <type_traits>

#include "cpu/bilinear_sample_isa.h"
#include "cpu/elements_isa.h"

namespace daflow {
namespace DAFLOW_ISA {

constexpr int64_t kPixels = SampleArgs::pixel_block;

// The four taps of a block of positions: 0 = upper left, 1 = upper right, 2 = lower left, 3 = lower right. A tap that
// does not count has weight 0 and the offset of some pixel, so that loops over channels need no branch.
template <class A>
struct Corners {
  int64_t offset[4][kPixels];
  A weight[4][kPixels];
  A slope_x[4][kPixels];  // derivatives of the weights by the position
  A slope_y[4][kPixels];
};

// Positions [first, first + count) of one image.
struct Block {
  int64_t image, first, count;
};

inline Block block_of(const SampleArgs& args, int64_t unit) {
  const int64_t first = unit % args.position_blocks() * args.block;
  const int64_t left = args.positions - first;
  return {unit / args.position_blocks(), first, left < args.block ? left : args.block};
}

// Both taps of a run of positions on one axis: the pixel (moved inside), its weight and the derivative of the weight by
// the position. A tap that does not count has weight 0.
template <class A>
struct AxisTaps {
  int tap[2][kPixels];
  A weight[2][kPixels], slope[2][kPixels];
};

// Inlined with a constant sharpness where it is 1, and in two passes: so the compiler makes vectors of the loops.
template <bool slopes, class A>
DAFLOW_INLINE void find_taps(const A* positions, int64_t count, int size, bool border, A sharpness, AxisTaps<A>* axis) {
  int first[kPixels], live[kPixels];
  A weight[kPixels], slope[kPixels];
  for (int64_t p = 0; p < count; ++p) {
    const Taps<A> taps = bilinear_taps(positions[p], size, border, sharpness);
    first[p] = taps.first;
    live[p] = taps.live;
    weight[p] = taps.weight;
    if (slopes) slope[p] = taps.slope;
  }
  for (int right = 0; right < 2; ++right) {
    for (int64_t p = 0; p < count; ++p) {
      const int tap = first[p] + right;
      const bool counts = live[p] & (border | inside(tap, size));
      axis->tap[right][p] = clamp_tap(tap, size);
      axis->weight[right][p] = counts ? (right ? weight[p] : 1 - weight[p]) : A(0);
      if (slopes) axis->slope[right][p] = counts ? (right ? slope[p] : -slope[p]) : A(0);
    }
  }
}

// Both axes of a block of at most kPixels positions.
template <bool slopes, class A>
void find_axes(const SampleArgs& args, const Block& block, int64_t group, AxisTaps<A>* across, AxisTaps<A>* down) {
  const A* positions =
      static_cast<const A*>(args.coords) + (block.image * args.groups + group) * 2 * args.positions + block.first;
  const auto find = [&](int size, AxisTaps<A>* axis) {
    if (args.sharpness != 1)
      find_taps<slopes>(positions, block.count, size, args.border, static_cast<A>(args.sharpness), axis);
    else if (args.border)
      find_taps<slopes>(positions, block.count, size, true, A(1), axis);
    else
      find_taps<slopes>(positions, block.count, size, false, A(1), axis);
  };
  find(args.width, across);
  positions += args.positions;
  find(args.height, down);
}

template <bool slopes, class A>
void find_corners(const SampleArgs& args, const Block& block, int64_t group, int64_t stride_y, int64_t stride_x,
                  Corners<A>* corners) {
  AxisTaps<A> across, down;
  find_axes<slopes>(args, block, group, &across, &down);
  for (int tap = 0; tap < 4; ++tap) {
    const int right = tap & 1, lower = tap / 2;
    for (int64_t p = 0; p < block.count; ++p) {
      corners->offset[tap][p] = down.tap[lower][p] * stride_y + across.tap[right][p] * stride_x;
      corners->weight[tap][p] = across.weight[right][p] * down.weight[lower][p];
      if (!slopes) continue;
      corners->slope_x[tap][p] = across.slope[right][p] * down.weight[lower][p];
      corners->slope_y[tap][p] = across.weight[right][p] * down.slope[lower][p];
    }
  }
}

constexpr int64_t kRun = 128;  // elements converted at once

// A row of the accumulator's type is used where it is, another is widened into `buffer` first.
template <class E, class A>
const A* widened(const E* row, int64_t n, A* buffer) {
  if constexpr (std::is_same_v<E, A>) {
    return row;
  } else {
    widen_row(row, buffer, n);
    return buffer;
  }
}

// Channels [0, n) at one position, in runs that fit the buffers: f(first channel, run length, the four taps).
template <class E, class A, class F>
void for_each_run(const E* feat, const Corners<A>& corners, int64_t p, int64_t n, const F& f) {
  A buffer[4][kRun];
  for (int64_t c = 0; c < n; c += kRun) {
    const int64_t length = n - c < kRun ? n - c : kRun;
    const A* taps[4];
    for (int tap = 0; tap < 4; ++tap) taps[tap] = widened(feat + corners.offset[tap][p] + c, length, buffer[tap]);
    f(c, length, taps);
  }
}

// Calls f(block, group, the group's channels of the image) for every group and block of the units, in blocks of at most
// `size` positions.
template <class E, class F>
void for_each_block(const SampleArgs& args, int64_t first_unit, int64_t last_unit, int64_t size, const F& f) {
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const Block whole = block_of(args, unit);
    for (int64_t first = 0; first < whole.count; first += size) {
      const int64_t left = whole.count - first;
      const Block block{whole.image, whole.first + first, left < size ? left : size};
      for (int64_t group = 0; group < args.groups; ++group)
        f(block, group,
          static_cast<const E*>(args.feat) + block.image * args.feat_stride_b +
              group * args.group_channels() * args.feat_stride_c);
    }
  }
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
