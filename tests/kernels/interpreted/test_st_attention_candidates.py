"""Every way in which the forward kernel of st_attention can be launched, in the interpreter, against the reference."""

import math

import pytest
import torch

from daflow_ext import backends, ops, reference
from daflow_ext.kernels.triton import st_attention, tuning
from daflow_ext.kernels.triton.st_attention_lists import key_lists
from daflow_ext.kernels.triton.streams import describe

AHEAD = tuning.Config((32, 16), 1, 1)
WAYS = {
    "look-ahead": AHEAD,
    "plain": AHEAD._replace(look_ahead=False),
    "plain, descriptors": AHEAD._replace(look_ahead=False, descriptors=True),
    "block lists": AHEAD._replace(look_ahead=False, block_lists=True),
    "persistent": AHEAD._replace(programs=1),
    "block lists, persistent": AHEAD._replace(look_ahead=False, block_lists=True, programs=1),
}
# shapes of the streams, options
CASES = {
    "1 frame": ([(1, 1, 37)], {}),
    "2 frames, 3 streams, weights": ([(1, 2, 19), (1, 2, 8), (1, 1, 5)], {"stream_weights": [1, 0.5, 2]}),
    "3 frames, window 0": ([(1, 3, 18)], {"window": 0}),
    "4 frames, window 1, shared text": ([(1, 4, 9), (1, 1, 3)], {"window": 1, "stream_weights": [1, 4]}),
    "4 frames, reference frames": ([(1, 4, 7), (1, 1, 3)], {"window": 0, "reference_frames": (3, 0)}),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@pytest.fixture(autouse=True)
def _triton_on_the_cpu(monkeypatch):
    monkeypatch.setattr(backends, "resolve", lambda op, backend, device: "triton")


def tokens(*shapes, dtype=torch.float32):
    return [torch.randn(*shape, 1, 16).to(dtype) for shape in shapes]


def bound_of(q, k, scale=0.25):
    return max((scale * a.flatten(0, 2)[:, 0] @ b.flatten(0, 2)[:, 0].T).abs().max().item() for a in q for b in k)


def check(way, q, k, v, atol=2e-6, gradients=False, **options):
    """Outputs and LSEs, and gradients if asked for."""
    leaves = [s.detach().requires_grad_() for s in (*q, *k, *v)]
    wide = [s.detach().double().requires_grad_() for s in leaves]

    def run(function, x):
        return function(x[: len(q)], x[len(q) : -len(v)], x[-len(v) :], return_lse=True, **options)

    with tuning.use(st_attention=way, st_attention_pointers=way._replace(descriptors=False)):
        out, lse = run(ops.st_attention, leaves)
    truth, true_lse = run(reference.st_attention, wide)
    pairs = list(zip((*out, *lse), (*truth, *true_lse), strict=True))
    if gradients:
        upstream = [torch.randn(o.shape) for o in out]
        grads = torch.autograd.grad(out, leaves, [u.to(o) for u, o in zip(upstream, out, strict=True)])
        pairs += zip(grads, torch.autograd.grad(truth, wide, [u.double() for u in upstream]), strict=True)
    for ours, true in pairs:
        torch.testing.assert_close(ours.double(), true, atol=atol, rtol=0)


@every_way
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_way_without_a_running_maximum(way, case):
    shapes, options = case
    q, k, v = (tokens(*shapes) for _ in range(3))
    check(way, q, k, v, score_bound=bound_of(q, k), **options)


@every_way
def test_every_way_with_a_running_maximum(way):
    shapes, options = CASES["4 frames, reference frames"]
    check(way, *(tokens(*shapes) for _ in range(3)), **options)


@pytest.mark.parametrize("way", ["look-ahead", "block lists"])
def test_gradients_without_a_running_maximum(way):
    shapes, options = CASES["2 frames, 3 streams, weights"]
    q, k, v = (tokens(*shapes) for _ in range(3))
    check(WAYS[way], q, k, v, gradients=True, score_bound=bound_of(q, k), **options)


@every_way
def test_half_precision_and_frames_with_gaps(way):
    packed = torch.randn(1, 2, 20, 3, 1, 16).half()  # q, k and v of one projection, of which some tokens are taken
    check(way, *([packed[:, :, 1:18, i]] for i in range(3)), atol=2e-3, score_bound=10.0)


@every_way
@pytest.mark.parametrize("offset", [-40.0, -20.0, 0.0, 40.0], ids=["far below", "below", "both", "far above"])
def test_a_wrong_bound_costs_time_only(way, offset):
    """Scores up to +-130 or so, also all of one sign: weights leave float32, or get close to it, and nothing shows."""
    bound = 1.0
    (q,), (k,), (v,) = (tokens((1, 1, 20)) for _ in range(3))
    q[..., 0], k[..., 0] = 4.0, offset
    k[..., 1:] *= 4
    with tuning.use(st_attention=way):
        (out,), (lse,) = ops.st_attention([q], [k], [v], scale=0.8, score_bound=bound, return_lse=True)
    wide = [[x.double()] for x in (q, k, v)]
    (truth,), (true_lse,) = reference.st_attention(*wide, scale=0.8, return_lse=True)
    torch.testing.assert_close(out.double(), truth, atol=2e-4, rtol=0)
    torch.testing.assert_close(lse.double(), true_lse, atol=2e-4, rtol=0)


def test_scores_as_far_apart_as_the_licence_allows():
    (q,), (k,), (v,) = (tokens((1, 1, 40)) for _ in range(3))
    bound = 0.4999 * st_attention.MAX_FREE_SPAN * math.log(2)
    scale = bound / bound_of([q], [k], 1.0)
    check(AHEAD, [q], [k], [v], atol=5e-5, scale=scale, score_bound=bound)


@every_way
def test_rows_that_see_nothing_under_a_bound(way):
    """Scores of -inf, though the bound promises otherwise: output 0 and LSE -inf, no NaN."""
    (q,), (k, v) = tokens((1, 1, 3)), tokens((1, 1, 40), (1, 1, 40))
    q[:], k[:] = 0, 0
    q[..., 0], k[..., 0] = torch.finfo().max, -torch.finfo().max
    with tuning.use(st_attention=way):
        (out,), (lse,) = ops.st_attention([q], [k], [v], score_bound=1.0, return_lse=True)
    assert not out.any()
    assert (lse == -math.inf).all()


@every_way
def test_nan_stays_in_its_row_under_a_bound(way):
    (q,), (k,), (v,) = (tokens((1, 1, 20)) for _ in range(3))
    with tuning.use(st_attention=way):
        (clean,) = ops.st_attention([q], [k], [v], score_bound=20.0)
        q[0, 0, 2] = math.nan
        (out,) = ops.st_attention([q], [k], [v], score_bound=20.0)
    assert out[0, 0, 2].isnan().all()
    rest = [i for i in range(20) if i != 2]
    torch.testing.assert_close(out[0, 0, rest], clean[0, 0, rest], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("bound", "weights", "dtype", "config", "max_free"),
    [
        (34.0, (1.0, 1.0), torch.float32, AHEAD, True),
        (35.0, (1.0, 1.0), torch.float32, AHEAD, False),  # 2 * 35 / ln 2 = 101
        (34.0, (1.0, 9.0), torch.float32, AHEAD, False),  # log2 9 more
        (1.0, (1.0, 1.0), torch.float16, AHEAD, False),
        (34.0, (1.0, 1.0), torch.float32, AHEAD._replace(max_free=False), False),
        (None, (1.0, 1.0), torch.float32, AHEAD, False),
    ],
)
def test_what_takes_the_licence(bound, weights, dtype, config, max_free, monkeypatch):
    launches = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **options: launches.append(options["MAX_FREE"])

    monkeypatch.setattr(st_attention, "_forward", Kernel())
    q = tokens((1, 1, 4), dtype=dtype)
    with tuning.use(st_attention=config):
        ops.st_attention(q, q * 2, q * 2, stream_weights=weights, score_bound=bound)
    assert launches == ([True, False] if max_free else [False])  # the second looks for rows to repair


def test_a_negative_or_nan_bound_is_refused():
    q = tokens((1, 1, 4))
    for bound in (-1.0, math.nan):
        with pytest.raises(ValueError, match="score_bound must be >= 0 or None, got"):
            ops.st_attention(q, q, q, score_bound=bound)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(("window", "extra"), [(0, ()), (1, (4, 0)), (9, ())])
def test_lists_hold_what_a_frame_sees_once_and_whole_tiles_first(joined, window, extra):
    framed = torch.zeros(1, 5, 7 if joined else 9, 1, 16)[:, :, :7]
    (keys,) = describe([framed, torch.zeros(1, 1, 3, 1, 16)], join=False)
    entries, starts = (x.tolist() for x in key_lists(keys, 5, window, extra, 4, torch.device("cpu")))
    assert len(starts) == 2 * (5 + 1) + 1
    for frame in range(6):
        first, partial, end = starts[2 * frame : 2 * frame + 3]
        assert [e[3] == 4 for e in entries[first:end]] == [True] * (partial - first) + [False] * (end - partial)
        seen = [(s, 7 * f + t + i) for s, f, t, count in entries[first:end] for i in range(count)]
        frames = [f for f in range(5) if frame == 5 or abs(f - frame) <= window or f in extra]
        assert sorted(seen) == [(0, 7 * f + t) for f in frames for t in range(7)] + [(1, t) for t in range(3)]
