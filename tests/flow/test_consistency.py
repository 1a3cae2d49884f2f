"""Occlusion and confidence by going there and back."""

import math

import pytest
import torch

from daflow_ext.flow import forward_backward_confidence, forward_backward_consistency

REFERENCE = {"backend": "reference"}


def test_consistent_flow_is_visible_except_where_it_leaves():
    forward = torch.zeros(1, 2, 6, 10)
    forward[:, 0] = 3.0
    occluded = forward_backward_consistency(forward, -forward, **REFERENCE)
    assert occluded.shape == (1, 6, 10)
    assert occluded[0].eq(torch.arange(10) > 6).all()


def test_the_rule_at_its_threshold():
    # |f|^2 = 100, |b|^2 = (10 - d)^2: visible while d^2 < 0.01 (100 + (10 - d)^2) + 0.5, that is up to d = 1.4951
    forward, backward = torch.zeros(2, 2, 1, 40)
    forward[0] = 10.0
    for gap, occluded in ((1.49, False), (1.50, True)):
        backward[0] = -(10.0 - gap)
        assert forward_backward_consistency(forward, backward, **REFERENCE)[0, 5].item() is occluded


def test_object_covers_the_ground():
    # a square moves right by 4 over a still ground: the 4 columns it newly covers are occluded
    forward, backward = torch.zeros(2, 2, 12, 24)
    forward[0, 3:9, 5:11] = 4.0
    backward[0, 3:9, 9:15] = -4.0
    expected = torch.zeros(12, 24, dtype=torch.bool)
    expected[3:9, 11:15] = True
    assert torch.equal(forward_backward_consistency(forward, backward, **REFERENCE), expected)


def test_unknown_counts_as_occluded():
    forward, backward = torch.zeros(2, 2, 4, 5)
    forward[0, 1, 1], backward[1, 2, 2] = torch.nan, torch.inf
    occluded = forward_backward_consistency(forward, backward, **REFERENCE)
    assert occluded[1, 1]
    assert occluded[2, 2]
    assert not occluded[3, 4]


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="both flows need one shape"):
        forward_backward_consistency(torch.zeros(2, 4, 5), torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="flow_bw must be floating point"):
        forward_backward_consistency(torch.zeros(2, 4, 5), torch.zeros(3, 4, 5))


def test_confidence_is_below_one_over_e_exactly_where_occluded():
    forward, backward = torch.zeros(2, 1, 2, 4, 40)
    forward[:, 0] = 2.0
    backward[:, 0] = -2 + torch.linspace(0, 3, 40)  # gap d at (d = 0 .. 3), allowed 0.01 (4 + (d - 2)^2) + 0.5
    confidence = forward_backward_confidence(forward, backward, **REFERENCE)
    gap = (backward[0, 0, 0] + 2)[2:]
    expected = torch.exp(-(gap**2) / (0.01 * (4 + (gap - 2) ** 2) + 0.5))
    torch.testing.assert_close(confidence[0, 1, :38], expected, rtol=1e-5, atol=1e-6)
    assert confidence[..., 38:].eq(0).all()  # these leave the picture
    occluded = forward_backward_consistency(forward, backward, **REFERENCE)
    assert occluded.any()
    assert not occluded.all()
    assert torch.equal(confidence < math.exp(-1), occluded)


def test_confidence_of_unknown_vectors_is_zero():
    forward, backward = torch.zeros(2, 2, 4, 5)
    forward[0, 1, 1], backward[1, 2, 2] = torch.nan, torch.inf
    confidence = forward_backward_confidence(forward, backward, **REFERENCE)
    assert confidence[1, 1] == confidence[2, 2] == 0
    assert torch.equal(confidence.eq(1), ~forward_backward_consistency(forward, backward, **REFERENCE))
