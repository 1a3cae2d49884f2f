// The scene renderer for Python: NumPy in, NumPy out, without the interpreter lock in between.
#include "host/scene_module.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <atomic>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>

#include "host/scene.h"

namespace py = pybind11;

namespace {

using namespace daflow::scene;
using Image = py::array_t<std::uint8_t, py::array::c_style>;

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

std::string range(double low, double high) { return std::to_string(low) + " .. " + std::to_string(high); }

void check(const Options& o) {
  require(o.frames >= 2, "frames must be at least 2, got " + std::to_string(o.frames));
  require(o.height >= 16 && o.width >= 16 && o.height <= 8192 && o.width <= 8192,
          "height and width must be 16 .. 8192, got " + std::to_string(o.height) + " x " + std::to_string(o.width));
  require(0 < o.min_displacement && o.min_displacement <= o.max_displacement && o.max_displacement <= 1000,
          "displacements must satisfy 0 < min <= max <= 1000, got " + range(o.min_displacement, o.max_displacement));
  require(0 <= o.min_layers && o.min_layers <= o.max_layers && o.max_layers <= 64,
          "layers must satisfy 0 <= min <= max <= 64, got " + range(o.min_layers, o.max_layers));
  const std::pair<const char*, double> fractions[] = {
      {"elastic", o.elastic}, {"shake", o.shake}, {"motion_blur", o.motion_blur}, {"lighting", o.lighting}};
  for (const auto& [name, value] : fractions)
    require(0 <= value && value <= 1, std::string(name) + " must be 0 .. 1, got " + std::to_string(value));
}

TextureBank make_bank(const std::vector<Image>& images, const std::vector<double>& weights) {
  require(!images.empty() && images.size() == weights.size(),
          "as many weights as images are expected, and at least one; got " + std::to_string(images.size()) +
              " images and " + std::to_string(weights.size()) + " weights");
  TextureBank bank;
  double total = 0;
  for (std::size_t i = 0; i < images.size(); ++i) {
    const Image& image = images[i];
    require(image.ndim() == 3 && image.shape(2) == 3 && image.shape(0) >= 4 && image.shape(1) >= 4,
            "a texture must be uint8 [H, W, 3] with sides of at least 4");
    require(weights[i] >= 0, "weights must not be negative, got " + std::to_string(weights[i]));
    bank.textures.push_back(
        std::make_shared<Texture>(image.data(), static_cast<int>(image.shape(1)), static_cast<int>(image.shape(0))));
    bank.up_to.push_back(total += weights[i]);
  }
  require(total > 0, "at least one weight must be above 0");
  for (double& edge : bank.up_to) edge /= total;
  return bank;
}

struct Arrays {
  py::array_t<std::uint8_t> frames, layers;
  py::array_t<float> reference, flow[2];
  py::array_t<bool> occluded[2];

  Arrays(py::ssize_t clips, const Options& o, bool everything) : everything_(everything) {
    const py::ssize_t all = o.frames, pairs = o.frames - 1, height = o.height, width = o.width;
    frames = py::array_t<std::uint8_t>({clips, all, height, width, py::ssize_t(3)});
    layers = py::array_t<std::uint8_t>({clips, all, height, width});
    for (int i = 0; i <= everything; ++i) {
      flow[i] = py::array_t<float>({clips, pairs, height, width, py::ssize_t(2)});
      occluded[i] = py::array_t<bool>({clips, pairs, height, width});
    }
    if (everything) reference = py::array_t<float>({clips, all, height, width, py::ssize_t(2)});
  }

  // Where clip `index` goes.
  Output output(std::size_t index, const Options& o) {
    const std::size_t pixels = static_cast<std::size_t>(o.height) * o.width, all = index * o.frames * pixels;
    const std::size_t pairs = index * (o.frames - 1) * pixels;
    Output output{data(frames) + 3 * all,
                  data(layers) + all,
                  nullptr,
                  {data(flow[0]) + 2 * pairs, nullptr},
                  {data(occluded[0]) + pairs, nullptr}};
    if (everything_) {
      output.reference = data(reference) + 2 * all;
      output.flow[1] = data(flow[1]) + 2 * pairs;
      output.occluded[1] = data(occluded[1]) + pairs;
    }
    return output;
  }

