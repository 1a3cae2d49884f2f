import pytest
import torch

from daflow_ext.train import sequence_loss


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
