// corr_lookup, backward of a level: grad_fmap2[p] = sum over the queries q of G[q, p] fmap1[q], with G the gradient of
// the integer taps, gathered per target pixel from the queries sorted by the cell of their window, so that no two
// threads write one place and the order of every sum is fixed.
#include "cpu/corr_tap_grads_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

constexpr int64_t kChunk = 16384;  // bytes of fmap1 that gather_tile goes over with every target of its tile

// One query of a level: its place in the sorted order and its weights there.
template <class E, class A = accumulate_t<E>>
void tile_weights(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t n, int64_t y, int64_t x, int count,
                  const GradScratch<A>& scratch) {
  const FeatureMap& map1 = op.fmap1;
  const int64_t b = scatter.batch_item, row_size = op.window_x() + 3;
  read_grads(op, scatter.grad, scatter.level, query_offset(scatter.grad, b, n, y, x), count, scratch.grads);
  for (int q = 0; q < count; ++q) {
    const int64_t query = (n * map1.height + y) * map1.width + x + q;
    if (scatter.cell_of[query] < 0) continue;
    const int64_t entry = scatter.entry_of[query];
    const Window<A> window = place_window<A>(op, scatter.level, b, n, y, x + q);
    tap_weights(window, q, scratch.grads, scratch.weights);
    scatter.query_offset[entry] = b * map1.stride_b + y * map1.stride_y + (x + q) * map1.stride_x;
    scatter.first_x[entry] = window.x;
    for (int64_t i = 0; i < scratch.weights.rows; ++i) {
      A* const row = static_cast<A*>(scatter.weight) + (i * scatter.entries + entry) * row_size;
      row[0] = row[row_size - 1] = 0;
      narrow_row(scratch.weights.row(q, i), row + 1, row_size - 2);
    }
  }
}

// Queries that reach one row of targets with one row of their windows.
template <class E, class A = accumulate_t<E>>
struct Entries {
  const E* fmap1;
  const int64_t* query_offset;
  const int* first_x;
  const A* weight;
  int64_t row_size;

  Entries from(int64_t entry) const {
    return {fmap1, query_offset + entry, first_x + entry, weight + entry * row_size, row_size};
  }
};

// sums of the targets x and x + 1 += their weights times the features of `count` queries, for V vectors of channels
// from c on; the last is n channels short of full unless Full.
template <class E, int V, bool Full, class A>
void gather_pair(const Entries<E>& entries, int64_t count, int64_t x, int64_t c, int64_t n, A* sums_a, A* sums_b) {
  Vector<A> a[V], b[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    a[v] = load(sums_a + c + v * lanes<A>);
    b[v] = load(sums_b + c + v * lanes<A>);
  }
  for (int64_t e = 0; e < count; ++e) {
    const E* const feature = entries.fmap1 + entries.query_offset[e] + c;
    const A* const weight = entries.weight + e * entries.row_size + (x - entries.first_x[e]) + 1;
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      Vector<A> value = Full ? load_wide(feature + v * lanes<A>) : load_wide(feature, n);
      keep(value);
      a[v] += weight[0] * value;
      b[v] += weight[1] * value;
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    store(sums_a + c + v * lanes<A>, a[v]);
    store(sums_b + c + v * lanes<A>, b[v]);
  }
}

template <class E, int V, class A>
int64_t gather_channels(const Entries<E>& entries, int64_t count, int64_t x, int64_t c, int64_t channels, A* sums_a,
                        A* sums_b) {
  for (; c + V * lanes<A> <= channels; c += V * lanes<A>)
    gather_pair<E, V, true>(entries, count, x, c, 0, sums_a, sums_b);
  return c;
}

