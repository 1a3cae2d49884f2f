"""st_attention: every backend against tables, the reference in double precision, SDPA's own error; its properties."""

import dataclasses
import math

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F

from daflow_ext import reference
from daflow_ext.ops import st_attention

IMPLEMENTATIONS = ["reference", "sdpa", pytest.param("triton", marks=pytest.mark.gpu)]
FAST = IMPLEMENTATIONS[1:]
HALVES = [torch.float16, torch.bfloat16]


@dataclasses.dataclass
class Run:
    """One backend; results come back on the CPU."""

    backend: str

    @property
    def device(self) -> str:
        return "cuda" if self.backend == "triton" else "cpu"

    def __call__(self, q, k, v, **options):
        q, k, v = ([stream.to(self.device) for stream in streams] for streams in (q, k, v))
        found = st_attention(q, k, v, backend=self.backend, **options)
        if options.get("return_lse"):
            return [out.cpu() for out in found[0]], [lse.cpu() for lse in found[1]]
        return [out.cpu() for out in found]


@pytest.fixture
def run(request) -> Run:
    return Run(request.param)


def streams(*shapes, heads=2, width=16, dtype=torch.float32):
    """Random streams of the shapes (B, F, T)."""
    return [torch.randn(*shape, heads, width).to(dtype) for shape in shapes]


def joined(found):
    """Outputs or LSEs of all streams, [B, tokens, heads, ...]."""
    heads = -2 if found[0].dim() == 5 else -1
    return torch.cat([part.flatten(1, part.dim() + heads - 1) for part in found], 1)


def close(found, expected, atol=2e-6):
    assert len(found) == len(expected)
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), truth.double(), atol=atol, rtol=0)


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
def test_weights_computed_by_hand(run):
    q = [torch.zeros(1, 1, 1, 1, 16)]
    k, v = [torch.randn(1, 1, 1, 1, 16) for _ in range(2)], [torch.full((1, 1, 1, 1, 16), x) for x in (1.0, 5.0)]
    for weights, value, lse in ((None, 3.0, math.log(2)), ([1, 3], 4.0, math.log(4)), ([0.5, 0], 1.0, math.log(0.5))):
        (out,), (found,) = run(q, k, v, stream_weights=weights, return_lse=True)
        close([out], [torch.full_like(out, value)])
        close([found], [torch.full((1, 1, 1, 1), lse)])
    # scores log 2 and 0: weights 2/3 and 1/3
    q[0][..., 0], k[0][:], k[1][:] = math.log(2), 0, 0
    k[0][..., 0] = 1
    close(run(q, k, v, scale=1.0), [torch.full((1, 1, 1, 1, 16), 7 / 3)])


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
def test_which_frames_are_seen(run):
    """Keys of zero: every output is the mean value of the frames seen, and values are powers of two."""
    frames = 5
    q, k = [torch.zeros(1, frames, 3, 1, 16)], [torch.zeros(1, frames, 2, 1, 16)]
    v = [(2.0 ** torch.arange(frames)).reshape(1, frames, 1, 1, 1).expand(1, frames, 2, 1, 16)]

    def seen(**options):
        (out,) = run(q, k, v, **options)
        assert torch.equal(out, out[..., :1, :1, :1].expand_as(out))
        return out[0, :, 0, 0, 0].tolist()

    expected = {
        (): [31 / 5] * 5,
        (0,): [1, 2, 4, 8, 16],
        (1,): [3 / 2, 7 / 3, 14 / 3, 28 / 3, 12],
        (1, (0, 1)): [3 / 2, 7 / 3, 15 / 4, 31 / 5, 27 / 4],
        (1, (4,)): [19 / 3, 23 / 4, 30 / 4, 28 / 3, 12],
    }
    for options, values in expected.items():
        found = seen(**dict(zip(("window", "reference_frames"), options, strict=False)))
        assert found == pytest.approx(values, rel=1e-6)


