// corr_lookup backward, one kernel per gradient.
//
// grad_fmap1 and grad_coords belong to the query, so its block alone writes them: deterministic. The gradient of the
// pyramid is a scatter, because windows overlap: float32 atomics by default (fast, rounding depends on the order), or
// exact fixed-point sums where determinism is asked for; common/sums.cuh says why those.
#include "corr_lookup.cuh"

#include "common/dot_taps.cuh"
#include "common/sums.cuh"

namespace daflow {
namespace cuda {
namespace {

constexpr int kLaneChannels = 8;                           // channels a lane holds per query, in registers
constexpr int kBlockChannels = kWarpSize * kLaneChannels;  // the rest is for other blocks (blockIdx.y)

// Reads the gradient of a sample for the query of this lane.
struct SampleGradient {
  const void* grad;
  DType dtype;
  OutputIndex index;
  __device__ __forceinline__ float operator()(int x, int y) const { return load_float(grad, index(x, y), dtype); }
};

// Fills taps with scale * d(loss)/d(tap products) of one chunk; then all threads may read them.
__device__ __forceinline__ void tap_gradients(const WindowParams& p, const Tile& tile, const Chunk& chunk, float* taps,
                                              const Centre* centres, float scale, const SampleGradient& gradient) {
  blend_transposed(chunk, taps, tap_stride(p), centres, tile.holds(p, lane_index()),
                   [&](int x, int y) { return scale * gradient(x, y); });
  sync_block();
}

// Adds one tap's weight * f2 to the sums of this lane's channels.
template <class T, int kCount>
__device__ __forceinline__ void add_weighted(const T* f2, int first_channel, int channels, float weight,
                                             float (&sums)[kLaneChannels]) {
#pragma unroll
  for (int v = 0; v < kLaneChannels / kCount; ++v) {
    const int c = first_channel + v * kWarpSize * kCount;
    if (c >= channels) break;
    float values[kCount];
    load_floats(f2 + c, values);
#pragma unroll
    for (int j = 0; j < kCount; ++j) sums[v * kCount + j] = fused_multiply_add(weight, values[j], sums[v * kCount + j]);
  }
}

// Walks the taps of a chunk for the queries of a warp together, so that their loads overlap. kInside: all of them are
// known to be inside the level.
template <class T, int kCount, bool kInside>
__device__ __forceinline__ void gather_chunk(const Chunk& chunk, const float* taps, int stride, const Centre* centres,
                                             const MapView& level, const T* image, int first_channel, int channels,
                                             float (&sums)[kWarpQueries][kLaneChannels]) {
  int tap = 0;
  for (int row = 0; row < chunk.rows(); ++row) {
    for (int column = 0; column < chunk.columns(); ++column, ++tap) {
#pragma unroll
      for (int i = 0; i < kWarpQueries; ++i) {
        const int x = centres[i].first_x + chunk.first_x + column, y = centres[i].first_y + chunk.first_y + row;
        if (kInside || (inside(x, level.width) && inside(y, level.height))) {
          add_weighted<T, kCount>(image + y * level.stride_y + x * level.stride_x, first_channel, channels,
                                  taps[i * stride + tap], sums[i]);
        }
      }
    }
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kWindowThreads, 2) grad_fmap1_kernel(const __grid_constant__ CorrLookupGradParams p) {
  DAFLOW_SHARED(Centre, centres, kTileQueries);
  float* taps = reinterpret_cast<float*>(dynamic_shared());
  const WindowParams& window = p.window;
  const int stride = tap_stride(window), first_query = warp_index() * kWarpQueries;
  const Tile tile = tile_of_block(window);  // tile.image is b
  const int first_channel = static_cast<int>(blockIdx.y) * kBlockChannels + lane_index() * kCount;
  float sums[kWarpQueries][kLaneChannels] = {};
  for (int level = 0; level < window.num_levels; ++level) {
    const MapView& map = p.levels[level];
    const T* image = static_cast<const T*>(map.data) + tile.image * map.stride_b;
    for (int64_t n = 0; n < window.centres; ++n) {
      locate(window, tile, tile.image, n, level, map.height, map.width, centres);
      const SampleGradient gradient = {p.grad, p.grad_dtype,
                                       OutputIndex(window, tile, tile.image * window.centres + n, level)};
      for_each_chunk(window, [&](const Chunk& chunk) {
        tap_gradients(window, tile, chunk, taps, centres, p.scale, gradient);
        const Centre* own = &centres[first_query];
        bool all_inside = true;
#pragma unroll
        for (int i = 0; i < kWarpQueries; ++i) {
          const int x = own[i].first_x + chunk.first_x, y = own[i].first_y + chunk.first_y;
          all_inside =
              all_inside && x >= 0 && y >= 0 && x + chunk.columns() <= map.width && y + chunk.rows() <= map.height;
        }
        const float* own_taps = taps + first_query * stride;
        if (all_inside) {
          gather_chunk<T, kCount, true>(chunk, own_taps, stride, own, map, image, first_channel, p.channels, sums);
        } else {
          gather_chunk<T, kCount, false>(chunk, own_taps, stride, own, map, image, first_channel, p.channels, sums);
        }
      });
    }
  }
  for (int i = 0; i < kWarpQueries; ++i) {
    if (!tile.holds(window, first_query + i)) continue;
    const int64_t pixel =
        (tile.image * window.height + tile.y(first_query + i)) * window.width + tile.x(first_query + i);
    T* out = static_cast<T*>(p.grad_fmap1) + pixel * p.channels;
#pragma unroll
    for (int v = 0; v < kLaneChannels / kCount; ++v) {
      const int c = first_channel + v * kWarpSize * kCount;
      float values[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = sums[i][v * kCount + j];
      if (c < p.channels) store_floats(out + c, values);
    }
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kWindowThreads, 2)
    grad_coords_kernel(const __grid_constant__ CorrLookupGradParams p) {
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
    const MapView& map = p.levels[level];
    locate(window, tile, b, n, level, map.height, map.width, centres);
    const float factor = p.scale / static_cast<float>(1 << level);
    for_each_chunk(window, [&](const Chunk& chunk) {
      dot_taps<T, kCount>(window, tile, b, chunk, centres, p.fmap1, map, p.channels, taps, stride);
      sync_block();
      const SampleGradient gradient = {p.grad, p.grad_dtype, OutputIndex(window, tile, tile.image, level)};
      blend_slope(chunk, taps, stride, centres, tile.holds(window, lane_index()), gradient, factor, sums);
    });
  }
  write_coords_gradient(window, tile, sums, p.grad_coords);
}

template <class Sum>
__global__ void __launch_bounds__(kWindowThreads, 2) scatter_kernel(const __grid_constant__ CorrLookupScatterParams p) {
  DAFLOW_SHARED(Centre, centres, kTileQueries);
  float* taps = reinterpret_cast<float*>(dynamic_shared());
  const WindowParams& window = p.window;
  const int stride = tap_stride(window), first_query = warp_index() * kWarpQueries;
  const Tile tile = tile_of_block(window);  // tile.image is b
  const int first_channel = static_cast<int>(blockIdx.y) * kBlockChannels + lane_index();
  const Sum sum(p.bounds, p.scale, window.centres * window.height * window.width, 2);
  auto* image = static_cast<typename Sum::type*>(p.sums) +
                tile.image * p.level_height * p.level_width * static_cast<int64_t>(p.channels);
  float features[kWarpQueries][kLaneChannels];
#pragma unroll
  for (int i = 0; i < kWarpQueries; ++i) {
    const int64_t at = tile.image * p.fmap1.stride_b + tile.y(first_query + i) * p.fmap1.stride_y +
                       tile.x(first_query + i) * p.fmap1.stride_x;
#pragma unroll
    for (int j = 0; j < kLaneChannels; ++j) {
      const int c = first_channel + j * kWarpSize;
      const bool use = tile.holds(window, first_query + i) && c < p.channels;
      features[i][j] = use ? load_float(p.fmap1.data, at + c, p.dtype) : 0.0f;
    }
  }
  for (int64_t n = 0; n < window.centres; ++n) {
    locate(window, tile, tile.image, n, p.level, p.level_height, p.level_width, centres);
    const SampleGradient gradient = {p.grad, p.grad_dtype,
                                     OutputIndex(window, tile, tile.image * window.centres + n, p.level)};
    for_each_chunk(window, [&](const Chunk& chunk) {
      tap_gradients(window, tile, chunk, taps, centres, p.scale, gradient);
      const Centre* own = &centres[first_query];
      int tap = 0;
      for (int row = 0; row < chunk.rows(); ++row) {
        for (int column = 0; column < chunk.columns(); ++column, ++tap) {
#pragma unroll
          for (int i = 0; i < kWarpQueries; ++i) {
            const int x = own[i].first_x + chunk.first_x + column, y = own[i].first_y + chunk.first_y + row;
            if (!inside(x, p.level_width) || !inside(y, p.level_height)) continue;
            const float weight = taps[(first_query + i) * stride + tap];
            auto* target = image + (static_cast<int64_t>(y) * p.level_width + x) * p.channels;
#pragma unroll
            for (int j = 0; j < kLaneChannels; ++j) {
              const int c = first_channel + j * kWarpSize;
              if (c < p.channels) sum.add(target + c, weight * features[i][j]);
            }
          }
        }
      }
    });
  }
}

int64_t channel_blocks(int32_t channels) { return ceil_div(channels, kBlockChannels); }

}  // namespace
}  // namespace cuda
}  // namespace daflow

using namespace daflow::cuda;

extern "C" cudaError_t daflow_cuda_corr_lookup_grad_fmap1(const CorrLookupGradParams* params, cudaStream_t stream) {
  const WindowParams& window = params->window;
  const int64_t blocks = window.batch * tiles_per_image(window);
  return dispatch(params->dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = all_vectorizable(*params) ? grad_fmap1_kernel<T, kVector<T>> : grad_fmap1_kernel<T, 1>;
    return launch_blocks(kernel, blocks, channel_blocks(params->channels), kWindowThreads, tap_bytes(window), stream,
                         *params);
  });
}

extern "C" cudaError_t daflow_cuda_corr_lookup_grad_coords(const CorrLookupGradParams* params, cudaStream_t stream) {
  const WindowParams& window = params->window;
  const int64_t blocks = window.batch * window.centres * tiles_per_image(window);
  return dispatch(params->dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = all_vectorizable(*params) ? grad_coords_kernel<T, kVector<T>> : grad_coords_kernel<T, 1>;
    return launch_blocks(kernel, blocks, 1, kWindowThreads, tap_bytes(window), stream, *params);
  });
}

extern "C" cudaError_t daflow_cuda_corr_lookup_scatter(const CorrLookupScatterParams* params, cudaStream_t stream) {
  const WindowParams& window = params->window;
  const auto kernel = params->bounds != nullptr ? scatter_kernel<ExactSum> : scatter_kernel<FloatSum>;
  return launch_blocks(kernel, window.batch * tiles_per_image(window), channel_blocks(params->channels), kWindowThreads,
                       tap_bytes(window), stream, *params);
}
