// Sums of weighted feature vectors on tensor cores: 64 rows x 128 channels by a block of eight warps,
//     result[row][channel] = sum over terms of weight[row][term] feature[term][channel],
// 32 terms at a time through shared memory, as tf32, which holds half precision exactly. The caller puts block barriers
// between filling the factors and multiplying, and before filling them again.
#pragma once

#include "common/tile_product.cuh"

namespace daflow {
namespace cuda {

constexpr int kRows = kProductRows;
constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kTerms = kSliceChannels<float>;       // of a sum, in shared memory at a time
constexpr int kBlockChannels = 128;                 // the rest is for other blocks (blockIdx.y)
constexpr int kFeatureStride = kBlockChannels + 8;  // the fragments of a warp then come from 32 banks
constexpr int kResultStride = kBlockChannels + 4;
constexpr size_t kSharedBytes = sizeof(float) * kRows * kResultStride;
static_assert(kSliceSize + sizeof(float) * kTerms * kFeatureStride <= kSharedBytes, "the result overlays its factors");
static_assert(kWarps * kWarpRows * kWarpRows == kRows * kBlockChannels, "a warp makes 32 x 32 of the result");

// The factors of one step of a product: weights [64 rows][32 terms] as tile_product.cuh has slices, features [32
// terms][128 channels]. The result overlays them at last.
struct Shared {
  unsigned char* weights = dynamic_shared();
  float* features = reinterpret_cast<float*>(dynamic_shared() + kSliceSize);
  float* result = reinterpret_cast<float*>(dynamic_shared());
};

struct Term {
  int x, y;        // of the position, or of the window's first tap
  int64_t weight;  // where the tap gradients of a query start
  int64_t vector;  // of its features; -1 if there is no term
};

// Fills the weights of a step from weight(row, term).
template <class Weight>
__device__ __forceinline__ void fill_weights(unsigned char* weights, Weight&& weight) {
  const int row = warp_index() * 8 + lane_index() / 4;
#pragma unroll
  for (int i = 0; i < kTerms / 4; ++i) {
    auto* piece = reinterpret_cast<uint32_t*>(piece_of(weights, row, i));
    piece[lane_index() % 4] = float_to_tf32(float_bits(weight(row, i * 4 + lane_index() % 4)));
  }
}

// Fills the features of a step; channels beyond the last, and terms that do not exist, are zero.
template <class T, int kCount>
__device__ __forceinline__ void fill_features(float* features, const T* image, const Term* terms, int first_channel,
                                              int channels) {
  constexpr int kVectors = kBlockChannels / kCount;
  const int c = static_cast<int>(threadIdx.x) % kVectors * kCount;
#pragma unroll
  for (int i = 0; i < kTerms * kVectors / kThreads; ++i) {
    const int term = static_cast<int>(threadIdx.x) / kVectors + i * (kThreads / kVectors);
    const int64_t vector = terms[term].vector;
    float values[kCount] = {};
    if (vector >= 0 && first_channel + c < channels) load_floats(image + vector + first_channel + c, values);
    float* out = features + term * kFeatureStride + c;
    if constexpr (kCount == 1) {
      out[0] = bits_float(float_to_tf32(float_bits(values[0])));
    } else {
#pragma unroll
      for (int j = 0; j < kCount; j += 4) {
        store_vector(out + j, {float_to_tf32(float_bits(values[j])), float_to_tf32(float_bits(values[j + 1])),
                               float_to_tf32(float_bits(values[j + 2])), float_to_tf32(float_bits(values[j + 3]))});
      }
    }
  }
}

// Where a warp's part of the result begins: 2 x 4 warps.
__device__ __forceinline__ int warp_row() { return warp_index() / 4 * kWarpRows; }
__device__ __forceinline__ int warp_channel() { return warp_index() % 4 * kWarpRows; }

// sums += weights x features
__device__ __forceinline__ void multiply(const Shared& shared, WarpProducts& sums) {
  const float* type = nullptr;
  const int lane = lane_index();
#pragma unroll
  for (int step = 0; step < kSliceSteps; ++step) {
    uint32_t a[kWarpRows / kMmaRowsA][4], b[kWarpRows / kMmaRowsB][2];
#pragma unroll
    for (int i = 0; i < kWarpRows / kMmaRowsA; ++i)
      load_matrices(a[i], piece_of(shared.weights, warp_row() + i * kMmaRowsA + lane % 16, step * 2 + lane / 16));
    const float* first =
        shared.features + (step * kMmaBytes / 4 + lane % 4) * kFeatureStride + warp_channel() + lane / 4;
#pragma unroll
    for (int j = 0; j < kWarpRows / kMmaRowsB; ++j) {
      b[j][0] = float_bits(first[j * kMmaRowsB]);
      b[j][1] = float_bits(first[j * kMmaRowsB + 4 * kFeatureStride]);
    }
#pragma unroll
    for (int i = 0; i < kWarpRows / kMmaRowsA; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpRows / kMmaRowsB; ++j) multiply_add(type, sums[i][j], a[i], b[j]);
    }
  }
}

// Puts the sums of all warps into shared.result; then all threads may read it.
__device__ __forceinline__ void collect(const WarpProducts& sums, const Shared& shared) {
  sync_block();  // nobody reads the factors any more
#pragma unroll
  for (int i = 0; i < kWarpRows / kMmaRowsA; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpRows / kMmaRowsB; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_row() + i * kMmaRowsA + product_row(e);
        shared.result[row * kResultStride + warp_channel() + j * kMmaRowsB + product_column(e)] = sums[i][j][e];
      }
    }
  }
  sync_block();
}

}  // namespace cuda
}  // namespace daflow
