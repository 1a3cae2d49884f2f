// corr_lookup forward on tensor cores: a block makes the window of one level for a tile of 8 x 8 queries, or for two of
// them above each other.
//
// Neighbouring queries look at nearly the same place, so the block multiplies all 64 feature vectors of a group of 8 x
// 8 queries with every position of the box around their windows, 64 positions (a strip) at a time, and keeps of the
// products those that are taps of a window: 1.9 times the useful arithmetic where the flow is constant, but dense, and
// each vector is read once for all queries of the tile. Two groups share the strips that both touch, nearly all on
// coarse levels; each has four warps, and leaves out the strips of the other. Strips that no window touches are left
// out. A tile whose flow is so wild that too many strips remain computes its taps one by one, as corr_lookup.cu does;
// the others of the same launch do not wait for it.
//
// Channels come in panels of 512 bytes per vector: the tile's stay in shared memory while the slices of the strips
// stream through a ring of buffers. Half precision multiplies exactly and adds in float32; float32 is rounded to tf32.
#include "corr_lookup.cuh"

#include "common/dot_taps.cuh"
#include "common/strips.cuh"
#include "common/tile_product.cuh"

namespace daflow {
namespace cuda {
namespace {

constexpr int kSide = 8;
static_assert(kSide == kTileWidth && kSide * kSide == kProductRows, "a row of the product is a query");
static_assert(kGroupQueries == kProductRows, "a group of queries is a product");
constexpr int kTaps = 144;  // of a chunk: radius 5 in one piece
constexpr int kStages = 2;  // slices of strips in shared memory

// Blocks of two groups that a multiprocessor should hold. Before 9.0 it has not the shared memory of two.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kTallBlocks = 1;
#else
constexpr int kTallBlocks = 2;
#endif

// A tile of kGroups groups.
template <int kGroups>
struct Shape {
  static constexpr int kHeight = kGroups * kSide, kQueries = kGroups * kGroupQueries;
  static constexpr int kThreads = kGroups * kProductThreads, kWarps = kThreads / kWarpSize;
  static constexpr int kBlocks = kGroups == 1 ? 3 : kTallBlocks;
  static constexpr int kPanelSlices = kGroups == 1 ? 4 : 2;  // of a group, in shared memory
  // A tile with more strips takes single taps instead. An estimate: a strip reads 64 vectors, so with `taps` strips a
  // group would read as much as its single taps do, and half of that leaves time for the products.
  static __host__ __device__ constexpr int most_strips(int taps) { return kGroups * taps / 2; }
};

// The group that this warp multiplies for.
__device__ __forceinline__ int group_index() { return warp_index() / (kProductThreads / kWarpSize); }

template <int kGroups>
struct Shared {
  unsigned char *panels, *ring;
  float* taps;
  int panel_slices;
  __device__ __forceinline__ explicit Shared(int panel_slices)
      : panels(dynamic_shared()),
        ring(panels + kGroups * panel_slices * kSliceSize),
        taps(reinterpret_cast<float*>(ring + kStages * kSliceSize)),
        panel_slices(panel_slices) {}
  // A slice of the features of this warp's group.
  __device__ __forceinline__ unsigned char* panel(int slice) const {
    return panels + (group_index() * panel_slices + slice) * kSliceSize;
  }
  __device__ __forceinline__ void clear_taps(int stride) const {
    constexpr int kStep = kVector<float> * Shape<kGroups>::kThreads;
    for (int i = kVector<float> * static_cast<int>(threadIdx.x); i < Shape<kGroups>::kQueries * stride; i += kStep)
      store_vector(taps + i, {0, 0, 0, 0});
  }
};

template <class T>
__host__ __device__ constexpr int slice_count(int channels) {
  return (channels + kSliceChannels<T> - 1) / kSliceChannels<T>;
}

// The feature vectors of a block: the tile's in frame 1, and one level of frame 2.
template <class T>
struct Features {
  const T *tile_image, *level_image;
  const MapView &fmap1, &level;
  int channels;

