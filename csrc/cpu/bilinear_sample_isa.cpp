#include "cpu/bilinear_corners_isa.h"
#include "cpu/vector_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

// out[i] = the weighted sum of the four taps
template <class E, class A>
void mix(const A* const* taps, const A* weights, int64_t n, E* out) {
  const A *const a = taps[0], *const b = taps[1], *const c = taps[2], *const d = taps[3];
  const A u = weights[0], v = weights[1], w = weights[2], z = weights[3];
  if constexpr (std::is_same_v<E, A>) {
    for (int64_t i = 0; i < n; ++i) out[i] = u * a[i] + v * b[i] + w * c[i] + z * d[i];
  } else {
    A sums[kRun];
    for (int64_t i = 0; i < n; ++i) sums[i] = u * a[i] + v * b[i] + w * c[i] + z * d[i];
    narrow_row(sums, out, n);
  }
}

// The output's planes of a group, from the first position of a block on.
template <class E>
E* out_planes(const SampleArgs& args, const Block& block, int64_t group) {
  return static_cast<E*>(args.out) + (block.image * args.channels + group * args.group_channels()) * args.positions +
         block.first;
}

// Channels are contiguous: vectors run over the channels of one position.
template <class E, class A>
void sample_channels_last(const SampleArgs& args, const Block& block, int64_t group, const E* feat,
                          const Corners<A>& corners) {
  E* const out = static_cast<E*>(args.out) + (block.image * args.positions + block.first) * args.channels +
                 group * args.group_channels();
  for (int64_t p = 0; p < block.count; ++p) {
    const A weights[4] = {corners.weight[0][p], corners.weight[1][p], corners.weight[2][p], corners.weight[3][p]};
    for_each_run(feat, corners, p, args.group_channels(), [&](int64_t c, int64_t n, const A* const* taps) {
      mix(taps, weights, n, out + p * args.channels + c);
    });
  }
}

// `planes` channels of one block, so that each offset and weight is loaded once for all of them.
template <int planes, class E, class A>
void sample_planes(const E* feat, int64_t stride_c, const Corners<A>& corners, int64_t count, E* out,
                   int64_t out_stride_c) {
  A sums[planes][kPixels];
  for (int64_t p = 0; p < count; ++p) {
    const E *const a = feat + corners.offset[0][p], *const b = feat + corners.offset[1][p];
    const E *const c = feat + corners.offset[2][p], *const d = feat + corners.offset[3][p];
    const A u = corners.weight[0][p], v = corners.weight[1][p], w = corners.weight[2][p], z = corners.weight[3][p];
    for (int plane = 0; plane < planes; ++plane) {
      const int64_t at = plane * stride_c;
      sums[plane][p] = u * widen(a[at]) + v * widen(b[at]) + w * widen(c[at]) + z * widen(d[at]);
    }
  }
  for (int plane = 0; plane < planes; ++plane) narrow_row(sums[plane], out + plane * out_stride_c, count);
}

// Any strides: the taps of a block serve every channel plane.
template <class E, class A>
void sample_any(const SampleArgs& args, const Block& block, int64_t group, const E* feat, const Corners<A>& corners) {
  E* const out = out_planes<E>(args, block, group);
  const int64_t stride = args.feat_stride_c, channels = args.group_channels();
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4)
    sample_planes<4>(feat + c * stride, stride, corners, block.count, out + c * args.positions, args.positions);
  for (; c < channels; ++c)
    sample_planes<1>(feat + c * stride, stride, corners, block.count, out + c * args.positions, args.positions);
}

// ---- rows whose pixels are neighbours in memory: vectors run over positions -----------------------------------------

constexpr int kLanes = lanes<float>;
constexpr int64_t kPairPixels = SampleArgs::pair_block;
// narrow pairs are widened by instructions only
template <class E>
constexpr bool kPaired = sizeof(E) == 4 || (sizeof(E) == 2 && DAFLOW_ISA_LEVEL >= 1);
constexpr bool kPermutes = DAFLOW_ISA_LEVEL >= 1;  // otherwise no lane goes anywhere in one instruction

// Where a block of positions reads. The two taps of a row are the pair of pixels from `start` on; only at the ends of a
// row the left tap may be the second pixel of its pair, or the right one the first.
struct Pairs {
  int start[2][kPairPixels];                                     // in the upper and the lower row
  int left_is_second[kPairPixels], right_is_first[kPairPixels];  // 0 or -1
  float weight[4][kPairPixels];                                  // of the taps, as in Corners
  struct {
    bool at_an_end;  // any of left_is_second and right_is_first
    bool near;       // in either row all pairs start among `lanes` neighbours, from `first` on
    int first[2];
  } tile[kPairPixels / kLanes];  // the positions of a vector
};

void find_tile(const SampleArgs& args, int64_t first, Pairs* pairs) {
  auto& tile = pairs->tile[first / kLanes];
  int any = 0;
  for (int64_t p = first; p < first + kLanes; ++p) any |= pairs->left_is_second[p] | pairs->right_is_first[p];
  tile.at_an_end = any != 0;
  tile.near = kPermutes;
  for (int row = 0; row < 2; ++row) {
    const int* const start = pairs->start[row] + first;
    int least = start[0], most = start[0];
    for (int i = 1; i < kLanes; ++i) {
      least = start[i] < least ? start[i] : least;
      most = start[i] > most ? start[i] : most;
    }
    tile.first[row] = least;
    tile.near = tile.near && most - least < kLanes && least + kLanes <= args.last_offset();
  }
}

