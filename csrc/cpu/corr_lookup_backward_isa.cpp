// corr_lookup, backward of the queries. With G = the gradient of the integer taps (the transposed blend of the incoming
// gradient): grad_fmap1[q] = sum over the taps p of G[q, p] fmap2[p], and grad_coords[q] from the recomputed taps, tile
// by tile.
#include "cpu/corr_tap_grads_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

// taps[q][i][j] = <fmap1 of query q, pixel (i, j) of its window>, zero outside.
template <class E, class A = accumulate_t<E>>
void tile_taps(const E* fmap1, int64_t stride1, const LevelView<E>& level, const Window<A>* windows, int count,
               int64_t channels, const GradScratch<A>& scratch) {
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
               const GradScratch<A>& scratch) {
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
                      int count, const GradScratch<A>& scratch) {
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

}  // namespace

int64_t corr_lookup_backward_scratch(const CorrLookup& op) {
  return op.dtype == Element::f64 ? GradScratch<double>::bytes(op) : GradScratch<float>::bytes(op);
}

void corr_lookup_query_grads(const CorrLookup& op, const CorrLookupQueryGrads& grads, int64_t begin, int64_t end,
                             void* memory) {
  each_query_tile(op, begin, end, memory,
                  [&](auto element, int64_t b, int64_t y, int64_t x, int count, const auto& scratch) {
                    tile_query_grads<decltype(element)>(op, grads, b, y, x, count, scratch);
                  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
