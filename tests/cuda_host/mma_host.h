// The wrappers of kernels/cuda/common/mma.cuh on the CPU: the fragments of a warp are gathered into whole matrices by
// the layout of the PTX manual, multiplied in float64, and spread again. Products are counted, so that a test can see
// that they were used.
//
// Asynchronous copies happen as late as the program allows (when their group is waited for), or, in shuffled order, at
// once for some: both a missing wait and a buffer that is filled too early are seen.
#pragma once

#include "cuda_host.h"

namespace cuda_host {

// What a lane brings to a product.
struct ProductLane {
  float* c;
  const uint32_t *a, *b;
};

// The value of channel k of a step, from the four-byte words of a row.
inline float channel(const daflow::cuda::Half*, const uint32_t* words, int k) {
  return half_to_float(static_cast<uint16_t>(words[k / 2] >> k % 2 * 16));
}
inline float channel(const daflow::cuda::BFloat16*, const uint32_t* words, int k) {
  return daflow::cuda::bits_float(words[k / 2] >> k % 2 * 16 << 16);
}
inline float channel(const float*, const uint32_t* words, int k) {
  return daflow::cuda::bits_float(words[k] & ~0x1fffu);  // tensor cores do not see the other bits
}

template <class T>
void multiply_warp(void* const* lanes) {
  constexpr int kWords = 8, kChannels = 32 / static_cast<int>(sizeof(T));
  uint32_t words_a[16][kWords], words_b[8][kWords];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const ProductLane*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) words_a[g + i % 2 * 8][t + i / 2 * 4] = own.a[i];
    for (int i = 0; i < 2; ++i) words_b[g][t + i * 4] = own.b[i];
  }
  float a[16][kChannels], b[8][kChannels];
  const T* type = nullptr;
  for (int k = 0; k < kChannels; ++k) {
    for (int row = 0; row < 16; ++row) a[row][k] = channel(type, words_a[row], k);
    for (int row = 0; row < 8; ++row) b[row][k] = channel(type, words_b[row], k);
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* c = static_cast<const ProductLane*>(lanes[lane])->c;
    for (int i = 0; i < 4; ++i) {
      const float *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
      double sum = c[i];
      for (int k = 0; k < kChannels; ++k) sum += static_cast<double>(row[k]) * column[k];
      c[i] = static_cast<float>(sum);
    }
  }
  count_product();
}

// What a lane brings to load_matrices.
struct MatrixLane {
  uint32_t* out;
  const void* row;
};

template <bool kTransposed>
void load_matrices_warp(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int row = kTransposed ? 2 * t + i : g, column = kTransposed ? g : 2 * t + i;
        const void* source = static_cast<const MatrixLane*>(lanes[m * 8 + row])->row;
        std::memcpy(&pair[i], static_cast<const uint16_t*>(source) + column, sizeof pair[i]);
      }
      static_cast<const MatrixLane*>(lanes[lane])->out[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  }
}

}  // namespace cuda_host

namespace daflow {
namespace cuda {

template <class T>
void multiply_add(const T*, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDA_HOST_SITE) {
  cuda_host::ProductLane lane = {c, a, b};
  cuda_host::combine(&lane, cuda_host::multiply_warp<T>, {file, line});
}

inline uint32_t float_to_tf32(uint32_t bits) {
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;  // not finite: as it is
}

inline void load_matrices(uint32_t (&out)[4], const void* row, CUDA_HOST_SITE) {
  cuda_host::check_aligned<uint4>(row, {file, line});
  cuda_host::MatrixLane lane = {out, row};
  cuda_host::combine(&lane, cuda_host::load_matrices_warp<false>, {file, line});
}
inline void load_matrices_transposed(uint32_t (&out)[4], const void* row, CUDA_HOST_SITE) {
  cuda_host::check_aligned<uint4>(row, {file, line});
  cuda_host::MatrixLane lane = {out, row};
  cuda_host::combine(&lane, cuda_host::load_matrices_warp<true>, {file, line});
}

inline void copy_async(void* shared, const void* global, bool use, CUDA_HOST_SITE) {
  cuda_host::check_aligned<uint4>(shared, {file, line});
  if (use) cuda_host::check_aligned<uint4>(global, {file, line});
  cuda_host::start_copy(shared, use ? global : nullptr);
}
inline void commit_copies() { cuda_host::commit_copies(); }
template <int kPending>
void wait_for_copies() {
  cuda_host::wait_for_copies(kPending);
}

}  // namespace cuda
}  // namespace daflow
