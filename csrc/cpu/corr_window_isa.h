// The windows of a tile of neighbouring queries, and the products of every query with the (n + 1)^2 integer taps of its
// window; shared by the forward and backward kernels of corr_lookup; for *_isa.cpp only.
#pragma once

#include "common/bilinear.h"
#include "cpu/corr_lookup_isa.h"
#include "cpu/vector_isa.h"

namespace daflow {
namespace DAFLOW_ISA {

constexpr int kMaxTile = 16;  // queries of a tile: neighbours along x, whose windows overlap in the cache

// Where one query reads one level.
template <class A>
struct Window {
  int x, y;                      // first tap, may be outside
  int left, right, top, bottom;  // the taps [left, right) x [top, bottom) of the window are inside; empty where dead
  A wx, wy;                      // weight of the right / lower tap

  bool live() const { return left < right && top < bottom; }
};

template <class A>
inline A read_coordinate(const QueryTensor& coords, int64_t offset) {
  if (coords.dtype == Element::f64) return static_cast<A>(static_cast<const double*>(coords.data)[offset]);
  return static_cast<A>(static_cast<const float*>(coords.data)[offset]);
}

inline int64_t query_offset(const QueryTensor& tensor, int64_t b, int64_t n, int64_t y, int64_t x) {
  return b * tensor.stride_b + n * tensor.stride_n + y * tensor.stride_y + x * tensor.stride_x;
}

// The window of query (b, n, y, x) at a level.
template <class A>
inline Window<A> place_window(const CorrLookup& op, int level, int64_t b, int64_t n, int64_t y, int64_t x) {
  const int width = static_cast<int>(op.levels[level].width), height = static_cast<int>(op.levels[level].height);
  const int64_t at = query_offset(op.coords, b, n, y, x);
  const A shrink = A(1) / static_cast<A>(int64_t(1) << level);
  const Split<A> split_x = split(read_coordinate<A>(op.coords, at) * shrink, width, op.radius_x);
  const Split<A> split_y = split(read_coordinate<A>(op.coords, at + op.coords.stride_k) * shrink, height, op.radius_y);
  Window<A> window{};
  if (!split_x.live || !split_y.live) return window;
  window.x = split_x.first - op.radius_x;
  window.y = split_y.first - op.radius_y;
  window.wx = split_x.fraction;
  window.wy = split_y.fraction;
  const int taps_x = op.window_x() + 1, taps_y = op.window_y() + 1;
  window.left = window.x < 0 ? -window.x : 0;
  window.right = width - window.x < taps_x ? width - window.x : taps_x;
  window.top = window.y < 0 ? -window.y : 0;
  window.bottom = height - window.y < taps_y ? height - window.y : taps_y;
  return window;
}

// The products of the queries of a tile with the taps of one window row, each a vector whose lanes are yet to be added
// up, which is cheaper for many at once. The taps after the last, up to a multiple of the lanes, are zeros: of fresh
// scratch, never written.
template <class A>
struct PartialRow {
  static constexpr int64_t stride = kMaxTile * lanes<A>;  // from tap to tap
  A* data;                                                // [taps, queries, lanes]
  int64_t length;

  PartialRow(A* memory, int64_t length) : data(memory), length(length) {}
  A* at(int64_t q, int64_t j) const { return data + j * stride + q * lanes<A>; }
  A* end() const { return at(0, round_up<int64_t>(length, lanes<A>)); }
  void clear(int q) const {
    for (int64_t j = 0; j < length; ++j) store(at(q, j), Vector<A>{});
  }
};

// One level of one batch item.
template <class E>
struct LevelView {
  const E* data;
  int64_t stride_y, stride_x;

