// corr_lookup on CUDA: launchers. Semantics are those of daflow_ext.ops.corr_lookup. The forward has two: one computes
// in float32 whatever the features are, the other on tensor cores.
#pragma once

#include "common/params.cuh"

namespace daflow {
namespace cuda {

struct CorrLookupParams {
  WindowParams window;
  MapView fmap1, levels[kMaxLevels];  // unit channel stride
  int32_t channels;
  float scale;
  DType dtype;  // of the feature maps
  WindowOutput out;
  // On tensor cores: 8 x 16 queries per block, not 8 x 8, where its shared memory holds them and vectors are aligned.
  bool tall_tiles;
};

struct CorrLookupGradParams {
  WindowParams window;
  MapView fmap1, levels[kMaxLevels];
  int32_t channels;
  float scale;
  DType dtype;
  const void* grad;  // [B, N, L*nx*ny, H, W], contiguous
  DType grad_dtype;
  void* grad_fmap1;    // [B, H, W, C], dtype
  float* grad_coords;  // [B, N, 2, H, W]
};

// One level's share of the gradient of the pyramid: sums of weight * fmap1, scattered.
struct CorrLookupScatterParams {
  WindowParams window;
  MapView fmap1;
  int32_t channels;
  float scale;
  DType dtype;
  const void* grad;
  DType grad_dtype;
  int32_t level, level_height, level_width;
  void* sums;              // [B, H_l, W_l, C], zeros: float, or int64 where `bounds` is given
  const uint32_t* bounds;  // largest |grad| and |fmap1| (common/sums.cuh), or null for plain float sums
};

// The gradients of both feature maps on tensor cores; windows of one chunk of taps (common/window.cuh).
struct CorrLookupProductParams {
  CorrLookupGradParams maps;
  // What the first kernel writes, for every tile of 8 x 8 queries, [B * N, L, tiles, ...]:
  float* tap_gradients;  // [64][rows][columns] of the window
  int32_t* firsts;       // [64][x, y], the window's first tap
  int32_t* boxes;        // [left, top, right, bottom] around all windows
  // Gradients of the levels, [B, H_l, W_l, C]; a level with several splits is left as sums: one for all splits (zeros
  // before), or, if deterministic, one after the other for each.
  void* grad_levels[kMaxLevels];
  float* sums[kMaxLevels];
  int32_t splits[kMaxLevels];
  bool deterministic;
};

// out[i] = sums[0][i] + ... + sums[shares - 1][i]
struct AddSharesParams {
  const float* sums;
  void* out;
  int64_t count;
  int32_t shares;
  DType dtype;
};

}  // namespace cuda
}  // namespace daflow

extern "C" {
cudaError_t daflow_cuda_corr_lookup(const daflow::cuda::CorrLookupParams* params, cudaStream_t stream);
cudaError_t daflow_cuda_corr_lookup_tile(const daflow::cuda::CorrLookupParams* params, cudaStream_t stream);
cudaError_t daflow_cuda_corr_lookup_grad_fmap1(const daflow::cuda::CorrLookupGradParams* params, cudaStream_t stream);
cudaError_t daflow_cuda_corr_lookup_grad_coords(const daflow::cuda::CorrLookupGradParams* params, cudaStream_t stream);
cudaError_t daflow_cuda_corr_lookup_scatter(const daflow::cuda::CorrLookupScatterParams* params, cudaStream_t stream);
// On tensor cores: the first of these, then the others in any order.
cudaError_t daflow_cuda_corr_lookup_tap_gradients(const daflow::cuda::CorrLookupProductParams* params,
                                                  cudaStream_t stream);
cudaError_t daflow_cuda_corr_lookup_grad_fmap1_tile(const daflow::cuda::CorrLookupProductParams* params,
                                                    cudaStream_t stream);
cudaError_t daflow_cuda_corr_lookup_grad_pyramid_tile(const daflow::cuda::CorrLookupProductParams* params,
                                                      cudaStream_t stream);
cudaError_t daflow_cuda_corr_lookup_add_shares(const daflow::cuda::AddSharesParams* params, cudaStream_t stream);
}
