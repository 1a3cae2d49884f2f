"""The emulator itself: it computes what CUDA would, and it finds the mistakes it is there to find."""

import ctypes

import numpy as np
import pytest
import torch

KERNELS = """
#include "common/device.cuh"
#include "common/dtype.cuh"

using namespace daflow::cuda;

struct Params {
  float* data;
  int mode;
};

// Reverses 64 values through shared memory; mode 1 forgets the barrier.
__global__ void reverse(Params p) {
  DAFLOW_SHARED(float, line, 64);
  const int i = static_cast<int>(threadIdx.x);
  line[i] = p.data[i];
  if (p.mode == 0) sync_block();
  p.data[i] = line[63 - i];
}

// Two steps over one buffer; mode 1 forgets that all must have read before it is filled again.
__global__ void refill(Params p) {
  float* buffer = reinterpret_cast<float*>(dynamic_shared());
  const int i = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int step = 0; step < 2; ++step) {
    if (p.mode == 0) sync_block();
    buffer[i] = p.data[i] + static_cast<float>(step);
    sync_block();
    sum += buffer[(i + 1) % 64];
  }
  p.data[i] = sum;
}

__global__ void half_a_block_at_the_barrier(Params) {
  if (threadIdx.x < 32) sync_block();
}
__global__ void barriers_in_two_branches(Params) {
  if (threadIdx.x < 32) {
    sync_block();
  } else {
    sync_block();
  }
}
__global__ void half_a_warp_shuffles(Params p) {
  if (threadIdx.x % 32 < 16) p.data[threadIdx.x] = shuffle_xor(1.0f, 1);
}
__global__ void misaligned(Params p) { load_vector(p.data + 1 + threadIdx.x); }
__global__ void beyond_shared(Params) {
  DAFLOW_SHARED(float, line, 64);
  line[static_cast<int>(threadIdx.x) + 1] = 0;
}
__global__ void beyond_dynamic_shared(Params) {
  reinterpret_cast<float*>(dynamic_shared())[threadIdx.x + 1] = 0;
}
__global__ void unwritten_shared(Params p) {
  DAFLOW_SHARED(float, line, 64);
  p.data[threadIdx.x] = line[static_cast<int>(threadIdx.x)];
}
// Sums in floating point, in the order in which threads come.
__global__ void ordered_sum(Params p) { atomic_add(p.data + 64, p.data[threadIdx.x]); }

__global__ void warp_sum(Params p) { p.data[threadIdx.x] = sum_over_lanes(p.data[threadIdx.x], 8); }
__global__ void vote(Params p) {
  p.data[threadIdx.x] = any_in_warp(threadIdx.x == 40) ? 1.0f : 0.0f;
}

__global__ void large_static(Params) {
  DAFLOW_SHARED(float, line, 48 * 256);
  line[0] = 0;
}

using Kernel = void (*)(Params);
const Kernel kernels[] = {reverse,   refill,     half_a_block_at_the_barrier, barriers_in_two_branches,
                          half_a_warp_shuffles,  misaligned,                  beyond_shared,
                          beyond_dynamic_shared, unwritten_shared,            ordered_sum,
                          warp_sum,              vote,                        large_static};

extern "C" __attribute__((visibility("default"))) int run(int kernel, float* data, int mode) {
  return launch(kernels[kernel], dim3(1), dim3(64), 64 * sizeof(float), nullptr, Params{data, mode});
}
extern "C" __attribute__((visibility("default"))) void half_round_trip(uint16_t* halves) {
  for (int i = 0; i < 65536; ++i) halves[i] = float_to_half(half_to_float(static_cast<uint16_t>(i)));
}
extern "C" __attribute__((visibility("default"))) void narrow(const float* values, uint16_t* halves, uint16_t* bfloats,
                                                              int count) {
  for (int i = 0; i < count; ++i) {
    halves[i] = float_to_half(values[i]);
    bfloats[i] = float_to_bfloat16(values[i]);
  }
}
"""
NAMES = [
    "reverse", "refill", "half_a_block_at_the_barrier", "barriers_in_two_branches", "half_a_warp_shuffles",
    "misaligned", "beyond_shared", "beyond_dynamic_shared", "unwritten_shared", "ordered_sum", "warp_sum", "vote",
    "large_static",
]  # fmt: skip


@pytest.fixture(scope="module")
def library(compile_kernel):
    return compile_kernel("emulator_kernels", KERNELS)


