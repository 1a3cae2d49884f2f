#include "cpu/volume_lookup_isa.h"

#include <type_traits>

#include "cpu/elements_isa.h"

// The patch of a query is one contiguous run of taps [row][column]. Shifting the whole run by one tap blends it in x,
// by one row blends it in y; the last column and row of the results mean nothing and are skipped. Windows are then
// transposed from [query][tap] to the planes of the output.
namespace daflow {
namespace DAFLOW_ISA {
namespace {

constexpr int64_t kQueries = VolumeArgs::queries;

// Queries [first, first + count) of one image.
struct QueryTile {
  int64_t image, first, count;
};

QueryTile tile_of(const VolumeArgs& args, int64_t unit) {
  const int64_t first = unit % args.tiles() * kQueries;
  const int64_t left = args.pixels() - first;
  return {unit / args.tiles(), first, left < kQueries ? left : kQueries};
}

template <class A>
A level_scale(int level) {
  A scale = 1;
  for (int l = 0; l < level; ++l) scale *= A(0.5);
  return scale;
}

// The taps of a window on one axis: tap 0 is pixel `first`, taps [begin, end) are inside.
template <class A>
struct Axis {
  int64_t first, begin, end;
  A weight;
  bool live;
};

// Where the window of one query lies on one axis (0 = x, 1 = y) of a level.
template <class A>
Axis<A> axis_of(const VolumeArgs& args, const QueryTile& tile, int64_t centre, int level, int axis, int64_t q) {
  const int radius = axis == 0 ? args.radius_x : args.radius_y;
  const int size = axis == 0 ? args.levels[level].width : args.levels[level].height;
  const int64_t row = (tile.image * args.centres + centre) * 2 + axis;
  const A position = static_cast<const A*>(args.coords)[row * args.pixels() + tile.first + q];
  const Split<A> at = split(position * level_scale<A>(level), size, radius);
  const int64_t first = int64_t{at.first} - radius;
  const int64_t count = 2 * int64_t{radius} + 2;
  return {first, first < 0 ? -first : 0, size - first < count ? size - first : count, at.fraction, at.live != 0};
}

// Where the windows of a tile lie on one level.
template <class A>
struct Windows {
  Axis<A> x[kQueries], y[kQueries];

