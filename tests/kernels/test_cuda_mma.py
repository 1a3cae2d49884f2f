"""Tensor-core wrappers (kernels/cuda/common/mma.cuh) on the emulator: fragment layout, loads, and copies."""

import ctypes

import pytest
import torch

KERNELS = """
#include "common/mma.cuh"

using namespace daflow::cuda;

struct Params {
  const unsigned char *a, *b;  // 16 and 8 rows of 32 bytes; for the transposed load b is [16 channels][8 rows]
  float* out;                  // [16][8], added to
  int mode;
};

// Fragments put together by hand, element by element, as the PTX manual lists them for the two-byte types:
// a0 a1 | a2 a3 | a4 a5 | a6 a7 at row g (+8 for a2 a3 a6 a7), column 2t + (i & 1) (+8 for i >= 4); b0 ... b3 at
// row 2t + (i & 1) (+8 for i >= 2), column g.
template <class T>
__device__ void fragments_by_the_manual(const Params& p, uint32_t (&a)[4], uint32_t (&b)[2]) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  if constexpr (sizeof(T) == 2) {
    const auto* matrix_a = reinterpret_cast<const uint16_t*>(p.a);
    const auto* matrix_b = reinterpret_cast<const uint16_t*>(p.b);  // B[k][n] is matrix_b[n][k]
    for (int i = 0; i < 8; ++i) {
      const int row = (i < 2 || (i >= 4 && i < 6)) ? g : g + 8, column = t * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      const uint32_t value = matrix_a[row * 16 + column];
      a[i / 2] = i % 2 == 0 ? value : a[i / 2] | value << 16;
    }
    for (int i = 0; i < 4; ++i) {
      const int k = t * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      const uint32_t value = matrix_b[g * 16 + k];
      b[i / 2] = i % 2 == 0 ? value : b[i / 2] | value << 16;
    }
  } else {
    const auto* matrix_a = reinterpret_cast<const uint32_t*>(p.a);
    const auto* matrix_b = reinterpret_cast<const uint32_t*>(p.b);
    for (int i = 0; i < 4; ++i) a[i] = matrix_a[(i == 0 || i == 2 ? g : g + 8) * 8 + (i < 2 ? t : t + 4)];
    for (int i = 0; i < 2; ++i) b[i] = matrix_b[g * 8 + (i == 0 ? t : t + 4)];
  }
}

template <class T>
__device__ void fragments_by_matrix_loads(const Params& p, uint32_t (&a)[4], uint32_t (&b)[2]) {
  unsigned char* rows = dynamic_shared();  // A, then B
  const int lane = lane_index();
  copy_async(rows + lane * 16, p.a + lane * 16, true);
  copy_async(rows + (lane + 32) * 16, p.b + lane % 16 * 16, lane < 16);
  commit_copies();
  wait_for_copies<0>();
  sync_warp();
  load_matrices(a, rows + (lane % 8 + lane / 8 % 2 * 8) * 32 + lane / 16 * 16);
  uint32_t both[4];
  if (p.mode == 2) {
    load_matrices_transposed(both, rows + 512 + lane % 16 * 16);
  } else {
    load_matrices(both, rows + 512 + lane % 8 * 32 + lane / 8 % 2 * 16);
  }
  b[0] = both[0];
  b[1] = both[1];
}

template <class T>
__global__ void product(Params p) {
  uint32_t a[4], b[2];
  if (p.mode == 0) {
    fragments_by_the_manual<T>(p, a, b);
  } else {
    fragments_by_matrix_loads<T>(p, a, b);
  }
  const T* type = nullptr;
  round_to_mma(type, a);
  round_to_mma(type, b);
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = p.out[product_row(i) * 8 + product_column(i)];
  multiply_add(type, c, a, b);
  for (int i = 0; i < 4; ++i) p.out[product_row(i) * 8 + product_column(i)] = c[i];
}

// Two groups of copies in flight; mode 1 waits for the first only, mode 2 for none.
__global__ void two_copies(Params p) {
  unsigned char* buffer = dynamic_shared();
  const int lane = lane_index();
  copy_async(buffer + lane * 16, p.a + lane * 16, true);
  commit_copies();
  copy_async(buffer + 512 + lane * 16, p.a + lane * 16, lane % 2 == 0);
  commit_copies();
  if (p.mode == 0) wait_for_copies<0>();
  if (p.mode == 1) wait_for_copies<1>();
  sync_warp();
  for (int i = lane; i < 256; i += 32) p.out[i] = reinterpret_cast<float*>(buffer)[i];
}

__global__ void product_of_half_a_warp(Params) {
  uint32_t a[4] = {}, b[2] = {};
  float c[4] = {};
  if (lane_index() < 16) multiply_add(static_cast<const Half*>(nullptr), c, a, b);
}

using Kernel = void (*)(Params);
const Kernel kernels[] = {product<Half>, product<BFloat16>, product<float>, two_copies, product_of_half_a_warp};

extern "C" __attribute__((visibility("default"))) int run(int kernel, const unsigned char* a, const unsigned char* b,
                                                          float* out, int mode) {
  return launch(kernels[kernel], dim3(1), dim3(32), 1024, nullptr, Params{a, b, out, mode});
}
"""
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
MODES = ["fragments by the manual", "matrix loads", "transposed matrix load"]  # the last: two-byte elements only


