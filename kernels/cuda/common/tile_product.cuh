// All products of 64 feature vectors with 64 others on tensor cores, by four consecutive warps of a block.
//
// Channels pass through shared memory in slices of 128 bytes per vector: 64 rows of eight 16-byte pieces, of which row
// r keeps piece i at i ^ (r % 8), so that neither copies nor matrix loads meet a bank conflict. A warp makes a quarter,
// 32 x 32 products.
#pragma once

#include "common/mma.cuh"

namespace daflow {
namespace cuda {

constexpr int kProductRows = 64;
constexpr int kProductThreads = 128;
constexpr int kWarpRows = 32;  // of the result, and columns
constexpr int kSliceBytes = 128, kPieceBytes = 16;
constexpr int kSlicePieces = kSliceBytes / kPieceBytes;
constexpr int kSliceSize = kProductRows * kSliceBytes;
constexpr int kSliceSteps = kSliceBytes / kMmaBytes;

template <class T>
constexpr int kSliceChannels = kSliceBytes / static_cast<int>(sizeof(T));

__device__ __forceinline__ unsigned char* piece_of(unsigned char* slice, int row, int piece) {
  return slice + row * kSliceBytes + (piece ^ row % kSlicePieces) * kPieceBytes;
}

// The vectors of which this thread copies pieces, as one of kCopiers consecutive threads that share a slice; null where
// there is none, which counts as zeros.
template <class T, int kCopiers>
struct CopiedRows {
  static constexpr int kCount = kProductRows * kSlicePieces / kCopiers;
  const T* vector[kCount];
  static __device__ __forceinline__ int row(int i) {
    return static_cast<int>(threadIdx.x) % kCopiers / kSlicePieces + i * (kCopiers / kSlicePieces);
  }
};

// Up to 16 bytes of elements that are not aligned; the rest is zero.
template <class T>
__device__ __forceinline__ uint4 gather_piece(const T* from, int count) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    if (i >= count) break;
    if constexpr (sizeof(T) == 4) {
      words[i] = float_bits(load(from + i));
    } else {
      words[i / 2] |= static_cast<uint32_t>(load(&from[i].bits)) << i % 2 * 16;
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// Starts copying channels [first, first + kSliceChannels) of all rows; those from `channels` on are zero. `some` is
// any readable address. kAligned: vectors may be read 16 bytes at a time.
template <bool kAligned, class T, int kCopiers>
__device__ __forceinline__ void copy_slice(unsigned char* slice, const CopiedRows<T, kCopiers>& rows, int first,
                                           int channels, const T* some) {
  const int piece = static_cast<int>(threadIdx.x) % kSlicePieces;
  const int channel = first + piece * kVector<T>;
#pragma unroll
  for (int i = 0; i < rows.kCount; ++i) {
    unsigned char* target = piece_of(slice, rows.row(i), piece);
    const T* vector = rows.vector[i];
    if constexpr (kAligned) {
      const bool use = vector != nullptr && channel < channels;
      copy_async(target, use ? vector + channel : some, use);
    } else {
      const bool use = vector != nullptr && channel < channels;
      store_vector(target, gather_piece(use ? vector + channel : some, use ? channels - channel : 0));
    }
  }
}

// A warp's 32 x 32 products: [16 rows][8 columns][as mma.cuh has them].
using WarpProducts = float[kWarpRows / kMmaRowsA][kWarpRows / kMmaRowsB][4];

// The row and the column of the first of them; four warps make 64 x 64.
__device__ __forceinline__ int first_warp_row() { return warp_index() % 4 / 2 * kWarpRows; }
__device__ __forceinline__ int first_warp_column() { return warp_index() % 2 * kWarpRows; }

// Steps of a slice that hold some of `channels`.
template <class T>
__device__ __forceinline__ int step_count(int channels) {
  constexpr int kStepChannels = kSliceChannels<T> / kSliceSteps;
  const int steps = (channels + kStepChannels - 1) / kStepChannels;
  return steps < kSliceSteps ? steps : kSliceSteps;
}

// Adds the products of `steps` * 32 bytes of every row.
template <class T>
__device__ __forceinline__ void multiply_slices(unsigned char* rows, unsigned char* columns, int steps,
                                                WarpProducts& sums) {
  const T* type = nullptr;
  const int lane = lane_index();
#pragma unroll
  for (int step = 0; step < kSliceSteps; ++step) {
    if (step >= steps) break;
    uint32_t a[kWarpRows / kMmaRowsA][4], b[kWarpRows / kMmaRowsB][2];
#pragma unroll
    for (int i = 0; i < kWarpRows / kMmaRowsA; ++i) {
      load_matrices(a[i], piece_of(rows, first_warp_row() + i * kMmaRowsA + lane % 16, step * 2 + lane / 16));
      round_to_mma(type, a[i]);
    }
#pragma unroll
    for (int j = 0; j < kWarpRows / kMmaRowsB; j += 2) {  // two fragments at a time
      uint32_t pair[4];
      load_matrices(pair, piece_of(columns, first_warp_column() + j * kMmaRowsB + lane / 16 * 8 + lane % 8,
                                   step * 2 + lane / 8 % 2));
      round_to_mma(type, pair);
      b[j][0] = pair[0];
      b[j][1] = pair[1];
      b[j + 1][0] = pair[2];
      b[j + 1][1] = pair[3];
    }
#pragma unroll
    for (int i = 0; i < kWarpRows / kMmaRowsA; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpRows / kMmaRowsB; ++j) multiply_add(type, sums[i][j], a[i], b[j]);
    }
  }
}

}  // namespace cuda
}  // namespace daflow
