// Glue of corr_pyramid on CUDA: checks, output tensors, launches. The kernels are in kernels/cuda/corr_pyramid.cu.
#include "corr_pyramid.cuh"

#include <torch/csrc/stable/library.h>

#include "cuda/glue.h"

namespace daflow {
namespace {

constexpr const char* kOp = "corr_pyramid";

void check_levels(size_t num_levels) {
  STD_TORCH_CHECK(num_levels >= 1 && num_levels <= cuda::kMaxLevels, kOp, ": 1 to ", cuda::kMaxLevels, " levels, got ",
                  num_levels);
}

// [B, C, height, width] in channels-last memory.
Tensor empty_level(const Tensor& like, int64_t height, int64_t width, ScalarType dtype) {
  Tensor dense = torch::stable::new_empty(like, {like.size(0), height, width, like.size(1)}, dtype);
  return torch::stable::transpose(torch::stable::transpose(dense, 2, 3), 1, 2);
}

std::vector<Tensor> corr_pyramid(const Tensor& fmap2, int64_t num_levels, std::optional<ScalarType> out_dtype) {
  STD_TORCH_CHECK(fmap2.dim() == 4, kOp, ": fmap2 must be [B, C, H, W], got ", spell(fmap2));
  check_same(kOp, "fmap2", fmap2, fmap2, true);
  check_levels(static_cast<size_t>(num_levels));
  const DeviceScope scope(fmap2);
  cuda::CorrPyramidParams p = {};
  p.fmap2 = view4(kOp, fmap2);
  p.num_levels = static_cast<int32_t>(num_levels);
  const ScalarType dtype = out_dtype.value_or(fmap2.scalar_type());
  p.out_dtype = kernel_dtype(kOp, dtype);
  std::vector<Tensor> levels;
  for (int64_t level = 0; level < num_levels; ++level) {
    levels.push_back(empty_level(fmap2, fmap2.size(2) >> level, fmap2.size(3) >> level, dtype));
    p.levels[level] = levels.back().mutable_data_ptr();
  }
  if (fmap2.numel() != 0) check_launch(kOp, daflow_cuda_corr_pyramid(&p, scope.stream()));
  return levels;
}

Tensor corr_pyramid_backward(std::vector<Tensor> grads, std::optional<ScalarType> out_dtype) {
  check_levels(grads.size());
  const Tensor& first = grads[0];
  STD_TORCH_CHECK(first.dim() == 4, kOp, ": gradients must be [B, C, H_l, W_l], got ", spell(first));
  check_same(kOp, "the gradient of level 0", first, first, true);
  const DeviceScope scope(first);
  cuda::CorrPyramidGradParams p = {};
  p.num_levels = static_cast<int32_t>(grads.size());
  p.batch = first.size(0);
  p.channels = as_int32(kOp, first.size(1));
  p.height = as_int32(kOp, first.size(2));
  p.width = as_int32(kOp, first.size(3));
  p.dtype = kernel_dtype(kOp, first.scalar_type());
  for (size_t level = 0; level < grads.size(); ++level) {
    const Tensor& grad = grads[level];
    STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == first.size(0) && grad.size(1) == first.size(1) &&
                        grad.size(2) == first.size(2) >> level && grad.size(3) == first.size(3) >> level,
                    kOp, ": the gradient of level ", level, " is ", spell(grad), " but level 0 is ", spell(first));
    check_same(kOp, "the gradient of a level", grad, first, true);
    p.grads[level] = grad.const_data_ptr();
    for (int64_t dim = 0; dim < 4; ++dim) p.strides[level][dim] = grad.stride(dim);
  }
  const ScalarType dtype = out_dtype.value_or(first.scalar_type());
  p.out_dtype = kernel_dtype(kOp, dtype);
  Tensor out = empty_level(first, p.height, p.width, dtype);
  if (out.numel() == 0) return out;
  p.out = out.mutable_data_ptr();
  check_launch(kOp, daflow_cuda_corr_pyramid_backward(&p, scope.stream()));
  return out;
}

}  // namespace
}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CUDA, m) {
  m.impl("corr_pyramid", TORCH_BOX(&daflow::corr_pyramid));
  m.impl("corr_pyramid_backward", TORCH_BOX(&daflow::corr_pyramid_backward));
}
