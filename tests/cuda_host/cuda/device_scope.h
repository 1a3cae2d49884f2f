// Stands in for csrc/cuda/device_scope.h in tests: the "CUDA device" is the CPU, without streams.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "common/runtime.cuh"

namespace daflow {

class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  static bool owns(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }
};

}  // namespace daflow
