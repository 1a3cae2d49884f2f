// bilinear_sample: a group of 1 ... 32 neighbouring lanes per sample and channel group.
//
// Channels-last features: lanes along the channels, 16 bytes each. Other layouts: one lane per sample, so that
// neighbouring lanes are neighbouring samples and the output is written along x; grid.y then splits the channels.
// The gradient of coords belongs to the sample and is deterministic. That of feat is a scatter: float32 reductions of
// four channels at once, or exact fixed-point sums where determinism is asked for (common/sums.cuh says why those).
#include "bilinear_sample.cuh"

#include "common/bilinear.h"
#include "common/dtype.cuh"
#include "common/sums.cuh"

namespace daflow {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;
constexpr int kChannelsPerBlock = 16;  // where one lane walks the channels alone

struct Layout {
  int32_t lanes;         // per sample
  int32_t channel_step;  // channels from one block of grid.y to the next
};

template <class Params>
struct Launch {
  Params params;
  Layout layout;
};

// One sample of one channel group: four taps with their weights.
struct Sample {
  int64_t b;
  int g, y, x;
  Taps<float> column, row;
  int taps_x[2], taps_y[2];
  bool live_x[2], live_y[2];

  __device__ __forceinline__ Sample(const BilinearSampleParams& p, int64_t index) {
    const int64_t width = p.out.size[3], height = p.out.size[2];
    x = static_cast<int>(index % width);
    index /= width;
    y = static_cast<int>(index % height);
    index /= height;
    g = static_cast<int>(index % p.groups);
    b = index / p.groups;
    const float* at =
        p.coords + b * p.coords_stride_b + g * p.coords_stride_g + y * p.coords_stride_y + x * p.coords_stride_x;
    const int feat_width = static_cast<int>(p.feat.size[3]), feat_height = static_cast<int>(p.feat.size[2]);
    column = bilinear_taps(load(at), feat_width, p.border, p.sharpness);
    row = bilinear_taps(load(at + p.coords_stride_c), feat_height, p.border, p.sharpness);
    const bool live = column.live && row.live;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      taps_x[i] = clamp_tap(column.first + i, feat_width);
      taps_y[i] = clamp_tap(row.first + i, feat_height);
      live_x[i] = live && (p.border || inside(column.first + i, feat_width));
      live_y[i] = live && (p.border || inside(row.first + i, feat_height));
    }
  }
  __device__ __forceinline__ bool live(int tap) const { return live_x[tap % 2] && live_y[tap / 2]; }
  __device__ __forceinline__ float weight(int tap) const {
    return (tap % 2 != 0 ? column.weight : 1.0f - column.weight) * (tap / 2 != 0 ? row.weight : 1.0f - row.weight);
  }
  __device__ __forceinline__ int64_t offset(int tap, const int64_t (&stride)[4]) const {
    return b * stride[0] + taps_y[tap / 2] * stride[2] + taps_x[tap % 2] * stride[3];
  }
  __device__ __forceinline__ int64_t out_offset(const int64_t (&stride)[4]) const {
    return b * stride[0] + y * stride[2] + x * stride[3];
  }
};

