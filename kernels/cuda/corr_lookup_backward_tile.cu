// corr_lookup backward on tensor cores: the gradients of both feature maps as matrix products.
//
// The gradient of a tap (query, position) is the transposed bilinear blend of the gradients of its samples. A first
// kernel writes those of all taps. Then, with that matrix G of queries x positions, which is zero but for the windows,
//     grad f1 [query]    = sum over positions of G f2      grad f2 [position] = sum over queries of G f1
// and a block makes 64 rows x 128 channels of one of them, 32 terms of the sum at a time: no result has two writers.
//  * f1: rows are a tile of 8 x 8 queries, terms the strips of positions its windows touch. A tile whose flow is so
//    wild that too many strips remain adds up its taps one by one, in the same launch.
//  * f2: rows are 8 x 8 positions of a level, terms the queries whose windows touch them, found by looking through the
//    boxes of all tiles and packed in order: exactly those, so that wild flow costs what smooth flow does. Positions of
//    coarse levels have 4^l times as many, so several blocks share them. What these add up is put together by float32
//    reductions (fast), or kept apart and added in order (deterministic); neither mode has other atomics.
//
// Products are tf32 whatever the features are: half precision is exact in it, and gradients keep float32's range, which
// float16 would cut off. Features or gradients that are not finite spread to all rows of the block that meets them.
#include "corr_lookup.cuh"

#include "common/dot_taps.cuh"
#include "common/strips.cuh"
#include "common/weighted_sum.cuh"

