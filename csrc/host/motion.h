// Motion of a layer: where each of its points is at each time, and the way back.
//
// A layer has reference coordinates u in pixels. At time t the image point x shows
//     u = p + d_t(p),   p = A_t^-1 x,
// with A_t affine (the layer's pose, then the camera) and d_t a sum of waves whose gradient stays below 1/2: explicit,
// smooth and one-to-one. The image of u at another time solves p + d(p) = u by Newton's method, to float32 rounding.
#pragma once

#include "host/random.h"

namespace daflow::scene {

constexpr int kWaves = 3;

struct Wave {
  double wx, wy;       // turns per pixel
  double phase, rate;  // turns, turns per frame
  double dx, dy;       // pixels
};

// Rates are per frame; `strength` scales all of them.
struct Motion {
  double centre[2], velocity[2], acceleration[2];
  double angle, spin;  // turns
  double zoom, shear;  // zoom: octaves
  double middle;       // the time of `centre`
  double strength = 1;
  Wave waves[kWaves];
};

// Camera shake: smooth, about the middle of the image.
struct Shake {
  double middle[2];
  double shift[2], roll;     // amplitudes: pixels, turns
  double rate[3], phase[3];  // turns per frame, turns
};

// A layer at one time.
struct View {
  struct WaveNow {
    float wx, wy, phase, dx, dy;
  };
  float inverse[2][3], forward[2][3];
  WaveNow waves[kWaves];
  float scale;  // image pixels per reference pixel
};

View view_at(const Motion& motion, const Shake& shake, double time);

// The largest |d| a motion can give.
double wave_bound(const Motion& motion);

// Reference coordinates of the pixels (first + i, y).
void to_reference(const View& view, float y, int first, int count, float* ux, float* uy);

// Of one point (x, y).
void to_reference_point(const View& view, float x, float y, float& ux, float& uy);

// Image coordinates of reference points.
void to_image(const View& view, int count, const float* ux, const float* uy, float* x, float* y);

// The largest displacement between consecutive frames 0 .. frames-1 of reference points in |ux| <= reach_x,
// |uy| <= reach_y, on a grid.
double displacement_of_area(const Motion& motion, const Shake& shake, int frames, double reach_x, double reach_y);

// The same, in both directions, of the pixels of a layer that fills the image.
double displacement_of_image(const Motion& motion, const Shake& shake, int frames, int width, int height);

}  // namespace daflow::scene
