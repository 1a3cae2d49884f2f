// The correlation window, shared by corr_lookup and volume_lookup.
//
// A block works on a tile of 8 x 4 query pixels of one centre (8 x 8 on tensor cores). For a level it puts the integer
// taps of every query's window into shared memory, taps[query][row][column], zero outside the level: (nx + 1)(ny + 1)
// of them, because all samples of a window share one fraction. Then it blends neighbouring taps, with the query as the
// lane, so that global access to the output runs along x. Windows of more than 256 taps (kTaps) are done in chunks.
#pragma once

#include "common/bilinear.h"
#include "common/dtype.cuh"

namespace daflow {
namespace cuda {

constexpr int kTileWidth = 8, kTileHeight = 4;
constexpr int kTileQueries = kTileWidth * kTileHeight;
static_assert(kTileQueries == kWarpSize, "the lane is the query wherever the output is accessed");
constexpr int kWindowThreads = 256;
constexpr int kWindowWarps = kWindowThreads / kWarpSize;
constexpr int kWarpQueries = kTileQueries / kWindowWarps;
constexpr int kChunkTaps = 256;

// n / divisor without a division, exact while n * divisor < 65536.
struct SmallDivisor {
  uint32_t divisor, inverse;
  __host__ __device__ explicit SmallDivisor(int divisor)
      : divisor(static_cast<uint32_t>(divisor)), inverse(65536u / static_cast<uint32_t>(divisor) + 1u) {}
  __device__ __forceinline__ int quotient(int n) const {
    return static_cast<int>((static_cast<uint32_t>(n) * inverse) >> 16);
  }
};

// A part of the window: the samples [first_x, first_x + samples_x) x [first_y, ...) of it and the taps they need.
struct Chunk {
  int first_x, first_y, samples_x, samples_y;
  __device__ __forceinline__ int columns() const { return samples_x + 1; }
  __device__ __forceinline__ int rows() const { return samples_y + 1; }
  __device__ __forceinline__ int taps() const { return columns() * rows(); }
  __device__ __forceinline__ int samples() const { return samples_x * samples_y; }
};

__host__ __device__ constexpr int lesser(int a, int b) { return a < b ? a : b; }

// The side of the largest square of samples that needs no more than `taps` taps.
__host__ __device__ constexpr int chunk_side(int taps) {
  int side = 1;
  while ((side + 2) * (side + 2) <= taps) ++side;
  return side;
}
// Samples of the largest chunk: all of the window if that needs no more than kTaps taps.
template <int kTaps = kChunkTaps>
__host__ __device__ inline int chunk_height(const WindowParams& p) {
  const int beside_all_columns = kTaps / (2 * p.radius_x + 2) - 1;
  return lesser(2 * p.radius_y + 1, beside_all_columns > chunk_side(kTaps) ? beside_all_columns : chunk_side(kTaps));
}
template <int kTaps = kChunkTaps>
__host__ __device__ inline int chunk_width(const WindowParams& p) {
  return lesser(2 * p.radius_x + 1, kTaps / (chunk_height<kTaps>(p) + 1) - 1);
}
// From one query's taps to the next in shared memory; odd, so that lanes that are queries meet no bank conflict.
template <int kTaps = kChunkTaps>
__host__ __device__ inline int tap_stride(const WindowParams& p) {
  return (chunk_width<kTaps>(p) + 1) * (chunk_height<kTaps>(p) + 1) | 1;
}
template <int kTaps = kChunkTaps, int kQueries = kTileQueries>
inline size_t tap_bytes(const WindowParams& p) {
  return sizeof(float) * kQueries * tap_stride<kTaps>(p);
}
template <int kHeight = kTileHeight>
inline int64_t tiles_per_image(const WindowParams& p) {
  return ceil_div(p.height, kHeight) * ceil_div(p.width, kTileWidth);
}

// Calls visit(chunk) for every chunk, with block barriers around it: shared memory may be filled at once in visit.
template <int kTaps = kChunkTaps, class Visit>
__device__ __forceinline__ void for_each_chunk(const WindowParams& p, Visit&& visit) {
  const int samples_x = 2 * p.radius_x + 1, samples_y = 2 * p.radius_y + 1;
  const int width = chunk_width<kTaps>(p), height = chunk_height<kTaps>(p);
  for (int y = 0; y < samples_y; y += height) {
    for (int x = 0; x < samples_x; x += width) {
      sync_block();
      visit(Chunk{x, y, lesser(width, samples_x - x), lesser(height, samples_y - y)});
    }
  }
  sync_block();
}

// The tile of a block: image counts from 0 to blocks / tiles_per_image.
struct Tile {
  int64_t image;
  int left, top;
  __device__ __forceinline__ int x(int query) const { return left + query % kTileWidth; }
  __device__ __forceinline__ int y(int query) const { return top + query / kTileWidth; }
  __device__ __forceinline__ bool holds(const WindowParams& p, int query) const {
    return x(query) < p.width && y(query) < p.height;
  }
};
template <int kHeight = kTileHeight>
__device__ __forceinline__ Tile tile_of_block(const WindowParams& p) {
  const unsigned across = static_cast<unsigned>(ceil_div(p.width, kTileWidth));
  const unsigned down = static_cast<unsigned>(ceil_div(p.height, kHeight));
  const unsigned row = blockIdx.x / across;
  return {static_cast<int64_t>(row / down), static_cast<int>(blockIdx.x % across) * kTileWidth,
          static_cast<int>(row % down) * kHeight};
}

// Where the window of a query lies in a level. Dead windows (no tap inside, or coordinates that are not finite) lie
// far outside.
struct Centre {
  int first_x, first_y;  // the tap of sample (0, 0)
  float fraction_x, fraction_y;
};
constexpr int kDead = -(1 << 30);

// The first threads fill centres[query]; a block barrier must follow.
template <int kQueries = kTileQueries>
__device__ __forceinline__ void locate(const WindowParams& p, const Tile& tile, int64_t b, int64_t n, int level,
                                       int level_height, int level_width, Centre* centres) {
  const int query = static_cast<int>(threadIdx.x);
  if (query >= kQueries) return;
  Centre centre = {kDead, kDead, 0.0f, 0.0f};
  if (tile.holds(p, query)) {
    const float* at = p.coords + b * p.coords_stride_b + n * p.coords_stride_n + tile.y(query) * p.coords_stride_y +
                      tile.x(query) * p.coords_stride_x;
    const float shrink = 1.0f / static_cast<float>(1 << level);  // exact
    const Split<float> x = split(load(at) * shrink, level_width, p.radius_x);
    const Split<float> y = split(load(at + p.coords_stride_c) * shrink, level_height, p.radius_y);
    if (x.live && y.live) centre = {x.first - p.radius_x, y.first - p.radius_y, x.fraction, y.fraction};
  }
  centres[query] = centre;
}

// Index of a sample's element in the output, for the query that is this lane.
struct OutputIndex {
  int64_t pixel, plane;  // of (channel 0, query), and from channel to channel
  int samples_x, samples_y;
  int64_t first_channel;
  bool x_major;

