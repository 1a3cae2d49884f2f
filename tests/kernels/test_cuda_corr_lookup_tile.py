"""corr_lookup on tensor cores, run on the CPU (tests/cuda_host): values, and which path a tile takes."""

import contextlib
import math

import pytest
import torch

from daflow_ext import reference

HALF = [torch.float16, torch.bfloat16]
DTYPES = [*HALF, torch.float32]  # float32 as tf32
WILD = [math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -5.0, -1.0, -0.5, 0.0, 2.0]
STEP = 4 * 8  # products of 32 bytes of all channels: four warps, 32 x 32 results each, 16 x 8 at a time


def channels_last(*shape, dtype):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def pixels(batch, height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).float().expand(batch, 2, height, width).clone()


def lookup(cuda_host, fmap1, pyramid, coords, radius, **options):
    return cuda_host.ops.corr_lookup(fmap1, pyramid, coords, radius, allow_tf32=True, **options)


def rounded(tensor):
    """What tensor cores see of it: float32 to the nearest tf32, half precision as it is."""
    if tensor.dtype != torch.float32:
        return tensor.float()
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def check(cuda_host, fmap1, pyramid, coords, radius, **options):
    """Equal to the reference on rounded features but for the order of sums, and to the true one within the rounding."""
    out = lookup(cuda_host, fmap1, pyramid, coords, radius, **options)
    seen = reference.corr_lookup(rounded(fmap1), [rounded(level) for level in pyramid], coords, radius, **options)
    # sums of up to 256 unit normal products, rounded in float32 in another order
    torch.testing.assert_close(out, seen, rtol=2e-6, atol=2e-5, equal_nan=True)
    if fmap1.dtype == torch.float32 and fmap1.isfinite().all():
        exact = reference.corr_lookup(fmap1, pyramid, coords, radius, **options)
        magnitude = reference.corr_lookup(fmap1.abs(), [level.abs() for level in pyramid], coords, radius, **options)
        # 2^-11 relative error in each factor; blending is a convex combination
        assert ((out - exact).abs() <= 1.001 * 2.0**-10 * magnitude + 2e-5).all()
    return out


FLOWS = {
    "none": lambda coords: coords,
    "smooth": lambda coords: coords + torch.sin(coords.flip(1) / 5) * 2.3 + 0.4,
    "leaving": lambda coords: coords * 1.7 - 6.2,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 32, 100, 256])
@pytest.mark.parametrize("flow", FLOWS)
def test_forward(cuda_host, poisoned, channels, dtype, flow):
    """Grids that are no whole number of tiles, levels down to one pixel and none, aligned vectors and not."""
    coords = FLOWS[flow](pixels(2, 11, 9))
    coords[0, 0, 2, : len(WILD)] = torch.tensor(WILD)[:9]
    coords[1, 1, -len(WILD) :, 3] = torch.tensor(WILD)
    sizes = [(11, 9), (5, 4), (1, 1), (0, 2)]
    pyramid = [channels_last(2, channels, *size, dtype=dtype) for size in sizes]
    check(cuda_host, channels_last(2, channels, 11, 9, dtype=dtype), pyramid, coords, [4, 4])
    assert cuda_host.products > 0


@pytest.mark.parametrize(
    "radius", [[0, 0], [1, 1], [3, 3], [5, 5], [6, 6], [8, 8], [0, 4], [4, 0], [2, 7], [0, 90], [40, 1]]
)
@pytest.mark.parametrize("order", ["xy", "yx"])
def test_every_shape_of_window(cuda_host, poisoned, radius, order):
    """Also windows of more taps than a chunk."""
    coords = FLOWS["smooth"](pixels(1, 9, 10))
    pyramid = [channels_last(1, 16, *size, dtype=torch.float16) for size in [(9, 30), (4, 15)]]
    fmap1 = channels_last(1, 16, 9, 10, dtype=torch.float16)
    check(cuda_host, fmap1, pyramid, coords, radius, order=order, scale=0.37)
    assert cuda_host.products > 0


