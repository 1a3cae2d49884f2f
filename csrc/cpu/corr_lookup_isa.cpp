// corr_lookup, forward: per level and tile of neighbouring queries, the taps of every window row, then the blend.
#include "cpu/corr_lookup_isa.h"

#include "cpu/corr_window_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

constexpr int64_t kPackedChannels = 16;  // packed at once: a cache line of float32
constexpr int64_t kRowsAhead = 2;        // whose features are asked for meanwhile

// Scratch of a thread.
template <class A>
struct Scratch {
  PartialRow<A> partial;  // of the window row at hand
  A* above;               // [nx, kMaxTile] the row above it, blended along x
  A* packed;              // [rows, kMaxTile, C] features of a strip of queries, where fmap1 holds them apart

  Scratch(const CorrLookup& op, void* memory)
      : partial(static_cast<A*>(memory), op.window_x() + 1),
        above(partial.end()),
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

// Channels [first, first + n) of the features of a tile, where fmap1 holds them apart: packed[q, c].
template <class E>
inline void pack_tile(const E* fmap1, const FeatureMap& map, int count, int64_t first, int64_t n, int64_t channels,
                      E* packed) {
  using A = accumulate_t<E>;
  constexpr int64_t L = lanes<A>;
  int q = 0;
  if constexpr (std::is_same_v<E, A>)
    for (; map.stride_x == 1 && n == kPackedChannels && q + L <= count; q += L)
      for (int64_t c = first; c < first + n; c += L) {
        Vector<A> square[L];
#pragma GCC unroll 16
        for (int64_t i = 0; i < L; ++i) square[i] = load(fmap1 + (c + i) * map.stride_c + q);
        transpose<A>(square);
#pragma GCC unroll 16
        for (int64_t i = 0; i < L; ++i) store(packed + (q + i) * channels + c, square[i]);
      }
  for (; q < count; ++q)
    for (int64_t c = first; c < first + n; ++c) packed[q * channels + c] = fmap1[c * map.stride_c + q * map.stride_x];
}

// The features of a strip of queries, [rows, kMaxTile, C], where fmap1 holds them apart (NCHW): a strip at a time costs
// a few percent of the lookup and little memory, a copy of the map in this layout as much as the map itself.
// A few channels at a time and downwards: few pages and lines are then at work.
template <class E>
void pack_strip(const E* fmap1, const FeatureMap& map, int64_t strip, int64_t begin, int64_t end, int64_t channels,
                E* packed) {
  for (int64_t first = 0; first < channels; first += kPackedChannels) {
    const int64_t n = channels - first < kPackedChannels ? channels - first : kPackedChannels;
    for (int64_t y = begin; y < end; ++y) {
      const Tile tile = tile_of(strip, y, map.width);
      if (tile.count <= 0) continue;
      const E* const at = fmap1 + y * map.stride_y + tile.x * map.stride_x;
      for (int64_t c = first; c < first + n; ++c) __builtin_prefetch(at + c * map.stride_c + kRowsAhead * map.stride_y);
      pack_tile(at, map, tile.count, first, n, channels, packed + (y - begin) * kMaxTile * channels);
    }
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
  if constexpr (std::is_same_v<Out, A>)
    if (past_caches) return stream(out, values);
  store_narrow<A>(out, values, count);
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

// Tap j of the window row at hand, the queries side by side.
template <class A>
inline void sum_column(const PartialRow<A>& partial, int count, int64_t j, Vector<A> (&column)[kMaxTile / lanes<A>]) {
  constexpr int L = lanes<A>;
#pragma GCC unroll 4
  for (int q = 0; q < kMaxTile; q += L) {
    if (q >= count) break;
    Vector<A> parts[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) parts[i] = load(partial.at(q + i, j));
    column[q / L] = sums_of_lanes<A>(parts);
  }
}

// Blends row i of the taps along x, and with the row above it along y to row i - 1 of the windows.
template <class Out, class A>
void blend_row(const CorrLookup& op, const BlendWeights<A>& weights, int count, int i, const Scratch<A>& scratch,
               const Target<Out>& target) {
  constexpr int L = lanes<A>;
  const int64_t step = target.plane * (op.x_slow ? op.window_y() : 1);
  Out* out = target.first + (i - 1) * target.plane * (op.x_slow ? 1 : op.window_x());
  Vector<A> left[kMaxTile / L] = {}, right[kMaxTile / L] = {};
  sum_column(scratch.partial, count, 0, left);
  for (int64_t j = 0; j + 1 < scratch.partial.length; ++j, out += step) {
    A* const above = scratch.above + j * kMaxTile;
    sum_column(scratch.partial, count, j + 1, right);
#pragma GCC unroll 4
    for (int q = 0; q < kMaxTile; q += L) {
      const Vector<A> share = load(weights.right + q);
      const Vector<A> row = blend(1 - share, left[q / L], share, right[q / L]);
      if (i > 0 && q < count) {
        const Vector<A> value = blend(load(weights.upper + q), load(above + q), load(weights.lower + q), row);
        write_run<Out, A>(out + q, value, count - q, target.stream);
      }
      store(above + q, row);
      left[q / L] = right[q / L];
    }
  }
}

// The windows of a tile at one level.
template <class P, class Out>
void lookup_tile(const CorrLookup& op, Out* out, bool stream, int64_t item, int l, const Tile& tile,
                 const Queries<typename P::Element>& queries, const Scratch<typename P::Sum>& scratch) {
  using E = typename P::Element;
  using A = typename P::Sum;
  const int64_t y = tile.y, x = tile.x, plane = op.fmap1.height * op.fmap1.width;
  const int64_t b = item / op.centres, n = item % op.centres;
  const int count = tile.count;
  Window<A> windows[kMaxTile];
  for (int q = 0; q < count; ++q) windows[q] = place_window<A>(op, l, b, n, y, x + q);
  const BlendWeights<A> weights(windows, count, static_cast<A>(op.scale));
  const int64_t first = (item * op.num_levels + l) * op.window() * plane + y * op.fmap1.width + x;
  const Target<Out> target{out + first, plane, stream && count == kMaxTile};
  if (!target.stream) prefetch(target, op.window(), count);
  const LevelView<E> level(op.levels[l], b);
  const int rows = op.window_y() + 1, runs = rows * kMaxTile / 2;  // most queries come in pairs
  Ahead pixels_below = row_below(level, op.levels[l].height, windows, count, runs), queries_below;
  if (queries.below) queries_below = {queries.below, count * queries.stride * static_cast<int64_t>(sizeof(E)), runs};
  const auto run_done = [&] {
    pixels_below.step();
    queries_below.step();
  };
  const auto row_done = [&](int i) { blend_row(op, weights, count, i, scratch, target); };
  tile_products<P>(queries.data, queries.stride, level, windows, count, rows, op.channels, scratch.partial, run_done,
                   row_done);
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
    if (packs) pack_strip(fmap1, map, strip, begin, end, op.channels, packed);
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