LENGTHS = [(1, 1), (3, 3), (64, 1), (113, 203), (128, 217), (239, 1), (799, 3)]


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_lengths_that_are_no_multiple_of_a_tile(run, queries, keys):
    q, (k, v) = streams((2, 1, queries)), streams((2, 1, keys), (2, 1, keys))
    out, lse = run(q, [k], [v], return_lse=True)
    truth, true_lse = reference.st_attention([q[0].double()], [k.double()], [v.double()], return_lse=True)
    close(out, truth)
    close(lse, true_lse)


MASKS = {
    "dense": {},
    "weighted": {"stream_weights": [1, 2.5, 3]},
    "window": {"window": 1},
    "reference frames": {"window": 0, "reference_frames": (3, 0)},
    "all": {"window": 1, "reference_frames": (2,), "stream_weights": [1, 0.25, 4]},
}


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_streams_frames_and_weights_match_the_reference(run, mask):
    shapes = (2, 4, 21), (2, 4, 9), (2, 1, 13)
    q, k, v = (streams(*shapes) for _ in range(3))
    truth = reference.st_attention(*([s.double() for s in x] for x in (q, k, v)), return_lse=True, **mask)
    found = run(q, k, v, return_lse=True, **mask)
    close(found[0], truth[0])
    close(found[1], truth[1])
    # 4-D streams with the number of frames are the same tokens
    flat = [[s.flatten(1, 2) for s in x[:2]] + x[2:] for x in (q, k, v)]
    for ours, flattened in zip(found[0], run(*flat, frames=4, **mask), strict=True):
        assert torch.equal(ours.reshape(flattened.shape), flattened)


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("missing", ["q", "k"])
def test_fewer_streams_on_one_side(run, missing):
    shapes = (1, 2, 5), (1, 2, 7)
    q, k, v = (streams(*shapes) for _ in range(3))
    q, k, v = (q[:1], k, v) if missing == "q" else (q, k[:1], v[:1])
    close(run(q, k, v), reference.st_attention(q, k, v))


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_any_strides(run):
    packed = torch.randn(2, 3, 11, 3, 4, 24)  # q, k and v of one projection
    q, k, v = ([packed[:, :, 2:9, i]] for i in range(3))
    heads_first = [torch.randn(2, 4, 3, 7, 24).permute(0, 2, 3, 1, 4)]
    shared = [torch.randn(1, 1, 7, 4, 24).expand(2, 3, 7, 4, 24)]
    unaligned = [torch.randn(2 * 3 * 7 * 4 * 24 + 1)[1:].reshape(2, 3, 7, 4, 24)]
    for keys in (k, heads_first, shared, unaligned):
        for options in ({}, {"window": 1}):
            truth = reference.st_attention(q, keys, v, **options)
            close(run(q, keys, v, **options), truth)
            close(run(keys, q, keys, **options), reference.st_attention(keys, q, keys, **options))


# ---- accuracy: no worse than SDPA -----------------------------------------------------------------------------------


def sdpa_of_everything(q, k, v, mask, **_):
    """PyTorch on joined streams with a written-out mask."""
    q_all, k_all, v_all = (joined(x).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q_all, k_all, v_all, attn_mask=mask).transpose(1, 2)
    return [
        part.reshape(s.shape) for part, s in zip(out.split([s[0, ..., 0, 0].numel() for s in q], 1), q, strict=True)
    ]


