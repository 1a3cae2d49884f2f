// volume_lookup on CUDA: launchers. Semantics are those of daflow_ext.ops.volume_lookup.
#pragma once

#include "common/params.cuh"

namespace daflow {
namespace cuda {

// One level of the correlation volume, [B, H, W, H_l, W_l], any strides.
struct VolumeView {
  const void* data;
  int64_t stride_b, stride_y, stride_x, stride_v, stride_u;
  int32_t height, width;
};

struct VolumeLookupParams {
  WindowParams window;
  VolumeView levels[kMaxLevels];
  DType dtype;
  WindowOutput out;
};

struct VolumeLookupGradParams {
  WindowParams window;
  VolumeView levels[kMaxLevels];
  DType dtype;
  const void* grad;  // [B, N, L*nx*ny, H, W], contiguous
  DType grad_dtype;
  float* grad_coords;             // [B, N, 2, H, W]
  void* grad_levels[kMaxLevels];  // [B, H, W, H_l, W_l], contiguous, dtype
};

}  // namespace cuda
}  // namespace daflow

extern "C" {
cudaError_t daflow_cuda_volume_lookup(const daflow::cuda::VolumeLookupParams* params, cudaStream_t stream);
cudaError_t daflow_cuda_volume_lookup_grad_coords(const daflow::cuda::VolumeLookupGradParams* params,
                                                  cudaStream_t stream);
cudaError_t daflow_cuda_volume_lookup_grad_volume(const daflow::cuda::VolumeLookupGradParams* params,
                                                  cudaStream_t stream);
}
