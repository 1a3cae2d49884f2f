"""The Middlebury wheel."""

import pytest
import torch

from daflow_ext.flow import color_wheel, flow_to_image


def test_wheel_corners_and_steps():
    wheel = color_wheel()
    assert wheel.shape == (55, 3)
    corners = {
        0: (255, 0, 0),
        15: (255, 255, 0),
        21: (0, 255, 0),
        25: (0, 255, 255),
        36: (0, 0, 255),
        49: (255, 0, 255),
    }
    assert {index: tuple(wheel[index].int().tolist()) for index in corners} == corners
    assert wheel[1].tolist() == [255, 17, 0]
    assert wheel[54].tolist() == [255, 0, 43]  # 255 - floor(255 * 5 / 6)


@pytest.mark.parametrize(
    ("vector", "color"),
    [  # worked out from the wheel: position 27 (1 + angle / pi), then floor(255 (1 - r (1 - c)))
        ((1, 0), (255, 0, 0)),
        ((0, 1), (255, 229, 0)),  # 13.5, half way between 13 and 14 of 15 steps
        ((-1, 0), (0, 208, 255)),  # 27 = two of eleven steps from cyan to blue
        ((0, -1), (88, 0, 255)),  # 40.5 = 4.5 of 13 steps from blue to magenta
        ((0.5, 0), (255, 127, 127)),
        ((0, 0), (255, 255, 255)),
        ((2, 0), (191, 0, 0)),  # beyond full colour: three quarters as bright
        ((torch.nan, 0), (0, 0, 0)),
        ((0, torch.inf), (0, 0, 0)),
        ((2e9, 0), (0, 0, 0)),
    ],
)
def test_colors_worked_out_by_hand(vector, color):
    image = flow_to_image(torch.tensor(vector, dtype=torch.float32)[:, None, None], max_flow=1)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 1, 1)
    assert (image.flatten().int() - torch.tensor(color)).abs().max() <= 1


def test_default_scale_is_the_longest_known_vector_of_the_batch():
    flow = torch.zeros(2, 2, 3, 4)
    flow[0, 0, 0, 0], flow[1, 1, 0, 0], flow[1, 0, 2, 2] = 10.0, -4.0, 1e10
    batch = flow_to_image(flow)
    assert batch.shape == (2, 3, 3, 4)
    assert batch[0, :, 0, 0].tolist() == [255, 0, 0]
    assert torch.equal(batch[1], flow_to_image(flow[1], max_flow=10))
    assert torch.equal(flow_to_image(torch.zeros(2, 3, 4)), torch.full((3, 3, 4), 255, dtype=torch.uint8))


def test_input_stays_and_half_precision_works():
    flow = torch.randn(2, 6, 5)
    flow[0, 0, 0] = torch.nan
    before = flow.clone()
    image = flow_to_image(flow, 3)
    assert torch.equal(flow.nan_to_num(), before.nan_to_num())
    assert (flow_to_image(flow.half(), 3).int() - image.int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("flow", "max_flow", "message"),
    [
        (torch.zeros(3, 4, 5), None, r"got torch.float32 \(3, 4, 5\)"),
        (torch.zeros(2, 4), None, r"\(2, 4\)"),
        (torch.zeros(2, 4, 5, dtype=torch.int32), None, "torch.int32"),
        (torch.zeros(2, 4, 5), 0, "max_flow must be a positive number of pixels, got 0"),
        (torch.zeros(2, 4, 5), float("nan"), "got nan"),
    ],
)
def test_bad_input(flow, max_flow, message):
    with pytest.raises(ValueError, match=message):
        flow_to_image(flow, max_flow)
