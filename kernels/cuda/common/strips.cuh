// Which positions of a level a tile of queries looks at: the box around the windows, cut into strips of 64 positions in
// row order, without the strips that no window touches.
#pragma once

#include "common/window.cuh"

namespace daflow {
namespace cuda {

constexpr int kStripPositions = 64;
constexpr int kMostStrips = 1024;  // of a box that is looked through

struct Position {
  int x, y;
  bool used;  // false beyond the end of the box
};

// A rectangle of positions, columns [left, right) and rows [top, bottom). Empty ones have left >= right.
struct Box {
  int left, top, right, bottom;
  __device__ __forceinline__ int width() const { return right - left; }
  __device__ __forceinline__ int64_t area() const { return static_cast<int64_t>(width()) * (bottom - top); }
  __device__ __forceinline__ bool empty() const { return left >= right || top >= bottom; }
  __device__ __forceinline__ bool meets(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
  // Position i of a strip; boxes of more than kMostStrips strips have none.
  __device__ __forceinline__ Position position(int strip, int i) const {
    const int number = strip * kStripPositions + i;
    // a multiplication, exact below 2^22: number + 1/2 is never closer than 1/2 to a multiple of the width
    const int row = static_cast<int>((static_cast<float>(number) + 0.5f) * (1.0f / static_cast<float>(width())));
    return {left + number - row * width(), top + row, row < bottom - top};
  }
};

struct Strips {
  Box box;
  const uint16_t* list;  // in shared memory
  int count;
  bool too_many;
};

// The part of a chunk's taps that is inside the level; dead windows have none.
__device__ __forceinline__ Box box_of(const Chunk& chunk, const Centre& centre, const MapView& level) {
  const int x = centre.first_x + chunk.first_x, y = centre.first_y + chunk.first_y;
  const Box box = {x > 0 ? x : 0, y > 0 ? y : 0, lesser(x + chunk.columns(), level.width),
                   lesser(y + chunk.rows(), level.height)};
  return box.empty() ? Box{level.width, level.height, 0, 0} : box;  // the neutral element of the union
}

__device__ __forceinline__ Box smallest_around(const Box& a, const Box& b) {
  return {lesser(a.left, b.left), lesser(a.top, b.top), -lesser(-a.right, -b.right), -lesser(-a.bottom, -b.bottom)};
}

// The box around kQueries windows (two per lane), in every lane. Called by one warp.
template <int kQueries>
__device__ __forceinline__ Box box_around(const Chunk& chunk, const Centre* centres, const MapView& level) {
  static_assert(kQueries == 2 * kWarpSize, "two windows per lane");
  Box box = smallest_around(box_of(chunk, centres[lane_index()], level),
                            box_of(chunk, centres[lane_index() + kWarpSize], level));
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    box = smallest_around(box, {shuffle_xor(box.left, step), shuffle_xor(box.top, step), shuffle_xor(box.right, step),
                                shuffle_xor(box.bottom, step)});
  }
  return box;
}

// The strips of kQueries windows (two per lane), `most` of them at most. Called by one warp.
template <int kQueries>
__device__ __forceinline__ Strips find_strips(const Chunk& chunk, const Centre* centres, const MapView& level, int most,
                                              uint16_t* list) {
  const Box first = box_of(chunk, centres[lane_index()], level);
  const Box second = box_of(chunk, centres[lane_index() + kWarpSize], level);
  const Box box = box_around<kQueries>(chunk, centres, level);
  if (box.empty()) return {box, list, 0, false};
  if (box.area() > kMostStrips * kStripPositions) return {box, list, 0, true};
  const int area = static_cast<int>(box.area());
  int count = 0;
  for (int strip = 0; strip * kStripPositions < area; ++strip) {
    const Position start = box.position(strip, 0);
    const Position end = box.position(0, lesser(strip * kStripPositions + kStripPositions, area) - 1);
    const bool one_row = start.y == end.y;
    const Box covered = {one_row ? start.x : box.left, start.y, one_row ? end.x + 1 : box.right, end.y + 1};
    if (!any_in_warp(covered.meets(first) || covered.meets(second))) continue;
    if (count == most) return {box, list, 0, true};
    if (lane_index() == 0) list[count] = static_cast<uint16_t>(strip);
    ++count;
  }
  return {box, list, count, false};
}

}  // namespace cuda
}  // namespace daflow
