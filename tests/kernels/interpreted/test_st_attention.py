"""The Triton kernels of st_attention in the interpreter, small tiles, against the reference in double precision."""

import math

import pytest
import torch
import torch.nn.functional as F

from daflow_ext import backends, ops, reference
from daflow_ext.kernels.triton import streams, tuning

POINTERS = tuning.INTERPRETED["st_attention"]
LOADS = {"pointers": POINTERS, "descriptors": POINTERS._replace(descriptors=True)}


@pytest.fixture(autouse=True)
def _triton_on_the_cpu(monkeypatch):
    monkeypatch.setattr(backends, "resolve", lambda op, backend, device: "triton")


@pytest.fixture(params=LOADS.values(), ids=LOADS.keys())
def loads(request):
    with tuning.use(st_attention=request.param):
        yield


def tokens(*shapes, heads=1, width=16, dtype=torch.float32):
    return [torch.randn(*shape, heads, width).to(dtype) for shape in shapes]


def check(q, k, v, atol=2e-6, **options):
    """Outputs, LSEs and all gradients."""
    leaves = [s.detach().requires_grad_() for s in (*q, *k, *v)]
    wide = [s.detach().double().requires_grad_() for s in leaves]
    n, m = len(q), len(k)

    def run(function, x):
        return function(x[:n], x[n : n + m], x[n + m :], return_lse=True, **options)

    (out, lse), (truth, true_lse) = run(ops.st_attention, leaves), run(reference.st_attention, wide)
    upstream = [torch.randn(o.shape) for o in out]
    grads = torch.autograd.grad(
        out, leaves, [u.to(o) for u, o in zip(upstream, out, strict=True)], materialize_grads=True
    )
    true_grads = torch.autograd.grad(truth, wide, [u.double() for u in upstream])
    for ours, true in zip((*out, *lse, *grads), (*truth, *true_lse, *true_grads), strict=True):
        torch.testing.assert_close(ours.double(), true, atol=atol, rtol=0)
    return out


@pytest.mark.usefixtures("loads")
def test_three_streams_with_tails():
    shapes = (1, 2, 19), (1, 2, 8), (1, 1, 5)
    check(*(tokens(*shapes) for _ in range(3)), stream_weights=[1, 0.5, 2])


@pytest.mark.usefixtures("loads")
def test_half_precision():
    q, k, v = (tokens((1, 1, 37), (1, 1, 5), dtype=torch.float16) for _ in range(3))
    check(q, k, v, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter has no bfloat16 dot
def test_error_is_that_of_sdpa(dtype):
    """Outputs within 1.5 times the error of PyTorch in the same type, gradients within 2 times."""
    q, k, v = (torch.randn(1, 1, 70, 1, 32).to(dtype) for _ in range(3))
    upstream = torch.randn(1, 1, 70, 1, 32).to(dtype)

    def plain(q, k, v):
        return F.scaled_dot_product_attention(*(x[:, 0].transpose(1, 2) for x in (q, k, v))).transpose(1, 2)[:, None]

    results = []
    for function, wide in (
        (lambda *x: ops.st_attention(*([s] for s in x))[0], dtype),
        (plain, dtype),
        (plain, torch.float64),
    ):
        leaves = [x.detach().to(wide).requires_grad_() for x in (q, k, v)]
        out = function(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream.to(wide))))
    for name, factor, ours, sdpa, true in zip(("out", "q", "k", "v"), (1.5, 2, 2, 2), *results, strict=True):
        ulp = true.abs().max().item() * torch.finfo(dtype).eps / 2
        error, allowed = ((x.double() - true).abs().max().item() for x in (ours, sdpa))
        assert error <= factor * max(allowed, ulp), f"{name}: error {error:.3g}, SDPA {allowed:.3g}"


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("reference_frames", [(), (3, 0)], ids=["window", "reference frames"])
def test_windows_over_streams_with_and_without_frames(reference_frames):
    q, k, v = (tokens((1, 4, 7), (1, 1, 3)) for _ in range(3))
    check(q, k, v, window=0 if reference_frames else 1, reference_frames=reference_frames, stream_weights=[1, 4])


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("window", [None, 0])
def test_frames_with_gaps_between_them(window):
    packed = torch.randn(2, 3, 12, 3, 1, 16)  # q, k and v of one projection, of which some tokens are taken
    check(*([packed[:, :, 2:11, i]] for i in range(3)), window=window)


@pytest.mark.usefixtures("loads")
def test_other_strides_and_widths():
    for shape, permutation in (((1, 2, 3, 9, 24), (0, 2, 3, 1, 4)), ((3, 1, 9, 2, 24), (0, 1, 2, 3, 4))):
        check(*([torch.randn(shape).permute(permutation)] for _ in range(3)))
    unaligned = [torch.randn(9 * 24 + 1)[1:].reshape(1, 1, 9, 1, 24) for _ in range(3)]
    check(*([x] for x in unaligned))
    check(*([torch.randn(1, 1, 5, 1, 16).expand(2, 2, 5, 2, 16)] for _ in range(3)))


def test_one_token_and_empty_streams():
    q, k, v = (tokens((1, 2, 1), (1, 2, 0)) for _ in range(3))
    check(q, k, v, window=0)


