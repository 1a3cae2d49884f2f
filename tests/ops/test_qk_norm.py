"""qk_norm: a hand-computed case, the reference, gradients, errors. The Triton kernel: tests/kernels."""

import pytest
import torch
import torch.nn.functional as F

from daflow_ext import ops


def test_by_hand():
    (out,) = ops.qk_norm([torch.tensor([[3.0, 4.0]])], [torch.tensor([1.0, 10.0])], eps=0.0)
    rms = 12.5**0.5
    assert torch.allclose(out, torch.tensor([[3 / rms, 40 / rms]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_streams_of_different_shapes_against_the_formula(dtype):
    streams = [torch.randn(2, 3, 5, 4, 8), torch.randn(2, 7, 4, 8), torch.randn(1, 0, 4, 8)]
    streams = [(10 * stream).to(dtype) for stream in streams]
    weights = [torch.randn(8) for _ in streams]
    for out, stream, weight in zip(ops.qk_norm(streams, weights), streams, weights, strict=True):
        wide = stream.double()
        truth = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.to(dtype).double()
        assert out.dtype == dtype
        assert torch.allclose(out.double(), truth, rtol=4 * torch.finfo(dtype).eps, atol=1e-7)


def test_eps_rules_near_zero():
    tiny = torch.full((1, 1, 16), 1e-4)
    (out,) = ops.qk_norm([tiny], [torch.ones(16)])
    assert torch.allclose(out, tiny / (1e-8 + 1e-6) ** 0.5)


def test_gradients():
    stream = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: ops.qk_norm([x, 2 * x], [w, w]), (stream, weight))


def test_non_contiguous_and_compiled():
    packed = torch.randn(2, 5, 3, 4, 8)
    query, key = packed[:, :, 0], packed[:, :, 1]
    weights = [torch.rand(8), torch.rand(8)]
    plain = ops.qk_norm([query, key], weights)
    compiled = torch.compile(ops.qk_norm, fullgraph=True, backend="aot_eager")([query, key], weights)
    for out, again, stream, weight in zip(plain, compiled, (query, key), weights, strict=True):
        assert torch.allclose(out, F.rms_norm(stream.contiguous(), (8,), weight, 1e-6), atol=1e-6)
        assert torch.allclose(out, again, atol=1e-6)


@pytest.mark.parametrize(
    ("streams", "weights", "message"),
    [
        ([torch.zeros(1, 2, 4)], [], "1 streams but 0 weights"),
        ([torch.zeros(1, 2, 4)], [torch.zeros(3)], r"weights\[0\] is float32\[3\] on cpu but streams\[0\]"),
    ],
)
def test_errors(streams, weights, message):
    with pytest.raises(ValueError, match=message):
        ops.qk_norm(streams, weights)
