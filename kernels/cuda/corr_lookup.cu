// corr_lookup forward in float32: a block makes the window of one level for a tile of queries, see common/window.cuh.
//
// Cost: (nx + 1)(ny + 1) dot products per query and level, fed by the L1 and L2 caches, whatever the flow. The other
// forward, on tensor cores, is in corr_lookup_tile.cu.
#include "corr_lookup.cuh"

#include "common/dot_taps.cuh"

namespace daflow {
namespace cuda {
namespace {

template <class T, int kCount>
__global__ void __launch_bounds__(kWindowThreads, 2) corr_lookup_kernel(const __grid_constant__ CorrLookupParams p) {
  DAFLOW_SHARED(Centre, centres, kTileQueries);
  float* taps = reinterpret_cast<float*>(dynamic_shared());
  const int stride = tap_stride(p.window);
  const int level = static_cast<int>(blockIdx.y);
  const Tile tile = tile_of_block(p.window);
  const int64_t b = tile.image / p.window.centres, n = tile.image % p.window.centres;
  const MapView& map = p.levels[level];
  locate(p.window, tile, b, n, level, map.height, map.width, centres);
  for_each_chunk(p.window, [&](const Chunk& chunk) {
    dot_taps<T, kCount>(p.window, tile, b, chunk, centres, p.fmap1, map, p.channels, taps, stride);
    sync_block();
    write_chunk<kTileQueries, kWindowWarps>(p.window, tile, chunk, taps, stride, centres, level, p.scale, p.out);
  });
}

}  // namespace
}  // namespace cuda
}  // namespace daflow

using namespace daflow::cuda;

extern "C" cudaError_t daflow_cuda_corr_lookup(const CorrLookupParams* params, cudaStream_t stream) {
  const WindowParams& window = params->window;
  const int64_t blocks = window.batch * window.centres * tiles_per_image(window);
  return dispatch(params->dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = all_vectorizable(*params) ? corr_lookup_kernel<T, kVector<T>> : corr_lookup_kernel<T, 1>;
    return launch_blocks(kernel, blocks, window.num_levels, kWindowThreads, tap_bytes(window), stream, *params);
  });
}
