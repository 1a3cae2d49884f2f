// The per-ISA kernels of corr_pyramid. Free of torch.
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "cpu/isa_dispatch.h"

namespace daflow {

// A [B, C, H, W] tensor of any strides (in elements).
struct PyramidLevel {
  void* data;
  int64_t stride_b, stride_c, stride_y, stride_x;
};

// Level l is [B, C, H >> l, W >> l]; only levels that have pixels are listed.
struct PyramidArgs {
  static constexpr int max_levels = 31;
  static constexpr int64_t channel_block = 64;

  Element dtype;
  int64_t batch, channels, height, width;
  int num_levels;
  PyramidLevel source;              // forward: fmap2; backward: its gradient, unit channel stride
  PyramidLevel levels[max_levels];  // forward: unit channel stride; backward: any

  // One unit of work: one image, one block of channels, the rows under one row of the last level.
  DAFLOW_INLINE int64_t bands() const { return (height + band_rows() - 1) / band_rows(); }
  DAFLOW_INLINE int64_t blocks() const { return (channels + channel_block - 1) / channel_block; }
  DAFLOW_INLINE int64_t units() const { return batch * bands() * blocks(); }
  DAFLOW_INLINE int64_t band_rows() const { return int64_t{1} << (num_levels - 1); }
  DAFLOW_INLINE int64_t tile_columns() const { return band_rows() > 32 ? band_rows() : 32; }
  // Accumulators a thread needs: two rows per level, each half as long as the one before.
  DAFLOW_INLINE int64_t scratch() const { return 4 * tile_columns() * channel_block; }
};

#define DAFLOW_DECLARE(isa)                                                                                    \
  namespace isa {                                                                                              \
  void corr_pyramid(const PyramidArgs& args, double* scratch, int64_t first_unit, int64_t last_unit);          \
  void corr_pyramid_backward(const PyramidArgs& args, double* scratch, int64_t first_unit, int64_t last_unit); \
  }
DAFLOW_EACH_ISA(DAFLOW_DECLARE)
#undef DAFLOW_DECLARE

}  // namespace daflow
