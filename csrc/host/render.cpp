// Renders a scene: pixels front to back with analytic coverage, then flow and occlusion of what is seen.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "host/scene.h"
#include "host/simd.h"

namespace daflow::scene {
namespace {

constexpr std::uint8_t kNobody = 255;

struct Span {
  int first, last;  // last is excluded
};

// Clips a span to where low <= slope * x + start <= high.
void clip(Span& span, double slope, double start, double low, double high) {
  if (std::abs(slope) < 1e-9) {
    if (start < low || start > high) span.last = span.first;
    return;
  }
  double from = (low - start) / slope, to = (high - start) / slope;
  if (from > to) std::swap(from, to);
  span.first =
      static_cast<int>(std::clamp(std::ceil(from), static_cast<double>(span.first), static_cast<double>(span.last)));
  span.last =
      static_cast<int>(std::clamp(std::floor(to) + 1, static_cast<double>(span.first), static_cast<double>(span.last)));
}

DAFLOW_SIMD
void write_flow(int width, int row, const float* __restrict x, const float* __restrict y, float* __restrict flow) {
  for (int i = 0; i < width; ++i) {
    flow[2 * i] = x[i] - static_cast<float>(i);
    flow[2 * i + 1] = y[i] - static_cast<float>(row);
  }
}

// Colours as bytes, after the light.
DAFLOW_SIMD
void finish(const Float4* colours, int width, const Tone& tone, std::uint8_t* pixels) {
  using Int4 = std::int32_t __attribute__((vector_size(16)));
  const float gain = static_cast<float>(tone.gain), bend = static_cast<float>(tone.bend / 255);
  const float offset = static_cast<float>(255 * tone.offset);
  const Float4 black{0, 0, 0, 0}, white{255, 255, 255, 255};
  for (int x = 0; x < width; ++x) {
    Float4 v = colours[x];
    v = v > black ? v : black;
    v = v < white ? v : white;
    v = gain * (v + bend * (v * (white - v))) + offset;
    v = v > black ? v : black;
    v = v < white ? v : white;
    const Int4 rounded = __builtin_convertvector(v + 0.5f, Int4);
    for (int c = 0; c < 3; ++c) pixels[3 * x + c] = static_cast<std::uint8_t>(rounded[c]);
  }
}

class Renderer {
 public:
  Renderer(const Scene& scene, const Output& output)
      : scene_(scene),
        out_(output),
        width_(scene.options.width),
        height_(scene.options.height),
        pixels_(static_cast<std::size_t>(width_) * height_),
        row_(width_) {
    for (auto* row : {&ux_, &uy_, &x_, &y_, &distance_, &weight_, &clear_}) row->resize(width_);
    buffer_.resize(width_);
    points_x_.resize(pixels_ * scene.options.frames);
    points_y_.resize(points_x_.size());
    if (scene.samples > 1) sum_.resize(pixels_);
    for (int frame = 0; frame < scene.options.frames; ++frame) views_.push_back(views_at(frame));
  }

  void run() {
    for (int frame = 0; frame < scene_.options.frames; ++frame) render_frame(frame);
    for (std::size_t i = 0; out_.reference && i < points_x_.size(); ++i) {
      out_.reference[2 * i] = points_x_[i];
      out_.reference[2 * i + 1] = points_y_[i];
    }
    for (int pair = 0; pair + 1 < scene_.options.frames; ++pair) {
      track(pair, pair + 1, out_.flow[0] + 2 * pair * pixels_, out_.occluded[0] + pair * pixels_);
      if (out_.flow[1]) track(pair + 1, pair, out_.flow[1] + 2 * pair * pixels_, out_.occluded[1] + pair * pixels_);
    }
  }

 private:
  using Views = std::vector<View>;

  Views views_at(double time) const {
    Views views;
    for (const Layer& layer : scene_.layers) views.push_back(view_at(layer.motion, scene_.shake, time));
    return views;
  }

  void render_frame(int frame) {
    std::uint8_t* owners = out_.layers + frame * pixels_;
    std::uint8_t* pixels = out_.frames + 3 * frame * pixels_;
    std::memset(owners, kNobody, pixels_);
    const bool blurred = scene_.samples > 1;
    if (blurred) expose(frame);
    const float share = 1 / static_cast<float>(scene_.samples);
    for (int y = 0; y < height_; ++y) {
      const std::size_t at = static_cast<std::size_t>(y) * width_;
      draw_row(views_[frame], y, !blurred, owners + at, frame * pixels_ + at);
      for (int x = 0; blurred && x < width_; ++x) row_[x] = share * sum_[at + x];
      finish(row_.data(), width_, scene_.tones[frame], pixels + 3 * at);
    }
  }

  // Motion blur: the sum of all moments of the exposure into sum_.
  void expose(int frame) {
    std::fill(sum_.begin(), sum_.end(), Float4{0, 0, 0, 0});
    for (int sample = 0; sample < scene_.samples; ++sample) {
      const Views views = views_at(frame + scene_.exposure * ((sample + 0.5) / scene_.samples - 0.5));
      for (int y = 0; y < height_; ++y) {
        draw_row(views, y, true, nullptr, 0);
        for (int x = 0; x < width_; ++x) sum_[static_cast<std::size_t>(y) * width_ + x] += row_[x];
      }
    }
  }

  // Where layer `number` can be on row y.
  Span span(const View& view, int number, int y) const {
    const Shape& shape = scene_.layers[number].shape;
    const double bound = wave_bound(scene_.layers[number].motion);
    Span found{0, width_};
    const float reach[2] = {shape.reach_x, shape.reach_y};
    for (int i : {0, 1}) {
      const double start = static_cast<double>(view.inverse[i][1]) * y + view.inverse[i][2];
      clip(found, view.inverse[i][0], start, -reach[i] - bound, reach[i] + bound);
    }
    return found;
  }

