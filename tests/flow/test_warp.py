"""Backward warping, and the flow carried along itself."""

import pytest
import torch

from daflow_ext.flow import forward_interpolate, pixel_grid, warp


def test_backward_warping_by_hand():
    image2 = torch.arange(12.0).reshape(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0], flow[:, 1] = 1.0, -0.5  # right by one, up by half
    out, inside = warp(image2, flow, mask=True, backend="reference")
    assert out[0, 0].tolist() == [[0.5, 1, 1.5, 0], [3, 4, 5, 0], [7, 8, 9, 0]]
    assert inside[0].tolist() == [[False] * 4, [True, True, True, False], [True, True, True, False]]
    border = warp(image2, flow, padding="border", backend="reference")
    assert border[0, 0].tolist() == [[1, 2, 3, 3], [3, 4, 5, 5], [7, 8, 9, 9]]


def test_unbatched_uint8_as_files_give_it():
    image2 = torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8)
    flow = torch.zeros(2, 6, 8)
    flow[:, 0, 0] = torch.nan
    out, inside = warp(image2, flow, mask=True, backend="reference")
    assert out.dtype == torch.float32
    assert torch.equal(out[:, 1:], image2[:, 1:].float())
    assert out[:, 0, 0].eq(0).all()
    assert inside.logical_not().nonzero().tolist() == [[0, 0]]


def test_gradients_reach_both():
    image2 = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    flow = torch.full((1, 2, 5, 6), 0.3, requires_grad=True)
    warp(image2, flow, backend="reference").square().sum().backward()
    assert image2.grad.abs().sum() > 0
    assert flow.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("image", "flow"),
    [((1, 3, 4, 5), (1, 2, 4, 6)), ((3, 4, 5), (1, 2, 4, 5)), ((2, 3, 4, 5), (1, 2, 4, 5)), ((3, 4, 5), (3, 4, 5))],
)
def test_shapes_that_do_not_fit(image, flow):
    with pytest.raises(ValueError, match="warp: "):
        warp(torch.zeros(image), torch.zeros(flow))


def test_constant_motion_moves_onto_itself():
    flow = torch.zeros(2, 9, 11)
    flow[0], flow[1] = 2.3, -1.6
    torch.testing.assert_close(forward_interpolate(flow), flow, rtol=0, atol=0)


def test_a_moving_square_takes_its_flow_along():
    flow = torch.zeros(2, 20, 30)
    flow[0, 5:10, 5:10] = 8.0
    moved = forward_interpolate(flow)
    assert moved[0, 5:10, 13:18].eq(8).all()
    # behind the square only still pixels landed nearby; further than 2 of the hole nothing else can be nearest
    assert moved[0, 5:10, 5:10].eq(0).all()
    assert moved[1].eq(0).all()


def test_every_pixel_takes_the_nearest_landing():
    flow = torch.randn(3, 2, 24, 31) * 4
    flow[1, 0, 3, 4] = torch.nan
    flow[2, :, :, 15:] = 100.0  # the right half leaves the picture
    moved = forward_interpolate(flow)
    grid = pixel_grid(24, 31).flatten(1)
    exact = total = 0
    for source, result in zip(flow, moved, strict=True):
        vectors = source.flatten(1)
        landing = grid + vectors
        cell = landing.round()
        inside = (landing.isfinite() & (cell >= 0) & (cell <= torch.tensor([[30.0], [23.0]]))).all(0)
        landing, vectors, cell = landing[:, inside], vectors[:, inside], cell[:, inside]
        # of the points of one cell only the nearest to its centre takes part
        offset = (landing - cell).square().sum(0)
        key = cell[1] * 31 + cell[0]
        keep = torch.tensor(
            [offset[key == k].argmin() == (key == k).nonzero()[:, 0].tolist().index(i) for i, k in enumerate(key)]
        )
        distance = torch.cdist(grid.T, landing[:, keep].T)
        truth = vectors[:, keep][:, distance.argmin(1)]
        exact += truth.eq(result.flatten(1)).all(0).sum().item()
        total += truth.shape[1]
    assert exact >= 0.995 * total  # jump flooding misses rare ties


def test_where_nothing_lands_it_is_zero():
    assert forward_interpolate(torch.full((1, 2, 4, 5), 50.0)).eq(0).all()
    assert forward_interpolate(torch.full((2, 1, 1), torch.nan)).eq(0).all()
    with pytest.raises(ValueError, match="forward_interpolate: flow must be floating point"):
        forward_interpolate(torch.zeros(3, 4, 5))
