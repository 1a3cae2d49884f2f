// corr_pyramid: one block makes a tile of the first four levels from one read of fmap2, through shared memory, which
// also turns NCHW into channels-last; the levels may have another dtype. Deeper levels are means over blocks of fmap2,
// one launch each.
#include "corr_pyramid.cuh"

#include "common/dtype.cuh"

namespace daflow {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kFusedLevels = 4;
constexpr int kTileX = 32, kTileY = 1 << (kFusedLevels - 1), kTileC = kWarpSize;
constexpr int kPitch = kTileC + 1;  // odd, so that lanes along x and lanes along c both meet every bank once
constexpr int64_t kMaxBlocks = 1 << 20;

struct PyramidTile {
  int64_t b;
  int c, y, x;  // the first of the tile
};

__device__ __forceinline__ PyramidTile pyramid_tile(const View4& fmap2) {
  const int64_t across = ceil_div(fmap2.size[3], kTileX), down = ceil_div(fmap2.size[2], kTileY);
  const int64_t deep = ceil_div(fmap2.size[1], kTileC);
  int64_t rest = blockIdx.x;
  PyramidTile tile;
  tile.c = static_cast<int>(rest % deep) * kTileC;
  rest /= deep;
  tile.x = static_cast<int>(rest % across) * kTileX;
  rest /= across;
  tile.y = static_cast<int>(rest % down) * kTileY;
  tile.b = rest / down;
  return tile;
}

// Reads the tile with the lanes along x (NCHW) or c (channels-last), whichever is denser in memory.
template <class T>
__device__ __forceinline__ void read_tile(const View4& fmap2, const PyramidTile& tile, float* values) {
  const T* data = static_cast<const T*>(fmap2.data) + tile.b * fmap2.stride[0];
  const bool lanes_along_x = fmap2.stride[3] < fmap2.stride[1];
  for (int i = warp_index(); i < kTileY * kTileX; i += kWarps) {
    const int y = i / kTileX, other = i % kTileX;
    const int x = lanes_along_x ? lane_index() : other, c = lanes_along_x ? other : lane_index();
    if (tile.x + x >= fmap2.size[3] || tile.y + y >= fmap2.size[2] || tile.c + c >= fmap2.size[1]) continue;
    values[(y * kTileX + x) * kPitch + c] = load_float(data + (tile.c + c) * fmap2.stride[1] +
                                                       (tile.y + y) * fmap2.stride[2] + (tile.x + x) * fmap2.stride[3]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) corr_pyramid_kernel(const __grid_constant__ CorrPyramidParams p) {
  static_assert(kTileX == kTileC, "read_tile walks either");
  DAFLOW_SHARED(float, storage, kTileY * kTileX * kPitch);
  float* values = storage;
  const PyramidTile tile = pyramid_tile(p.fmap2);
  read_tile<T>(p.fmap2, tile, values);
  const int channels = static_cast<int>(p.fmap2.size[1]), c = lane_index();
  for (int level = 0; level < p.num_levels && level < kFusedLevels; ++level) {
    sync_block();
    // Pixel (y, x) of a level lives where its first pixel of level 0 lives: nobody else reads or writes there.
    const int64_t height = p.fmap2.size[2] >> level, width = p.fmap2.size[3] >> level;
    const int tile_width = kTileX >> level;
    const int half = (1 << level) / 2 * kPitch;  // to the right neighbour on the level before
    for (int i = warp_index(); i < tile_width * (kTileY >> level); i += kWarps) {
      const int y = i / tile_width, x = i % tile_width;
      const int64_t row = (tile.y >> level) + y, column = (tile.x >> level) + x;
      if (row >= height || column >= width || tile.c + c >= channels) continue;
      float* at = values + ((y << level) * kTileX + (x << level)) * kPitch + c;
      if (level > 0) *at = 0.25f * ((at[0] + at[half]) + (at[half * kTileX] + at[half * kTileX + half]));
      const int64_t pixel = (tile.b * height + row) * width + column;
      store_float(p.levels[level], pixel * channels + tile.c + c, p.out_dtype, *at);
    }
  }
}

struct DeepLevelParams {
  View4 fmap2;
  void* out;
  DType out_dtype;
  int32_t level;
};

// A level beyond the fused ones: a thread per element, the mean of its 2^level x 2^level pixels.
template <class T>
__global__ void __launch_bounds__(kThreads) deep_level_kernel(const __grid_constant__ DeepLevelParams p) {
  const int64_t channels = p.fmap2.size[1], height = p.fmap2.size[2] >> p.level, width = p.fmap2.size[3] >> p.level;
  const int64_t count = p.fmap2.size[0] * height * width * channels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int side = 1 << p.level;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t pixel = i / channels, line = pixel / width;
    const T* corner = static_cast<const T*>(p.fmap2.data) + line / height * p.fmap2.stride[0] +
                      i % channels * p.fmap2.stride[1] + line % height * side * p.fmap2.stride[2] +
                      pixel % width * side * p.fmap2.stride[3];
    float sum = 0.0f;
    for (int y = 0; y < side; ++y) {
      float row = 0.0f;
      for (int x = 0; x < side; ++x) row += load_float(corner + y * p.fmap2.stride[2] + x * p.fmap2.stride[3]);
      sum += row;
    }
    const float share = 1.0f / static_cast<float>(side);
    store_float(p.out, i, p.out_dtype, sum * share * share);
  }
}

// A warp per pixel of level 0, lanes along the channels: every level gives 4^-l of its gradient to the pixels below.
template <class T>
__global__ void __launch_bounds__(kThreads) grad_kernel(const __grid_constant__ CorrPyramidGradParams p) {
  const int64_t pixels = p.batch * p.height * p.width;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t pixel = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index(); pixel < pixels; pixel += step) {
    const int64_t line = pixel / p.width;
    const int x = static_cast<int>(pixel % p.width), y = static_cast<int>(line % p.height);
    for (int c = lane_index(); c < p.channels; c += kWarpSize) {
      float sum = 0.0f, share = 1.0f;
      for (int level = 0; level < p.num_levels; ++level, share *= 0.25f) {
        if (x >> level >= p.width >> level || y >> level >= p.height >> level) break;  // in a row that was dropped
        const int64_t* stride = p.strides[level];
        const int64_t at =
            line / p.height * stride[0] + c * stride[1] + (y >> level) * stride[2] + (x >> level) * stride[3];
        sum = fused_multiply_add(load_float(static_cast<const T*>(p.grads[level]) + at), share, sum);
      }
      store_float(p.out, pixel * p.channels + c, p.out_dtype, sum);
    }
  }
}

int64_t capped(int64_t blocks) { return blocks < kMaxBlocks ? blocks : kMaxBlocks; }

}  // namespace
}  // namespace cuda
}  // namespace daflow

