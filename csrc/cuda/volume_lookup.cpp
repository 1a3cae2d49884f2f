// Glue of volume_lookup on CUDA: checks, output tensors, launches. The kernels are in kernels/cuda/volume_lookup.cu.
#include "volume_lookup.cuh"

#include <torch/csrc/stable/library.h>

#include "cuda/window_glue.h"

namespace daflow {
namespace {

constexpr const char* kOp = "volume_lookup";

// Checks the inputs and fills what the parameter structs of forward and backward have in common.
template <class Params>
Params check_inputs(const std::vector<Tensor>& pyramid, const Tensor& coords, const std::vector<int64_t>& radius,
                    const std::string& order) {
  STD_TORCH_CHECK(!pyramid.empty() && pyramid[0].dim() == 5, kOp, ": levels must be [B, H, W, H_l, W_l]");
  const Tensor& first = pyramid[0];
  check_same(kOp, "volume_pyramid[0]", first, first, true);
  const int64_t centres = check_cuda_coords(kOp, coords, first, first.size(0), first.size(1), first.size(2));
  Params p = {};
  p.window = window_params(kOp, coords, centres, pyramid.size(), radius, order);
  p.dtype = kernel_dtype(kOp, first.scalar_type());
  for (size_t level = 0; level < pyramid.size(); ++level) {
    const Tensor& volume = pyramid[level];
    STD_TORCH_CHECK(volume.dim() == 5 && volume.size(0) == first.size(0) && volume.size(1) == first.size(1) &&
                        volume.size(2) == first.size(2),
                    kOp, ": a level is ", spell(volume), " but volume_pyramid[0] is ", spell(first));
    check_same(kOp, "a level", volume, first, true);
    p.levels[level] = {volume.const_data_ptr(),
                       volume.stride(0),
                       volume.stride(1),
                       volume.stride(2),
                       volume.stride(3),
                       volume.stride(4),
                       as_int32(kOp, volume.size(3)),
                       as_int32(kOp, volume.size(4))};
  }
  return p;
}

Tensor volume_lookup(std::vector<Tensor> pyramid, const Tensor& coords, std::vector<int64_t> radius, std::string order,
                     std::optional<ScalarType> out_dtype) {
  auto p = check_inputs<cuda::VolumeLookupParams>(pyramid, coords, radius, order);
  const DeviceScope scope(pyramid[0]);
  const ScalarType dtype = out_dtype.value_or(ScalarType::Float);
  Tensor out = torch::stable::new_empty(coords, window_shape(coords, p.window), dtype);
  if (out.numel() == 0) return out;
  p.out = window_output(kOp, out);
  check_launch(kOp, daflow_cuda_volume_lookup(&p, scope.stream()));
  return out;
}

std::vector<Tensor> volume_lookup_backward(const Tensor& grad, std::vector<Tensor> pyramid, const Tensor& coords,
                                           std::vector<int64_t> radius, std::string order, bool need_volume,
                                           bool need_coords) {
  auto p = check_inputs<cuda::VolumeLookupGradParams>(pyramid, coords, radius, order);
  const DeviceScope scope(pyramid[0]);
  const Tensor dense_grad = check_window_grad(kOp, grad, coords, pyramid[0], p.window);
  p.grad = dense_grad.const_data_ptr();
  p.grad_dtype = kernel_dtype(kOp, grad.scalar_type());

  std::vector<Tensor> grads;
  grads.push_back(torch::stable::new_empty(coords, need_coords ? coords.sizes().vec() : std::vector<int64_t>{0}));
  if (grads[0].numel() != 0) {
    p.grad_coords = static_cast<float*>(grads[0].mutable_data_ptr());
    check_launch(kOp, daflow_cuda_volume_lookup_grad_coords(&p, scope.stream()));
  }
  if (!need_volume) return grads;
  for (size_t level = 0; level < pyramid.size(); ++level) {
    grads.push_back(torch::stable::new_empty(pyramid[level], pyramid[level].sizes()));
    p.grad_levels[level] = grads.back().mutable_data_ptr();
  }
  check_launch(kOp, daflow_cuda_volume_lookup_grad_volume(&p, scope.stream()));
  return grads;
}

}  // namespace
}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CUDA, m) {
  m.impl("volume_lookup", TORCH_BOX(&daflow::volume_lookup));
  m.impl("volume_lookup_backward", TORCH_BOX(&daflow::volume_lookup_backward));
}
