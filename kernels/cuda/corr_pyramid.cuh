// corr_pyramid on CUDA: launchers. Semantics are those of daflow_ext.ops.corr_pyramid.
#pragma once

#include "common/params.cuh"

namespace daflow {
namespace cuda {

struct CorrPyramidParams {
  View4 fmap2;               // [B, C, H, W], any strides
  void* levels[kMaxLevels];  // [B, H >> l, W >> l, C]
  DType out_dtype;
  int32_t num_levels;
};

struct CorrPyramidGradParams {
  const void* grads[kMaxLevels];  // [B, C, H >> l, W >> l], any strides
  int64_t strides[kMaxLevels][4];
  int32_t num_levels;
  int64_t batch;
  int32_t channels, height, width;
  DType dtype;
  void* out;  // [B, H, W, C]
  DType out_dtype;
};

}  // namespace cuda
}  // namespace daflow

extern "C" {
cudaError_t daflow_cuda_corr_pyramid(const daflow::cuda::CorrPyramidParams* params, cudaStream_t stream);
cudaError_t daflow_cuda_corr_pyramid_backward(const daflow::cuda::CorrPyramidGradParams* params, cudaStream_t stream);
}
