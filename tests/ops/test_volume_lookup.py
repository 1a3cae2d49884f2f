"""volume_lookup: every backend and instruction set against tables, the reference, RAFT and the op's contract."""

import dataclasses
import pathlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from daflow_ext import ops, reference
from tests.ops.common import (
    BAD_POSITIONS,
    COMPILED,
    IMPLEMENTATIONS,
    accumulator,
    assert_all_close,
    assert_close,
    assert_same_bits_for_any_threads,
    gradients,
    poisoned_memory,
    positions,
    ramp_like,
)

OP = torch.ops.daflow_ext.volume_lookup.default
BACKWARD = torch.ops.daflow_ext.volume_lookup_backward.default


def lookup(on, radius, **options):
    """The op (or the reference, ``on=None``) as a function of coords and the levels."""
    if on is None:
        return lambda coords, *levels: reference.volume_lookup(levels, coords, radius, **options)
    return lambda coords, *levels: on("volume_lookup", list(levels), coords, radius, **options)


# ---- values ---------------------------------------------------------------------------------------------------------

PLANE = torch.arange(1.0, 10.0).reshape(1, 1, 1, 3, 3)  # 1 + x + 3 y
CENTRE = torch.tensor([1.25, 0.5]).reshape(1, 2, 1, 1)


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
def test_window_computed_by_hand(on):
    # rows are x = 0.25, 1.25, 2.25 at the columns y = -0.5, 0.5, 1.5; outside the 3 x 3 plane counts zero
    table = torch.tensor([[0.625, 2.75, 5.75], [1.125, 3.75, 6.75], [1.125, 3.375, 5.625]])
    assert torch.equal(lookup(on, 1)(CENTRE, PLANE).flatten(), table.flatten())
    assert torch.equal(lookup(on, 1, order="yx")(CENTRE, PLANE).flatten(), table.T.flatten())
    assert torch.equal(lookup(on, (0, 1))(CENTRE, PLANE).flatten(), table[:, 1])
    assert torch.equal(lookup(on, (1, 0))(CENTRE, PLANE).flatten(), table[1])
    level1 = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).reshape(1, 1, 1, 2, 2)  # read at (0.625, 0.25)
    expected = [3.75, 0.75 * (0.375 * 1 + 0.625 * 2) + 0.25 * (0.375 * 3 + 0.625 * 5)]
    assert lookup(on, 0)(CENTRE, PLANE, level1).flatten().tolist() == expected


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
def test_gradients_computed_by_hand(on):
    upstream = torch.tensor([2.0, 4.0]).reshape(1, 2, 1, 1)
    level1 = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).reshape(1, 1, 1, 2, 2)
    _, grad_coords, grad0, grad1 = gradients(lookup(on, 0), CENTRE, PLANE, level1, upstream=[upstream])
    assert grad0[0, 0, 0].tolist() == [[0, 0.75, 0.25], [0, 0.75, 0.25], [0, 0, 0]]
    assert grad1[0, 0, 0].tolist() == [[4 * 0.75 * 0.375, 4 * 0.75 * 0.625], [4 * 0.25 * 0.375, 4 * 0.25 * 0.625]]
    slope_x, slope_y = 0.75 * 1 + 0.25 * 2, 0.375 * 2 + 0.625 * 3  # of level 1; a pixel there is two of level 0
    assert grad_coords.flatten().tolist() == [2 * 1 + 4 * slope_x / 2, 2 * 3 + 4 * slope_y / 2]


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
def test_equals_the_sampler_of_raft(on):
    """RAFT: grid_sample with align_corners at centre / 2^l + offset, normalised by the size - 1; x offset slow."""
    radius, (height, width) = 3, (7, 10)
    volumes = [torch.randn(2, height, width, 9 >> level, 13 >> level, dtype=torch.float64) for level in range(3)]
    coords = positions(2, height, width, spread=4, dtype=torch.float64)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    dx, dy = torch.meshgrid(offsets, offsets, indexing="ij")
    expected = []
    for level, volume in enumerate(volumes):
        rows, columns = volume.shape[-2:]
        x = coords[:, 0, :, :, None, None] / 2**level + dx  # [B, H, W, n, n]
        y = coords[:, 1, :, :, None, None] / 2**level + dy
        grid = torch.stack([2 * x / (columns - 1) - 1, 2 * y / (rows - 1) - 1], -1)
        sampled = F.grid_sample(volume.flatten(0, 2).unsqueeze(1), grid.flatten(0, 2), align_corners=True)
        expected.append(sampled.reshape(2, height, width, -1).permute(0, 3, 1, 2))
    expected = torch.cat(expected, dim=1)
    if on.device == "cpu":
        assert_close(lookup(on, radius, out_dtype=torch.float64)(coords, *volumes), expected, torch.float64)
    out = lookup(on, radius)(coords.float(), *(volume.float() for volume in volumes))
    assert_close(out, expected, name="float32")


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("bad", BAD_POSITIONS)
def test_far_and_non_finite_positions_give_zeros_and_no_gradient(on, bad):
    volumes = [torch.randn(1, 4, 9, 6, 7), torch.randn(1, 4, 9, 3, 3)]
    coords = positions(1, 4, 9, spread=0.5)
    clean = gradients(lookup(on, 2), coords, *volumes, upstream=[torch.ones(1, 50, 4, 9)])
    coords[:, 0, 1, 3] = coords[:, 1, 2, 5] = bad  # either axis
    results = gradients(lookup(on, 2), coords, *volumes, upstream=[torch.ones(1, 50, 4, 9)])
    dead = torch.zeros(4, 9, dtype=torch.bool)
    dead[1, 3] = dead[2, 5] = True
    for result, expected in zip(results[:2], clean[:2], strict=True):
        assert not result[..., dead].any()
        assert torch.equal(result[..., ~dead], expected[..., ~dead])
    for result, expected in zip(results[2:], clean[2:], strict=True):
        assert not result[:, dead].any()
        assert torch.equal(result[:, ~dead], expected[:, ~dead])


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
def test_taps_fade_at_the_border_and_vanish_outside(on):
    ramp = torch.arange(1.0, 6.0)
    at = torch.tensor([-1, -0.5, 0, 4, 4.5, 5])
    expected = torch.tensor([0, 0.5 * ramp[0], ramp[0], ramp[-1], 0.5 * ramp[-1], 0])
    for axis, plane in ((0, ramp.reshape(1, 5)), (1, ramp.reshape(5, 1))):
        coords = torch.zeros(1, 2, 1, 6).index_copy(1, torch.tensor([axis]), at.reshape(1, 1, 1, 6))
        assert torch.equal(lookup(on, 0)(coords, plane.expand(1, 1, 6, *plane.shape)).flatten(), expected)


