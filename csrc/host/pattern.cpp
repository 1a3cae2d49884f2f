// Procedural textures: fractal noise, Voronoi cells, rows of glyphs.
#include <algorithm>
#include <array>

#include "host/texture.h"

namespace daflow::scene {
namespace {

using Colour = std::array<double, 3>;

// A saturated to grey colour of the given brightness.
Colour draw_colour(Random& random, double brightness) {
  const double saturation = random.uniform(0, 0.8);
  Colour colour;
  for (double& channel : colour) channel = brightness + saturation * random.uniform(-110, 110);
  return colour;
}

Colour mix(const Colour& a, const Colour& b, double t) {
  return {a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), a[2] + t * (b[2] - a[2])};
}

void put(std::uint8_t* pixel, const Colour& colour) {
  for (int c = 0; c < 3; ++c) pixel[c] = static_cast<std::uint8_t>(std::clamp(colour[c] + 0.5, 0.0, 255.0));
}

double lattice(const Random& random, int x, int y) {
  return random.stream(static_cast<std::uint64_t>(static_cast<std::uint32_t>(x)) << 32 | static_cast<std::uint32_t>(y))
      .uniform(-1, 1);
}

double fade(double t) { return t * t * t * (t * (6 * t - 15) + 10); }

// amplitude * value noise of `cell` pixels, added to the field
void add_octave(const Random& random, double cell, double amplitude, int size, std::vector<float>& field) {
  const int points = static_cast<int>(size / cell) + 2;
  std::vector<double> values(static_cast<std::size_t>(points) * points);
  for (int y = 0; y < points; ++y)
    for (int x = 0; x < points; ++x) values[static_cast<std::size_t>(y) * points + x] = lattice(random, x, y);
  for (int y = 0; y < size; ++y) {
    const int iy = static_cast<int>(y / cell);
    const double fy = fade(y / cell - iy);
    for (int x = 0; x < size; ++x) {
      const int ix = static_cast<int>(x / cell);
      const double fx = fade(x / cell - ix);
      const double* v = &values[static_cast<std::size_t>(iy) * points + ix];
      const double top = v[0] + fx * (v[1] - v[0]), low = v[points] + fx * (v[points + 1] - v[points]);
      field[static_cast<std::size_t>(y) * size + x] += static_cast<float>(amplitude * (top + fy * (low - top)));
    }
  }
}

std::vector<float> fractal(Random random, int size, double coarsest, double persistence) {
  std::vector<float> field(static_cast<std::size_t>(size) * size);
  double amplitude = 1;
  std::uint64_t octave = 0;
  for (double cell = coarsest; cell >= 1.9; cell /= 2, amplitude *= persistence)
    add_octave(random.stream(octave++), cell, amplitude, size, field);
  return field;
}

void noise(Random random, int size, std::vector<std::uint8_t>& image) {
  const double coarsest = size * random.uniform(0.1, 0.5);
  const double persistence = random.uniform(0.55, 0.9);
  const double contrast = random.uniform(0.6, 1.4);
  const double bands = random.chance(0.3) ? random.uniform(1, 4) : 0;  // marble
  const Colour low = draw_colour(random, random.uniform(10, 90));
  const Colour middle = draw_colour(random, random.uniform(60, 200));
  const Colour high = draw_colour(random, random.uniform(150, 250));
  const std::vector<float> field = fractal(random.stream(1), size, coarsest, persistence);
  for (std::size_t i = 0; i < field.size(); ++i) {
    double t = 0.5 + 0.5 * contrast * field[i];
    if (bands > 0) t = 0.5 + 0.5 * direction(t * bands).sin;
    t = std::clamp(t, 0.0, 1.0);
    put(&image[3 * i], t < 0.5 ? mix(low, middle, 2 * t) : mix(middle, high, 2 * t - 1));
  }
}

void cells(Random random, int size, std::vector<std::uint8_t>& image) {
  const double cell = random.log_uniform(16, size / 6.0);
  const double gap = random.chance(0.6) ? random.uniform(0.03, 0.15) : 0;
  const double shading = random.uniform(0, 0.5);
  const Colour seam = draw_colour(random, random.uniform(0, 255));
  const std::vector<float> grain = fractal(random.stream(1), size, 24, 0.9);
  const double roughness = random.uniform(5, 30);
  const int points = static_cast<int>(size / cell) + 3;
  struct Site {
    double x, y;
    Colour colour;
  };
  std::vector<Site> sites;
  for (int y = 0; y < points; ++y)
    for (int x = 0; x < points; ++x) {
      const double sx = x - 1 + random.uniform();
      const double sy = y - 1 + random.uniform();
      sites.push_back({sx, sy, draw_colour(random, random.uniform(20, 240))});
    }
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x) {
      const double px = x / cell, py = y / cell;
      const int cx = static_cast<int>(px) + 1, cy = static_cast<int>(py) + 1;
      double first = 1e9, second = 1e9;
      const Site* owner = nullptr;
      for (int j = std::max(cy - 1, 0); j <= std::min(cy + 1, points - 1); ++j)
        for (int i = std::max(cx - 1, 0); i <= std::min(cx + 1, points - 1); ++i) {
          const Site& site = sites[static_cast<std::size_t>(j) * points + i];
          const double distance = (site.x - px) * (site.x - px) + (site.y - py) * (site.y - py);
          if (distance < first) {
            second = first;
            first = distance;
            owner = &site;
          } else {
            second = std::min(second, distance);
          }
        }
      const std::size_t place = static_cast<std::size_t>(y) * size + x;
      Colour colour = mix(owner->colour, {0, 0, 0}, std::min(shading * first, 1.0));
      if (std::sqrt(second) - std::sqrt(first) < gap) colour = seam;
      for (double& channel : colour) channel += roughness * grain[place];
      put(&image[3 * place], colour);
    }
}

