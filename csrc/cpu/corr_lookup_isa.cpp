// corr_lookup, forward: per tile of neighbouring queries and level, the taps of every window, then the blend.
#include "cpu/corr_lookup_isa.h"

#include "cpu/corr_window_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

constexpr int at_most(int value, int limit) { return value < limit ? value : limit; }

template <class A>
TapRows<A> tile_rows(const CorrLookup& op, void* scratch) {
  return {static_cast<A*>(scratch), kMaxTile, op.window_y() + 1, op.window_x() + 1, 0};
}

// The features of a tile of queries, [count, C], where fmap1 holds them apart (NCHW): a tile at a time costs a few
// percent of the lookup and no memory, a copy of the map in this layout as much as the map itself.
// Blocks of channels, so that the strided stores stay in the first-level cache; the lines of the next tile, one row
// below, are asked for meanwhile, because no hardware prefetcher follows a stream per channel.
template <class E>
const E* pack_tile(const E* fmap1, const FeatureMap& map, int count, int64_t channels, E* packed) {
  constexpr int64_t block = 16;
  for (int64_t first = 0; first < channels; first += block) {
    const int64_t last = first + block < channels ? first + block : channels;
    for (int64_t c = first; c < last; ++c) {
      const E* const below = fmap1 + c * map.stride_c + map.stride_y;
      __builtin_prefetch(below);
      __builtin_prefetch(below + (count - 1) * map.stride_x);
    }
    for (int q = 0; q < count; ++q)
      for (int64_t c = first; c < last; ++c) packed[q * channels + c] = fmap1[c * map.stride_c + q * map.stride_x];
  }
  return packed;
}

// Where the windows of a tile go: channel k of its first query is first[k * plane].
template <class Out>
struct Target {
  Out* first;
  int64_t plane;
  bool stream;  // write past the caches
};

// Where a run of queries is a cache line of its own and the output too large to be kept, streaming saves reading the
// lines that are about to be overwritten: up to a seventh of the time of a lookup.
template <class Out, class A>
bool streams(const CorrLookup& op, const CorrLookupOutput& out) {
  constexpr int64_t smallest = 4 << 20, line = 64;
  const int64_t plane = op.fmap1.height * op.fmap1.width * static_cast<int64_t>(sizeof(Out));
  return std::is_same_v<Out, A> && kVectorBytes == line && plane % line == 0 &&
         reinterpret_cast<uintptr_t>(out.data) % line == 0 &&
         op.batch * op.centres * op.num_levels * op.window() * plane >= smallest;
}

