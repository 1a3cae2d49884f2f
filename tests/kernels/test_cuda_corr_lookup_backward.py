"""The gradients of corr_lookup on tensor cores, run on the CPU (tests/cuda_host), against the reference."""

import math

import pytest
import torch

from daflow_ext import reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32]  # float32 as tf32
EPS = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
WILD = [math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -5.0, -1.0, -0.5, 0.0, 2.0]


def channels_last(*shape, dtype):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def make_inputs(batch, channels, size, sizes2, dtype, centres=(), flow="smooth"):
    """fmap1, pyramid, coords; the first coordinates of the first map and the last of the last are wild."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    coords = torch.stack([x, y]).float().expand(batch, *centres, 2, *size).clone()
    if flow == "smooth":
        coords += torch.sin(coords.flip(-3) / 5) * 2.3 + 0.4
    elif flow == "random":
        coords = torch.rand(coords.shape) * torch.tensor(sizes2[0][::-1]).view(2, 1, 1)
    flat = coords.view(-1, 2, size[0] * size[1])
    count = min(len(WILD), flat.shape[-1])
    flat[0, 0, :count] = torch.tensor(WILD[:count])
    flat[-1, 1, -count:] = torch.tensor(WILD[:count])
    pyramid = [channels_last(batch, channels, *size2, dtype=dtype) for size2 in sizes2]
    return channels_last(batch, channels, *size, dtype=dtype), pyramid, coords


def gradients(grad, fmap1, pyramid, coords, radius, *, scale=None, order="xy"):
    """The reference's [grad_fmap1, *grad_pyramid], in float32 from the stored values."""
    leaves = [tensor.detach().float().requires_grad_() for tensor in (fmap1, *pyramid)]
    reference.corr_lookup(leaves[0], leaves[1:], coords, radius, scale=scale, order=order).backward(grad.float())
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def backward(cuda_host, grad, fmap1, pyramid, coords, radius, *, scale=None, order="xy", deterministic=True, need="fp"):
    return cuda_host.ops.corr_lookup_backward(
        grad, fmap1, pyramid, coords, radius, scale=scale, order=order, need_fmap1="f" in need,
        need_pyramid="p" in need, need_coords="c" in need, deterministic=deterministic, allow_tf32=True,
    )  # fmt: skip


def check(cuda_host, grad, fmap1, pyramid, coords, radius, *, deterministic=True, **options):
    """Within the rounding of every product: 2^-11 for the gradient of a tap, and for float32 features as much again."""
    inputs = fmap1, pyramid, coords, radius
    actual = backward(cuda_host, grad, *inputs, deterministic=deterministic, **options)
    truth = gradients(grad, *inputs, **options)
    sizes = gradients(grad.abs(), fmap1.abs(), [level.abs() for level in pyramid], coords, radius, **options)
    rounding = 2.0**-10 if fmap1.dtype == torch.float32 else 2.0**-11
    assert actual[1].numel() == 0  # coords
    for value, expected, size in zip([actual[0], *actual[2:]], truth, sizes, strict=True):
        assert value.dtype == fmap1.dtype
        assert value.shape == expected.shape
        assert value.permute(0, 2, 3, 1).is_contiguous()
        allowed = 1.01 * rounding * size + EPS[fmap1.dtype] * expected.abs() + 2e-6 * size + 1e-6
        assert ((value.float() - expected).abs() <= allowed).all()
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 32, 100, 264])
@pytest.mark.parametrize("deterministic", [False, True])
def test_against_the_reference(cuda_host, poisoned, channels, dtype, deterministic):
    """Grids that are no whole number of tiles, levels down to one pixel and none, aligned vectors and not."""
    inputs = make_inputs(2, channels, (11, 9), [(11, 9), (5, 4), (1, 1), (0, 2)], dtype)
    check(cuda_host, torch.randn(2, 4 * 25, 11, 9), *inputs, [2, 2], deterministic=deterministic)


