// volume_lookup on the CPU; semantics in daflow_ext/ops/volume_lookup.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "common/check.h"
#include "cpu/tensor_element.h"
#include "cpu/volume_lookup_isa.h"

namespace daflow {
namespace {

constexpr int64_t kMaxRadius = 4095;  // keeps tap counts in int

std::vector<VolumeLevel> levels_of(const char* op, const std::vector<Tensor>& pyramid) {
  STD_TORCH_CHECK(!pyramid.empty() && pyramid[0].dim() == 5, op,
                  ": volume_pyramid must be a non-empty list of [B, H, W, H_l, W_l]");
  std::vector<VolumeLevel> levels;
  for (const Tensor& volume : pyramid) {
    const Tensor& first = pyramid[0];
    STD_TORCH_CHECK(volume.dim() == 5 && volume.size(0) == first.size(0) && volume.size(1) == first.size(1) &&
                        volume.size(2) == first.size(2) && volume.scalar_type() == first.scalar_type(),
                    op, ": volume_pyramid[", levels.size(), "] is ", spell(volume), " beside volume_pyramid[0] ",
                    spell(first), "; B, H, W and the dtype must agree");
    STD_TORCH_CHECK(std::max(volume.size(3), volume.size(4)) <= std::numeric_limits<int>::max() - 2 * kMaxRadius, op,
                    ": volume_pyramid[", levels.size(), "] is too large: ", spell(volume));
    levels.push_back({volume.data_ptr(), volume.stride(0), volume.stride(1), volume.stride(2), volume.stride(3),
                      volume.stride(4), static_cast<int>(volume.size(3)), static_cast<int>(volume.size(4)), nullptr});
  }
  return levels;
}

// Everything but the pointers.
VolumeArgs args_of(const char* op, const std::vector<Tensor>& pyramid, const std::vector<VolumeLevel>& levels,
                   const Tensor& coords, const std::vector<int64_t>& radius, const std::string& order) {
  VolumeArgs args{};
  args.dtype = element_of(pyramid[0].scalar_type());
  args.batch = pyramid[0].size(0);
  args.height = pyramid[0].size(1);
  args.width = pyramid[0].size(2);
  args.centres = check_coords(op, coords, args.batch, args.height, args.width);
  check_radius(op, radius);
  STD_TORCH_CHECK(std::max(radius[0], radius[1]) <= kMaxRadius, op, ": radius must be at most ", kMaxRadius);
  args.radius_y = static_cast<int>(radius[0]);
  args.radius_x = static_cast<int>(radius[1]);
  args.x_major = check_order(op, order);
  args.num_levels = static_cast<int>(levels.size());
  args.levels = levels.data();
  return args;
}

// [B, (N,) channels, H, W]
std::vector<int64_t> output_shape(const Tensor& coords, int64_t channels) {
  std::vector<int64_t> shape(coords.sizes().begin(), coords.sizes().end());
  shape[shape.size() - 3] = channels;
  return shape;
}

template <class Kernel>
void run(Kernel* kernel, const VolumeArgs& args, int64_t scratch_size) {
  torch::stable::parallel_for(0, args.units(), 1, [&](int64_t first, int64_t last) {
    std::vector<double> scratch(scratch_size);
    kernel(args, scratch.data(), first, last);
  });
}

Tensor volume_lookup(const std::vector<Tensor>& volume_pyramid, const Tensor& coords,
                     const std::vector<int64_t>& radius, const std::string& order,
                     std::optional<ScalarType> out_dtype) {
  const char* const op = "volume_lookup";
  const std::vector<VolumeLevel> levels = levels_of(op, volume_pyramid);
  VolumeArgs args = args_of(op, volume_pyramid, levels, coords, radius, order);
  const ScalarType dtype = out_dtype.value_or(ScalarType::Float);
  args.out_dtype = element_of(dtype);
  const Tensor out = torch::stable::new_empty(coords, output_shape(coords, args.num_levels * args.window()), dtype);
  const Tensor centres = contiguous_as(coords, accumulate_dtype(volume_pyramid[0]));
  args.coords = centres.data_ptr();
  args.out = out.data_ptr();
  run(DAFLOW_SELECT_ISA(volume_lookup), args, args.scratch());
  return out;
}

std::vector<Tensor> volume_lookup_backward(const Tensor& grad, const std::vector<Tensor>& volume_pyramid,
                                           const Tensor& coords, const std::vector<int64_t>& radius,
                                           const std::string& order, bool need_volume, bool need_coords) {
  const char* const op = "volume_lookup_backward";
  std::vector<VolumeLevel> levels = levels_of(op, volume_pyramid);
  VolumeArgs args = args_of(op, volume_pyramid, levels, coords, radius, order);
  const std::vector<int64_t> shape = output_shape(coords, args.num_levels * args.window());
  STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), grad.sizes().begin(), grad.sizes().end()), op, ": grad is ",
                  spell(grad), " but the output has ", shape[shape.size() - 3], " channels, coords ", spell(coords));
  const ScalarType accumulate = accumulate_dtype(volume_pyramid[0]);
  const Tensor centres = contiguous_as(coords, accumulate);
  const Tensor grads = contiguous_as(grad, accumulate);
  const Tensor grad_coords =
      need_coords ? torch::stable::new_empty(centres, coords.sizes()) : torch::stable::new_empty(centres, {0});
  std::vector<Tensor> outputs;
  int64_t largest = 0;
  for (size_t level = 0; need_volume && level < levels.size(); ++level) {
    outputs.push_back(torch::stable::new_empty(volume_pyramid[level], volume_pyramid[level].sizes()));
    levels[level].grad = outputs.back().data_ptr();
    largest = std::max(largest, int64_t{levels[level].height} * levels[level].width);
  }
  args.coords = centres.data_ptr();
  args.grad = grads.data_ptr();
  args.grad_coords = need_coords ? grad_coords.data_ptr() : nullptr;
  if (need_volume || need_coords) run(DAFLOW_SELECT_ISA(volume_lookup_backward), args, args.scratch_backward(largest));
  outputs.insert(outputs.begin(), contiguous_as(grad_coords, coords.scalar_type()));
  return outputs;
}

}  // namespace
}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CPU, m) {
  m.impl("volume_lookup", TORCH_BOX(&daflow::volume_lookup));
  m.impl("volume_lookup_backward", TORCH_BOX(&daflow::volume_lookup_backward));
}
