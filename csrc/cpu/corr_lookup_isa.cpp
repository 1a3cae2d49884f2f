// corr_lookup, forward: per tile of neighbouring queries and level, the taps of every window, then the blend.
#include "cpu/corr_lookup_isa.h"

#include "cpu/corr_window_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

template <class A>
TapRows<A> tile_rows(const CorrLookup& op, void* scratch) {
  return {static_cast<A*>(scratch), kMaxTile, op.window_y() + 1, op.window_x() + 1, 0};
}

template <class Out, class A>
inline void write_run(Vector<A> values, Out* out, int count) {
  if constexpr (std::is_same_v<Out, A>) {
    if (count == lanes<A>) return store(out, values);
  }
  A run[lanes<A>];
  store(run, values);
  narrow_row(run, out, count);
}

// The bilinear blend of up to lanes<A> queries from first on, times scale, to out [window, plane]. Blended along x with
// a window row in a vector, then transposed, so that along y and in the output a vector holds neighbouring queries.
template <class Out, class A>
void blend_windows(const CorrLookup& op, const Window<A>* windows, int first, int count, const TapRows<A>& taps,
                   Out* out, int64_t plane) {
  constexpr int L = lanes<A>;
  const A scale = static_cast<A>(op.scale);
  const int ny = op.window_y(), nx = op.window_x();
  const int64_t step_x = plane * (op.x_slow ? ny : 1), step_y = plane * (op.x_slow ? 1 : nx);
  Vector<A> wx[L], upper{}, lower{};
  for (int q = 0; q < L; ++q) {
    const Window<A> window = q < count ? windows[first + q] : Window<A>{};
    wx[q] = Vector<A>{} + window.wx;
    upper[q] = scale * (1 - window.wy);
    lower[q] = scale * window.wy;
  }
  for (int j = 0; j < nx; j += L) {
    const int columns = nx - j < L ? nx - j : L;
    Vector<A> above[L];
    for (int i = 0; i <= ny; ++i) {
      Vector<A> row[L];
#pragma GCC unroll 16
      for (int q = 0; q < L; ++q) {
        const A* const at = taps.row(first + q, i) + j;
        row[q] = (1 - wx[q]) * load(at) + wx[q] * load(at + 1);
      }
      transpose<A>(row);
      Out* const target = out + j * step_x + (i - 1) * step_y;
      for (int c = 0; i > 0 && c < columns; ++c)
        write_run<Out, A>(upper * above[c] + lower * row[c], target + c * step_x, count);
      for (int c = 0; c < L; ++c) above[c] = row[c];
    }
  }
}

template <class P>
void lookup_row(const CorrLookup& op, const CorrLookupOutput& out, int64_t row, void* scratch) {
  using E = typename P::Element;
  using A = typename P::Sum;
  static_assert(kMaxTile % lanes<A> == 0);
  const TapRows<A> taps = tile_rows<A>(op, scratch);
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
                   taps);
      const int64_t target = (item * op.num_levels + l) * window * plane + y * map1.width + x;
      dispatch_element(out.dtype, [&](auto element) {
        auto* const data = static_cast<decltype(element)*>(out.data) + target;
        for (int q = 0; q < count; q += lanes<A>)
          blend_windows(op, windows, q, count - q < lanes<A> ? count - q : lanes<A>, taps, data + q, plane);
      });
    }
  }
}

}  // namespace

int64_t corr_lookup_scratch(const CorrLookup& op) {
  return op.dtype == Element::f64 ? tile_rows<double>(op, nullptr).size() * sizeof(double)
                                  : tile_rows<float>(op, nullptr).size() * sizeof(float);
}

void corr_lookup_rows(const CorrLookup& op, const CorrLookupOutput& out, int64_t begin, int64_t end, void* scratch) {
  dispatch_element(op.dtype, [&](auto element) {
    for (int64_t row = begin; row < end; ++row) lookup_row<Products<decltype(element)>>(op, out, row, scratch);
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
