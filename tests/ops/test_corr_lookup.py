"""corr_lookup: every backend and instruction set against tables, the reference, the goldens and the op's contract."""

import dataclasses
import math
import pathlib

import numpy as np
import pytest
import torch

from daflow_ext import backends, reference
from daflow_ext.ops import corr_lookup, corr_pyramid

ISAS = ("generic", "avx2", "avx512", "avx512_bf16")
IMPLEMENTATIONS = ["reference", *(f"cpu-{isa}" for isa in ISAS), pytest.param("cuda", marks=pytest.mark.gpu)]
COMPILED = IMPLEMENTATIONS[1:]


@dataclasses.dataclass
class Run:
    """One implementation; results come back on the CPU."""

    backend: str
    device: str

    def __call__(self, fmap1, pyramid, coords, radius, **options):
        fmap1, coords, *pyramid = (tensor.to(self.device) for tensor in (fmap1, coords, *pyramid))
        return corr_lookup(fmap1, pyramid, coords, radius, backend=self.backend, **options).cpu()

    def pyramid(self, fmap2, levels):
        able, _ = backends.can_run("corr_pyramid", self.backend, self.device)
        return corr_pyramid(fmap2.to(self.device), levels, backend=self.backend if able else "reference")


@pytest.fixture
def run(request):
    backend, _, isa = getattr(request, "param", "cpu-").partition("-")
    device = "cuda" if backend == "cuda" else "cpu"
    able, reason = backends.can_run("corr_lookup", backend, device)
    if not able:
        pytest.skip(reason)
    if not isa:
        yield Run(backend, device)
        return
    best = torch.ops.daflow_ext.cpu_capability()
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this machine has {best}, not {isa}")
    torch.ops.daflow_ext.set_cpu_capability(isa)
    yield Run(backend, device)
    torch.ops.daflow_ext.set_cpu_capability(best)


def gradients(function, fmap1, pyramid, coords, radius, upstream=None, **options):
    """[output, grad_fmap1, grad_coords, *grad_pyramid] of <output, upstream>."""
    leaves = [tensor.detach().requires_grad_() for tensor in (fmap1, coords, *pyramid)]
    out = function(leaves[0], leaves[2:], leaves[1], radius, **options)
    if upstream is None:
        upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream, materialize_grads=True)]


