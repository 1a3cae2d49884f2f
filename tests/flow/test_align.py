"""Aligning clips whose motion is known: exact where a pixel is shown, masked where it is not."""

import pytest
import torch

import daflow_ext
from daflow_ext.flow import align, compose_flows
from daflow_ext.flow.warp import pixel_grid


def translated(count: int, step: tuple[int, int], size=(24, 32)):
    """A clip cut out of one picture, each frame ``step`` = (x, y) further; content moves by -step. With its flows."""
    reach = [abs(value) * count for value in step]
    scene = torch.randint(0, 256, (3, size[0] + 2 * reach[1], size[1] + 2 * reach[0]), dtype=torch.uint8)
    frames = []
    for index in range(count):
        x, y = reach[0] + step[0] * index, reach[1] + step[1] * index
        frames.append(scene[:, y : y + size[0], x : x + size[1]])
    flow = torch.tensor([-step[0], -step[1]]).float()[:, None, None].expand(count - 1, 2, *size)
    return torch.stack(frames), flow.clone(), -flow


def inside(flow):
    """Where p + flow(p) lies in the picture."""
    x, y = pixel_grid(*flow.shape[-2:]) + flow
    return (x >= 0) & (x <= flow.shape[-1] - 1) & (y >= 0) & (y <= flow.shape[-2] - 1)


@pytest.mark.parametrize("step", [(3, 0), (-2, 1), (0, -4), (0, 0)])
@pytest.mark.parametrize("reference", [0, 2, 4])
def test_a_translated_clip_aligns_exactly(step, reference):
    frames, forward, backward = translated(5, step)
    aligned = align(frames, forward, backward, reference)
    for index in range(5):
        total = torch.tensor(step).float() * (reference - index)
        assert torch.equal(aligned.flows[index], total[:, None, None].expand(2, 24, 32))
        shown = inside(aligned.flows[index])
        assert torch.equal(aligned.visible[index], shown)  # nothing but the border hides a pixel
        assert torch.equal(aligned.frames[index][:, shown], frames[reference].float()[:, shown])
        assert (aligned.frames[index][:, ~shown] == 0).all()


def test_what_a_shape_hides_is_masked():
    """A square moves over a still ground: before it, ground is hidden; behind it, ground was hidden."""
    ground, square = torch.rand(3, 20, 40) * 255, torch.rand(3, 8, 8) * 255
    frames = ground.repeat(3, 1, 1, 1)
    forward, backward = torch.zeros(2, 2, 20, 40), torch.zeros(2, 2, 20, 40)
    for index in range(3):
        columns = slice(8 + 4 * index, 16 + 4 * index)
        frames[index, :, 6:14, columns] = square
        if index < 2:
            forward[index, 0, 6:14, columns] = 4
        if index > 0:
            backward[index - 1, 0, 6:14, columns] = -4
    aligned = align(frames, forward, backward, reference=0)
    hidden = torch.zeros(2, 20, 40, dtype=torch.bool)
    hidden[:, 6:14, 16:20] = True  # by the square one step on
    hidden[1, 6:14, 20:24] = True  # and two steps on
    assert torch.equal(~aligned.visible[1:], hidden)
    for shown, frame in zip(aligned.visible, aligned.frames, strict=True):
        assert torch.equal(frame[:, shown], frames[0][:, shown])


def test_a_pixel_is_hidden_if_it_was_hidden_on_the_way():
    frames, forward, backward = translated(3, (0, 0), (12, 12))
    forward[0, :, 5, 5] = 9.0  # there and back does not return
    visible = align(frames, forward, backward, 0).visible
    assert not visible[1, 5, 5]
    assert not visible[2, 5, 5]
    assert visible.sum() == 3 * 144 - 2


def test_composition_reads_the_second_flow_where_the_first_leads():
    first = torch.zeros(2, 6, 8)
    first[0] = 2
    second = torch.arange(8.0).expand(2, 6, 8).clone()
    composed = compose_flows(first, second)
    expected = (torch.arange(8.0) + 2).clamp(max=7)  # beyond the edge the flow goes on
    assert torch.equal(composed[0], (2 + expected).expand(6, 8))
    assert torch.equal(composed[1], expected.expand(6, 8))


def test_unknown_flow_is_never_visible():
    frames, forward, backward = translated(3, (1, 0))
    forward[0, :, 4, 4] = torch.nan
    aligned = align(frames, forward, backward, 0)
    assert not aligned.visible[1:, 4, 4].any()
    assert aligned.frames.isfinite().all()


def test_one_frame_is_itself():
    frame = torch.rand(1, 3, 8, 8) * 255
    aligned = align(frame, torch.zeros(0, 2, 8, 8), torch.zeros(0, 2, 8, 8))
    assert torch.equal(aligned.frames, frame)
    assert aligned.visible.all()


def test_errors_say_what_came_and_what_was_expected():
    frames, forward, backward = translated(3, (1, 0))
    with pytest.raises(ValueError, match=r"3 frames need .* forward flow \[2, 2, 24, 32\].* got .* \[1, 2, 24, 32\]"):
        align(frames, forward[:1], backward)
    with pytest.raises(ValueError, match=r"reference must be in 0\.\.2, got 3"):
        align(frames, forward, backward, 3)
    with pytest.raises(ValueError, match=r"frames must be \[F, C, H, W\]"):
        align(frames[0], forward, backward)
    assert daflow_ext.align is align
