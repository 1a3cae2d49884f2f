"""qk_norm: values, gradients, contract; the Triton kernels where there is a GPU (see tests/kernels/interpreted too)."""

import logging

import pytest
import torch

from daflow_ext import reference
from daflow_ext.ops import qk_norm

RUNS = [pytest.param("reference", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("backend", "device"), RUNS)
def test_computed_by_hand(backend, device):
    stream, weight = torch.tensor([[[3.0, 4.0, 0.0, 0.0]]]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    (out,) = qk_norm([stream.to(device)], [weight.to(device)], eps=0.0, backend=backend)
    torch.testing.assert_close(out.cpu(), torch.tensor([[[1.2, 3.2, 0.0, 0.0]]]))  # rms 2.5


@pytest.mark.parametrize(("backend", "device"), RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matches_double_precision(backend, device, dtype):
    """Six streams of other lengths and strides; outputs and gradients within the rounding of their type."""
    packed = torch.randn(2, 3, 41, 3, 4, 64)
    streams = [packed[:, :, :, 0], packed[:, :, 3:20, 1], torch.randn(2, 1, 33, 4, 64)] * 2
    weights = [torch.randn(64) for _ in streams]
    leaves = [x.to(device, dtype).detach().requires_grad_() for x in (*streams, *weights)]
    wide = [x.detach().cpu().double().requires_grad_() for x in leaves]
    found, truth = qk_norm(leaves[:6], leaves[6:], backend=backend), reference.qk_norm(wide[:6], wide[6:])
    upstream = [torch.randn(x.shape, dtype=torch.float64) for x in truth]
    grads = torch.autograd.grad(found, leaves, [u.to(x) for u, x in zip(upstream, found, strict=True)])
    true_grads = torch.autograd.grad(truth, wide, upstream)
    eps = torch.finfo(dtype).eps
    for ours, true in zip((*found, *grads), (*truth, *true_grads), strict=True):
        assert (ours.cpu().double() - true).abs().max() <= 4 * eps * true.abs().max()


def test_gradcheck():
    streams = [torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weights = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *x: tuple(qk_norm(x[:2], x[2:])), (*streams, *weights))


@pytest.mark.parametrize(("backend", "device"), RUNS)
def test_outputs_are_buffers_of_their_own(backend, device):
    stream = torch.randn(1, 3, 2, 16, device=device)
    before = stream.clone()
    (out,) = qk_norm([stream], [torch.ones(16, device=device)], backend=backend)
    out.zero_()
    assert torch.equal(stream, before)


def test_on_the_cpu_the_reference_is_no_fallback(caplog):
    """Nothing was refused, so nothing is warned about."""
    from daflow_ext import backends

    backends._automatic.cache_clear()
    with caplog.at_level(logging.WARNING, "daflow_ext"):
        qk_norm([torch.randn(1, 3, 2, 16)], [torch.ones(16)])
    assert not caplog.records


def test_operator_traces_for_cuda():
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = torch.ops.daflow_ext
    with FakeTensorMode():
        streams = [torch.empty(2, tokens, 4, 64, device="cuda", dtype=torch.bfloat16) for tokens in (7, 3)]
        weights = [torch.empty(64, device="cuda")] * 2
        found = op.qk_norm(streams, weights, 1e-6)
        grads = op.qk_norm_backward(found, streams, weights, 1e-6)
    assert [(x.shape, x.dtype, x.device.type) for x in found] == [(s.shape, torch.bfloat16, "cuda") for s in streams]
    assert [(x.shape, x.dtype) for x in grads] == [(x.shape, x.dtype) for x in (*streams, *weights)]


@pytest.mark.parametrize(("backend", "device"), RUNS)
def test_compiles(backend, device):
    streams, weights = [torch.randn(1, 9, 2, 16, device=device)], [torch.randn(16, device=device)]
    compiled = torch.compile(lambda x, w: qk_norm(x, w, backend=backend), fullgraph=True, backend="eager")
    assert torch.equal(compiled(streams, weights)[0], qk_norm(streams, weights, backend=backend)[0])


STREAM, WEIGHT = torch.zeros(1, 3, 2, 16), torch.ones(16)
BAD_ARGUMENTS = {
    "no stream": (([], []), ValueError, "0 streams but 0 weights"),
    "one weight short": (([STREAM, STREAM], [WEIGHT]), ValueError, "2 streams but 1 weights"),
    "width": (([STREAM], [WEIGHT[:4]]), ValueError, r"weights\[0\] is float32\[4\].*\[0\] is float32\[1, 3, 2, 16\]"),
    "integer": (([STREAM.int()], [WEIGHT]), TypeError, r"streams\[0\] must be float32.*got int32\[1, 3, 2, 16\]"),
    "dtype": (([STREAM, STREAM.half()], [WEIGHT, WEIGHT]), TypeError, r"streams\[1\] is float16"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        qk_norm(*arguments)
