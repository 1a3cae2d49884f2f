import pytest
import torch

from daflow_ext.train import flow_matching_target, sample_sigmas, sequence_loss
from daflow_ext.train.config import LiftLossConfig


def test_sequence_loss_by_hand():
    flow = torch.zeros(1, 2, 1, 2)
    flow[0, :, 0, 0] = torch.tensor([3.0, -1.0])
    valid = torch.tensor([[[True, False]]])
    first, last = torch.zeros_like(flow), flow + 0.5
    # mean over 4 values, the invalid pixel as zero: first (3 + 1) / 4, last (0.5 + 0.5) / 4
    assert float(sequence_loss([first, last], flow, valid, gamma=0.8)) == pytest.approx(0.8 * 1.0 + 0.25, rel=1e-6)


def test_unknown_and_far_pixels_count_nothing():
    flow = torch.tensor([[[[torch.nan, 300.0, 1.0]], [[torch.nan, 300.0, 0.0]]]])  # |(300, 300)| = 424
    valid = torch.tensor([[[False, True, True]]])
    prediction = torch.zeros_like(flow).requires_grad_()
    loss = sequence_loss([prediction], flow, valid)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 6)
    assert prediction.grad.isfinite().all()
    assert prediction.grad[..., :2].abs().sum() == 0


def test_noise_levels_are_those_of_the_shifted_scheduler():
    """Every level that DiT4SR's look-up (floor of 1000 u in a fresh table) gives lies within one entry of ours."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    sigmas = sample_sigmas(4000, LiftLossConfig())
    torch.manual_seed(3)
    index = (torch.sigmoid(torch.randn(4000)) * 1000).long()
    table = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).timesteps / 1000
    following = torch.cat([table[1:], torch.zeros(1)])
    assert (sigmas <= table[index] + 1e-6).all()
    assert (sigmas >= following[index] - 1e-6).all()
    assert float(sigmas.median()) == pytest.approx(0.75, abs=0.01)


def test_flow_matching_state_follows_its_velocity():
    clean, noise = torch.randn(2, 3, 4, 2, 2).double(), torch.randn(2, 3, 4, 2, 2).double()
    sigma = torch.tensor([0.0, 0.8], dtype=torch.float64)
    noisy, velocity = flow_matching_target(clean, noise, sigma)
    assert torch.equal(noisy[0], clean[0])
    torch.testing.assert_close(noisy[1] - 0.8 * velocity[1], clean[1])
    torch.testing.assert_close(noisy[1] + 0.2 * velocity[1], noise[1])