  __device__ __forceinline__ const T* query(const Tile& tile, int q) const {
    return tile_image + tile.y(q) * fmap1.stride_y + tile.x(q) * fmap1.stride_x;
  }
  // The queries of this warp's group.
  __device__ __forceinline__ CopiedRows<T, kProductThreads> queries(const WindowParams& p, const Tile& tile) const {
    CopiedRows<T, kProductThreads> rows;
#pragma unroll
    for (int i = 0; i < rows.kCount; ++i) {
      const int q = group_index() * kGroupQueries + rows.row(i);
      rows.vector[i] = tile.holds(p, q) ? query(tile, q) : nullptr;
    }
    return rows;
  }
  template <int kCopiers>
  __device__ __forceinline__ CopiedRows<T, kCopiers> positions(const Box& box, int strip) const {
    CopiedRows<T, kCopiers> rows;
#pragma unroll
    for (int i = 0; i < rows.kCount; ++i) {
      const Position at = box.position(strip, rows.row(i));
      rows.vector[i] = at.used ? level_image + at.y * level.stride_y + at.x * level.stride_x : nullptr;
    }
    return rows;
  }
};

// Keeps of a warp's products those that are taps of its group: sets them, or (kAdd) adds to what earlier panels gave.
template <bool kAdd>
__device__ __forceinline__ void keep_taps(const WarpProducts& sums, const Box& box, int strip, const Chunk& chunk,
                                          const Centre* centres, float* taps, int stride) {
  constexpr int kColumns = kWarpRows / kMmaRowsB;
  constexpr int kNowhere = 1 << 29;  // in no window, dead ones included
  const int columns = chunk.columns(), rows = chunk.rows();
  int x[kColumns][2], y[kColumns][2];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Position at = box.position(strip, first_warp_column() + j * kMmaRowsB + product_column(i));
      x[j][i] = at.used ? at.x : kNowhere;
      y[j][i] = at.y;
    }
  }
#pragma unroll
  for (int row = 0; row < kWarpRows / 8; ++row) {
    const int query = group_index() * kGroupQueries + first_warp_row() + row / 2 * kMmaRowsA + product_row(row % 2 * 2);
    const int first_x = centres[query].first_x + chunk.first_x, first_y = centres[query].first_y + chunk.first_y;
    float* own = taps + query * stride;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = x[j][i] - first_x, line = y[j][i] - first_y;
        if (!inside(column, columns) || !inside(line, rows)) continue;
        float& tap = own[line * columns + column];
        const float product = sums[row / 2][j][row % 2 * 2 + i];
        tap = kAdd ? tap + product : product;
      }
    }
  }
}

// Starts the copies of a panel's slices of one strip after the other; every slice is a group of copies.
template <class T, bool kAligned, int kThreads>
class SliceStream {
 public:
  __device__ __forceinline__ SliceStream(const Features<T>& features, const Strips& strips, int first, int slices,
                                         unsigned char* ring)
      : features_(features), strips_(strips), first_(first), slices_(slices), ring_(ring) {}
  __device__ __forceinline__ void start_next() {
    if (strip_ < strips_.count) {
      if (slice_ == 0) rows_ = features_.template positions<kThreads>(strips_.box, strips_.strip(strip_));
      copy_slice<kAligned>(ring_ + stage_ * kSliceSize, rows_, first_ + slice_ * kSliceChannels<T>, features_.channels,
                           features_.level_image);
      stage_ = stage_ == kStages - 1 ? 0 : stage_ + 1;
      if (++slice_ == slices_) {
        slice_ = 0;
        ++strip_;
      }
    }
    commit_copies();
  }

 private:
  const Features<T>& features_;
  const Strips& strips_;
  int first_, slices_;
  unsigned char* ring_;
  CopiedRows<T, kThreads> rows_;
  int strip_ = 0, slice_ = 0, stage_ = 0;
};

// Fills the taps of the tile from the strips of the box, one panel of channels after the other.
template <class T, bool kAligned, int kGroups>
__device__ __forceinline__ void multiply_strips(const Features<T>& features,
                                                const CopiedRows<T, kProductThreads>& queries, const Strips& strips,
                                                const Chunk& chunk, const Centre* centres,
                                                const Shared<kGroups>& shared, int stride) {
  constexpr int kPanelSlices = Shape<kGroups>::kPanelSlices;
  if (strips.count == 0) return;
  for (int first = 0; first < features.channels; first += kPanelSlices * kSliceChannels<T>) {
    const int slices = lesser(slice_count<T>(features.channels - first), kPanelSlices);
    sync_block();  // nobody reads the panels and the ring any more
    for (int slice = 0; slice < slices; ++slice) {
      copy_slice<kAligned>(shared.panel(slice), queries, first + slice * kSliceChannels<T>, features.channels,
                           features.tile_image);
    }
    SliceStream<T, kAligned, Shape<kGroups>::kThreads> stream(features, strips, first, slices, shared.ring);
    for (int i = 0; i < kStages - 1; ++i) stream.start_next();  // the panels arrive with the first
    int stage = 0;
    for (int i = 0; i < strips.count; ++i) {
      const bool touched = kGroups == 1 || strips.touches(i, group_index());
      WarpProducts sums = {};
      for (int slice = 0; slice < slices; ++slice) {
        wait_for_copies<kStages - 2>();
        sync_block();
        stream.start_next();
        const int left = features.channels - first - slice * kSliceChannels<T>;
        if (touched)
          multiply_slices<T>(shared.panel(slice), shared.ring + stage * kSliceSize, step_count<T>(left), sums);
        stage = stage == kStages - 1 ? 0 : stage + 1;
      }
      if (!touched) continue;
      if (first == 0) {
        keep_taps<false>(sums, strips.box, strips.strip(i), chunk, centres, shared.taps, stride);
      } else {
        keep_taps<true>(sums, strips.box, strips.strip(i), chunk, centres, shared.taps, stride);
      }
    }
  }
}