@pytest.fixture(scope="module")
def library(compile_kernel):
    return compile_kernel("mma_kernels", KERNELS)


def run(library, kernel, a, b, out, mode, seed=0):
    library.cuda_host_set_seed(seed)
    error = library.run(kernel, *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, out)), mode)
    library.cuda_host_set_seed(0)
    if error:
        raise RuntimeError(library.cuda_host_message().decode())


def round_to_tf32(values):
    bits = values.view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(
    ("dtype", "mode"), [(dtype, mode) for dtype in DTYPES for mode in MODES[: 3 if dtype.itemsize == 2 else 2]]
)
def test_product(library, dtype, mode):
    transposed = mode == MODES[2]
    channels = 32 // dtype.itemsize
    a, b, before = torch.randn(16, channels).to(dtype), torch.randn(8, channels).to(dtype), torch.randn(16, 8)
    wide_a, wide_b = (round_to_tf32(x) if dtype == torch.float32 else x for x in (a, b))
    expected = before.double() + wide_a.double() @ wide_b.double().T
    stored = b.T.contiguous() if transposed else b
    for seed in (0, 1):
        out = before.clone()
        run(library, DTYPES.index(dtype), a, stored, out, MODES.index(mode), seed)
        assert torch.equal(out, expected.float())  # exact products, one rounding
        assert library.cuda_host_products() == 1


def test_tf32_rounds_to_nearest(library):
    """A tie goes away from zero; truncation, which tensor cores do on their own, would lose it."""
    a, b, out = torch.zeros(16, 8), torch.zeros(8, 8), torch.zeros(16, 8)
    a[0, 0], b[0, 0] = 1 + 2.0**-11, 1.0
    run(library, 2, a, b, out, 0)
    assert out[0, 0] == 1 + 2.0**-10


def test_copies_arrive_when_they_are_waited_for(library):
    a, out = torch.randn(128), torch.empty(256)
    expected = torch.cat([a, (a.view(32, 4) * (torch.arange(32) % 2 == 0)[:, None]).flatten()])
    run(library, 3, a, a, out, 0)
    assert torch.equal(out, expected)
    run(library, 3, a, a, out, 1)
    assert torch.equal(out[:128], expected[:128])
    assert out[128:].isnan().all()
    run(library, 3, a, a, out, 2)
    assert out.isnan().all()
    run(library, 3, a, a, out, 2, seed=3)  # some early, some late
    assert out.isnan().any()
    assert not out.isnan().all()


def test_part_of_a_warp_cannot_multiply(library):
    nothing = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"thread 0 waits at the matrix instruction of .*\.cu:\d+ but thread 16 has"):
        run(library, 4, nothing, nothing, nothing, 0)
