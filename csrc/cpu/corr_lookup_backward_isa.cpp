// corr_lookup, backward. With G = the gradient of the integer taps (the transposed blend of the incoming gradient):
//   grad_fmap1[q] = sum over the taps p of G[q, p] fmap2[p], and grad_coords[q] from the recomputed taps: tile by tile;
//   grad_fmap2[p] = sum over the queries q of G[q, p] fmap1[q]: gathered per target pixel from the queries sorted by
//   the cell of their window, so that no two threads write one place and the order of every sum is fixed.
#include "cpu/corr_lookup_isa.h"
#include "cpu/corr_window_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

constexpr int kGradTile = 8;       // queries of a tile: their sums and the pixels they share fit the first-level cache
constexpr int64_t kChunk = 16384;  // bytes of fmap1 that scatter_gather goes over with every target of its tile
static_assert(kGradTile >= kScatterTile && kGradTile <= kMaxTile);

// A value per tap of every window of a tile, [row][query][stride]. Vectors may read past a row, into a gap of zeros of
// fresh scratch that is never written, or the `lanes` elements after the last.
template <class A>
struct TapRows {
  A* data;
  int64_t rows, length, stride;

  TapRows(A* memory, int64_t rows, int64_t length)
      : data(memory), rows(rows), length(length), stride(round_up<int64_t>(length, lanes<A>) + lanes<A>) {}
  A* row(int q, int64_t i) const { return data + (i * kGradTile + q) * stride; }
  A* end() const { return row(0, rows) + lanes<A>; }
};

// Scratch of a thread. A row of `grads` starts with a zero; sums has a spare row.
template <class A>
struct Scratch {
  TapRows<A> taps, weights, grads;
  PartialRow<A> partial;
  int64_t sum_stride;
  A* sums;  // [kGradTile + 1, channels]

  Scratch(const CorrLookup& op, void* memory)
      : taps(static_cast<A*>(memory), op.window_y() + 1, op.window_x() + 1),
        weights(taps.end(), taps.rows, taps.length),
        grads(weights.end(), taps.rows, taps.length),
        partial(grads.end(), taps.length),
        sum_stride(round_up<int64_t>(op.channels, lanes<A>)),
        sums(partial.end()) {}
  static int64_t bytes(const CorrLookup& op) {
    const Scratch start(op, nullptr);
    return reinterpret_cast<intptr_t>(start.sums + (kGradTile + 1) * start.sum_stride);
  }
  void clear_sums() const {
    for (int64_t i = 0; i < (kGradTile + 1) * sum_stride; ++i) sums[i] = 0;
  }
};

// grads[q][i][1 + j] = scale * gradient of window element (row i, column j) of query x + q.
template <class A>
void read_grads(const CorrLookup& op, const QueryTensor& grad, int level, int64_t at, int count,
                const TapRows<A>& grads) {
  const A scale = static_cast<A>(op.scale);
  const int ny = op.window_y(), nx = op.window_x();
  dispatch_element(grad.dtype, [&](auto element) {
    const auto* const data = static_cast<const decltype(element)*>(grad.data) + at;
    for (int i = 0; i < ny; ++i)
      for (int j = 0; j < nx; ++j) {
        const int64_t k = level * op.window() + (op.x_slow ? int64_t(j) * ny + i : int64_t(i) * nx + j);
        const auto* const run = data + k * grad.stride_k;
        for (int q = 0; q < count; ++q) grads.row(q, i)[1 + j] = scale * static_cast<A>(widen(run[q * grad.stride_x]));
      }
  });
}

// taps[q][i][j] = <fmap1 of query q, pixel (i, j) of its window>, zero outside.
template <class E, class A = accumulate_t<E>>
void tile_taps(const E* fmap1, int64_t stride1, const LevelView<E>& level, const Window<A>* windows, int count,
               int64_t channels, const Scratch<A>& scratch) {
  constexpr int L = lanes<A>;
  const int rows = static_cast<int>(scratch.taps.rows);
  tile_products<Widened<E>>(
      fmap1, stride1, level, windows, count, rows, channels, scratch.partial, [] {},
      [&](int i) {
        for (int q = 0; q < count; ++q)
          for (int64_t j = 0; j < scratch.taps.length; j += L) {
            Vector<A> parts[L];
#pragma GCC unroll 16
            for (int k = 0; k < L; ++k) parts[k] = load(scratch.partial.at(q, j + k));
            store(scratch.taps.row(q, i) + j, sums_of_lanes<A>(parts));
          }
      });
}

// The transposed blend: weights[q][i][j] = G of tap (i, j).
template <class A>
void tap_weights(const Window<A>& window, int q, const TapRows<A>& grads, const TapRows<A>& weights) {
  const A wx = window.wx, wy = window.wy;
  for (int64_t j = 0; j < weights.length; j += lanes<A>) {
    Vector<A> above{};
    for (int64_t i = 0; i + 1 < weights.rows; ++i) {
      const A* const at = grads.row(q, i) + j;
      const Vector<A> row = (1 - wx) * load(at + 1) + wx * load(at);
      store(weights.row(q, i) + j, (1 - wy) * row + wy * above);
      above = row;
    }
    store(weights.row(q, weights.rows - 1) + j, wy * above);
  }
}

