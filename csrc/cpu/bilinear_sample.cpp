// bilinear_sample on the CPU; semantics in daflow_ext/ops/bilinear_sample.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "common/check.h"
#include "cpu/bilinear_sample_isa.h"
#include "cpu/huge_pages.h"
#include "cpu/tensor_element.h"

namespace daflow {
namespace {

constexpr int64_t kGrain = 1 << 15;    // outputs worth a thread
constexpr int64_t kScratch = 1 << 21;  // accumulators a thread may hold before it takes fewer channels at a time

// channels-last in memory (the rule of the fake kernels)
bool is_channels_last(const Tensor& feat) { return feat.size(1) > 1 && feat.stride(1) == 1; }

Tensor empty_in_layout_of(const Tensor& feat, int64_t height, int64_t width) {
  if (is_channels_last(feat)) return empty_channels_last(feat, feat.size(0), feat.size(1), height, width);
  return torch::stable::new_empty(feat, {feat.size(0), feat.size(1), height, width});
}

// Everything but coords and the outputs.
SampleArgs args_of(const char* op, const Tensor& feat, const Tensor& coords, const std::string& padding, int64_t groups,
                   int64_t sharpness) {
  STD_TORCH_CHECK(feat.dim() == 4, op, ": feat must be [B, C, H, W], got ", spell(feat));
  STD_TORCH_CHECK(coords.dim() == 4 || coords.dim() == 5, op, ": coords must be [B, (G,) 2, Ho, Wo], got ",
                  spell(coords));
  const int64_t centres = check_coords(op, coords, feat.size(0), coords.size(-2), coords.size(-1));
  STD_TORCH_CHECK(padding == "zeros" || padding == "border", op, ": padding must be 'zeros' or 'border', got '",
                  padding, "'");
  STD_TORCH_CHECK(groups >= 1 && feat.size(1) % groups == 0 && centres == groups, op, ": groups is ", groups,
                  " but feat is ", spell(feat), " and coords ", spell(coords));
  STD_TORCH_CHECK(sharpness >= 1, op, ": sharpness must be at least 1, got ", sharpness);
  STD_TORCH_CHECK(std::max(feat.size(2), feat.size(3)) < std::numeric_limits<int>::max(), op,
                  ": feat is too large: ", spell(feat));
  SampleArgs args{};
  args.dtype = element_of(feat.scalar_type());
  args.batch = feat.size(0);
  args.channels = feat.size(1);
  args.groups = groups;
  args.height = static_cast<int>(feat.size(2));
  args.width = static_cast<int>(feat.size(3));
  args.positions = coords.size(-2) * coords.size(-1);
  args.border = padding == "border";
  args.sharpness = sharpness;
  args.channel_block = std::clamp<int64_t>(kScratch / std::max<int64_t>(feat.size(2) * feat.size(3), 1), 1,
                                           SampleArgs::max_channel_block);
  args.feat = feat.data_ptr();
  args.feat_stride_b = feat.stride(0);
  args.feat_stride_c = feat.stride(1);
  args.feat_stride_y = feat.stride(2);
  args.feat_stride_x = feat.stride(3);
  args.channels_last = is_channels_last(feat);
  args.block = SampleArgs::pixel_block;
  return args;
}

// Whether the forward pass may load the two taps of a row at once.
bool has_pairs(const SampleArgs& args) {
  return !args.channels_last && args.feat_stride_x == 1 && args.width > 1 && args.dtype != Element::f64 &&
         args.last_offset() <= std::numeric_limits<int>::max();
}

bool has_pixels(const SampleArgs& args) { return args.height > 0 && args.width > 0; }

template <class Kernel>
void run_positions(Kernel* kernel, const SampleArgs& args) {
  const int64_t outputs = std::max<int64_t>(args.channels, 1) * args.block;
  torch::stable::parallel_for(0, args.position_units(), std::max<int64_t>(kGrain / outputs, 1),
                              [&](int64_t first, int64_t last) { kernel(args, first, last); });
}

Tensor bilinear_sample(const Tensor& feat, const Tensor& coords, const std::string& padding, int64_t groups,
                       int64_t sharpness) {
  SampleArgs args = args_of("bilinear_sample", feat, coords, padding, groups, sharpness);
  Tensor out = empty_in_layout_of(feat, coords.size(-2), coords.size(-1));
  if (!has_pixels(args)) return torch::stable::zero_(out);
  const Tensor positions = contiguous_as(coords, accumulate_dtype(feat));
  args.coords = positions.data_ptr();
  advise_huge_pages(out);
  args.out = out.data_ptr();
  args.pairs = has_pairs(args);
  if (args.pairs) args.block = SampleArgs::pair_block;
  run_positions(DAFLOW_SELECT_ISA(bilinear_sample), args);
  return out;
}

// [grad_feat, grad_coords]; always deterministic: every element has one owner, who adds in a fixed order.
std::vector<Tensor> bilinear_sample_backward(const Tensor& grad, const Tensor& feat, const Tensor& coords,
                                             const std::string& padding, int64_t groups, int64_t sharpness,
                                             bool need_feat, bool need_coords, bool /*deterministic*/) {
  const char* const op = "bilinear_sample_backward";
  SampleArgs args = args_of(op, feat, coords, padding, groups, sharpness);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == args.batch && grad.size(1) == args.channels &&
                      grad.size(2) == coords.size(-2) && grad.size(3) == coords.size(-1) &&
                      grad.scalar_type() == feat.scalar_type(),
                  op, ": grad is ", spell(grad), " but feat is ", spell(feat), " and coords ", spell(coords));
  const Tensor packed =
      torch::stable::contiguous(grad, args.channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                         : torch::headeronly::MemoryFormat::Contiguous);
  const Tensor positions = contiguous_as(coords, accumulate_dtype(feat));
  args.grad = packed.data_ptr();
  args.coords = positions.data_ptr();

  Tensor grad_feat =
      need_feat ? empty_in_layout_of(feat, args.height, args.width) : torch::stable::new_empty(feat, {0});
  Tensor grad_coords =
      need_coords ? torch::stable::new_empty(positions, coords.sizes()) : torch::stable::new_empty(positions, {0});
  if (need_feat && has_pixels(args)) {
    args.grad_feat = grad_feat.data_ptr();
    const auto kernel = DAFLOW_SELECT_ISA(bilinear_sample_grad_feat);
    torch::stable::parallel_for(0, args.channel_units(), 1, [&](int64_t first, int64_t last) {
      const std::unique_ptr<float[]> scratch(new float[args.scratch_feat()]);
      kernel(args, scratch.get(), first, last);
    });
  }
  if (need_coords && has_pixels(args)) {
    args.grad_coords = grad_coords.data_ptr();
    run_positions(DAFLOW_SELECT_ISA(bilinear_sample_grad_coords), args);
  } else if (need_coords) {
    torch::stable::zero_(grad_coords);
  }
  return {grad_feat, contiguous_as(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CPU, m) {
  m.impl("bilinear_sample", TORCH_BOX(&daflow::bilinear_sample));
  m.impl("bilinear_sample_backward", TORCH_BOX(&daflow::bilinear_sample_backward));
}