def with_gradients(function, q, k, v, upstream, **options):
    leaves = [s.detach().requires_grad_() for s in (*q, *k, *v)]
    n, m = len(q), len(k)
    out = function(leaves[:n], leaves[n : n + m], leaves[n + m :], **options)
    grads = torch.autograd.grad(out, leaves, [u.to(o) for u, o in zip(upstream, out, strict=True)])
    return [o.detach() for o in out], grads


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("width", [64, 128])
def test_error_is_that_of_sdpa(run, dtype, window, width):
    shapes = (1, 4, 50), (1, 4, 31), (1, 1, 20)
    q, k, v = (streams(*shapes, width=width, dtype=dtype) for _ in range(3))
    upstream = streams(*shapes, width=width)
    truth, true_grads = with_gradients(
        reference.st_attention,
        *([s.double() for s in x] for x in (q, k, v)),
        [u.double() for u in upstream],
        window=window,
    )
    frame = reference.st_attention.__globals__["frame_of_tokens"](q, None)
    mask = None
    if window is not None:
        mask = reference.st_attention.__globals__["frame_mask"](frame, frame, window, ())
    plain, plain_grads = with_gradients(sdpa_of_everything, q, k, v, upstream, mask=mask)
    found, grads = with_gradients(run, q, k, v, upstream, window=window)
    for name, ours, theirs, true, factor in (
        ("output", found, plain, truth, 1.5),
        ("gradient", grads, plain_grads, true_grads, 2.0),
    ):
        largest = max(t.abs().max().item() for t in true)
        ulp = largest * torch.finfo(dtype).eps / 2
        ours, theirs = (
            max((a.double() - b).abs().max().item() for a, b in zip(x, true, strict=True)) for x in (ours, theirs)
        )
        assert ours <= factor * max(theirs, ulp), f"{name}: error {ours:.3g}, SDPA {theirs:.3g}"


@pytest.mark.parametrize("run", ["reference", "sdpa"], indirect=True)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_gradcheck(run, mask):
    q, k, v = (streams((1, 4, 2), (1, 4, 1), (1, 1, 2), heads=1, width=4, dtype=torch.float64) for _ in range(3))
    leaves = [s.requires_grad_() for s in (*q, *k, *v)]
    assert torch.autograd.gradcheck(lambda *x: tuple(run(x[:3], x[3:6], x[6:], **mask)), leaves)
    assert torch.autograd.gradcheck(
        lambda *x: tuple(run(x[:3], x[3:6], x[6:], return_lse=True, **mask)[0]), leaves, fast_mode=True
    )