namespace daflow {
namespace cuda {
namespace {

constexpr int kSide = 8;
static_assert(kSide * kSide == kRows && kSide == kTileWidth, "tiles and targets are rows of the product");
static_assert(kThreads == kWindowThreads, "locate and blend_transposed are for as many");
constexpr int kLaneChannels = kBlockChannels / kWarpSize;
constexpr int kMostTileStrips = 16;  // beyond 1024 positions 64 x 128 products are no better than single taps

__device__ __forceinline__ int window_columns(const WindowParams& p) { return 2 * p.radius_x + 2; }
__device__ __forceinline__ int window_rows(const WindowParams& p) { return 2 * p.radius_y + 2; }
__device__ __forceinline__ Chunk whole_window(const WindowParams& p) {
  return {0, 0, 2 * p.radius_x + 1, 2 * p.radius_y + 1};
}
__device__ __forceinline__ int64_t tiles_of_image(const WindowParams& p) {
  return ceil_div(p.height, kSide) * ceil_div(p.width, kSide);
}
// Index of a tile in what the first kernel writes, [image][level][tile].
__device__ __forceinline__ int64_t tile_index(const WindowParams& p, int64_t image, int level, int64_t tile) {
  return (image * p.num_levels + level) * tiles_of_image(p) + tile;
}

__global__ void __launch_bounds__(kThreads, 2) tap_gradients_kernel(const __grid_constant__ CorrLookupProductParams p) {
  DAFLOW_SHARED(Centre, centres, kRows);
  float* taps = reinterpret_cast<float*>(dynamic_shared());
  const WindowParams& window = p.maps.window;
  const int stride = tap_stride(window), level = static_cast<int>(blockIdx.y);
  const Chunk chunk = whole_window(window);
  const Tile tile = tile_of_block<kSide>(window);
  const int64_t b = tile.image / window.centres, n = tile.image % window.centres;
  const MapView& map = p.maps.levels[level];
  const int64_t index = tile_index(window, tile.image, level, blockIdx.x % tiles_of_image(window));
  locate<kRows>(window, tile, b, n, level, map.height, map.width, centres);
  sync_block();
  if (warp_index() == 0) {
    const Box box = OwnBoxes<1>(chunk, centres, map).around();
    int32_t* out = p.boxes + index * 4;
    if (lane_index() == 0) out[0] = box.left, out[1] = box.top, out[2] = box.right, out[3] = box.bottom;
  }
  const int own = static_cast<int>(threadIdx.x);
  if (own < kRows) {
    p.firsts[(index * kRows + own) * 2] = centres[own].first_x;
    p.firsts[(index * kRows + own) * 2 + 1] = centres[own].first_y;
  }
  for (int first = 0; first < kRows; first += kTileQueries) {
    const Tile part = {tile.image, tile.left, tile.top + first / kSide};
    const OutputIndex at(window, part, tile.image, level);
    blend_transposed(chunk, taps, stride, centres + first, part.holds(window, lane_index()),
                     [&](int x, int y) { return p.maps.scale * load_float(p.maps.grad, at(x, y), p.maps.grad_dtype); });
    sync_block();
    for (int query = warp_index(); query < kTileQueries; query += kWarps) {
      float* out = p.tap_gradients + (index * kRows + first + query) * chunk.taps();
      for (int tap = lane_index(); tap < chunk.taps(); tap += kWarpSize) out[tap] = taps[query * stride + tap];
    }
    sync_block();
  }
}

// Adds the taps of one level one by one to the rows of the result; a warp takes eight queries.
template <class T>
__device__ __forceinline__ void add_single_taps(const CorrLookupProductParams& p, const Centre* centres,
                                                const MapView& map, const T* image, const float* tap_gradients,
                                                int first_channel, float* result) {
  const int columns = window_columns(p.maps.window), rows = window_rows(p.maps.window);
  for (int query = warp_index(); query < kRows; query += kWarps) {
    if (centres[query].first_x == kDead) continue;
    const float* weight = tap_gradients + static_cast<int64_t>(query) * columns * rows;
    float sums[kLaneChannels] = {};
    for (int tap = 0; tap < columns * rows; ++tap) {
      const int x = centres[query].first_x + tap % columns, y = centres[query].first_y + tap / columns;
      if (!inside(x, map.width) || !inside(y, map.height)) continue;
      const T* vector = image + y * map.stride_y + x * map.stride_x + first_channel + lane_index();
#pragma unroll
      for (int j = 0; j < kLaneChannels; ++j) {
        if (first_channel + j * kWarpSize + lane_index() < p.maps.channels)
          sums[j] = fused_multiply_add(load(weight + tap), load_float(vector + j * kWarpSize), sums[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kLaneChannels; ++j) result[query * kResultStride + j * kWarpSize + lane_index()] += sums[j];
  }
}

// The plan of one level for a tile: centres and strips in shared memory; then all threads may read them.
__device__ __forceinline__ Strips plan_level(const CorrLookupProductParams& p, const Tile& tile, int64_t n, int level,
                                             Centre* centres, uint16_t* list, Strips* plan) {
  const MapView& map = p.maps.levels[level];
  sync_block();
  locate<kRows>(p.maps.window, tile, tile.image, n, level, map.height, map.width, centres);
  sync_block();
  if (warp_index() == 0) {
    const Strips strips = find_strips<1>(whole_window(p.maps.window), centres, map, kMostTileStrips, list);
    if (lane_index() == 0) plan[0] = strips;
  }
  sync_block();
  return plan[0];
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads, 2)
    grad_fmap1_tile_kernel(const __grid_constant__ CorrLookupProductParams p) {
  DAFLOW_SHARED(Centre, centres, kRows);
  DAFLOW_SHARED(uint16_t, list, kMostTileStrips);
  DAFLOW_SHARED(Strips, plan, 1);
  DAFLOW_SHARED(Term, terms, kTerms);
  const Shared shared;
  const WindowParams& window = p.maps.window;
  const int columns = window_columns(window), rows = window_rows(window);
  const Tile tile = tile_of_block<kSide>(window);  // tile.image is b
  const int64_t tile_number = blockIdx.x % tiles_of_image(window);
  const int first_channel = static_cast<int>(blockIdx.y) * kBlockChannels;
  const auto tap_gradients = [&](int64_t n, int level) {
    return p.tap_gradients +
           tile_index(window, tile.image * window.centres + n, level, tile_number) * kRows * columns * rows;
  };
  WarpProducts sums = {};
  bool any_wild = false;
  for (int64_t n = 0; n < window.centres; ++n) {
    for (int level = 0; level < window.num_levels; ++level) {
      const Strips strips = plan_level(p, tile, n, level, centres, list, plan);
      any_wild = any_wild || strips.too_many;
      if (strips.too_many) continue;
      const MapView& map = p.maps.levels[level];
      const T* image = static_cast<const T*>(map.data) + tile.image * map.stride_b;
      const float* weights = tap_gradients(n, level);
      for (int i = 0; i < strips.count * (kStripPositions / kTerms); ++i) {
        const int strip = strips.strip(i * kTerms / kStripPositions), first = i * kTerms % kStripPositions;
        sync_block();  // nobody reads the previous step any more
        if (static_cast<int>(threadIdx.x) < kTerms) {
          const Position at = strips.box.position(strip, first + static_cast<int>(threadIdx.x));
          terms[static_cast<int>(threadIdx.x)] = {at.x, at.y, 0,
                                                  at.used ? at.y * map.stride_y + at.x * map.stride_x : -1};
        }
        sync_block();
        fill_weights(shared.weights, [&](int query, int term) {
          const Term& at = terms[term];
          const int column = at.x - centres[query].first_x, line = at.y - centres[query].first_y;
          const bool use = at.vector >= 0 && inside(column, columns) && inside(line, rows);
          return use ? load(weights + (query * rows + line) * columns + column) : 0.0f;
        });
        fill_features<T, kCount>(shared.features, image, terms, first_channel, p.maps.channels);
        sync_block();
        multiply(shared, sums);
      }
    }
  }
  collect(sums, shared);
  for (int64_t n = 0; any_wild && n < window.centres; ++n) {
    for (int level = 0; level < window.num_levels; ++level) {
      if (!plan_level(p, tile, n, level, centres, list, plan).too_many) continue;
      const MapView& map = p.maps.levels[level];
      add_single_taps(p, centres, map, static_cast<const T*>(map.data) + tile.image * map.stride_b,
                      tap_gradients(n, level), first_channel, shared.result);
    }
  }
  for (int query = warp_index(); query < kRows; query += kWarps) {  // those whose sums this warp made or sees
    if (!tile.holds(window, query)) continue;
    const int64_t pixel = (tile.image * window.height + tile.y(query)) * window.width + tile.x(query);
    for (int c = lane_index(); c < kBlockChannels && first_channel + c < p.maps.channels; c += kWarpSize) {
      store_float(static_cast<T*>(p.maps.grad_fmap1) + pixel * p.maps.channels + first_channel + c,
                  shared.result[query * kResultStride + c]);
    }
  }
}

// The rows of a block that makes the gradient of f2.
struct Target {
  int level, split;
  int64_t b;
  Box box;

  __device__ __forceinline__ explicit Target(const CorrLookupProductParams& p) {
    int64_t index = blockIdx.x;
    for (level = 0; level < p.maps.window.num_levels - 1; ++level) {
      const int64_t blocks = p.maps.window.batch * boxes(p) * p.splits[level];
      if (index < blocks) break;
      index -= blocks;
    }
    const MapView& map = p.maps.levels[level];
    split = static_cast<int>(index % p.splits[level]);
    index /= p.splits[level];
    b = index / boxes(p);
    const int number = static_cast<int>(index % boxes(p)), across = (map.width + kSide - 1) / kSide;
    const int left = number % across * kSide, top = number / across * kSide;
    box = {left, top, lesser(left + kSide, map.width), lesser(top + kSide, map.height)};
  }

 private:
  __device__ __forceinline__ int64_t boxes(const CorrLookupProductParams& p) const {
    return ceil_div(p.maps.levels[level].height, kSide) * ceil_div(p.maps.levels[level].width, kSide);
  }
};

// Appends the values of the threads that keep theirs, in the order of threads, to list[0 ... count); the new count. All
// threads of the block take part, and may read the list afterwards.
__device__ __forceinline__ int append(bool keep, int value, int* list, int count, int* warp_counts) {
  const uint32_t votes = ballot(keep);
  if (lane_index() == 0) warp_counts[warp_index()] = count_bits(votes);
  sync_block();
  int before = count, total = count;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < warp_index()) before += warp_counts[warp];
    total += warp_counts[warp];
  }
  if (keep) list[before + count_bits(votes & ((1u << lane_index()) - 1u))] = value;
  sync_block();
  return total;
}

// A query by its number: [centre][tile][query of the tile].
__device__ __forceinline__ Term query_term(const CorrLookupProductParams& p, const Target& target, int number) {
  const WindowParams& window = p.maps.window;
  const int tiles = static_cast<int>(tiles_of_image(window)), across = static_cast<int>(ceil_div(window.width, kSide));
  const int query = number % kRows, tile = number / kRows % tiles, n = number / kRows / tiles;
  const int64_t slot = tile_index(window, target.b * window.centres + n, target.level, tile) * kRows + query;
  const int x = tile % across * kSide + query % kSide, y = tile / across * kSide + query / kSide;
  return {load(p.firsts + slot * 2), load(p.firsts + slot * 2 + 1), slot * window_columns(window) * window_rows(window),
          y * p.maps.fmap1.stride_y + x * p.maps.fmap1.stride_x};
}

// Writes the rows of a target, or this block's share of them.
__device__ __forceinline__ void write_target(const CorrLookupProductParams& p, const Target& target, int first_channel,
                                             const float* result) {
  const MapView& map = p.maps.levels[target.level];
  const int64_t channels = p.maps.channels, plane = static_cast<int64_t>(map.height) * map.width * channels;
  const bool alone = p.splits[target.level] == 1;
  float* sums = p.sums[target.level];
  if (!alone && p.deterministic) sums += target.split * p.maps.window.batch * plane;
  for (int row = warp_index(); row < kRows; row += kWarps) {
    const int x = target.box.left + row % kSide, y = target.box.top + row / kSide;
    if (x >= target.box.right || y >= target.box.bottom) continue;
    const int64_t at = target.b * plane + (static_cast<int64_t>(y) * map.width + x) * channels + first_channel;
    const float* own = result + row * kResultStride;
    if (kVectorReductions && !alone && !p.deterministic && channels % 4 == 0) {
      const int c = lane_index() * 4;
      if (first_channel + c < channels) atomic_add_vector(sums + at + c, own + c);
      continue;
    }
    for (int c = lane_index(); c < kBlockChannels && first_channel + c < channels; c += kWarpSize) {
      if (alone) {
        store_float(p.grad_levels[target.level], at + c, p.maps.dtype, own[c]);
      } else if (p.deterministic) {
        sums[at + c] = own[c];
      } else {
        atomic_add(sums + at + c, own[c]);
      }
    }
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads, 2)
    grad_pyramid_tile_kernel(const __grid_constant__ CorrLookupProductParams p) {
  DAFLOW_SHARED(Term, terms, kTerms);
  DAFLOW_SHARED(int, tiles, kThreads);
  DAFLOW_SHARED(int, queries, kThreads + kTerms);
  DAFLOW_SHARED(int, warp_counts, kWarps);
  const Shared shared;
  const WindowParams& window = p.maps.window;
  const int columns = window_columns(window), rows = window_rows(window), own = static_cast<int>(threadIdx.x);
  const int first_channel = static_cast<int>(blockIdx.y) * kBlockChannels;
  const Target target(p);
  const T* image = static_cast<const T*>(p.maps.fmap1.data) + target.b * p.maps.fmap1.stride_b;
  const int tiles_per = static_cast<int>(tiles_of_image(window));
  const int tile_count = static_cast<int>(window.centres) * tiles_per, splits = p.splits[target.level];
  WarpProducts sums = {};

  const auto add_terms = [&](int first, int count) {
    if (own < kTerms) {
      terms[own] = own < count ? query_term(p, target, queries[first + own]) : Term{kDead, kDead, 0, -1};
    }
    sync_block();
    fill_weights(shared.weights, [&](int row, int term) {
      const int column = target.box.left + row % kSide - terms[term].x;
      const int line = target.box.top + row / kSide - terms[term].y;
      const bool use = inside(column, columns) && inside(line, rows);
      return use ? load(p.tap_gradients + terms[term].weight + line * columns + column) : 0.0f;
    });
    fill_features<T, kCount>(shared.features, image, terms, first_channel, p.maps.channels);
    sync_block();
    multiply(shared, sums);
    sync_block();
  };

  int waiting = 0;  // queries in the list
  // every splits-th tile is this block's
  for (int base = target.split; base < tile_count; base += splits * kThreads) {
    const int tile = base + own * splits;
    bool meets = false;
    if (tile < tile_count) {
      const int64_t image_number = target.b * window.centres + tile / tiles_per;
      const int32_t* box = p.boxes + tile_index(window, image_number, target.level, tile % tiles_per) * 4;
      meets = target.box.meets({load(box), load(box + 1), load(box + 2), load(box + 3)});
    }
    const int found = append(meets, tile, tiles, 0, warp_counts);
    for (int i = 0; i < found; i += kThreads / kRows) {
      const int number = i + own / kRows < found ? tiles[i + own / kRows] * kRows + own % kRows : -1;
      bool touches = false;
      if (number >= 0) {
        const Term window_of = query_term(p, target, number);
        touches = target.box.meets({window_of.x, window_of.y, window_of.x + columns, window_of.y + rows});
      }
      waiting = append(touches, number, queries, waiting, warp_counts);
      int done = 0;
      for (; waiting - done >= kTerms; done += kTerms) add_terms(done, kTerms);
      const int kept = own < waiting - done ? queries[done + own] : 0;
      sync_block();
      if (own < waiting - done) queries[own] = kept;
      waiting -= done;
      sync_block();
    }
  }
  if (waiting > 0) add_terms(0, waiting);
  collect(sums, shared);
  write_target(p, target, first_channel, shared.result);
}

__global__ void __launch_bounds__(kThreads) add_shares_kernel(const __grid_constant__ AddSharesParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count; i += step) {
    float sum = 0.0f;
    for (int share = 0; share < p.shares; ++share) sum += load(p.sums + share * p.count + i);
    store_float(p.out, i, p.dtype, sum);
  }
}

int64_t channel_blocks(int32_t channels) { return ceil_div(channels, kBlockChannels); }

}  // namespace
}  // namespace cuda
}  // namespace daflow

using namespace daflow::cuda;

extern "C" cudaError_t daflow_cuda_corr_lookup_tap_gradients(const CorrLookupProductParams* params,
                                                             cudaStream_t stream) {
  const WindowParams& window = params->maps.window;
  const int64_t blocks = window.batch * window.centres * tiles_per_image<kSide>(window);
  return launch_blocks(tap_gradients_kernel, blocks, window.num_levels, kThreads, tap_bytes(window), stream, *params);
}

extern "C" cudaError_t daflow_cuda_corr_lookup_grad_fmap1_tile(const CorrLookupProductParams* params,
                                                               cudaStream_t stream) {
  const WindowParams& window = params->maps.window;
  return dispatch(params->maps.dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel =
        all_vectorizable(params->maps) ? grad_fmap1_tile_kernel<T, kVector<T>> : grad_fmap1_tile_kernel<T, 1>;
    return launch_blocks(kernel, window.batch * tiles_per_image<kSide>(window), channel_blocks(params->maps.channels),
                         kThreads, kSharedBytes, stream, *params);
  });
}