// Calls visit(sample index) for the samples of this thread's group of lanes.
template <class Visit>
__device__ __forceinline__ void for_each_sample(const BilinearSampleParams& p, const Layout& layout, Visit&& visit) {
  const int64_t count = p.out.size[0] * p.groups * p.out.size[2] * p.out.size[3];
  const int per_block = kThreads / layout.lanes;
  const int64_t step = static_cast<int64_t>(gridDim.x) * per_block;
  const int own = static_cast<int>(threadIdx.x) / layout.lanes;
  // all lanes of a warp make the same number of turns, because visit may hold warp collectives
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * per_block; first < count; first += step)
    visit(first + own, first + own < count);
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads, 4)
    bilinear_sample_kernel(const __grid_constant__ Launch<BilinearSampleParams> p) {
  const BilinearSampleParams& q = p.params;
  const int group_channels = static_cast<int>(q.feat.size[1]) / q.groups;
  const int lane = static_cast<int>(threadIdx.x) % p.layout.lanes;
  const int first = static_cast<int>(blockIdx.y) * p.layout.channel_step + lane * kCount;
  const int last = first - lane * kCount + p.layout.channel_step;
  for_each_sample(q, p.layout, [&](int64_t index, bool valid) {
    if (!valid) return;
    const Sample sample(q, index);
    for (int c = first; c < last && c < group_channels; c += p.layout.lanes * kCount) {
      const int64_t channel = sample.g * group_channels + c;
      float sums[kCount] = {};
#pragma unroll
      for (int tap = 0; tap < 4; ++tap) {
        if (!sample.live(tap)) continue;
        float values[kCount];
        load_floats(static_cast<const T*>(q.feat.data) + sample.offset(tap, q.feat.stride) + channel * q.feat.stride[1],
                    values);
#pragma unroll
        for (int j = 0; j < kCount; ++j) sums[j] = fused_multiply_add(sample.weight(tap), values[j], sums[j]);
      }
      T* out = static_cast<T*>(const_cast<void*>(q.out.data));
      store_floats(out + sample.out_offset(q.out.stride) + channel * q.out.stride[1], sums);
    }
  });
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads, 4)
    grad_coords_kernel(const __grid_constant__ Launch<BilinearSampleGradParams> p) {
  const BilinearSampleParams& q = p.params.sample;
  const int group_channels = static_cast<int>(q.feat.size[1]) / q.groups;
  const int lane = static_cast<int>(threadIdx.x) % p.layout.lanes;
  for_each_sample(q, p.layout, [&](int64_t index, bool valid) {
    const Sample sample(q, valid ? index : 0);
    float products[4] = {};  // <grad, feat at the tap>
    for (int c = lane * kCount; valid && c < group_channels; c += p.layout.lanes * kCount) {
      const int64_t channel = sample.g * group_channels + c;
      float grad[kCount], values[kCount];
      load_floats(static_cast<const T*>(q.out.data) + sample.out_offset(q.out.stride) + channel * q.out.stride[1],
                  grad);
#pragma unroll
      for (int tap = 0; tap < 4; ++tap) {
        if (!sample.live(tap)) continue;
        load_floats(static_cast<const T*>(q.feat.data) + sample.offset(tap, q.feat.stride) + channel * q.feat.stride[1],
                    values);
#pragma unroll
        for (int j = 0; j < kCount; ++j) products[tap] = fused_multiply_add(grad[j], values[j], products[tap]);
      }
    }
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) products[tap] = sum_over_lanes(products[tap], p.layout.lanes);
    if (!valid || lane != 0) return;
    const float wx = sample.column.weight, wy = sample.row.weight;
    const float dx = (1.0f - wy) * (products[1] - products[0]) + wy * (products[3] - products[2]);
    const float dy = (1.0f - wx) * (products[2] - products[0]) + wx * (products[3] - products[1]);
    const int64_t plane = q.out.size[2] * q.out.size[3];
    float* out =
        p.params.grad_coords + (sample.b * q.groups + sample.g) * 2 * plane + sample.y * q.out.size[3] + sample.x;
    out[0] = dx * sample.column.slope;
    out[plane] = dy * sample.row.slope;
  });
}

// kCount > 1 adds vectors where the GPU can; elsewhere neighbouring lanes had better take neighbouring channels.
template <class T, class Sum, int kCount>
__global__ void __launch_bounds__(kThreads, 4)
    scatter_kernel(const __grid_constant__ Launch<BilinearSampleGradParams> p) {
  constexpr int kRun = kVectorReductions ? kCount : 1;
  const BilinearSampleParams& q = p.params.sample;
  const int group_channels = static_cast<int>(q.feat.size[1]) / q.groups;
  const int lane = static_cast<int>(threadIdx.x) % p.layout.lanes;
  const int first = static_cast<int>(blockIdx.y) * p.layout.channel_step + lane * kRun;
  const int last = first - lane * kRun + p.layout.channel_step;
  const Sum sum(p.params.bounds, 1.0f, q.out.size[2] * q.out.size[3], 1);
  auto* sums = static_cast<typename Sum::type*>(p.params.sums);
  for_each_sample(q, p.layout, [&](int64_t index, bool valid) {
    if (!valid) return;
    const Sample sample(q, index);
    for (int c = first; c < last && c < group_channels; c += p.layout.lanes * kRun) {
      const int64_t channel = sample.g * group_channels + c;
      float grad[kRun];
      load_floats(static_cast<const T*>(q.out.data) + sample.out_offset(q.out.stride) + channel * q.out.stride[1],
                  grad);
#pragma unroll
      for (int tap = 0; tap < 4; ++tap) {
        if (!sample.live(tap)) continue;
        float terms[kRun];
#pragma unroll
        for (int j = 0; j < kRun; ++j) terms[j] = sample.weight(tap) * grad[j];
        sum.add(sums + sample.offset(tap, p.params.sums_stride) + channel * p.params.sums_stride[1], terms);
      }
    }
  });
}