  bool live(int64_t q) const { return x[q].live && y[q].live; }
};

template <class A>
void place(const VolumeArgs& args, const QueryTile& tile, int64_t centre, int level, Windows<A>* windows) {
  for (int64_t q = 0; q < tile.count; ++q) {
    windows->x[q] = axis_of<A>(args, tile, centre, level, 0, q);
    windows->y[q] = axis_of<A>(args, tile, centre, level, 1, q);
  }
}

// patch[row][column] = the volume of one query; zero outside.
template <class E, class A>
void gather(const VolumeArgs& args, const VolumeLevel& volume, int64_t image, int64_t query, const Axis<A>& x,
            const Axis<A>& y, A* patch) {
  if (!x.live || !y.live) {
    for (int64_t tap = 0; tap < args.taps(); ++tap) patch[tap] = 0;
    return;
  }
  const int64_t width = x.end - x.begin;
  if (width * (y.end - y.begin) < args.taps())
    for (int64_t tap = 0; tap < args.taps(); ++tap) patch[tap] = 0;
  const E* row = static_cast<const E*>(volume.data) + image * volume.stride_b + query / args.width * volume.stride_y +
                 query % args.width * volume.stride_x + (y.first + y.begin) * volume.stride_row +
                 (x.first + x.begin) * volume.stride_column;
  A* out = patch + y.begin * args.columns() + x.begin;
  for (int64_t j = y.begin; j < y.end; ++j, row += volume.stride_row, out += args.columns()) {
    if (volume.stride_column == 1) {
      widen_row(row, out, width);
    } else {
      for (int64_t i = 0; i < width; ++i) out[i] = widen(row[i * volume.stride_column]);
    }
  }
}

// The patches of a tile, one after the other: nothing waits for a load here, so many are on the way at once.
template <class E, class A>
void gather_tile(const VolumeArgs& args, const QueryTile& tile, int level, const Windows<A>& windows, A* patches) {
  for (int64_t q = 0; q < tile.count; ++q)
    gather<E>(args, args.levels[level], tile.image, tile.first + q, windows.x[q], windows.y[q],
              patches + q * args.taps());
}

// out[tap] = taps[tap] (1 - weight) + taps[tap + shift] weight
template <class A>
void blend(const A* taps, int64_t shift, A weight, int64_t count, A* out) {
  for (int64_t tap = 0; tap < count; ++tap) out[tap] = (1 - weight) * taps[tap] + weight * taps[tap + shift];
}

// Calls f(plane, tap) for every offset of the window: its plane among the channels of the output, its tap in a patch.
template <class F>
void for_each_offset(const VolumeArgs& args, int64_t centre, int level, const QueryTile& tile, const F& f) {
  const int64_t nx = args.columns() - 1, ny = args.rows() - 1;
  const int64_t base = ((tile.image * args.centres + centre) * args.num_levels + level) * args.window();
  for (int64_t j = 0; j < ny; ++j) {
    for (int64_t i = 0; i < nx; ++i) {
      const int64_t channel = args.x_major ? i * ny + j : j * nx + i;
      f((base + channel) * args.pixels() + tile.first, j * args.columns() + i);
    }
  }
}

template <class E, class O>
void lookup(const VolumeArgs& args, accumulate_t<E>* scratch, int64_t first_unit, int64_t last_unit) {
  using A = accumulate_t<E>;
  const int64_t taps = args.taps(), columns = args.columns();
  A* const patches = scratch;
  A* const along_x = patches + kQueries * taps;
  O* const out = static_cast<O*>(args.out);
  Windows<A> windows;
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const QueryTile tile = tile_of(args, unit);
    for (int64_t lookup = 0; lookup < args.centres * args.num_levels; ++lookup) {
      const int64_t centre = lookup / args.num_levels;
      const int level = static_cast<int>(lookup % args.num_levels);
      place(args, tile, centre, level, &windows);
      gather_tile<E>(args, tile, level, windows, patches);
      for (int64_t q = 0; q < tile.count; ++q) {
        A* const patch = patches + q * taps;
        blend(patch, 1, windows.x[q].weight, taps - 1, along_x);
        blend(along_x, columns, windows.y[q].weight, taps - columns - 1, patch);
      }
      for_each_offset(args, centre, level, tile, [&](int64_t plane, int64_t tap) {
        for (int64_t q = 0; q < tile.count; ++q) narrow(patches[q * taps + tap], out + plane + q);
      });
    }
  }
}

// sum of weight[i] (upper[i] - lower[i]), in an order that does not depend on the vector length
template <class A>
A weighted_difference(const A* weight, const A* upper, const A* lower, int64_t count) {
  constexpr int64_t lanes = 16;
  A partial[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (int64_t lane = 0; lane < lanes; ++lane)
      partial[lane] += weight[i + lane] * (upper[i + lane] - lower[i + lane]);
  for (int64_t lane = 0; i < count; ++i, ++lane) partial[lane] += weight[i] * (upper[i] - lower[i]);
  for (int64_t half = lanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
  return partial[0];
}

// The transpose of blend: from the gradient of the blended run to that of the taps.
template <class A>
void blend_backward(const A* grad, int64_t shift, A weight, int64_t count, A* out) {
  for (int64_t tap = 0; tap < shift; ++tap) out[tap] = (1 - weight) * grad[tap];
  for (int64_t tap = shift; tap < count; ++tap) out[tap] = (1 - weight) * grad[tap] + weight * grad[tap - shift];
}

// The buffers of one thread's backward pass.
template <class A>
struct BackwardScratch {
  A* grad_patches;  // [centre][query][tap]
  A* sums;          // [centre][axis][query]: the gradients of the coordinates
  A* patches;       // [query][tap]
  A* along_x;
  A* slice;
};

// From the gradients of the windows of a tile (their unused last row and column are zero) to those of the patches, in
// place, and of the coordinates.
template <class E, class A>
void tile_backward(const VolumeArgs& args, const QueryTile& tile, int64_t centre, int level,
                   const BackwardScratch<A>& scratch) {
  const int64_t taps = args.taps(), columns = args.columns();
  const bool need_coords = args.grad_coords != nullptr;
  const A scale = level_scale<A>(level);
  A* const sum_x = scratch.sums + 2 * centre * kQueries;
  A* const sum_y = sum_x + kQueries;
  Windows<A> windows;
  place(args, tile, centre, level, &windows);
  if (need_coords) gather_tile<E>(args, tile, level, windows, scratch.patches);
  for (int64_t q = 0; q < tile.count; ++q) {
    if (!windows.live(q)) continue;
    A* const grad = scratch.grad_patches + (centre * kQueries + q) * taps;
    const A* const patch = scratch.patches + q * taps;
    if (need_coords) {
      blend(patch, 1, windows.x[q].weight, taps - 1, scratch.along_x);
      sum_y[q] += scale * weighted_difference(grad, scratch.along_x + columns, scratch.along_x, taps - columns - 1);
    }
    blend_backward(grad, columns, windows.y[q].weight, taps, scratch.along_x);
    if (need_coords) sum_x[q] += scale * weighted_difference(scratch.along_x, patch + 1, patch, taps - 1);
    blend_backward(scratch.along_x, 1, windows.x[q].weight, taps, grad);
  }
}

// The gradient of a query's own slice of the volume: the patches of its centres added into zeros. No other query
// touches it.
template <class E, class A>
void write_slice(const VolumeArgs& args, const QueryTile& tile, int level, int64_t q,
                 const BackwardScratch<A>& scratch) {
  const VolumeLevel& volume = args.levels[level];
  const int64_t size = int64_t{volume.height} * volume.width;
  E* const out = static_cast<E*>(volume.grad) + (tile.image * args.pixels() + tile.first + q) * size;
  A* sum = scratch.slice;
  if constexpr (std::is_same_v<E, A>) sum = out;
  for (int64_t i = 0; i < size; ++i) sum[i] = 0;
  for (int64_t centre = 0; centre < args.centres; ++centre) {
    const Axis<A> x = axis_of<A>(args, tile, centre, level, 0, q);
    const Axis<A> y = axis_of<A>(args, tile, centre, level, 1, q);
    if (!x.live || !y.live) continue;
    const A* const patch = scratch.grad_patches + (centre * kQueries + q) * args.taps();
    for (int64_t j = y.begin; j < y.end; ++j) {
      A* const row = sum + (y.first + j) * volume.width + x.first;
      for (int64_t i = x.begin; i < x.end; ++i) row[i] += patch[j * args.columns() + i];
    }
  }
  if constexpr (!std::is_same_v<E, A>) narrow_row(sum, out, size);
}

template <class A>
void store_grad_coords(const VolumeArgs& args, const QueryTile& tile, const A* sums) {
  for (int64_t row = 0; row < 2 * args.centres; ++row) {
    A* const out =
        static_cast<A*>(args.grad_coords) + (tile.image * args.centres * 2 + row) * args.pixels() + tile.first;
    for (int64_t q = 0; q < tile.count; ++q) out[q] = sums[row * kQueries + q];
  }
}

template <class E>
void lookup_backward(const VolumeArgs& args, accumulate_t<E>* memory, int64_t first_unit, int64_t last_unit) {
  using A = accumulate_t<E>;
  const int64_t taps = args.taps();
  BackwardScratch<A> scratch;
  scratch.grad_patches = memory;
  scratch.sums = scratch.grad_patches + args.centres * kQueries * taps;
  scratch.patches = scratch.sums + 2 * args.centres * kQueries;
  scratch.along_x = scratch.patches + kQueries * taps;
  scratch.slice = scratch.along_x + taps;
  const A* const grad = static_cast<const A*>(args.grad);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const QueryTile tile = tile_of(args, unit);
    for (int64_t i = 0; i < 2 * args.centres * kQueries; ++i) scratch.sums[i] = 0;
    for (int level = 0; level < args.num_levels; ++level) {
      for (int64_t i = 0; i < args.centres * kQueries * taps; ++i) scratch.grad_patches[i] = 0;
      for (int64_t centre = 0; centre < args.centres; ++centre) {
        A* const windows = scratch.grad_patches + centre * kQueries * taps;
        for_each_offset(args, centre, level, tile, [&](int64_t plane, int64_t tap) {
          for (int64_t q = 0; q < tile.count; ++q) windows[q * taps + tap] = grad[plane + q];
        });
        tile_backward<E>(args, tile, centre, level, scratch);
      }
      for (int64_t q = 0; args.levels[level].grad != nullptr && q < tile.count; ++q)
        write_slice<E>(args, tile, level, q, scratch);
    }
    if (args.grad_coords != nullptr) store_grad_coords(args, tile, scratch.sums);
  }
}

}  // namespace

void volume_lookup(const VolumeArgs& args, double* scratch, int64_t first_unit, int64_t last_unit) {
  dispatch_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    dispatch_element(args.out_dtype, [&](auto out) {
      lookup<E, decltype(out)>(args, reinterpret_cast<accumulate_t<E>*>(scratch), first_unit, last_unit);
    });
  });
}

void volume_lookup_backward(const VolumeArgs& args, double* scratch, int64_t first_unit, int64_t last_unit) {
  dispatch_element(args.dtype, [&](auto element) {
    using E = decltype(element);
    lookup_backward<E>(args, reinterpret_cast<accumulate_t<E>*>(scratch), first_unit, last_unit);
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
