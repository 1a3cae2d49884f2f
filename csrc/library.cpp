// Every operator of daflow_ext, one schema per line: the index of the package's compiled ops.
// Shapes, units and semantics are in the docstring of the Python function of the same name (daflow_ext/ops/<op>.py).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(daflow_ext, m) {
  // fmap2 [B, C, H, W] -> num_levels x [B, C, H >> l, W >> l], channels-last memory
  m.def("corr_pyramid(Tensor fmap2, int num_levels, *, ScalarType? out_dtype=None) -> Tensor[]");
  // gradients of every level -> [B, C, H, W], channels-last memory
  m.def("corr_pyramid_backward(Tensor[] grads, *, ScalarType? out_dtype=None) -> Tensor");
  // fmap1 [B, C, H, W], L x [B, C, H_l, W_l], coords [B, (N,) 2, H, W], radius (y, x) -> [B, (N,) L * nx * ny, H, W]
  m.def(
      "corr_lookup(Tensor fmap1, Tensor[] fmap2_pyramid, Tensor coords, int[2] radius, *, float? scale=None, str "
      "order=\"xy\", ScalarType? out_dtype=None, bool channels_last=False, bool allow_tf32=False) -> Tensor");
  // -> [grad_fmap1, grad_coords, *grad_pyramid]; an output that is not needed has no elements (the pyramid's: absent)
  m.def(
      "corr_lookup_backward(Tensor grad, Tensor fmap1, Tensor[] fmap2_pyramid, Tensor coords, int[2] radius, *, float? "
      "scale, str order, bool need_fmap1, bool need_pyramid, bool need_coords, bool deterministic, bool "
      "allow_tf32=False) -> Tensor[]");
  // L x [B, H, W, H_l, W_l], coords [B, (N,) 2, H, W], radius (y, x) -> [B, (N,) L * nx * ny, H, W]
  m.def(
      "volume_lookup(Tensor[] volume_pyramid, Tensor coords, int[2] radius, *, str order=\"xy\", ScalarType? "
      "out_dtype=None) -> Tensor");
  // -> [grad_coords, *grad_volume]
  m.def(
      "volume_lookup_backward(Tensor grad, Tensor[] volume_pyramid, Tensor coords, int[2] radius, *, str order, bool "
      "need_volume, bool need_coords) -> Tensor[]");
  // feat [B, C, H, W], coords [B, (G,) 2, Ho, Wo] -> [B, C, Ho, Wo]
  m.def(
      "bilinear_sample(Tensor feat, Tensor coords, *, str padding=\"zeros\", int groups=1, int sharpness=1) -> Tensor");
  // -> [grad_feat, grad_coords]
  m.def(
      "bilinear_sample_backward(Tensor grad, Tensor feat, Tensor coords, *, str padding, int groups, int sharpness, "
      "bool need_feat, bool need_coords, bool deterministic) -> Tensor[]");
  // the instruction set the CPU kernels run on; setting it serves tests and benchmarks
  m.def("cpu_capability() -> str");
  m.def("set_cpu_capability(str name) -> ()");
  // whether lookups on tensor cores take tiles of 8 x 16 queries, not 8 x 8; for tests and benchmarks
  m.def("set_tall_tiles(bool tall) -> ()");
}
