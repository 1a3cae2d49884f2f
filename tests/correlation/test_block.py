"""CorrBlock against RAFT's all-pairs block in plain PyTorch, and what it promises beyond it."""

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.plain import PlainCorrBlock
from daflow_ext.correlation import AlternateCorrBlock, CorrBlock

MEMORY = ("volume", "on_the_fly")


def inputs(batch, channels, height, width, device, dtype=torch.float32, spread=4.0):
    """Feature maps and coordinates: the grid plus a displacement, some of it far outside, none on an integer."""
    fmap1, fmap2 = (torch.randn(batch, channels, height, width).to(device, dtype) for _ in range(2))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    flow = torch.randn(batch, 2, height, width) * spread
    flow[torch.rand(batch, 1, height, width).expand_as(flow) < 0.1] *= 100
    coords = torch.stack([x, y]) + flow
    coords = coords.floor() + coords.frac().abs().clamp(0.1, 0.9)
    return fmap1, fmap2, coords.to(device)


def windows(fmap1, levels, coords, radius):
    """The plain block level by level. Zeros around a level change nothing but RAFT's division by (side - 1)."""
    padded = [F.pad(level.double(), (0, 2, 0, 2)) for level in levels]
    fmap1, coords = fmap1.double(), coords.double()
    plain = [PlainCorrBlock(fmap1, level, 1, radius)(coords / 2**index) for index, level in enumerate(padded)]
    return torch.cat(plain, dim=1)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(
    ("batch", "channels", "height", "width", "levels", "radius"),
    [(1, 32, 16, 24, 4, 4), (2, 64, 17, 23, 4, 3), (1, 5, 20, 31, 2, 4), (1, 128, 40, 18, 4, 0)],
)
def test_equals_raft(backend, device, memory, batch, channels, height, width, levels, radius):
    fmap1, fmap2, coords = inputs(batch, channels, height, width, device)
    out = CorrBlock(fmap1, fmap2, levels, radius, memory=memory, backend=backend)(coords)
    plain = PlainCorrBlock(fmap1.double(), fmap2.double(), levels, radius)(coords.double())
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    torch.testing.assert_close(out, plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("case", ["b1_c32_h16_w24", "b2_c64_h17_w23", "b1_c256_h20_w31"])
def test_equals_the_official_outputs_and_gradients(backend, device, memory, case, shared):
    folder = shared / "golden" / "raft"
    given = {
        key: torch.from_numpy(value).to(device) for key, value in np.load(folder / f"op_corr_{case}_inputs.npz").items()
    }
    for name in ("r4_L4", "r3_L2"):
        golden = np.load(folder / f"op_corr_{case}_{name}.npz")
        expected = {key: torch.from_numpy(value).to(device) for key, value in golden.items() if value.ndim}
        leaves = [given[key].clone().requires_grad_() for key in ("fmap1", "fmap2", "coords")]
        levels, radius = int(golden["levels"]), int(golden["radius"])
        block = CorrBlock(*leaves[:2], levels, radius, memory=memory, backend=backend)
        out = block(leaves[2])
        torch.testing.assert_close(out, expected["out"], atol=5e-5, rtol=0)
        torch.testing.assert_close(block(given["coords_edge"]), expected["out_edge"], atol=5e-5, rtol=0)
        grads = torch.autograd.grad(out, leaves, expected["upstream"])
        for grad, key, atol in zip(grads, ("grad_fmap1", "grad_fmap2", "grad_coords"), (5e-5, 5e-5, 5e-4), strict=True):
            torch.testing.assert_close(grad, expected[key], atol=atol, rtol=0)


@pytest.mark.parametrize("memory", MEMORY)
def test_gradients_equal_raft_over_several_lookups(backend, device, memory):
    fmap1, fmap2, coords = inputs(2, 24, 18, 21, device)

    def grads(block, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (fmap1, fmap2, coords)]
        corr = block(leaves[0], leaves[1], 3, 3)
        total = sum((corr(leaves[2] + shift).to(dtype) * weight).sum() for shift, weight in ((0.0, 1.0), (1.25, -0.5)))
        return torch.autograd.grad(total, leaves)

    ours = grads(lambda *args: CorrBlock(*args, memory=memory, backend=backend), torch.float32)
    plain = grads(PlainCorrBlock, torch.float64)
    for grad, truth in zip(ours, plain, strict=True):
        torch.testing.assert_close(grad.double(), truth, atol=2e-5 * truth.abs().max().item(), rtol=0)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("height", "width"), [(8, 9), (15, 15), (5, 3), (1, 1), (1, 12)])