@pytest.mark.parametrize("flow", ["none", "smooth", "random"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_window_of_raft(cuda_host, poisoned, dtype, flow):
    inputs = make_inputs(1, 32, (17, 16), [(34, 40), (17, 20), (8, 10)], dtype, flow=flow)
    check(cuda_host, torch.randn(1, 3 * 81, 17, 16), *inputs, [4, 4], scale=0.125)


@pytest.mark.parametrize(
    ("radius", "products"),
    [([0, 0], True), ([0, 9], True), ([7, 7], True), ([20, 2], True), ([63, 0], True), ([8, 9], False)],
)
@pytest.mark.parametrize("order", ["xy", "yx"])
def test_every_shape_of_window(cuda_host, poisoned, radius, products, order):
    """Windows of more taps than a chunk are left to the kernels without tensor cores."""
    inputs = make_inputs(1, 8, (9, 10), [(12, 30)], torch.float16)
    samples = (2 * radius[0] + 1) * (2 * radius[1] + 1)
    check(cuda_host, torch.randn(1, samples, 9, 10), *inputs, radius, order=order)
    backward(cuda_host, torch.randn(1, samples, 9, 10), *inputs, radius, order=order, need="f")
    assert (cuda_host.products > 0) == products


@pytest.mark.parametrize("need", ["f", "p"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_cores_make_both_gradients(cuda_host, dtype, need):
    inputs = make_inputs(1, 16, (9, 10), [(9, 10)], dtype)
    everything = backward(cuda_host, torch.ones(1, 25, 9, 10), *inputs, [2, 2])
    some = backward(cuda_host, torch.ones(1, 25, 9, 10), *inputs, [2, 2], need=need)
    assert cuda_host.products > 0
    assert torch.equal(some[2 if need == "p" else 0], everything[2 if need == "p" else 0])
    assert len(some) == (3 if need == "p" else 2)


def test_wild_tiles_add_single_taps_beside_others(cuda_host, poisoned):
    """One tile of two looks everywhere: it makes no products for its own gradient, its neighbour does."""
    fmap1, pyramid, coords = make_inputs(1, 16, (8, 16), [(48, 64)], torch.bfloat16, flow="none")
    grad = torch.randn(1, 25, 8, 16)
    backward(cuda_host, grad, fmap1, pyramid, coords, [2, 2], need="f")
    calm = cuda_host.products
    coords[..., :8] = torch.rand(1, 2, 8, 8) * 48
    check(cuda_host, grad, fmap1, pyramid, coords, [2, 2])
    backward(cuda_host, grad, fmap1, pyramid, coords, [2, 2], need="f")
    assert 0 < cuda_host.products < calm


def test_every_query_looks_at_one_place(cuda_host, poisoned):
    fmap1, pyramid, coords = make_inputs(1, 8, (24, 23), [(16, 16)], torch.float16)
    coords = torch.full_like(coords, 7.25)
    check(cuda_host, torch.randn(1, 9, 24, 23), fmap1, pyramid, coords, [1, 1])


def test_more_tiles_than_a_block_looks_through_at_once(cuda_host, poisoned):
    fmap1, pyramid, coords = make_inputs(1, 1, (8, 2080), [(3, 700)], torch.float16)
    check(cuda_host, torch.randn(1, 1, 8, 2080), fmap1, pyramid, coords * 0.3, [0, 0])


@pytest.mark.parametrize("deterministic", [False, True])
def test_several_centres(cuda_host, poisoned, deterministic):
    inputs = make_inputs(2, 8, (9, 6), [(9, 6), (4, 3)], torch.float16, centres=(3,))
    check(cuda_host, torch.randn(2, 3, 2 * 15, 9, 6), *inputs, [1, 2], deterministic=deterministic)


@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_small_gradients_keep_their_bits(cuda_host, poisoned, grad_dtype):
    """Values that float16 features cannot hold: sums are made, and rounded, in float32's range."""
    fmap1, pyramid, coords = make_inputs(1, 16, (9, 10), [(9, 10)], torch.float32)
    grad = (torch.randn(1, 25, 9, 10) * (1e-4 if grad_dtype == torch.float16 else 1e-30)).to(grad_dtype)
    actual = backward(cuda_host, grad, fmap1, pyramid, coords, [2, 2])
    for value, truth in zip(actual[::2], gradients(grad, fmap1, pyramid, coords, [2, 2]), strict=True):
        torch.testing.assert_close(value, truth, rtol=0, atol=2e-3 * truth.abs().max().item())
    assert backward(cuda_host, grad, fmap1, pyramid, coords, [2, 2])[0].any()


@pytest.mark.parametrize("first", [0, 1, 8])
def test_strides(cuda_host, poisoned, first):
    """Channel slices on and off 16-byte boundaries, expanded maps, gradients and coordinates in other orders."""
    fmap1 = torch.randn(2, 9, 10, 40).half()[..., first : first + 24].permute(0, 3, 1, 2)
    fmap2 = torch.randn(1, 12, 11, 24).half().permute(0, 3, 1, 2).expand(2, -1, -1, -1)
    coords = (torch.rand(2, 9, 10, 2) * 12 - 1).permute(0, 3, 1, 2)
    check(cuda_host, torch.randn(2, 9, 10, 25).permute(0, 3, 1, 2), fmap1, [fmap2], coords, [2, 2])


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5), (1, 0, 3, 5)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_empty(cuda_host, poisoned, shape, deterministic):
    fmap1, fmap2 = torch.randn(shape).half(), torch.randn(*shape[:2], 3, 3).half()
    coords, grad = torch.randn(shape[0], 2, *shape[2:]), torch.randn(shape[0], 9, *shape[2:])
    grads = backward(cuda_host, grad, fmap1, [fmap2], coords, [1, 1], deterministic=deterministic)
    assert [grads[0].shape, grads[2].shape] == [fmap1.shape, fmap2.shape]
    assert not grads[2].any()


@pytest.mark.parametrize(("dtype", "flow"), [*((dtype, "smooth") for dtype in DTYPES), (torch.float16, "random")])
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(cuda_host, dtype, flow):
    """Three levels: blocks share the last two, and their shares are added in one order."""
    inputs = make_inputs(1, 12, (18, 9), [(30, 26), (15, 13), (7, 6)], dtype, flow=flow)
    grad = torch.randn(1, 75, 18, 9)
    exact, fast = [], []
    for seed in (0, 1, 2):
        with cuda_host.shuffled(seed):
            exact.append(backward(cuda_host, grad, *inputs, [2, 2]))
            fast.append(backward(cuda_host, grad, *inputs, [2, 2], deterministic=False))
    for other in exact[1:]:
        for first, second in zip(exact[0], other, strict=True):
            assert torch.equal(first, second)
    for other in fast:
        for first, second in zip(exact[0], other, strict=True):
            torch.testing.assert_close(first, second, rtol=2 * EPS[dtype], atol=1e-5)
        assert torch.equal(exact[0][0], other[0])  # nothing of fmap1 or level 0 is added by two
        assert torch.equal(exact[0][2], other[2])
    if dtype == torch.float32:
        assert not torch.equal(fast[1][3], fast[2][3])  # the reason for the deterministic mode
