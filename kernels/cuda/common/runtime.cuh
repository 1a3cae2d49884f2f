// What host code needs to launch a kernel: streams, errors, launch(). Free of torch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace daflow {
namespace cuda {

// A block has 48 KB of shared memory, static arrays included, unless more dynamic memory is asked for; this is when
// launch() asks. The rest is for the arrays.
constexpr size_t kPlainSharedBytes = 32 * 1024;
constexpr size_t kStaticSharedBytes = 4 * 1024;  // what kernels with much dynamic memory have beside it, at most

}  // namespace cuda
}  // namespace daflow

#ifdef DAFLOW_CUDA_HOST
#include "cuda_host.h"  // the same on the CPU, for tests
#else
#include <cuda_runtime_api.h>

namespace daflow {
namespace cuda {

// Dynamic shared memory that a block of the current device can ask for.
inline size_t most_dynamic_bytes() {
  int device = 0, bytes = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
  return known ? static_cast<size_t>(bytes) - kStaticSharedBytes : kPlainSharedBytes;
}

// Every kernel takes one parameter struct by value. A function, not <<<>>>, so that any C++ compiler can read it.
template <class Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   const Params& params) {
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kPlainSharedBytes) {
    // all there is, whatever this launch needs: another thread may be about to launch the kernel with more
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(most_dynamic_bytes()));
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  if (error == cudaSuccess) error = cudaLaunchKernel(function, grid, block, arguments, shared_bytes, stream);
  if (error != cudaSuccess) cudaGetLastError();  // it is reported here; the next caller must not find it again
  return error;
}

}  // namespace cuda
}  // namespace daflow
#endif

namespace daflow {
namespace cuda {

constexpr int64_t kMaxGridX = 2147483647;
constexpr int64_t kMaxGridY = 65535;

constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// One block per item; more than a grid holds (2^31 - 1) would need terabytes of memory, so it is an error.
template <class Params>
cudaError_t launch_blocks(void (*kernel)(Params), int64_t blocks_x, int64_t blocks_y, int threads, size_t shared_bytes,
                          cudaStream_t stream, const Params& params) {
  if (blocks_x == 0 || blocks_y == 0) return cudaSuccess;
  if (blocks_x > kMaxGridX || blocks_y > kMaxGridY) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
  return launch(kernel, grid, dim3(static_cast<unsigned>(threads)), shared_bytes, stream, params);
}

}  // namespace cuda
}  // namespace daflow