@pytest.mark.parametrize(("channels", "radius"), [(64, [0, 22]), (128, [2, 4]), (192, [0, 6])])
def test_little_less_than_the_shared_memory_of_a_block(cuda_host, channels, radius):
    """Where the dynamic part alone is within 48 KB, but not with the static arrays beside it."""
    fmap1, fmap2 = (channels_last(1, channels, *size, dtype=torch.float16) for size in [(8, 8), (12, 50)])
    check(cuda_host, fmap1, [fmap2], pixels(1, 8, 8) + 0.5, radius)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output(cuda_host, poisoned, dtype):
    """Several centres, output dtypes and memory orders."""
    coords = pixels(2, 9, 6)[:, None] + torch.randn(2, 3, 2, 1, 1) * 2
    inputs = channels_last(2, 16, 9, 6, dtype=dtype), [channels_last(2, 16, 7, 8, dtype=dtype)], coords
    out = check(cuda_host, *inputs, [2, 1])
    assert out.shape == (2, 3, 15, 9, 6)
    for out_dtype in DTYPES:
        for last in (False, True):
            other = lookup(cuda_host, *inputs, [2, 1], out_dtype=out_dtype, channels_last=last)
            assert (other.movedim(2, -1) if last else other).is_contiguous()
            assert torch.equal(other, out.to(out_dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_strides(cuda_host, poisoned, dtype):
    """Slices, maps shared by the batch, unaligned and NCHW ones."""
    padded = torch.randn(2, 8, 9, 40).to(dtype).permute(0, 3, 1, 2)
    plain = torch.randn(2, 24, 7, 8).to(dtype)
    coords = (torch.rand(2, 5, 6, 2) * 8 - 1).permute(0, 3, 1, 2)
    for fmap1, fmap2 in [
        (padded[:, 8:32, :5, :6], padded[:, :24, 1:, 2:]),
        (padded[:1, :24, :5, :6].expand(2, -1, -1, -1), padded[1:, :24].expand(2, -1, -1, -1)),
        (padded[:, 3:27, :5, :6], padded[:, 1:25]),
        (plain[:, :, :5, :6], plain),
    ]:
        check(cuda_host, fmap1, [fmap2], coords, [2, 2])


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float16, 16), (torch.bfloat16, 16), (torch.float32, 32)])
def test_a_still_tile_multiplies_its_box(cuda_host, dtype, steps):
    """17 x 17 positions are five strips of 64; 256 channels are 16 steps of 32 bytes, 32 in float32."""
    maps = channels_last(1, 256, 40, 40, dtype=dtype)
    coords = pixels(1, 8, 8) + 16.25
    lookup(cuda_host, maps[:, :, :8, :8], [maps], coords, [4, 4])
    assert cuda_host.products == 5 * steps * STEP


def test_half_a_slice_of_channels_is_not_multiplied(cuda_host):
    maps = channels_last(1, 32, 40, 40, dtype=torch.float16)
    lookup(cuda_host, maps[:, :, :8, :8], [maps], pixels(1, 8, 8) + 16.25, [4, 4])
    assert cuda_host.products == 5 * 2 * STEP


def test_strips_that_no_window_touches_are_left_out(cuda_host, poisoned):
    """Two motions far apart: above each other, the rows between them cost nothing."""
    maps = channels_last(1, 16, 90, 40, dtype=torch.float16)
    coords = pixels(1, 8, 8) + 8.25
    coords[:, 1, 4:] += 64
    check(cuda_host, maps[:, :, :8, :8], [maps], coords, [4, 4])
    assert cuda_host.products == 2 * math.ceil(17 * 13 / 64) * STEP


def test_float32_is_exact_unless_tf32_is_allowed(cuda_host):
    maps = channels_last(1, 64, 16, 16, dtype=torch.float32)
    out = cuda_host.ops.corr_lookup(maps, [maps], pixels(1, 16, 16), [4, 4])
    assert cuda_host.products == 0
    torch.testing.assert_close(out, reference.corr_lookup(maps, [maps], pixels(1, 16, 16), 4), rtol=0, atol=2e-5)


