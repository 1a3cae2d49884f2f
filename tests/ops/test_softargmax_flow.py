"""softargmax_flow: every backend against tables, the reference in double precision, SDPA's error; its properties."""

import dataclasses
import importlib

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F

from daflow_ext import reference
from daflow_ext.ops import SoftargmaxFlow, softargmax_flow

module = importlib.import_module("daflow_ext.ops.softargmax_flow")

IMPLEMENTATIONS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.gpu)]
FAST = IMPLEMENTATIONS[1:]
MODES = {
    "global": {},
    "radius 0": {"radius": 0},
    "radius 2": {"radius": 2},
    "local": {"mode": "local"},
    "local 1": {"mode": "local", "radius": 1},
}


@dataclasses.dataclass
class Run:
    """One backend; results come back on the CPU."""

    backend: str

    @property
    def device(self) -> str:
        return "cuda" if self.backend == "triton" else "cpu"

    def __call__(self, query, key, grid, **options):
        found = softargmax_flow(query.to(self.device), key.to(self.device), grid, backend=self.backend, **options)
        return SoftargmaxFlow(*(x.cpu() for x in found)) if options.get("details") else found.cpu()


@pytest.fixture
def run(request, monkeypatch) -> Run:
    # small bands, so that small grids have several
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 700)
    monkeypatch.setattr(module, "_KEYS_AT_ONCE", 16)
    return Run(request.param)


def features(batch, grid, channels, dtype=torch.float32):
    return [torch.randn(batch, grid[0] * grid[1], channels).to(dtype) for _ in range(2)]


def cells(grid):
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([x, y]).float()  # [2, h, w]


def close(found, expected, atol=1e-5):
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), truth.double(), atol=atol, rtol=0)


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
def test_computed_by_hand(run):
    """A row of three cells; scores 0, log 2, log 5 for every query, then a temperature that doubles them."""
    query, key = torch.ones(1, 3, 1), torch.tensor([1.0, 2.0, 5.0]).log().reshape(1, 3, 1)
    for temperature, p in ((1.0, [1 / 8, 2 / 8, 5 / 8]), (0.5, [1 / 30, 4 / 30, 25 / 30])):
        found = run(query, key, (1, 3), temperature=temperature, details=True)
        p = torch.tensor(p)
        mean = p[1] + 2 * p[2]
        expected = torch.stack([mean - torch.arange(3), torch.zeros(3)]).reshape(1, 2, 1, 3)
        entropy, lse = -(p * p.log()).sum(), (-p[0].log()).item()  # the first score is 0
        close(found, (expected, *(torch.full((1, 1, 3), float(x)) for x in (p.max(), entropy, lse))), atol=1e-6)
    # a radius of 1 leaves two keys to the outer queries
    flow = run(query, key, (1, 3), radius=1)
    close([flow[0, 0, 0]], [torch.tensor([2 / 3, 1 / 2, -2 / 7])], atol=1e-6)
    # a window of 1 around the best match, cell 2, is cells 1 and 2
    flow = run(query, key, (1, 3), mode="local", radius=1)
    close([flow[0, 0, 0]], [12 / 7 - torch.arange(3)], atol=1e-6)


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("grid", [(9, 13), (1, 1), (1, 40), (40, 1), (6, 8)], ids=str)
def test_matches_the_reference(run, options, grid):
    query, key = features(2, grid, 20)
    truth = reference.softargmax_flow(query.double(), key.double(), grid, temperature=3.0, details=True, **options)
    found = run(query, key, grid, temperature=3.0, details=True, **options)
    close(found, truth)
    assert torch.equal(run(query, key, grid, temperature=3.0, **options), found.flow)


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_any_strides_and_channels(run):
    packed = torch.randn(2, 30, 3, 5)  # 5 channels: no alignment helps
    pairs = (
        (packed[:, :, 0], packed[:, :, 2]),
        (packed[:, :, 1].mT.contiguous().mT, packed[:1, :, 0].expand(2, 30, 5)),
        (torch.randn(2, 30, 0), torch.randn(2, 30, 0)),  # no features: every match is as likely
    )
    for query, key in pairs:
        close([run(query, key, (5, 6))], [reference.softargmax_flow(query, key, (5, 6))])


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_empty_batch(run):
    found = run(torch.randn(0, 12, 4), torch.randn(0, 12, 4), (3, 4), details=True)
    assert [x.shape for x in found] == [(0, 2, 3, 4), *[(0, 3, 4)] * 3]


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"radius": 3}], ids=["global", "radius"])
def test_error_is_that_of_sdpa(run, dtype, options):
    """Against attention with positions as values, from the same features; half precision ends in float32 here."""
    grid, channels = (12, 16), 64
    query, key = features(1, grid, channels, dtype)
    leaves = [x.detach().requires_grad_() for x in (query, key)]
    plain = [x.detach().requires_grad_() for x in (query, key)]
    wide = [x.detach().double().requires_grad_() for x in (query, key)]
    positions = cells(grid).flatten(1).T  # [T, 2]
    mask = None
    if options:
        mask = ((positions[:, None] - positions[None]).abs() <= options["radius"]).all(-1)
    upstream = torch.randn(1, 2, *grid)

    found = run(*leaves, grid, temperature=8.0, **options)
    values = F.pad(positions, (0, channels - 2)).to(dtype)[None]
    attended = F.scaled_dot_product_attention(*plain, values, scale=1 / 8, attn_mask=mask)[..., :2]
    theirs = (attended.float() - positions).mT.unflatten(-1, grid)
    truth = reference.softargmax_flow(*wide, grid, temperature=8.0, **options)
    results = []
    for out, inputs in ((found, leaves), (theirs, plain), (truth, wide)):
        results.append((out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))))
    for index, (name, factor) in enumerate((("flow", 1.5), ("query", 2.0), ("key", 2.0))):
        ours, sdpa, true = (result[index].double() for result in results)
        ulp = true.abs().max() * torch.finfo(ours.dtype if index == 0 else dtype).eps / 2
        assert (ours - true).abs().max() <= factor * max((sdpa - true).abs().max(), ulp), name


