// Checks and small tensor helpers shared by the CPU kernels and the CUDA glue.
// The Python functions give the full diagnosis; here is what keeps a direct torch.ops call from reading out of bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace daflow {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string spell(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) text += (dim ? ", " : "") + std::to_string(tensor.size(dim));
  return text + "]";
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Double;
}

template <class T>
struct Tag {
  using type = T;
};

// Calls f with the Tag of the C++ type of a floating dtype.
template <class F>
void dispatch_floating(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Float: f(Tag<float>{}); return;
    case ScalarType::Half: f(Tag<torch::headeronly::Half>{}); return;
    case ScalarType::BFloat16: f(Tag<torch::headeronly::BFloat16>{}); return;
    case ScalarType::Double: f(Tag<double>{}); return;
    default: STD_TORCH_CHECK(false, op, ": expected a floating dtype");
  }
}

// A feature map [B, C, H, W] with unit channel stride; one copy if it comes in another layout.
inline Tensor channels_last(const Tensor& fmap) {
  if (fmap.size(1) == 1 || fmap.stride(1) == 1) return fmap;
  return torch::stable::contiguous(fmap, torch::headeronly::MemoryFormat::ChannelsLast);
}

// An uninitialised [B, C, H, W] in channels-last memory, dtype and device of `like`.
inline Tensor empty_channels_last(const Tensor& like, int64_t b, int64_t c, int64_t h, int64_t w) {
  Tensor nhwc = torch::stable::new_empty(like, {b, h, w, c});
  return torch::stable::transpose(torch::stable::transpose(nhwc, 2, 3), 1, 2);
}

// coords [B, 2, H, W] or [B, N, 2, H, W]: its number of centres N, after checking the rest.
inline int64_t check_coords(const char* op, const Tensor& coords, int64_t b, int64_t h, int64_t w) {
  const int64_t rank = coords.dim();
  STD_TORCH_CHECK((rank == 4 || rank == 5) && coords.size(rank - 3) == 2 && coords.size(0) == b &&
                      coords.size(rank - 2) == h && coords.size(rank - 1) == w,
                  op, ": coords must be [", b, ", (N,) 2, ", h, ", ", w, "], got ", spell(coords));
  STD_TORCH_CHECK(coords.scalar_type() == ScalarType::Float || coords.scalar_type() == ScalarType::Double, op,
                  ": coords must be float32 (or float64 beside float64 features)");
  return rank == 5 ? coords.size(1) : 1;
}

// radius (y, x) as it comes through the schema's int[2].
inline void check_radius(const char* op, const std::vector<int64_t>& radius) {
  STD_TORCH_CHECK(radius.size() == 2 && radius[0] >= 0 && radius[1] >= 0, op,
                  ": radius must be two integers >= 0 (radius_y, radius_x)");
}

inline bool check_order(const char* op, const std::string& order) {
  STD_TORCH_CHECK(order == "xy" || order == "yx", op, ": order must be 'xy' or 'yx', got '", order, "'");
  return order == "xy";
}

}  // namespace daflow
