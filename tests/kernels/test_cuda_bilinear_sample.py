"""The CUDA kernels of bilinear_sample, run on the CPU (tests/cuda_host), against the reference."""

import pytest
import torch

from daflow_ext import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
WILD = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -5.0, -1.0, -0.5, 0.0, 2.0]


def make_coords(batch, size, inside, groups=1):
    height, width = size
    shape = (batch, 2, height, width) if groups == 1 else (batch, groups, 2, height, width)
    coords = torch.rand(shape) * (max(inside) + 4) - 2
    flat = coords.view(-1, 2, height * width)
    flat[0, 0, : len(WILD)] = torch.tensor(WILD)[: height * width]
    flat[-1, 1, -len(WILD) :] = torch.tensor(WILD)[: height * width]
    return coords


def backward(cuda_host, grad, feat, coords, *, padding="zeros", groups=1, sharpness=1, need="fc", deterministic=False):
    return cuda_host.ops.bilinear_sample_backward(
        grad, feat, coords, padding=padding, groups=groups, sharpness=sharpness, need_feat="f" in need,
        need_coords="c" in need, deterministic=deterministic,
    )  # fmt: skip


def check(cuda_host, feat, coords, grad=None, **options):
    out = cuda_host.ops.bilinear_sample(feat, coords, **options)
    expected = reference.bilinear_sample(feat, coords, **options)
    assert out.dtype == feat.dtype
    channels_last = feat.shape[1] > 1 and feat.stride(1) == 1
    assert (out.permute(0, 2, 3, 1) if channels_last else out).is_contiguous()
    torch.testing.assert_close(out, expected, rtol=EPS[feat.dtype], atol=2e-6)

    leaves = [feat.detach().float().requires_grad_(), coords.detach().clone().requires_grad_()]
    grad = torch.randn(out.shape).to(feat.dtype) if grad is None else grad
    reference.bilinear_sample(*leaves, **options).backward(grad.float())
    for deterministic in (False, True):
        actual = backward(cuda_host, grad, feat, coords, **options, deterministic=deterministic)
        for value, leaf, dtype in zip(actual, leaves, (feat.dtype, torch.float32), strict=True):
            assert value.dtype == dtype
            assert value.shape == leaf.shape
            size = max(leaf.grad.abs().max().item(), 1.0)
            torch.testing.assert_close(value.float(), leaf.grad, rtol=EPS[dtype], atol=4e-6 * size)
        grad_feat = actual[0]
        assert (grad_feat.permute(0, 2, 3, 1) if channels_last else grad_feat).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 32, 100, 300])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_against_the_reference(cuda_host, poisoned, channels, dtype, memory_format):
    feat = torch.randn(2, channels, 6, 7).to(dtype).contiguous(memory_format=memory_format)
    check(cuda_host, feat, make_coords(2, (5, 9), (6, 7)))


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("sharpness", [1, 2, 7])
@pytest.mark.parametrize("size", [(6, 7), (1, 7), (5, 1), (1, 1)])
def test_padding_sharpness_and_thin_maps(cuda_host, poisoned, padding, sharpness, size):
    feat = torch.randn(1, 8, *size).contiguous(memory_format=torch.channels_last)
    check(cuda_host, feat, make_coords(1, (4, 9), size), padding=padding, sharpness=sharpness)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (64, 8), (6, 6)])
def test_groups(cuda_host, poisoned, channels, groups, memory_format):
    feat = torch.randn(2, channels, 6, 7).contiguous(memory_format=memory_format)
    check(cuda_host, feat, make_coords(2, (5, 6), (6, 7), groups), groups=groups, padding="border")


def test_strides(cuda_host, poisoned):
    feat = torch.randn(6, 2, 9, 16).permute(1, 3, 0, 2)[:, 3:]
    coords = (torch.rand(2, 5, 4, 2) * 9 - 1).permute(0, 3, 1, 2)
    check(cuda_host, feat, coords, grad=torch.randn(2, 13, 4, 5).transpose(2, 3))
    check(cuda_host, feat[:1].expand(2, -1, -1, -1), coords)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 1, 8])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("grad_channels_last", [True, False])