@pytest.mark.parametrize("run", ["reference", "cpu"], indirect=True)
@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
def test_gradcheck(run, options):
    query, key = features(2, (4, 5), 3, torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k: run(q, k, (4, 5), temperature=0.7, **options), (query.requires_grad_(), key.requires_grad_())
    )


# ---- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("mode", ["global", "local"])
def test_a_shifted_map_gives_the_shift(run, mode):
    grid, shift = (8, 10), (3, -2)  # x, y
    image = F.normalize(torch.randn(1, *grid, 32), dim=-1)
    moved = torch.roll(image, (shift[1], shift[0]), (1, 2))
    found = run(image.flatten(1, 2), moved.flatten(1, 2), grid, temperature=0.01, mode=mode, details=True)
    inside = found.flow[0, :, 2:, :7]
    torch.testing.assert_close(inside, torch.tensor(shift).float()[:, None, None].expand_as(inside), atol=1e-4, rtol=0)
    assert found.confidence.min() > 0.99
    assert found.entropy.max() < 0.05


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_equal_scores_give_the_middle_of_the_window(run):
    grid = (7, 9)
    query, key = torch.zeros(1, 63, 8), torch.randn(1, 63, 8)
    found = run(query, key, grid, details=True)
    close([found.flow[0]], [torch.tensor([4.0, 3.0])[:, None, None] - cells(grid)], atol=5e-6)
    close([found.confidence, found.entropy], [torch.full((1, *grid), 1 / 63), torch.full((1, *grid), 63.0).log()])
    assert run(query, key, grid, radius=2)[0, :, 2:5, 2:7].abs().max() < 1e-6


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_local_mode_is_not_pulled_between_two_candidates(run):
    """One good match at each end of a row: the mean lies between them, the local answer at the better one."""
    key = F.one_hot(torch.arange(21), 21).float()[None]
    query = torch.zeros(1, 21, 21)
    query[..., 2], query[..., 18] = 20.0, 19.0
    both, local = run(query, key, (1, 21)), run(query, key, (1, 21), mode="local")
    assert 5 < both[0, 0, 0, 0] < 8
    close([local[0, 0, 0]], [2 - torch.arange(21)], atol=1e-4)


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_joined_channels_add_up_their_scores(run):
    (q1, k1), (q2, k2) = features(1, (5, 6), 8), features(1, (5, 6), 12)
    found = run(torch.cat([q1, q2], -1), torch.cat([k1, k2], -1), (5, 6), details=True)
    scores = q1 @ k1.mT + q2 @ k2.mT
    expected = scores.softmax(-1) @ cells((5, 6)).flatten(1).T - cells((5, 6)).flatten(1).T
    close([found.flow.flatten(2), found.lse.flatten(1)], [expected.mT, torch.logsumexp(scores, -1)])


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
def test_runs_and_batches_repeat_bit_by_bit(run, options):
    query, key = features(2, (6, 9), 16)
    upstream = torch.randn(2, 2, 6, 9)

    def results(q, k, u):
        leaves = [q.detach().requires_grad_(), k.detach().requires_grad_()]
        flow = run(*leaves, (6, 9), **options)
        return flow, *torch.autograd.grad(flow, leaves, u)

    first = results(query, key, upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, results(query, key, upstream), strict=True))
    alone = results(query[1:], key[1:], upstream[1:])
    assert all(torch.equal(a[1:], b) for a, b in zip(first, alone, strict=True))


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_peak_memory_at_full_size():
    """1080p at 1536 channels: under 15 % of what the written-out form needs beyond its inputs."""
    from benchmarks import timing

    naive, ours = (
        timing.peak_bytes("benchmarks.softargmax_flow:memory_case", way=way, grid=[68, 120], channels=1536)
        for way in ("chain", "ours")
    )
    assert ours < 0.15 * naive, f"{ours / 2**20:.0f} MiB against {naive / 2**20:.0f} MiB"


