// Element types: storage in float32, float16 or bfloat16, arithmetic always in float32.
#pragma once

#include "common/device.cuh"
#include "common/params.cuh"

namespace daflow {
namespace cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float load_float(const float* address) { return load(address); }
__device__ __forceinline__ float load_float(const Half* address) { return half_to_float(load(&address->bits)); }
__device__ __forceinline__ float load_float(const BFloat16* address) {
  return bits_float(static_cast<uint32_t>(load(&address->bits)) << 16);
}
__device__ __forceinline__ void store_float(float* address, float value) { *address = value; }
__device__ __forceinline__ void store_float(Half* address, float value) { address->bits = float_to_half(value); }
__device__ __forceinline__ void store_float(BFloat16* address, float value) {
  address->bits = float_to_bfloat16(value);
}

// The same with the type known at run time; the branch is uniform and costs nothing beside the access.
__device__ __forceinline__ float load_float(const void* data, int64_t index, DType dtype) {
  if (dtype == DType::kFloat32) return load_float(static_cast<const float*>(data) + index);
  if (dtype == DType::kFloat16) return load_float(static_cast<const Half*>(data) + index);
  return load_float(static_cast<const BFloat16*>(data) + index);
}
__device__ __forceinline__ void store_float(void* data, int64_t index, DType dtype, float value) {
  if (dtype == DType::kFloat32) {
    store_float(static_cast<float*>(data) + index, value);
  } else if (dtype == DType::kFloat16) {
    store_float(static_cast<Half*>(data) + index, value);
  } else {
    store_float(static_cast<BFloat16*>(data) + index, value);
  }
}

__device__ __forceinline__ void unpack(uint4 word, const float*, float (&out)[4]) {
  out[0] = bits_float(word.x);
  out[1] = bits_float(word.y);
  out[2] = bits_float(word.z);
  out[3] = bits_float(word.w);
}
__device__ __forceinline__ void unpack(uint4 word, const Half*, float (&out)[8]) {
  half2_to_float(word.x, &out[0], &out[1]);
  half2_to_float(word.y, &out[2], &out[3]);
  half2_to_float(word.z, &out[4], &out[5]);
  half2_to_float(word.w, &out[6], &out[7]);
}
__device__ __forceinline__ void unpack(uint4 word, const BFloat16*, float (&out)[8]) {
  const uint32_t words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = bits_float(words[i] << 16);
    out[2 * i + 1] = bits_float(words[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ uint4 pack(const float*, const float (&in)[4]) {
  return {float_bits(in[0]), float_bits(in[1]), float_bits(in[2]), float_bits(in[3])};
}
__device__ __forceinline__ uint32_t pack_pair(const Half*, float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}
__device__ __forceinline__ uint32_t pack_pair(const BFloat16*, float low, float high) {
  return float_to_bfloat16(low) | static_cast<uint32_t>(float_to_bfloat16(high)) << 16;
}
template <class T>
__device__ __forceinline__ uint4 pack(const T* type, const float (&in)[8]) {
  return {pack_pair(type, in[0], in[1]), pack_pair(type, in[2], in[3]), pack_pair(type, in[4], in[5]),
          pack_pair(type, in[6], in[7])};
}

// kCount consecutive elements: one, or as many as 16 aligned bytes hold (kVector).
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <class T, int kCount>
__device__ __forceinline__ void load_floats(const T* address, float (&out)[kCount]) {
  static_assert(kCount == 1 || kCount == kVector<T>, "one element or one 16-byte vector");
  if constexpr (kCount == 1) {
    out[0] = load_float(address);
  } else {
    unpack(load_vector(address), address, out);
  }
}
template <class T, int kCount>
__device__ __forceinline__ void store_floats(T* address, const float (&in)[kCount]) {
  static_assert(kCount == 1 || kCount == kVector<T>, "one element or one 16-byte vector");
  if constexpr (kCount == 1) {
    store_float(address, in[0]);
  } else {
    store_vector(address, pack(address, in));
  }
}

// Calls function(T{}) with the storage type of dtype.
template <class Function>
cudaError_t dispatch(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat32: return function(float{});
    case DType::kFloat16: return function(Half{});
    case DType::kBFloat16: return function(BFloat16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace daflow