using namespace daflow::cuda;

extern "C" cudaError_t daflow_cuda_corr_pyramid(const CorrPyramidParams* params, cudaStream_t stream) {
  const View4& fmap2 = params->fmap2;
  const int64_t blocks = fmap2.size[0] * ceil_div(fmap2.size[1], kTileC) * ceil_div(fmap2.size[2], kTileY) *
                         ceil_div(fmap2.size[3], kTileX);
  return dispatch(fmap2.dtype, [&](auto type) {
    using T = decltype(type);
    cudaError_t error = launch_blocks(corr_pyramid_kernel<T>, blocks, 1, kThreads, 0, stream, *params);
    for (int level = kFusedLevels; level < params->num_levels && error == cudaSuccess; ++level) {
      const int64_t count = fmap2.size[0] * fmap2.size[1] * (fmap2.size[2] >> level) * (fmap2.size[3] >> level);
      error = launch_blocks(deep_level_kernel<T>, capped(ceil_div(count, kThreads)), 1, kThreads, 0, stream,
                            DeepLevelParams{fmap2, params->levels[level], params->out_dtype, level});
    }
    return error;
  });
}

extern "C" cudaError_t daflow_cuda_corr_pyramid_backward(const CorrPyramidGradParams* params, cudaStream_t stream) {
  const int64_t pixels = params->batch * params->height * params->width;
  return dispatch(params->dtype, [&](auto type) {
    return launch_blocks(grad_kernel<decltype(type)>, capped(ceil_div(pixels, kWarps)), 1, kThreads, 0, stream,
                         *params);
  });
}