  py::dict dict() const {
    py::dict result;
    result["frames"] = frames;
    result["flow"] = flow[0];
    result["occluded"] = occluded[0];
    result["layers"] = layers;
    if (everything_) {
      result["backward"] = flow[1];
      result["occluded_backward"] = occluded[1];
      result["reference"] = reference;
    }
    return result;
  }

 private:
  bool everything_;

  template <typename T>
  static T* data(py::array_t<T>& array) {
    return static_cast<T*>(array.request().ptr);
  }
};

void render_all(const TextureBank& bank, const std::vector<std::uint64_t>& seeds, const Options& options, int threads,
                const std::vector<Output>& outputs) {
  std::atomic<std::size_t> next{0};
  std::vector<std::exception_ptr> errors(threads);
  const auto work = [&](int thread) {
    try {
      for (std::size_t i = next++; i < seeds.size(); i = next++)
        render(draw_scene(seeds[i], options, bank), outputs[i]);
    } catch (...) {
      errors[thread] = std::current_exception();  // out of memory
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& thread : others) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

py::dict render_scenes(const TextureBank& bank, const std::vector<std::uint64_t>& seeds, int frames, int height,
                       int width, double min_displacement, double max_displacement, std::pair<int, int> layers,
                       double elastic, double shake, double motion_blur, double lighting, int threads,
                       bool everything) {
  const Options options{frames,        height,  width, min_displacement, max_displacement, layers.first,
                        layers.second, elastic, shake, motion_blur,      lighting};
  check(options);
  require(threads >= 1 && threads <= 256, "threads must be 1 .. 256, got " + std::to_string(threads));
  Arrays arrays(static_cast<py::ssize_t>(seeds.size()), options, everything);
  std::vector<Output> outputs;
  for (std::size_t i = 0; i < seeds.size(); ++i) outputs.push_back(arrays.output(i, options));
  {
    py::gil_scoped_release release;
    render_all(bank, seeds, options, threads, outputs);
  }
  return arrays.dict();
}

Image scene_pattern(const std::string& kind, std::uint64_t seed, int size) {
  require(size >= 16 && size <= 4096, "size must be 16 .. 4096, got " + std::to_string(size));
  require(kind == "noise" || kind == "cells" || kind == "glyphs",
          "kind must be noise, cells or glyphs, got '" + kind + "'");
  const Pattern pattern = kind == "noise" ? Pattern::noise : kind == "cells" ? Pattern::cells : Pattern::glyphs;
  std::vector<std::uint8_t> pixels;
  {
    py::gil_scoped_release release;
    pixels = make_pattern(pattern, Random(scramble(seed)), size);
  }
  return Image({size, size, 3}, pixels.data());
}

}  // namespace

void bind_scenes(py::module_& m) {
  py::class_<TextureBank>(m, "SceneTextures", "Textures of scenes, uint8 [H, W, 3] each, with their weights.")
      .def(py::init(&make_bank), py::arg("images"), py::arg("weights"))
      .def("__len__", [](const TextureBank& bank) { return bank.textures.size(); })
      .def("render", &render_scenes, py::arg("seeds"), py::kw_only(), py::arg("frames"), py::arg("height"),
           py::arg("width"), py::arg("min_displacement"), py::arg("max_displacement"), py::arg("layers"),
           py::arg("elastic"), py::arg("shake"), py::arg("motion_blur"), py::arg("lighting"), py::arg("threads") = 1,
           py::arg("everything") = true,
           "One clip per seed: frames, flow, occluded, layers; with everything also backward, occluded_backward, "
           "reference; [B, ...] each.");
  m.def("scene_pattern", &scene_pattern, py::arg("kind"), py::arg("seed"), py::arg("size"),
        "A procedural texture, uint8 [size, size, 3]: noise, cells or glyphs.");
}