# ---- as an operator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("details", [False, True])
def test_operator_contract(details):
    query, key = (x.requires_grad_() for x in features(2, (3, 4), 5))
    for radius, local in ((-1, False), (1, True)):
        torch.library.opcheck(
            torch.ops.daflow_ext.softargmax_flow.default, (query, key, 3, 4, 0.5, radius, local, details)
        )  # fmt: skip


def test_operator_traces_for_cuda():
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = torch.ops.daflow_ext
    with FakeTensorMode():
        query, key = (torch.empty(2, 12, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        flow, *extras, lse, best = op.softargmax_flow(query, key, 3, 4, 1.0, -1, False, True)
        grads = op.softargmax_flow_backward(flow, query, key, flow, lse, best, 1.0, -1, False)
    assert (flow.shape, flow.dtype, flow.device.type) == ((2, 2, 3, 4), torch.float32, "cuda")
    assert all((x.shape, x.dtype) == ((2, 3, 4), torch.float32) for x in (*extras, lse))
    assert all((x.shape, x.dtype, x.device.type) == ((2, 12, 64), torch.bfloat16, "cuda") for x in grads)


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_compiles_with_dynamic_sizes(run):
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter if run.device == "cpu" else "inductor")
    def compiled(query, key, height, width):
        return softargmax_flow(query, key, (height, width), temperature=2.0, backend=run.backend)

    for grid in ((5, 7), (6, 4), (9, 8)):
        query, key = (x.to(run.device) for x in features(2, grid, 6))
        close([compiled(query, key, *grid).cpu()], [run(query, key, grid, temperature=2.0)])
    assert counter.frame_count <= 1


def test_auto_is_the_cpu_path_on_the_cpu():
    query, key = features(1, (3, 4), 5)
    assert torch.equal(softargmax_flow(query, key, (3, 4)), softargmax_flow(query, key, (3, 4), backend="cpu"))


MAP = torch.zeros(2, 12, 5)
BAD_ARGUMENTS = {
    "rank": ((MAP[0], MAP, (3, 4)), {}, ValueError, r"query must be \[B, h\*w, C\], got float32\[12, 5\]"),
    "grid": ((MAP, MAP, (3, 5)), {}, ValueError, r"must both be \[B, 3 \* 5, C\]"),
    "grid of one number": ((MAP, MAP, 12), {}, ValueError, r"grid_size must be \(h, w\), both >= 1, got 12"),
    "negative grid": ((MAP, MAP, (-3, -4)), {}, ValueError, r"both >= 1, got \(-3, -4\)"),
    "channels": ((MAP, MAP[..., :4], (3, 4)), {}, ValueError, "must both be"),
    "dtype": ((MAP, MAP.half(), (3, 4)), {}, TypeError, "key is float16"),
    "integer": ((MAP.int(), MAP, (3, 4)), {}, TypeError, "query must be float32"),
    "temperature": ((MAP, MAP, (3, 4)), {"temperature": 0.0}, ValueError, "temperature must be > 0, got 0.0"),
    "mode": ((MAP, MAP, (3, 4)), {"mode": "best"}, ValueError, "got 'best'"),
    "radius": ((MAP, MAP, (3, 4)), {"radius": -1}, ValueError, "got -1"),
    "backend": ((MAP, MAP, (3, 4)), {"backend": "sdpa"}, RuntimeError, "has no sdpa backend"),
}


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        softargmax_flow(*arguments, **options)
