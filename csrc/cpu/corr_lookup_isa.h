// What corr_lookup.cpp (torch) hands to the per-ISA kernels of corr_lookup. Free of torch.
#pragma once

#include <cstdint>

#include "cpu/isa_dispatch.h"

namespace daflow {

// A feature map [B, C, H, W]; strides in elements. Unit channel stride, but for fmap1 of the forward kernel.
struct FeatureMap {
  const void* data;
  int64_t height, width;
  int64_t stride_b, stride_c, stride_y, stride_x;
};

// A tensor [B, N, K, H, W] of any strides: coords (K = 2) and the gradient of the output (K = channels of the window).
struct QueryTensor {
  const void* data;
  Element dtype;
  int64_t stride_b, stride_n, stride_k, stride_y, stride_x;
};

struct CorrLookup {
  Element dtype;  // of the features
  int64_t batch, centres, channels;
  FeatureMap fmap1;
  const FeatureMap* levels;
  int num_levels;
  QueryTensor coords;  // f32 or f64
  int radius_y, radius_x;
  bool x_slow;  // order "xy": the slow window index moves x
  double scale;

  int window_y() const { return 2 * radius_y + 1; }
  int window_x() const { return 2 * radius_x + 1; }
  int64_t window() const { return static_cast<int64_t>(window_y()) * window_x(); }
};

// Forward: out [B, N, L * window, H, W] contiguous.
struct CorrLookupOutput {
  void* data;
  Element dtype;
};

// Backward of the queries: grad_fmap1 [B, H, W, C] contiguous, and grad_coords contiguous; null where not needed.
struct CorrLookupQueryGrads {
  QueryTensor grad;
  void* fmap1;
  void* coords;  // dtype of coords
};

// Backward of one level of one batch item: its queries (all centres) sorted by the cell of their first tap.
// Cell (y, x) holds the windows whose first tap is (y - window_y, x - window_x); cells_y * cells_x of them.
struct CorrLookupScatter {
  QueryTensor grad;
  int level;
  int64_t batch_item;
  int64_t cells_y, cells_x;
  int64_t entries;        // queries with a window that touches the level
  int64_t* cell_begin;    // [cells_y * cells_x + 1] first entry of every cell
  int64_t* cell_of;       // [N * H * W] cell of a query, -1 where dead
  int64_t* entry_of;      // [N * H * W] its place in the sorted order
  int64_t* query_offset;  // [entries] where its features start in fmap1
  int* first_x;           // [entries] first tap
  void* weight;           // [window_y + 1, entries, window_x + 3] gradient of the taps, a zero at either end of a row
  void* grad_level;       // [B, H_l, W_l, C] contiguous
};

constexpr int64_t kScatterTile = 8;  // target pixels of a unit of work of corr_lookup_gather

#define DAFLOW_CORR_LOOKUP(isa)                                                                                        \
  namespace isa {                                                                                                      \
  /* bytes of zero-filled, 64-byte aligned scratch per thread: of corr_lookup_rows, and of the others */               \
  int64_t corr_lookup_scratch(const CorrLookup& op);                                                                   \
  int64_t corr_lookup_backward_scratch(const CorrLookup& op);                                                          \
  /* rows [begin, end) of the B * N * H query rows */                                                                  \
  void corr_lookup_rows(const CorrLookup& op, const CorrLookupOutput& out, int64_t begin, int64_t end, void* scratch); \
  /* rows [begin, end) of the B * H query rows, all centres */                                                         \
  void corr_lookup_query_grads(const CorrLookup& op, const CorrLookupQueryGrads& grads, int64_t begin, int64_t end,    \
                               void* scratch);                                                                         \
  /* fills cell_of for rows [begin, end) of the N * H query rows */                                                    \
  void corr_lookup_cells(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t begin, int64_t end);          \
  /* fills query_offset, first_x and weight for the same rows */                                                       \
  void corr_lookup_weights(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t begin, int64_t end,         \
                           void* scratch);                                                                             \
  /* units [begin, end) of the H_l * ceil(W_l / kScatterTile) tiles of grad_level */                                   \
  void corr_lookup_gather(const CorrLookup& op, const CorrLookupScatter& scatter, int64_t begin, int64_t end,          \
                          void* scratch);                                                                              \
  }
DAFLOW_EACH_ISA(DAFLOW_CORR_LOOKUP)
#undef DAFLOW_CORR_LOOKUP

}  // namespace daflow
