"""The CUDA kernels of volume_lookup, run on the CPU (tests/cuda_host), against the reference."""

import pytest
import torch

from daflow_ext import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
WILD = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -5.0, -1.0, -0.5, 0.0, 2.0]


def make_inputs(batch, size, sizes2, dtype=torch.float32, centres=None):
    height, width = size
    pyramid = [torch.randn(batch, height, width, *size2).to(dtype) for size2 in sizes2]
    shape = (batch, 2, height, width) if centres is None else (batch, centres, 2, height, width)
    coords = torch.rand(shape) * (max(sizes2[0]) + 4) - 2
    flat = coords.view(-1, 2, height * width)
    flat[0, 0, : len(WILD)] = torch.tensor(WILD)[: height * width]
    flat[-1, 1, -len(WILD) :] = torch.tensor(WILD)[: height * width]
    return pyramid, coords


def close(actual, expected, dtype=torch.float32):
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected.float(), rtol=EPS[dtype], atol=1e-5)


def backward(cuda_host, grad, pyramid, coords, radius, order="xy", need="vc"):
    return cuda_host.ops.volume_lookup_backward(
        grad, pyramid, coords, radius, order=order, need_volume="v" in need, need_coords="c" in need
    )


def check(cuda_host, pyramid, coords, radius, order="xy"):
    out = cuda_host.ops.volume_lookup(pyramid, coords, radius, order=order)
    assert out.is_contiguous()
    close(out, reference.volume_lookup(pyramid, coords, radius, order=order))
    leaves = [tensor.detach().float().requires_grad_() for tensor in (coords, *pyramid)]
    truth = reference.volume_lookup(leaves[1:], leaves[0], radius, order=order)
    grad = torch.randn_like(truth)
    truth.backward(grad)
    actual = backward(cuda_host, grad, pyramid, coords, radius, order)
    assert len(actual) == len(leaves)
    for value, leaf, given in zip(actual, leaves, (coords, *pyramid), strict=True):
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        assert value.shape == given.shape
        size = max(expected.abs().max().item(), 1.0) if expected.numel() else 1.0
        torch.testing.assert_close(value.float(), expected, rtol=EPS[given.dtype], atol=1e-5 * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("radius", "order"), [([4, 4], "xy"), ([1, 2], "yx"), ([0, 0], "xy")])
def test_against_the_reference(cuda_host, poisoned, dtype, radius, order):
    check(cuda_host, *make_inputs(2, (5, 9), [(6, 11), (3, 5), (1, 2), (1, 1), (0, 0)], dtype), radius, order)


@pytest.mark.parametrize("radius", [[0, 9], [9, 0], [8, 9], [0, 80]])
def test_every_shape_of_window(cuda_host, poisoned, radius):
    check(cuda_host, *make_inputs(1, (3, 5), [(9, 40), (4, 20)]), radius)


def test_several_centres_meet_in_one_slice(cuda_host, poisoned):
    check(cuda_host, *make_inputs(2, (5, 6), [(5, 6), (2, 3)], centres=3), [2, 1])


def test_strides(cuda_host, poisoned):
    pyramid, coords = make_inputs(2, (4, 5), [(6, 7), (3, 4)])
    turned = [volume.permute(3, 0, 4, 2, 1).contiguous().permute(1, 4, 3, 0, 2) for volume in pyramid]
    assert not turned[0].is_contiguous()
    check(cuda_host, turned, coords.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), [2, 2])


@pytest.mark.parametrize("out_dtype", DTYPES)
def test_output_dtypes(cuda_host, poisoned, out_dtype):
    pyramid, coords = make_inputs(1, (4, 5), [(6, 7)])
    out = cuda_host.ops.volume_lookup(pyramid, coords, [2, 2], out_dtype=out_dtype)
    close(out, reference.volume_lookup(pyramid, coords, [2, 2]), out_dtype)
    grad = torch.randn(out.shape).to(out_dtype)
    for low, full in zip(
        backward(cuda_host, grad, pyramid, coords, [2, 2]),
        backward(cuda_host, grad.float(), pyramid, coords, [2, 2]),
        strict=True,
    ):
        assert torch.equal(low, full)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (1, 3, 0)])
def test_empty(cuda_host, shape):
    volume, coords = torch.randn(*shape, 4, 4), torch.randn(shape[0], 2, *shape[1:])
    out = cuda_host.ops.volume_lookup([volume], coords, [1, 1])
    assert out.shape == (shape[0], 9, *shape[1:])
    grads = backward(cuda_host, torch.randn_like(out), [volume], coords, [1, 1])
    assert [grad.shape for grad in grads] == [coords.shape, volume.shape]


def test_gradients_that_are_not_needed_are_empty(cuda_host):
    pyramid, coords = make_inputs(1, (3, 5), [(4, 4), (2, 2)])
    grad = torch.randn(1, 18, 3, 5)
    everything = backward(cuda_host, grad, pyramid, coords, [1, 1])
    only_volume = backward(cuda_host, grad, pyramid, coords, [1, 1], need="v")
    assert only_volume[0].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(only_volume[1:], everything[1:], strict=True))
    only_coords = backward(cuda_host, grad, pyramid, coords, [1, 1], need="c")
    assert len(only_coords) == 1
    assert torch.equal(only_coords[0], everything[0])


def test_bits_do_not_depend_on_the_order_of_threads(cuda_host):
    pyramid, coords = make_inputs(2, (6, 9), [(6, 9), (3, 4)], centres=2)
    grad = torch.randn(2, 2, 50, 6, 9)
    results = []
    for seed in (0, 1, 2):
        with cuda_host.shuffled(seed):
            out = cuda_host.ops.volume_lookup(pyramid, coords, [2, 2])
            results.append([out, *backward(cuda_host, grad, pyramid, coords, [2, 2])])
    for other in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("volume", "coords", "message"),
    [
        (torch.zeros(1, 3, 5, 4), torch.zeros(1, 2, 3, 5), r"levels must be \[B, H, W, H_l, W_l\]"),
        (torch.zeros(1, 3, 5, 4, 4), torch.zeros(1, 2, 5, 3), r"coords must be \[1, \(N,\) 2, 3, 5\]"),
        (torch.zeros(1, 3, 5, 4, 4).double(), torch.zeros(1, 2, 3, 5), "float32, float16 and bfloat16 only"),
    ],
)
def test_bad_input(cuda_host, volume, coords, message):
    with pytest.raises(RuntimeError, match=message):
        cuda_host.ops.volume_lookup([volume], coords, [1, 1])