// d(sum of grads * window) by the position on the level.
template <class A>
void position_grad(const Window<A>& window, int q, const TapRows<A>& taps, const TapRows<A>& grads, A* grad_x,
                   A* grad_y) {
  const A wx = window.wx, wy = window.wy;
  Vector<A> sum_x{}, sum_y{};
  for (int64_t i = 0; i + 1 < taps.rows; ++i)
    for (int64_t j = 0; j + 1 < taps.length; j += lanes<A>) {
      const A *const upper = taps.row(q, i) + j, *const lower = taps.row(q, i + 1) + j;
      const Vector<A> grad = load(grads.row(q, i) + 1 + j);
      const Vector<A> step_upper = load(upper + 1) - load(upper), step_lower = load(lower + 1) - load(lower);
      sum_x += grad * ((1 - wy) * step_upper + wy * step_lower);
      sum_y += grad * ((load(lower) + wx * step_lower) - (load(upper) + wx * step_upper));
    }
  *grad_x = sum_lanes<A>(sum_x);
  *grad_y = sum_lanes<A>(sum_y);
}

// ---- grad_fmap1: weighted sums of J neighbouring pixels, for one or two queries -------------------------------------

// One vector of channels, n of them unless Full; b starts Shift pixels after a.
template <class E, int J, int Shift, bool Pair, bool Full, class A>
inline __attribute__((always_inline)) void add_step(const Vector<A> (&weights_a)[J], const Vector<A> (&weights_b)[J],
                                                    const E* pixels, int64_t stride, int64_t n, A* sums_a, A* sums_b) {
  Vector<A> a[2] = {load(sums_a), {}}, b[2] = {};
  if constexpr (Pair) b[0] = load(sums_b);
#pragma GCC unroll 16
  for (int j = 0; j < J + Shift; ++j) {
    Vector<A> pixel = Full ? load_wide(pixels + j * stride) : load_wide(pixels + j * stride, n);
    keep(pixel);
    if (j < J) a[j % 2] += weights_a[j] * pixel;
    if (Pair && j >= Shift) b[(j - Shift) % 2] += weights_b[j - Shift] * pixel;
  }
  store(sums_a, a[0] + a[1]);
  if constexpr (Pair) store(sums_b, b[0] + b[1]);
}

// sums_a += weight_a[j] * pixel j; sums_b likewise where Pair.
template <class E, int J, int Shift, bool Pair, class A>
void add_row(const A* weight_a, const A* weight_b, const E* pixels, int64_t stride, int64_t channels, A* sums_a,
             A* sums_b) {
  Vector<A> a[J], b[J];
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) {
    a[j] = Vector<A>{} + weight_a[j];
    b[j] = Vector<A>{} + (Pair ? weight_b[j] : A(0));
  }
  int64_t c = 0;
  for (; c + lanes<A> <= channels; c += lanes<A>)
    add_step<E, J, Shift, Pair, true>(a, b, pixels + c, stride, 0, sums_a + c, sums_b + c);
  if (c < channels) add_step<E, J, Shift, Pair, false>(a, b, pixels + c, stride, channels - c, sums_a + c, sums_b + c);
}

template <class E>
struct AddTable {
  using A = accumulate_t<E>;
  using Row = void (*)(const A*, const A*, const E*, int64_t, int64_t, A*, A*);
  template <int Shift, bool Pair, int... J>
  static Row row(int pixels, std::integer_sequence<int, J...>) {
    static constexpr Row table[] = {add_row<E, J + 1, Shift, Pair, A>...};
    return table[pixels - 1];
  }
};

// sums of every query of the tile += its weights times the pixels of its window; the walk is that of tile_products.
template <class E, class A = accumulate_t<E>>
void tile_sums(const LevelView<E>& level, const Window<A>* windows, int count, int64_t channels,
               const Scratch<A>& scratch) {
  using Table = AddTable<E>;
  constexpr auto row_sizes = std::make_integer_sequence<int, kRowBlock>();
  constexpr auto pair_sizes = std::make_integer_sequence<int, kPairBlock>();
  const TapRows<A>& weights = scratch.weights;
  for (int i = 0; i < weights.rows; ++i) {
    for (int q = 0; q < count; ++q) {
      const Window<A>& window = windows[q];
      if (!window.live() || i < window.top || i >= window.bottom) continue;
      int shift = 0;
      const bool pair = q + 1 < count && pairable(window, windows[q + 1], &shift);
      A *const sums_a = scratch.sums + q * scratch.sum_stride, *const sums_b = sums_a + scratch.sum_stride;
      each_block(window.right - window.left, pair ? kPairBlock : kRowBlock, [&](int first, int size) {
        const auto run = !pair   ? Table::template row<0, false>(size, row_sizes)
                         : shift ? Table::template row<1, true>(size, pair_sizes)
                                 : Table::template row<0, true>(size, pair_sizes);
        const A* const weight_a = weights.row(q, i) + window.left + first;
        const A* const weight_b = pair ? weights.row(q + 1, i) + windows[q + 1].left + first : nullptr;
        run(weight_a, weight_b, level.tap(window, i, window.left + first), level.stride_x, channels, sums_a, sums_b);
      });
      if (pair) ++q;
    }
  }
}

