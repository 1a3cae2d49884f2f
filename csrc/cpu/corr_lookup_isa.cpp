// corr_lookup, forward: per level and tile of neighbouring queries, the taps of every window row, then the blend.
#include "cpu/corr_lookup_isa.h"

#include "cpu/corr_window_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

constexpr int at_most(int value, int limit) { return value < limit ? value : limit; }

// Scratch of a thread.
template <class A>
struct Scratch {
  TapRows<A> taps;  // the window row at hand
  A* columns;       // [nx + 1, kMaxTile] the same with the queries side by side
  A* above;         // [nx, kMaxTile] the row above it, blended along x
  A* packed;        // [rows, kMaxTile, C] features of a strip of queries, where fmap1 holds them apart

  Scratch(const CorrLookup& op, void* memory)
      : taps(static_cast<A*>(memory), kMaxTile, op.window_y() + 1, op.window_x() + 1, 0, 1),
        columns(taps.data + round_up<int64_t>(taps.size(), kMaxTile)),
        above(columns + round_up<int64_t>(taps.length, lanes<A>) * kMaxTile),
        packed(above + op.window_x() * kMaxTile) {}
  static int64_t bytes(const CorrLookup& op) {
    const A* const packed = Scratch(op, nullptr).packed;  // elements are at most as large as their sums
    const int64_t copied = op.fmap1.stride_c == 1 ? 0 : op.fmap1.height * kMaxTile * op.channels;
    return reinterpret_cast<intptr_t>(packed + copied);
  }
};

// A tile: `count` queries of one row, from x on.
struct Tile {
  int64_t y, x;
  int count;
};

// The part of row y in a strip: strips are cut so that every full run of the output starts a cache line.
inline Tile tile_of(int64_t strip, int64_t y, int64_t width) {
  const int64_t from = strip - y * width % kMaxTile, x = from < 0 ? 0 : from;
  const int64_t to = from + kMaxTile < width ? from + kMaxTile : width;
  return {y, x, static_cast<int>(to - x)};
}

// Features of a tile: query q at data + q * stride; those of the tile below start at `below`, null if there is none.
template <class E>
struct Queries {
  const E* data;
  const E* below;
  int64_t stride;
};

// The features of a tile, [count, C], where fmap1 holds them apart (NCHW): a strip at a time costs a few percent of the
// lookup and little memory, a copy of the map in this layout as much as the map itself.
// The lines of the next tile, one row below, are asked for meanwhile: no hardware prefetcher follows a stream per
// channel.
template <class E>
void pack_tile(const E* fmap1, const FeatureMap& map, int count, int64_t channels, E* packed) {
  using A = accumulate_t<E>;
  constexpr int64_t L = lanes<A>;
  const bool vectors = std::is_same_v<E, A> && map.stride_x == 1;
  for (int64_t first = 0; first < channels; first += L) {
    const int64_t last = first + L < channels ? first + L : channels;
    for (int64_t c = first; c < last; ++c) {
      const E* const below = fmap1 + c * map.stride_c + map.stride_y;
      __builtin_prefetch(below);
      __builtin_prefetch(below + (count - 1) * map.stride_x);
    }
    int q = 0;
    if constexpr (std::is_same_v<E, A>)
      for (; vectors && last - first == L && q + L <= count; q += L) {
        Vector<A> square[L];
#pragma GCC unroll 16
        for (int64_t i = 0; i < L; ++i) square[i] = load(fmap1 + (first + i) * map.stride_c + q);
        transpose<A>(square);
#pragma GCC unroll 16
        for (int64_t i = 0; i < L; ++i) store(packed + (q + i) * channels + first, square[i]);
      }
    for (; q < count; ++q)
      for (int64_t c = first; c < last; ++c) packed[q * channels + c] = fmap1[c * map.stride_c + q * map.stride_x];
  }
}

// Where the windows of a tile go: channel k of its first query is first[k * plane].
template <class Out>
struct Target {
  Out* first;
  int64_t plane;
  bool stream;  // write past the caches
};

// Where the run of a tile is whole cache lines and the output too large to be kept, streaming saves reading the lines
// that are about to be overwritten: up to a seventh of the time of a lookup.
template <class Out, class A>
bool streams(const CorrLookup& op, const CorrLookupOutput& out) {
  constexpr int64_t smallest = 4 << 20, line = 64, run = kMaxTile * static_cast<int64_t>(sizeof(Out));
  const int64_t plane = op.fmap1.height * op.fmap1.width * static_cast<int64_t>(sizeof(Out));
  return DAFLOW_ISA_LEVEL >= 1 && std::is_same_v<Out, A> && run % line == 0 && plane % line == 0 &&
         reinterpret_cast<uintptr_t>(out.data) % line == 0 &&
         op.batch * op.centres * op.num_levels * op.window() * plane >= smallest;
}