def run(library, name, data=None, mode=0, seed=0):
    """The data after the kernel; RuntimeError with the emulator's message where the launch fails."""
    data = np.zeros(65, np.float32) if data is None else data.copy()
    library.cuda_host_set_seed(seed)
    error = library.run(NAMES.index(name), data.ctypes.data_as(ctypes.c_void_p), mode)
    library.cuda_host_set_seed(0)
    if error:
        raise RuntimeError(library.cuda_host_message().decode())
    return data


@pytest.fixture
def line():
    return np.arange(65, dtype=np.float32) * 1.25


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correct_kernels_do_not_depend_on_the_order_of_threads(library, line, seed):
    np.testing.assert_array_equal(run(library, "reverse", line, seed=seed)[:64], line[63::-1])
    expected = 2 * np.roll(line[:64], -1) + 1
    np.testing.assert_array_equal(run(library, "refill", line, seed=seed)[:64], expected)
    sums = line[:64].reshape(8, 8).sum(1).repeat(8)
    np.testing.assert_allclose(run(library, "warp_sum", line, seed=seed)[:64], sums, rtol=1e-6)
    np.testing.assert_array_equal(run(library, "vote", line, seed=seed)[:64], [0.0] * 32 + [1.0] * 32)


@pytest.mark.parametrize("name", ["reverse", "refill"])
def test_a_missing_barrier_changes_the_result(library, line, name):
    right = run(library, name, line)
    wrong = [run(library, name, line, mode=1, seed=seed) for seed in range(4)]
    assert all(not np.array_equal(right, result, equal_nan=True) for result in wrong)
    assert not np.array_equal(wrong[1], wrong[2], equal_nan=True)  # and with the order: a race, not another algorithm


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "half_a_block_at_the_barrier",
            r"deadlock: thread 0 waits at the block barrier of .*\.cu:\d+ but thread 32 has",
        ),
        ("barriers_in_two_branches", r"threads of one block meet at different places: .*\.cu:\d+, .*\.cu:\d+"),
        ("half_a_warp_shuffles", r"deadlock: thread 0 waits at the shuffle of .* but thread 16 has finished"),
        ("misaligned", r"misaligned vector access at .*\.cu:\d+"),
        ("beyond_shared", r"index outside a shared array at index:64"),
        ("beyond_dynamic_shared", r"a write past the end of dynamic shared memory"),
        ("large_static", r"a block needs 49408 bytes of shared memory, 49152 of them static, and has 49152"),
    ],
)
@pytest.mark.parametrize("seed", [0, 3])
def test_mistakes_are_reported_with_their_place(library, name, message, seed):
    with pytest.raises(RuntimeError, match=message):
        run(library, name, seed=seed)


def test_a_launch_after_a_failed_one_works(library, line):
    with pytest.raises(RuntimeError):
        run(library, "half_a_block_at_the_barrier")
    np.testing.assert_array_equal(run(library, "reverse", line)[:64], line[63::-1])


def test_shared_memory_starts_as_nan(library):
    assert np.isnan(run(library, "unwritten_shared")[:64]).all()


def test_float_atomics_show_their_dependence_on_order(library):
    data = np.zeros(65, np.float32)
    data[:64] = np.random.default_rng(0).standard_normal(64) * np.logspace(-3, 3, 64)
    assert len({run(library, "ordered_sum", data, seed=seed)[64].item() for seed in range(8)}) > 1


def test_half_precision_conversions_are_those_of_torch(library):
    every = np.arange(65536, dtype=np.uint16)
    back = np.empty_like(every)
    library.half_round_trip(back.ctypes.data_as(ctypes.c_void_p))
    numbers = ~np.isnan(every.view(np.float16))
    np.testing.assert_array_equal(back[numbers], every[numbers])

    bits = torch.randint(-(2**31), 2**31, (200000,), dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(65536, dtype=torch.int32) << 16) + 0x8000  # halfway between bfloat16 neighbours
    half_ties = torch.arange(4096, dtype=torch.float32) + 0.5
    values = torch.cat([bits.view(torch.float32), ties.view(torch.float32), half_ties, half_ties * 2.0**-24])
    values = values[values.isfinite()].contiguous()
    halves, bfloats = (np.empty(len(values), np.uint16) for _ in range(2))
    pointers = [
        ctypes.c_void_p(values.data_ptr()),
        *(array.ctypes.data_as(ctypes.c_void_p) for array in (halves, bfloats)),
    ]
    library.narrow(*pointers, len(values))
    np.testing.assert_array_equal(halves.view(np.int16), values.half().view(torch.int16).numpy())
    np.testing.assert_array_equal(bfloats.view(np.int16), values.bfloat16().view(torch.int16).numpy())
