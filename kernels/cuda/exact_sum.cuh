// Launchers around a scatter: the bound on its terms, and the conversion of its sums. See common/sums.cuh.
#pragma once

#include "common/params.cuh"

namespace daflow {
namespace cuda {

struct BoundParams {
  View4 view;
  uint32_t* bound;  // bits of the largest absolute value; zero before. A NaN counts as larger than everything.
};

struct FinishSumParams {
  const void* sums;  // dense; float, or int64 where bounds is given
  void* out;         // the same elements in dtype
  int64_t count;
  DType dtype;
  const uint32_t* bounds;
  int32_t bound_count;
  float factor;
  int64_t terms;
};

}  // namespace cuda
}  // namespace daflow

extern "C" {
// *bound = max(*bound, bits of max |view|)
cudaError_t daflow_cuda_largest(const daflow::cuda::BoundParams* params, cudaStream_t stream);
// out = the sums, rounded to dtype
cudaError_t daflow_cuda_finish_sum(const daflow::cuda::FinishSumParams* params, cudaStream_t stream);
}
