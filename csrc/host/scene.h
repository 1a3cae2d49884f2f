// Clips of moving textured layers with exact flow. See docs/scenes.md.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "host/motion.h"
#include "host/shape.h"
#include "host/texture.h"

namespace daflow::scene {

struct Options {
  int frames, height, width;
  double min_displacement, max_displacement;  // pixels per frame
  int min_layers, max_layers;                 // without the background
  double elastic;                             // strength, 0 .. 1
  double shake, motion_blur, lighting;        // probabilities
};

// Textures with the probability to be drawn.
struct TextureBank {
  std::vector<std::shared_ptr<const Texture>> textures;
  std::vector<double> up_to;  // cumulative, ends with 1
  const Texture& draw(Random& random) const;
};

struct Layer {
  Motion motion;
  Shape shape;  // of the background: empty
  Paint paint;
};

// Brightness of a frame: gain (v + bend v (1 - v)) + offset with v in 0 .. 1.
struct Tone {
  double gain, bend, offset;
};

struct Scene {
  Options options;
  Shake shake;
  std::vector<Layer> layers;  // 0: the background, then from far to near
  std::vector<Tone> tones;    // per frame
  double exposure;            // fraction of the time between frames; 0: no motion blur
  int samples;                // over the exposure
};

Scene draw_scene(std::uint64_t seed, const Options& options, const TextureBank& bank);

// Where the result goes; F frames of H x W pixels.
struct Output {
  std::uint8_t* frames;  // [F, H, W, 3]
  std::uint8_t* layers;  // [F, H, W]
  float* reference;      // [F, H, W, 2]: the points' coordinates on their layers; may be null
  float* flow[2];        // [F-1, H, W, 2]: pair k from frame k to k+1; from k+1 to k (may be null)
  bool* occluded[2];     // [F-1, H, W]: pixels of frame k not seen in k+1; of k+1 not seen in k (may be null)
};

void render(const Scene& scene, const Output& output);

}  // namespace daflow::scene