template <class E, class A>
void gather_all_channels(const Entries<E>& entries, int64_t count, int64_t x, int64_t channels, A* sums_a, A* sums_b) {
  int64_t c = 0;
  if constexpr (kVectorRegisters >= 32) c = gather_channels<E, 8>(entries, count, x, c, channels, sums_a, sums_b);
  c = gather_channels<E, 4>(entries, count, x, c, channels, sums_a, sums_b);
  c = gather_channels<E, 1>(entries, count, x, c, channels, sums_a, sums_b);
  if (c < channels) gather_pair<E, 1, false>(entries, count, x, c, channels - c, sums_a, sums_b);
}

// grad_level of the targets (y, x ... x + count - 1).
template <class E, class A = accumulate_t<E>>
void gather_tile(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t y, int64_t x, int count,
                 const GradScratch<A>& scratch) {
  const FeatureMap& level = op.levels[scatter.level];
  const int64_t channels = op.channels, ny = op.window_y(), nx = op.window_x(), row_size = nx + 3;
  const int64_t chunk = kChunk / (channels * static_cast<int64_t>(sizeof(E))) + 4;
  scratch.clear_sums();
  for (int64_t i = 0; i <= ny; ++i) {
    const Entries<E> all{static_cast<const E*>(op.fmap1.data), scatter.query_offset, scatter.first_x,
                         static_cast<const A*>(scatter.weight) + i * scatter.entries * row_size, row_size};
    const int64_t* const cells = scatter.cell_begin + (y - i + ny) * scatter.cells_x;  // windows with row i on y
    const int64_t end = cells[x + count + nx];
    for (int64_t first = cells[x]; first < end; first += chunk) {
      const int64_t last = first + chunk < end ? first + chunk : end;
      for (int64_t t = 0; t < count; t += 2) {  // an odd last target is paired with the spare row of sums
        const int64_t reach = t + 2 < count ? t + 2 : count;
        const int64_t from = cells[x + t] > first ? cells[x + t] : first;
        const int64_t to = cells[x + reach + nx] < last ? cells[x + reach + nx] : last;
        A* const sums = scratch.sums + t * scratch.sum_stride;
        if (from < to) gather_all_channels(all.from(from), to - from, x + t, channels, sums, sums + scratch.sum_stride);
      }
    }
  }
  const int64_t pixel = (scatter.batch_item * level.height + y) * level.width + x;
  E* const out = static_cast<E*>(scatter.grad_level) + pixel * channels;
  for (int t = 0; t < count; ++t) narrow_row(scratch.sums + t * scratch.sum_stride, out + t * channels, channels);
}

}  // namespace

void corr_lookup_cells(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t begin, int64_t end) {
  const int64_t height = op.fmap1.height, width = op.fmap1.width;
  const auto cell = [&](const auto& window) {
    return window.live() ? (window.y + op.window_y()) * scatter.cells_x + window.x + op.window_x() : -1;
  };
  for (int64_t row = begin; row < end; ++row)
    for (int64_t x = 0; x < width; ++x) {
      const int64_t n = row / height, y = row % height, b = scatter.batch_item;
      scatter.cell_of[row * width + x] = op.dtype == Element::f64
                                             ? cell(place_window<double>(op, scatter.level, b, n, y, x))
                                             : cell(place_window<float>(op, scatter.level, b, n, y, x));
    }
}

void corr_lookup_weights(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t begin, int64_t end,
                         void* memory) {
  each_query_tile(op, begin, end, memory,
                  [&](auto element, int64_t n, int64_t y, int64_t x, int count, const auto& scratch) {
                    tile_weights<decltype(element)>(op, scatter, n, y, x, count, scratch);
                  });
}

void corr_lookup_gather(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t begin, int64_t end,
                        void* memory) {
  dispatch_element(op.dtype, [&](auto element) {
    using E = decltype(element);
    const GradScratch<accumulate_t<E>> scratch(op, memory);
    const int64_t width = op.levels[scatter.level].width, tiles = (width + kScatterTile - 1) / kScatterTile;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t x = unit % tiles * kScatterTile;
      const int count = static_cast<int>(width - x < kScatterTile ? width - x : kScatterTile);
      gather_tile<E>(op, scatter, unit / tiles, x, count, scratch);
    }
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