  LevelView(const FeatureMap& map, int64_t b)
      : data(static_cast<const E*>(map.data) + b * map.stride_b), stride_y(map.stride_y), stride_x(map.stride_x) {}
  template <class A>
  const E* tap(const Window<A>& window, int64_t row, int64_t column) const {
    return data + (window.y + row) * stride_y + (window.x + column) * stride_x;
  }
};

// ---- dot products of one or two queries with J neighbouring pixels --------------------------------------------------

// sums[j] += products of `step` channels (n of them unless Full); b starts Shift pixels after a.
template <class P, int J, int Shift, bool Full, class E>
inline __attribute__((always_inline)) void dot_step(Vector<typename P::Sum> (&sums_a)[J],
                                                    Vector<typename P::Sum> (&sums_b)[J], const E* a, const E* b,
                                                    const E* pixels, int64_t stride, int64_t n) {
  const auto read = [n](const E* p) {
    if constexpr (Full) return P::load(p);
    return P::load(p, n);
  };
  const typename P::Operand feature_a = read(a), feature_b = read(b);
#pragma GCC unroll 16
  for (int j = 0; j < J + Shift; ++j) {
    typename P::Operand pixel = read(pixels + j * stride);
    keep(pixel);
    if (j < J) P::multiply_add(sums_a[j], feature_a, pixel);
    if (j >= Shift) P::multiply_add(sums_b[j - Shift], feature_b, pixel);
  }
}

template <class A, int J>
inline void store_taps(const Vector<A> (&sums)[J], A* out) {
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) store(out + j * PartialRow<A>::stride, sums[j]);
}

template <class P, int J, class E, class A>
void dot_row(const E* a, const E*, const E* pixels, int64_t stride, int64_t channels, A* out, A*) {
  Vector<A> sums[J] = {};
  int64_t c = 0;
  for (; c + P::step <= channels; c += P::step) {
    const typename P::Operand feature = P::load(a + c);
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) P::multiply_add(sums[j], feature, P::load(pixels + j * stride + c));
  }
  if (const int64_t n = channels - c; n > 0) {
    const typename P::Operand feature = P::load(a + c, n);
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) P::multiply_add(sums[j], feature, P::load(pixels + j * stride + c, n));
  }
  store_taps(sums, out);
}

constexpr int kRowBlock = 10;                                // pixels of a row at once: a RAFT window is one block
constexpr int kPairBlock = kVectorRegisters >= 32 ? 10 : 5;  // two queries need 2 J sums

template <class P, int J, int Shift, class E, class A>
void dot_row_pair(const E* a, const E* b, const E* pixels, int64_t stride, int64_t channels, A* out_a, A* out_b) {
  if constexpr (J > kPairBlock) {
    constexpr int half = (J + 1) / 2;
    constexpr int64_t step = half * PartialRow<A>::stride;
    dot_row_pair<P, half, Shift>(a, b, pixels, stride, channels, out_a, out_b);
    return dot_row_pair<P, J - half, Shift>(a, b, pixels + half * stride, stride, channels, out_a + step, out_b + step);
  }
  Vector<A> sums_a[J] = {}, sums_b[J] = {};
  int64_t c = 0;
  for (; c + P::step <= channels; c += P::step)
    dot_step<P, J, Shift, true>(sums_a, sums_b, a + c, b + c, pixels + c, stride, 0);
  if (c < channels) dot_step<P, J, Shift, false>(sums_a, sums_b, a + c, b + c, pixels + c, stride, channels - c);
  store_taps(sums_a, out_a);
  store_taps(sums_b, out_b);
}

// The functions above by their number of pixels.
template <class P>
struct DotTable {
  using E = typename P::Element;
  using A = typename P::Sum;
  using Row = void (*)(const E*, const E*, const E*, int64_t, int64_t, A*, A*);
  Row row[kRowBlock];

