// Which positions of a level a tile of queries looks at: the box around the windows, cut into strips of 64 positions in
// row order, without the strips that no window touches. The queries come in groups of 64, and it is known of a strip
// which groups touch it.
#pragma once

#include "common/window.cuh"

namespace daflow {
namespace cuda {

constexpr int kStripPositions = 64;
constexpr int kMostStrips = 1024;  // of a box that is looked through
constexpr int kGroupQueries = 2 * kWarpSize;

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
  const uint16_t* list;  // in shared memory: a strip, and from bit 10 on the groups that touch it
  int count;
  bool too_many;
  __device__ __forceinline__ int strip(int i) const { return list[i] % kMostStrips; }
  __device__ __forceinline__ bool touches(int i, int group) const { return (list[i] / kMostStrips >> group & 1) != 0; }
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

// The boxes of this lane's two windows of every group.
template <int kGroups>
struct OwnBoxes {
  Box box[kGroups][2];
  __device__ __forceinline__ OwnBoxes(const Chunk& chunk, const Centre* centres, const MapView& level) {
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i)
      box[i / 2][i % 2] = box_of(chunk, centres[lane_index() + i * kWarpSize], level);
  }
  // The box around all windows, in every lane. Called by one warp.
  __device__ __forceinline__ Box around() const {
    Box all = smallest_around(box[0][0], box[0][1]);
#pragma unroll
    for (int group = 1; group < kGroups; ++group)
      all = smallest_around(all, smallest_around(box[group][0], box[group][1]));
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      all = smallest_around(all, {shuffle_xor(all.left, step), shuffle_xor(all.top, step), shuffle_xor(all.right, step),
                                  shuffle_xor(all.bottom, step)});
    }
    return all;
  }
  // Bit g: a window of group g meets the box. Called by one warp.
  __device__ __forceinline__ int groups_that_meet(const Box& other) const {
    int groups = 0;
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
      groups |= any_in_warp(other.meets(box[group][0]) || other.meets(box[group][1])) ? 1 << group : 0;
    return groups;
  }
};

// The strips of kGroups * 64 windows, `most` of them at most. Called by one warp.
template <int kGroups>
__device__ __forceinline__ Strips find_strips(const Chunk& chunk, const Centre* centres, const MapView& level, int most,
                                              uint16_t* list) {
  const OwnBoxes<kGroups> own(chunk, centres, level);
  const Box box = own.around();
  if (box.empty()) return {box, list, 0, false};
  if (box.area() > kMostStrips * kStripPositions) return {box, list, 0, true};
  const int area = static_cast<int>(box.area());
  int count = 0;
  for (int strip = 0; strip * kStripPositions < area; ++strip) {
    const Position start = box.position(strip, 0);
    const Position end = box.position(0, lesser(strip * kStripPositions + kStripPositions, area) - 1);
    const bool one_row = start.y == end.y;
    const Box covered = {one_row ? start.x : box.left, start.y, one_row ? end.x + 1 : box.right, end.y + 1};
    const int groups = own.groups_that_meet(covered);
    if (groups == 0) continue;
    if (count == most) return {box, list, 0, true};
    if (lane_index() == 0) list[count] = static_cast<uint16_t>(strip + groups * kMostStrips);
    ++count;
  }
  return {box, list, count, false};
}

}  // namespace cuda
}  // namespace daflow
