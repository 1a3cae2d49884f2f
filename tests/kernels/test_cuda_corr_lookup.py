"""The CUDA kernels of corr_lookup, run on the CPU (tests/cuda_host), against the reference."""

import pytest
import torch

from daflow_ext import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
WILD = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.0**31, -5.0, -1.0, -0.5, 0.0, 2.0]


def make_inputs(batch, channels, size, sizes2, dtype, centres=None, spread=3.0):
    """fmap1, pyramid, coords around the pixel grid; the first coordinates are wild."""
    height, width = size
    fmap1 = torch.randn(batch, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    pyramid = [
        torch.randn(batch, channels, *size2).to(dtype).contiguous(memory_format=torch.channels_last) for size2 in sizes2
    ]
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).float()
    shape = (batch, 2, height, width) if centres is None else (batch, centres, 2, height, width)
    coords = grid + spread * torch.randn(shape)
    flat = coords.view(-1, 2, height * width)
    count = min(len(WILD), height * width)
    flat[0, 0, :count] = torch.tensor(WILD[:count])
    flat[-1, 1, -count:] = torch.tensor(WILD[:count])
    return fmap1, pyramid, coords


def close(actual, expected, dtype=torch.float32, scale=1.0):
    """Equal but for rounding to dtype, and for the order of sums of values of size `scale`."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.float(), expected.float(), rtol=EPS[dtype], atol=2e-5 * scale)


def gradients(grad, fmap1, pyramid, coords, radius, **options):
    """The reference's [grad_fmap1, grad_coords, *grad_pyramid], in float32 from the stored values."""
    leaves = [tensor.detach().float().requires_grad_() for tensor in (fmap1, coords, *pyramid)]
    reference.corr_lookup(leaves[0], leaves[2:], leaves[1], radius, **options).backward(grad.float())
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def backward(
    cuda_host, grad, fmap1, pyramid, coords, radius, *, scale=None, order="xy", deterministic=False, need="fpc"
):
    return cuda_host.ops.corr_lookup_backward(
        grad, fmap1, pyramid, coords, radius, scale=scale, order=order, need_fmap1="f" in need,
        need_pyramid="p" in need, need_coords="c" in need, deterministic=deterministic,
    )  # fmt: skip


def check_backward(cuda_host, grad, *inputs, deterministic, **options):
    dtype = inputs[0].dtype
    actual = backward(cuda_host, grad, *inputs, deterministic=deterministic, **options)
    expected = gradients(grad, *inputs, **options)
    for name, value, truth in zip(["fmap1", "coords", *["pyramid"] * 9], actual, expected, strict=False):
        size = max(truth.abs().max().item(), 1.0) if truth.numel() else 1.0
        if dtype != torch.float32 and name != "coords":
            size *= 25  # on tensor cores gradients of taps keep 11 bits; test_cuda_corr_lookup_backward.py is exact
        close(value, truth, torch.float32 if name == "coords" else dtype, size)
    assert len(actual) == len(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 32, 100, 256])
def test_forward(cuda_host, poisoned, channels, dtype):
    inputs = make_inputs(2, channels, (5, 9), [(7, 12), (3, 6), (1, 3), (1, 1), (0, 0)], dtype)
    for order, radius in (("xy", [4, 4]), ("yx", [1, 2])):
        out = cuda_host.ops.corr_lookup(*inputs, radius, order=order)
        assert out.is_contiguous()
        close(out, reference.corr_lookup(*inputs, radius, order=order))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 100, 264])
@pytest.mark.parametrize("deterministic", [False, True])
def test_backward(cuda_host, poisoned, channels, dtype, deterministic):
    inputs = make_inputs(2, channels, (5, 9), [(7, 12), (3, 6), (1, 1), (0, 2)], dtype)
    grad = torch.randn(2, 4 * 15, 5, 9)
    check_backward(cuda_host, grad, *inputs, [2, 1], order="yx", deterministic=deterministic)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_of_the_raft_window(cuda_host, poisoned, dtype):
    inputs = make_inputs(1, 32, (6, 7), [(12, 14), (6, 7)], dtype)
    check_backward(cuda_host, torch.randn(1, 162, 6, 7), *inputs, [4, 4], scale=0.125, deterministic=True)


