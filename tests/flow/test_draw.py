"""Arrows, overlays, error maps, tiles, trails: values worked out by hand."""

import math

import pytest
import torch

from daflow_ext.flow import (
    Trails,
    arrows,
    confidence_overlay,
    error_map,
    error_to_image,
    flow_scale,
    occlusion_overlay,
    overlay,
    side_by_side,
    wheel_legend,
)
from daflow_ext.flow.colors import length_quantile
from daflow_ext.flow.draw import ARROW, line_thickness


def constant(x, y, height=40, width=60):
    return torch.tensor([float(x), float(y)])[:, None, None].expand(2, height, width).clone()


def grey(height=40, width=60, value=90):
    return torch.full((3, height, width), value, dtype=torch.uint8)


def inked(picture, x, y):
    """Whether a pixel has the colour of arrows, up to antialiasing."""
    return (picture[:, y, x].int() - torch.tensor(ARROW)).abs().max() <= 25


def changed(before, after):
    """(x, y) of the pixels that differ."""
    return {(x, y) for y, x in (before != after).any(0).nonzero().tolist()}


# ---- scale ----------------------------------------------------------------------------------------------------------


def test_one_scale_for_a_clip():
    flow = torch.zeros(2, 10, 10)
    flow[0] = torch.arange(1.0, 101).reshape(10, 10)
    assert length_quantile(flow) == 99
    assert length_quantile(flow, 0.5) == 50
    flow[:, 0, 0] = torch.nan  # of 99 known ones, round(98.01) = the 98th: 2, 3, .. 99
    assert length_quantile(flow) == 99
    assert flow_scale(iter([flow / 4, flow, flow / 2])) == 99
    assert flow_scale([constant(0.2, 0)]) == 1.0
    assert flow_scale([torch.full((2, 3, 3), torch.nan)]) == 1.0
    assert flow_scale([constant(3, 4)]) == 5


def test_legend_shows_the_wheel():
    legend = wheel_legend(101)
    assert legend[:, 50, 50].tolist() == [255, 255, 255]
    assert legend[:, 0, 0].tolist() == [255, 255, 255]
    red, green, blue = legend[:, 50, 100].tolist()  # right, 50 / 50.5 of full length
    assert red == 255
    assert max(green, blue) <= 4
    assert legend[:, 100, 50].tolist()[0] == 255  # down: yellow
    assert legend[2, 100, 50] < 10 < 220 < legend[1, 100, 50]


# ---- arrows ---------------------------------------------------------------------------------------------------------


def test_an_arrow_ends_where_its_pixel_goes():
    image, flow = grey(), torch.full((2, 40, 60), torch.nan)
    flow[:, 20, 20] = torch.tensor([15.0, 0.0])
    drawn = arrows(image, flow, spacing=40)  # one arrow, from (20, 20)
    assert [x for x in range(60) if inked(drawn, x, 20)] == list(range(19, 36))  # a dot of radius 1 at the start
    columns = [x for x, y in changed(image, drawn) if y == 20]
    assert min(columns) >= 17  # a dot of one pixel with its rim
    assert 36 <= max(columns) <= 38
    rows = {y for _, y in changed(image, drawn)}
    assert max(rows) - 20 == 20 - min(rows)  # the head is symmetric
    assert (image == 90).all()  # the input stays

    half = arrows(image, flow, spacing=40, scale=0.4)  # 6 pixels
    assert max(x for x in range(60) if inked(half, x, 20)) == 26


def test_arrows_stand_on_the_grid_and_dots_do_not_move():
    image = grey()
    drawn = arrows(image, constant(0, 0), spacing=20)
    centres = {(x, y) for x in (10, 30, 50) for y in (10, 30)}
    for x, y in centres:
        assert inked(drawn, x, y)
    for x, y in changed(image, drawn):
        assert min(math.dist((x, y), centre) for centre in centres) < 3.5


