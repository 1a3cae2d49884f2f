// Draws a scene: layers, motions, textures, light.
#include "host/scene.h"

#include <algorithm>
#include <cmath>

namespace daflow::scene {
namespace {

// A random direction times a length.
void set_vector(Random& random, double length, double (&vector)[2]) {
  const Direction turn = random.angle();
  vector[0] = length * turn.cos;
  vector[1] = length * turn.sin;
}

Shake draw_shake(Random random, const Options& options, double largest) {
  Shake shake{};
  shake.middle[0] = 0.5 * (options.width - 1);
  shake.middle[1] = 0.5 * (options.height - 1);
  if (!random.chance(options.shake)) return shake;
  const double size = random.log_uniform(0.02, 1) * largest;
  const double diagonal = std::sqrt(shake.middle[0] * shake.middle[0] + shake.middle[1] * shake.middle[1]);
  for (double& shift : shake.shift) shift = size * random.uniform(0.1, 0.5);
  shake.roll = random.uniform(0, 0.05) * size / diagonal;
  for (double& rate : shake.rate) rate = random.uniform(0.05, 0.3);
  for (double& phase : shake.phase) phase = random.uniform();
  return shake;
}

// Waves whose gradients add up to less than 0.3.
void draw_waves(Random random, double elastic, double shortest, double longest, Wave (&waves)[kWaves]) {
  for (Wave& wave : waves) {
    const double length = random.log_uniform(shortest, longest);
    const Direction along = random.angle();
    const Direction across = random.angle();
    const double size = elastic * random.uniform(0, 0.095) * length / 6.283185307179586;
    wave.phase = random.uniform();
    wave.rate = random.uniform(-0.1, 0.1);
    wave.wx = along.cos / length;
    wave.wy = along.sin / length;
    wave.dx = size * across.cos;
    wave.dy = size * across.sin;
  }
}

// Rates in proportion to a displacement of 1 pixel at distance `radius` from the centre.
Motion draw_motion(Random random, const Options& options, double radius, bool similarity) {
  Motion motion{};
  motion.middle = 0.5 * (options.frames - 1);
  const double steady = std::max(1.0, motion.middle);
  const double slide = random.chance(0.85) ? 1 : 0.2;  // the others mostly turn and grow
  set_vector(random, slide, motion.velocity);
  set_vector(random, slide * random.uniform(0, 0.3) / steady, motion.acceleration);
  motion.angle = similarity ? random.uniform(-0.02, 0.02) : random.uniform();
  motion.spin = random.uniform(-0.6, 0.6) / (6.283185307179586 * radius);
  motion.zoom = random.uniform(-0.6, 0.6) / radius;
  motion.shear = similarity ? 0 : random.uniform(-0.4, 0.4) / radius;
  draw_waves(random.stream(1), options.elastic, std::max(24.0, 0.7 * radius), std::max(60.0, 3 * radius), motion.waves);
  return motion;
}

// Limits per frame that keep a fast layer recognisable; what they take, the translation gives.
void set_strength(Motion& motion, const Motion& drawn, double strength) {
  const auto limited = [&](double rate, double limit) { return std::clamp(rate * strength, -limit, limit) / strength; };
  motion.strength = strength;
  motion.spin = limited(drawn.spin, 0.05);
  motion.zoom = limited(drawn.zoom, 0.2);
  motion.shear = limited(drawn.shear, 0.12);
  for (int i = 0; i < kWaves; ++i) motion.waves[i].rate = limited(drawn.waves[i].rate, 0.12);
}

// Scales the rates until the largest displacement, which `measure` finds, is `wanted`; never more than `allowed`.
template <typename Measure>
void fit_displacement(Motion& motion, double wanted, double allowed, const Measure& measure) {
  const Motion drawn = motion;
  double strength = wanted, found = 0;
  for (int round = 0; round < 5; ++round) {
    set_strength(motion, drawn, strength);
    found = measure(motion);
    if (std::abs(found - wanted) < 0.02 * wanted) break;
    strength *= std::clamp(wanted / std::max(found, 1e-6), 0.2, 3.0);
  }
  while (found > allowed) {
    strength *= 0.8 * allowed / found;
    set_strength(motion, drawn, strength);
    found = measure(motion);
  }
}

Paint draw_paint(Random random, const TextureBank& bank) {
  Paint paint{};
  const Texture& texture = bank.draw(random);
  const double texels = random.log_uniform(0.75, 2.5);  // per pixel, of the full texture
  int level = 0;
  while (texels > 1.25 * (1 << level) && level + 1 < texture.level_count()) ++level;
  paint.level = &texture.level(level);
  const double scale = texels / (1 << level);
  Direction turn = random.angle();
  if (random.chance(0.5)) turn = {1, 0};
  const double mirror = random.chance(0.5) ? -1 : 1;
  const double matrix[2][2] = {{scale * turn.cos, -scale * turn.sin},
                               {mirror * scale * turn.sin, mirror * scale * turn.cos}};
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) paint.matrix[i][j] = static_cast<float>(matrix[i][j]);
  paint.matrix[0][2] = static_cast<float>(random.uniform(0, paint.level->width));
  paint.matrix[1][2] = static_cast<float>(random.uniform(0, paint.level->height));
  const double contrast = random.uniform(0.75, 1.15);
  const double shift = random.uniform(-25, 25);
  paint.gain = Float4{0, 0, 0, 0};
  paint.offset = Float4{0, 0, 0, 0};
  for (int c = 0; c < 3; ++c) {
    const double gain = contrast * random.uniform(0.85, 1.15);
    paint.gain[c] = static_cast<float>(gain);
    paint.offset[c] = static_cast<float>(127.5 * (1 - gain) + shift);
  }
  return paint;
}

// A slow change of light, linear in time; none without the chance.
std::vector<Tone> draw_tones(Random random, const Options& options) {
  std::vector<Tone> tones(options.frames, Tone{1, 0, 0});
  if (!random.chance(options.lighting)) return tones;
  const double gain = random.uniform(-0.1, 0.1);
  const double bend = random.uniform(-0.1, 0.1);
  const double offset = random.uniform(-0.03, 0.03);
  const double base = random.uniform(-0.25, 0.25);
  for (int frame = 0; frame < options.frames; ++frame) {
    const double t = 2.0 * frame / (options.frames - 1) - 1;
    tones[frame] = {1 + gain * t, base + bend * t, offset * t};
  }
  return tones;
}

}  // namespace

