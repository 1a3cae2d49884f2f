// What the two halves of corr_lookup's backward share: the gradients of the integer taps of a tile of queries; for
// *_isa.cpp only.
#pragma once

#include "cpu/corr_lookup_isa.h"
#include "cpu/corr_window_isa.h"

namespace daflow {
namespace DAFLOW_ISA {

constexpr int kGradTile = 8;  // queries of a tile: their sums and the pixels they share fit the first-level cache
static_assert(kGradTile >= kScatterTile && kGradTile <= kMaxTile);

// A value per tap of every window of a tile, [row][query][stride]. Vectors may read past a row, into a gap of zeros of
// fresh scratch that is never written, or the `lanes` elements after the last.
template <class A>
struct TapRows {
  A* data;
  int64_t rows, length, stride;

  TapRows(A* memory, int64_t rows, int64_t length)
      : data(memory), rows(rows), length(length), stride(round_up<int64_t>(length, lanes<A>) + lanes<A>) {}
  A* row(int q, int64_t i) const { return data + (i * kGradTile + q) * stride; }
  A* end() const { return row(0, rows) + lanes<A>; }
};

// Scratch of a thread. A row of `grads` starts with a zero; sums has a spare row.
template <class A>
struct GradScratch {
  TapRows<A> taps, weights, grads;
  PartialRow<A> partial;
  int64_t sum_stride;
  A* sums;  // [kGradTile + 1, channels]

  GradScratch(const CorrLookup& op, void* memory)
      : taps(static_cast<A*>(memory), op.window_y() + 1, op.window_x() + 1),
        weights(taps.end(), taps.rows, taps.length),
        grads(weights.end(), taps.rows, taps.length),
        partial(grads.end(), taps.length),
        sum_stride(round_up<int64_t>(op.channels, lanes<A>)),
        sums(partial.end()) {}
  static int64_t bytes(const CorrLookup& op) {
    const GradScratch start(op, nullptr);
    return reinterpret_cast<intptr_t>(start.sums + (kGradTile + 1) * start.sum_stride);
  }
  void clear_sums() const {
    for (int64_t i = 0; i < (kGradTile + 1) * sum_stride; ++i) sums[i] = 0;
  }
};

// grads[q][i][1 + j] = scale * gradient of window element (row i, column j) of query x + q.
template <class A>
void read_grads(const CorrLookup& op, const QueryTensor& grad, int level, int64_t at, int count,
                const TapRows<A>& grads) {
  const A scale = static_cast<A>(op.scale);
  const int ny = op.window_y(), nx = op.window_x();
  dispatch_element(grad.dtype, [&](auto element) {
    const auto* const data = static_cast<const decltype(element)*>(grad.data) + at;
    for (int i = 0; i < ny; ++i)
      for (int j = 0; j < nx; ++j) {
        const int64_t k = level * op.window() + (op.x_slow ? int64_t(j) * ny + i : int64_t(i) * nx + j);
        const auto* const run = data + k * grad.stride_k;
        for (int q = 0; q < count; ++q) grads.row(q, i)[1 + j] = scale * static_cast<A>(widen(run[q * grad.stride_x]));
      }
  });
}

// The transposed blend: weights[q][i][j] = G of tap (i, j).
template <class A>
void tap_weights(const Window<A>& window, int q, const TapRows<A>& grads, const TapRows<A>& weights) {
  const A wx = window.wx, wy = window.wy;
  for (int64_t j = 0; j < weights.length; j += lanes<A>) {
    Vector<A> above{};
    for (int64_t i = 0; i + 1 < weights.rows; ++i) {
      const A* const at = grads.row(q, i) + j;
      const Vector<A> row = (1 - wx) * load(at + 1) + wx * load(at);
      store(weights.row(q, i) + j, (1 - wy) * row + wy * above);
      above = row;
    }
    store(weights.row(q, weights.rows - 1) + j, wy * above);
  }
}

// Calls f(element of the maps, row / height, y, x, count, scratch) for the tiles of rows [begin, end) of queries.
template <class F>
void each_query_tile(const CorrLookup& op, int64_t begin, int64_t end, void* memory, const F& f) {
  const int64_t height = op.fmap1.height, width = op.fmap1.width;
  dispatch_element(op.dtype, [&](auto element) {
    const GradScratch<accumulate_t<decltype(element)>> scratch(op, memory);
    for (int64_t row = begin; row < end; ++row)
      for (int64_t x = 0; x < width; x += kGradTile) {
        const int count = static_cast<int>(width - x < kGradTile ? width - x : kGradTile);
        f(element, row / height, row % height, x, count, scratch);
      }
  });
}

}  // namespace DAFLOW_ISA
}  // namespace daflow
