// Glue of bilinear_sample on CUDA: checks, output tensors, launches. The kernels are in
// kernels/cuda/bilinear_sample.cu.
#include "bilinear_sample.cuh"

#include <torch/csrc/stable/library.h>

#include "cuda/glue.h"

namespace daflow {
namespace {

constexpr const char* kOp = "bilinear_sample";

// [B, C, height, width] in the dtype of feat, channels-last in memory if feat is.
Tensor empty_like_feat(const Tensor& feat, int64_t height, int64_t width) {
  if (feat.size(1) > 1 && feat.stride(1) == 1)
    return empty_channels_last(feat, feat.size(0), feat.size(1), height, width);
  return torch::stable::new_empty(feat, {feat.size(0), feat.size(1), height, width});
}

// `out` is the output, or the gradient that arrives for it.
cuda::BilinearSampleParams sample_params(const Tensor& feat, const Tensor& coords, const std::string& padding,
                                         int64_t groups, int64_t sharpness, const Tensor& out) {
  const int64_t rank = coords.dim();
  cuda::BilinearSampleParams p = {};
  p.feat = view4(kOp, feat);
  p.coords = static_cast<const float*>(coords.const_data_ptr());
  p.coords_stride_b = coords.stride(0);
  p.coords_stride_g = rank == 5 ? coords.stride(1) : 0;
  p.coords_stride_c = coords.stride(rank - 3);
  p.coords_stride_y = coords.stride(rank - 2);
  p.coords_stride_x = coords.stride(rank - 1);
  p.groups = as_int32(kOp, groups);
  p.border = padding == "border";
  p.sharpness = static_cast<float>(sharpness);
  p.out = view4(kOp, out);
  return p;
}

void check_inputs(const Tensor& feat, const Tensor& coords, const std::string& padding, int64_t groups,
                  int64_t sharpness) {
  STD_TORCH_CHECK(feat.dim() == 4, kOp, ": feat must be [B, C, H, W], got ", spell(feat));
  check_same(kOp, "feat", feat, feat, true);
  const int64_t rank = coords.dim();
  STD_TORCH_CHECK(rank == 4 || rank == 5, kOp, ": coords must be [B, (G,) 2, Ho, Wo], got ", spell(coords));
  const int64_t given =
      check_cuda_coords(kOp, coords, feat, feat.size(0), coords.size(rank - 2), coords.size(rank - 1));
  STD_TORCH_CHECK(groups >= 1 && given == groups && feat.size(1) % groups == 0, kOp, ": groups=", groups,
                  " must divide the channels of feat ", spell(feat), " and be those of coords ", spell(coords));
  STD_TORCH_CHECK(padding == "zeros" || padding == "border", kOp, ": padding must be 'zeros' or 'border', got '",
                  padding, "'");
  STD_TORCH_CHECK(sharpness >= 1 && sharpness <= 1 << 20, kOp, ": sharpness must be 1 to 2^20, got ", sharpness);
  as_int32(kOp, feat.size(2));
  as_int32(kOp, feat.size(3));
}

Tensor bilinear_sample(const Tensor& feat, const Tensor& coords, std::string padding, int64_t groups,
                       int64_t sharpness) {
  check_inputs(feat, coords, padding, groups, sharpness);
  const DeviceScope scope(feat);
  const int64_t rank = coords.dim();
  Tensor out = empty_like_feat(feat, coords.size(rank - 2), coords.size(rank - 1));
  if (out.numel() == 0) return out;
  const cuda::BilinearSampleParams p = sample_params(feat, coords, padding, groups, sharpness, out);
  check_launch(kOp, daflow_cuda_bilinear_sample(&p, scope.stream()));
  return out;
}

Tensor grad_feat(cuda::BilinearSampleGradParams p, const Tensor& feat, bool deterministic, cudaStream_t stream) {
  Tensor gradient = empty_like_feat(feat, feat.size(2), feat.size(3));
  if (gradient.numel() == 0) return gradient;
  TermBounds bounds(kOp, feat, deterministic, stream);
  bounds.add(p.sample.out);
  SumBuffer sums(kOp, gradient, bounds, stream);
  p.sums = sums.data();
  p.bounds = bounds.data();
  for (int64_t dim = 0; dim < 4; ++dim) p.sums_stride[dim] = gradient.stride(dim);
  check_launch(kOp, daflow_cuda_bilinear_sample_scatter(&p, stream));
  sums.finish(1.0f, p.sample.out.size[2] * p.sample.out.size[3]);
  return gradient;
}

std::vector<Tensor> bilinear_sample_backward(const Tensor& grad, const Tensor& feat, const Tensor& coords,
                                             std::string padding, int64_t groups, int64_t sharpness, bool need_feat,
                                             bool need_coords, bool deterministic) {
  check_inputs(feat, coords, padding, groups, sharpness);
  const int64_t rank = coords.dim();
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == feat.size(0) && grad.size(1) == feat.size(1) &&
                      grad.size(2) == coords.size(rank - 2) && grad.size(3) == coords.size(rank - 1),
                  kOp, ": grad ", spell(grad), " must have the shape of the output");
  check_same(kOp, "grad", grad, feat, true);
  const DeviceScope scope(feat);
  cuda::BilinearSampleGradParams p = {};
  p.sample = sample_params(feat, coords, padding, groups, sharpness, grad);

  std::vector<Tensor> grads;
  grads.push_back(need_feat ? grad_feat(p, feat, deterministic, scope.stream()) : torch::stable::new_empty(feat, {0}));
  grads.push_back(torch::stable::new_empty(coords, need_coords ? coords.sizes().vec() : std::vector<int64_t>{0}));
  if (grads[1].numel() == 0) return grads;
  if (feat.size(1) == 0) {
    torch::stable::zero_(grads[1]);
    return grads;
  }
  p.grad_coords = static_cast<float*>(grads[1].mutable_data_ptr());
  check_launch(kOp, daflow_cuda_bilinear_sample_grad_coords(&p, scope.stream()));
  return grads;
}

}  // namespace
}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CUDA, m) {
  m.impl("bilinear_sample", TORCH_BOX(&daflow::bilinear_sample));
  m.impl("bilinear_sample_backward", TORCH_BOX(&daflow::bilinear_sample_backward));
}