def test_wild_and_unknown_vectors():
    image = grey()
    assert torch.equal(arrows(image, torch.full((2, 40, 60), 2e9)), image)
    drawn = arrows(image, constant(1e8, 0), spacing=40)  # leaves the picture to the right along row 20
    assert [x for x in range(60) if inked(drawn, x, 20)] == list(range(19, 60))


# ---- overlays -------------------------------------------------------------------------------------------------------


def test_overlay_is_exact():
    image = torch.tensor([10, 100, 200], dtype=torch.uint8)[:, None, None].expand(3, 1, 5).contiguous()
    weight = torch.tensor([[0.0, 0.25, 0.5, 1.0, torch.nan]])
    drawn = overlay(image, weight, (255, 0, 50))
    expected = [[10, 100, 200], [71, 75, 162], [132, 50, 125], [255, 0, 50], [10, 100, 200]]  # 71.25, 162.5, 132.5
    assert drawn[:, 0].T.tolist() == expected


def test_occlusion_and_confidence():
    image = grey(1, 3, 100)
    drawn = occlusion_overlay(image, torch.tensor([[True, False, True]]), color=(200, 0, 100), alpha=0.6)
    assert drawn[:, 0].T.tolist() == [[160, 40, 100], [100, 100, 100], [160, 40, 100]]
    drawn = confidence_overlay(image, torch.tensor([[1.0, 0.5, 0.0]]), color=(200, 0, 100), alpha=0.8)
    assert drawn[:, 0].T.tolist() == [[100, 100, 100], [140, 60, 100], [180, 20, 100]]


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_error_map():
    truth = constant(1, 1, 1, 4)
    flow = truth.clone()
    flow[:, 0, 1] += torch.tensor([3.0, 4.0])
    flow[:, 0, 2] += 100
    truth[0, 0, 3] = torch.nan
    picture = error_map(flow, truth, max_error=10)
    levels = error_to_image(torch.tensor([[0.0, 5.0, 10.0, torch.nan]]), 10)
    assert torch.equal(picture, levels)
    assert picture[:, 0, 0].tolist() == [0, 0, 4]  # the first and last colours of inferno
    assert picture[:, 0, 2].tolist() == [252, 255, 164]
    assert picture[:, 0, 3].tolist() == [128, 128, 128]
    assert picture[:, 0, 1].tolist() == error_to_image(torch.tensor([[1.0]]), 2)[:, 0, 0].tolist()


# ---- tiles ----------------------------------------------------------------------------------------------------------


def test_side_by_side():
    tiles = [grey(4, 6, value) for value in (1, 2, 3, 4, 5)]
    assert torch.equal(side_by_side(tiles[:2]), torch.cat(tiles[:2], 2))
    grid = side_by_side(tiles)
    assert grid.shape == (3, 8, 18)
    assert [grid[0, 0, 0], grid[0, 0, 6], grid[0, 0, 12], grid[0, 4, 0], grid[0, 4, 6]] == [1, 2, 3, 4, 5]
    assert (grid[:, 4:, 12:] == 0).all()
    assert side_by_side(tiles[:4]).shape == (3, 8, 12)
    assert side_by_side(tiles[:4], columns=1).shape == (3, 16, 6)
    tall = side_by_side([grey(4, 80, 7), grey(4, 80, 8)], ["frame", "a caption too long for its picture"])
    assert tall.shape == (3, 26, 160)
    assert (tall[:, 22:, :80] == 7).all()
    assert (tall[:, 22:, 80:] == 8).all()
    assert (tall[:, :22, :60] > 150).any()
    assert (tall[:, :22, 156:] < 60).all()  # the long one was made smaller


# ---- trails ---------------------------------------------------------------------------------------------------------