// The first `count` of the values.
template <class Out, class A>
inline void write_run(Out* out, Vector<A> values, int count, bool past_caches) {
  if constexpr (std::is_same_v<Out, A>) {
    if (past_caches) return stream(out, values);
    if (count >= lanes<A>) return store(out, values);
  }
  A run[lanes<A>];
  store(run, values);
  narrow_row(run, out, at_most(count, lanes<A>));
}

// Fetches the lines to be written while the taps are computed.
template <class Out>
void prefetch(const Target<Out>& target, int64_t window, int count) {
  for (int64_t k = 0; k < window; ++k) {
    __builtin_prefetch(target.first + k * target.plane, 1);
    __builtin_prefetch(target.first + k * target.plane + count - 1, 1);
  }
}

// Memory that will be read soon, asked for a share at a time between products: a tile's worth at once would stall.
struct Ahead {
  const char* next = nullptr;
  const char* end = nullptr;
  int64_t share = 0;

  Ahead() = default;
  Ahead(const void* begin, int64_t bytes, int64_t shares)
      : next(static_cast<const char*>(begin)), end(next + bytes), share(bytes / shares + 1) {}
  void step() {
    constexpr int64_t line = 64;
    for (const char* const stop = end - next < share ? end : next + share; next < stop; next += line)
      __builtin_prefetch(next, 0, 2);  // into the second-level cache
  }
};

// The pixels under the windows of a tile: what the tile below reads first.
template <class E, class A>
Ahead row_below(const LevelView<E>& level, int64_t height, const Window<A>* windows, int count, int64_t shares) {
  constexpr int widest = 4 * kMaxTile;        // further apart, the flow is not smooth and the guess worth nothing
  int left = 1 << 30, right = 0, bottom = 0;  // no level is that wide
  for (int q = 0; q < count; ++q) {
    const Window<A>& window = windows[q];
    if (!window.live()) continue;
    const int from = window.x + window.left, to = window.x + window.right, under = window.y + window.bottom;
    left = from < left ? from : left;
    right = to > right ? to : right;
    bottom = under > bottom ? under : bottom;
  }
  if (right <= left || right - left > widest || bottom >= height) return {};
  const int64_t bytes = (right - left) * level.stride_x * static_cast<int64_t>(sizeof(E));
  return {level.data + bottom * level.stride_y + left * level.stride_x, bytes, shares};
}

// The bilinear weights of the queries of a tile; those along y times the scale.
template <class A>
struct BlendWeights {
  A right[kMaxTile] = {}, upper[kMaxTile] = {}, lower[kMaxTile] = {};

  BlendWeights(const Window<A>* windows, int count, A scale) {
    for (int q = 0; q < count; ++q) {
      right[q] = windows[q].wx;
      upper[q] = scale * (1 - windows[q].wy);
      lower[q] = scale * windows[q].wy;
    }
  }
};

// Columns [j, j + Columns) of the window row at hand.
template <class A, int Columns>
void turn(const Scratch<A>& scratch, int count, int64_t j) {
  constexpr int L = lanes<A>;
  for (int first = 0; first < count; first += L) {
    Vector<A> run[L];
#pragma GCC unroll 16
    for (int q = 0; q < L; ++q) run[q] = load(scratch.taps.row(first + q, 0) + j);
    transpose<A>(run);
#pragma GCC unroll 16
    for (int c = 0; c < Columns; ++c) store(scratch.columns + (j + c) * kMaxTile + first, run[c]);
  }
}

// Blends row i of the taps along x, and with the row above it along y to row i - 1 of the windows.
template <class Out, class A>
void blend_row(const CorrLookup& op, const BlendWeights<A>& weights, int count, int i, const Scratch<A>& scratch,
               const Target<Out>& target) {
  constexpr int L = lanes<A>;
  for (int64_t j = 0; j < scratch.taps.length; j += L)
    scratch.taps.length - j <= 2 ? turn<A, 2>(scratch, count, j) : turn<A, L>(scratch, count, j);
  const int64_t step = target.plane * (op.x_slow ? op.window_y() : 1);
  Out* out = target.first + (i - 1) * target.plane * (op.x_slow ? 1 : op.window_x());
  for (int64_t j = 0; j + 1 < scratch.taps.length; ++j, out += step) {
    const A* const column = scratch.columns + j * kMaxTile;
    A* const above = scratch.above + j * kMaxTile;
#pragma GCC unroll 4
    for (int q = 0; q < kMaxTile; q += L) {
      const Vector<A> right = load(weights.right + q);
      const Vector<A> row = (1 - right) * load(column + q) + right * load(column + kMaxTile + q);
      if (i > 0 && q < count) {
        const Vector<A> value = load(weights.upper + q) * load(above + q) + load(weights.lower + q) * row;
        write_run<Out, A>(out + q, value, count - q, target.stream);
      }
      store(above + q, row);
    }
  }
}