// Whether a view can be read 16 bytes of channels at a time.
bool vectorizable(const View4& view, int32_t groups) {
  const int64_t count = 16 / size_of(view.dtype);
  return view.size[1] / groups % count == 0 && view.stride[1] == 1 && view.stride[0] % count == 0 &&
         view.stride[2] % count == 0 && view.stride[3] % count == 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// Lanes per sample for channels whose stride is 1, else one; `count` channels per access.
Layout layout_for(const BilinearSampleParams& p, bool channels_last, int count) {
  const int64_t group_channels = p.feat.size[1] / p.groups;
  Layout layout = {1, kChannelsPerBlock};
  if (channels_last) {
    while (layout.lanes < kWarpSize && layout.lanes * count < group_channels) layout.lanes *= 2;
    layout.channel_step = static_cast<int32_t>(group_channels);
  }
  return layout;
}

template <class Params>
cudaError_t launch_samples(void (*kernel)(Launch<Params>), const BilinearSampleParams& p, const Params& params,
                           const Layout& layout, cudaStream_t stream) {
  const int64_t samples = p.out.size[0] * p.groups * p.out.size[2] * p.out.size[3];
  const int64_t blocks = ceil_div(samples, kThreads / layout.lanes);
  return launch_blocks(kernel, blocks < kMaxBlocks ? blocks : kMaxBlocks,
                       ceil_div(p.feat.size[1] / p.groups, layout.channel_step), kThreads, 0, stream,
                       Launch<Params>{params, layout});
}

}  // namespace
}  // namespace cuda
}  // namespace daflow

using namespace daflow::cuda;

extern "C" cudaError_t daflow_cuda_bilinear_sample(const BilinearSampleParams* params, cudaStream_t stream) {
  const bool vectors = vectorizable(params->feat, params->groups) && vectorizable(params->out, params->groups);
  return dispatch(params->feat.dtype, [&](auto type) {
    using T = decltype(type);
    const Layout layout = layout_for(*params, params->out.stride[1] == 1, vectors ? kVector<T> : 1);
    const auto kernel = vectors ? bilinear_sample_kernel<T, kVector<T>> : bilinear_sample_kernel<T, 1>;
    return launch_samples(kernel, *params, *params, layout, stream);
  });
}

extern "C" cudaError_t daflow_cuda_bilinear_sample_grad_coords(const BilinearSampleGradParams* params,
                                                               cudaStream_t stream) {
  const BilinearSampleParams& sample = params->sample;
  const bool vectors = vectorizable(sample.feat, sample.groups) && vectorizable(sample.out, sample.groups);
  return dispatch(sample.feat.dtype, [&](auto type) {
    using T = decltype(type);
    Layout layout = layout_for(sample, sample.feat.stride[1] == 1, vectors ? kVector<T> : 1);
    layout.channel_step = static_cast<int32_t>(sample.feat.size[1] / sample.groups);  // one block sees all channels
    const auto kernel = vectors ? grad_coords_kernel<T, kVector<T>> : grad_coords_kernel<T, 1>;
    return launch_samples(kernel, sample, *params, layout, stream);
  });
}

extern "C" cudaError_t daflow_cuda_bilinear_sample_scatter(const BilinearSampleGradParams* params,
                                                           cudaStream_t stream) {
  const BilinearSampleParams& sample = params->sample;
  const bool exact = params->bounds != nullptr, channels_last = params->sums_stride[1] == 1;
  // dense sums of a whole number of vectors per pixel start every pixel on a 16-byte boundary
  const bool vectors = !exact && channels_last && vectorizable(sample.out, sample.groups);
  return dispatch(sample.feat.dtype, [&](auto type) {
    using T = decltype(type);
    const Layout layout = layout_for(sample, channels_last, vectors ? kVector<T> : 1);
    const auto kernel = exact     ? scatter_kernel<T, ExactSum, 1>
                        : vectors ? scatter_kernel<T, FloatSum, kVector<T>>
                                  : scatter_kernel<T, FloatSum, 1>;
    return launch_samples(kernel, sample, *params, layout, stream);
  });
}