def test_points_travel_and_cells_are_filled_again():
    trails = Trails(spacing=20, length=3)
    trails.draw(grey())
    start = {(x, y) for x in (10.0, 30.0, 50.0) for y in (10.0, 30.0)}
    assert {tuple(point) for point in trails.positions.tolist()} == start
    trails.advance(constant(4.5, -2))
    assert {tuple(point) for point in trails.positions.tolist()} == {(x + 4.5, y - 2) for x, y in start}
    trails.advance(constant(4.5, -2))
    assert (59.0, 6.0) in {tuple(point) for point in trails.positions.tolist()}
    trails.advance(constant(4.5, -2))  # the last column has left, the cells of the first are free again
    points = {tuple(point) for point in trails.positions.tolist()}
    assert {(x + 13.5, y - 6) for x, y in start if x < 50} < points
    assert {(10.0, 10.0), (10.0, 30.0)} < points
    assert len(points) == 6


def test_a_point_follows_the_vectors_it_meets():
    trails = Trails(spacing=40, length=4)
    flow = constant(0, 0)
    flow[0] = torch.arange(60.0)[None] / 10  # x' = 1.1 x, sampled between pixels, too
    for _ in range(3):
        trails.advance(flow)
    positions = trails.positions
    assert positions[0].tolist() == pytest.approx([20 * 1.1**3, 20], abs=1e-4)
    assert trails.points[0, :4, 0] == pytest.approx([26.62, 24.2, 22, 20], abs=1e-4)


def test_occluded_unknown_and_leaving_points_end():
    for flow, occluded in (
        (constant(1, 0), torch.ones(40, 60, dtype=torch.bool)),
        (constant(float("nan"), 0), None),
        (constant(0, -21), None),
    ):
        trails = Trails(spacing=40, length=4)
        trails.advance(flow, occluded)
        assert trails.positions.tolist() == [[20, 20]]  # a new one
        assert torch.isnan(torch.from_numpy(trails.points[0, 1:])).all()


def test_trails_are_drawn_behind_the_points():
    image = grey()
    trails = Trails(spacing=40, length=2)
    assert changed(image, trails.draw(image)) <= {(x, y) for x in range(17, 24) for y in range(17, 24)}
    for _ in range(3):
        trails.advance(constant(8, 0))
    drawn = trails.draw(image)
    row = sorted(x for x, y in changed(image, drawn) if y == 20 and x > 24)  # there is a new point at x = 20, too
    assert 27 <= row[0] <= 28  # two frames back from x = 44
    assert set(range(28, 46)) <= set(row)
    assert row[-1] <= 47
    assert drawn[:, 20, 30].sum() < drawn[:, 20, 40].sum()  # older pieces are darker


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrows(grey().float(), constant(1, 1)), r"uint8 \[3, H, W\], got torch.float32"),
        (lambda: arrows(grey(), constant(1, 1, 40, 61)), r"\[2, 40, 61\] does not fit a picture \[3, 40, 60\]"),
        (
            lambda: arrows(grey(), constant(1, 1), spacing=0),
            "spacing and thickness must be at least 1 pixel, got 0 and 1",
        ),
        (lambda: overlay(grey(), torch.ones(3, 3), (0, 0, 0)), r"weight must be floating point \[40, 60\]"),
        (lambda: error_to_image(torch.zeros(3, 3), 0), "max_error must be a positive number of pixels, got 0"),
        (lambda: error_to_image(torch.zeros(1, 3, 3)), r"must be floating point \[H, W\]"),
        (lambda: side_by_side([]), "got 0 pictures and 0 captions"),
        (lambda: side_by_side([grey()], ["a", "b"]), "got 1 pictures and 2 captions"),
        (lambda: side_by_side([grey(), grey(4, 4)]), "pictures differ"),
        (lambda: Trails(spacing=0), "must be at least 1, got 0 and 16"),
        (lambda: Trails().advance(torch.zeros(3, 4, 4)), "flow must be floating point"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_large_pictures_get_thicker_lines():
    assert [line_thickness(size) for size in ((480, 640), (1080, 1920), (2160, 3840))] == [1, 2, 4]
    thick = arrows(grey(), constant(20, 0), spacing=40, thickness=4)
    rows = [y for y in range(40) if inked(thick, 28, y)]
    assert rows == list(range(rows[0], rows[0] + len(rows)))
    assert 4 <= len(rows) <= 6
    assert abs(sum(rows) / len(rows) - 20) <= 0.5