@pytest.mark.parametrize("radius", [[0, 0], [0, 9], [9, 0], [8, 9], [0, 80], [20, 1]])
def test_every_shape_of_window(cuda_host, poisoned, radius):
    """Windows larger than a chunk of taps, thin ones, and the single pixel."""
    inputs = make_inputs(1, 4, (3, 5), [(9, 40), (4, 20)], torch.float32, spread=9.0)
    out = cuda_host.ops.corr_lookup(*inputs, radius)
    close(out, reference.corr_lookup(*inputs, radius))
    check_backward(cuda_host, torch.randn_like(out), *inputs, radius, deterministic=True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_several_centres(cuda_host, poisoned, deterministic):
    inputs = make_inputs(2, 8, (5, 6), [(5, 6), (2, 3)], torch.float32, centres=3, spread=6.0)
    out = cuda_host.ops.corr_lookup(*inputs, [1, 2])
    assert out.shape == (2, 3, 2 * 15, 5, 6)
    close(out, reference.corr_lookup(*inputs, [1, 2]))
    check_backward(cuda_host, torch.randn_like(out), *inputs, [1, 2], deterministic=deterministic)


@pytest.mark.parametrize("out_dtype", DTYPES)
def test_output_dtypes(cuda_host, poisoned, out_dtype):
    inputs = make_inputs(1, 16, (4, 9), [(5, 6), (2, 3)], torch.float16)
    out = cuda_host.ops.corr_lookup(*inputs, [3, 3], scale=2.0, out_dtype=out_dtype)
    close(out, reference.corr_lookup(*inputs, [3, 3], scale=2.0), out_dtype)
    grad = torch.randn(out.shape).to(out_dtype)
    check_backward(cuda_host, grad, *inputs, [3, 3], scale=2.0, deterministic=False)


def test_scale_is_applied_before_rounding(cuda_host):
    """A product beyond float16's range that its scale brings back."""
    fmap = torch.full((1, 64, 1, 1), 100.0, dtype=torch.float16)
    out = cuda_host.ops.corr_lookup(fmap, [fmap], torch.zeros(1, 2, 1, 1), [0, 0], scale=0.01, out_dtype=torch.float16)
    assert out.item() == 6400.0


def test_table_by_hand(cuda_host):
    """One query at (0.5, 0) over a row of two pixels: x offset slow, zeros outside."""
    fmap1, fmap2 = torch.full((1, 1, 1, 1), 2.0), torch.tensor([3.0, 5.0]).view(1, 1, 1, 2)
    coords = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1)
    out = cuda_host.ops.corr_lookup(fmap1, [fmap2], coords, [1, 1], scale=1.0).flatten()
    assert out.tolist() == [0, 3, 0, 0, 8, 0, 0, 5, 0]
    out = cuda_host.ops.corr_lookup(fmap1, [fmap2], coords, [1, 1], scale=1.0, order="yx").flatten()
    assert out.tolist() == [0, 0, 0, 3, 8, 5, 0, 0, 0]


def layouts():
    video = torch.randn(3, 5, 6, 16).permute(0, 3, 1, 2)  # channels-last frames, pairs (i, i + 1) are views
    padded = torch.randn(2, 8, 9, 24).permute(0, 3, 1, 2)
    yield "video pairs", video[:-1], video[1:]
    yield "one pair for all", video[:1].expand(2, -1, -1, -1), video[1:2].expand(2, -1, -1, -1)
    yield "channel slice", padded[:, 4:20, :5, :6], padded[:, :16, 1:, 2:]
    yield "unaligned", padded[:, 3:19, :5, :6], padded[:, 1:17]
    yield "NCHW", torch.randn(2, 16, 5, 6), torch.randn(2, 16, 7, 8)
    yield (
        "x fastest, then c",
        torch.randn(2, 6, 5, 16).permute(0, 3, 2, 1),
        torch.randn(2, 6, 16, 5).permute(0, 2, 3, 1),
    )


