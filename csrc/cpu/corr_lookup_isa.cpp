// corr_lookup, forward: per tile of neighbouring queries and level, the taps of every window, then the blend.
#include "cpu/corr_lookup_isa.h"

#include "cpu/corr_window_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

// Scratch of a thread: the taps of a tile, two blended windows, and the tile's channels as runs along x.
template <class A>
struct Scratch {
  TapRows<A> taps, blended;
  A* channels;  // [window, kMaxTile]

  Scratch(const CorrLookup& op, void* memory)
      : taps(static_cast<A*>(memory), op.window_y() + 1, op.window_x() + 1),
        blended(taps.data + taps.size(kMaxTile, taps.rows, taps.length), taps.rows, taps.length),
        channels(blended.data + blended.size(1, taps.rows, taps.length)) {}
  static int64_t bytes(const CorrLookup& op) {
    const Scratch start(op, nullptr);
    return static_cast<int64_t>(sizeof(A)) * ((start.channels - start.taps.data) + op.window() * kMaxTile);
  }
};

// Bilinear blend of the taps of query q, times scale, into column q of scratch.channels.
template <class A>
void blend_window(const CorrLookup& op, const Window<A>& window, int q, const Scratch<A>& scratch) {
  const auto& [taps, blended, channels] = scratch;
  const A wx = window.wx, wy = window.wy, scale = static_cast<A>(op.scale);
  const int ny = op.window_y(), nx = op.window_x();
  for (int64_t i = 0; i <= ny; ++i)
    for (int64_t j = 0; j < nx; j += lanes<A>) {
      const A* const at = taps.row(q, i) + j;
      store(blended.row(0, i) + j, scale * ((1 - wx) * load(at) + wx * load(at + 1)));
    }
  for (int64_t i = 0; i < ny; ++i) {
    A* const row = blended.row(0, i);
    for (int64_t j = 0; j < nx; j += lanes<A>)
      store(row + j, (1 - wy) * load(row + j) + wy * load(blended.row(0, i + 1) + j));
    const int64_t first = op.x_slow ? i : i * nx, step = op.x_slow ? ny : 1;
    for (int64_t j = 0; j < nx; ++j) channels[(first + j * step) * kMaxTile + q] = row[j];
  }
}

template <class Out, class A>
void write_tile(const A* channels, int64_t window, int count, Out* out, int64_t plane) {
  for (int64_t k = 0; k < window; ++k) narrow_row(channels + k * kMaxTile, out + k * plane, count);
}

template <class P>
void lookup_row(const CorrLookup& op, const CorrLookupOutput& out, int64_t row, void* memory) {
  using E = typename P::Element;
  using A = typename P::Sum;
  const Scratch<A> scratch(op, memory);
  const FeatureMap& map1 = op.fmap1;
  const int64_t y = row % map1.height, item = row / map1.height, n = item % op.centres, b = item / op.centres;
  const int64_t window = op.window(), plane = map1.height * map1.width;
  const E* const row1 = static_cast<const E*>(map1.data) + b * map1.stride_b + y * map1.stride_y;
  for (int64_t x = 0; x < map1.width; x += kMaxTile) {
    const int count = static_cast<int>(map1.width - x < kMaxTile ? map1.width - x : kMaxTile);
    for (int l = 0; l < op.num_levels; ++l) {
      Window<A> windows[kMaxTile];
      for (int q = 0; q < count; ++q) windows[q] = place_window<A>(op, l, b, n, y, x + q);
      tile_taps<P>(row1 + x * map1.stride_x, map1.stride_x, LevelView<E>(op.levels[l], b), windows, count, op.channels,
                   scratch.taps);
      for (int q = 0; q < count; ++q) blend_window(op, windows[q], q, scratch);
      const int64_t first = ((item * op.num_levels + l) * window * map1.height + y) * map1.width + x;
      dispatch_element(out.dtype, [&](auto element) {
        using Out = decltype(element);
        write_tile(scratch.channels, window, count, static_cast<Out*>(out.data) + first, plane);
      });
    }
  }
}

}  // namespace

int64_t corr_lookup_scratch(const CorrLookup& op) {
  return op.dtype == Element::f64 ? Scratch<double>::bytes(op) : Scratch<float>::bytes(op);
}

void corr_lookup_rows(const CorrLookup& op, const CorrLookupOutput& out, int64_t begin, int64_t end, void* scratch) {
  dispatch_element(op.dtype, [&](auto element) {
    for (int64_t row = begin; row < end; ++row) lookup_row<Products<decltype(element)>>(op, out, row, scratch);
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
