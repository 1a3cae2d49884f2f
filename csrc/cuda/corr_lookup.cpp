// Glue of corr_lookup on CUDA: checks, output tensors, launches. The kernels are in kernels/cuda/corr_lookup*.cu.
#include "corr_lookup.cuh"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cuda/window_glue.h"

namespace daflow {
namespace {

constexpr const char* kOp = "corr_lookup";

// Checked inputs, feature maps with unit channel stride.
struct Inputs {
  Tensor fmap1;
  std::vector<Tensor> pyramid;
  cuda::WindowParams window;
  float scale;
};

Inputs check_inputs(const Tensor& fmap1, const std::vector<Tensor>& pyramid, const Tensor& coords,
                    const std::vector<int64_t>& radius, std::optional<double> scale, const std::string& order) {
  STD_TORCH_CHECK(fmap1.dim() == 4, kOp, ": fmap1 must be [B, C, H, W], got ", spell(fmap1));
  check_same(kOp, "fmap1", fmap1, fmap1, true);
  const int64_t batch = fmap1.size(0), channels = fmap1.size(1);
  const int64_t centres = check_cuda_coords(kOp, coords, fmap1, batch, fmap1.size(2), fmap1.size(3));
  Inputs in = {
      channels_last(fmap1),
      {},
      window_params(kOp, coords, centres, pyramid.size(), radius, order),
      static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(channels, 1)))))};
  for (const Tensor& level : pyramid) {
    STD_TORCH_CHECK(level.dim() == 4 && level.size(0) == batch && level.size(1) == channels, kOp,
                    ": every level must be [", batch, ", ", channels, ", H_l, W_l], got ", spell(level));
    check_same(kOp, "a level", level, fmap1, true);
    in.pyramid.push_back(channels_last(level));
  }
  return in;
}

// Fills what the parameter structs of forward and backward have in common.
template <class Params>
void fill_maps(const Inputs& in, Params& p) {
  p.window = in.window;
  p.fmap1 = map_view(kOp, in.fmap1);
  p.channels = as_int32(kOp, in.fmap1.size(1));
  p.scale = in.scale;
  p.dtype = kernel_dtype(kOp, in.fmap1.scalar_type());
}

template <class Params>
Params map_params(const Inputs& in) {
  Params p = {};
  fill_maps(in, p);
  for (size_t level = 0; level < in.pyramid.size(); ++level) p.levels[level] = map_view(kOp, in.pyramid[level]);
  return p;
}

// Which of the two is faster, no measurement says yet: tall tiles read less and keep fewer blocks in flight.
std::atomic<bool> tall_tiles = false;

void set_tall_tiles(bool tall) { tall_tiles = tall; }

Tensor corr_lookup(const Tensor& fmap1, std::vector<Tensor> pyramid, const Tensor& coords, std::vector<int64_t> radius,
                   std::optional<double> scale, std::string order, std::optional<ScalarType> out_dtype,
                   bool channels_last, bool allow_tf32) {
  const Inputs in = check_inputs(fmap1, pyramid, coords, radius, scale, order);
  const DeviceScope scope(fmap1);
  const ScalarType dtype = out_dtype.value_or(ScalarType::Float);
  auto p = map_params<cuda::CorrLookupParams>(in);
  Tensor out = empty_window(fmap1, window_shape(coords, in.window), dtype, channels_last);
  if (out.numel() == 0) return out;
  p.out = window_output(kOp, out);
  p.tall_tiles = tall_tiles;
  const bool tensor_cores = p.dtype != cuda::DType::kFloat32 || allow_tf32;
  check_launch(kOp, (tensor_cores ? daflow_cuda_corr_lookup_tile : daflow_cuda_corr_lookup)(&p, scope.stream()));
  return out;
}