  // Row y: colours into row_ (if `colours`), and who is seen where, and which of its points (if `owners`;
  // `place` is the row's place in points_x_).
  void draw_row(const Views& views, int y, bool colours, std::uint8_t* owners, std::size_t place) {
    std::fill(row_.begin(), row_.end(), Float4{0, 0, 0, 0});
    std::fill(clear_.begin(), clear_.end(), 1.0f);
    for (int number = static_cast<int>(views.size()) - 1; number > 0; --number) {
      const Layer& layer = scene_.layers[number];
      const Span at = span(views[number], number, y);
      const int count = at.last - at.first;
      if (count <= 0) continue;
      to_reference(views[number], static_cast<float>(y), at.first, count, ux_.data(), uy_.data());
      measure(layer.shape, count, ux_.data(), uy_.data(), distance_.data());
      if (owners) claim(number, at.first, count, owners, place);
      if (!colours) continue;
      const Span seen = cover(views[number].scale, at.first, count);
      if (seen.first < seen.last)
        paint_row(layer.paint, seen.last - seen.first, &ux_[seen.first], &uy_[seen.first], &weight_[seen.first],
                  &row_[at.first + seen.first], buffer_);
    }
    to_reference(views[0], static_cast<float>(y), 0, width_, ux_.data(), uy_.data());
    std::fill(distance_.begin(), distance_.end(), 0.0f);
    if (owners) claim(0, 0, width_, owners, place);
    if (colours) paint_row(scene_.layers[0].paint, width_, ux_.data(), uy_.data(), clear_.data(), row_.data(), buffer_);
  }

  // Takes the layer's share of each pixel from what lies behind it; where it has any.
  Span cover(float scale, int first, int count) {
    for (int i = 0; i < count; ++i) {
      const float share = std::min(std::max(0.5f + distance_[i] * scale, 0.0f), 1.0f) * clear_[first + i];
      weight_[i] = share;
      clear_[first + i] -= share;
    }
    Span seen{0, count};
    while (seen.last > 0 && weight_[seen.last - 1] == 0) --seen.last;
    while (seen.first < seen.last && weight_[seen.first] == 0) ++seen.first;
    return seen;
  }

  // A pixel belongs to the nearest layer that has its centre.
  void claim(int number, int first, int count, std::uint8_t* owners, std::size_t place) {
    for (int i = 0; i < count; ++i) {
      if (distance_[i] < 0 || owners[first + i] != kNobody) continue;
      owners[first + i] = static_cast<std::uint8_t>(number);
      points_x_[place + first + i] = ux_[i];
      points_y_[place + first + i] = uy_[i];
    }
  }

  // Flow of every pixel of frame `from`, and whether its point is seen in frame `to`.
  void track(int from, int to, float* flow, bool* occluded) {
    const std::uint8_t* owners = out_.layers + from * pixels_;
    for (int y = 0; y < height_; ++y) {
      const std::size_t at = static_cast<std::size_t>(y) * width_;
      for (int first = 0, last; first < width_; first = last) {
        const int number = owners[at + first];
        for (last = first + 1; last < width_ && owners[at + last] == number;) ++last;
        const std::size_t place = from * pixels_ + at + first;
        to_image(views_[to][number], last - first, &points_x_[place], &points_y_[place], &x_[first], &y_[first]);
        for (int x = first; x < last; ++x) occluded[at + x] = hidden(to, number, x_[x], y_[x]);
      }
      write_flow(width_, y, x_.data(), y_.data(), flow + 2 * at);
    }
  }

  // Out of the image, or behind another layer. The four pixels around decide where they agree, else the outlines.
  bool hidden(int frame, int number, float x, float y) const {
    if (!(x >= 0 && y >= 0 && x <= static_cast<float>(width_ - 1) && y <= static_cast<float>(height_ - 1))) return true;
    const int ix = std::min(static_cast<int>(x), width_ - 2), iy = std::min(static_cast<int>(y), height_ - 2);
    const std::uint8_t* owner = out_.layers + frame * pixels_ + static_cast<std::size_t>(iy) * width_ + ix;
    std::uint16_t around[2];
    std::memcpy(&around[0], owner, 2);
    std::memcpy(&around[1], owner + width_, 2);
    if (const int own = number * 0x0101; around[0] == own && around[1] == own) return false;  // nearly always
    const int above =
        (owner[0] > number) + (owner[1] > number) + (owner[width_] > number) + (owner[width_ + 1] > number);
    if (above == 0 || above == 4) return above == 4;
    for (int other = number + 1; other < static_cast<int>(views_[frame].size()); ++other)
      if (covers(other, frame, x, y)) return true;
    return false;
  }

  bool covers(int number, int frame, float x, float y) const {
    float ux, uy;
    to_reference_point(views_[frame][number], x, y, ux, uy);
    return scene_.layers[number].shape.at(ux, uy) >= 0;
  }

  const Scene& scene_;
  const Output& out_;
  const int width_, height_;
  const std::size_t pixels_;
  std::vector<float> ux_, uy_, x_, y_, distance_, weight_, clear_;  // one row each
  std::vector<Float4> row_, sum_;
  PaintBuffer buffer_;
  std::vector<float> points_x_, points_y_;  // [F, H, W]: Output::reference, one coordinate after the other
  std::vector<Views> views_;                // per frame, per layer
};

}  // namespace

void render(const Scene& scene, const Output& output) { Renderer(scene, output).run(); }

}  // namespace daflow::scene