# ---- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_order_and_split_of_keys_do_not_matter(run):
    (q,), (k, v) = streams((1, 1, 40)), streams((1, 1, 90), (1, 1, 90))
    whole = run([q], [k], [v])
    order = torch.randperm(90)
    close(run([q], [k[:, :, order]], [v[:, :, order]]), whole)
    close(run([q], [k[:, :, :33], k[:, :, 33:]], [v[:, :, :33], v[:, :, 33:]]), whole)
    halves = run([q[:, :, :7], q[:, :, 7:]], [k], [v])
    close([torch.cat(halves, 2)], whole)


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_a_constant_added_to_all_keys_changes_nothing(run):
    (q,), (k, v) = streams((1, 1, 40)), streams((1, 1, 90), (1, 1, 90))
    close(run([q], [k + torch.randn(16)], [v]), run([q], [k], [v]))


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_halves_merge_by_their_log_sum_exps(run):
    (q,), (k, v) = streams((1, 1, 40)), streams((1, 1, 90), (1, 1, 90))
    whole, lse = run([q], [k], [v], return_lse=True)
    parts = [run([q], [k[:, :, rows]], [v[:, :, rows]], return_lse=True) for rows in (slice(0, 30), slice(30, 90))]
    merged_lse = torch.logaddexp(parts[0][1][0], parts[1][1][0])
    merged = sum(out[0] * (part[0] - merged_lse).exp()[..., None] for out, part in parts)
    close([merged, merged_lse], [whole[0], lse[0]])


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_weight_n_equals_n_copies(run, dtype):
    """One text copy shared by all frames against a copy per frame, in inputs that half precision holds exactly."""
    q, k, v = (streams((1, 3, 10), (1, 1, 6), dtype=dtype) for _ in range(3))
    copies = [[x[0], x[1].expand(1, 3, 6, 2, 16)] for x in (k, v)]
    found, lse = run(q, k, v, stream_weights=[1, 3], return_lse=True)
    expected, expected_lse = run(q, *copies, return_lse=True)
    close(found, expected, atol=2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)
    close(lse, expected_lse, atol=5e-5)


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_a_window_over_all_frames_is_none(run):
    q, k, v = (streams((1, 4, 10), (1, 1, 6)) for _ in range(3))
    for ours, truth in zip(run(q, k, v, window=3), run(q, k, v), strict=True):
        assert torch.equal(ours, truth)


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_large_scale_gathers_and_zero_queries_average(run):
    (k, v) = streams((1, 1, 50), (1, 1, 50), width=64)
    match = torch.randperm(50)
    close(run([k[:, :, match]], [k], [v], scale=1e3), [v[:, :, match]])
    close(run([torch.zeros_like(k)], [k], [v]), [v.mean(2, keepdim=True).expand_as(v)])
    close(run([k], [k], [torch.ones_like(v)]), [torch.ones_like(v)], atol=1e-6)


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("magnitude", [0.0, 1e-3, 1.0, 1e2, 1e4])
def test_logits_of_any_size(run, magnitude):
    (q,), (k, v) = streams((1, 1, 40)), streams((1, 1, 70), (1, 1, 70))
    scale = magnitude / (q[0, 0, :, 0] @ k[0, 0, :, 0].T).abs().max().item()
    truth = reference.st_attention([q.double()], [k.double()], [v.double()], scale=scale, return_lse=True)
    out, lse = run([q], [k], [v], scale=scale, return_lse=True)
    # a score has a relative error of 1e-7, and weights move with scores
    close(out, truth[0], atol=2e-6 * max(1.0, magnitude))
    close(lse, truth[1], atol=2e-6 * max(1.0, magnitude))


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_negative_scale(run):
    (q,), (k, v) = streams((1, 1, 9)), streams((1, 1, 12), (1, 1, 12))
    close(run([q], [k], [v], scale=-0.7), reference.st_attention([q], [k], [v], scale=-0.7))


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
def test_rows_that_see_nothing(run):
    q, k, v = (streams((2, 3, 5), (2, 1, 4)) for _ in range(3))
    empty = streams((2, 3, 0))
    for keys, values, weights in ((k, v, [0, 0]), (empty, empty, None)):
        leaves = [s.detach().requires_grad_() for s in q]
        out, lse = run(leaves, keys, values, stream_weights=weights, return_lse=True, window=1)
        assert all(not o.any() for o in out)
        assert all((part == -math.inf).all() for part in lse)
        grads = torch.autograd.grad(out, leaves, [torch.ones_like(o) for o in out])
        assert all(not grad.any() for grad in grads)


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("window", [None, 1])
def test_streams_without_tokens(run, window):
    q, k, v = (streams((2, 3, 5), (2, 3, 0), (2, 1, 4)) for _ in range(3))
    out, lse = run(q, k, v, window=window, return_lse=True)
    assert [o.shape for o in out] == [s.shape for s in q]
    assert [part.shape for part in lse] == [s.shape[:-1] for s in q]
    without = run(q[::2], k[::2], v[::2], window=window)
    for ours, expected in zip(out[::2], without, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_nan_and_infinity_reach_their_rows_only(run):
    q, k, v = (streams((1, 3, 5)) for _ in range(3))
    clean = run(q, k, v, window=0)[0]
    q[0][0, 0, 2], k[0][0, 2, 1], v[0][0, 1, 4, 0, 3] = math.nan, math.inf, math.nan
    out = run(q, k, v, window=0)[0]
    bad = torch.zeros(1, 3, 5, 2, 16, dtype=torch.bool)
    bad[0, 0, 2], bad[0, 2], bad[0, 1, :, 0, 3] = True, True, True
    assert out[bad][: 2 * 16].isnan().all() or run.backend == "sdpa"  # PyTorch's CPU kernel gives 0 for a NaN query
    assert out[0, 1, :, 0, 3].isnan().all()
    assert torch.equal(out[~bad], clean[~bad])


@pytest.mark.parametrize("run", FAST, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_and_batches_repeat_bit_by_bit(run, dtype):
    shapes = (2, 3, 37), (2, 1, 19)
    q, k, v, upstream = (streams(*shapes, width=64, dtype=dtype) for _ in range(4))
    first = with_gradients(run, q, k, v, upstream, window=1)
    for _ in range(20 if run.device == "cuda" else 3):
        again = with_gradients(run, q, k, v, upstream, window=1)
        assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    alone = run(*([s[1:] for s in x] for x in (q, k, v)), window=1)
    assert all(torch.equal(a[1:], b) for a, b in zip(first[0], alone, strict=True))


@pytest.mark.parametrize("run", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("scale", [0.25, 30.0])
def test_a_bound_changes_no_result(run, scale):
    """Right for the first scale; for the second far too small."""
    q, k, v = (streams((1, 3, 37), (1, 1, 19)) for _ in range(3))
    options = {"window": 1, "scale": scale, "return_lse": True}
    expected, found = run(q, k, v, **options), run(q, k, v, **options, score_bound=20.0)
    for ours, truth in zip(found, expected, strict=True):
        close(ours, truth, atol=2e-6 * max(1.0, scale * 20))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1])
def test_every_candidate_of_this_gpu(window):
    """Online and max-free, with tails and whole tiles; each repeats bit by bit."""
    from daflow_ext.kernels.triton import tuning

    q, k, v = (streams((1, 4, 300), (1, 4, 77), (1, 1, 33), width=64, dtype=torch.bfloat16) for _ in range(3))
    options = {"window": window, "stream_weights": [1, 1, 4], "return_lse": True}
    wide = [[s.double() for s in x] for x in (q, k, v)]
    truth, true_lse = reference.st_attention(*wide, **options)
    q, k, v = ([s.cuda() for s in x] for x in (q, k, v))
    for name, config in tuning.candidates("st_attention", torch.bfloat16, 64).items():
        for bound in (None, 12.0, 0.1):  # unknown, right, wrong
            with tuning.use(st_attention=config, st_attention_pointers=config._replace(descriptors=False)):
                runs = [st_attention(q, k, v, backend="triton", score_bound=bound, **options) for _ in range(3)]
            (out, lse), *others = runs
            try:
                close([x.cpu() for x in out], truth, atol=2e-2)
                close([x.cpu() for x in lse], true_lse, atol=1e-3)
            except AssertionError as error:
                raise AssertionError(f"{name}, bound {bound}") from error
            assert all(torch.equal(a, b) for again, _ in others for a, b in zip(again, out, strict=True)), name


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_window_stores_no_mask():
    """Forward and backward over 32 frames, with weights and a reference frame: far less than a byte per pair."""
    from benchmarks import timing

    peak = timing.peak_bytes("benchmarks.st_attention:memory_case", frames=32, tokens=256)
    assert peak < 0.3 * (32 * 256) ** 2, f"{peak / 2**20:.1f} MiB"


# ---- as an operator -------------------------------------------------------------------------------------------------


def test_auto_is_sdpa_on_the_cpu():
    q, k, v = (streams((1, 2, 5)) for _ in range(3))
    assert torch.equal(st_attention(q, k, v)[0], st_attention(q, k, v, backend="sdpa")[0])


def test_autocast_runs_in_half_precision():
    q, k, v = (streams((1, 2, 5)) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = st_attention(q, k, v)[0]
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, st_attention(*([s.bfloat16() for s in x] for x in (q, k, v)))[0])


@pytest.mark.parametrize("run", FAST, indirect=True)
def test_compiles_once_for_all_lengths(run):
    options = {"window": 1, "stream_weights": [1.0, 3.0], "backend": run.backend}
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter if run.device == "cpu" else "inductor")
    def compiled(q, k, v):
        outputs, lse = st_attention(q, k, v, return_lse=True, **options)
        return outputs, lse

    for tokens, text in ((6, 5), (9, 7), (17, 4)):
        q, k, v = ([s.to(run.device) for s in streams((2, 3, tokens), (2, 1, text))] for _ in range(3))
        found, expected = compiled(q, k, v), st_attention(q, k, v, return_lse=True, **options)
        close(*([x.cpu() for x in joined] for joined in (found[0], expected[0])))
        close(*([x.cpu() for x in joined] for joined in (found[1], expected[1])))
    assert counter.frame_count <= 1


