// Before and after a scatter: the bound on its terms, and the conversion of its sums. See common/sums.cuh.
#include "exact_sum.cuh"

#include "common/dtype.cuh"
#include "common/sums.cuh"

namespace daflow {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;  // each thread then takes several elements

__global__ void __launch_bounds__(kThreads) largest_kernel(const __grid_constant__ BoundParams p) {
  const View4& v = p.view;
  const int64_t count = v.size[0] * v.size[1] * v.size[2] * v.size[3];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t largest = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    int64_t rest = i, offset = 0;
#pragma unroll
    for (int dim = 3; dim >= 0; --dim) {
      offset += rest % v.size[dim] * v.stride[dim];
      rest /= v.size[dim];
    }
    const uint32_t bits = float_bits(load_float(v.data, offset, v.dtype)) & 0x7fffffffu;
    if (bits > largest) largest = bits;  // ordered as the values are, with NaN on top
  }
  for (int step_lanes = kWarpSize / 2; step_lanes > 0; step_lanes /= 2) {
    const uint32_t other = float_bits(shuffle_xor(bits_float(largest), step_lanes));
    if (other > largest) largest = other;
  }
  if (lane_index() == 0) atomic_max(p.bound, largest);
}

template <class Sum>
__global__ void __launch_bounds__(kThreads) finish_sum_kernel(const __grid_constant__ FinishSumParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const Sum sum(p.bounds, p.factor, p.terms, p.bound_count);
  const auto* sums = static_cast<const typename Sum::type*>(p.sums);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count; i += step)
    store_float(p.out, i, p.dtype, sum.total(sums[i]));
}

int64_t blocks_for(int64_t count) {
  const int64_t blocks = ceil_div(count, kThreads);
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

}  // namespace
}  // namespace cuda
}  // namespace daflow

using namespace daflow::cuda;

extern "C" cudaError_t daflow_cuda_largest(const BoundParams* params, cudaStream_t stream) {
  const int64_t* size = params->view.size;
  return launch_blocks(largest_kernel, blocks_for(size[0] * size[1] * size[2] * size[3]), 1, kThreads, 0, stream,
                       *params);
}

extern "C" cudaError_t daflow_cuda_finish_sum(const FinishSumParams* params, cudaStream_t stream) {
  const auto kernel = params->bounds != nullptr ? finish_sum_kernel<ExactSum> : finish_sum_kernel<FloatSum>;
  return launch_blocks(kernel, blocks_for(params->count), 1, kThreads, 0, stream, *params);
}
