// What launchers take: tensors as a pointer, sizes and strides counted in elements. No device code here, so that the
// glue (csrc/cuda) can include it.
#pragma once

#include "common/runtime.cuh"

namespace daflow {
namespace cuda {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

constexpr int kMaxLevels = 16;

// A feature map with unit channel stride.
struct MapView {
  const void* data;
  int64_t stride_b, stride_y, stride_x;
  int32_t height, width;
};

// Any four-dimensional tensor.
struct View4 {
  const void* data;
  int64_t size[4], stride[4];
  DType dtype;
};

// Samples of windows: [B * N, L * nx * ny, H, W] in any order of memory.
struct WindowOutput {
  void* data;
  int64_t stride_image, stride_sample, stride_y, stride_x;
  DType dtype;
};

// The queries of a lookup and the shape of its window. Output and gradient: [B, N, L*nx*ny, H, W].
struct WindowParams {
  const float* coords;  // [B, N, 2, H, W], pixels of level 0
  int64_t coords_stride_b, coords_stride_n, coords_stride_c, coords_stride_y, coords_stride_x;
  int64_t batch, centres;
  int32_t height, width;
  int32_t num_levels;
  int32_t radius_y, radius_x;
  bool x_major;  // the slow window index moves x
};

// Whether pixels of `map` may be read 16 bytes at a time.
inline bool vectorizable(const MapView& map, int64_t channels, DType dtype) {
  const int64_t count = 16 / size_of(dtype);
  return channels % count == 0 && map.stride_b % count == 0 && map.stride_y % count == 0 && map.stride_x % count == 0 &&
         reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

}  // namespace cuda
}  // namespace daflow