  template <int... J>
  static constexpr DotTable single(std::integer_sequence<int, J...>) {
    return {{dot_row<P, J + 1, E, A>...}};
  }
  template <int Shift, int... J>
  static constexpr DotTable pair(std::integer_sequence<int, J...>) {
    return {{dot_row_pair<P, J + 1, Shift, E, A>...}};
  }
};
template <class P>
constexpr DotTable<P> kDotTables[] = {DotTable<P>::single(std::make_integer_sequence<int, kRowBlock>()),
                                      DotTable<P>::template pair<0>(std::make_integer_sequence<int, kRowBlock>()),
                                      DotTable<P>::template pair<1>(std::make_integer_sequence<int, kRowBlock>())};

// Calls f(first, size) for blocks of at most `most` pixels that cover [0, pixels), none of them much smaller.
template <class F>
inline void each_block(int pixels, int most, const F& f) {
  int first = 0;
  for (int left = pixels; left > 0;) {
    const int size = left <= most ? left : (left >= 2 * most ? most : (left + 1) / 2);
    f(first, size);
    first += size;
    left -= size;
  }
}

// Two neighbouring queries whose windows read the same pixels, or shifted by one: they share their loads.
template <class A>
inline bool pairable(const Window<A>& a, const Window<A>& b, int* shift) {
  *shift = (b.x + b.left) - (a.x + a.left);
  return a.y == b.y && (*shift == 0 || *shift == 1) && a.right - a.left == b.right - b.left && a.live() && b.live();
}

// One query of a tile, or two that share their loads: what they need of any window row.
template <class P>
struct Run {
  using E = typename P::Element;
  using A = typename P::Sum;
  const DotTable<P>* table;
  const E *a, *b, *pixels;  // pixels: of window row 0
  A *out_a, *out_b;
  int size, top, bottom, first, count;  // count: one query or two
};

// For every window row i, partial.at(q, j) = the lanes of <fmap1 of query q, pixel (i, j) of its window>, zero outside;
// then row_done(i), and run_done() after each run of it. The queries take turns at one window row, so that the pixels
// they share stay in the first-level cache; nothing depends on their flow being smooth.
template <class P, class RunDone, class RowDone>
inline void tile_products(const typename P::Element* fmap1, int64_t stride1,
                          const LevelView<typename P::Element>& level, const Window<typename P::Sum>* windows,
                          int count, int rows, int64_t channels, const PartialRow<typename P::Sum>& partial,
                          const RunDone& run_done, const RowDone& row_done) {
  Run<P> runs[kMaxTile];
  int n = 0;
  for (int q = 0; q < count; ++n) {
    const auto &window = windows[q], &next = windows[q + 1 < count ? q + 1 : q];
    int shift = 0;
    const bool pair = q + 1 < count && pairable(window, next, &shift);
    const auto* const a = fmap1 + q * stride1;
    const int size = window.right - window.left;
    runs[n] = {&kDotTables<P>[pair ? 1 + shift : 0],
               a,
               a + stride1,
               level.tap(window, 0, window.left),
               partial.at(q, window.left),
               partial.at(q + 1, next.left),
               size,
               window.top,
               size > 0 ? window.bottom : window.top,
               q,
               pair ? 2 : 1};
    if (size != partial.length) {
      partial.clear(q);
      if (pair) partial.clear(q + 1);
    }
    q += runs[n].count;
  }
  for (int i = 0; i < rows; ++i) {
    for (int r = 0; r < n; ++r) {
      const Run<P>& run = runs[r];
      const auto* const pixels = run.pixels + i * level.stride_y;
      if (i < run.top || i >= run.bottom) {
        partial.clear(run.first);
        if (run.count > 1) partial.clear(run.first + 1);
      } else if (run.size <= kRowBlock) {
        run.table->row[run.size - 1](run.a, run.b, pixels, level.stride_x, channels, run.out_a, run.out_b);
      } else {
        each_block(run.size, kRowBlock, [&](int first, int size) {
          const int64_t step = first * partial.stride;
          run.table->row[size - 1](run.a, run.b, pixels + first * level.stride_x, level.stride_x, channels,
                                   run.out_a + step, run.out_b + step);
        });
      }
      run_done();
    }
    row_done(i);
  }
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