// One level's gradient, [B, C, H_l, W_l] in channels-last memory.
Tensor grad_level(const Inputs& in, const cuda::CorrLookupGradParams& common, const TermBounds& bounds, size_t level,
                  cudaStream_t stream) {
  const Tensor& map = in.pyramid[level];
  Tensor gradient = empty_channels_last(map, map.size(0), map.size(1), map.size(2), map.size(3));
  if (gradient.numel() == 0) return gradient;
  SumBuffer sums(kOp, gradient, bounds, stream);
  cuda::CorrLookupScatterParams p = {};
  fill_maps(in, p);
  p.grad = common.grad;
  p.grad_dtype = common.grad_dtype;
  p.level = static_cast<int32_t>(level);
  p.level_height = common.levels[level].height;
  p.level_width = common.levels[level].width;
  p.sums = sums.data();
  p.bounds = bounds.data();
  check_launch(kOp, daflow_cuda_corr_lookup_scatter(&p, stream));
  sums.finish(in.scale, in.window.centres * in.window.height * in.window.width);
  return gradient;
}

// What the kernels on tensor cores share while they run, and the sums of levels that several blocks add up.
class ProductBuffers {
 public:
  ProductBuffers(const Inputs& in, cuda::CorrLookupProductParams& p, bool deterministic, cudaStream_t stream)
      : in_(in), p_(p), stream_(stream) {
    const cuda::WindowParams& window = in.window;
    const int64_t queries = window.batch * window.centres * window.num_levels * tiles(window) * kTileQueries;
    taps_ = torch::stable::new_empty(in.fmap1, {queries * window_taps(window)}, ScalarType::Float);
    firsts_ = torch::stable::new_empty(in.fmap1, {queries * 2}, ScalarType::Int);
    boxes_ = torch::stable::new_empty(in.fmap1, {queries / kTileQueries * 4}, ScalarType::Int);
    p.tap_gradients = static_cast<float*>(taps_.mutable_data_ptr());
    p.firsts = static_cast<int32_t*>(firsts_.mutable_data_ptr());
    p.boxes = static_cast<int32_t*>(boxes_.mutable_data_ptr());
    p.deterministic = deterministic;
  }

  // Whether the kernels can take this lookup: windows of one chunk of taps, and queries that an int32 numbers.
  static bool fit(const cuda::WindowParams& window) {
    return window_taps(window) <= kMostTaps && window.centres * tiles(window) * kTileQueries < 1LL << 31;
  }

  // The gradients of all levels.
  void run_pyramid(std::vector<Tensor>& grads) {
    std::vector<Tensor> levels;
    bool any = false;
    for (size_t level = 0; level < in_.pyramid.size(); ++level) {
      const Tensor& map = in_.pyramid[level];
      levels.push_back(empty_channels_last(map, map.size(0), map.size(1), map.size(2), map.size(3)));
      any = any || levels.back().numel() != 0;
      p_.splits[level] = 1;
      p_.grad_levels[level] = levels.back().numel() != 0 ? levels.back().mutable_data_ptr() : nullptr;
      if (levels.back().numel() != 0) split(level, levels.back().numel());
    }
    if (any) check_launch(kOp, daflow_cuda_corr_lookup_grad_pyramid_tile(&p_, stream_));
    for (size_t level = 0; level < levels.size(); ++level) {
      if (p_.splits[level] > 1) {
        const cuda::AddSharesParams add = {p_.sums[level], p_.grad_levels[level], levels[level].numel(),
                                           p_.deterministic ? p_.splits[level] : 1, p_.maps.dtype};
        check_launch(kOp, daflow_cuda_corr_lookup_add_shares(&add, stream_));
      }
      grads.push_back(levels[level]);
    }
  }

 private:
  static constexpr int64_t kTileQueries = 64, kMostTaps = 256;
  static constexpr int64_t kMostSplits = 16;

  static int64_t tiles(const cuda::WindowParams& window) {
    return cuda::ceil_div(window.height, 8) * cuda::ceil_div(window.width, 8);
  }
  static int64_t window_taps(const cuda::WindowParams& window) {
    return static_cast<int64_t>(2 * window.radius_x + 2) * (2 * window.radius_y + 2);
  }