  __device__ __forceinline__ OutputIndex(const WindowParams& p, const Tile& tile, int64_t image, int level)
      : plane(static_cast<int64_t>(p.height) * p.width),
        samples_x(2 * p.radius_x + 1),
        samples_y(2 * p.radius_y + 1),
        x_major(p.x_major) {
    const int64_t window = static_cast<int64_t>(samples_x) * samples_y;
    first_channel = (image * p.num_levels + level) * window;
    pixel = static_cast<int64_t>(tile.y(lane_index())) * p.width + tile.x(lane_index());
  }
  __device__ __forceinline__ int64_t operator()(int x, int y) const {
    const int64_t sample = x_major ? static_cast<int64_t>(x) * samples_y + y : static_cast<int64_t>(y) * samples_x + x;
    return (first_channel + sample) * plane + pixel;
  }
};

// The sample between four taps: the one at `corner`, its right neighbour, and those `columns` further.
__device__ __forceinline__ float blend_corners(const float* corner, int columns, const Centre& centre) {
  const float wx = centre.fraction_x, wy = centre.fraction_y;
  const float upper = (1.0f - wx) * corner[0] + wx * corner[1];
  const float lower = (1.0f - wx) * corner[columns] + wx * corner[columns + 1];
  return (1.0f - wy) * upper + wy * lower;
}

// Blends the taps of a chunk and writes factor * sample. Lanes are samples where those are densest in the output, and
// queries otherwise, so that access runs along x. All threads of the block take part.
template <int kQueries, int kWarps>
__device__ __forceinline__ void write_chunk(const WindowParams& p, const Tile& tile, const Chunk& chunk,
                                            const float* taps, int stride, const Centre* centres, int level,
                                            float factor, const WindowOutput& out) {
  const bool x_slow = p.x_major, lane_is_sample = out.stride_sample == 1;
  const int window_slow = 2 * (x_slow ? p.radius_x : p.radius_y) + 1;
  const int window_fast = 2 * (x_slow ? p.radius_y : p.radius_x) + 1;
  const int first_slow = x_slow ? chunk.first_x : chunk.first_y, first_fast = x_slow ? chunk.first_y : chunk.first_x;
  const int fast_count = x_slow ? chunk.samples_y : chunk.samples_x;
  const int tap_slow = x_slow ? 1 : chunk.columns(), tap_fast = x_slow ? chunk.columns() : 1;
  const int64_t first_sample = (static_cast<int64_t>(level) * window_slow + first_slow) * window_fast + first_fast;
  const SmallDivisor by_fast(fast_count);
  for (int query = lane_is_sample ? warp_index() : lane_index(); query < kQueries;
       query += lane_is_sample ? kWarps : kWarpSize) {
    if (!tile.holds(p, query)) continue;
    const Centre centre = centres[query];
    const int64_t start = tile.image * out.stride_image + tile.y(query) * out.stride_y + tile.x(query) * out.stride_x +
                          first_sample * out.stride_sample;
    for (int sample = lane_is_sample ? lane_index() : warp_index(); sample < chunk.samples();
         sample += lane_is_sample ? kWarpSize : kWarps) {
      const int slow = by_fast.quotient(sample), fast = sample - slow * fast_count;
      const float* corner = taps + query * stride + slow * tap_slow + fast * tap_fast;
      store_float(out.data, start + (slow * window_fast + fast) * out.stride_sample, out.dtype,
                  factor * blend_corners(corner, chunk.columns(), centre));
    }
  }
}

// The transpose of blending: fills taps[query][row][column] with the gradient of every tap of the chunk, from
// gradient(x, y), which reads that of a sample for the query of this lane. All threads of the block take part.
template <class Gradient>
__device__ __forceinline__ void blend_transposed(const Chunk& chunk, float* taps, int stride, const Centre* centres,
                                                 bool in_grid, Gradient&& gradient) {
  const int query = lane_index(), columns = chunk.columns();
  const float wx = centres[query].fraction_x, wy = centres[query].fraction_y;
  const bool live = in_grid && centres[query].first_x != kDead;
  const SmallDivisor by_columns(columns);
  for (int tap = warp_index(); tap < chunk.taps(); tap += kWindowWarps) {
    const int row = by_columns.quotient(tap), column = tap - row * columns;
    float value = 0.0f;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int x = column - corner % 2, y = row - corner / 2;
      if (live && inside(x, chunk.samples_x) && inside(y, chunk.samples_y)) {
        const float weight = (corner % 2 != 0 ? wx : 1.0f - wx) * (corner / 2 != 0 ? wy : 1.0f - wy);
        value = fused_multiply_add(weight, gradient(chunk.first_x + x, chunk.first_y + y), value);
      }
    }
    taps[query * stride + tap] = value;
  }
}

// The gradient of each query's coordinates while it is summed: every thread has its own two slots, in shared memory
// because registers are scarce while taps are made.
struct CoordsGradient {
  float* slots;  // 2 * kWindowThreads
  __device__ __forceinline__ float& slot(int axis, int thread) const { return slots[axis * kWindowThreads + thread]; }
  __device__ __forceinline__ void clear() const {
    slot(0, static_cast<int>(threadIdx.x)) = 0.0f;
    slot(1, static_cast<int>(threadIdx.x)) = 0.0f;
  }
};

// Adds factor * d(sum of samples * gradient)/d(x, y of the level), over a warp's share of the samples of a chunk.
template <class Gradient>
__device__ __forceinline__ void blend_slope(const Chunk& chunk, const float* taps, int stride, const Centre* centres,
                                            bool in_grid, Gradient&& gradient, float factor,
                                            const CoordsGradient& sums) {
  const int query = lane_index(), columns = chunk.columns();
  const float wx = centres[query].fraction_x, wy = centres[query].fraction_y;
  if (!in_grid || centres[query].first_x == kDead) return;
  const SmallDivisor by_width(chunk.samples_x);
  float dx = 0.0f, dy = 0.0f;
  for (int sample = warp_index(); sample < chunk.samples(); sample += kWindowWarps) {
    const int y = by_width.quotient(sample), x = sample - y * chunk.samples_x;
    const float* corner = taps + query * stride + y * columns + x;
    const float grad = gradient(chunk.first_x + x, chunk.first_y + y);
    const float along_x = (1.0f - wy) * (corner[1] - corner[0]) + wy * (corner[columns + 1] - corner[columns]);
    const float along_y = (1.0f - wx) * (corner[columns] - corner[0]) + wx * (corner[columns + 1] - corner[1]);
    dx = fused_multiply_add(grad, along_x, dx);
    dy = fused_multiply_add(grad, along_y, dy);
  }
  sums.slot(0, static_cast<int>(threadIdx.x)) += factor * dx;
  sums.slot(1, static_cast<int>(threadIdx.x)) += factor * dy;
}

// Adds up what the warps hold of each query, in a fixed order, and writes it to out [.., 2, H, W].
__device__ __forceinline__ void write_coords_gradient(const WindowParams& p, const Tile& tile,
                                                      const CoordsGradient& sums, float* out) {
  sync_block();
  const int query = lane_index(), axis = warp_index();
  if (axis >= 2 || !tile.holds(p, query)) return;
  float sum = 0.0f;
  for (int warp = 0; warp < kWindowWarps; ++warp) sum += sums.slot(axis, warp * kWarpSize + query);
  out[((tile.image * 2 + axis) * p.height + tile.y(query)) * p.width + tile.x(query)] = sum;
}

}  // namespace cuda
}  // namespace daflow