// Rows of random 5x7 signs with strokes along their sides, as writing has.
void glyphs(Random random, int size, std::vector<std::uint8_t>& image) {
  const int scale = random.integer(1, 4);
  const double paper_light = random.uniform(0, 255);
  const Colour paper = draw_colour(random, paper_light);
  const Colour ink = draw_colour(random, paper_light < 128 ? random.uniform(160, 255) : random.uniform(0, 90));
  const std::vector<float> grain = fractal(random.stream(1), size, size / 3.0, 0.6);
  const double roughness = random.uniform(5, 40);
  const int signs = size / (7 * scale) + 1, lines = size / (10 * scale) + 1;
  std::vector<std::array<std::uint8_t, 7>> text(static_cast<std::size_t>(signs) * lines);
  for (auto& sign : text) {
    const bool blank = random.chance(0.15);
    for (std::uint8_t& row : sign) row = 0;
    if (blank) continue;
    for (int y : {0, 3, 6})
      if (random.chance(0.6)) sign[y] |= 0x1f >> random.integer(0, 1);
    for (int x : {0, 2, 4}) {
      if (!random.chance(0.55)) continue;
      const int top = random.integer(0, 3);
      const int bottom = random.integer(3, 6);
      for (int y = top; y <= bottom; ++y) sign[y] |= static_cast<std::uint8_t>(1 << x);
    }
  }
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x) {
      const int gx = x / scale, gy = y / scale, column = gx % 7, row = gy % 10;
      const auto& sign = text[static_cast<std::size_t>(gy / 10) * signs + gx / 7];
      const bool inked = column < 5 && row < 7 && (sign[row] >> column & 1);
      const std::size_t place = static_cast<std::size_t>(y) * size + x;
      Colour colour = inked ? ink : paper;
      for (double& channel : colour) channel += roughness * grain[place];
      put(&image[3 * place], colour);
    }
}

// The mean of 2x2 pixels, rounded.
std::vector<std::uint8_t> halve(const std::vector<std::uint8_t>& image, int size) {
  std::vector<std::uint8_t> half(static_cast<std::size_t>(size) * size * 3);
  const std::size_t row = static_cast<std::size_t>(size) * 6;
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x)
      for (int c = 0; c < 3; ++c) {
        const std::uint8_t* v = &image[2 * y * row + 6 * x + c];
        half[(static_cast<std::size_t>(y) * size + x) * 3 + c] =
            static_cast<std::uint8_t>((v[0] + v[3] + v[row] + v[row + 3] + 2) / 4);
      }
  return half;
}

}  // namespace

std::vector<std::uint8_t> make_pattern(Pattern pattern, Random random, int size) {
  const int drawn = pattern == Pattern::cells ? 2 * size : size;  // slanted edges are drawn large and reduced
  std::vector<std::uint8_t> image(static_cast<std::size_t>(drawn) * drawn * 3);
  switch (pattern) {
    case Pattern::noise: noise(random, drawn, image); break;
    case Pattern::cells: cells(random, drawn, image); return halve(image, size);
    case Pattern::glyphs: glyphs(random, drawn, image); break;
  }
  return image;
}

}  // namespace daflow::scene
