"""Every adapter against a plain PyTorch statement of what its repository computes."""

import types

import pytest
import torch
import torch.nn.functional as F

from benchmarks.plain import PlainCorrBlock
from daflow_ext.correlation import adapters


def sample(maps, position):
    """maps [M, C, H, W] read at position [M, h, w, (x, y)] in pixels: bilinear, zero outside."""
    size = torch.tensor([maps.shape[-1] - 1, maps.shape[-2] - 1], dtype=position.dtype)
    return F.grid_sample(maps, 2 * position / size - 1, align_corners=True)


def grid(height, width):
    """[2, H, W]: x, then y."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).double()


def maps_and_flow(batch, channels, height, width, device, dtype=torch.float32):
    fmap1, fmap2 = (torch.randn(batch, channels, height, width).to(device, dtype) for _ in range(2))
    flow = (3 * torch.randn(batch, 2, height, width)).floor() + 0.1 + 0.8 * torch.rand(batch, 2, height, width)
    return fmap1, fmap2, flow.to(device)


def agree(ours, truth, leaves, truth_leaves, atol=3e-5):
    """Values and all gradients; ``ours`` in single, ``truth`` in double precision."""
    torch.testing.assert_close(ours.double().cpu(), truth.double(), atol=atol, rtol=0)
    upstream = torch.randn_like(truth)
    ours_grads = torch.autograd.grad(ours, leaves, upstream.to(ours))
    for grad, expected in zip(ours_grads, torch.autograd.grad(truth, truth_leaves, upstream), strict=True):
        torch.testing.assert_close(grad.double().cpu(), expected, atol=atol * expected.abs().max().item(), rtol=0)


def twins(*tensors):
    """The tensors as leaves, and as double precision leaves on the CPU."""
    return [t.clone().requires_grad_() for t in tensors], [t.double().cpu().requires_grad_() for t in tensors]


def sea_raft(fmap1, fmap2, coords, dilation, levels, radius):
    """All pairs with an interpolated pyramid; window offsets stretched by the dilation of the pixel."""
    batch, channels, height, width = fmap1.shape
    steps = torch.arange(-radius, radius + 1).double()
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)  # x slow
    out = []
    for level in range(levels):
        pairs = torch.einsum("bchw,bcuv->bhwuv", fmap1, fmap2) / channels**0.5
        centre = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) / 2**level
        position = centre + offsets * dilation.reshape(-1, 1, 1, 1)
        out.append(sample(pairs.flatten(0, 2).unsqueeze(1), position).reshape(batch, height, width, -1))
        fmap2 = F.interpolate(fmap2, scale_factor=0.5, mode="bilinear", align_corners=False)
    return torch.cat(out, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("memory", ["volume", "on_the_fly"])
def test_sea_raft(backend, device, memory):
    fmap1, fmap2, flow = maps_and_flow(2, 12, 17, 20, device)
    coords = flow + grid(17, 20).to(flow)
    args = types.SimpleNamespace(corr_levels=3, corr_radius=2, corr_channel=75)
    dilation = 0.3 + 2 * torch.rand(2, 1, 17, 20, device=device)
    leaves, truth_leaves = twins(fmap1, fmap2, coords, dilation)
    block = adapters.SeaRaftCorrBlock(*leaves[:2], args, memory=memory, backend=backend)
    agree(block(leaves[2], dilation=leaves[3]), sea_raft(*truth_leaves, 3, 2), leaves, truth_leaves)


def test_sea_raft_with_ones_takes_the_shared_window(backend, device):
    fmap1, fmap2, flow = maps_and_flow(1, 12, 17, 20, device)
    coords = flow + grid(17, 20).to(flow)
    block = adapters.SeaRaftCorrBlock(
        fmap1, fmap2, types.SimpleNamespace(corr_levels=3, corr_radius=2), backend=backend
    )
    ones = torch.ones(1, 1, 17, 20, device=device)
    truth = sea_raft(fmap1.double().cpu(), fmap2.double().cpu(), coords.double().cpu(), ones.double().cpu(), 3, 2)
    torch.testing.assert_close(block(coords, ones).double().cpu(), truth, atol=3e-5, rtol=0)
    assert torch.equal(block(coords, ones), block(coords))
    ones[:, :, 5] = 2.0  # the same tensor, changed in place, must be noticed
    assert not torch.allclose(block(coords, ones), block(coords))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchvision(backend, device, dtype):
    fmap1, fmap2, flow = maps_and_flow(2, 16, 18, 24, device, dtype)
    coords = flow + grid(18, 24).to(flow)
    block = adapters.TorchvisionCorrBlock(num_levels=3, radius=3, backend=backend)
    assert isinstance(block, torch.nn.Module)
    assert block.out_channels == 3 * 49
    block.build_pyramid(fmap1, fmap2)
    out = block.index_pyramid(centroids_coords=coords)
    truth = PlainCorrBlock(fmap1.double(), fmap2.double(), 3, 3)(coords.double())
    assert out.dtype == dtype
    atol = 2e-5 if dtype == torch.float32 else 4e-2  # the pooled levels are rounded to bfloat16 as well
    torch.testing.assert_close(out.float(), truth, atol=atol, rtol=0)


def test_torchvision_refuses():
    block = adapters.TorchvisionCorrBlock(backend="reference")
    with pytest.raises(RuntimeError, match="build_pyramid"):
        block.index_pyramid(torch.zeros(1, 2, 16, 16))
    with pytest.raises(ValueError, match=r"same shape, got \[1, 4, 16, 16\] and \[1, 4, 16, 17\]"):
        block.build_pyramid(torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 17))


@pytest.mark.parametrize("alternate_corr", [False, True])
def test_ptlflow(backend, device, alternate_corr):
    fmap1, fmap2, flow = maps_and_flow(1, 16, 18, 24, device)
    coords = flow + grid(18, 24).to(flow)
    arguments = {"num_levels": 3, "radius": 2, "alternate_corr": alternate_corr, "backend": backend}
    out = adapters.get_corr_block(fmap1=fmap1, fmap2=fmap2, **arguments)(coords)
    truth = PlainCorrBlock(fmap1.double(), fmap2.double(), 3, 2)(coords.double())
    torch.testing.assert_close(out, truth, atol=2e-5, rtol=0)
    half = adapters.get_corr_block(fmap1=fmap1.half(), fmap2=fmap2.half(), **arguments)
    assert half(coords).dtype == torch.float16
    assert half.memory == "on_the_fly" or not alternate_corr


def test_gma_single_scale(backend, device):
    fmap1, fmap2, flow = maps_and_flow(1, 16, 18, 24, device)
    coords = flow + grid(18, 24).to(flow)
    out = adapters.CorrBlockSingleScale(fmap1, fmap2, num_levels=4, radius=3, backend=backend)(coords)
    torch.testing.assert_close(
        out, PlainCorrBlock(fmap1.double(), fmap2.double(), 1, 3)(coords.double()), atol=2e-5, rtol=0
    )


def unimatch(feature0, feature1, flow, radius, padding_mode, dilation):
    """Sample the features of frame 2 at every window position (y slow), then multiply and sum over channels."""
    batch, channels, height, width = feature0.shape
    steps = torch.arange(-radius, radius + 1).double() * dilation
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    centre = (grid(height, width) + flow).permute(0, 2, 3, 1)[:, :, :, None]  # [B, H, W, 1, 2]
    position = centre + torch.stack([dx, dy], -1).reshape(-1, 2)
    size = torch.tensor([width - 1, height - 1]).double()
    read = F.grid_sample(
        feature1,
        (2 * position / size - 1).reshape(batch, height * width, -1, 2),
        padding_mode=padding_mode,
        align_corners=True,
    ).reshape(batch, channels, height, width, -1)
    return (feature0[..., None] * read).sum(1).permute(0, 3, 1, 2) / channels**0.5


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_unimatch(backend, device, padding_mode, dilation):
    fmap1, fmap2, flow = maps_and_flow(2, 12, 13, 16, device)
    leaves, truth_leaves = twins(fmap1, fmap2, flow)
    ours = adapters.local_correlation_with_flow(
        *leaves, local_radius=3, padding_mode=padding_mode, dilation=dilation, backend=backend
    )
    agree(ours, unimatch(*truth_leaves, 3, padding_mode, dilation), leaves, truth_leaves)


def test_unimatch_refuses_reflection():
    fmap = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="'zeros' or 'border', got 'reflection'"):
        adapters.local_correlation_with_flow(fmap, fmap, torch.zeros(1, 2, 8, 8), 1, "reflection")


@pytest.mark.parametrize("dilation", [1, 2])
def test_unimatch_refuses_a_negative_radius(dilation):
    fmap = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="local_radius must be an integer >= 0, got -1"):
        adapters.local_correlation_with_flow(fmap, fmap, torch.zeros(1, 2, 8, 8), -1, dilation=dilation)


def raft_stereo(fmap1, fmap2, coords, levels, radius):
    """Row-wise volume [B, H, W1, W2], pooled along W2, read along the row."""
    batch, channels, height, width = fmap1.shape
    volume = torch.einsum("bchw,bchv->bhwv", fmap1, fmap2) / channels**0.5
    steps = torch.arange(-radius, radius + 1).double()
    out = []
    for level in range(levels):
        x = coords[:, 0, :, :, None] / 2**level + steps  # [B, H, W1, n]
        position = torch.stack([x, torch.zeros_like(x)], -1).reshape(-1, 1, len(steps), 2)
        lines = volume.reshape(-1, 1, 1, volume.shape[-1])
        lines = torch.cat([lines, torch.zeros_like(lines)], dim=2)  # a second row: height 1 cannot be normalised
        out.append(sample(lines, position).reshape(batch, height, width, -1))
        volume = F.avg_pool2d(volume, (1, 2))
    return torch.cat(out, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("width2", [24, 37])
def test_raft_stereo(backend, device, width2):
    fmap1, _, flow = maps_and_flow(2, 12, 7, 24, device)
    fmap2 = torch.randn(2, 12, 7, width2, device=device)
    coords = flow + grid(7, 24).to(flow)
    leaves, truth_leaves = twins(fmap1, fmap2, coords[:, :1])
    ours = adapters.CorrBlock1D(*leaves[:2], 4, 4, backend=backend)(leaves[2])
    assert ours.is_contiguous()
    agree(ours, raft_stereo(*truth_leaves, 4, 4), leaves, truth_leaves)
    two_channels = adapters.CorrBlock1D(fmap1, fmap2, backend=backend)(coords)
    torch.testing.assert_close(two_channels, ours.detach())


def test_raft_stereo_narrow_and_wrong():
    fmap = torch.randn(1, 4, 3, 5)
    out = adapters.CorrBlock1D(fmap, fmap, backend="reference")(torch.full((1, 1, 3, 5), 1.5))
    assert out.isfinite().all()  # level widths 5, 2, 1, 0
    with pytest.raises(ValueError, match=r"got \[1, 4, 3, 5\] and \[1, 4, 2, 5\]"):
        adapters.CorrBlock1D(fmap, fmap[:, :, :2])
    with pytest.raises(ValueError, match=r"not empty, got \[0, 4, 3, 5\]"):
        adapters.CorrBlock1D(fmap[:0], fmap[:0])
    with pytest.raises(TypeError, match="same dtype"):
        adapters.CorrBlock1D(fmap, fmap.half())
    with pytest.raises(ValueError, match=r"\[1, 1 or more, 3, 5\], got \[1, 2, 3, 4\]"):
        adapters.CorrBlock1D(fmap, fmap, backend="reference")(torch.zeros(1, 2, 3, 4))


def spatial_correlation(input1, input2, kernel, patch, stride, padding, dilation, dilation_patch):
    """For every displacement: shift input2, multiply, sum over channels, then sum over the kernel positions."""
    height, width = input1.shape[-2:]
    reach = [d * (p // 2) for d, p in zip(dilation_patch, patch, strict=True)]
    around = F.pad(input2, (reach[1], reach[1], reach[0], reach[0]))
    ones = torch.ones(1, 1, *kernel, dtype=input1.dtype)
    planes = []
    for i in range(patch[0]):
        for j in range(patch[1]):
            top, left = i * dilation_patch[0], j * dilation_patch[1]
            product = (input1 * around[:, :, top : top + height, left : left + width]).sum(1, keepdim=True)
            planes.append(F.conv2d(product, ones, stride=stride, padding=padding, dilation=dilation))
    out = torch.cat(planes, 1)
    return out.reshape(out.shape[0], *patch, *out.shape[-2:])


SETTINGS = {
    "pwc": {"patch_size": 9},
    "liteflownet": {"patch_size": 7, "stride": 2, "dilation_patch": 2},
    "flownetc": {"patch_size": 7, "dilation_patch": 2},
    "stride 3 over spacing 2": {"patch_size": 3, "stride": 3, "padding": 2, "dilation_patch": 2},
    "stride 2 over spacing 3": {"patch_size": 5, "stride": 2, "padding": 1, "dilation_patch": 3},
    "kernel": {"kernel_size": 3, "patch_size": 5, "padding": 1},
    "all": {
        "kernel_size": (3, 2),
        "patch_size": (5, 3),
        "stride": (2, 1),
        "padding": (2, 1),
        "dilation": (2, 3),
        "dilation_patch": (1, 2),
    },
    "rectangular": {"patch_size": (1, 9)},
    "padding beyond the image": {"patch_size": 3, "padding": (20, 3), "stride": 7},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_spatial_correlation(backend, device, name):
    options = {"kernel_size": 1, "patch_size": 1, "stride": 1, "padding": 0, "dilation": 1, "dilation_patch": 1}
    options |= SETTINGS[name]
    input1, input2, _ = maps_and_flow(2, 10, 13, 16, device)
    leaves, truth_leaves = twins(input1, input2)
    ours = adapters.spatial_correlation_sample(*leaves, **options, backend=backend)
    pairs = [(value, value) if isinstance(value, int) else value for value in options.values()]
    agree(ours, spatial_correlation(*truth_leaves, *pairs), leaves, truth_leaves)
    if backend == "reference":
        module = adapters.SpatialCorrelationSampler(**options, backend=backend)
        assert torch.equal(module(*leaves), ours)


def test_spatial_correlation_of_half_precision(backend, device):
    input1, input2, _ = maps_and_flow(1, 96, 9, 11, device, torch.float16)
    ours = adapters.spatial_correlation_sample(input1, input2, 3, 5, padding=1, backend=backend)
    truth = spatial_correlation(
        input1.double().cpu(), input2.double().cpu(), (3, 3), (5, 5), (1, 1), (1, 1), (1, 1), (1, 1)
    )
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours.double().cpu(), truth, atol=1e-3, rtol=2**-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 4}, r"patch_size must be odd, got \(4, 4\)"),
        ({"stride": 0}, "stride must be an integer >= 1 or a pair of them, got 0"),
        ({"padding": (1, 2, 3)}, r"padding must be .* got \(1, 2, 3\)"),
        ({"kernel_size": 9}, r"a kernel of \(9, 9\) pixels exceeds the padded input1 float32\[1, 4, 8, 8\]"),
    ],
)
def test_spatial_correlation_refuses(options, message):
    input1 = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=message):
        adapters.spatial_correlation_sample(input1, input1, **options)