def test_vectors_where_memory_allows_them(cuda_host, poisoned, dtype, first, groups, grad_channels_last):
    """Channels-last slices on and off 16-byte boundaries, and groups of 4, 8 and 16 channels."""
    channels = 16
    feat = torch.randn(2, 5, 6, 32).to(dtype)[..., first : first + channels].permute(0, 3, 1, 2)
    grad = torch.randn(2, channels, 4, 9).to(dtype)
    memory_format = torch.channels_last if grad_channels_last else torch.contiguous_format
    check(cuda_host, feat, make_coords(2, (4, 9), (5, 6), groups), grad=grad.contiguous(memory_format=memory_format),
          groups=groups)  # fmt: skip


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_maps_without_pixels_give_zeros(cuda_host, poisoned, size, padding):
    feat, coords = torch.randn(1, 3, *size), torch.randn(1, 2, 3, 5)
    out = cuda_host.ops.bilinear_sample(feat, coords, padding=padding)
    assert out.shape == (1, 3, 3, 5)
    assert not out.any()
    grads = backward(cuda_host, torch.ones_like(out), feat, coords, padding=padding)
    assert grads[0].shape == feat.shape
    assert not grads[1].any()


@pytest.mark.parametrize(("shape", "out"), [((0, 4, 3, 5), (2, 2)), ((1, 4, 3, 5), (0, 2)), ((1, 0, 3, 5), (2, 2))])
@pytest.mark.parametrize("deterministic", [False, True])
def test_empty(cuda_host, poisoned, shape, out, deterministic):
    feat, coords = torch.randn(shape), torch.randn(shape[0], 2, *out)
    result = cuda_host.ops.bilinear_sample(feat, coords)
    assert result.shape == (*shape[:2], *out)
    grads = backward(cuda_host, result, feat, coords, deterministic=deterministic)
    assert [grad.shape for grad in grads] == [feat.shape, coords.shape]
    assert not grads[0].any()
    assert not grads[1].any()


def test_table_by_hand(cuda_host):
    feat = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).view(1, 1, 2, 2)
    coords = torch.tensor([[0.0, 1.0, 0.5, 0.25, -0.5, 9.0], [0.0, 1.0, 0.5, 0.0, 0.0, 0.0]]).view(1, 2, 1, 6)
    assert cuda_host.ops.bilinear_sample(feat, coords).flatten().tolist() == [1, 5, 2.75, 1.25, 0.5, 0]
    border = cuda_host.ops.bilinear_sample(feat, coords, padding="border")
    assert border.flatten().tolist() == [1, 5, 2.75, 1.25, 1, 2]
    sharp = cuda_host.ops.bilinear_sample(feat, coords, sharpness=2)
    assert sharp.flatten().tolist() == [1, 5, 2.75, 1, 0.5, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [12, 16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bits_do_not_depend_on_the_order_of_threads(cuda_host, memory_format, channels, dtype):
    """With threads, warps and blocks in index order and shuffled; channels in vectors and one by one."""
    feat = torch.randn(2, channels, 4, 5).to(dtype).contiguous(memory_format=memory_format)
    coords = make_coords(2, (19, 20), (4, 5))
    grad = torch.randn(2, channels, 19, 20).to(dtype).contiguous(memory_format=memory_format)
    exact, fast = [], []
    for seed in (0, 1, 2):
        with cuda_host.shuffled(seed):
            out = cuda_host.ops.bilinear_sample(feat, coords)
            exact.append([out, *backward(cuda_host, grad, feat, coords, deterministic=True)])
            fast.append(backward(cuda_host, grad, feat, coords)[0])
    for other in exact[1:]:
        assert all(torch.equal(first, second) for first, second in zip(exact[0], other, strict=True))
    if dtype == torch.float32:
        assert not torch.equal(fast[1], fast[2])  # float atomics: the reason for the exact sums


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feat": torch.zeros(4, 3, 5)}, r"feat must be \[B, C, H, W\], got \[4, 3, 5\]"),
        ({"feat": torch.zeros(1, 4, 3, 5).double()}, "float32, float16 and bfloat16 only"),
        ({"coords": torch.zeros(2, 2, 3, 5)}, "coords must be"),
        ({"groups": 2}, r"groups=2 must divide the channels of feat \[1, 4, 3, 5\]"),
        ({"padding": "reflection"}, "padding must be 'zeros' or 'border', got 'reflection'"),
        ({"sharpness": 0}, "sharpness must be 1 to 2.20, got 0"),
    ],
)
def test_bad_input(cuda_host, change, message):
    given = {"feat": torch.zeros(1, 4, 3, 5), "coords": torch.zeros(1, 2, 3, 5), "groups": 1, "padding": "zeros"}
    given |= {"sharpness": 1} | change
    with pytest.raises(RuntimeError, match=message):
        cuda_host.ops.bilinear_sample(given.pop("feat"), given.pop("coords"), **given)
