#include <type_traits>

#include "cpu/bilinear_corners_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

constexpr int64_t kChannels = SampleArgs::max_channel_block;

// products[tap][p] = sum over channels of gradient times tap.
template <class E, class A>
void products_channels_last(const SampleArgs& args, const Block& block, int64_t group, const E* feat,
                            const Corners<A>& corners, A (*products)[kPixels]) {
  constexpr int64_t lanes = 16;
  const E* const grad = static_cast<const E*>(args.grad) +
                        (block.image * args.positions + block.first) * args.channels + group * args.group_channels();
  for (int64_t p = 0; p < block.count; ++p) {
    A partial[4][lanes] = {};
    for_each_run(feat, corners, p, args.group_channels(), [&](int64_t c, int64_t n, const A* const* taps) {
      A buffer[kRun];
      const A* const g = widened(grad + p * args.channels + c, n, buffer);
      for (int tap = 0; tap < 4; ++tap) {
        int64_t i = 0;
        for (; i + lanes <= n; i += lanes)
          for (int64_t lane = 0; lane < lanes; ++lane) partial[tap][lane] += g[i + lane] * taps[tap][i + lane];
        for (int64_t lane = 0; i < n; ++i, ++lane) partial[tap][lane] += g[i] * taps[tap][i];
      }
    });
    for (int tap = 0; tap < 4; ++tap) {
      for (int64_t half = lanes / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) partial[tap][lane] += partial[tap][lane + half];
      products[tap][p] = partial[tap][0];
    }
  }
}

// Adds `planes` channels of one block to its products.
template <int planes, class E, class A>
void add_products(const E* feat, int64_t stride_c, const Corners<A>& corners, int64_t count, const E* grad,
                  int64_t grad_stride_c, A (*products)[kPixels]) {
  A buffer[planes][kPixels];
  const A* g[planes];
  for (int plane = 0; plane < planes; ++plane) g[plane] = widened(grad + plane * grad_stride_c, count, buffer[plane]);
  for (int64_t p = 0; p < count; ++p) {
    for (int tap = 0; tap < 4; ++tap) {
      const E* const at = feat + corners.offset[tap][p];
      A sum = products[tap][p];
      for (int plane = 0; plane < planes; ++plane) sum += g[plane][p] * widen(at[plane * stride_c]);
      products[tap][p] = sum;
    }
  }
}

template <class E, class A>
void products_any(const SampleArgs& args, const Block& block, int64_t group, const E* feat, const Corners<A>& corners,
                  A (*products)[kPixels]) {
  const E* const grad = static_cast<const E*>(args.grad) +
                        (block.image * args.channels + group * args.group_channels()) * args.positions + block.first;
  const int64_t stride = args.feat_stride_c, channels = args.group_channels();
  for (int tap = 0; tap < 4; ++tap)
    for (int64_t p = 0; p < block.count; ++p) products[tap][p] = 0;
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4)
    add_products<4>(feat + c * stride, stride, corners, block.count, grad + c * args.positions, args.positions,
                    products);
  for (; c < channels; ++c)
    add_products<1>(feat + c * stride, stride, corners, block.count, grad + c * args.positions, args.positions,
                    products);
}

// Where the sums of one unit of grad_feat are: in the output itself, or in scratch where its dtype is narrower.
template <class A>
struct FeatSums {
  A* data;
  int64_t stride_c, stride_pixel;
};

template <class E, class A = accumulate_t<E>>
FeatSums<A> sums_of(const SampleArgs& args, E* out, int64_t stride_c, int64_t stride_pixel, float* scratch) {
  if constexpr (std::is_same_v<E, A>)
    return {out, stride_c, stride_pixel};
  else if (args.channels_last)
    return {scratch, 1, args.channel_block};
  else
    return {scratch, int64_t{args.height} * args.width, 1};
}

