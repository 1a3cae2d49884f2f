"""A second derivative is that of the reference, or an error: never a number that leaves out a part."""

import pytest
import torch

from daflow_ext import ops

GRID = (5, 6)


def bilinear_sample(backend, feat, coords):
    return ops.bilinear_sample(feat, coords, backend=backend)


def corr_pyramid(backend, feat, coords):
    return ops.corr_pyramid(feat, 2, backend=backend)[1]


def corr_lookup(backend, feat, coords):
    return ops.corr_lookup(feat, [feat], coords, 1, backend=backend)


def volume_lookup(backend, feat, coords):
    volume = torch.einsum("bchw,bcyx->bhwyx", feat, feat)
    return ops.volume_lookup([volume], coords, 1, backend=backend)


def softargmax_flow(backend, feat, coords):
    tokens = feat.flatten(2).mT
    return ops.softargmax_flow(tokens, tokens, GRID, backend=backend)


def penalty(call, backend):
    """The gradient of a gradient's length, as a gradient penalty needs it."""
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(1, 4, *GRID, generator=generator).requires_grad_()
    coords = torch.rand(1, 2, *GRID, generator=generator) * 4
    (first,) = torch.autograd.grad(call(backend, feat, coords).square().sum(), feat, create_graph=True)
    return torch.autograd.grad(first.square().sum(), feat)[0]


@pytest.mark.parametrize("call", [bilinear_sample, corr_pyramid, corr_lookup, volume_lookup, softargmax_flow])
def test_no_second_derivative_is_wrong(call):
    truth = penalty(call, "reference")
    assert truth.abs().max() > 0
    try:
        found = penalty(call, "cpu")
    except (RuntimeError, NotImplementedError) as error:
        assert f"{call.__name__} is differentiable once" in str(error) or "no autograd formula" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-4)