@pytest.mark.parametrize(("fmap1", "fmap2"), [pytest.param(a, b, id=name) for name, a, b in layouts()])
def test_strides(cuda_host, poisoned, fmap1, fmap2):
    coords = (torch.rand(2, 5, 6, 2) * 8 - 1).permute(0, 3, 1, 2)
    out = cuda_host.ops.corr_lookup(fmap1, [fmap2], coords, [2, 2])
    close(out, reference.corr_lookup(fmap1, [fmap2], coords, [2, 2]))
    grad = torch.randn(2, 5, 6, 25).permute(0, 3, 1, 2)
    check_backward(cuda_host, grad, fmap1, [fmap2], coords, [2, 2], deterministic=True)


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5), (1, 4, 3, 0), (1, 0, 3, 5)])
def test_empty(cuda_host, shape):
    fmap1, fmap2 = torch.randn(shape), torch.randn(*shape[:2], 3, 3)
    coords = torch.randn(shape[0], 2, *shape[2:])
    out = cuda_host.ops.corr_lookup(fmap1, [fmap2], coords, [1, 1])
    assert out.shape == (shape[0], 9, *shape[2:])
    for deterministic in (False, True):
        grads = backward(cuda_host, torch.randn_like(out), fmap1, [fmap2], coords, [1, 1], deterministic=deterministic)
        assert [grad.shape for grad in grads] == [fmap1.shape, coords.shape, fmap2.shape]
        assert not grads[2].any()


def test_gradients_that_are_not_needed_are_empty(cuda_host):
    inputs = make_inputs(1, 4, (3, 5), [(4, 4)], torch.float32)
    grad = torch.randn(1, 9, 3, 5)
    everything = backward(cuda_host, grad, *inputs, [1, 1])
    for need in ("f", "c", "p", ""):
        some = backward(cuda_host, grad, *inputs, [1, 1], need=need)
        assert len(some) == (3 if "p" in need else 2)
        for key, value, full in zip("fcp", some, everything, strict=False):
            assert torch.equal(value, full) if key in need else value.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_order_of_threads(cuda_host, dtype):
    inputs = make_inputs(2, 40, (6, 9), [(5, 7), (2, 3)], dtype, spread=2.0)
    grad = torch.randn(2, 50, 6, 9)
    results = []
    for seed in (0, 1, 2):
        with cuda_host.shuffled(seed):
            out = cuda_host.ops.corr_lookup(*inputs, [2, 2])
            results.append([out, *backward(cuda_host, grad, *inputs, [2, 2], deterministic=True)])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def test_fast_pyramid_gradient_is_the_exact_one_but_for_rounding(cuda_host):
    inputs = make_inputs(1, 16, (8, 9), [(4, 4)], torch.float32, spread=1.0)
    grad = torch.randn(1, 81, 8, 9)
    exact = backward(cuda_host, grad, *inputs, [4, 4], deterministic=True, need="p")[2]
    fast = []
    for seed in (0, 1, 2):
        with cuda_host.shuffled(seed):
            fast.append(backward(cuda_host, grad, *inputs, [4, 4], need="p")[2])
        torch.testing.assert_close(fast[-1], exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    assert not torch.equal(fast[1], fast[2])  # float atomics: the reason for the exact sums


@pytest.mark.parametrize("magnitude", [1e-42, 1e-30, 1e30])
def test_exact_sums_keep_their_precision_at_any_magnitude(cuda_host, magnitude):
    fmap1, pyramid, coords = make_inputs(1, 3, (4, 5), [(4, 4)], torch.float32)
    grad = torch.randn(1, 9, 4, 5)
    unit = backward(cuda_host, grad, fmap1, pyramid, coords, [1, 1], deterministic=True, need="p")[2]
    scaled = backward(cuda_host, grad * magnitude, fmap1, pyramid, coords, [1, 1], deterministic=True, need="p")[2]
    # below float32's smallest normal number (1.2e-38) the values themselves have few bits
    tolerance = 1e-6 if magnitude > 1e-37 else 2e-2
    torch.testing.assert_close(
        scaled.double() / magnitude, unit.double(), rtol=0, atol=tolerance * unit.abs().max().item()
    )


def test_exact_sums_have_room_for_all_terms(cuda_host):
    """Every query adds the largest possible term to the same pixel."""
    fmap1, fmap2, coords = torch.ones(1, 1, 8, 9), torch.ones(1, 1, 3, 3), torch.ones(1, 2, 8, 9)
    grad = torch.ones(1, 1, 8, 9)
    total = backward(cuda_host, grad, fmap1, [fmap2], coords, [0, 0], deterministic=True, need="p")[2]
    assert total.flatten().tolist() == [0, 0, 0, 0, 72, 0, 0, 0, 0]


def test_exact_sums_of_zero_gradients_are_zero(cuda_host):
    fmap1, pyramid, coords = make_inputs(1, 3, (4, 5), [(4, 4)], torch.float32)
    grads = backward(cuda_host, torch.zeros(1, 9, 4, 5), fmap1, pyramid, coords, [1, 1], deterministic=True)
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["grad", "fmap1"])
def test_overflow_is_seen_in_exact_sums(cuda_host, where, bad):
    fmap1, pyramid, coords = make_inputs(1, 3, (4, 5), [(4, 4)], torch.float32)
    grad = torch.randn(1, 9, 4, 5)
    (grad if where == "grad" else fmap1)[0, 2, 1, 3] = bad
    assert backward(cuda_host, grad, fmap1, pyramid, coords, [1, 1], deterministic=True, need="p")[2].isnan().all()