const Texture& TextureBank::draw(Random& random) const {
  const double at = random.uniform();
  const auto found = std::upper_bound(up_to.begin(), up_to.end(), at);
  return *textures[std::min<std::size_t>(found - up_to.begin(), textures.size() - 1)];
}

Scene draw_scene(std::uint64_t seed, const Options& options, const TextureBank& bank) {
  const Random root(scramble(seed + 0x632be59bd9b4e019ULL));
  Random random = root.stream(0);
  const double allowed = 0.95 * options.max_displacement, least = std::min(options.min_displacement, 0.9 * allowed);
  Scene scene{options, draw_shake(root.stream(1), options, 0.25 * allowed), {}, draw_tones(root.stream(2), options), 0,
              1};
  const int count = random.integer(options.min_layers, options.max_layers);
  if (random.chance(options.motion_blur)) {
    scene.exposure = random.uniform(0.2, 0.6);
    scene.samples = 8;
  }
  const double side = std::min(options.width, options.height);
  scene.layers.resize(count + 1);
  for (int number = 0; number <= count; ++number) {
    Layer& layer = scene.layers[number];
    Random own = root.stream(3 + number);
    const bool background = number == 0;
    const double radius =
        background ? 0.6 * std::max(options.width, options.height) : side * own.log_uniform(0.07, 0.38);
    layer.motion = draw_motion(own.stream(0), options, radius, background);
    const double inset = background ? 0.5 : own.uniform();
    layer.motion.centre[0] = inset * (options.width - 1);
    layer.motion.centre[1] = (background ? 0.5 : own.uniform()) * (options.height - 1);
    layer.paint = draw_paint(own.stream(1), bank);
    const double wanted = own.log_uniform(least, allowed);
    if (!background) layer.shape = draw_shape(own.stream(2), radius);
    fit_displacement(layer.motion, wanted, allowed, [&](const Motion& motion) {
      return background
                 ? displacement_of_image(motion, scene.shake, options.frames, options.width, options.height)
                 : displacement_of_area(motion, scene.shake, options.frames, layer.shape.reach_x, layer.shape.reach_y);
    });
  }
  return scene;
}

}  // namespace daflow::scene
