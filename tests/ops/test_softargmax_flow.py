"""softargmax_flow on the CPU: hand-computed cases, fp64 reference, gradients, properties, errors."""

import pytest
import torch

from daflow_ext import ops, reference

MODES = [("global", None), ("global", 2), ("local", None), ("local", 1)]


def _features(height=5, width=7, channels=16, batch=2, dtype=torch.float64):
    return [torch.randn(batch, height * width, channels, dtype=dtype, requires_grad=True) for _ in range(2)]


@pytest.fixture(params=[None, 40])
def chunk(request, monkeypatch):
    """The default band, and bands of single rows."""
    import sys

    if request.param is not None:
        monkeypatch.setattr(sys.modules["daflow_ext.ops.softargmax_flow"], "_CHUNK_ELEMENTS", request.param)


def test_by_hand():
    # two cells side by side; scores 0 and log 3 for both queries: probabilities 1/4 and 3/4
    query = torch.ones(1, 2, 1)
    key = torch.tensor([[[0.0], [3.0]]]).log1p() * torch.log(torch.tensor(3.0)) / torch.log(torch.tensor(4.0))
    found = ops.softargmax_flow(query, key, (1, 2), details=True)
    assert torch.allclose(found.flow[0, 0], torch.tensor([[0.75, -0.25]]), atol=1e-6)
    assert torch.equal(found.flow[0, 1], torch.zeros(1, 2))
    assert torch.allclose(found.confidence, torch.full((1, 1, 2), 0.75))
    entropy = -(0.25 * torch.log(torch.tensor(0.25)) + 0.75 * torch.log(torch.tensor(0.75)))
    assert torch.allclose(found.entropy, entropy.expand(1, 1, 2), atol=1e-6)
    assert torch.allclose(found.lse, torch.log(torch.tensor(4.0)).expand(1, 1, 2), atol=1e-6)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("mode", "radius"), MODES)
def test_values_and_gradients_equal_the_reference(mode, radius):
    query, key = _features()
    options = {"temperature": 2.0, "mode": mode, "radius": radius, "details": True}
    ours = ops.softargmax_flow(query, key, (5, 7), **options)
    truth = reference.softargmax_flow(query, key, (5, 7), **options)
    for name, mine, other in zip(ours._fields, ours, truth, strict=True):
        assert (mine - other).abs().max() < 1e-6, name
    assert (ours.flow - truth[0]).abs().max() < 1e-12
    upstream = torch.randn_like(ours.flow)
    mine = torch.autograd.grad(ours.flow, (query, key), upstream)
    other = torch.autograd.grad(truth[0], (query, key), upstream)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize(("mode", "radius"), MODES)
def test_gradcheck(mode, radius):
    query, key = _features(3, 4, 5, 1)
    assert torch.autograd.gradcheck(
        lambda q, k: ops.softargmax_flow(q, k, (3, 4), mode=mode, radius=radius), (query, key), atol=1e-6
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float16, 3e-2), (torch.bfloat16, 3e-1)])
def test_precision_against_fp64(dtype, bound):
    query, key = (x.detach().to(dtype) for x in _features(8, 9, 64, 1))
    truth = reference.softargmax_flow(query.double(), key.double(), (8, 9), temperature=8.0)
    flow = ops.softargmax_flow(query, key, (8, 9), temperature=8.0)
    assert flow.dtype == torch.float32
    assert (flow - truth).abs().max() < bound


def test_layers_joined_along_channels_add_their_scores():
    first, second = _features(), _features()
    joined = [torch.cat(pair, -1) for pair in zip(first, second, strict=True)]
    scores = sum(q @ k.mT for q, k in (first, second))
    cells = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")[::-1], -1).reshape(-1, 2)
    truth = (scores.softmax(-1) @ cells.double() - cells).mT.unflatten(-1, (5, 7))
    assert (ops.softargmax_flow(*joined, (5, 7)) - truth).abs().max() < 1e-12


def test_a_wide_window_is_no_window_and_extreme_scores_stay_finite():
    query, key = _features()
    assert torch.equal(ops.softargmax_flow(query, key, (5, 7)), ops.softargmax_flow(query, key, (5, 7), radius=7))
    hot = ops.softargmax_flow(query * 1e4, key, (5, 7), details=True)
    assert hot.flow.isfinite().all()
    assert torch.allclose(hot.confidence, torch.ones_like(hot.confidence))
    flat = ops.softargmax_flow(query * 0, key, (5, 7), details=True)
    assert torch.allclose(flat.entropy, torch.log(torch.tensor(35.0)))


def test_local_mode_does_not_average_two_far_candidates():
    query = torch.zeros(1, 16, 2)
    query[..., 0] = 10.0
    key = torch.zeros(1, 16, 2)
    key[0, [1, 14], 0] = torch.tensor([1.0, 0.99])  # two candidates at opposite ends of a row of 16
    middle = ops.softargmax_flow(query, key, (1, 16))[0, 0, 0, 0]
    sharp = ops.softargmax_flow(query, key, (1, 16), mode="local", radius=0)[0, 0, 0, 0]
    assert 4 < middle < 11
    assert sharp == 1


def test_opcheck_and_compile():
    query, key = (x.float().detach().requires_grad_() for x in _features(3, 4, 5, 1))
    op = torch.ops.daflow_ext.softargmax_flow
    torch.library.opcheck(op, (query, key, 3, 4, 1.0, -1, False, True))
    compiled = torch.compile(ops.softargmax_flow, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, key, (3, 4)), ops.softargmax_flow(query, key, (3, 4)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(1, 6, 2), torch.zeros(1, 6, 2), (2, 4)), {}, r"must both be \[B, 2 \* 4, C\]"),
        ((torch.zeros(1, 6, 2), torch.zeros(1, 6, 3), (2, 3)), {}, "must both be"),
        ((torch.zeros(6, 2), torch.zeros(6, 2), (2, 3)), {}, r"query must be \[B, h\*w, C\], got float32\[6, 2\]"),
        (
            (torch.zeros(1, 6, 2), torch.zeros(1, 6, 2), (2, 3)),
            {"temperature": 0.0},
            "temperature must be > 0, got 0.0",
        ),
        ((torch.zeros(1, 6, 2), torch.zeros(1, 6, 2), (2, 3)), {"mode": "best"}, "mode must be 'global' or 'local'"),
        ((torch.zeros(1, 6, 2), torch.zeros(1, 6, 2), (2, 3)), {"radius": -1}, "radius must be an integer >= 0"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ops.softargmax_flow(*arguments, **options)
