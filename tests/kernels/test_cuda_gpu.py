"""The CUDA backend on a GPU: against the reference, on side streams, other devices, in graphs, and at full size."""

import contextlib
import functools

import pytest
import torch

from daflow_ext import ops, reference

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {torch.float32: 4e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
corr_lookup = functools.partial(ops.corr_lookup, backend="cuda")
corr_pyramid = functools.partial(ops.corr_pyramid, backend="cuda")
volume_lookup = functools.partial(ops.volume_lookup, backend="cuda")
bilinear_sample = functools.partial(ops.bilinear_sample, backend="cuda")


@contextlib.contextmanager
def deterministic(enabled=True):
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def settings(tf32=False, tall_tiles=False):
    """Whether float32 features are multiplied in tf32, and by tiles of 8 x 16 queries."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.ops.daflow_ext.set_tall_tiles(tall_tiles)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.ops.daflow_ext.set_tall_tiles(False)


def lookup_inputs(shape, dtype=torch.float32, device="cuda", num_levels=4, spread=4.0):
    """fmap1, pyramid and coords of RAFT's shape; a few coordinates are wild."""
    batch, _, height, width = shape
    fmap1 = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    pyramid = reference.corr_pyramid(torch.randn(shape, device=device, dtype=dtype), num_levels)
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).to(device)
    coords = grid + spread * torch.randn(batch, 2, height, width, device=device)
    coords[0, 0, 0, :5] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -7.5], device=device)
    return fmap1, pyramid, coords


def sample_inputs(dtype=torch.float32, device="cuda", memory_format=torch.channels_last):
    feat = torch.randn(2, 100, 37, 51, device=device, dtype=dtype).contiguous(memory_format=memory_format)
    return feat, torch.rand(2, 2, 41, 33, device=device) * 60 - 5


def compare_gradients(run, truth, leaves, atol, exact_sums=False, half_atol=None):
    """Outputs and gradients of two functions of the same leaves; the truth runs in float32.

    half_atol: of the gradients of half precision leaves, where it is not atol.
    """
    fast = [leaf.detach().requires_grad_() for leaf in leaves]
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    out, expected = run(*fast), truth(*exact)
    torch.testing.assert_close(out.float(), expected, rtol=EPS[out.dtype], atol=atol)
    grad = torch.randn_like(out)
    with deterministic(exact_sums):
        out.backward(grad)
    expected.backward(grad.float())
    for actual, wanted in zip(fast, exact, strict=True):
        scale = max(wanted.grad.abs().max().item(), 1.0)
        allowed = atol if half_atol is None or actual.dtype == torch.float32 else half_atol
        torch.testing.assert_close(actual.grad.float(), wanted.grad, rtol=EPS[actual.dtype], atol=allowed * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [3, 100, 256])
@pytest.mark.parametrize("order", ["xy", "yx"])
def test_corr_lookup(dtype, channels, order):
    fmap1, pyramid, coords = lookup_inputs((2, channels, 33, 47), dtype)
    compare_gradients(
        lambda f, c, *levels: corr_lookup(f, levels, c, (4, 3), order=order),
        lambda f, c, *levels: reference.corr_lookup(f, levels, c, (4, 3), order=order),
        [fmap1, coords, *pyramid],
        atol=5e-5,
        half_atol=5e-4,  # gradients of taps are rounded to tf32
    )