def test_exact_sums_beyond_float32_are_nan(cuda_host):
    fmap1, pyramid, coords = make_inputs(1, 3, (4, 5), [(4, 4)], torch.float32)
    grad = torch.full((1, 9, 4, 5), 3e38)
    assert (
        backward(cuda_host, grad, fmap1 * 1e3, pyramid, coords, [1, 1], deterministic=True, need="p")[2].isnan().all()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fmap1": torch.zeros(1, 4, 3, 5, dtype=torch.float64)}, "must have the dtype of the other features"),
        ({"fmap1": torch.zeros(4, 3, 5)}, r"fmap1 must be \[B, C, H, W\], got \[4, 3, 5\]"),
        ({"fmap2": torch.zeros(1, 5, 3, 5)}, r"every level must be \[1, 4, H_l, W_l\], got \[1, 5, 3, 5\]"),
        ({"coords": torch.zeros(1, 2, 3, 5, dtype=torch.float64)}, "coords must be float32 on CUDA"),
        ({"coords": torch.zeros(1, 2, 3, 4)}, r"coords must be \[1, \(N,\) 2, 3, 5\], got \[1, 2, 3, 4\]"),
        ({"radius": [-1, 0]}, "radius must be two integers >= 0"),
        ({"order": "zx"}, "order must be 'xy' or 'yx', got 'zx'"),
        ({"levels": 17}, "must have 1 to 16 levels, got 17"),
    ],
)
def test_bad_input(cuda_host, change, message):
    given = {"fmap1": torch.zeros(1, 4, 3, 5), "fmap2": torch.zeros(1, 4, 3, 5), "coords": torch.zeros(1, 2, 3, 5)}
    given |= {"radius": [1, 1], "order": "xy", "levels": 1} | change
    with pytest.raises(RuntimeError, match=message):
        cuda_host.ops.corr_lookup(
            given["fmap1"], [given["fmap2"]] * given["levels"], given["coords"], given["radius"], order=given["order"]
        )