def random_flow(height, width, size):
    return torch.rand(1, 2, height, width) * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [3, 256])
def test_wild_flow_takes_no_tensor_cores(cuda_host, poisoned, dtype, channels):
    """And gives what they give: each of three queries, alone in the tile, takes them."""
    fmap1 = channels_last(1, channels, 8, 8, dtype=dtype)
    fmap2 = channels_last(1, channels, 80, 80, dtype=dtype)
    coords = random_flow(8, 8, 80.0)
    wild = lookup(cuda_host, fmap1, [fmap2], coords, [4, 4])
    assert cuda_host.products == 0
    expected = reference.corr_lookup(fmap1, [fmap2], coords, 4)
    torch.testing.assert_close(wild, expected, rtol=2e-6, atol=2e-5)  # tf32 is for tensor cores only
    for y, x in [(0, 0), (3, 6), (7, 7)]:
        alone = torch.full_like(coords, math.nan)
        alone[..., y, x] = coords[..., y, x]
        tile = check(cuda_host, fmap1, [fmap2], alone, [4, 4])
        assert cuda_host.products > 0
        if dtype != torch.float32:
            torch.testing.assert_close(tile[..., y, x], wild[..., y, x], rtol=2e-6, atol=2e-5)


def mixed_inputs(dtype):
    """Tiles in a row: still, wild, still, dead."""
    fmap1, fmap2 = (channels_last(1, 40, *size, dtype=dtype) for size in [(8, 32), (70, 90)])
    coords = pixels(1, 8, 32) + 20.5
    coords[..., 8:16] = random_flow(8, 8, 70.0)
    coords[..., 24:] = math.nan
    return fmap1, [fmap2], coords