// The gradients of a tile of queries (b, y, x ... x + count - 1): grad_fmap1 over all centres and levels, grad_coords.
template <class E, class A = accumulate_t<E>>
void tile_query_grads(const CorrLookup& op, const CorrLookupQueryGrads& grads, int64_t b, int64_t y, int64_t x,
                      int count, const Scratch<A>& scratch) {
  const FeatureMap& map1 = op.fmap1;
  const int64_t plane = map1.height * map1.width, at = y * map1.width + x;
  const E* const fmap1 = static_cast<const E*>(map1.data) + b * map1.stride_b + y * map1.stride_y + x * map1.stride_x;
  if (grads.fmap1) scratch.clear_sums();
  for (int64_t n = 0; n < op.centres; ++n) {
    A grad_x[kGradTile] = {}, grad_y[kGradTile] = {};
    for (int l = 0; l < op.num_levels; ++l) {
      Window<A> windows[kGradTile];
      for (int q = 0; q < count; ++q) windows[q] = place_window<A>(op, l, b, n, y, x + q);
      const LevelView<E> level(op.levels[l], b);
      read_grads(op, grads.grad, l, query_offset(grads.grad, b, n, y, x), count, scratch.grads);
      if (grads.fmap1) {
        for (int q = 0; q < count; ++q) tap_weights(windows[q], q, scratch.grads, scratch.weights);
        tile_sums<E>(level, windows, count, op.channels, scratch);
      }
      if (!grads.coords) continue;
      tile_taps<E>(fmap1, map1.stride_x, level, windows, count, op.channels, scratch);
      const A shrink = A(1) / static_cast<A>(int64_t(1) << l);
      for (int q = 0; q < count; ++q) {
        if (!windows[q].live()) continue;
        A level_x, level_y;
        position_grad(windows[q], q, scratch.taps, scratch.grads, &level_x, &level_y);
        grad_x[q] += shrink * level_x;
        grad_y[q] += shrink * level_y;
      }
    }
    if (!grads.coords) continue;
    dispatch_element(op.coords.dtype, [&](auto element) {
      auto* const out = static_cast<decltype(element)*>(grads.coords) + (b * op.centres + n) * 2 * plane + at;
      narrow_row(grad_x, out, count);
      narrow_row(grad_y, out + plane, count);
    });
  }
  if (!grads.fmap1) return;
  E* const out = static_cast<E*>(grads.fmap1) + (b * plane + at) * op.channels;
  for (int q = 0; q < count; ++q) narrow_row(scratch.sums + q * scratch.sum_stride, out + q * op.channels, op.channels);
}

// ---- grad of a level ------------------------------------------------------------------------------------------------

// One query of a level: its place in the sorted order and its weights there.
template <class E, class A = accumulate_t<E>>
void tile_weights(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t n, int64_t y, int64_t x, int count,
                  const Scratch<A>& scratch) {
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
                 const Scratch<A>& scratch) {
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

// Calls f(x, count) for the tiles of a row.
template <class F>
void each_tile(int64_t width, int64_t tile, const F& f) {
  for (int64_t x = 0; x < width; x += tile) f(x, static_cast<int>(width - x < tile ? width - x : tile));
}

}  // namespace

int64_t corr_lookup_backward_scratch(const CorrLookup& op) {
  return op.dtype == Element::f64 ? Scratch<double>::bytes(op) : Scratch<float>::bytes(op);
}

void corr_lookup_query_grads(const CorrLookup& op, const CorrLookupQueryGrads& grads, int64_t begin, int64_t end,
                             void* memory) {
  dispatch_element(op.dtype, [&](auto element) {
    using E = decltype(element);
    const Scratch<accumulate_t<E>> scratch(op, memory);
    for (int64_t row = begin; row < end; ++row)
      each_tile(op.fmap1.width, kGradTile, [&](int64_t x, int count) {
        tile_query_grads<E>(op, grads, row / op.fmap1.height, row % op.fmap1.height, x, count, scratch);
      });
  });
}

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
  dispatch_element(op.dtype, [&](auto element) {
    using E = decltype(element);
    const Scratch<accumulate_t<E>> scratch(op, memory);
    for (int64_t row = begin; row < end; ++row)
      each_tile(op.fmap1.width, kGradTile, [&](int64_t x, int count) {
        tile_weights<E>(op, scatter, row / op.fmap1.height, row % op.fmap1.height, x, count, scratch);
      });
  });
}

void corr_lookup_gather(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t begin, int64_t end,
                        void* memory) {
  dispatch_element(op.dtype, [&](auto element) {
    using E = decltype(element);
    const Scratch<accumulate_t<E>> scratch(op, memory);
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