// The windows of a tile at one level.
template <class P, class Out>
void lookup_tile(const CorrLookup& op, Out* out, bool stream, int64_t item, int l, const Tile& tile,
                 const Queries<typename P::Element>& queries, const Scratch<typename P::Sum>& scratch) {
  using E = typename P::Element;
  using A = typename P::Sum;
  const auto [y, x, count] = tile;
  const int64_t b = item / op.centres, n = item % op.centres, plane = op.fmap1.height * op.fmap1.width;
  Window<A> windows[kMaxTile];
  for (int q = 0; q < count; ++q) windows[q] = place_window<A>(op, l, b, n, y, x + q);
  const BlendWeights<A> weights(windows, count, static_cast<A>(op.scale));
  const int64_t first = (item * op.num_levels + l) * op.window() * plane + y * op.fmap1.width + x;
  const Target<Out> target{out + first, plane, stream && count == kMaxTile};
  if (!target.stream) prefetch(target, op.window(), count);
  const LevelView<E> level(op.levels[l], b);
  const int64_t rows = scratch.taps.rows;
  Ahead pixels_below = row_below(level, op.levels[l].height, windows, count, rows), queries_below;
  if (queries.below) queries_below = {queries.below, count * queries.stride * static_cast<int64_t>(sizeof(E)), rows};
  tile_taps<P>(queries.data, queries.stride, level, windows, count, op.channels, scratch.taps, [&](int i) {
    pixels_below.step();
    queries_below.step();
    blend_row(op, weights, count, i, scratch, target);
  });
}

// Rows [begin, end) of one item. Strip by strip, level by level and downwards: the pixels that ten rows of queries
// share are then still in the second-level cache, also where ten whole rows of the level are not.
template <class P, class Out>
void lookup_band(const CorrLookup& op, const CorrLookupOutput& out, int64_t item, int64_t begin, int64_t end,
                 void* memory) {
  using E = typename P::Element;
  using A = typename P::Sum;
  static_assert(kMaxTile % lanes<A> == 0);
  const Scratch<A> scratch(op, memory);
  const FeatureMap& map = op.fmap1;
  const E* const fmap1 = static_cast<const E*>(map.data) + item / op.centres * map.stride_b;
  E* const packed = reinterpret_cast<E*>(scratch.packed);
  const bool stream = streams<Out, A>(op, out), packs = map.stride_c != 1;
  const auto features = [&](const Tile& tile) {
    return packs ? packed + (tile.y - begin) * kMaxTile * op.channels
                 : fmap1 + tile.y * map.stride_y + tile.x * map.stride_x;
  };
  for (int64_t strip = 0; strip < map.width + kMaxTile; strip += kMaxTile) {
    for (int64_t y = begin; packs && y < end; ++y) {
      const Tile tile = tile_of(strip, y, map.width);
      if (tile.count > 0)
        pack_tile(fmap1 + y * map.stride_y + tile.x * map.stride_x, map, tile.count, op.channels,
                  packed + (y - begin) * kMaxTile * op.channels);
    }
    for (int l = 0; l < op.num_levels; ++l)
      for (int64_t y = begin; y < end; ++y) {
        const Tile tile = tile_of(strip, y, map.width), below = tile_of(strip, y + 1, map.width);
        if (tile.count <= 0) continue;
        const Queries<E> queries{features(tile), y + 1 < end ? features(below) : nullptr,
                                 packs ? op.channels : map.stride_x};
        lookup_tile<P>(op, static_cast<Out*>(out.data), stream, item, l, tile, queries, scratch);
      }
  }
#if DAFLOW_ISA_LEVEL >= 1
  if (stream) _mm_sfence();
#endif
}

}  // namespace

int64_t corr_lookup_scratch(const CorrLookup& op) {
  return op.dtype == Element::f64 ? Scratch<double>::bytes(op) : Scratch<float>::bytes(op);
}

void corr_lookup_rows(const CorrLookup& op, const CorrLookupOutput& out, int64_t begin, int64_t end, void* scratch) {
  const int64_t height = op.fmap1.height;
  dispatch_element(op.dtype, [&](auto element) {
    dispatch_element(out.dtype, [&](auto written) {
      for (int64_t row = begin; row < end;) {
        const int64_t item = row / height, top = item * height;
        const int64_t bottom = end < top + height ? end : top + height;
        lookup_band<Products<decltype(element)>, decltype(written)>(op, out, item, row - top, bottom - top, scratch);
        row = bottom;
      }
    });
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
