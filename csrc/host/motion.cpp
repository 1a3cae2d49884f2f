#include "host/motion.h"

#include <algorithm>
#include <cmath>

#include "host/simd.h"

namespace daflow::scene {
namespace {

struct Affine {
  double a, b, c, d, e, f;  // x' = a x + b y + c, y' = d x + e y + f
};

Affine operator*(const Affine& s, const Affine& t) {
  return {s.a * t.a + s.b * t.d, s.a * t.b + s.b * t.e, s.a * t.c + s.b * t.f + s.c,
          s.d * t.a + s.e * t.d, s.d * t.b + s.e * t.e, s.d * t.c + s.e * t.f + s.f};
}

Affine inverse(const Affine& t) {
  const double det = t.a * t.e - t.b * t.d;
  const Affine linear{t.e / det, -t.b / det, 0, -t.d / det, t.a / det, 0};
  return linear * Affine{1, 0, -t.c, 0, 1, -t.f};
}

Affine pose(const Motion& motion, double time) {
  const double t = time - motion.middle, s = motion.strength;
  const double x = motion.centre[0] + s * (motion.velocity[0] * t + 0.5 * motion.acceleration[0] * t * t);
  const double y = motion.centre[1] + s * (motion.velocity[1] * t + 0.5 * motion.acceleration[1] * t * t);
  const Direction turn = direction(motion.angle + s * motion.spin * t);
  const double scale = exp2_exact(s * motion.zoom * t);
  const Affine rotation{scale * turn.cos, -scale * turn.sin, x, scale * turn.sin, scale * turn.cos, y};
  return rotation * Affine{1, s * motion.shear * t, 0, 0, 1, 0};
}

Affine camera(const Shake& shake, double time) {
  double swing[3];
  for (int i = 0; i < 3; ++i) swing[i] = direction(shake.phase[i] + shake.rate[i] * time).sin;
  const Direction turn = direction(shake.roll * swing[2]);
  const Affine rotation{turn.cos, -turn.sin, shake.middle[0] + shake.shift[0] * swing[0],
                        turn.sin, turn.cos,  shake.middle[1] + shake.shift[1] * swing[1]};
  return rotation * Affine{1, 0, -shake.middle[0], 0, 1, -shake.middle[1]};
}

void store(const Affine& t, float (&matrix)[2][3]) {
  const double values[2][3] = {{t.a, t.b, t.c}, {t.d, t.e, t.f}};
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j) matrix[i][j] = static_cast<float>(values[i][j]);
}

struct Point {
  float x, y;
};

inline Point deform(const View& view, float px, float py) {
  Point d{0, 0};
  for (const View::WaveNow& wave : view.waves) {
    const float turns = wave.wx * px + wave.wy * py + wave.phase;
    const float value = sine(turns - nearest(turns));
    d.x += wave.dx * value;
    d.y += wave.dy * value;
  }
  return d;
}

// One step of Newton's method on q + d(q) = u.
inline Point newton(const View& view, float ux, float uy, Point q) {
  float rx = q.x - ux, ry = q.y - uy, xx = 1, xy = 0, yx = 0, yy = 1;
  for (const View::WaveNow& wave : view.waves) {
    const float turns = wave.wx * q.x + wave.wy * q.y + wave.phase;
    const float rest = turns - nearest(turns);
    const float value = sine(rest), slope = 6.2831853f * cosine(rest);
    rx += wave.dx * value;
    ry += wave.dy * value;
    const float sx = slope * wave.wx, sy = slope * wave.wy;
    xx += wave.dx * sx;
    xy += wave.dx * sy;
    yx += wave.dy * sx;
    yy += wave.dy * sy;
  }
  const float over = 1 / (xx * yy - xy * yx);
  return {q.x - (yy * rx - xy * ry) * over, q.y - (xx * ry - yx * rx) * over};
}

}  // namespace

View view_at(const Motion& motion, const Shake& shake, double time) {
  View view;
  const Affine whole = camera(shake, time) * pose(motion, time);
  store(whole, view.forward);
  store(inverse(whole), view.inverse);
  view.scale = static_cast<float>(std::sqrt(whole.a * whole.e - whole.b * whole.d));
  for (int i = 0; i < kWaves; ++i) {
    const Wave& wave = motion.waves[i];
    const double phase = wave.phase + motion.strength * wave.rate * (time - motion.middle);
    view.waves[i] = {static_cast<float>(wave.wx), static_cast<float>(wave.wy),
                     static_cast<float>(phase - std::floor(phase)), static_cast<float>(wave.dx),
                     static_cast<float>(wave.dy)};
  }
  return view;
}