# ---- against the reference ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    sizes: tuple = ((9, 13), (4, 6), (2, 3))
    queries: tuple = (5, 9)
    radius: int | tuple = 4
    order: str = "xy"
    batch: int = 2
    centres: int | None = None
    layout: str = "contiguous"
    spread: float = 2.5
    out_dtype: torch.dtype = torch.float32


CASES = {
    "raft": Case(sizes=((16, 20), (8, 10), (4, 5), (2, 2)), queries=(16, 20), batch=1),
    "radius zero": Case(radius=0),
    "unequal radii": Case(radius=(1, 3), order="yx"),
    "stereo": Case(radius=(0, 4), order="yx"),
    "large window": Case(sizes=((21, 30),), radius=(7, 11), spread=9),
    "one query": Case(queries=(1, 1)),
    "a whole tile and one": Case(queries=(3, 11), radius=1),
    "sides of one": Case(sizes=((1, 9), (7, 1), (1, 1)), radius=2),
    "levels of nothing": Case(sizes=((3, 3), (1, 1), (0, 0)), radius=2),
    "centres": Case(centres=3, radius=2),
    "centres that overlap": Case(centres=2, radius=3, spread=0.1, order="yx"),
    "wild flow": Case(spread=40.0),
    "transposed": Case(layout="transposed", radius=2),
    "sliced": Case(layout="sliced", radius=2, centres=2),
    "sliced columns": Case(layout="sliced columns", radius=3),
    "expanded": Case(layout="expanded", radius=1),
    "half output": Case(out_dtype=torch.float16, radius=1),
    "bfloat16 output": Case(out_dtype=torch.bfloat16, radius=1),
    "double output": Case(out_dtype=torch.float64, radius=1),
    "empty batch": Case(batch=0),
    "no queries": Case(queries=(0, 5)),
}