void find_pairs(const SampleArgs& args, const Block& block, int64_t group, Pairs* pairs) {
  const int stride = static_cast<int>(args.feat_stride_y), last = args.width - 2;
  for (int64_t first = 0; first < block.count; first += kPixels) {
    const int64_t left = block.count - first, count = left < kPixels ? left : kPixels;
    AxisTaps<float> across, down;
    find_axes<false>(args, {block.image, block.first + first, count}, group, &across, &down);
    for (int64_t p = 0; p < count; ++p) {
      const int column = across.tap[0][p] < last ? across.tap[0][p] : last;
      pairs->start[0][first + p] = down.tap[0][p] * stride + column;
      pairs->start[1][first + p] = down.tap[1][p] * stride + column;
      pairs->left_is_second[first + p] = across.tap[0][p] == column ? 0 : -1;
      pairs->right_is_first[first + p] = across.tap[1][p] == column ? -1 : 0;
    }
    for (int tap = 0; tap < 4; ++tap)
      for (int64_t p = 0; p < count; ++p)
        pairs->weight[tap][first + p] = across.weight[tap & 1][p] * down.weight[tap / 2][p];
  }
  for (int64_t p = block.count; p % kLanes != 0; ++p) {  // the last vector is filled up
    pairs->start[0][p] = pairs->start[1][p] = 0;
    pairs->left_is_second[p] = pairs->right_is_first[p] = 0;
    for (int tap = 0; tap < 4; ++tap) pairs->weight[tap][p] = 0;
  }
  for (int64_t p = 0; p < block.count; p += kLanes) find_tile(args, p, pairs);
}

// Half of the pairs of a vector of positions, [left, right, left, right, ...], in the order in which `deal` takes them.
template <class E>
inline Vector<float> load_pairs(const E* plane, const int* start) {
  constexpr int part = part_lanes<float>;
  // a type of the vector registers that holds one pair: as an integer it would go through a general one
  using Pair = std::conditional_t<sizeof(E) == 4, double, float>;
  typedef Pair Bits __attribute__((vector_size(sizeof(Pair) * kLanes / 2)));
  Bits bits;
#pragma GCC unroll 8
  for (int i = 0; i < kLanes / 2; ++i) {
    Pair pair;
    std::memcpy(&pair, plane + start[i / (part / 2) * part + i % (part / 2)], sizeof pair);
    bits[i] = pair;
  }
  E elements[kLanes];
  std::memcpy(elements, &bits, sizeof elements);
  return load_wide(elements);
}

// The two taps in one row of a vector of positions.
struct RowTaps {
  Vector<float> left, right;
};

template <class E>
inline RowTaps load_row(const E* plane, const Pairs& pairs, int row, int64_t p) {
  const auto& tile = pairs.tile[p / kLanes];
  const int* const start = pairs.start[row] + p;
  RowTaps taps;
#if DAFLOW_ISA_LEVEL >= 1
  if (tile.near) {
    const E* const run = plane + tile.first[row];
    const Vector<int> index = load(start) - tile.first[row];
    taps = {permute(load_wide(run), index), permute(load_wide(run + 1), index)};
  } else
#endif
  {
    constexpr int part = part_lanes<float>;
    const Vector<float> a = load_pairs(plane, start), b = load_pairs(plane, start + part / 2);
    taps = {deal<float, 1, part, false>(a, b), deal<float, 1, part, true>(a, b)};
  }
  if (!tile.at_an_end) return taps;
  return {load(pairs.left_is_second + p) ? taps.right : taps.left,
          load(pairs.right_is_first + p) ? taps.left : taps.right};
}

template <class E>
void sample_pairs(const SampleArgs& args, const Block& block, int64_t group, const E* feat, const Pairs& pairs) {
  E* out = out_planes<E>(args, block, group);
  for (int64_t c = 0; c < args.group_channels(); ++c, feat += args.feat_stride_c, out += args.positions) {
    for (int64_t p = 0; p < block.count; p += kLanes) {
      const RowTaps upper = load_row(feat, pairs, 0, p), lower = load_row(feat, pairs, 1, p);
      const Vector<float> sum = load(pairs.weight[0] + p) * upper.left + load(pairs.weight[1] + p) * upper.right +
                                load(pairs.weight[2] + p) * lower.left + load(pairs.weight[3] + p) * lower.right;
      store_narrow<float>(out + p, sum, block.count - p);
      // the next channel: what a block reads of one is too short for the processor to foresee more
      for (int row = 0; row < 2; ++row) __builtin_prefetch(feat + args.feat_stride_c + pairs.start[row][p]);
    }
  }
}

}  // namespace

void bilinear_sample(const SampleArgs& args, int64_t first_unit, int64_t last_unit) {
  dispatch_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    using A = accumulate_t<E>;
    if constexpr (kPaired<E>)
      if (args.pairs) {
        Pairs pairs;
        return for_each_block<E>(args, first_unit, last_unit, kPairPixels,
                                 [&](const Block& block, int64_t group, const E* feat) {
                                   find_pairs(args, block, group, &pairs);
                                   sample_pairs(args, block, group, feat, pairs);
                                 });
      }
    Corners<A> corners;
    for_each_block<E>(args, first_unit, last_unit, kPixels, [&](const Block& block, int64_t group, const E* feat) {
      find_corners<false>(args, block, group, args.feat_stride_y, args.feat_stride_x, &corners);
      if (args.channels_last)
        sample_channels_last(args, block, group, feat, corners);
      else
        sample_any(args, block, group, feat, corners);
    });
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
