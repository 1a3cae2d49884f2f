#include "host/shape.h"

#include <cmath>

#include "host/simd.h"

namespace daflow::scene {
namespace {

struct Vertex {
  double x, y;
};
using Path = std::vector<Vertex>;

// The grid around all points, everything far outside.
Shape empty_shape(const std::vector<Path>& paths, double margin, double step) {
  double reach_x = 0, reach_y = 0;
  for (const Path& path : paths)
    for (const Vertex& v : path) {
      reach_x = std::max(reach_x, std::abs(v.x));
      reach_y = std::max(reach_y, std::abs(v.y));
    }
  reach_x += margin + Shape::kFar;
  reach_y += margin + Shape::kFar;
  Shape shape;
  shape.columns = static_cast<int>(2 * reach_x / step) + 2;
  shape.rows = static_cast<int>(2 * reach_y / step) + 2;
  shape.reach_x = static_cast<float>(reach_x);
  shape.reach_y = static_cast<float>(reach_y);
  shape.per_step = static_cast<float>(1 / step);
  shape.distance.assign(static_cast<std::size_t>(shape.columns) * shape.rows, Shape::kFar * Shape::kFar);
  return shape;
}

// Lowers the squared distance around one segment.
void add_segment(Shape& shape, const Vertex& from, const Vertex& to, double band) {
  const float step = 1 / shape.per_step;
  const auto index = [&](double value, float reach, int size) {
    return std::clamp(static_cast<int>(std::floor((value + reach) / step)), 0, size - 1);
  };
  const int x0 = index(std::min(from.x, to.x) - band, shape.reach_x, shape.columns);
  const int x1 = index(std::max(from.x, to.x) + band, shape.reach_x, shape.columns);
  const int y0 = index(std::min(from.y, to.y) - band, shape.reach_y, shape.rows);
  const int y1 = index(std::max(from.y, to.y) + band, shape.reach_y, shape.rows);
  const float dx = static_cast<float>(to.x - from.x), dy = static_cast<float>(to.y - from.y);
  const float over = 1 / std::max(dx * dx + dy * dy, 1e-9f);
  const float left = -shape.reach_x - static_cast<float>(from.x), top = -shape.reach_y - static_cast<float>(from.y);
  for (int y = y0; y <= y1; ++y) {
    float* row = &shape.distance[static_cast<std::size_t>(y) * shape.columns];
    const float py = static_cast<float>(y) * step + top;
    for (int x = x0; x <= x1; ++x) {
      const float px = static_cast<float>(x) * step + left;
      const float along = std::min(std::max((px * dx + py * dy) * over, 0.0f), 1.0f);
      const float rx = px - along * dx, ry = py - along * dy;
      row[x] = std::min(row[x], rx * rx + ry * ry);
    }
  }
}

void take_roots(Shape& shape) {
  for (float& value : shape.distance) value = std::sqrt(value);
}

// Negates the distance of grid points outside a closed path (even-odd rule).
void negate_outside(Shape& shape, const Path& path) {
  std::vector<double> crossings;
  for (int row = 0; row < shape.rows; ++row) {
    const double y = row / static_cast<double>(shape.per_step) - shape.reach_y;
    crossings.clear();
    for (std::size_t i = 0; i < path.size(); ++i) {
      const Vertex &a = path[i], &b = path[(i + 1) % path.size()];
      if ((a.y > y) != (b.y > y)) crossings.push_back(a.x + (y - a.y) / (b.y - a.y) * (b.x - a.x));
    }
    std::sort(crossings.begin(), crossings.end());
    std::size_t passed = 0;
    for (int column = 0; column < shape.columns; ++column) {
      const double x = column / static_cast<double>(shape.per_step) - shape.reach_x;
      while (passed < crossings.size() && crossings[passed] <= x) ++passed;
      float& value = shape.distance[static_cast<std::size_t>(row) * shape.columns + column];
      if (passed % 2 == 0) value = -value;
    }
  }
}

// Filled, or only its outline of a few pixels.
Shape closed(const Path& path, double outline) {
  Shape shape = empty_shape({path}, outline, outline > 0 ? 0.75 : 1);
  for (std::size_t i = 0; i < path.size(); ++i)
    add_segment(shape, path[i], path[(i + 1) % path.size()], Shape::kFar + 2);
  take_roots(shape);
  if (outline > 0) {
    for (float& value : shape.distance) value = static_cast<float>(outline) - value;
  } else {
    negate_outside(shape, path);
  }
  return shape;
}

Path polygon(Random& random, double radius) {
  const int corners = random.integer(3, 9);
  const double roundness = random.uniform(0.3, 1);
  const double flatness = random.uniform(0.5, 1);
  Path path;
  for (int i = 0; i < corners; ++i) {
    const Direction turn = direction((i + random.uniform(-0.3, 0.3)) / corners);
    const double length = radius * random.uniform(roundness, 1);
    path.push_back({length * turn.cos, flatness * length * turn.sin});
  }
  return path;
}

Path ellipse(Random& random, double radius) {
  const double flatness = random.uniform(0.35, 1);
  Path path;
  for (int i = 0; i < 64; ++i) {
    const Direction turn = direction(i / 64.0);
    path.push_back({radius * turn.cos, flatness * radius * turn.sin});
  }
  return path;
}

// A silhouette: a circle whose radius carries a few harmonics.
Path blob(Random& random, double radius) {
  constexpr int kHarmonics = 6;
  double amplitude[kHarmonics], phase[kHarmonics];
  for (int n = 0; n < kHarmonics; ++n) {
    amplitude[n] = random.uniform(0, 0.45 / (n + 1));
    phase[n] = random.uniform();
  }
  Path path;
  for (int i = 0; i < 96; ++i) {
    double length = 0.7;
    for (int n = 0; n < kHarmonics; ++n) length += amplitude[n] * direction((n + 1) * i / 96.0 + phase[n]).sin;
    const Direction turn = direction(i / 96.0);
    path.push_back({radius * std::max(length, 0.1) * turn.cos, radius * std::max(length, 0.1) * turn.sin});
  }
  return path;
}

// Curved lines: branches, cables, bars.
Shape strokes(Random& random, double radius) {
  const double half = random.log_uniform(0.8, 3.5);
  std::vector<Path> paths(random.integer(1, 4));
  for (Path& path : paths) {
    Vertex control[3];
    for (Vertex& v : control) {
      v.x = random.uniform(-radius, radius);
      v.y = random.uniform(-radius, radius);
    }
    for (int i = 0; i <= 10; ++i) {
      const double t = i / 10.0, a = (1 - t) * (1 - t), b = 2 * t * (1 - t), c = t * t;
      path.push_back({a * control[0].x + b * control[1].x + c * control[2].x,
                      a * control[0].y + b * control[1].y + c * control[2].y});
    }
  }
  Shape shape = empty_shape(paths, half, 0.75);
  for (const Path& path : paths)
    for (std::size_t i = 0; i + 1 < path.size(); ++i) add_segment(shape, path[i], path[i + 1], Shape::kFar + 2);
  take_roots(shape);
  for (float& value : shape.distance) value = static_cast<float>(half) - value;
  return shape;
}

// Islands and holes, as foliage has: an ellipse without the low places of a smooth random field.
Shape foliage(Random& random, double radius) {
  Shape shape = closed(ellipse(random, radius), 0);
  const double cell = random.log_uniform(std::max(8.0, 0.15 * radius), std::max(10.0, 0.5 * radius));
  const double threshold = random.uniform(-0.25, 0.1);
  const int points = static_cast<int>(2 * radius / cell) + 8;
  std::vector<float> values(static_cast<std::size_t>(points) * points);
  for (float& value : values) value = static_cast<float>(random.uniform(-1, 1));
  const float per_cell = static_cast<float>(1 / (cell * shape.per_step));
  std::vector<float> field(shape.distance.size());
  for (int y = 0; y < shape.rows; ++y)
    for (int x = 0; x < shape.columns; ++x) {
      const float gx = static_cast<float>(x) * per_cell, gy = static_cast<float>(y) * per_cell;
      const int ix = std::min(static_cast<int>(gx), points - 2), iy = std::min(static_cast<int>(gy), points - 2);
      float fx = gx - static_cast<float>(ix), fy = gy - static_cast<float>(iy);
      fx = fx * fx * (3 - 2 * fx);
      fy = fy * fy * (3 - 2 * fy);
      const float* v = &values[static_cast<std::size_t>(iy) * points + ix];
      const float top = v[0] + fx * (v[1] - v[0]), low = v[points] + fx * (v[points + 1] - v[points]);
      field[static_cast<std::size_t>(y) * shape.columns + x] = top + fy * (low - top) - static_cast<float>(threshold);
    }
  // value / gradient is the distance, to first order
  for (int y = 1; y + 1 < shape.rows; ++y)
    for (int x = 1; x + 1 < shape.columns; ++x) {
      const std::size_t i = static_cast<std::size_t>(y) * shape.columns + x;
      const float dx = 0.5f * (field[i + 1] - field[i - 1]);
      const float dy = 0.5f * (field[i + shape.columns] - field[i - shape.columns]);
      const float slope = std::max(std::sqrt(dx * dx + dy * dy) * shape.per_step, 1e-3f);
      shape.distance[i] = std::min(shape.distance[i], std::max(field[i] / slope, -Shape::kFar));
    }
  return shape;
}

}  // namespace

DAFLOW_SIMD
void measure(const Shape& shape, int count, const float* ux, const float* uy, float* distance) {
  for (int i = 0; i < count; ++i) distance[i] = shape.at(ux[i], uy[i]);
}

Shape draw_shape(Random random, double radius) {
  const double kind = random.uniform();
  if (kind < 0.16) return strokes(random, radius);
  if (kind < 0.30) return foliage(random, radius);
  const Path path = kind < 0.52   ? polygon(random, radius)
                    : kind < 0.66 ? ellipse(random, radius)
                                  : blob(random, radius);
  const bool thin = random.chance(0.12);
  return closed(path, thin ? random.log_uniform(0.8, 4) : 0);
}

}  // namespace daflow::scene