def lay_out(volume, layout):
    """The values of a [B, H, W, H_l, W_l] tensor in another memory layout."""
    if layout == "transposed":  # queries fastest, as fmap2^T fmap1 leaves it
        return volume.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    if layout == "expanded":
        return volume[:, :1, :, :1].expand(volume.shape)
    batch, height, width, rows, columns = volume.shape
    if layout == "sliced":  # rows longer than the level, queries between that are not ours
        room = volume.new_full((batch, height, 2 * width, rows + 1, columns + 3), float("nan"))
        return room[:, :, ::2, 1:, 2:-1].copy_(volume)
    if layout == "sliced columns":
        return volume.new_full((batch, height, width, rows, 2 * columns), float("nan"))[..., ::2].copy_(volume)
    assert layout == "contiguous", layout
    return volume


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_reference(on, case, dtype):
    on.skip_unless(dtype, case.out_dtype)
    wide = accumulator(dtype)
    coords = positions(case.batch, *case.queries, case.centres, case.spread)  # float32 also beside float64
    volumes = [lay_out(torch.randn(case.batch, *case.queries, *size).to(dtype), case.layout) for size in case.sizes]
    results = gradients(lookup(on, case.radius, order=case.order, out_dtype=case.out_dtype), coords, *volumes)
    # the truth of half precision: the same numbers in float32
    truths = gradients(
        lookup(None, case.radius, order=case.order, out_dtype=wide),
        *(coords, *(volume.to(wide) for volume in volumes)),
        upstream=[ramp_like(results[0]).to(wide)],
    )
    assert results[0].dtype == case.out_dtype
    assert results[0].is_contiguous()
    assert [result.dtype for result in results[1:]] == [torch.float32, *(dtype for _ in volumes)]
    assert_all_close(results, truths, dtype)


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("upstream", ["expanded", "permuted"])
def test_gradient_of_any_strides(on, upstream):
    volumes = [torch.randn(2, 5, 9, 8, 7), torch.randn(2, 5, 9, 4, 3)]
    coords = positions(2, 5, 9)
    grad = (
        torch.ones(()).expand(2, 50, 5, 9) if upstream == "expanded" else torch.randn(9, 5, 50, 2).permute(3, 2, 1, 0)
    )
    results = gradients(lookup(on, 2), coords, *volumes, upstream=[grad])
    assert_all_close(results, gradients(lookup(None, 2), coords, *volumes, upstream=[grad]))


@pytest.mark.parametrize("on", COMPILED, indirect=True)
def test_only_the_gradients_asked_for(on):
    inputs = [positions(2, 5, 9), torch.randn(2, 5, 9, 8, 7), torch.randn(2, 5, 9, 4, 3)]
    upstream = torch.randn(2, 18, 5, 9)
    truths = gradients(lookup(on, 1), *inputs, upstream=[upstream])
    for wanted in ((0,), (1, 2), (2,)):
        leaves = [tensor.detach().requires_grad_(index in wanted) for index, tensor in enumerate(inputs)]
        grads = torch.autograd.grad(lookup(on, 1)(*leaves), [leaves[index] for index in wanted], upstream)
        for index, grad in zip(wanted, grads, strict=True):
            assert torch.equal(grad, truths[1 + index])


@pytest.mark.parametrize("on", COMPILED, indirect=True)
def test_centres_are_independent_lookups(on):
    volumes = [torch.randn(2, 5, 9, 8, 7), torch.randn(2, 5, 9, 4, 3)]
    coords = positions(2, 5, 9, centres=4)
    out = lookup(on, 2)(coords, *volumes)
    assert torch.equal(out, torch.stack([lookup(on, 2)(coords[:, n], *volumes) for n in range(4)], dim=1))


# ---- goldens --------------------------------------------------------------------------------------------------------

