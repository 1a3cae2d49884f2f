// corr_pyramid on the CPU; semantics in daflow_ext/ops/corr_pyramid.py.
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "cpu/corr_pyramid_isa.h"
#include "cpu/huge_pages.h"
#include "cpu/tensor_element.h"

#include <algorithm>
#include <vector>

namespace daflow {
namespace {

PyramidLevel level_of(const Tensor& tensor, void* data) {
  return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// Everything but the pointers; levels without pixels, which are the last ones, are left out.
PyramidArgs args_of(const Tensor& fmap, int64_t num_levels) {
  PyramidArgs args;
  args.dtype = element_of(fmap.scalar_type());
  args.batch = fmap.size(0);
  args.channels = fmap.size(1);
  args.height = fmap.size(2);
  args.width = fmap.size(3);
  args.num_levels = 0;
  while (args.num_levels < std::min<int64_t>(num_levels, PyramidArgs::max_levels) &&
         (args.height >> args.num_levels) > 0 && (args.width >> args.num_levels) > 0)
    ++args.num_levels;
  return args;
}

template <class Kernel>
void run(Kernel* kernel, const PyramidArgs& args) {
  if (args.num_levels == 0) return;
  torch::stable::parallel_for(0, args.units(), 1, [&](int64_t first, int64_t last) {
    std::vector<double> scratch(args.scratch());
    kernel(args, scratch.data(), first, last);
  });
}

int64_t shifted(int64_t size, int64_t level) { return level < 63 ? size >> level : 0; }

// Where output and input have different dtypes, all is done in the wider one of these; sums are rounded once then.
ScalarType accumulator(ScalarType a, ScalarType b) {
  return a == ScalarType::Double || b == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::vector<Tensor> corr_pyramid(const Tensor& fmap2, int64_t num_levels, std::optional<ScalarType> out_dtype) {
  if (out_dtype.value_or(fmap2.scalar_type()) != fmap2.scalar_type()) {
    const Tensor wide = torch::stable::to(fmap2, accumulator(fmap2.scalar_type(), *out_dtype));
    std::vector<Tensor> levels = corr_pyramid(wide, num_levels, std::nullopt);
    for (Tensor& level : levels) level = torch::stable::to(level, *out_dtype);
    return levels;
  }
  STD_TORCH_CHECK(fmap2.dim() == 4, "corr_pyramid: fmap2 must be [B, C, H, W], got ", spell(fmap2));
  STD_TORCH_CHECK(num_levels >= 1 && num_levels <= 62, "corr_pyramid: num_levels must be 1 to 62, got ", num_levels);
  PyramidArgs args = args_of(fmap2, num_levels);
  args.source = level_of(fmap2, fmap2.data_ptr());
  std::vector<Tensor> levels;
  for (int64_t level = 0; level < num_levels; ++level) {
    levels.push_back(
        empty_channels_last(fmap2, args.batch, args.channels, shifted(args.height, level), shifted(args.width, level)));
    advise_huge_pages(levels.back());
    if (level < args.num_levels) args.levels[level] = level_of(levels.back(), levels.back().data_ptr());
  }
  run(DAFLOW_SELECT_ISA(corr_pyramid), args);
  return levels;
}

Tensor corr_pyramid_backward(const std::vector<Tensor>& grads, std::optional<ScalarType> out_dtype) {
  STD_TORCH_CHECK(!grads.empty() && grads[0].dim() == 4,
                  "corr_pyramid_backward: grads must be a non-empty list of [B, C, H_l, W_l]");
  if (out_dtype.value_or(grads[0].scalar_type()) != grads[0].scalar_type()) {
    std::vector<Tensor> wide;
    for (const Tensor& grad : grads)
      wide.push_back(torch::stable::to(grad, accumulator(grads[0].scalar_type(), *out_dtype)));
    return torch::stable::to(corr_pyramid_backward(wide, std::nullopt), *out_dtype);
  }
  PyramidArgs args = args_of(grads[0], grads.size());
  for (size_t level = 0; level < grads.size(); ++level) {
    const Tensor& grad = grads[level];
    STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == args.batch && grad.size(1) == args.channels &&
                        grad.size(2) == shifted(args.height, level) && grad.size(3) == shifted(args.width, level) &&
                        grad.scalar_type() == grads[0].scalar_type(),
                    "corr_pyramid_backward: grads[", level, "] is ", spell(grad), " beside grads[0] ", spell(grads[0]),
                    "; expected each level half the size of the one before, in one dtype");
    if (static_cast<int>(level) < args.num_levels) args.levels[level] = level_of(grad, grad.data_ptr());
  }
  const Tensor grad_fmap2 = empty_channels_last(grads[0], args.batch, args.channels, args.height, args.width);
  args.source = level_of(grad_fmap2, grad_fmap2.data_ptr());
  run(DAFLOW_SELECT_ISA(corr_pyramid_backward), args);
  return grad_fmap2;
}

}  // namespace
}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CPU, m) {
  m.impl("corr_pyramid", TORCH_BOX(&daflow::corr_pyramid));
  m.impl("corr_pyramid_backward", TORCH_BOX(&daflow::corr_pyramid_backward));
}