def test_small_grids_are_finite_and_right(backend, device, memory, height, width):
    fmap1, fmap2, coords = inputs(1, 16, height, width, device, spread=1.0)
    block = CorrBlock(fmap1, fmap2, memory=memory, backend=backend)
    truth = windows(fmap1, block.fmap2_pyramid, coords, 4)
    torch.testing.assert_close(block(coords), truth.float(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_round_the_features_only(backend, device, memory, dtype):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 runs on the CPU only")
    fmap1, fmap2, coords = inputs(1, 64, 17, 26, device, dtype)
    block = CorrBlock(fmap1, fmap2, memory=memory, backend=backend)
    out = block(coords)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, windows(fmap1, block.fmap2_pyramid, coords, 4).float(), atol=2e-5, rtol=0)
    half_out = CorrBlock(fmap1, fmap2, memory=memory, backend=backend, out_dtype=dtype)(coords)
    assert half_out.dtype == dtype
    torch.testing.assert_close(half_out.float(), out, atol=2e-5, rtol=torch.finfo(dtype).eps)


def test_half_precision_does_not_overflow_before_the_scale(backend, device):
    fmap = torch.full((1, 256, 8, 8), 30.0, dtype=torch.float16, device=device)  # <f, f> = 230400 > 65504
    coords = torch.full((1, 2, 8, 8), 3.0, device=device)
    for memory in MEMORY:
        out = CorrBlock(fmap, fmap, 1, 0, memory=memory, backend=backend)(coords)
        torch.testing.assert_close(out, torch.full_like(out, 256 * 900 / 16.0))


@pytest.mark.parametrize("memory", MEMORY)
def test_coordinates_that_are_no_position_give_zeros(backend, device, memory):
    fmap1, fmap2, coords = inputs(1, 8, 16, 16, device)
    block = CorrBlock(fmap1, fmap2, memory=memory, backend=backend)
    clean = block(coords)
    for value in (float("nan"), float("inf"), -float("inf"), 1e30, -1e9):
        broken = coords.clone()
        broken[:, 0, 3, 4] = value
        out = block(broken)
        assert out[:, :, 3, 4].count_nonzero() == 0
        out[:, :, 3, 4] = clean[:, :, 3, 4]
        assert torch.equal(out, clean)


@pytest.mark.parametrize("memory", MEMORY)
def test_frame_2_may_have_another_size(backend, device, memory):
    fmap1, _, coords = inputs(2, 16, 9, 12, device)
    fmap2 = torch.randn(2, 16, 20, 17, device=device)
    block = CorrBlock(fmap1, fmap2, 2, 3, memory=memory, backend=backend)
    truth = windows(fmap1, block.fmap2_pyramid, coords, 3)
    torch.testing.assert_close(block(coords), truth.float(), atol=2e-5, rtol=0)


def test_spellings_of_the_constructor_agree(backend, device):
    fmap1, fmap2, coords = inputs(1, 16, 20, 24, device)
    expected = CorrBlock(fmap1, fmap2, 3, 2, backend=backend)(coords)
    namespace = types.SimpleNamespace(corr_levels=3, corr_radius=2, iters=12)
    blocks = [
        CorrBlock(fmap1, fmap2, num_levels=3, radius=2, backend=backend),
        CorrBlock(fmap1, fmap2, corr_levels=3, corr_radius=2, backend=backend),
        CorrBlock(fmap1, fmap2, namespace, backend=backend),
        AlternateCorrBlock(fmap1, fmap2, 3, 2, backend=backend),
        AlternateCorrBlock(fmap1, fmap2, namespace, backend=backend),
    ]
    for block in blocks:
        torch.testing.assert_close(block(coords), expected, atol=2e-5, rtol=0)
    assert blocks[-1].memory == "on_the_fly"


def test_the_stored_volume_is_rafts_and_built_when_touched(backend, device):
    fmap1, fmap2, coords = inputs(2, 16, 17, 16, device)
    plain = PlainCorrBlock(fmap1.double(), fmap2.double())
    block = AlternateCorrBlock(fmap1, fmap2, backend=backend)
    block(coords)
    assert block._volumes is None
    assert [volume.shape for volume in block.corr_pyramid] == [volume.shape for volume in plain.corr_pyramid]
    for volume, truth in zip(block.corr_pyramid, plain.corr_pyramid, strict=True):
        torch.testing.assert_close(volume, truth.float(), atol=1e-5, rtol=0)
    dense = CorrBlock.corr(fmap1, fmap2)
    assert dense.shape == (2, 17, 16, 1, 17, 16)
    assert torch.equal(dense.reshape(-1, 1, 17, 16), block.corr_pyramid[0])


def test_video_pairs_need_no_copy(backend, device):
    video = torch.randn(3, 16, 16, 20, device=device).contiguous(memory_format=torch.channels_last)
    block = CorrBlock(video[:-1], video[1:], memory="on_the_fly", backend=backend)
    assert block.fmap1.data_ptr() == video.data_ptr()
    assert block.fmap2_pyramid[0].data_ptr() == video[1].data_ptr()
    coords = inputs(2, 1, 16, 20, device)[2]
    expected = CorrBlock(video[:-1].contiguous(), video[1:].contiguous(), memory="volume", backend=backend)(coords)
    torch.testing.assert_close(block(coords), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("levels", [1, 3])
def test_channels_last_features_have_the_same_gradients(backend, device, levels):
    fmap1, fmap2, coords = inputs(2, 8, 11, 14, device)

    def grads(layout):
        leaves = [fmap.contiguous(memory_format=layout).requires_grad_() for fmap in (fmap1, fmap2)]
        out = CorrBlock(*leaves, levels, 2, memory="on_the_fly", backend=backend)(coords)
        return torch.autograd.grad(out, leaves, torch.cos(torch.arange(out.numel(), device=device)).reshape(out.shape))

    for last, first in zip(grads(torch.channels_last), grads(torch.contiguous_format), strict=True):
        torch.testing.assert_close(last, first, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory", ["auto", *MEMORY])
def test_torch_compile_takes_it_whole(backend, device, memory):
    def correlate(fmap1, fmap2, coords, dilation):
        block = CorrBlock(fmap1, fmap2, 2, 3, memory=memory, backend=backend)
        return block(coords) + block(coords + 0.5, dilation)

    fmap1, fmap2, coords = inputs(1, 16, 12, 14, device)
    dilation = torch.rand(1, 1, 12, 14, device=device) + 0.5
    compiled = torch.compile(correlate, fullgraph=True, backend="aot_eager")
    leaves = [tensor.requires_grad_() for tensor in (fmap1, fmap2, coords, dilation)]
    out, eager = compiled(*leaves), correlate(*leaves)
    torch.testing.assert_close(out, eager, atol=2e-5, rtol=0)
    upstream = torch.randn_like(out)
    for grad, truth in zip(
        torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(eager, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(grad, truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("memory", MEMORY)
def test_autocast_changes_nothing(backend, device, memory):
    fmap1, fmap2, coords = inputs(1, 64, 16, 16, device)
    expected = CorrBlock(fmap1, fmap2, memory=memory, backend=backend)(coords)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = CorrBlock(fmap1, fmap2, memory=memory, backend=backend)(coords)
    assert torch.equal(out, expected)


F1 = torch.zeros(1, 8, 16, 16)
XY = torch.zeros(1, 2, 16, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CorrBlock(F1[0], F1), ValueError, r"fmap1 must be \[B, C, H, W\], got float32\[8, 16, 16\] on cpu"),
        (lambda: CorrBlock(F1[:0], F1[:0]), ValueError, r"empty feature maps, fmap1 is float32\[0, 8, 16, 16\]"),
        (lambda: CorrBlock(F1, F1.half()), TypeError, "same dtype"),
        (lambda: CorrBlock(F1.long(), F1), TypeError, "int64"),
        (lambda: CorrBlock(F1, F1[:, :4]), ValueError, "batch and channels must agree"),
        (lambda: CorrBlock(F1, F1.to("meta")), ValueError, "on meta but fmap1 is on cpu"),
        (lambda: CorrBlock(F1, F1, 0), ValueError, "num_levels must be an integer >= 1"),
        (lambda: CorrBlock(F1, F1, 4, -1), ValueError, "radius must be an integer >= 0"),
        (lambda: CorrBlock(F1, F1, memory="lots"), ValueError, "auto, volume, on_the_fly, got 'lots'"),
        (lambda: CorrBlock(F1, F1, backend="gpu"), ValueError, "unknown backend 'gpu'"),
        (lambda: CorrBlock(F1, F1)(XY.half()), TypeError, "coords must be float32"),
        (lambda: CorrBlock(F1, F1)(XY[..., :15]), ValueError, r"\[1, 2, 16, 15\]"),
        (lambda: CorrBlock(F1, F1)(XY[None]), ValueError, "coords must be a tensor"),
        (lambda: CorrBlock(F1, F1)(XY, XY), ValueError, "dilation must be"),
        (lambda: CorrBlock(F1, F1)(XY, 2.0), ValueError, r"dilation must be a tensor \[1, 1, 16, 16\].*got float"),
        (lambda: CorrBlock(F1, F1)(XY, torch.ones(3)), ValueError, r"dilation must be .*got float32\[3\]"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
