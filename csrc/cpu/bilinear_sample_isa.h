// The per-ISA kernels of bilinear_sample. Free of torch.
#pragma once

#include <cstdint>

#include "common/bilinear.h"
#include "cpu/isa_dispatch.h"

namespace daflow {

struct SampleArgs {
  static constexpr int64_t pixel_block = 128;       // positions whose taps are computed together
  static constexpr int64_t pair_block = 512;        // positions of a block of the forward pass on pairs
  static constexpr int64_t max_channel_block = 16;  // channels whose feature gradient one thread owns, at most

  Element dtype;
  int64_t batch, channels, groups;
  int height, width;
  int64_t positions;  // Ho * Wo
  bool border;
  int64_t sharpness;
  int64_t channel_block;
  bool pairs;     // forward: neighbours along x are neighbours in memory, and offsets in a channel fit an int
  int64_t block;  // positions of a block: pair_block or pixel_block

  const void* feat;  // any strides (in elements)
  int64_t feat_stride_b, feat_stride_c, feat_stride_y, feat_stride_x;
  // Output, its gradient and grad_feat are packed: [B, Ho, Wo, C] or [B, C, Ho, Wo]. coords and its gradient are
  // [B, G, 2, Ho, Wo] in the accumulator's type.
  bool channels_last;
  const void* coords;
  void* out;
  const void* grad;
  void* grad_feat;
  void* grad_coords;

  DAFLOW_INLINE int64_t group_channels() const { return channels / groups; }
  // Of the last pixel of a channel.
  DAFLOW_INLINE int64_t last_offset() const { return (height - 1) * feat_stride_y + (width - 1) * feat_stride_x; }
  // A unit of the forward pass and of grad_coords: a block of positions of one image.
  DAFLOW_INLINE int64_t position_blocks() const { return (positions + block - 1) / block; }
  DAFLOW_INLINE int64_t position_units() const { return batch * position_blocks(); }
  // A unit of grad_feat: a block of channels of one group of one image. No two units write the same element.
  DAFLOW_INLINE int64_t channel_blocks() const { return (group_channels() + channel_block - 1) / channel_block; }
  DAFLOW_INLINE int64_t channel_units() const { return batch * groups * channel_blocks(); }
  // Accumulators grad_feat needs per thread: none where it adds in the output itself.
  DAFLOW_INLINE int64_t scratch_feat() const {
    const bool narrow = dtype == Element::f16 || dtype == Element::bf16;
    return narrow ? int64_t{height} * width * channel_block : 0;
  }
};

#define DAFLOW_DECLARE(isa)                                                                            \
  namespace isa {                                                                                      \
  void bilinear_sample(const SampleArgs& args, int64_t first_unit, int64_t last_unit);                 \
  void bilinear_sample_grad_coords(const SampleArgs& args, int64_t first_unit, int64_t last_unit);     \
  void bilinear_sample_grad_feat(const SampleArgs& args, float* scratch, int64_t first, int64_t last); \
  }
DAFLOW_EACH_ISA(DAFLOW_DECLARE)
#undef DAFLOW_DECLARE

}  // namespace daflow
