// bilinear_sample on CUDA: launchers. Semantics are those of daflow_ext.ops.bilinear_sample.
#pragma once

#include "common/params.cuh"

namespace daflow {
namespace cuda {

struct BilinearSampleParams {
  View4 feat;           // [B, C, H, W]
  const float* coords;  // [B, G, 2, Ho, Wo], pixels of feat
  int64_t coords_stride_b, coords_stride_g, coords_stride_c, coords_stride_y, coords_stride_x;
  int32_t groups;
  bool border;
  float sharpness;
  View4 out;  // forward: written; backward: the gradient that arrives. [B, C, Ho, Wo], dtype of feat
};

struct BilinearSampleGradParams {
  BilinearSampleParams sample;
  float* grad_coords;  // [B, G, 2, Ho, Wo], contiguous
  void* sums;          // dense, of the size of feat; zeros: float, or int64 where `bounds` is given
  int64_t sums_stride[4];
  const uint32_t* bounds;  // largest |grad| (common/sums.cuh), or null for plain float sums
};

}  // namespace cuda
}  // namespace daflow

extern "C" {
cudaError_t daflow_cuda_bilinear_sample(const daflow::cuda::BilinearSampleParams* params, cudaStream_t stream);
cudaError_t daflow_cuda_bilinear_sample_grad_coords(const daflow::cuda::BilinearSampleGradParams* params,
                                                    cudaStream_t stream);
cudaError_t daflow_cuda_bilinear_sample_scatter(const daflow::cuda::BilinearSampleGradParams* params,
                                                cudaStream_t stream);
}