// Adds one block of positions into the sums of `count` channels, position by position in ascending order.
template <class E, class A>
void scatter(const SampleArgs& args, const Block& block, int64_t channel, int64_t count, const Corners<A>& corners,
             const FeatSums<A>& sums) {
  const E* const grad = static_cast<const E*>(args.grad) + block.image * args.channels * args.positions;
  if (args.channels_last) {
    for (int64_t p = 0; p < block.count; ++p) {
      A buffer[kChannels];
      const A* const g = widened(grad + (block.first + p) * args.channels + channel, count, buffer);
      for (int tap = 0; tap < 4; ++tap) {
        A* const sum = sums.data + corners.offset[tap][p];
        const A weight = corners.weight[tap][p];
        for (int64_t c = 0; c < count; ++c) sum[c] += weight * g[c];
      }
    }
    return;
  }
  for (int64_t c = 0; c < count; ++c) {
    A buffer[kPixels];
    const A* const g = widened(grad + (channel + c) * args.positions + block.first, block.count, buffer);
    A* const plane = sums.data + c * sums.stride_c;
    for (int64_t p = 0; p < block.count; ++p)
      for (int tap = 0; tap < 4; ++tap) plane[corners.offset[tap][p]] += corners.weight[tap][p] * g[p];
  }
}

template <class E>
void grad_feat_unit(const SampleArgs& args, int64_t unit, float* scratch) {
  using A = accumulate_t<E>;
  const int64_t block = unit % args.channel_blocks() * args.channel_block;
  const int64_t group = unit / args.channel_blocks() % args.groups;
  const int64_t image = unit / (args.channel_blocks() * args.groups);
  const int64_t left = args.group_channels() - block;
  const int64_t count = left < args.channel_block ? left : args.channel_block;
  const int64_t channel = group * args.group_channels() + block;
  const int64_t pixels = int64_t{args.height} * args.width;
  const int64_t stride_c = args.channels_last ? 1 : pixels, stride_pixel = args.channels_last ? args.channels : 1;
  E* const out = static_cast<E*>(args.grad_feat) + image * args.channels * pixels + channel * stride_c;
  const FeatSums<A> sums = sums_of(args, out, stride_c, stride_pixel, scratch);

  // rows: runs of contiguous sums, one per pixel or one per channel
  const int64_t rows = args.channels_last ? pixels : count, length = args.channels_last ? count : pixels;
  const int64_t sums_stride = args.channels_last ? sums.stride_pixel : sums.stride_c;
  [[maybe_unused]] const int64_t out_stride = args.channels_last ? stride_pixel : stride_c;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < length; ++i) sums.data[row * sums_stride + i] = 0;

  Corners<A> corners;
  for (int64_t first = 0; first < args.positions; first += kPixels) {
    const Block positions = block_of(args, image * args.position_blocks() + first / kPixels);
    find_corners<false>(args, positions, group, sums.stride_pixel * args.width, sums.stride_pixel, &corners);
    scatter<E>(args, positions, channel, count, corners, sums);
  }
  if constexpr (!std::is_same_v<E, A>)
    for (int64_t row = 0; row < rows; ++row) narrow_row(sums.data + row * sums_stride, out + row * out_stride, length);
}

}  // namespace

void bilinear_sample_grad_coords(const SampleArgs& args, int64_t first_unit, int64_t last_unit) {
  dispatch_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    using A = accumulate_t<E>;
    Corners<A> corners;
    A products[4][kPixels];
    for_each_block<E>(args, first_unit, last_unit, kPixels, [&](const Block& block, int64_t group, const E* feat) {
      find_corners<true>(args, block, group, args.feat_stride_y, args.feat_stride_x, &corners);
      if (args.channels_last)
        products_channels_last(args, block, group, feat, corners, products);
      else
        products_any(args, block, group, feat, corners, products);
      A* const grad_x =
          static_cast<A*>(args.grad_coords) + (block.image * args.groups + group) * 2 * args.positions + block.first;
      A* const grad_y = grad_x + args.positions;
      for (int64_t p = 0; p < block.count; ++p) {
        A x = 0, y = 0;
        for (int tap = 0; tap < 4; ++tap) {
          x += corners.slope_x[tap][p] * products[tap][p];
          y += corners.slope_y[tap][p] * products[tap][p];
        }
        grad_x[p] = x;
        grad_y[p] = y;
      }
    });
  });
}

void bilinear_sample_grad_feat(const SampleArgs& args, float* scratch, int64_t first, int64_t last) {
  dispatch_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    for (int64_t unit = first; unit < last; ++unit) grad_feat_unit<E>(args, unit, scratch);
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