def test_rows_of_minus_infinity_see_nothing():
    """Scores of -inf, also across several blocks: output 0 and LSE -inf, no NaN."""
    q, (k, v) = tokens((1, 1, 3)), tokens((1, 1, 40), (1, 1, 40))
    q[0][:], k[:] = 0, 0
    q[0][..., 0], k[..., 0] = torch.finfo().max, -torch.finfo().max
    (out,), (lse,) = ops.st_attention(q, [k], [v], return_lse=True)
    assert not out.any()
    assert (lse == -math.inf).all()


def test_scale_may_be_zero_negative_or_large():
    q, (k, v) = tokens((1, 1, 20)), tokens((1, 1, 40), (1, 1, 40))
    for scale in (0.0, -3.0):
        check(q, [k], [v], atol=2e-5, scale=scale)


@pytest.mark.parametrize("magnitude", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("offset", [0.0, -10.0])
def test_logits_of_any_size(magnitude, offset):
    """Up to +-1e4, and all of them far below zero: weights are right to the rounding of the logits."""
    q, k, v = tokens((1, 1, 20), (1, 1, 40), (1, 1, 40))
    q[..., 0], k[..., 0] = 1, offset
    scale = magnitude / (q[0, 0, :, 0] @ k[0, 0, :, 0].T).abs().max().item()
    (out,), (lse,) = ops.st_attention([q], [k], [v], scale=scale, return_lse=True)
    (truth,), (true_lse,) = reference.st_attention(
        [q.double()], [k.double()], [v.double()], scale=scale, return_lse=True
    )  # fmt: skip
    atol = 1e-6 * max(1.0, magnitude)
    torch.testing.assert_close(out.double(), truth, atol=atol, rtol=0)
    torch.testing.assert_close(lse.double(), true_lse, atol=atol, rtol=0)


def test_nan_stays_in_its_rows():
    q, k, v = (tokens((1, 2, 9)) for _ in range(3))
    clean = ops.st_attention(q, k, v, window=0)[0]
    q[0][0, 0, 2], v[0][0, 1, 8, 0, 3] = math.nan, math.nan
    for config in LOADS.values():
        with tuning.use(st_attention=config):
            out = ops.st_attention(q, k, v, window=0)[0]
        bad = torch.zeros_like(out, dtype=torch.bool)
        bad[0, 0, 2], bad[0, 1, :, 0, 3] = True, True
        assert out[bad].isnan().all()
        assert torch.equal(out[~bad], clean[~bad])


def test_more_streams_than_a_launch_takes():
    q, k = tokens((1, 1, 2)), tokens(*[(1, 1, 2)] * 4)
    with pytest.raises(ValueError, match="up to 3 key streams, got 4"):
        ops.st_attention(q, k, k)
    with pytest.raises(ValueError, match="heads of up to 128 channels, got 160"):
        ops.st_attention(*([torch.randn(1, 1, 2, 1, 160)] for _ in range(3)))


def test_elements_beyond_32_bit_offsets():
    """The second frame lies more than 2^31 elements behind the first; only touched pages of the storage exist."""
    gap = 2**31 + 64
    storage = torch.empty(gap + 3 * 16, dtype=torch.float16)
    far = storage.as_strided((1, 2, 3, 1, 16), (0, gap, 16, 16, 1))
    near = torch.randn(1, 2, 3, 1, 16).half()
    far.copy_(near)
    for window in (None, 0):
        for q, k in ((far, near), (near, far)):
            out = ops.st_attention([q], [k], [k], window=window)
            assert torch.equal(out[0], ops.st_attention([near], [near], [near], window=window)[0])


def test_runs_cover_every_frame_once():
    """The index helpers alone, over every window, frame and set of reference frames of a small clip."""
    for joined in (0, 1):
        key = streams.Stream(torch.zeros(1), 0, 0, 0, 0, 5, 7, joined, 0)
        for window in (0, 2):
            for extra in ((), (4, 1)):
                for frame in (0, 2, 4):
                    first, last = max(frame - window, 0), min(frame + window + 1, 5)
                    assert _frames_of_runs(key, frame, window, extra) == sorted({*range(first, last), *extra})


def _frames_of_runs(key, frame, window, extra):
    import triton
    import triton.language as tl

    @triton.jit
    def probe(key, reference, frame, window, out):
        low, high = streams.seen_frames(frame, 5, key.frames, window)
        runs = streams.count_runs(key, low, high, reference)
        tl.store(out, runs)
        for run in tl.range(0, runs):
            start, frames = streams.nth_run(run, key, low, high, reference)
            tl.store(out + 1 + 2 * run, start)
            tl.store(out + 2 + 2 * run, frames)

    out = torch.zeros(16, dtype=torch.int32)
    probe[(1,)](key, extra, frame, window, out)
    pairs = out[1 : 1 + 2 * out[0]].reshape(-1, 2).tolist()
    return sorted(start + i for start, frames in pairs for i in range(frames))


def test_operator_contract():
    q, k, v = (tokens((1, 2, 3)) for _ in range(3))
    leaves = [[s.requires_grad_() for s in x] for x in (q, k, v)]
    torch.library.opcheck(torch.ops.daflow_ext.st_attention.default, (*leaves, 0.25, 0, [0], [1.0], 3.0))


def test_tiles_do_not_change_the_result():
    outputs = []
    for tile in ((16, 16), (32, 16), (16, 32)):
        torch.manual_seed(0)
        q, k, v = (tokens((1, 1, 35)) for _ in range(3))
        with tuning.use(st_attention=tuning.Config(tile, 1, 1)):
            outputs.append(ops.st_attention(q, k, v)[0])
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-6, rtol=0)