def smooth_coords(batch, height, width, centres=None, spread=2.5, dtype=torch.float32):
    """The pixel grid plus a displacement whose windows leave the image here and there."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shape = (batch, 2) if centres is None else (batch, centres, 2)
    return (torch.stack([x, y]) + spread * torch.randn(*shape, height, width) + 0.1).to(dtype)


# ---- values ---------------------------------------------------------------------------------------------------------

PLANE = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)  # 1 + x + 3 y


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
def test_window_computed_by_hand(run):
    fmap1, coords = torch.full((1, 1, 1, 1), 2.0), torch.tensor([1.25, 0.5]).reshape(1, 2, 1, 1)
    # rows y = -0.5, 0.5, 1.5 at the columns x = 0.25, 1.25, 2.25; outside the 3 x 3 plane counts zero
    table = torch.tensor([[1.25, 5.5, 11.5], [2.25, 7.5, 13.5], [2.25, 6.75, 11.25]])
    assert torch.equal(run(fmap1, [PLANE], coords, 1, scale=1.0).flatten(), table.flatten())
    assert torch.equal(run(fmap1, [PLANE], coords, 1, scale=1.0, order="yx").flatten(), table.T.flatten())
    assert torch.equal(run(fmap1, [PLANE], coords, (0, 1), scale=1.0).flatten(), table[:, 1])
    assert torch.equal(run(fmap1, [PLANE], coords, (1, 0), scale=1.0).flatten(), table[1])
    # level 1 is read at (0.625, 0.25)
    level1 = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).reshape(1, 1, 2, 2)
    out = run(fmap1, [PLANE, level1], coords, 0, scale=1.0).flatten()
    assert out.tolist() == [7.5, 2 * (0.75 * (0.375 * 1 + 0.625 * 2) + 0.25 * (0.375 * 3 + 0.625 * 5))]


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
def test_gradients_computed_by_hand(run):
    fmap1, coords = torch.full((1, 1, 1, 1), 2.0), torch.tensor([1.25, 0.5]).reshape(1, 2, 1, 1)
    _, grad1, grad_coords, grad2 = gradients(run, fmap1, [PLANE], coords, 0, torch.ones(1, 1, 1, 1), scale=1.0)
    assert grad1.item() == 3.75  # the plane at (1.25, 0.5)
    assert grad_coords.flatten().tolist() == [2.0, 6.0]  # fmap1 times the slopes of the plane
    assert torch.equal(grad2[0, 0], torch.tensor([[0, 0.75, 0.25], [0, 0.75, 0.25], [0, 0, 0]]))


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
def test_taps_fade_at_the_border_and_vanish_outside(run):
    width = 5
    ramp = torch.arange(1.0, width + 1)
    positions = torch.tensor([-1, -0.5, 0, width - 1, width - 0.5, width])
    expected = torch.tensor([0, 0.5 * ramp[0], ramp[0], ramp[-1], 0.5 * ramp[-1], 0])
    ones, zeros = torch.ones(1, 1, 1, len(positions)), torch.zeros(len(positions))
    for axis, image in ((0, ramp.reshape(1, 1, 1, -1)), (1, ramp.reshape(1, 1, -1, 1))):
        coords = torch.stack([positions, zeros] if axis == 0 else [zeros, positions]).reshape(1, 2, 1, -1)
        assert torch.equal(run(ones, [image], coords, 0).flatten(), expected)


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, 100.0, -100.0])
def test_far_and_non_finite_positions_give_zeros_and_no_gradient(run, bad):
    fmap1, fmap2 = torch.randn(1, 20, 4, 9), torch.randn(1, 20, 6, 7)
    coords = smooth_coords(1, 4, 9, spread=0.5)
    clean = gradients(run, fmap1, [fmap2], coords, 2)
    coords[:, 0, 1, 3] = coords[:, 1, 2, 5] = bad  # either axis
    out, grad1, grad_coords, grad2 = gradients(run, fmap1, [fmap2], coords, 2)
    dead = torch.zeros(4, 9, dtype=torch.bool)
    dead[1, 3] = dead[2, 5] = True
    for result, expected in zip((out, grad1, grad_coords), clean, strict=False):
        assert not result[..., dead].any()
        assert torch.equal(result[..., ~dead], expected[..., ~dead])
    assert grad2.isfinite().all()


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("centres", [None, 3])
def test_channels_last_output(run, centres):
    """The same numbers, and gradients, with the window densest in memory."""
    fmap1, fmap2, coords = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 6, 7), smooth_coords(2, 4, 5, centres)
    out = corr_lookup(*_moved(run, fmap1, fmap2, coords), 1, channels_last=True, backend=run.backend)
    shape = (2, 9, 4, 5) if centres is None else (2, centres, 9, 4, 5)
    assert out.shape == shape
    assert out.movedim(-3, -1).is_contiguous()
    assert torch.equal(out.cpu(), run(fmap1, [fmap2], coords, 1))
    for result, expected in zip(
        gradients(run, fmap1, [fmap2], coords, 1, channels_last=True),
        gradients(run, fmap1, [fmap2], coords, 1),
        strict=True,
    ):
        assert torch.equal(result, expected)


def _moved(run, fmap1, fmap2, coords):
    return fmap1.to(run.device), [fmap2.to(run.device)], coords.to(run.device)


# ---- against the reference ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    dtype: torch.dtype = torch.float32
    channels: int = 32
    size1: tuple[int, int] = (7, 19)
    size2: tuple[int, int] = (9, 13)
    levels: int = 3
    radius: int | tuple[int, int] = 4
    order: str = "xy"
    batch: int = 2
    centres: int | None = None
    layout: str = "channels_last"
    spread: float = 2.5
    out_dtype: torch.dtype = torch.float32


CASES = {
    "one channel": Case(channels=1, radius=0),
    "channel tail": Case(channels=3, radius=1),
    "vector and tail": Case(channels=100, radius=2, layout="contiguous"),
    "whole tiles of a contiguous map": Case(channels=43, size1=(5, 48), layout="contiguous"),
    "whole tiles, double": Case(torch.float64, 21, (3, 40), layout="contiguous", levels=2, out_dtype=torch.float64),
    "raft": Case(channels=256, levels=4, size2=(7, 19)),
    "raft small": Case(channels=128, radius=3, size2=(16, 17)),
    "channels 320": Case(channels=320, size1=(3, 33), layout="sliced"),
    "levels down to nothing": Case(levels=5, size2=(13, 10)),
    "side of one": Case(size2=(1, 9), radius=2, levels=1),
    "one query": Case(size1=(1, 1), radius=(1, 3)),
    "stereo": Case(radius=(0, 4), levels=4, order="yx"),
    "tall window": Case(radius=(4, 0), layout="expanded"),
    "large window": Case(radius=(7, 11), size2=(21, 30), levels=1, spread=9),
    "centres": Case(centres=3, radius=2, channels=48, layout="expanded"),
    "expanded pixels": Case(layout="expanded pixels", radius=1),
    "wild flow": Case(spread=40.0, size2=(24, 31)),
    "y major": Case(order="yx", radius=(2, 3), layout="sliced"),
    "half": Case(torch.float16, channels=70, size2=(7, 19)),
    "half to half": Case(torch.float16, radius=3, layout="contiguous", out_dtype=torch.float16),
    "bfloat16": Case(torch.bfloat16, channels=256, size2=(7, 19)),
    "bfloat16 tail": Case(torch.bfloat16, channels=45, radius=(3, 1), layout="sliced", out_dtype=torch.bfloat16),
    "double": Case(torch.float64, channels=37, centres=2, out_dtype=torch.float64),
    "double to float": Case(torch.float64, channels=16, radius=2),
    "output above 4 MiB": Case(channels=4, size1=(72, 90), size2=(8, 9), levels=2, batch=1),
    "output above 4 MiB, double": Case(torch.float64, 2, (72, 90), (8, 9), levels=1, batch=1, out_dtype=torch.float64),
    "empty batch": Case(batch=0),
    "no queries": Case(size1=(0, 5), radius=1),
}


def lay_out(fmap, layout):
    """fmap in another memory layout."""
    if layout == "contiguous":
        return fmap.contiguous()
    if layout == "expanded":
        return fmap[:1].expand(fmap.shape)
    if layout == "expanded pixels":
        return fmap[:, :, :1, :1].expand(fmap.shape)
    if layout == "sliced":  # unit channel stride between rows, pixels and channels that are not ours
        batch, channels, height, width = fmap.shape
        room = torch.randn(batch, 2 * height + 1, width + 2, channels + 5).to(fmap.dtype).permute(0, 3, 1, 2)
        view = room[:, 3 : 3 + channels, 1::2, 1:-1]
        view.copy_(fmap)
        return view
    return fmap.contiguous(memory_format=torch.channels_last)


def inputs(case):
    fmap1 = lay_out(torch.randn(case.batch, case.channels, *case.size1).to(case.dtype), case.layout)
    fmap2 = torch.randn(case.batch, case.channels, *case.size2).to(case.dtype)
    pyramid = [lay_out(level, case.layout) for level in reference.corr_pyramid(fmap2, case.levels)]
    dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    coords = smooth_coords(case.batch, *case.size1, case.centres, case.spread, dtype)
    coords = coords.movedim(-3, -1).contiguous().movedim(-1, -3)  # x and y side by side, as many callers keep them
    return fmap1, pyramid, coords


def assert_close(result, truth, dtype, name, products=0.0):
    """Rounding of ``products``, of float32 (float64) sums, then of the dtype of the result."""
    step = {torch.float32: 0, torch.float64: 0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[result.dtype]
    sums = 1e-13 if dtype == result.dtype == torch.float64 else 2e-6
    scale = truth.abs().max().item() if truth.numel() else 0.0
    error = (result.double() - truth.double()).abs()
    allowed = step * truth.double().abs() + sums * scale + step * 1e-3 + products
    assert (error <= allowed).all(), f"{name}: off by {error.max().item():.3g}"


@pytest.mark.parametrize("run", COMPILED, indirect=True)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_reference(run, case):
    if run.device == "cuda" and torch.float64 in (case.dtype, case.out_dtype):
        pytest.skip("float64 runs on the CPU only")
    fmap1, pyramid, coords = inputs(case)
    options = {"order": case.order, "out_dtype": case.out_dtype}
    results = gradients(run, fmap1, pyramid, coords, case.radius, **options)
    # the truth of half precision: the same numbers in float32, where the reference rounds nothing on the way
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    upstream = torch.linspace(-1, 1, results[0].numel(), dtype=torch.float64).to(case.out_dtype).to(wide)
    truths = gradients(
        reference.corr_lookup, fmap1.to(wide), [level.to(wide) for level in pyramid], coords, case.radius,
        upstream.reshape(results[0].shape), order=case.order, out_dtype=wide,
    )  # fmt: skip
    names = ["out", "grad_fmap1", "grad_coords", *(f"grad_pyramid[{level}]" for level in range(case.levels))]
    products = [0.0] * len(names)
    if run.device == "cuda" and case.dtype in (torch.float16, torch.bfloat16):
        # feature gradients on tensor cores: that of a tap is rounded to tf32, 2^-11 of every product
        sizes = gradients(
            reference.corr_lookup, fmap1.to(wide).abs(), [level.to(wide).abs() for level in pyramid], coords,
            case.radius, upstream.abs().reshape(results[0].shape), order=case.order, out_dtype=wide,
        )  # fmt: skip
        products = [0.0, 2.0**-11 * sizes[1].double(), 0.0, *(2.0**-11 * size.double() for size in sizes[3:])]
    assert results[0].dtype == case.out_dtype
    assert results[0].is_contiguous()
    for name, result, truth, rounding in zip(names, results, truths, products, strict=True):
        assert result.shape == truth.shape
        assert_close(result, truth, case.dtype, name, rounding)


@pytest.mark.parametrize("run", COMPILED, indirect=True)
@pytest.mark.parametrize("upstream", ["expanded", "permuted"])
def test_gradient_of_any_strides(run, upstream):
    fmap1, pyramid, coords = inputs(Case(channels=24, radius=2, levels=2))
    shape = (2, 50, 7, 19)
    grad = torch.ones(()).expand(shape) if upstream == "expanded" else torch.randn(19, 7, 50, 2).permute(3, 2, 1, 0)
    results = gradients(run, fmap1, pyramid, coords, 2, grad)
    truths = gradients(reference.corr_lookup, fmap1, pyramid, coords, 2, grad)
    for result, truth in zip(results, truths, strict=True):
        assert_close(result, truth, torch.float32, upstream)


@pytest.mark.parametrize("run", COMPILED, indirect=True)
def test_only_the_gradients_asked_for(run):
    fmap1, pyramid, coords = inputs(Case(channels=20, radius=1, levels=2))
    upstream = torch.randn(2, 18, 7, 19)
    truths = gradients(run, fmap1, pyramid, coords, 1, upstream)
    for wanted in ((0,), (1,), (3,), (0, 1), (1, 2)):
        tensors = [t.detach().requires_grad_(i in wanted) for i, t in enumerate((fmap1, coords, *pyramid))]
        out = run(tensors[0], tensors[2:], tensors[1], 1)
        grads = torch.autograd.grad(out, [tensors[i] for i in wanted], upstream)
        for index, grad in zip(wanted, grads, strict=True):
            assert torch.equal(grad, truths[1 + index])


@pytest.mark.parametrize("run", COMPILED, indirect=True)
def test_queries_do_not_depend_on_their_neighbours(run):
    """Neighbours share loads where their windows overlap; the bits must not tell."""
    fmap1, pyramid, coords = inputs(Case(channels=52, size1=(3, 21), spread=0.7, radius=3))
    together = run(fmap1, pyramid, coords, 3)
    alone = [run(fmap1[..., x : x + 1], pyramid, coords[..., x : x + 1], 3) for x in range(21)]
    assert torch.equal(together, torch.cat(alone, dim=-1))


@pytest.mark.parametrize("run", COMPILED, indirect=True)
def test_centres_are_independent_lookups(run):
    fmap1, pyramid, coords = inputs(Case(centres=4, channels=24, radius=2))
    out = run(fmap1, pyramid, coords, 2)
    assert torch.equal(out, torch.stack([run(fmap1, pyramid, coords[:, n], 2) for n in range(4)], dim=1))


# ---- goldens --------------------------------------------------------------------------------------------------------

GOLDENS = sorted(path.name for path in (pathlib.Path(__file__).parents[3] / "shared/golden/raft").glob("op_corr_*_r*"))


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("name", GOLDENS or ["no goldens"])
def test_matches_the_official_block(run, name, shared):
    folder = shared / "golden/raft"
    case = np.load(folder / name)
    arrays = np.load(folder / f"{name[: name.index('_r')]}_inputs.npz")
    fmap1, fmap2, coords = (torch.from_numpy(arrays[key]).requires_grad_() for key in ("fmap1", "fmap2", "coords"))
    radius, levels = int(case["radius"]), int(case["levels"])
    pyramid = run.pyramid(fmap2, levels)
    out = run(fmap1, pyramid, coords, radius)
    grads = torch.autograd.grad(out, [fmap1, fmap2, coords], torch.from_numpy(case["upstream"]))
    edge = run(fmap1, pyramid, torch.from_numpy(arrays["coords_edge"]), radius)
    results = {"out": out, "out_edge": edge}
    results |= dict(zip(("grad_fmap1", "grad_fmap2", "grad_coords"), grads, strict=True))
    for key, result in results.items():  # tolerances of golden/raft/README.md
        worst = (result.detach() - torch.from_numpy(case[key])).abs().max().item()
        assert worst <= (5e-4 if key == "grad_coords" else 5e-5), f"{key}: {worst:.2e}"


# ---- autograd, compile, autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["reference", "cpu-generic", "cpu-avx512"], indirect=True)
@pytest.mark.parametrize("order", ["xy", "yx"])
def test_gradcheck(run, order):
    fmap1 = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    pyramid = [torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True) for size in ((4, 5), (2, 2))]
    # fractions in [0.1, 0.4] on either level, where no tap sits on a kink of the bilinear kernel
    coords = torch.randint(-2, 3, (1, 2, 2, 2, 3)) * 2.0 + 0.2 + 0.6 * torch.rand(1, 2, 2, 2, 3)
    coords = coords.double().requires_grad_()

    def function(fmap1, coords, *levels):
        return run(fmap1, levels, coords, (1, 2), order=order, out_dtype=torch.float64)

    assert torch.autograd.gradcheck(function, (fmap1, coords, *pyramid))


@pytest.mark.parametrize("centres", [None, 2])
def test_opcheck(run, centres):
    fmap1, pyramid, coords = inputs(Case(channels=6, size1=(3, 4), levels=2, radius=1, centres=centres))
    leaves = [t.detach().requires_grad_() for t in (fmap1, coords, *pyramid)]
    op = torch.ops.daflow_ext.corr_lookup.default
    torch.library.opcheck(op, (leaves[0], leaves[2:], leaves[1], [1, 2]), {"order": "yx", "scale": 0.5})
    upstream = torch.randn_like(run(fmap1, pyramid, coords, 1))
    for need in ((True, True, True), (False, True, False), (True, False, True)):
        torch.library.opcheck(
            torch.ops.daflow_ext.corr_lookup_backward.default,
            (upstream, fmap1, pyramid, coords, [1, 1]),
            {"scale": None, "order": "xy", "deterministic": True}
            | dict(zip(("need_fmap1", "need_pyramid", "need_coords"), need, strict=True)),
        )


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(run, compiler):
    fmap1, pyramid, coords = inputs(Case(channels=16, radius=2, levels=2))

    def model(fmap1, levels, coords, radius):
        return run(2 * fmap1, levels, coords + 0.25, radius).relu()

    eager = gradients(model, fmap1, pyramid, coords, 2)
    compiled = gradients(torch.compile(model, fullgraph=True, backend=compiler), fmap1, pyramid, coords, 2)
    for result, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_autocast_leaves_the_coordinates_alone(run):
    fmap1, pyramid, coords = inputs(Case(channels=16, radius=2))
    expected = gradients(run, fmap1, pyramid, coords, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = gradients(run, fmap1, pyramid, coords, 2)
    assert all(torch.equal(result, truth) for result, truth in zip(results, expected, strict=True))


# ---- determinism, memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", COMPILED, indirect=True)
def test_same_bits_from_run_to_run_and_for_any_number_of_threads(run):
    fmap1, pyramid, coords = inputs(Case(channels=64, size1=(26, 40), size2=(26, 40), levels=2, spread=6))
    torch.use_deterministic_algorithms(run.device == "cuda")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = gradients(run, fmap1, pyramid, coords, 4)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = gradients(run, fmap1, pyramid, coords, 4)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), f"{count} threads"
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("run", COMPILED, indirect=True)
def test_every_output_element_is_written(run):
    """Fresh memory holds NaN here: what an op leaves unwritten shows."""
    fmap1, pyramid, coords = inputs(Case(channels=20, levels=5, size2=(13, 10)))
    coords[:, :, :3] = math.nan
    torch.use_deterministic_algorithms(True)  # fills every torch.empty
    try:
        with torch.profiler.profile() as profile:
            results = gradients(run, fmap1, pyramid, coords, 4)
    finally:
        torch.use_deterministic_algorithms(False)
    inside = [event for event in profile.events() if event.name == "daflow_ext::corr_lookup_backward"]
    assert any(child.name == "aten::new_empty" for event in inside for child in event.cpu_children)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert any(event.name == "aten::fill_" for event in profile.events()), "the memory was not poisoned"
    for result in results:
        assert result.isfinite().all()


def test_no_volume_is_stored(run):
    """At 200 x 200 the volume would take 6.4 GB."""
    status, reset = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("peak memory is measured on Linux only")

    def kilobytes(field):
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])

    fmap1, pyramid, coords = inputs(Case(channels=4, size1=(200, 200), size2=(200, 200), levels=1, radius=1, batch=1))
    before = kilobytes("VmRSS")
    reset.write_text("5")
    gradients(run, fmap1, pyramid, coords, 1)
    assert kilobytes("VmHWM") - before < 60_000  # coords, output and gradients are 7 MB


def test_offsets_beyond_31_bits(run):
    """Batches 2^31 elements apart, of which only the pages in use are ever touched."""
    apart, pixels = 2**31 + 64, 5 * 6
    storage = torch.empty(apart + 8 * pixels, dtype=torch.bfloat16)
    far = storage.as_strided((2, 8, 5, 6), (apart, 1, 48, 8))
    near = torch.randn(2, 8, 5, 6).bfloat16()
    far.copy_(near)
    coords = smooth_coords(2, 5, 6)
    assert torch.equal(run(far, [far], coords, 2), run(near, [near], coords, 2))
