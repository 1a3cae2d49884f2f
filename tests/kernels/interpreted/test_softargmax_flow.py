"""The Triton kernels of softargmax_flow in the interpreter, small tiles, against the reference in double precision."""

import pytest
import torch
import torch.nn.functional as F

from daflow_ext import reference
from daflow_ext.kernels.triton import softargmax_flow as kernels
from daflow_ext.kernels.triton import tuning

CASES = {
    "global": ("global", None),
    "radius 0": ("global", 0),
    "radius 2": ("global", 2),
    "local": ("local", 1),
}


def check(query, key, grid, mode, radius, temperature=2.0, atol=4e-6, grad_atol=4e-6):
    """Displacement, confidence, entropy, LSE, and both gradients."""
    options = (temperature, -1 if radius is None else radius, mode == "local")
    flow, *extras, best = kernels.forward(query, key, *grid, *options)
    upstream = torch.randn_like(flow)
    found = kernels.backward(upstream, query, key, flow, extras[2], best, *options)
    leaves = [x.detach().double().requires_grad_() for x in (query, key)]
    truth = reference.softargmax_flow(
        *leaves, grid, temperature=temperature, radius=radius, mode=mode, details=True
    )  # fmt: skip
    expected = torch.autograd.grad(truth[0], leaves, upstream.double())
    for ours, true in zip((flow, *extras), truth, strict=True):
        torch.testing.assert_close(ours.double(), true.double(), atol=atol, rtol=0)
    for ours, true in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), true, atol=grad_atol, rtol=0)
    return flow, best


@pytest.mark.parametrize(("mode", "radius"), CASES.values(), ids=CASES.keys())
def test_matches_the_reference(mode, radius):
    """35 cells and 40 channels: neither is a multiple of a block."""
    query, key = torch.randn(1, 35, 40), torch.randn(1, 35, 40)
    check(query, key, (5, 7), mode, radius)


def test_half_precision():
    query, key = torch.randn(1, 35, 40).half(), torch.randn(1, 35, 40).half()
    check(query, key, (5, 7), "global", None, temperature=6.0, atol=4e-6, grad_atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter has no bfloat16 dot
def test_error_is_that_of_sdpa(dtype):
    """Against attention with positions as values: displacement within 1.5 times its error, gradients within 2 times."""
    grid, channels, temperature = (6, 8), 32, 6.0
    query, key = torch.randn(2, 1, 48, channels).to(dtype)
    upstream = torch.randn(1, 2, *grid)
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    positions = torch.stack((x.flatten(), y.flatten()), -1)

    def plain(query, key):
        values = F.pad(positions, (0, channels - 2)).to(query)[None]
        attended = F.scaled_dot_product_attention(query, key, values, scale=1 / temperature)[..., :2]
        return (attended.to(torch.promote_types(query.dtype, torch.float32)) - positions).mT.unflatten(-1, grid)

    flow, _, _, lse, best = kernels.forward(query, key, *grid, temperature, -1, False)
    results = [(flow, *kernels.backward(upstream, query, key, flow, lse, best, temperature, -1, False))]
    for wide in (dtype, torch.float64):
        leaves = [x.detach().to(wide).requires_grad_() for x in (query, key)]
        out = plain(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))))
    for name, factor, ours, sdpa, true in zip(("flow", "query", "key"), (1.5, 2, 2), *results, strict=True):
        ulp = true.abs().max().item() * torch.finfo(ours.dtype).eps / 2
        error, allowed = ((x.double() - true).abs().max().item() for x in (ours, sdpa))
        assert error <= factor * max(allowed, ulp), f"{name}: error {error:.3g}, SDPA {allowed:.3g}"


def test_strides():
    packed = torch.randn(2, 20, 3, 16)
    check(packed[:, :, 0], packed[:, :, 2], (4, 5), "global", None)
    check(packed[:, :, 0].mT.contiguous().mT, packed[:1, :, 1].expand(2, 20, 16), (4, 5), "local", 1)


def test_one_cell_one_row_one_column():
    for grid in ((1, 1), (7, 1)):
        cells = grid[0] * grid[1]
        check(torch.randn(1, cells, 3), torch.randn(1, cells, 3), grid, "global", None)
        check(torch.randn(1, cells, 3), torch.randn(1, cells, 3), grid, "local", 1)


def test_the_first_of_equal_matches_is_best():
    query, key = torch.ones(1, 40, 4), torch.zeros(1, 40, 4)
    key[0, [7, 12, 33]] = 1
    _, best = check(query, key, (4, 10), "local", 1)
    assert (best == 7).all()


def test_sharp_and_flat_scores():
    """One-hot probabilities give the match itself; equal scores the centre of the window."""
    match = torch.randperm(35)
    key = torch.nn.functional.normalize(torch.randn(35, 16), dim=-1)[None]
    flow, _ = check(key[:, match], key, (5, 7), "global", None, temperature=1e-3, atol=2e-3, grad_atol=1e-2)
    y, x = match // 7 - torch.arange(35) // 7, match % 7 - torch.arange(35) % 7
    torch.testing.assert_close(flow.flatten(2)[0], torch.stack([x, y]).float(), atol=1e-5, rtol=0)
    flow, _ = check(torch.zeros(1, 35, 16), key, (5, 7), "global", 1)
    assert flow[0, :, 2, 3].abs().max() < 1e-6


def test_tiles_do_not_change_the_result():
    query, key = torch.randn(1, 63, 24), torch.randn(1, 63, 24)
    results = []
    for tile in ((16, 16, 16), (32, 64, 32)):
        config = tuning.Config(tile, 1, 1)
        with tuning.use(softargmax_flow=config, softargmax_flow_window=config):
            results.append([kernels.forward(query, key, 7, 9, 2.0, r, False)[0] for r in (-1, 2)])
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, atol=2e-6, rtol=0)


def test_elements_beyond_32_bit_offsets():
    gap = 2**31 + 64
    storage = torch.empty(gap + 6 * 16, dtype=torch.float16)
    far = storage.as_strided((2, 6, 16), (gap, 16, 1))
    near = torch.randn(2, 6, 16).half()
    far.copy_(near)
    expected = kernels.forward(near, near, 2, 3, 1.0, -1, False)
    for ours, true in zip(kernels.forward(far, far, 2, 3, 1.0, -1, False), expected, strict=True):
        assert torch.equal(ours, true)
