// volume_lookup: the windows of common/window.cuh with taps read from a stored volume.
//
// Backward needs no atomics: every element of the volume belongs to one query, so its gradient is gathered from the
// samples that touched it, in one pass that also writes the zeros.
#include "volume_lookup.cuh"

#include "common/window.cuh"

namespace daflow {
namespace cuda {
namespace {

constexpr int64_t kMaxGatherBlocks = 1 << 20;

// Fills taps[query * stride + tap] for the tile of the block; neighbouring threads read neighbouring columns.
template <class T>
__device__ __forceinline__ void load_taps(const WindowParams& p, const Tile& tile, int64_t b, const Chunk& chunk,
                                          const Centre* centres, const VolumeView& level, float* taps, int stride) {
  const T* image = static_cast<const T*>(level.data) + b * level.stride_b;
  const int columns = chunk.columns(), count = chunk.taps();
  const SmallDivisor by_columns(columns);
  for (int i = 0; i < kWarpQueries; ++i) {
    const int query = warp_index() * kWarpQueries + i;
    if (!tile.holds(p, query)) continue;
    const T* slice = image + tile.y(query) * level.stride_y + tile.x(query) * level.stride_x;
    for (int tap = lane_index(); tap < count; tap += kWarpSize) {
      const int row = by_columns.quotient(tap), column = tap - row * columns;
      const int u = centres[query].first_x + chunk.first_x + column;
      const int v = centres[query].first_y + chunk.first_y + row;
      const bool use = inside(u, level.width) && inside(v, level.height);
      taps[query * stride + tap] = use ? load_float(slice + v * level.stride_v + u * level.stride_u) : 0.0f;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kWindowThreads, 4)
    volume_lookup_kernel(const __grid_constant__ VolumeLookupParams p) {
  DAFLOW_SHARED(Centre, centres, kTileQueries);
  float* taps = reinterpret_cast<float*>(dynamic_shared());
  const int stride = tap_stride(p.window);
  const int level = static_cast<int>(blockIdx.y);
  const Tile tile = tile_of_block(p.window);
  const int64_t b = tile.image / p.window.centres, n = tile.image % p.window.centres;
  const VolumeView& volume = p.levels[level];
  locate(p.window, tile, b, n, level, volume.height, volume.width, centres);
  for_each_chunk(p.window, [&](const Chunk& chunk) {
    load_taps<T>(p.window, tile, b, chunk, centres, volume, taps, stride);
    sync_block();
    write_chunk<kTileQueries, kWindowWarps>(p.window, tile, chunk, taps, stride, centres, level, 1.0f, p.out);
  });
}

template <class T>
__global__ void __launch_bounds__(kWindowThreads, 4)
    grad_coords_kernel(const __grid_constant__ VolumeLookupGradParams p) {
  DAFLOW_SHARED(Centre, centres, kTileQueries);
  DAFLOW_SHARED(float, slots, 2 * kWindowThreads);
  float* taps = reinterpret_cast<float*>(dynamic_shared());
  const WindowParams& window = p.window;
  const int stride = tap_stride(window);
  const Tile tile = tile_of_block(window);
  const int64_t b = tile.image / window.centres, n = tile.image % window.centres;
  const CoordsGradient sums = {slots};
  sums.clear();
  for (int level = 0; level < window.num_levels; ++level) {
    const VolumeView& volume = p.levels[level];
    locate(window, tile, b, n, level, volume.height, volume.width, centres);
    const float factor = 1.0f / static_cast<float>(1 << level);
    for_each_chunk(window, [&](const Chunk& chunk) {
      load_taps<T>(window, tile, b, chunk, centres, volume, taps, stride);
      sync_block();
      const OutputIndex index(window, tile, tile.image, level);
      blend_slope(
          chunk, taps, stride, centres, tile.holds(window, lane_index()),
          [&](int x, int y) { return load_float(p.grad, index(x, y), p.grad_dtype); }, factor, sums);
    });
  }
  write_coords_gradient(window, tile, sums, p.grad_coords);
}

struct GatherParams {
  VolumeLookupGradParams all;
  int32_t level;
};

// The gradient of one element (v, u) of the slice of query (b, y, x).
__device__ __forceinline__ float gather_element(const VolumeLookupGradParams& p, int level, int64_t b, int y, int x,
                                                int v, int u) {
  const WindowParams& window = p.window;
  const int64_t plane = static_cast<int64_t>(window.height) * window.width;
  const int samples_x = 2 * window.radius_x + 1, samples_y = 2 * window.radius_y + 1;
  const float shrink = 1.0f / static_cast<float>(1 << level);
  float sum = 0.0f;
  for (int64_t n = 0; n < window.centres; ++n) {
    const float* at = window.coords + b * window.coords_stride_b + n * window.coords_stride_n +
                      y * window.coords_stride_y + x * window.coords_stride_x;
    const Split<float> sx = split(load(at) * shrink, p.levels[level].width, window.radius_x);
    const Split<float> sy = split(load(at + window.coords_stride_c) * shrink, p.levels[level].height, window.radius_y);
    if (!sx.live || !sy.live) continue;
    const int64_t first = ((b * window.centres + n) * window.num_levels + level) * samples_x * samples_y;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int i = u - (sx.first - window.radius_x) - corner % 2, j = v - (sy.first - window.radius_y) - corner / 2;
      if (!inside(i, samples_x) || !inside(j, samples_y)) continue;
      const float weight =
          (corner % 2 != 0 ? sx.fraction : 1.0f - sx.fraction) * (corner / 2 != 0 ? sy.fraction : 1.0f - sy.fraction);
      const int64_t sample =
          window.x_major ? static_cast<int64_t>(i) * samples_y + j : static_cast<int64_t>(j) * samples_x + i;
      const int64_t index = (first + sample) * plane + static_cast<int64_t>(y) * window.width + x;
      sum = fused_multiply_add(weight, load_float(p.grad, index, p.grad_dtype), sum);
    }
  }
  return sum;
}

// A warp takes a row (b, y, x, v) of the volume, its lanes the columns.
__global__ void __launch_bounds__(kWindowThreads, 4) grad_volume_kernel(const __grid_constant__ GatherParams p) {
  const WindowParams& window = p.all.window;
  const int width = p.all.levels[p.level].width, height = p.all.levels[p.level].height;
  const int64_t rows = window.batch * window.height * window.width * height;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWindowWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWindowWarps + warp_index(); row < rows; row += step) {
    const int64_t query = row / height;
    const int64_t line = query / window.width;
    const int v = static_cast<int>(row % height), x = static_cast<int>(query % window.width);
    const int y = static_cast<int>(line % window.height);
    for (int u = lane_index(); u < width; u += kWarpSize) {
      const float value = gather_element(p.all, p.level, line / window.height, y, x, v, u);
      store_float(p.all.grad_levels[p.level], row * width + u, p.all.dtype, value);
    }
  }
}

}  // namespace
}  // namespace cuda
}  // namespace daflow