def test_tiles_of_one_launch_choose_for_themselves(cuda_host, poisoned):
    fmap1, pyramid, coords = mixed_inputs(torch.float16)
    out = check(cuda_host, fmap1, pyramid, coords, [4, 4])
    assert cuda_host.products == 2 * 5 * 3 * STEP  # two still tiles of five strips; 80 bytes are three steps
    assert not out[..., 24:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_order_of_threads(cuda_host, poisoned, dtype):
    """Nor on when copies arrive."""
    inputs = mixed_inputs(dtype)
    results = []
    for seed in range(4):
        with cuda_host.shuffled(seed):
            results.append(lookup(cuda_host, *inputs, [4, 4], channels_last=seed % 2 == 0))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_stay_where_they_are(cuda_host, poisoned, dtype, bad):
    """A query's reach its own windows' taps inside the level, a position's the windows around it."""
    fmap1, fmap2 = (channels_last(1, 20, *size, dtype=dtype) for size in [(8, 8), (10, 9)])
    fmap1[0, 2, 3, 4] = bad
    fmap2[0, 5, 6, 2] = bad
    out = check(cuda_host, fmap1, [fmap2, fmap2[:, :, :1, :1]], pixels(1, 8, 8) + 0.25, [2, 2])
    assert out[0, :, 0, 0].isfinite().all()
    assert not out[0, :, 3, 4].isfinite().all()


def test_sums_beyond_half_precision(cuda_host):
    """256 products of 10^4: the accumulator and the scale are float32."""
    maps = torch.full((1, 256, 4, 4), 100.0, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    out = lookup(cuda_host, maps, [maps], pixels(1, 4, 4), [0, 0], scale=0.01, out_dtype=torch.float16)
    assert (out == 25600).all()
    assert cuda_host.products > 0


# ---- tiles of 8 x 16 queries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "radius"), [(3, [4, 4]), (64, [4, 3]), (100, [3, 2]), (300, [2, 3]), (16, [8, 8])]
)
def test_tall_tiles_give_what_square_ones_give(cuda_host, poisoned, dtype, channels, radius):
    """To the bit where either takes the channels in one piece: sums do not depend on who shares the block."""
    coords = FLOWS["smooth"](pixels(2, 27, 9))
    coords[0, 0, 2, : len(WILD)] = torch.tensor(WILD)[:9]
    coords[1, 1, -len(WILD) :, 3] = torch.tensor(WILD)
    pyramid = [channels_last(2, channels, *size, dtype=dtype) for size in [(27, 12), (13, 6), (1, 1), (0, 2)]]
    inputs = channels_last(2, channels, 27, 9, dtype=dtype), pyramid, coords, radius
    square = lookup(cuda_host, *inputs)
    for seed in range(3):
        with cuda_host.tall_tiles(), cuda_host.shuffled(seed):
            tall = lookup(cuda_host, *inputs)
            assert cuda_host.products > 0
        if channels * dtype.itemsize <= 256:
            assert torch.equal(tall, square)
        torch.testing.assert_close(tall, square, rtol=2e-6, atol=2e-5)


def test_tall_tiles_that_shared_memory_does_not_hold_are_square(cuda_host):
    """The taps of 128 windows of radius 5 alone take 73 KB of 99."""
    inputs = channels_last(1, 256, 16, 8, dtype=torch.float16), [channels_last(1, 256, 40, 40, dtype=torch.float16)]
    counts = []
    for context in (contextlib.nullcontext, cuda_host.tall_tiles):
        with context():
            lookup(cuda_host, *inputs, pixels(1, 16, 8) + 12.25, [5, 5])
            counts.append((cuda_host.products, cuda_host.copies))
    assert counts[0] == counts[1]


def test_a_wild_tall_tile_takes_single_taps(cuda_host, poisoned):
    fmap1, fmap2 = (channels_last(1, 40, *size, dtype=torch.float16) for size in [(32, 8), (90, 90)])
    coords = random_flow(32, 8, 90.0)
    coords[:, :, 16:] = pixels(1, 16, 8) + 20.5
    square = lookup(cuda_host, fmap1, [fmap2], coords, [3, 3])
    with cuda_host.tall_tiles():
        assert torch.equal(lookup(cuda_host, fmap1, [fmap2], coords, [3, 3]), square)
    assert 0 < cuda_host.products < 20 * 3 * STEP


COUNTS = {  # per level: strips of 64 positions that 64 queries multiply; vectors that two such groups read
    ("square", 0): ([5, 4, 3, 2], [578, 392, 288, 242]),
    ("square", 4): ([7, 4, 3, 2.5], [882, 512, 338, 253]),
    ("tall", 0): ([5, 4, 3, 2.5], [425, 252, 168, 132]),
    ("tall", 4): ([7.5, 4.5, 3.5, 2.5], [693, 352, 208, 143]),
}


@pytest.mark.parametrize(("shape", "spread"), COUNTS)
@pytest.mark.parametrize("level", range(4))
def test_what_tiles_read_and_multiply(cuda_host, shape, spread, level):
    """The counts of docs/ops/corr_lookup.md: radius 4, all windows inside, ``spread`` pixels more over 8 queries."""
    channels = 64  # one slice: eight pieces of 16 bytes per vector, four steps of products
    fmap1 = channels_last(1, channels, 16, 8, dtype=torch.float16)
    sides = [160 >> index if index == level else 0 for index in range(4)]
    pyramid = [channels_last(1, channels, side, side, dtype=torch.float16) for side in sides]
    with cuda_host.tall_tiles() if shape == "tall" else contextlib.nullcontext():
        lookup(cuda_host, fmap1, pyramid, pixels(1, 16, 8) * (1 + spread / 7) + 65, [4, 4])
    multiplied, read = (counts[level] for counts in COUNTS[shape, spread])
    assert cuda_host.products == 2 * multiplied * 4 * STEP
    assert cuda_host.copies == 8 * (read + 2 * 64)  # and the queries' own
