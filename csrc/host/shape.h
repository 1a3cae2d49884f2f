// Outlines of layers as signed distances, sampled on a grid of reference coordinates.
#pragma once

#include <algorithm>
#include <vector>

#include "host/random.h"

namespace daflow::scene {

// Positive inside, in reference pixels, cut off at kFar; the border of the grid lies outside.
struct Shape {
  static constexpr float kFar = 4;
  int columns, rows;
  float reach_x, reach_y;  // the grid covers [-reach, reach]
  float per_step;          // grid points per pixel
  std::vector<float> distance;

  float at(float ux, float uy) const {
    const float x = std::clamp((ux + reach_x) * per_step, 0.0f, static_cast<float>(columns) - 1.001f);
    const float y = std::clamp((uy + reach_y) * per_step, 0.0f, static_cast<float>(rows) - 1.001f);
    const int ix = static_cast<int>(x), iy = static_cast<int>(y);
    const float fx = x - static_cast<float>(ix), fy = y - static_cast<float>(iy);
    const float* v = &distance[static_cast<std::size_t>(iy) * columns + ix];
    const float top = v[0] + fx * (v[1] - v[0]), low = v[columns] + fx * (v[columns + 1] - v[columns]);
    return top + fy * (low - top);
  }
};

// distance[i] = shape.at(ux[i], uy[i])
void measure(const Shape& shape, int count, const float* ux, const float* uy, float* distance);

// A polygon, an ellipse, a cut-out or a thin structure of about this radius.
Shape draw_shape(Random random, double radius);

}  // namespace daflow::scene
