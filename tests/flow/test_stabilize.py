"""Similarities found in flow, and clips whose shake is known."""

import math

import pytest
import torch

from daflow_ext.flow import fit_similarity, stabilize
from daflow_ext.flow.warp import pixel_grid


def similarity(angle, size, x, y):
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    return torch.tensor([[cos, -sin, x], [sin, cos, y], [0, 0, 1]], dtype=torch.float64)


def flow_of(matrix, height=40, width=60):
    grid = pixel_grid(height, width).double()
    moved = torch.einsum("ij,jhw->ihw", matrix[:2, :2], grid) + matrix[:2, 2, None, None]
    return (moved - grid).float()


def test_a_similarity_is_found_exactly():
    matrix = similarity(0.05, 1.03, 4.0, -2.5)
    assert torch.allclose(fit_similarity(flow_of(matrix)), matrix, atol=1e-5)
    assert torch.equal(fit_similarity(torch.zeros(2, 40, 60)), torch.eye(3, dtype=torch.float64))


def test_what_moves_on_its_own_hardly_counts():
    matrix = similarity(-0.03, 0.98, 1.0, 3.0)
    flow = flow_of(matrix) + 0.05 * torch.randn(2, 40, 60)
    flow[:, 5:25, 10:40] = torch.tensor([15.0, -9.0])[:, None, None]  # a quarter of the picture
    flow[:, 30, 30] = torch.nan
    found = fit_similarity(flow)
    assert (flow_of(found) - flow_of(matrix)).abs().max() < 0.1
    weight = torch.ones(40, 60)
    weight[5:25, 10:40] = 0
    assert (flow_of(fit_similarity(flow, weight)) - flow_of(matrix)).abs().max() < 0.03


def panned(shifts, height=48, width=64):
    """A smooth scene seen from whole-pixel positions [F, 2], with its flow."""
    scene = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 20) * 255, (height + 64, width + 64), mode="bicubic")[
        0
    ]
    frames = torch.stack([scene[:, 32 + y :, 32 + x :][:, :height, :width] for x, y in shifts])
    steps = (torch.tensor(shifts[:-1]) - torch.tensor(shifts[1:])).float()
    return frames, steps[:, :, None, None].expand(-1, 2, height, width).contiguous()


def test_shake_goes_and_a_pan_stays():
    generator = torch.Generator().manual_seed(1)
    shake = torch.randint(-4, 5, (24, 2), generator=generator).tolist()
    pan = [(t, 0) for t in range(24)]
    frames, flow = panned([(x + dx, y + dy) for (x, y), (dx, dy) in zip(pan, shake, strict=True)])
    steady = stabilize(frames, flow, sigma=4.0)
    positions = torch.cat([torch.zeros(1, 2), flow[:, :, 0, 0].cumsum(0)]).double()
    assert torch.allclose(steady.path[:, :2], positions, atol=1e-3)
    assert steady.path[:, 2:].abs().max() < 1e-5

    def jerk(path):
        return path[:, :2].diff(dim=0).diff(dim=0).square().mean()

    assert jerk(steady.smooth) < 0.01 * jerk(steady.path)
    frames, flow = panned(pan)
    kept = stabilize(frames, flow, sigma=4.0)
    assert torch.allclose(kept.smooth, kept.path, atol=1e-6)
    assert (kept.frames - frames)[:, :, 2:-2, 2:-2].abs().max() < 0.01


def test_the_frames_follow_the_smooth_path():
    """With a window far longer than the clip's shake, content that jumped to and fro stands (almost) still."""
    frames, flow = panned([(3 * (t % 2), 0) for t in range(30)])
    steady = stabilize(frames, flow, sigma=5.0).frames[6:-6, :, 8:-8, 8:-8]
    assert steady.diff(dim=0).abs().mean() < 0.2 * frames[6:-6, :, 8:-8, 8:-8].diff(dim=0).abs().mean()


def test_no_motion_and_no_smoothing_change_no_bit():
    frames = (torch.rand(5, 3, 20, 24) * 255).byte()
    still = stabilize(frames, torch.zeros(4, 2, 20, 24))
    assert torch.equal(still.frames, frames.float())
    assert still.inside.all()
    _, flow = panned([(2 * (t % 2), 0) for t in range(5)], 20, 24)
    assert torch.allclose(stabilize(frames, flow, sigma=0).frames, frames.float(), atol=1e-2)


def test_errors_are_one_sentence():
    frames, flow = torch.rand(3, 3, 8, 8), torch.zeros(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"frames \[F, C, H, W\] need flow \[F-1, 2, H, W\]"):
        stabilize(frames, flow[:1])
    with pytest.raises(ValueError, match="sigma must be a number of frames >= 0, got -1"):
        stabilize(frames, flow, sigma=-1)
    with pytest.raises(ValueError, match="fewer than two pixels"):
        fit_similarity(flow[0], torch.zeros(8, 8))
    with pytest.raises(ValueError, match=r"weight \[H, W\], got"):
        fit_similarity(flow[0], torch.zeros(8, 7))
