#include "host/texture.h"

#include <algorithm>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "host/simd.h"

namespace daflow::scene {
namespace {

std::uint32_t pack(int red, int green, int blue) {
  return static_cast<std::uint32_t>(red) | static_cast<std::uint32_t>(green) << 8 |
         static_cast<std::uint32_t>(blue) << 16;
}

inline Float4 unpack(std::uint32_t texel) {
#if defined(__SSE2__)
  const __m128i zero = _mm_setzero_si128();
  const __m128i bytes = _mm_cvtsi32_si128(static_cast<int>(texel));
  return _mm_cvtepi32_ps(_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero));
#else
  return Float4{static_cast<float>(texel & 255), static_cast<float>(texel >> 8 & 255),
                static_cast<float>(texel >> 16 & 255), 0};
#endif
}

Texture::Level empty_level(int width, int height) {
  return {width, height, width + 1, std::vector<std::uint32_t>(static_cast<std::size_t>(width + 1) * (height + 1))};
}

void repeat_border(Texture::Level& level) {
  for (int y = 0; y < level.height; ++y) {
    std::uint32_t* row = &level.texels[static_cast<std::size_t>(y) * level.stride];
    row[level.width] = row[level.width - 1];
  }
  std::copy_n(&level.texels[static_cast<std::size_t>(level.height - 1) * level.stride], level.stride,
              &level.texels[static_cast<std::size_t>(level.height) * level.stride]);
}

// The mean of 2x2 texels, rounded.
Texture::Level halve(const Texture::Level& large) {
  Texture::Level level = empty_level(large.width / 2, large.height / 2);
  for (int y = 0; y < level.height; ++y)
    for (int x = 0; x < level.width; ++x) {
      const std::uint32_t* top = &large.texels[static_cast<std::size_t>(2 * y) * large.stride + 2 * x];
      const std::uint32_t four[] = {top[0], top[1], top[large.stride], top[large.stride + 1]};
      int sum[3] = {2, 2, 2};
      for (std::uint32_t texel : four)
        for (int c = 0; c < 3; ++c) sum[c] += texel >> (8 * c) & 255;
      level.texels[static_cast<std::size_t>(y) * level.stride + x] = pack(sum[0] / 4, sum[1] / 4, sum[2] / 4);
    }
  repeat_border(level);
  return level;
}

}  // namespace

Texture::Texture(const std::uint8_t* rgb, int width, int height) {
  Level level = empty_level(width, height);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x, rgb += 3)
      level.texels[static_cast<std::size_t>(y) * level.stride + x] = pack(rgb[0], rgb[1], rgb[2]);
  repeat_border(level);
  levels_.push_back(std::move(level));
  while (std::min(levels_.back().width, levels_.back().height) >= 32) levels_.push_back(halve(levels_.back()));
}

void PaintBuffer::resize(int width) {
  place.resize(width);
  fx.resize(width);
  fy.resize(width);
}

DAFLOW_SIMD
void locate(const Paint& paint, int count, const float* __restrict ux, const float* __restrict uy,
            std::int32_t* __restrict place, float* __restrict fx, float* __restrict fy) {
  const float period_x = 2.0f * static_cast<float>(paint.level->width - 1);
  const float period_y = 2.0f * static_cast<float>(paint.level->height - 1);
  const float per_x = 1 / period_x, per_y = 1 / period_y;
  const float a = paint.matrix[0][0] * per_x, b = paint.matrix[0][1] * per_x, c = paint.matrix[0][2] * per_x;
  const float d = paint.matrix[1][0] * per_y, e = paint.matrix[1][1] * per_y, f = paint.matrix[1][2] * per_y;
  const int stride = paint.level->stride;
  for (int i = 0; i < count; ++i) {
    const float tx = a * ux[i] + b * uy[i] + c, ty = d * ux[i] + e * uy[i] + f;
    // the distance to the nearest whole number is the mirrored position, in periods
    const float x = magnitude(tx - nearest(tx)) * period_x, y = magnitude(ty - nearest(ty)) * period_y;
    const std::int32_t ix = static_cast<std::int32_t>(x), iy = static_cast<std::int32_t>(y);
    place[i] = iy * stride + ix;
    fx[i] = x - static_cast<float>(ix);
    fy[i] = y - static_cast<float>(iy);
  }
}

DAFLOW_SIMD
void paint_row(const Paint& paint, int count, const float* ux, const float* uy, const float* weight, Float4* acc,
               PaintBuffer& buffer) {
  locate(paint, count, ux, uy, buffer.place.data(), buffer.fx.data(), buffer.fy.data());
  const std::uint32_t* texels = paint.level->texels.data();
  const int stride = paint.level->stride;
  for (int i = 0; i < count; ++i) {
    if (weight[i] == 0) continue;
    const std::uint32_t* top = texels + buffer.place[i];
    const Float4 left = unpack(top[0]), right = unpack(top[1]);
    const Float4 low_left = unpack(top[stride]), low_right = unpack(top[stride + 1]);
    const Float4 above = left + buffer.fx[i] * (right - left);
    const Float4 below = low_left + buffer.fx[i] * (low_right - low_left);
    acc[i] += weight[i] * (paint.gain * (above + buffer.fy[i] * (below - above)) + paint.offset);
  }
}

}  // namespace daflow::scene
