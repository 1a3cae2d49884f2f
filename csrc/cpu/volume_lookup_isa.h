// The per-ISA kernels of volume_lookup. Free of torch.
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "cpu/isa_dispatch.h"

namespace daflow {

// One level [B, H, W, H_l, W_l] of any strides (in elements).
struct VolumeLevel {
  const void* data;
  int64_t stride_b, stride_y, stride_x, stride_row, stride_column;
  int height, width;
  void* grad;  // backward: contiguous, uninitialised; null where no gradient is wanted
};

struct VolumeArgs {
  static constexpr int64_t queries = 32;  // done together, so that planes of the output are written in runs

  Element dtype;
  int64_t batch, centres, height, width;
  int radius_y, radius_x;
  bool x_major;
  int num_levels;
  const VolumeLevel* levels;
  // Contiguous. coords and its gradient [B, N, 2, H, W] and the gradient of the output are in the accumulator's type.
  const void* coords;
  Element out_dtype;
  void* out;          // forward: [B, N, L * nx * ny, H, W]
  const void* grad;   // backward: of the same shape
  void* grad_coords;  // backward: null where it is not wanted

  // One unit of work: up to `queries` consecutive query pixels of one image.
  DAFLOW_INLINE int64_t pixels() const { return height * width; }
  DAFLOW_INLINE int64_t tiles() const { return (pixels() + queries - 1) / queries; }
  DAFLOW_INLINE int64_t units() const { return batch * tiles(); }
  DAFLOW_INLINE int64_t columns() const { return 2 * int64_t{radius_x} + 2; }
  DAFLOW_INLINE int64_t rows() const { return 2 * int64_t{radius_y} + 2; }
  DAFLOW_INLINE int64_t taps() const { return rows() * columns(); }
  DAFLOW_INLINE int64_t window() const { return (rows() - 1) * (columns() - 1); }
  // Accumulators a thread needs: the patches of a tile and one blend; backward also the gradients of the patches and
  // coordinates of every centre, and one slice of the volume.
  DAFLOW_INLINE int64_t scratch() const { return (queries + 1) * taps(); }
  DAFLOW_INLINE int64_t scratch_backward(int64_t slice) const {
    return scratch() + centres * queries * (taps() + 2) + slice;
  }
};

#define DAFLOW_DECLARE(isa)                                                                                    \
  namespace isa {                                                                                              \
  void volume_lookup(const VolumeArgs& args, double* scratch, int64_t first_unit, int64_t last_unit);          \
  void volume_lookup_backward(const VolumeArgs& args, double* scratch, int64_t first_unit, int64_t last_unit); \
  }
DAFLOW_EACH_ISA(DAFLOW_DECLARE)
#undef DAFLOW_DECLARE

}  // namespace daflow