GOLDENS = sorted(path.name for path in (pathlib.Path(__file__).parents[3] / "shared/golden/raft").glob("op_corr_*_r*"))


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("name", GOLDENS or ["no goldens"])
def test_matches_the_official_block(on, name, shared):
    folder = shared / "golden/raft"
    case = np.load(folder / name)
    arrays = np.load(folder / f"{name[: name.index('_r')]}_inputs.npz")
    fmap1, fmap2, coords, edge = (torch.from_numpy(arrays[key]) for key in ("fmap1", "fmap2", "coords", "coords_edge"))
    volumes = [
        torch.einsum("bchw,bcuv->bhwuv", fmap1, level) / fmap1.shape[1] ** 0.5
        for level in reference.corr_pyramid(fmap2, int(case["levels"]))
    ]
    for key, centre in (("out", coords), ("out_edge", edge)):
        worst = (lookup(on, int(case["radius"]))(centre, *volumes) - torch.from_numpy(case[key])).abs().max().item()
        assert worst <= 5e-5, f"{key}: {worst:.2e}"  # tolerance of golden/raft/README.md


# ---- autograd, compile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["reference", "cpu-generic", "cpu-avx512"], indirect=True)
@pytest.mark.parametrize("order", ["xy", "yx"])
def test_gradcheck(on, order):
    volumes = [torch.randn(1, 2, 3, *size, dtype=torch.float64, requires_grad=True) for size in ((4, 5), (2, 2))]
    # fractions in [0.1, 0.4] on either level, where no tap sits on a kink of the bilinear kernel
    coords = (torch.randint(-2, 3, (1, 2, 2, 2, 3)) * 2.0 + 0.2 + 0.6 * torch.rand(1, 2, 2, 2, 3)).double()
    function = lookup(on, (1, 2), order=order, out_dtype=torch.float64)
    assert torch.autograd.gradcheck(function, (coords.requires_grad_(), *volumes))


@pytest.mark.parametrize("centres", [None, 2])
def test_opcheck(centres):
    volumes = [torch.randn(2, 3, 4, 6, 5, requires_grad=True), torch.randn(2, 3, 4, 3, 2, requires_grad=True)]
    coords = positions(2, 3, 4, centres).requires_grad_()
    torch.library.opcheck(OP, (volumes, coords, [1, 2]), {"order": "yx", "out_dtype": torch.float64})
    upstream = torch.randn_like(OP(volumes, coords, [1, 1]))
    for need_volume, need_coords in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            BACKWARD,
            (upstream, [volume.detach() for volume in volumes], coords.detach(), [1, 1]),
            {"order": "xy", "need_volume": need_volume, "need_coords": need_coords},
        )


def test_compiles_without_graph_breaks(on):
    def model(coords, *volumes):
        return lookup(on, 2)(coords + 0.25, *(2 * volume for volume in volumes)).relu()

    inputs = [positions(1, 4, 5), torch.randn(1, 4, 5, 8, 6), torch.randn(1, 4, 5, 4, 3)]
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), *inputs)
    assert_all_close(compiled, gradients(model, *inputs))


# ---- determinism, memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", COMPILED, indirect=True)
def test_same_bits_from_run_to_run_and_for_any_number_of_threads(on):
    volumes = [torch.randn(2, 13, 20, 13 >> level, 20 >> level) for level in range(3)]
    inputs = [positions(2, 13, 20, centres=2, spread=6), *volumes]
    assert_same_bits_for_any_threads(lambda: gradients(lookup(on, 4), *inputs))


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_output_element_is_written(on, dtype):
    inputs = [positions(2, 5, 9), *(torch.randn(2, 5, 9, *size).to(dtype) for size in ((8, 7), (4, 3), (0, 0)))]
    inputs[0][:, :, :2] = float("nan")
    with poisoned_memory("volume_lookup", "volume_lookup_backward"):
        results = gradients(lookup(on, 3), *inputs)
    assert all(result.isfinite().all() for result in results)


def test_offsets_beyond_31_bits(on):
    """Images 2^31 elements apart, of which only the pages in use are ever touched."""
    near, coords = torch.randn(2, 2, 3, 5, 6).bfloat16(), positions(2, 2, 3)
    strides = (2**31 + 64, 90, 30, 6, 1)
    far = torch.empty(2**31 + 512, dtype=torch.bfloat16).as_strided(near.shape, strides).copy_(near)
    assert torch.equal(lookup(on, 2)(coords, far), lookup(on, 2)(coords, near))


