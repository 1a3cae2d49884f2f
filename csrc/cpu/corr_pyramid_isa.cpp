#include "cpu/corr_pyramid_isa.h"

#include "cpu/elements_isa.h"

namespace daflow {
namespace DAFLOW_ISA {
namespace {

constexpr int64_t kBlock = PyramidArgs::channel_block;

// Pixels [x, x + columns) of one row of one level, channels [c, c + channels).
template <class E>
struct RowView {
  E* data;
  int64_t stride_c, stride_x, columns, channels;
};

// Where a thread works: one band of one image and channel block, cut into tiles of columns.
struct Tile {
  int64_t image, channel, channels, column;

  // The part of row y of a level that lies in this tile.
  template <class E>
  RowView<E> row(const PyramidArgs& args, const PyramidLevel& level, int shift, int64_t y) const {
    const int64_t first = column >> shift;
    const int64_t whole = args.tile_columns() >> shift;
    const int64_t left = (args.width >> shift) - first;
    E* data = static_cast<E*>(level.data) + image * level.stride_b + channel * level.stride_c + y * level.stride_y +
              first * level.stride_x;
    return {data, level.stride_c, level.stride_x, left < whole ? left : whole, channels};
  }
};

// out[x * kBlock + c] = row(c, x). Rows with contiguous pixels are transposed in blocks that stay in cache.
template <class E, class A>
void load(const RowView<const E>& row, A* out) {
  if (row.stride_c == 1) {
    for (int64_t x = 0; x < row.columns; ++x) widen_row(row.data + x * row.stride_x, out + x * kBlock, row.channels);
    return;
  }
  constexpr int64_t side = 16;
  A square[side][side];
  for (int64_t c = 0; c < row.channels; c += side) {
    const int64_t height = row.channels - c < side ? row.channels - c : side;
    for (int64_t x = 0; x < row.columns; x += side) {
      const int64_t width = row.columns - x < side ? row.columns - x : side;
      for (int64_t i = 0; i < height; ++i) {
        const E* in = row.data + (c + i) * row.stride_c + x * row.stride_x;
        if (row.stride_x == 1 && width == side) {
          widen_row(in, square[i], side);
        } else {
          for (int64_t j = 0; j < width; ++j) square[i][j] = widen(in[j * row.stride_x]);
        }
      }
      for (int64_t j = 0; j < width; ++j)
        for (int64_t i = 0; i < height; ++i) out[(x + j) * kBlock + c + i] = square[i][j];
    }
  }
}

// Rounds a row of accumulators into a level with unit channel stride.
template <class A, class E>
void store(const A* in, const RowView<E>& row) {
  for (int64_t x = 0; x < row.columns; ++x) narrow_row(in + x * kBlock, row.data + x * row.stride_x, row.channels);
}

// The mean of 2x2 pixels, for every pixel of one coarser row.
template <class A>
void pool(const A* upper, const A* lower, A* out, int64_t columns, int64_t channels) {
  for (int64_t x = 0; x < columns; ++x) {
    const A* const a = upper + 2 * x * kBlock;
    const A* const b = lower + 2 * x * kBlock;
    A* const mean = out + x * kBlock;
    for (int64_t c = 0; c < channels; ++c) mean[c] = (a[c] + a[kBlock + c] + b[c] + b[kBlock + c]) * A(0.25);
  }
}

// Calls f(tile, first row, last row) for every tile of the units.
template <class F>
void for_each_tile(const PyramidArgs& args, int64_t first_unit, int64_t last_unit, const F& f) {
  const int64_t blocks = args.blocks(), bands = args.bands(), rows = args.band_rows();
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const int64_t top = unit / blocks % bands * rows;
    const int64_t bottom = top + rows < args.height ? top + rows : args.height;
    Tile tile;
    tile.image = unit / (blocks * bands);
    tile.channel = unit % blocks * kBlock;
    tile.channels = args.channels - tile.channel < kBlock ? args.channels - tile.channel : kBlock;
    for (tile.column = 0; tile.column < args.width; tile.column += args.tile_columns()) f(tile, top, bottom);
  }
}

// Accumulator rows of all levels in one scratch buffer: two rows of tile_columns >> l pixels for level l.
template <class A>
struct Rows {
  A* scratch;
  int64_t pixels;  // of a row of level 0

  A* operator()(int level, int64_t y) const {
    const int64_t before = 2 * (2 * pixels - 2 * (pixels >> level));  // two rows of every finer level
    return scratch + (before + (y & 1) * (pixels >> level)) * kBlock;
  }
};

template <class E>
void pyramid_tile(const PyramidArgs& args, const Rows<accumulate_t<E>>& rows, const Tile& tile, int64_t top,
                  int64_t bottom) {
  for (int64_t y = top; y < bottom; ++y) {
    load(tile.row<const E>(args, args.source, 0, y), rows(0, y));
    store(rows(0, y), tile.row<E>(args, args.levels[0], 0, y));
    // an odd row completes a row of the next level, which may complete one of the level after it
    for (int level = 1; level < args.num_levels && ((y >> (level - 1)) & 1); ++level) {
      const int64_t row = y >> level;
      const RowView<E> out = tile.row<E>(args, args.levels[level], level, row);
      pool(rows(level - 1, 0), rows(level - 1, 1), rows(level, row), out.columns, out.channels);
      store(rows(level, row), out);
    }
  }
}

// From the last level down: gradient of a level = its own + a quarter of the gradient of the pixel above it.
template <class E>
void backward_tile(const PyramidArgs& args, const Rows<accumulate_t<E>>& rows, const Tile& tile, int64_t top,
                   int64_t bottom) {
  using A = accumulate_t<E>;
  for (int64_t y = top; y < bottom; ++y) {
    for (int level = args.num_levels - 1; level >= 0; --level) {
      const int64_t row = y >> level;
      if ((row << level) != y || row >= (args.height >> level)) continue;  // kept from an earlier y, or dropped
      const RowView<const E> own = tile.row<const E>(args, args.levels[level], level, row);
      A* const sum = rows(level, 0);
      load(own, sum);
      if (level + 1 == args.num_levels || (row >> 1) >= (args.height >> (level + 1))) continue;
      const int64_t covered = 2 * tile.row<const E>(args, args.levels[level + 1], level + 1, row >> 1).columns;
      const A* const coarse = rows(level + 1, 0);
      for (int64_t x = 0; x < covered; ++x)
        for (int64_t c = 0; c < own.channels; ++c) sum[x * kBlock + c] += A(0.25) * coarse[(x >> 1) * kBlock + c];
    }
    store(rows(0, 0), tile.row<E>(args, args.source, 0, y));
  }
}

}  // namespace

void corr_pyramid(const PyramidArgs& args, double* scratch, int64_t first_unit, int64_t last_unit) {
  dispatch_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    const Rows<accumulate_t<E>> rows{reinterpret_cast<accumulate_t<E>*>(scratch), args.tile_columns()};
    for_each_tile(args, first_unit, last_unit, [&](const Tile& tile, int64_t top, int64_t bottom) {
      pyramid_tile<E>(args, rows, tile, top, bottom);
    });
  });
}

void corr_pyramid_backward(const PyramidArgs& args, double* scratch, int64_t first_unit, int64_t last_unit) {
  dispatch_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    const Rows<accumulate_t<E>> rows{reinterpret_cast<accumulate_t<E>*>(scratch), args.tile_columns()};
    for_each_tile(args, first_unit, last_unit, [&](const Tile& tile, int64_t top, int64_t bottom) {
      backward_tile<E>(args, rows, tile, top, bottom);
    });
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
