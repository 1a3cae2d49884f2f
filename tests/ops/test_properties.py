"""Every op on drawn shapes, strides, dtypes, radii and levels: the CPU against the reference in double precision.

The quick suite draws a few dozen cases per op, always the same; ``--runslow`` draws new ones, ten times as many.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daflow_ext import ops, reference

LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded", "offset")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# half a step of rounding, relative; sums of float32 products differ by more the more of them there are
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float64: 1e-12}

sides = st.one_of(st.integers(1, 4), st.integers(5, 19))
channel_counts = st.one_of(st.integers(1, 9), st.sampled_from((16, 31, 32, 33, 64, 100, 128)))
seeds = st.integers(0, 2**31)


def examples(count):
    """Run a property on ``count`` cases; with --runslow on 10 times as many, not the same every time."""

    def decorate(function):
        @pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "many"])
        def test(many):
            settings(
                max_examples=count * (10 if many else 1),
                derandomize=not many,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(function)()

        test.__name__, test.__doc__ = function.__name__, function.__doc__
        return test

    return decorate


def draw_tensor(draw, generator, *shape, dtype=torch.float32):
    """Normal values of ``shape`` in a drawn memory layout."""
    values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    layout = draw(st.sampled_from(LAYOUTS))
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":  # NaN in between: what is read beside the view shows
        room = torch.full([2 * side + 1 for side in shape], math.nan, dtype=dtype)
        view = room[tuple(slice(1, None, 2) for _ in shape)]
        return view.copy_(values)
    if layout == "expanded" and shape[0] > 1:
        return values[:1].expand(shape)
    if layout == "offset":  # no vector is aligned
        return torch.full((values.numel() + 1,), math.nan, dtype=dtype)[1:].view(shape).copy_(values)
    return values


def draw_coords(draw, generator, batch, centres, size, target, dtype):
    """Positions in and around ``target`` pixels; some exactly on pixels, borders, far outside or not finite."""
    shape = (batch, 2, *size) if centres is None else (batch, centres, 2, *size)
    spread = draw(st.sampled_from((0.3, 1.0, 3.0)))
    extent = torch.tensor(target[::-1], dtype=torch.float64).reshape(2, 1, 1)
    coords = (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * 2 * spread * extent + extent / 2
    if draw(st.booleans()):
        coords = coords.round()
    coords = coords.to(dtype)
    for bad in draw(
        st.lists(st.sampled_from((math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -1.0, 0.0)), max_size=3)
    ):
        coords.view(-1)[draw(st.integers(0, coords.numel() - 1))] = bad
    if draw(st.booleans()):  # x beside y in memory
        coords = coords.movedim(-3, -1).contiguous().movedim(-1, -3)
    return coords


def compare(op, truth_op, inputs, grad_indices, dtype, scale=1.0):
    """Outputs and gradients of the op against the reference on the same values in double precision."""
    ours = [tensor.detach().requires_grad_(index in grad_indices) for index, tensor in enumerate(inputs)]
    wide = [tensor.detach().double().requires_grad_(index in grad_indices) for index, tensor in enumerate(inputs)]
    found, truth = op(*ours), truth_op(*wide)
    found, truth = ([out] if isinstance(out, torch.Tensor) else list(out) for out in (found, truth))
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in found]
    results = [(f"output {index}", a, b) for index, (a, b) in enumerate(zip(found, truth, strict=True))]
    if grad_indices and any(out.requires_grad for out in found):
        leaves, wide_leaves = ([tensors[index] for index in grad_indices] for tensors in (ours, wide))
        grads = torch.autograd.grad(found, leaves, upstream, materialize_grads=True)
        true_grads = torch.autograd.grad(truth, wide_leaves, [u.double() for u in upstream], materialize_grads=True)
        results += [(f"gradient {i}", a, b) for i, a, b in zip(grad_indices, grads, true_grads, strict=True)]
    for name, result, expected in results:
        assert result.shape == expected.shape, name
        if expected.numel() == 0:
            continue
        assert expected.isfinite().all(), f"{name}: the reference is not finite"
        tolerance = 8 * max(ROUNDING[result.dtype], ROUNDING[torch.float32] if dtype != torch.float64 else 0)
        bound = tolerance * scale * max(1.0, expected.abs().max().item())
        error = (result.double() - expected).abs().max().item()
        assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}, {result.dtype} {list(result.shape)}"


def wide_coords(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@examples(24)
@given(st.data())
def test_corr_lookup(data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(seeds))
    dtype, batch, channels = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 3)), draw(channel_counts)
    size, target, levels = (draw(sides), draw(sides)), (draw(sides), draw(sides)), draw(st.integers(1, 5))
    radius = (draw(st.integers(0, 5)), draw(st.integers(0, 5))) if draw(st.booleans()) else draw(st.integers(0, 4))
    centres = draw(st.sampled_from((None, None, 1, 3)))
    options = {"order": draw(st.sampled_from(("xy", "yx"))), "scale": draw(st.sampled_from((None, 1.0)))}
    fmap1 = draw_tensor(draw, generator, batch, channels, *size, dtype=dtype)
    fmap2 = draw_tensor(draw, generator, batch, channels, *target, dtype=dtype)
    coords = draw_coords(draw, generator, batch, centres, size, target, wide_coords(dtype))
    pyramid = [level.detach() for level in reference.corr_pyramid(fmap2, levels)]
    pyramid = pyramid if draw(st.booleans()) else [level.contiguous() for level in pyramid]
    out_dtype = torch.float64 if dtype == torch.float64 else draw(st.sampled_from((torch.float32, dtype)))

    def run(function, **more):
        return lambda f1, c, *levels: function(f1, list(levels), c, radius, **options, **more)

    compare(
        run(ops.corr_lookup, backend="cpu", out_dtype=out_dtype),
        run(lambda f1, p, c, r, **o: ops.corr_lookup(f1, p, c, r, backend="reference", out_dtype=torch.float64, **o)),
        [fmap1, coords, *pyramid],
        range(2 + levels),
        dtype,
        scale=math.sqrt(channels) if options["scale"] else 1.0,
    )


@examples(24)
@given(st.data())
def test_volume_lookup(data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(seeds))
    dtype, batch, levels = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    size, target = (draw(st.integers(1, 9)), draw(st.integers(1, 9))), (draw(sides), draw(sides))
    radius = (draw(st.integers(0, 5)), draw(st.integers(0, 5))) if draw(st.booleans()) else draw(st.integers(0, 4))
    order, centres = draw(st.sampled_from(("xy", "yx"))), draw(st.sampled_from((None, None, 1, 2)))
    volumes = [
        draw_tensor(draw, generator, batch, *size, target[0] // 2**level, target[1] // 2**level, dtype=dtype)
        for level in range(levels)
        if min(target) // 2**level > 0
    ]
    coords = draw_coords(draw, generator, batch, centres, size, target, wide_coords(dtype))
    out_dtype = torch.float64 if dtype == torch.float64 else draw(st.sampled_from((torch.float32, dtype)))

    def run(backend, out_dtype):
        return lambda c, *v: ops.volume_lookup(list(v), c, radius, order=order, out_dtype=out_dtype, backend=backend)

    inputs = [coords, *volumes]
    compare(run("cpu", out_dtype), run("reference", torch.float64), inputs, range(len(inputs)), dtype)


@examples(30)
@given(st.data())
def test_corr_pyramid(data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(seeds))
    dtype, levels = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 6))
    shape = (draw(st.integers(1, 3)), draw(channel_counts), draw(sides), draw(sides))
    fmap2 = draw_tensor(draw, generator, *shape, dtype=dtype)
    compare(
        lambda x: ops.corr_pyramid(x, levels, backend="cpu"),
        lambda x: ops.corr_pyramid(x, levels, backend="reference"),
        [fmap2],
        [0],
        dtype,
    )


@examples(30)
@given(st.data())
def test_bilinear_sample(data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(seeds))
    dtype, batch, groups = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2, 3)))
    channels, size, target = groups * draw(st.integers(1, 40)), (draw(sides), draw(sides)), (draw(sides), draw(sides))
    options = {"padding": draw(st.sampled_from(("zeros", "border"))), "groups": groups}
    options["sharpness"] = draw(st.sampled_from((1, 1, 2, 4)))
    feat = draw_tensor(draw, generator, batch, channels, *target, dtype=dtype)
    centres = groups if groups > 1 or draw(st.booleans()) else None
    coords = draw_coords(draw, generator, batch, centres, size, target, wide_coords(dtype))
    compare(
        lambda f, c: ops.bilinear_sample(f, c, backend="cpu", **options),
        lambda f, c: ops.bilinear_sample(f, c, backend="reference", **options),
        [feat, coords],
        [0, 1],
        dtype,
        scale=4.0,
    )


@examples(24)
@given(st.data())
def test_st_attention(data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(seeds))
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.bfloat16, torch.float16)))
    batch, heads, width, frames = (draw(st.integers(1, n)) for n in (2, 3, 20, 4))

    def stream():
        tokens = draw(st.integers(0, 9))
        kind = draw(st.sampled_from(("framed", "framed", "flat", "shared")))
        shape = {"framed": (frames, tokens), "flat": (frames * tokens,), "shared": (1, tokens)}[kind]
        return (batch, *shape, heads, width)

    q_shapes = [stream() for _ in range(draw(st.integers(1, 3)))]
    kv_shapes = [stream() for _ in range(draw(st.integers(1, 3)))]
    q = [draw_tensor(draw, generator, *shape, dtype=dtype) for shape in q_shapes]
    k, v = ([draw_tensor(draw, generator, *shape, dtype=dtype) for shape in kv_shapes] for _ in range(2))
    options = {
        "frames": frames,
        "window": draw(st.sampled_from((None, 0, 1, 2))),
        "reference_frames": draw(st.lists(st.integers(0, frames - 1), max_size=2)),
        "stream_weights": draw(
            st.one_of(st.none(), st.lists(st.sampled_from((0, 1, 2, 0.5)), min_size=len(k), max_size=len(k)))
        ),
    }

    def run(backend):
        def call(*streams):
            n, m = len(q), len(k)
            return ops.st_attention(streams[:n], streams[n : n + m], streams[n + m :], backend=backend, **options)

        return call

    inputs = [*q, *k, *v]
    compare(run("sdpa"), run("reference"), inputs, range(len(inputs)), dtype, scale=4.0)


@examples(30)
@given(st.data())
def test_qk_norm(data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(seeds))
    dtype, width = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 40))
    count = draw(st.integers(1, 4))
    inner = [draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)) for _ in range(count)]
    streams = [draw_tensor(draw, generator, *shape, width, dtype=dtype) for shape in inner]
    weights = [torch.randn(width, generator=generator).to(dtype) for _ in streams]

    def run(*tensors):
        return ops.qk_norm(tensors[:count], tensors[count:])

    def definition(*tensors):
        pairs = zip(tensors[:count], tensors[count:], strict=True)
        return [torch.nn.functional.rms_norm(x, (width,), weight, 1e-6) for x, weight in pairs]

    inputs = [*streams, *weights]
    compare(run, definition, inputs, range(len(inputs)), dtype, scale=4.0)


@examples(16)
@given(st.data())
def test_softargmax_flow(data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(seeds))
    dtype, batch, channels = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    grid = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    query, key = (draw_tensor(draw, generator, batch, grid[0] * grid[1], channels, dtype=dtype) for _ in range(2))
    options = {
        "temperature": draw(st.sampled_from((1.0, math.sqrt(channels), 0.3 * channels))),
        "radius": draw(st.one_of(st.none(), st.integers(0, 10))),
        # where the best match is a tie, rounding decides which window local mode takes: only in double precision
        "mode": draw(st.sampled_from(("global", "local"))) if dtype == torch.float64 else "global",
    }
    compare(
        lambda a, b: ops.softargmax_flow(a, b, grid, backend="cpu", **options),
        lambda a, b: ops.softargmax_flow(a, b, grid, backend="reference", **options),
        [query, key],
        [0, 1],
        dtype,
        scale=2.0 * max(grid),
    )
