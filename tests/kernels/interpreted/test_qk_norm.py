"""The Triton kernels of qk_norm in the interpreter against the reference in double precision."""

import pytest
import torch

from daflow_ext import backends, ops, reference


@pytest.fixture(autouse=True)
def _triton_on_the_cpu(monkeypatch):
    monkeypatch.setattr(backends, "resolve", lambda op, backend, device: "triton")


def check(streams, weights, atol=4e-6, eps=1e-6):
    leaves = [x.detach().requires_grad_() for x in (*streams, *weights)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    n = len(streams)
    found, truth = ops.qk_norm(leaves[:n], leaves[n:], eps=eps), reference.qk_norm(wide[:n], wide[n:], eps=eps)
    upstream = [torch.randn(x.shape) for x in found]
    grads = torch.autograd.grad(found, leaves, [u.to(x) for u, x in zip(upstream, found, strict=True)])
    true_grads = torch.autograd.grad(truth, wide, [u.double() for u in upstream])
    for ours, true in zip((*found, *grads), (*truth, *true_grads), strict=True):
        assert ours.shape == true.shape
        torch.testing.assert_close(ours.double(), true, atol=atol, rtol=0)


def test_six_streams_in_one_launch():
    """Lengths that are no multiple of a block, and weights of their own."""
    shapes = [(1, 2, 11, 2, 16), (1, 2, 5, 2, 16), (1, 1, 3, 2, 16)] * 2
    check([torch.randn(s) for s in shapes], [torch.randn(16) for _ in shapes])


def test_strides_ranks_and_widths():
    packed = torch.randn(2, 7, 3, 2, 24)
    check([packed[:, :, 0], packed[:, 1:4, 2], torch.randn(2, 24, 5).mT], [torch.randn(24) for _ in range(3)])


def test_half_precision_and_float_weights():
    check([torch.randn(1, 9, 2, 16).half()], [torch.randn(16).half()], atol=8e-3)
    streams, weights = [torch.randn(1, 9, 2, 16).half()], [torch.randn(16)]
    (out,) = ops.qk_norm(streams, weights)
    torch.testing.assert_close(out.double(), reference.qk_norm([streams[0].double()], weights)[0], atol=2e-3, rtol=0)


def test_zeros_and_empty_streams():
    check([torch.zeros(1, 3, 2, 16), torch.randn(1, 0, 2, 16)], [torch.randn(16) for _ in range(2)], eps=1e-2)


def test_operator_contract():
    streams = [torch.randn(1, 3, 2, 16, requires_grad=True)] * 2
    weights = [torch.randn(16, requires_grad=True) for _ in range(2)]
    torch.library.opcheck(torch.ops.daflow_ext.qk_norm.default, (streams, weights, 1e-6))


def test_one_head_width_per_launch():
    with pytest.raises(ValueError, match=r"needs one head width, got \[16, 8\]"):
        ops.qk_norm([torch.randn(3, 16), torch.randn(3, 8)], [torch.ones(16), torch.ones(8)])