  // A position of level l is seen by about 4^l as many queries as one of level 0: so many blocks share the work.
  void split(size_t level, int64_t numel) {
    const int64_t wanted = std::min<int64_t>(level < 3 ? 1LL << 2 * level : kMostSplits, kMostSplits);
    const int64_t splits = std::min(wanted, in_.window.centres * tiles(in_.window));
    if (splits == 1) return;
    p_.splits[level] = static_cast<int32_t>(splits);
    sums_.push_back(p_.deterministic ? torch::stable::new_empty(in_.fmap1, {splits * numel}, ScalarType::Float)
                                     : torch::stable::new_zeros(in_.fmap1, {numel}, ScalarType::Float));
    p_.sums[level] = static_cast<float*>(sums_.back().mutable_data_ptr());
  }

  const Inputs& in_;
  cuda::CorrLookupProductParams& p_;
  cudaStream_t stream_;
  Tensor taps_, firsts_, boxes_;
  std::vector<Tensor> sums_;
};

std::vector<Tensor> corr_lookup_backward(const Tensor& grad, const Tensor& fmap1, std::vector<Tensor> pyramid,
                                         const Tensor& coords, std::vector<int64_t> radius, std::optional<double> scale,
                                         std::string order, bool need_fmap1, bool need_pyramid, bool need_coords,
                                         bool deterministic, bool allow_tf32) {
  const Inputs in = check_inputs(fmap1, pyramid, coords, radius, scale, order);
  const DeviceScope scope(fmap1);
  const Tensor dense_grad = check_window_grad(kOp, grad, coords, fmap1, in.window);
  auto p = map_params<cuda::CorrLookupGradParams>(in);
  p.grad = dense_grad.const_data_ptr();
  p.grad_dtype = kernel_dtype(kOp, grad.scalar_type());

  std::vector<Tensor> grads;
  grads.push_back(need_fmap1 ? empty_channels_last(fmap1, fmap1.size(0), fmap1.size(1), fmap1.size(2), fmap1.size(3))
                             : torch::stable::new_empty(fmap1, {0}));
  grads.push_back(torch::stable::new_empty(coords, need_coords ? coords.sizes().vec() : std::vector<int64_t>{0}));
  if (grads[0].numel() != 0) p.grad_fmap1 = grads[0].mutable_data_ptr();
  if (grads[1].numel() != 0) {
    p.grad_coords = static_cast<float*>(grads[1].mutable_data_ptr());
    check_launch(kOp, daflow_cuda_corr_lookup_grad_coords(&p, scope.stream()));
  }
  const bool tensor_cores = p.dtype != cuda::DType::kFloat32 || allow_tf32;
  if (tensor_cores && fmap1.numel() != 0 && (need_fmap1 || need_pyramid) && ProductBuffers::fit(in.window)) {
    cuda::CorrLookupProductParams products = {};
    products.maps = p;
    ProductBuffers buffers(in, products, deterministic, scope.stream());
    check_launch(kOp, daflow_cuda_corr_lookup_tap_gradients(&products, scope.stream()));
    if (need_fmap1) check_launch(kOp, daflow_cuda_corr_lookup_grad_fmap1_tile(&products, scope.stream()));
    if (need_pyramid) buffers.run_pyramid(grads);
    return grads;
  }
  if (grads[0].numel() != 0) check_launch(kOp, daflow_cuda_corr_lookup_grad_fmap1(&p, scope.stream()));
  if (!need_pyramid) return grads;
  TermBounds bounds(kOp, fmap1, deterministic, scope.stream());
  bounds.add({p.grad, {1, 1, 1, grad.numel()}, {0, 0, 0, 1}, p.grad_dtype});
  bounds.add(view4(kOp, in.fmap1));
  for (size_t level = 0; level < pyramid.size(); ++level)
    grads.push_back(grad_level(in, p, bounds, level, scope.stream()));
  return grads;
}

}  // namespace
}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CUDA, m) {
  m.impl("corr_lookup", TORCH_BOX(&daflow::corr_lookup));
  m.impl("corr_lookup_backward", TORCH_BOX(&daflow::corr_lookup_backward));
}

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CompositeExplicitAutograd, m) {
  m.impl("set_tall_tiles", TORCH_BOX(&daflow::set_tall_tiles));
}