def test_operator_traces_for_cuda():
    """Shapes, types and device of the opaque operator and its gradients, without a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = torch.ops.daflow_ext
    with FakeTensorMode():
        shapes = (2, 3, 20, 4, 64), (2, 1, 7, 4, 64)
        q, k, v = ([torch.empty(s, device="cuda", dtype=torch.bfloat16) for s in shapes] for _ in range(3))
        options = (0.125, 1, [0], [1.0, 3.0])
        *outputs, lse = op.st_attention(q, k, v, *options, 8.0)
        grads = op.st_attention_backward(outputs, q, k, v, outputs, lse, *options)
    spelled = [(tuple(x.shape), x.dtype, x.device.type) for x in (*outputs, *grads)]
    assert spelled == [(shape, torch.bfloat16, "cuda") for shape in shapes * 4]
    assert (lse.shape, lse.dtype) == ((2, 4, 67), torch.float32)


GOOD = torch.zeros(2, 3, 4, 2, 16)
BAD_ARGUMENTS = {
    "tensor for a list": ((GOOD, [GOOD], [GOOD]), {}, TypeError, "q must be a non-empty list"),
    "no stream": (([GOOD], [], []), {}, TypeError, "k must be a non-empty list"),
    "rank": (
        ([GOOD[0, 0]], [GOOD], [GOOD]),
        {},
        ValueError,
        r"q\[0\] must be \[B, F, T, heads, d\].*got float32\[4, 2, 16\]",
    ),
    "heads": (([GOOD], [GOOD[:, :, :, :1]], [GOOD]), {}, ValueError, r"k\[0\] is .* but q\[0\]"),
    "dtype": (([GOOD], [GOOD.half()], [GOOD]), {}, TypeError, r"k\[0\] is float16"),
    "values": (([GOOD], [GOOD], [GOOD[:, :, :3]]), {}, ValueError, "same shapes"),
    "frames": (([GOOD], [GOOD[:, :2]], [GOOD[:, :2]]), {}, ValueError, "expected one number"),
    "frames of 4-D": (([GOOD.flatten(1, 2)], [GOOD], [GOOD]), {"frames": 5}, ValueError, "frames=5"),
    "window": (([GOOD], [GOOD], [GOOD]), {"window": -2}, ValueError, "got -2"),
    "reference frame": (
        ([GOOD], [GOOD], [GOOD]),
        {"window": 0, "reference_frames": (3,)},
        ValueError,
        r"outside 0\.\.2",
    ),
    "weights": (([GOOD], [GOOD], [GOOD]), {"stream_weights": [1, 2]}, ValueError, "one per key stream"),
    "negative weight": (([GOOD], [GOOD], [GOOD]), {"stream_weights": [-1]}, ValueError, ">= 0"),
    "not a list": ((None, [GOOD], [GOOD]), {}, TypeError, "q must be a non-empty list of streams, got NoneType"),
    "not a tensor": (([GOOD.numpy()], [GOOD], [GOOD]), {}, TypeError, r"q\[0\] must be a tensor, got ndarray"),
    "no channels": (([GOOD[..., :0]],) * 3, {}, ValueError, r"q\[0\] has heads of no channels"),
    "no frames": (([GOOD], [GOOD], [GOOD]), {"frames": 0}, ValueError, "frames must be >= 1 or None, got 0"),
    "one reference frame": (([GOOD],) * 3, {"window": 0, "reference_frames": 1}, TypeError, "list of integers, got 1"),
    "weight of no value": (([GOOD], [GOOD], [GOOD]), {"stream_weights": [math.nan]}, ValueError, "finite numbers"),
    "bound": (([GOOD], [GOOD], [GOOD]), {"score_bound": -1.0}, ValueError, "score_bound must be >= 0 or None, got -1"),
    "bound of no value": (([GOOD],) * 3, {"score_bound": math.nan}, ValueError, "score_bound must be >= 0 .*got nan"),
    "backend": (([GOOD], [GOOD], [GOOD]), {"backend": "cpu"}, RuntimeError, "st_attention has no cpu backend"),
}


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        st_attention(*arguments, **options)
