// From torch tensors to what the torch-free per-ISA kernels take.
#pragma once

#include "common/check.h"
#include "cpu/isa_dispatch.h"

namespace daflow {

inline Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return Element::f32;
    case ScalarType::Half: return Element::f16;
    case ScalarType::BFloat16: return Element::bf16;
    case ScalarType::Double: return Element::f64;
    default: STD_TORCH_CHECK(false, "expected a tensor of float32, float16, bfloat16 or float64");
  }
}

// The type sums of a dtype are kept in.
inline ScalarType accumulate_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensor itself where it is contiguous and of that dtype, else one copy.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType dtype) {
  const Tensor cast = tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
  return torch::stable::contiguous(cast);
}

}  // namespace daflow