# ---- errors ---------------------------------------------------------------------------------------------------------

VOLUME, COORDS = torch.zeros(1, 4, 5, 8, 6), torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize(
    ("volumes", "coords", "radius", "options", "error", "message"),
    [
        (VOLUME, COORDS, 1, {}, TypeError, "volume_pyramid must be a non-empty list"),
        ([], COORDS, 1, {}, TypeError, "volume_pyramid must be a non-empty list"),
        ([VOLUME[0]], COORDS, 1, {}, ValueError, r"must be \[B, H, W, H_l, W_l\], got float32\[4, 5, 8, 6\]"),
        ([VOLUME, VOLUME[:, 1:]], COORDS, 1, {}, ValueError, r"volume_pyramid\[1\] is .*B, H and W must agree"),
        ([VOLUME, VOLUME.double()], COORDS, 1, {}, TypeError, "give both the same dtype"),
        ([VOLUME], COORDS.half(), 1, {}, TypeError, "coords must be float32"),
        ([VOLUME], COORDS[..., :4], 1, {}, ValueError, r"coords is float32\[1, 2, 4, 4\]"),
        ([VOLUME], COORDS.expand(2, -1, -1, -1), 1, {}, ValueError, "batch of coords is 2"),
        ([VOLUME], COORDS[:, :1], 1, {}, ValueError, r"coords must be \[B, 2, H, W\]"),
        ([VOLUME], COORDS, -1, {}, ValueError, "radius must be an integer >= 0"),
        ([VOLUME], COORDS, (1, 2, 3), {}, ValueError, r"got \(1, 2, 3\)"),
        ([VOLUME], COORDS, 1, {"order": "x"}, ValueError, "order must be 'xy'"),
        ([VOLUME], COORDS, 1, {"out_dtype": torch.int32}, TypeError, r"out_dtype must be .* got torch\.int32"),
    ],
)
def test_bad_input_says_what_came_and_what_was_expected(volumes, coords, radius, options, error, message):
    with pytest.raises(error, match=message):
        ops.volume_lookup(volumes, coords, radius, **options)


@pytest.mark.parametrize(
    ("volumes", "coords", "radius", "options", "message"),
    [
        ([], COORDS, [1, 1], {}, "non-empty list"),
        ([VOLUME[0]], COORDS, [1, 1], {}, "non-empty list of"),
        ([VOLUME, VOLUME[:, 1:]], COORDS, [1, 1], {}, "B, H, W and the dtype must agree"),
        ([VOLUME], COORDS[..., :4], [1, 1], {}, r"coords must be \[1, \(N,\) 2, 4, 5\], got \[1, 2, 4, 4\]"),
        ([VOLUME], COORDS[0], [1, 1], {}, "coords must be"),
        ([VOLUME], COORDS.half(), [1, 1], {}, "coords must be float32"),
        ([VOLUME], COORDS, [1, -1], {}, "radius must be two integers >= 0"),
        ([VOLUME], COORDS, [1, 1 << 40], {}, "radius must be at most"),
        ([VOLUME], COORDS, [1, 1], {"order": "zz"}, "order must be 'xy' or 'yx', got 'zz'"),
        ([VOLUME], COORDS, [1, 1], {"out_dtype": torch.int32}, "expected a tensor of float32"),
    ],
)
def test_direct_calls_raise_instead_of_reading_out_of_bounds(volumes, coords, radius, options, message):
    with pytest.raises(RuntimeError, match=message):
        OP(volumes, coords, radius, **options)


@pytest.mark.parametrize("shape", [(1, 8, 4, 5), (1, 9, 4, 4), (9, 4, 5), (1, 1, 9, 4, 5)])
def test_direct_backward_checks_the_gradient(shape):
    with pytest.raises(RuntimeError, match="the output has 9 channels"):
        BACKWARD(torch.zeros(shape), [VOLUME], COORDS, [1, 1], order="xy", need_volume=True, need_coords=True)