double wave_bound(const Motion& motion) {
  double bound = 0;
  for (const Wave& wave : motion.waves) bound += std::sqrt(wave.dx * wave.dx + wave.dy * wave.dy);
  return bound;
}

DAFLOW_SIMD
void to_reference(const View& view, float y, int first, int count, float* __restrict ux, float* __restrict uy) {
  const float along_x = view.inverse[0][1] * y + view.inverse[0][2];
  const float along_y = view.inverse[1][1] * y + view.inverse[1][2];
  for (int i = 0; i < count; ++i) {
    const float x = static_cast<float>(first + i);
    const float px = view.inverse[0][0] * x + along_x, py = view.inverse[1][0] * x + along_y;
    const Point d = deform(view, px, py);
    ux[i] = px + d.x;
    uy[i] = py + d.y;
  }
}

void to_reference_point(const View& view, float x, float y, float& ux, float& uy) {
  const float px = view.inverse[0][0] * x + (view.inverse[0][1] * y + view.inverse[0][2]);
  const float py = view.inverse[1][0] * x + (view.inverse[1][1] * y + view.inverse[1][2]);
  const Point d = deform(view, px, py);
  ux = px + d.x;
  uy = py + d.y;
}

DAFLOW_SIMD
void to_image(const View& view, int count, const float* __restrict ux, const float* __restrict uy, float* __restrict x,
              float* __restrict y) {
  for (int i = 0; i < count; ++i) {
    const Point d = deform(view, ux[i], uy[i]);
    Point q{ux[i] - d.x, uy[i] - d.y};
    q = newton(view, ux[i], uy[i], q);
    q = newton(view, ux[i], uy[i], q);
    x[i] = view.forward[0][0] * q.x + view.forward[0][1] * q.y + view.forward[0][2];
    y[i] = view.forward[1][0] * q.x + view.forward[1][1] * q.y + view.forward[1][2];
  }
}

namespace {

constexpr int kGrid = 7;

struct Grid {
  float x[kGrid * kGrid], y[kGrid * kGrid];
};

Grid seen(const View& view, const Grid& reference) {
  Grid image;
  to_image(view, kGrid * kGrid, reference.x, reference.y, image.x, image.y);
  return image;
}

double distance(const Grid& a, const Grid& b) {
  double largest = 0;
  for (int i = 0; i < kGrid * kGrid; ++i) {
    const double dx = static_cast<double>(a.x[i]) - b.x[i], dy = static_cast<double>(a.y[i]) - b.y[i];
    largest = std::max(largest, dx * dx + dy * dy);
  }
  return std::sqrt(largest);
}

}  // namespace

double displacement_of_area(const Motion& motion, const Shake& shake, int frames, double reach_x, double reach_y) {
  Grid reference, now, before;
  for (int i = 0; i < kGrid * kGrid; ++i) {
    reference.x[i] = static_cast<float>(reach_x * (2.0 * (i % kGrid) / (kGrid - 1) - 1));
    reference.y[i] = static_cast<float>(reach_y * (2.0 * (i / kGrid) / (kGrid - 1) - 1));
  }
  double largest = 0;
  for (int frame = 0; frame < frames; ++frame) {
    now = seen(view_at(motion, shake, frame), reference);
    if (frame > 0) largest = std::max(largest, distance(now, before));
    before = now;
  }
  return largest;
}

double displacement_of_image(const Motion& motion, const Shake& shake, int frames, int width, int height) {
  double largest = 0;
  for (int frame = 0; frame < frames; ++frame) {
    const View view = view_at(motion, shake, frame);
    Grid image, reference;
    for (int i = 0; i < kGrid * kGrid; ++i) {
      image.x[i] = static_cast<float>((width - 1.0) * (i % kGrid) / (kGrid - 1));
      image.y[i] = static_cast<float>((height - 1.0) * (i / kGrid) / (kGrid - 1));
      to_reference_point(view, image.x[i], image.y[i], reference.x[i], reference.y[i]);
    }
    for (int other : {frame - 1, frame + 1})
      if (other >= 0 && other < frames)
        largest = std::max(largest, distance(seen(view_at(motion, shake, other), reference), image));
  }
  return largest;
}

}  // namespace daflow::scene