def flows(fmap1, spread):
    """Smooth everywhere (tiles on tensor cores), random everywhere (single taps), and one of each side by side."""
    height, width = fmap1.shape[-2:]
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).cuda().float()[None]
    smooth = grid + torch.sin(grid.flip(1) / 9) * 3
    wild = torch.rand_like(grid) * spread
    return {"smooth": smooth, "wild": wild, "mixed": torch.where(grid[:, :1] < width // 2, smooth, wild)}


@pytest.mark.parametrize("product", ["float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("channels", [100, 256, 512])
def test_corr_lookup_on_tensor_cores(product, channels):
    dtype = torch.float32 if product == "tf32" else getattr(torch, product)
    fmap1, pyramid, _ = lookup_inputs((1, channels, 61, 83), dtype)
    magnitudes = fmap1.abs(), [level.abs() for level in pyramid]
    for name, coords in flows(fmap1, 80.0).items():
        expected, size = (reference.corr_lookup(f, p, coords, 4) for f, p in ((fmap1, pyramid), magnitudes))
        with settings(tf32=product == "tf32"):
            out = corr_lookup(fmap1, pyramid, coords, 4)
            other = corr_lookup(fmap1, pyramid, coords, 4, channels_last=True)
        with settings(tf32=product == "tf32", tall_tiles=True):
            tall = corr_lookup(fmap1, pyramid, coords, 4)
        rounding = 2.0**-10 * size if product == "tf32" else 0.0
        assert ((out - expected).abs() <= rounding + 5e-5).all(), name
        assert ((tall - expected).abs() <= rounding + 5e-5).all(), name
        assert torch.equal(out, other)
        assert other.is_contiguous(memory_format=torch.channels_last)


def test_float32_is_exact_by_default():
    fmap1, pyramid, coords = lookup_inputs((1, 256, 61, 83))
    assert not torch.backends.cuda.matmul.allow_tf32
    expected = reference.corr_lookup(fmap1.double(), [level.double() for level in pyramid], coords, 4)
    torch.testing.assert_close(corr_lookup(fmap1, pyramid, coords, 4).double(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_volume_lookup(dtype):
    pyramid = [torch.randn(2, 13, 17, 26 >> level, 34 >> level, device="cuda").to(dtype) for level in range(4)]
    coords = torch.rand(2, 3, 2, 13, 17, device="cuda") * 40 - 3
    compare_gradients(
        lambda c, *levels: volume_lookup(levels, c, 4),
        lambda c, *levels: reference.volume_lookup(levels, c, 4),
        [coords, *pyramid],
        atol=2e-5,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [{}, {"padding": "border", "sharpness": 3}])
def test_bilinear_sample(dtype, memory_format, options):
    compare_gradients(
        functools.partial(bilinear_sample, **options),
        functools.partial(reference.bilinear_sample, **options),
        sample_inputs(dtype, memory_format=memory_format),
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_corr_pyramid(dtype, memory_format):
    fmap2 = torch.randn(2, 100, 71, 83, device="cuda", dtype=dtype).contiguous(memory_format=memory_format)
    leaf, exact = fmap2.clone().requires_grad_(), fmap2.float().requires_grad_()
    levels, expected = corr_pyramid(leaf, 6), reference.corr_pyramid(exact, 6)
    grads = [torch.randn_like(level) for level in levels]
    for level, truth in zip(levels, expected, strict=True):
        torch.testing.assert_close(level.float(), truth, rtol=EPS[dtype], atol=1e-6)
    torch.autograd.backward(levels, grads)
    torch.autograd.backward(expected, [grad.float() for grad in grads])
    torch.testing.assert_close(leaf.grad.float(), exact.grad, rtol=EPS[dtype], atol=1e-6)


def test_many_queries():
    """More than 65536 queries and batches: no grid dimension may overflow."""
    fmap1, pyramid, coords = lookup_inputs((1, 32, 270, 480))
    rows = slice(130, 134)
    out = corr_lookup(fmap1, pyramid, coords, 4)
    expected = reference.corr_lookup(fmap1[:, :, rows], pyramid, coords[:, :, rows], 4)
    torch.testing.assert_close(out[:, :, rows], expected, rtol=0, atol=5e-5)

    fmap1, pyramid, coords = lookup_inputs((70000, 4, 2, 3), num_levels=1)
    out = corr_lookup(fmap1, pyramid, coords, 1)
    torch.testing.assert_close(out, reference.corr_lookup(fmap1, pyramid, coords, 1), rtol=0, atol=5e-5)
    torch.testing.assert_close(
        bilinear_sample(fmap1, coords), reference.bilinear_sample(fmap1, coords), rtol=0, atol=1e-5
    )


def test_more_than_two_to_the_31_elements():
    """Offsets are 64 bits wide: the last batch of a 4.3e9-element map is read right."""
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    feat = torch.zeros(2, 2048, 4100, 256, dtype=torch.float16, device="cuda").permute(0, 3, 1, 2)
    feat[1, 200, 2047, 4099] = 3.0
    coords = torch.tensor([4099.0, 2047.0], device="cuda").view(1, 2, 1, 1).expand(2, -1, -1, -1)
    assert bilinear_sample(feat, coords)[1, 200].item() == 3.0
    fmap1 = torch.ones(2, 256, 1, 1, dtype=torch.float16, device="cuda")
    assert corr_lookup(fmap1, [feat], coords, 0, scale=1.0)[1].item() == 3.0


def test_memory_is_that_of_the_maps():
    """No volume is stored: beyond inputs and output a lookup allocates nothing."""
    fmap1, pyramid, coords = lookup_inputs((1, 64, 135, 240), torch.float16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = corr_lookup(fmap1, pyramid, coords, 4)
    assert torch.cuda.max_memory_allocated() - before <= out.numel() * 4 + 2**20


@pytest.mark.parametrize("dtype", DTYPES)
def test_deterministic_gradients_have_the_same_bits(dtype):
    fmap1, pyramid, coords = lookup_inputs((2, 64, 40, 50), dtype, spread=1.0)
    feat, points = sample_inputs(dtype)
    grad = torch.randn(2, 4 * 81, 40, 50, device="cuda")
    results = []
    for _ in range(3):
        leaves = [leaf.detach().requires_grad_() for leaf in (fmap1, coords, *pyramid, feat, points)]
        with deterministic():
            corr_lookup(leaves[0], leaves[2:6], leaves[1], 4).backward(grad)
            bilinear_sample(*leaves[6:]).float().square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for other in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], other, strict=True))


def test_deterministic_gradients_are_right():
    fmap1, pyramid, coords = lookup_inputs((1, 64, 40, 50), spread=1.0)
    compare_gradients(
        lambda f, c, *levels: corr_lookup(f, levels, c, 4),
        lambda f, c, *levels: reference.corr_lookup(f, levels, c, 4),
        [fmap1, coords, *pyramid],
        atol=5e-5,
        exact_sums=True,
    )


def run_everything(fmap1, coords):
    pyramid = corr_pyramid(fmap1, 3)
    return bilinear_sample(corr_lookup(fmap1, pyramid, coords, 2), coords)


def test_side_stream():
    """Kernels run on the current stream: after a long wait there, they still see what was written before them."""
    fmap1, _, coords = lookup_inputs((1, 64, 32, 40))
    expected = run_everything(fmap1, coords)
    late = torch.zeros_like(fmap1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(fmap1)
        out = run_everything(late, coords)
    stream.synchronize()
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_another_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    fmap1, _, coords = lookup_inputs((1, 64, 32, 40))
    expected = run_everything(fmap1, coords)
    out = run_everything(fmap1.to("cuda:1"), coords.to("cuda:1"))
    assert out.device.index == 1
    torch.testing.assert_close(out.to("cuda:0"), expected, rtol=0, atol=0)
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="coords"):
        corr_lookup(fmap1.to("cuda:1"), corr_pyramid(fmap1.to("cuda:1"), 2), coords, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_graph(dtype):
    """No host sync and nothing but the caching allocator: the call can be captured, and replayed on new data."""
    fmap1, _, coords = lookup_inputs((1, 64, 32, 40), dtype)
    run_everything(fmap1, coords)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run_everything(fmap1, coords)
    coords.add_(1.25)
    fmap1.mul_(2.0)
    graph.replay()
    torch.testing.assert_close(out, run_everything(fmap1, coords), rtol=0, atol=0)


def test_backward_in_a_cuda_graph():
    fmap1, pyramid, coords = lookup_inputs((1, 64, 32, 40))
    grad = torch.randn(1, 4 * 25, 32, 40, device="cuda")

    def backward():
        return torch.ops.daflow_ext.corr_lookup_backward(
            grad, fmap1, pyramid, coords, [2, 2], scale=None, order="xy", need_fmap1=True, need_pyramid=True,
            need_coords=True, deterministic=True,
        )  # fmt: skip

    backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = backward()
    grad.mul_(-3.0)
    graph.replay()
    assert all(torch.equal(first, second) for first, second in zip(captured, backward(), strict=True))


def test_autocast_leaves_coordinates_alone():
    fmap1, pyramid, coords = lookup_inputs((1, 64, 32, 40), torch.float16)
    with torch.autocast("cuda", torch.float16):
        out = corr_lookup(fmap1, pyramid, coords, 4)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, corr_lookup(fmap1, pyramid, coords, 4), rtol=0, atol=0)


def test_compiles_without_graph_breaks():
    fmap1, _, coords = lookup_inputs((1, 32, 16, 20))
    compiled = torch.compile(run_everything, fullgraph=True)
    torch.testing.assert_close(compiled(fmap1, coords), run_everything(fmap1, coords), rtol=1e-5, atol=1e-5)


def test_opcheck():
    fmap1, pyramid, coords = lookup_inputs((1, 8, 8, 9), num_levels=2)
    leaves = (fmap1.requires_grad_(), [level.requires_grad_() for level in pyramid], coords.requires_grad_(), [2, 2])
    torch.library.opcheck(torch.ops.daflow_ext.corr_lookup.default, leaves)
    torch.library.opcheck(torch.ops.daflow_ext.corr_pyramid.default, (torch.randn(1, 8, 8, 9, device="cuda"), 3))
    torch.library.opcheck(torch.ops.daflow_ext.bilinear_sample.default, sample_inputs())
    volume = [torch.randn(1, 4, 5, 6, 7, device="cuda")]
    points = torch.rand(1, 2, 4, 5, device="cuda") * 6
    torch.library.opcheck(torch.ops.daflow_ext.volume_lookup.default, (volume, points, [2, 2]))
