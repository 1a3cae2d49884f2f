"""bilinear_sample: every backend and instruction set against tables, grid_sample, the reference and the contract."""

import dataclasses

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
    assert_same_bits_for_any_threads,
    gradients,
    lay_out,
    poisoned_memory,
    positions,
    ramp_like,
)

OP = torch.ops.daflow_ext.bilinear_sample.default
BACKWARD = torch.ops.daflow_ext.bilinear_sample_backward.default


def sample(on, **options):
    """The op (or the reference, ``on=None``) as a function of feat and coords."""
    if on is None:
        return lambda feat, coords: reference.bilinear_sample(feat, coords, **options)
    return lambda feat, coords: on("bilinear_sample", feat, coords, **options)


def at(*points):
    """[1, 2, 1, n] from n points (x, y)."""
    return torch.tensor(points, dtype=torch.float32).T.reshape(1, 2, 1, -1)


# ---- values ---------------------------------------------------------------------------------------------------------

PLANE = torch.tensor([[[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]]])


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
def test_values_computed_by_hand(on):
    points = at((0, 0), (2, 1), (0.5, 0), (1.25, 0.5), (-0.5, 0), (2.5, 1), (-0.25, -0.5), (-1, 0), (3, 0), (0, 2))
    middle = 0.5 * (0.75 * 2 + 0.25 * 4) + 0.5 * (0.75 * 16 + 0.25 * 32)
    zeros = [1, 32, 1.5, middle, 0.5, 16, 0.75 * 0.5, 0, 0, 0]
    border = [1, 32, 1.5, middle, 1, 32, 1, 1, 4, 8]
    assert sample(on)(PLANE, points).flatten().tolist() == zeros
    assert sample(on, padding="border")(PLANE, points).flatten().tolist() == border
    # s = 2: fractions below 1/4 are 0, above 3/4 are 1, 1/2 stays and 5/8 becomes 3/4
    steep = at((0.25, 0), (0.75, 0), (0.5, 0), (0.625, 0), (0.1, 0.9), (-0.25, 0), (-0.75, 0))
    assert sample(on, sharpness=2)(PLANE, steep).flatten().tolist() == [1, 2, 1.5, 1.75, 8, 1, 0]


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
def test_gradients_computed_by_hand(on):
    _, feat, coords = gradients(sample(on), PLANE, at((1.25, 0.5)), upstream=[torch.full((1, 1, 1, 1), 8.0)])
    assert feat[0, 0].tolist() == [[0, 3, 1], [0, 3, 1]]
    assert coords.flatten().tolist() == [8 * (0.5 * 2 + 0.5 * 16), 8 * (0.75 * 14 + 0.25 * 28)]
    # on the steep part of the ramp the slope is s, on the flat part nothing moves
    points, ones = at((0.5, 0.5), (0.5, 0.1)), torch.ones(1, 1, 1, 2)
    _, feat, coords = gradients(sample(on, sharpness=4), PLANE, points, upstream=[ones])
    assert coords[0, :, 0].tolist() == [[4 * (0.5 * 1 + 0.5 * 8), 4 * 1], [4 * (0.5 * 7 + 0.5 * 14), 0]]
    assert feat[0, 0].tolist() == [[0.75, 0.75, 0], [0.25, 0.25, 0]]
    # the border holds the position: no gradient beyond it
    points, ones = at((-0.5, 0.5), (2.5, 0.5)), torch.ones(1, 1, 1, 2)
    _, feat, coords = gradients(sample(on, padding="border"), PLANE, points, upstream=[ones])
    assert coords[0, :, 0].tolist() == [[0, 0], [7, 28]]
    assert feat[0, 0].tolist() == [[0.5, 0, 0.5], [0.5, 0, 0.5]]


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_equals_grid_sample(on, padding, layout):
    """Values and gradients, with the normalisation by W - 1 and H - 1 that grid_sample asks for."""
    feat = lay_out(torch.randn(2, 20, 7, 11, dtype=torch.float64), layout)
    coords = positions(2, 9, 13, spread=5, dtype=torch.float64)

    def grid_sample(feat, coords):
        grid = torch.stack([2 * coords[:, 0] / 10 - 1, 2 * coords[:, 1] / 6 - 1], dim=-1)
        return F.grid_sample(feat, grid, padding_mode=padding, align_corners=True)

    truths = gradients(grid_sample, feat, coords)
    if on.device == "cpu":
        assert_all_close(gradients(sample(on, padding=padding), feat, coords), truths, torch.float64)
    # float32 coordinates move by up to 2^-21 pixel, which is all that may differ
    single = sample(on, padding=padding)(feat.float(), coords.float())
    torch.testing.assert_close(single, truths[0].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_finite_where_the_sampler_of_raft_divides_by_zero(on, padding, size):
    feat, coords = torch.randn(1, 3, *size), torch.zeros(1, 2, 1, 2)
    coords[0, :, 0, 0] = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2])
    raft = torch.stack([2 * coords[:, 0] / (size[1] - 1) - 1, 2 * coords[:, 1] / (size[0] - 1) - 1], dim=-1)
    assert raft.isnan().any()
    out, *grads = gradients(sample(on, padding=padding), feat, coords)
    expected = torch.stack([feat[:, :, size[0] // 2, size[1] // 2], feat[:, :, 0, 0]], dim=-1)
    assert torch.equal(out[:, :, 0], expected)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_sharpness_is_upsample_sample_pick(on, padding, scale):
    """The literal sequence: nearest upsampling, a bilinear warp of the large grid, every s-th pixel of the result."""
    height, width = 5, 7
    dtype = torch.float64 if on.device == "cpu" else torch.float32
    feat = torch.randn(2, 6, height, width, dtype=dtype)
    flow = 3 * scale * torch.randn(2, 2, height * scale, width * scale, dtype=dtype)  # of the large grid
    y, x = torch.meshgrid(torch.arange(height * scale), torch.arange(width * scale), indexing="ij")
    target = torch.stack([x, y]) + flow
    size = torch.tensor([width * scale, height * scale], dtype=dtype)
    grid = (2 * target.movedim(1, -1) + 1) / size - 1  # align_corners=False: pixel centres at (p + 1/2)
    large = feat.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    warped = F.grid_sample(large, grid, padding_mode=padding, align_corners=False)
    literal = warped[:, :, ::scale, ::scale]

    coords = (target[:, :, ::scale, ::scale] + 0.5) / scale - 0.5
    result = sample(on, padding=padding, sharpness=scale)(feat, coords)
    torch.testing.assert_close(result, literal, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)


def test_sharpness_keeps_the_variance_it_should(on):
    """White noise at uniform fractions keeps 1 - 1 / (3 s) of its variance per axis."""
    noise = torch.randn(1, 4, 300, 300)
    coords = 1 + 296 * torch.rand(1, 2, 300, 300)
    for scale in (1, 4):
        variance = sample(on, sharpness=scale)(noise, coords).var().item()
        assert variance == pytest.approx((1 - 1 / (3 * scale)) ** 2, rel=0.02)


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("bad", BAD_POSITIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_far_and_non_finite_positions(on, bad, layout):
    feat, coords = lay_out(torch.randn(1, 5, 6, 7), layout), positions(1, 4, 9, spread=0.5)
    ones = [torch.ones(1, 5, 4, 9)]
    clean = gradients(sample(on), feat, coords, upstream=ones)
    border = coords.clone()
    coords[:, 0, 1, 3] = coords[:, 1, 2, 5] = bad  # either axis
    results = gradients(sample(on), feat, coords, upstream=ones)
    dead = torch.zeros(4, 9, dtype=torch.bool)
    dead[1, 3] = dead[2, 5] = True
    for index in (0, 2):
        assert not results[index][..., dead].any()
        assert torch.equal(results[index][..., ~dead], clean[index][..., ~dead])
    alive = torch.where(dead, 0.0, torch.ones(1, 5, 4, 9))
    assert torch.equal(results[1], gradients(sample(on), feat, border, upstream=[alive])[1])

    # the border keeps finite positions, however far: they read the edge, without a gradient along that axis
    held, grad_feat, grad_coords = gradients(sample(on, padding="border"), feat, coords, upstream=ones)
    finite = abs(bad) < float("inf")
    border[:, 0, 1, 3] = border[:, 1, 2, 5] = -1.0 if bad < 0 else 9.0
    nearby = gradients(sample(on, padding="border"), feat, border, upstream=ones)
    if finite:
        assert torch.equal(held, nearby[0])
        assert torch.equal(grad_feat, nearby[1])
        assert torch.equal(grad_coords, nearby[2])
    else:
        assert not held[..., dead].any()
        assert not grad_coords[..., dead].any()
        assert grad_feat.isfinite().all()


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_only_taps_are_read(on, dtype):
    """Half a pixel beyond the ends of a row one column is read: the one beside it may hold NaN."""
    feat = torch.full((1, 2, 3, 20), float("nan"), dtype=dtype)
    feat[..., 0], feat[..., -1] = 4, 8
    left = torch.arange(17) < 5
    out = sample(on)(feat, at(*((-0.5 if first else 19.5, 1) for first in left)))
    assert torch.equal(out[0, :, 0], torch.where(left, 2.0, 4.0).to(dtype).expand(2, -1))


def test_mask_marks_positions_inside(on):
    points = at((0, 0), (2, 1), (2.01, 1), (0, -0.01), (float("nan"), 0))
    _, mask = on("bilinear_sample", PLANE, points, mask=True)
    assert mask.tolist() == [[[[True, True, False, False, False]]]]


# ---- against the reference ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    channels: int = 20
    size: tuple = (9, 13)
    out: tuple = (7, 11)
    batch: int = 2
    groups: int = 1
    padding: str = "zeros"
    sharpness: int = 1
    layout: str = "contiguous"
    spread: float = 2.5


CASES = {
    "planes": Case(channels=37),
    "channels last": Case(channels=37, layout="channels_last"),
    "long channels": Case(channels=300, layout="channels_last", out=(3, 5)),
    "one channel": Case(channels=1, padding="border"),
    "flow": Case(channels=2, layout="channels_last", spread=30.0),
    "image": Case(channels=3, padding="border", sharpness=3),
    "border": Case(padding="border", layout="channels_last"),
    "steep": Case(sharpness=4, layout="channels_last"),
    "steep border": Case(sharpness=2, padding="border"),
    "groups": Case(groups=4),
    "groups last": Case(groups=5, layout="channels_last", padding="border", sharpness=2),
    "a group per channel": Case(groups=20, layout="channels_last"),
    "sliced": Case(layout="sliced", channels=7),
    "sliced channels last": Case(layout="sliced_channels_last"),
    "transposed": Case(layout="transposed", channels=5),
    "expanded": Case(layout="expanded", channels=6),
    "larger output": Case(size=(3, 4), out=(17, 23), channels=6),
    "several blocks": Case(size=(5, 6), out=(16, 40), channels=18, layout="channels_last"),
    "smooth flow": Case(size=(40, 50), out=(39, 47), channels=5, spread=0.02),
    "smooth steep border": Case(size=(11, 40), out=(14, 43), channels=3, spread=0.02, padding="border", sharpness=2),
    "smooth groups": Case(size=(9, 33), out=(9, 33), channels=4, spread=0.02, groups=2),
    "smooth sliced": Case(size=(9, 33), out=(9, 33), channels=4, spread=0.02, layout="sliced"),
    "one row": Case(size=(1, 9)),
    "two columns": Case(size=(9, 2), channels=3, out=(7, 5)),
    "one column": Case(size=(9, 1), padding="border", layout="channels_last"),
    "one pixel": Case(size=(1, 1), padding="border"),
    "no output": Case(out=(0, 4)),
    "no channels": Case(channels=0),
    "empty batch": Case(batch=0),
}


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_reference(on, case, dtype):
    on.skip_unless(dtype)
    wide = accumulator(dtype)
    feat = lay_out(torch.randn(case.batch, case.channels, *case.size).to(dtype), case.layout)
    centres = case.groups if case.groups > 1 else None
    coords = positions(case.batch, *case.out, centres, case.spread)  # float32 also beside float64
    options = {"padding": case.padding, "groups": case.groups, "sharpness": case.sharpness}
    results = gradients(sample(on, **options), feat, coords)
    upstream = ramp_like(results[0]).to(wide)
    truths = gradients(sample(None, **options), feat.to(wide), coords, upstream=[upstream])
    assert [result.dtype for result in results] == [dtype, dtype, torch.float32]
    assert_all_close(results, truths, dtype)
    if on.device == "cpu" and results[0].numel():
        last = case.channels > 1 and feat.stride(1) == 1
        assert results[0].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("upstream", ["expanded", "contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_of_any_strides(on, layout, upstream):
    feat, coords = lay_out(torch.randn(2, 20, 9, 13), layout), positions(2, 7, 11)
    grad = (
        torch.ones(()).expand(2, 20, 7, 11) if upstream == "expanded" else lay_out(torch.randn(2, 20, 7, 11), upstream)
    )
    results = gradients(sample(on), feat, coords, upstream=[grad])
    assert_all_close(results, gradients(sample(None), feat, coords, upstream=[grad]))


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", [(0, 5), (4, 0)])
def test_a_map_without_pixels_gives_zeros(on, padding, size):
    feat, coords = torch.zeros(2, 3, *size), positions(2, 7, 11)
    out, grad_feat, grad_coords = gradients(sample(on, padding=padding), feat, coords)
    assert torch.equal(out, torch.zeros(2, 3, 7, 11))
    assert torch.equal(grad_coords, torch.zeros_like(coords))
    assert grad_feat.shape == feat.shape


@pytest.mark.parametrize("on", COMPILED, indirect=True)
def test_only_the_gradients_asked_for(on):
    feat, coords, upstream = torch.randn(2, 6, 9, 13), positions(2, 7, 11), torch.randn(2, 6, 7, 11)
    _, grad_feat, grad_coords = gradients(sample(on), feat, coords, upstream=[upstream])
    leaf = feat.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(sample(on)(leaf, coords), leaf, upstream)[0], grad_feat)
    leaf = coords.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(sample(on)(feat, leaf), leaf, upstream)[0], grad_coords)


@pytest.mark.parametrize("on", COMPILED, indirect=True)
def test_groups_are_independent_samples(on):
    feat, coords = torch.randn(2, 12, 9, 13), positions(2, 7, 11, centres=3)
    expected = [sample(on)(feat[:, 4 * group : 4 * group + 4], coords[:, group]) for group in range(3)]
    assert torch.equal(sample(on, groups=3)(feat, coords), torch.cat(expected, dim=1))


# ---- autograd, compile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["reference", "cpu-generic", "cpu-avx512"], indirect=True)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("sharpness", [1, 2])
def test_gradcheck(on, padding, sharpness):
    feat = torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    # fractions in [0.3, 0.7], away from the kinks at 0 and, for sharpness 2, at 1/4 and 3/4
    coords = (torch.randint(-2, 6, (1, 2, 2, 3, 4)) + 0.3 + 0.4 * torch.rand(1, 2, 2, 3, 4)).double()
    function = sample(on, padding=padding, groups=2, sharpness=sharpness)
    assert torch.autograd.gradcheck(function, (feat, coords.requires_grad_()))


@pytest.mark.parametrize(
    ("shape", "layout", "groups"),
    [
        ((2, 6, 5, 7), "contiguous", 1),
        ((2, 6, 5, 7), "channels_last", 3),
        ((2, 6, 5, 7), "sliced", 2),
        ((2, 3, 1, 1), "contiguous", 1),
        ((2, 1, 5, 7), "channels_last", 1),
        ((2, 2, 0, 7), "contiguous", 1),
        ((0, 2, 5, 7), "contiguous", 1),
    ],
)
def test_opcheck(shape, layout, groups):
    feat = lay_out(torch.randn(shape), layout)
    coords = positions(shape[0], 4, 3, groups if groups > 1 else None)
    options = {"padding": "border", "groups": groups, "sharpness": 2}
    torch.library.opcheck(OP, (feat.requires_grad_(), coords.requires_grad_()), options)
    upstream, inputs = torch.randn(*shape[:2], 4, 3), (feat.detach(), coords.detach())
    for need_feat, need_coords in ((True, True), (True, False), (False, True)):
        needs = {"need_feat": need_feat, "need_coords": need_coords, "deterministic": True}
        torch.library.opcheck(BACKWARD, (upstream, *inputs), options | needs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_without_graph_breaks(on, layout):
    def model(feat, coords):
        return sample(on, groups=2, sharpness=2)(2 * feat, coords + 0.25).relu()

    inputs = [lay_out(torch.randn(2, 8, 6, 7), layout), positions(2, 5, 4, centres=2)]
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), *inputs)
    assert_all_close(compiled, gradients(model, *inputs))


# ---- determinism, memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_from_run_to_run_and_for_any_number_of_threads(on, layout):
    feat, coords = lay_out(torch.randn(2, 40, 21, 30), layout), positions(2, 40, 50, spread=1)
    coords = coords / 2  # many positions share their taps
    torch.use_deterministic_algorithms(on.device == "cuda")
    try:
        assert_same_bits_for_any_threads(lambda: gradients(sample(on), feat, coords))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("height", [9, 0])
def test_every_output_element_is_written(on, layout, dtype, height):
    feat, coords = lay_out(torch.randn(2, 19, height, 13).to(dtype), layout), positions(2, 7, 11)
    coords[:, :, :2] = float("nan")
    with poisoned_memory("bilinear_sample", "bilinear_sample_backward"):
        results = gradients(sample(on), feat, coords)
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_offsets_beyond_31_bits(on, layout):
    """Images 2^31 elements apart, of which only the pages in use are ever touched."""
    near, coords = lay_out(torch.randn(2, 8, 5, 6).bfloat16(), layout), positions(2, 7, 3)
    far = torch.empty(2**31 + 512, dtype=torch.bfloat16)
    far = far.as_strided(near.shape, (2**31 + 64, *near.stride()[1:])).copy_(near)
    assert torch.equal(sample(on)(far, coords), sample(on)(near, coords))


# ---- errors ---------------------------------------------------------------------------------------------------------

FEAT, COORDS = torch.zeros(1, 4, 5, 6), torch.zeros(1, 2, 3, 3)


@pytest.mark.parametrize(
    ("feat", "coords", "options", "error", "message"),
    [
        (FEAT[0], COORDS, {}, ValueError, r"feat must be \[B, C, H, W\], got float32\[4, 5, 6\] on cpu"),
        (FEAT.int(), COORDS, {}, TypeError, r"feat must be float32, .* got int32\[1, 4, 5, 6\]"),
        (FEAT, COORDS[0], {}, ValueError, r"coords must be \[B, 2, H, W\]"),
        (FEAT, COORDS[:, :1], {}, ValueError, r"coords must be \[B, 2, H, W\]"),
        (FEAT, COORDS.half(), {}, TypeError, "coords must be float32"),
        (FEAT, COORDS.double(), {}, TypeError, "coords must be float32"),
        (FEAT, COORDS.expand(2, -1, -1, -1), {}, ValueError, "batch of coords is 2"),
        (FEAT, COORDS.to("meta"), {}, ValueError, "move one of them"),
        (FEAT, COORDS, {"padding": "reflect"}, ValueError, "padding must be 'zeros' or 'border', got 'reflect'"),
        (FEAT, COORDS, {"groups": 3}, ValueError, "groups must divide the 4 channels of feat, got 3"),
        (FEAT, COORDS, {"groups": 2}, ValueError, r"groups=2 needs coords \[B, 2, 2, Ho, Wo\]"),
        (FEAT, COORDS, {"sharpness": 0}, ValueError, "sharpness must be an integer >= 1, got 0"),
        (FEAT, COORDS, {"sharpness": 1.5}, ValueError, r"sharpness must be an integer >= 1, got 1\.5"),
    ],
)
def test_bad_input_says_what_came_and_what_was_expected(feat, coords, options, error, message):
    with pytest.raises(error, match=message):
        ops.bilinear_sample(feat, coords, **options)


@pytest.mark.parametrize(
    ("feat", "coords", "options", "message"),
    [
        (FEAT[0], COORDS, {}, r"feat must be \[B, C, H, W\], got \[4, 5, 6\]"),
        (FEAT.int(), COORDS, {}, "expected a tensor of float32"),
        (FEAT, COORDS[0, 0], {}, r"coords must be \[B, \(G,\) 2, Ho, Wo\], got \[3, 3\]"),
        (FEAT, COORDS[:, :1], {}, r"coords must be \[1, \(N,\) 2, 3, 3\], got \[1, 1, 3, 3\]"),
        (FEAT, COORDS.half(), {}, "coords must be float32"),
        (FEAT, COORDS.expand(2, -1, -1, -1), {}, "coords must be"),
        (FEAT, COORDS, {"padding": "reflect"}, "padding must be 'zeros' or 'border', got 'reflect'"),
        (FEAT, COORDS, {"groups": 0}, "groups is 0"),
        (FEAT, COORDS, {"groups": 2}, "groups is 2"),
        (FEAT, COORDS.unsqueeze(1).expand(1, 3, 2, 3, 3), {"groups": 3}, "groups is 3"),
        (FEAT, COORDS, {"sharpness": 0}, "sharpness must be at least 1"),
    ],
)
def test_direct_calls_raise_instead_of_reading_out_of_bounds(feat, coords, options, message):
    with pytest.raises(RuntimeError, match=message):
        OP(feat, coords, **options)


@pytest.mark.parametrize(
    "grad",
    [torch.zeros(1, 4, 3, 2), torch.zeros(1, 3, 3, 3), torch.zeros(4, 3, 3), torch.zeros(1, 4, 3, 3).double()],
    ids=lambda grad: f"{list(grad.shape)}",
)
def test_direct_backward_checks_the_gradient(grad):
    options = {"padding": "zeros", "groups": 1, "sharpness": 1, "need_feat": True, "need_coords": True}
    with pytest.raises(RuntimeError, match="grad is"):
        BACKWARD(grad, FEAT, COORDS, **options, deterministic=False)