using namespace daflow::cuda;

extern "C" cudaError_t daflow_cuda_volume_lookup(const VolumeLookupParams* params, cudaStream_t stream) {
  const WindowParams& window = params->window;
  const int64_t blocks = window.batch * window.centres * tiles_per_image(window);
  return dispatch(params->dtype, [&](auto type) {
    return launch_blocks(volume_lookup_kernel<decltype(type)>, blocks, window.num_levels, kWindowThreads,
                         tap_bytes(window), stream, *params);
  });
}

extern "C" cudaError_t daflow_cuda_volume_lookup_grad_coords(const VolumeLookupGradParams* params,
                                                             cudaStream_t stream) {
  const WindowParams& window = params->window;
  const int64_t blocks = window.batch * window.centres * tiles_per_image(window);
  return dispatch(params->dtype, [&](auto type) {
    return launch_blocks(grad_coords_kernel<decltype(type)>, blocks, 1, kWindowThreads, tap_bytes(window), stream,
                         *params);
  });
}

extern "C" cudaError_t daflow_cuda_volume_lookup_grad_volume(const VolumeLookupGradParams* params,
                                                             cudaStream_t stream) {
  const WindowParams& window = params->window;
  for (int level = 0; level < window.num_levels; ++level) {
    const VolumeView& volume = params->levels[level];
    if (volume.width == 0) continue;
    const int64_t rows = window.batch * window.height * window.width * volume.height;
    const int64_t blocks = ceil_div(rows, kWindowWarps);
    const cudaError_t error = launch_blocks(grad_volume_kernel, blocks < kMaxGatherBlocks ? blocks : kMaxGatherBlocks,
                                            1, kWindowThreads, 0, stream, GatherParams{*params, level});
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
