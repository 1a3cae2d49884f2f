// Textures of the scenes: images with their reductions, and procedural ones.
#pragma once

#include <cstdint>
#include <vector>

#include "host/random.h"

namespace daflow::scene {

using Float4 = float __attribute__((vector_size(16)));  // red, green, blue, unused

// An image and its reductions by 2. Beyond its borders it goes on mirrored at the outermost texels.
class Texture {
 public:
  struct Level {
    int width, height, stride;
    std::vector<std::uint32_t> texels;  // 8 bits per channel; the last row and column stand twice for interpolation
  };

  Texture(const std::uint8_t* rgb, int width, int height);

  int width() const { return levels_.front().width; }
  int height() const { return levels_.front().height; }
  const Level& level(int index) const { return levels_[index]; }
  int level_count() const { return static_cast<int>(levels_.size()); }

 private:
  std::vector<Level> levels_;
};

// How a layer reads its texture: texel = matrix (u, 1), colour = gain * texel + offset.
struct Paint {
  const Texture::Level* level;
  float matrix[2][3];
  Float4 gain, offset;
};

// Room for the intermediate results of one row.
struct PaintBuffer {
  std::vector<std::int32_t> place;
  std::vector<float> fx, fy;
  void resize(int width);
};

// acc[i] += weight[i] * colour at (ux[i], uy[i]), where the weight is not 0; bilinear interpolation.
void paint_row(const Paint& paint, int count, const float* ux, const float* uy, const float* weight, Float4* acc,
               PaintBuffer& buffer);

enum class Pattern { noise, cells, glyphs };

// A procedural image, uint8 [size, size, 3].
std::vector<std::uint8_t> make_pattern(Pattern pattern, Random random, int size);

}  // namespace daflow::scene
