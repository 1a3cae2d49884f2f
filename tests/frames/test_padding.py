"""InputPadder: RAFT's two ways to pad, and back."""

import pytest
import torch
import torch.nn.functional as F

from daflow_ext.frames import InputPadder


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [  # left, right, top, bottom, worked out by hand
        ("sintel", (436, 1024), (0, 0, 2, 2)),
        ("sintel", (375, 1242), (3, 3, 0, 1)),
        ("sintel", (381, 509), (1, 2, 1, 2)),
        ("kitti", (375, 1242), (3, 3, 0, 1)),
        ("kitti", (436, 1021), (1, 2, 0, 4)),
        ("sintel", (384, 512), (0, 0, 0, 0)),
        ("sintel", (1, 1), (3, 4, 3, 4)),
    ],
)
def test_pads_like_raft(mode, size, expected):
    padder = InputPadder((1, 3, *size), mode=mode)
    image = torch.rand(1, 3, *size)
    (padded,) = padder.pad(image)
    assert torch.equal(padded, F.pad(image, expected, mode="replicate"))
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert torch.equal(padder.unpad(padded), image)


@pytest.mark.parametrize("shape", [(20, 30), (3, 20, 30), (2, 5, 3, 20, 30)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.int64])
def test_every_rank_and_dtype(shape, dtype):
    image = (torch.rand(shape) * 9).to(dtype)
    padder = InputPadder(shape, multiple=16)
    first, second = padder.pad(image, image + image)
    assert first.shape == (*shape[:-2], 32, 32)
    assert first.dtype == dtype
    assert torch.equal(first[..., 0, :1], image[..., 0, :1])
    assert torch.equal(first[..., -1, -1], image[..., -1, -1])
    back = padder.unpad(first, second)
    assert torch.equal(back[0], image)
    assert torch.equal(back[1], image + image)


def test_minimum_pads_small_sides_only():
    padder = InputPadder((30, 200), minimum=64)
    assert padder.pad(torch.zeros(30, 200))[0].shape == (64, 200)
    assert padder.top == padder.bottom == 17


def test_gradient_of_the_edge_counts_its_copies():
    image = torch.ones(1, 1, 7, 8, requires_grad=True)
    InputPadder(image.shape).pad(image)[0].sum().backward()
    assert image.grad[0, 0, -1].eq(2).all()
    assert image.grad[0, 0, :-1].eq(1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InputPadder((8, 8), mode="both"), "mode must be one of sintel, kitti, got 'both'"),
        (lambda: InputPadder((8,)), "dims must end in a height and a width"),
        (lambda: InputPadder((0, 8)), "at least 1, got \\(0, 8\\)"),
        (lambda: InputPadder((8, 8), multiple=0), "multiple must be at least 1, got 0"),
        (lambda: InputPadder((9, 8)).pad(torch.zeros(8, 8)), "expected \\[..., 9, 8\\], got \\(8, 8\\)"),
        (lambda: InputPadder((9, 8)).unpad(torch.zeros(9, 8)), "expected \\[..., 16, 8\\], got \\(9, 8\\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
