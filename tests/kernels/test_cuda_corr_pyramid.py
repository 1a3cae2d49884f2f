"""The CUDA kernels of corr_pyramid, run on the CPU (tests/cuda_host), against the reference."""

import pytest
import torch

from daflow_ext import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def check(cuda_host, fmap2, num_levels):
    levels = cuda_host.ops.corr_pyramid(fmap2, num_levels)
    expected = reference.corr_pyramid(fmap2, num_levels)
    assert len(levels) == num_levels
    for level, truth in zip(levels, expected, strict=True):
        assert level.dtype == fmap2.dtype
        assert level.shape == truth.shape
        assert level.permute(0, 2, 3, 1).is_contiguous()
        torch.testing.assert_close(level, truth, rtol=EPS[fmap2.dtype], atol=1e-6)
    leaf = fmap2.detach().float().requires_grad_()
    truth = reference.corr_pyramid(leaf, num_levels)
    grads = [torch.randn(level.shape).to(fmap2.dtype) for level in truth]
    torch.autograd.backward([level for level in truth if level.numel()], [g.float() for g in grads if g.numel()])
    grad = cuda_host.ops.corr_pyramid_backward(grads)
    assert grad.permute(0, 2, 3, 1).is_contiguous()
    torch.testing.assert_close(grad.float(), leaf.grad, rtol=EPS[fmap2.dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1, 8, 32), (1, 3, 17, 35), (2, 33, 9, 40), (1, 100, 1, 7), (1, 5, 70, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_against_the_reference(cuda_host, poisoned, shape, dtype, memory_format):
    check(cuda_host, torch.randn(shape).to(dtype).contiguous(memory_format=memory_format), 4)


@pytest.mark.parametrize("num_levels", [1, 2, 3, 5, 7])
def test_number_of_levels(cuda_host, poisoned, num_levels):
    """More than the four levels one pass makes, down to levels with a side of 1 and of 0."""
    check(cuda_host, torch.randn(1, 6, 35, 66), num_levels)


def test_strides(cuda_host, poisoned):
    check(cuda_host, torch.randn(3, 9, 12, 10).permute(1, 3, 0, 2)[::2, 1:], 3)
    check(cuda_host, torch.randn(1, 5, 9, 12).expand(2, -1, -1, -1), 3)


def test_every_level_is_rounded_once(cuda_host):
    """Means chained in float16 would round 1 + 2^-10 (a quarter of it) away."""
    fmap2 = torch.ones(1, 1, 4, 4, dtype=torch.float16)
    fmap2[0, 0, 0, :4] += 2.0**-10
    fmap2[0, 0, 1, :4] += 2.0**-10
    levels = cuda_host.ops.corr_pyramid(fmap2, 3)
    exact = torch.nn.functional.avg_pool2d(fmap2.double(), 4)
    assert torch.equal(levels[2], exact.half())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_levels_in_another_dtype(cuda_host, poisoned, dtype, out_dtype):
    fmap2 = torch.randn(2, 5, 35, 66).to(dtype)
    levels = cuda_host.ops.corr_pyramid(fmap2, 6, out_dtype=out_dtype)
    for level, truth in zip(levels, reference.corr_pyramid(fmap2, 6, out_dtype=out_dtype), strict=True):
        assert level.permute(0, 2, 3, 1).is_contiguous()
        torch.testing.assert_close(level, truth, rtol=EPS[out_dtype], atol=1e-6)
    grad = cuda_host.ops.corr_pyramid_backward(levels, out_dtype=dtype)
    exact = cuda_host.ops.corr_pyramid_backward([level.float() for level in levels])
    assert torch.equal(grad, exact.to(dtype))


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 0, 8, 8), (2, 4, 0, 8)])
def test_empty(cuda_host, shape):
    levels = cuda_host.ops.corr_pyramid(torch.randn(shape), 2)
    assert [level.shape for level in levels] == [shape, (*shape[:2], shape[2] // 2, shape[3] // 2)]
    assert cuda_host.ops.corr_pyramid_backward(levels).shape == shape


def test_bits_do_not_depend_on_the_order_of_threads(cuda_host):
    fmap2 = torch.randn(1, 33, 20, 40)
    results = []
    for seed in (0, 1, 2):
        with cuda_host.shuffled(seed):
            levels = cuda_host.ops.corr_pyramid(fmap2, 4)
            results.append([*levels, cuda_host.ops.corr_pyramid_backward(levels)])
    for other in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], other, strict=True))


def test_bad_input(cuda_host):
    with pytest.raises(RuntimeError, match=r"fmap2 must be \[B, C, H, W\], got \[3, 4\]"):
        cuda_host.ops.corr_pyramid(torch.zeros(3, 4), 2)
    with pytest.raises(RuntimeError, match="1 to 16 levels, got 0"):
        cuda_host.ops.corr_pyramid(torch.zeros(1, 1, 3, 4), 0)
    with pytest.raises(RuntimeError, match=r"gradient of level 1 is \[1, 1, 3, 4\] but level 0 is \[1, 1, 3, 4\]"):
        cuda_host.ops.corr_pyramid_backward([torch.zeros(1, 1, 3, 4)] * 2)