template <class Out, class A>
inline void write_run(const Target<Out>& target, int64_t offset, Vector<A> values, int count) {
  Out* const out = target.first + offset;
  if constexpr (std::is_same_v<Out, A>) {
#if DAFLOW_ISA_LEVEL >= 2
    if (target.stream && count == lanes<A> && reinterpret_cast<uintptr_t>(out) % kVectorBytes == 0)
      return _mm512_stream_si512(reinterpret_cast<__m512i*>(out), (__m512i)values);
#endif
    if (count == lanes<A>) return store(out, values);
  }
  A run[lanes<A>];
  store(run, values);
  narrow_row(run, out, count);
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

// The bilinear weights of up to lanes<A> queries of a tile, from `first` on; those along y times the scale.
template <class A>
struct BlendWeights {
  A right[lanes<A>], upper[lanes<A>], lower[lanes<A>];

  BlendWeights() = default;
  BlendWeights(const Window<A>* windows, int count, A scale) : right{}, upper{}, lower{} {
    for (int q = 0; q < count; ++q) {
      right[q] = windows[q].wx;
      upper[q] = scale * (1 - windows[q].wy);
      lower[q] = scale * windows[q].wy;
    }
  }
};

// Blends row i of the taps of up to lanes<A> queries along x, in place, and with the row above it along y to row i - 1
// of their windows. A vector is a row of one window, then is transposed, and holds neighbouring queries in the output.
template <class Out, class A>
void blend_row(const CorrLookup& op, const BlendWeights<A>& weights, int first, int count, int i,
               const TapRows<A>& taps, const Target<Out>& target) {
  constexpr int L = lanes<A>;
  const int ny = op.window_y(), nx = op.window_x();
  const int64_t step_x = target.plane * (op.x_slow ? ny : 1), step_y = target.plane * (op.x_slow ? 1 : nx);
  for (int j = 0; j < nx; j += L) {
    Vector<A> run[L];
#pragma GCC unroll 16
    for (int q = 0; q < L; ++q) {
      A* const at = taps.row(first + q, i) + j;
      run[q] = (1 - weights.right[q]) * load(at) + weights.right[q] * load(at + 1);
      store(at, run[q]);
    }
    if (i == 0) continue;
#pragma GCC unroll 16
    for (int q = 0; q < L; ++q)
      run[q] = weights.upper[q] * load(taps.row(first + q, i - 1) + j) + weights.lower[q] * run[q];
    transpose<A>(run);
    const int columns = nx - j < L ? nx - j : L;
    for (int c = 0; c < columns; ++c) write_run<Out, A>(target, (j + c) * step_x + (i - 1) * step_y, run[c], count);
  }
}

// The windows of the queries (b, n, y, x ... x + count - 1) at every level.
template <class P, class Out>
void lookup_tile(const CorrLookup& op, Out* out, bool stream, int64_t item, int64_t y, int64_t x, int count,
                 const TapRows<typename P::Sum>& taps) {
  using E = typename P::Element;
  using A = typename P::Sum;
  constexpr int L = lanes<A>;
  const FeatureMap& map1 = op.fmap1;
  const int64_t b = item / op.centres, n = item % op.centres, plane = map1.height * map1.width;
  const E* fmap1 = static_cast<const E*>(map1.data) + b * map1.stride_b + y * map1.stride_y + x * map1.stride_x;
  int64_t stride1 = map1.stride_x;
  Ahead queries_below;
  if (map1.stride_c != 1) {
    fmap1 = pack_tile(fmap1, map1, count, op.channels, reinterpret_cast<E*>(taps.data + taps.size()));
    stride1 = op.channels;
  } else if (y + 1 < map1.height) {
    const int64_t bytes = count * stride1 * static_cast<int64_t>(sizeof(E));
    queries_below = {fmap1 + map1.stride_y, bytes, op.num_levels * taps.rows};
  }
  for (int l = 0; l < op.num_levels; ++l) {
    Window<A> windows[kMaxTile];
    for (int q = 0; q < count; ++q) windows[q] = place_window<A>(op, l, b, n, y, x + q);
    BlendWeights<A> weights[kMaxTile / L];
    for (int q = 0; q < count; q += L) weights[q / L] = {windows + q, at_most(count - q, L), static_cast<A>(op.scale)};
    const int64_t first = (item * op.num_levels + l) * op.window() * plane + y * map1.width + x;
    const Target<Out> target{out + first, plane, stream};
    if (!stream) prefetch(target, op.window(), count);
    const LevelView<E> level(op.levels[l], b);
    Ahead pixels_below = row_below(level, op.levels[l].height, windows, count, taps.rows);
    tile_taps<P>(fmap1, stride1, level, windows, count, op.channels, taps, [&](int i) {
      pixels_below.step();
      queries_below.step();
      for (int q = 0; q < count; q += L)
        blend_row<Out, A>(op, weights[q / L], q, at_most(count - q, L), i, taps, {target.first + q, plane, stream});
    });
  }
}

// Rows [begin, end) of one item. Strip by strip and downwards: the pixels that ten rows of queries share are then still
// in the second-level cache, also where ten whole rows of the level are not.
// The strips are cut so that every full run of the output starts a cache line.
template <class P, class Out>
void lookup_band(const CorrLookup& op, const CorrLookupOutput& out, int64_t item, int64_t begin, int64_t end,
                 void* scratch) {
  using A = typename P::Sum;
  static_assert(kMaxTile % lanes<A> == 0);
  const TapRows<A> taps = tile_rows<A>(op, scratch);
  const int64_t width = op.fmap1.width;
  const bool stream = streams<Out, A>(op, out);
  for (int64_t strip = 0; strip < width + kMaxTile; strip += kMaxTile)
    for (int64_t y = begin; y < end; ++y) {
      const int64_t from = strip - y * width % kMaxTile, x = from < 0 ? 0 : from;
      const int64_t to = from + kMaxTile < width ? from + kMaxTile : width;
      if (x < to) lookup_tile<P>(op, static_cast<Out*>(out.data), stream, item, y, x, static_cast<int>(to - x), taps);
    }
#if DAFLOW_ISA_LEVEL >= 2
  if (stream) _mm_sfence();
#endif
}

}  // namespace

int64_t corr_lookup_scratch(const CorrLookup& op) {
  const int64_t packed = op.fmap1.stride_c == 1 ? 0 : kMaxTile * op.channels;  // behind the taps, at most their type
  return op.dtype == Element::f64 ? (tile_rows<double>(op, nullptr).size() + packed) * sizeof(double)
                                  : (tile_rows<float>(op, nullptr).size() + packed) * sizeof(float);
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