extern "C" cudaError_t daflow_cuda_corr_lookup_grad_pyramid_tile(const CorrLookupProductParams* params,
                                                                 cudaStream_t stream) {
  const CorrLookupGradParams& maps = params->maps;
  int64_t blocks = 0;
  for (int level = 0; level < maps.window.num_levels; ++level) {
    blocks += maps.window.batch * params->splits[level] * ceil_div(maps.levels[level].height, kSide) *
              ceil_div(maps.levels[level].width, kSide);
  }
  return dispatch(maps.dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = vectorizable(maps.fmap1, maps.channels, maps.dtype) ? grad_pyramid_tile_kernel<T, kVector<T>>
                                                                            : grad_pyramid_tile_kernel<T, 1>;
    return launch_blocks(kernel, blocks, channel_blocks(maps.channels), kThreads, kSharedBytes, stream, *params);
  });
}

extern "C" cudaError_t daflow_cuda_corr_lookup_add_shares(const AddSharesParams* params, cudaStream_t stream) {
  constexpr int64_t kMaxBlocks = 4096;  // each thread then takes several elements
  const int64_t blocks = ceil_div(params->count, kThreads);
  return launch_blocks(add_shares_kernel, blocks < kMaxBlocks ? blocks : kMaxBlocks, 1, kThreads, 0, stream, *params);
}
