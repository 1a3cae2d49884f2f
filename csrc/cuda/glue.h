// Helpers of the launch glue: checks, and tensors as the kernels' views. No function here waits for the GPU.
#pragma once

#include "common/check.h"
#include "cuda/device_scope.h"
#include "exact_sum.cuh"

namespace daflow {

inline cuda::DType kernel_dtype(const char* op, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return cuda::DType::kFloat32;
    case ScalarType::Half: return cuda::DType::kFloat16;
    case ScalarType::BFloat16: return cuda::DType::kBFloat16;
    default: STD_TORCH_CHECK(false, op, ": CUDA kernels take float32, float16 and bfloat16 only");
  }
}

// `tensor` on the device, and of the dtype where one is given, of `like`.
inline void check_same(const char* op, const char* name, const Tensor& tensor, const Tensor& like, bool dtype) {
  STD_TORCH_CHECK(DeviceScope::owns(tensor) && tensor.get_device_index() == like.get_device_index(), op, ": ", name,
                  " ", spell(tensor), " must be on the same CUDA device as the other tensors");
  STD_TORCH_CHECK(!dtype || tensor.scalar_type() == like.scalar_type(), op, ": ", name, " ", spell(tensor),
                  " must have the dtype of the other features");
}

// Coordinates on CUDA: float32, on the device of `like`.
inline int64_t check_cuda_coords(const char* op, const Tensor& coords, const Tensor& like, int64_t b, int64_t h,
                                 int64_t w) {
  const int64_t centres = check_coords(op, coords, b, h, w);
  STD_TORCH_CHECK(coords.scalar_type() == ScalarType::Float, op, ": coords must be float32 on CUDA");
  check_same(op, "coords", coords, like, false);
  return centres;
}

inline int32_t as_int32(const char* op, int64_t value) {
  STD_TORCH_CHECK(value <= 2147483647 - 65536, op, ": a side of ", value, " is too long");
  return static_cast<int32_t>(value);
}

inline void check_launch(const char* op, cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, op, ": kernel launch failed: ", cudaGetErrorString(error));
}

// A four-dimensional tensor as the kernels see it.
inline cuda::View4 view4(const char* op, const Tensor& tensor) {
  cuda::View4 view;
  view.data = tensor.const_data_ptr();
  for (int64_t dim = 0; dim < 4; ++dim) {
    view.size[dim] = tensor.size(dim);
    view.stride[dim] = tensor.stride(dim);
  }
  view.dtype = kernel_dtype(op, tensor.scalar_type());
  return view;
}

// A feature map [B, C, H, W] whose channel stride is 1 (or that has one channel).
inline cuda::MapView map_view(const char* op, const Tensor& map) {
  return {map.const_data_ptr(),     map.stride(0), map.stride(2), map.stride(3), as_int32(op, map.size(2)),
          as_int32(op, map.size(3))};
}

// The bounds that exact sums need (kernels/cuda/common/sums.cuh): the largest absolute value of every factor of the
// terms, found on the device. Without `deterministic` there are none, and sums are plain float32.
class TermBounds {
 public:
  TermBounds(const char* op, const Tensor& like, bool deterministic, cudaStream_t stream) : op_(op), stream_(stream) {
    if (deterministic) bounds_ = torch::stable::new_zeros(like, {kMaxCount}, ScalarType::Int);
  }
  void add(const cuda::View4& factor) {
    if (!exact()) return;
    STD_TORCH_CHECK(count_ < kMaxCount, op_, ": too many factors");
    const cuda::BoundParams params = {factor, static_cast<uint32_t*>(bounds_->mutable_data_ptr()) + count_++};
    check_launch(op_, daflow_cuda_largest(&params, stream_));
  }
  bool exact() const { return bounds_.has_value(); }
  const uint32_t* data() const { return exact() ? static_cast<const uint32_t*>(bounds_->const_data_ptr()) : nullptr; }
  int32_t count() const { return count_; }

 private:
  static constexpr int32_t kMaxCount = 2;
  const char* op_;
  cudaStream_t stream_;
  std::optional<Tensor> bounds_;
  int32_t count_ = 0;
};

// Where a scatter adds up: zeros, in the gradient itself where that is possible (float32 sums of a float32 gradient).
class SumBuffer {
 public:
  SumBuffer(const char* op, Tensor& gradient, const TermBounds& bounds, cudaStream_t stream)
      : op_(op), gradient_(gradient), bounds_(bounds), stream_(stream) {
    if (!bounds.exact() && gradient.scalar_type() == ScalarType::Float) {
      torch::stable::zero_(gradient_);
    } else {
      sums_ =
          torch::stable::new_zeros(gradient, {gradient.numel()}, bounds.exact() ? ScalarType::Long : ScalarType::Float);
    }
  }
  void* data() { return sums_ ? sums_->mutable_data_ptr() : gradient_.mutable_data_ptr(); }

  // Writes the gradient: terms are |factor| times the bounds at most, `terms` of them per element.
  void finish(float factor, int64_t terms) {
    if (!sums_) return;
    const cuda::FinishSumParams params = {data(),
                                          gradient_.mutable_data_ptr(),
                                          gradient_.numel(),
                                          kernel_dtype(op_, gradient_.scalar_type()),
                                          bounds_.data(),
                                          bounds_.count(),
                                          factor,
                                          terms};
    check_launch(op_, daflow_cuda_finish_sum(&params, stream_));
  }

 private:
  const char* op_;
  Tensor& gradient_;
  const TermBounds& bounds_;
  cudaStream_t stream_;
  std::optional<Tensor> sums_;
};

}  // namespace daflow