// Fills the taps of the tile one by one: a warp takes its queries in turn.
template <class T, bool kAligned, int kGroups>
__device__ __forceinline__ void multiply_single_taps(const WindowParams& p, const Tile& tile,
                                                     const Features<T>& features, const Chunk& chunk,
                                                     const Centre* centres, float* taps, int stride) {
  for (int query = warp_index(); query < Shape<kGroups>::kQueries; query += Shape<kGroups>::kWarps) {
    if (!tile.holds(p, query)) continue;
    query_taps<T, kAligned ? kVector<T> : 1>(chunk, centres[query], features.query(tile, query), features.level,
                                             features.level_image, features.channels, taps + query * stride);
  }
}

template <class T, bool kAligned, int kGroups>
__global__ void __launch_bounds__(Shape<kGroups>::kThreads, Shape<kGroups>::kBlocks)
    corr_lookup_tile_kernel(const __grid_constant__ CorrLookupParams p) {
  using Own = Shape<kGroups>;
  DAFLOW_SHARED(Centre, centres, Own::kQueries);
  DAFLOW_SHARED(uint16_t, list, Own::most_strips(kTaps));
  DAFLOW_SHARED(Strips, plan, 1);
  const Shared<kGroups> shared(lesser(slice_count<T>(p.channels), Own::kPanelSlices));
  const int stride = tap_stride<kTaps>(p.window);
  const int level = static_cast<int>(blockIdx.y);
  const Tile tile = tile_of_block<Own::kHeight>(p.window);
  const int64_t b = tile.image / p.window.centres, n = tile.image % p.window.centres;
  const MapView& map = p.levels[level];
  const Features<T> features = {static_cast<const T*>(p.fmap1.data) + b * p.fmap1.stride_b,
                                static_cast<const T*>(map.data) + b * map.stride_b, p.fmap1, map, p.channels};
  const CopiedRows<T, kProductThreads> queries = features.queries(p.window, tile);
  locate<Own::kQueries>(p.window, tile, b, n, level, map.height, map.width, centres);
  for_each_chunk<kTaps>(p.window, [&](const Chunk& chunk) {
    if (warp_index() == 0) {
      const Strips strips = find_strips<kGroups>(chunk, centres, map, Own::most_strips(chunk.taps()), list);
      if (lane_index() == 0) plan[0] = strips;
    }
    shared.clear_taps(stride);
    sync_block();
    const Strips strips = plan[0];
    if (strips.too_many) {
      multiply_single_taps<T, kAligned, kGroups>(p.window, tile, features, chunk, centres, shared.taps, stride);
    } else {
      multiply_strips<T, kAligned>(features, queries, strips, chunk, centres, shared, stride);
    }
    sync_block();
    write_chunk<Own::kQueries, Own::kWarps>(p.window, tile, chunk, shared.taps, stride, centres, level, p.scale, p.out);
  });
}

template <class T, int kGroups>
size_t shared_bytes(const CorrLookupParams& params) {
  const int slices = kGroups * lesser(slice_count<T>(params.channels), Shape<kGroups>::kPanelSlices) + kStages;
  return static_cast<size_t>(slices) * kSliceSize + tap_bytes<kTaps, Shape<kGroups>::kQueries>(params.window);
}

template <class T, bool kAligned, int kGroups>
cudaError_t launch_tiles(const CorrLookupParams& params, cudaStream_t stream) {
  using Own = Shape<kGroups>;
  const WindowParams& window = params.window;
  const int64_t blocks = window.batch * window.centres * tiles_per_image<Own::kHeight>(window);
  return launch_blocks(corr_lookup_tile_kernel<T, kAligned, kGroups>, blocks, window.num_levels, Own::kThreads,
                       shared_bytes<T, kGroups>(params), stream, params);
}

}  // namespace
}  // namespace cuda
}  // namespace daflow

using namespace daflow::cuda;

extern "C" cudaError_t daflow_cuda_corr_lookup_tile(const CorrLookupParams* params, cudaStream_t stream) {
  return dispatch(params->dtype, [&](auto type) {
    using T = decltype(type);
    if (!all_vectorizable(*params)) return launch_tiles<T, false, 1>(*params, stream);
    const bool tall = params->tall_tiles && shared_bytes<T, 2>(*params) <= most_dynamic_bytes();
    return tall ? launch_tiles<T, true, 2>(*params, stream) : launch_tiles<T, true, 1>(*params, stream);
  });
}
