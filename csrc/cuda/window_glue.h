// What corr_lookup and volume_lookup share on CUDA: the queries, the window and the output.
#pragma once

#include <algorithm>

#include "cuda/glue.h"

namespace daflow {

inline cuda::WindowParams window_params(const char* op, const Tensor& coords, int64_t centres, size_t num_levels,
                                        const std::vector<int64_t>& radius, const std::string& order) {
  check_radius(op, radius);
  STD_TORCH_CHECK(num_levels >= 1 && num_levels <= cuda::kMaxLevels, op, ": the pyramid must have 1 to ",
                  cuda::kMaxLevels, " levels, got ", num_levels);
  STD_TORCH_CHECK(radius[0] < 10000 && radius[1] < 10000, op, ": a radius of 10000 or more");
  const int64_t rank = coords.dim();
  cuda::WindowParams p;
  p.coords = static_cast<const float*>(coords.const_data_ptr());
  p.coords_stride_b = coords.stride(0);
  p.coords_stride_n = rank == 5 ? coords.stride(1) : 0;
  p.coords_stride_c = coords.stride(rank - 3);
  p.coords_stride_y = coords.stride(rank - 2);
  p.coords_stride_x = coords.stride(rank - 1);
  p.batch = coords.size(0);
  p.centres = centres;
  p.height = as_int32(op, coords.size(rank - 2));
  p.width = as_int32(op, coords.size(rank - 1));
  p.num_levels = static_cast<int32_t>(num_levels);
  p.radius_y = static_cast<int32_t>(radius[0]);
  p.radius_x = static_cast<int32_t>(radius[1]);
  p.x_major = check_order(op, order);
  return p;
}

// [B, (N,) L * nx * ny, H, W]
inline std::vector<int64_t> window_shape(const Tensor& coords, const cuda::WindowParams& p) {
  const int64_t samples = static_cast<int64_t>(2 * p.radius_x + 1) * (2 * p.radius_y + 1) * p.num_levels;
  if (coords.dim() == 5) return {p.batch, p.centres, samples, p.height, p.width};
  return {p.batch, samples, p.height, p.width};
}

// An uninitialised [B, (N,) K, H, W]; with K densest in memory if channels_last.
inline Tensor empty_window(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype, bool channels_last) {
  if (!channels_last) return torch::stable::new_empty(like, shape, dtype);
  const int64_t k = static_cast<int64_t>(shape.size()) - 3;
  std::rotate(shape.begin() + k, shape.begin() + k + 1, shape.end());
  const Tensor dense = torch::stable::new_empty(like, shape, dtype);
  return torch::stable::transpose(torch::stable::transpose(dense, k + 1, k + 2), k, k + 1);
}

inline cuda::WindowOutput window_output(const char* op, Tensor& out) {
  const int64_t rank = out.dim();
  // images count over batch and centres, whose memory is contiguous
  return {out.mutable_data_ptr(), out.stride(rank - 4), out.stride(rank - 3),
          out.stride(rank - 2),   out.stride(rank - 1), kernel_dtype(op, out.scalar_type())};
}

// The gradient that arrives: contiguous, of the output's shape, on the device of `like`.
inline Tensor check_window_grad(const char* op, const Tensor& grad, const Tensor& coords, const Tensor& like,
                                const cuda::WindowParams& p) {
  const std::vector<int64_t> shape = window_shape(coords, p);
  bool agrees = grad.dim() == static_cast<int64_t>(shape.size());
  for (size_t dim = 0; agrees && dim < shape.size(); ++dim) agrees = grad.size(static_cast<int64_t>(dim)) == shape[dim];
  STD_TORCH_CHECK(agrees, op, ": grad ", spell(grad), " must have the shape of the output");
  check_same(op, "grad", grad, like, false);
  return torch::stable::contiguous(grad);
}

}  // namespace daflow
