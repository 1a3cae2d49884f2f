"""Scores against values computed by hand and against independent formulas written as loops."""

import math

import numpy as np
import pytest
import torch

from daflow_ext.flow import metrics
from daflow_ext.flow.metrics import PROTOCOLS, Tally, combine, image_tallies, pixel_errors


def constant(x, y, height=1, width=1):
    return torch.tensor([x, y], dtype=torch.float32)[:, None, None].expand(2, height, width).clone()


def row(*vectors):
    """A flow of one image row: [2, 1, W]."""
    return torch.tensor(vectors, dtype=torch.float32).T[:, None]


@pytest.fixture
def by_hand():
    """Errors 0, 1, 3, 5, 10 at true lengths 0, 5, 10, 40, 300."""
    truth = row((0, 0), (3, 4), (6, 8), (24, 32), (180, 240))
    flow = truth + row((0, 0), (0, 1), (3, 0), (-3, 4), (-8, -6))
    return flow, truth


def test_epe_by_hand(by_hand):
    flow, truth = by_hand
    assert metrics.epe(flow, truth).item() == pytest.approx(19 / 5, abs=1e-12)
    valid = torch.tensor([[True, False, True, False, True]])
    assert metrics.epe(flow, truth, valid).item() == pytest.approx(13 / 3, abs=1e-12)
    assert metrics.epe(flow, truth, valid.float()).item() == pytest.approx(13 / 3, abs=1e-12)


@pytest.mark.parametrize(("threshold", "strict", "expected"), [
    (1, True, 60), (1, False, 80), (3, True, 40), (3, False, 60), (5, True, 20), (5, False, 40),
])  # fmt: skip
def test_outliers_are_percent_of_bad_pixels(by_hand, threshold, strict, expected):
    flow, truth = by_hand
    assert metrics.outlier_rate(flow, truth, threshold, strict=strict).item() == pytest.approx(expected)


def test_fl_all_needs_both_conditions(by_hand):
    flow, truth = by_hand
    # 3 px is not above 3; 5 px at length 40 is above 5 %; 10 px at length 300 is below 5 % (15 px)
    assert metrics.fl_all(flow, truth).item() == pytest.approx(20)


def test_wauc_by_hand():
    truth = row((0, 0), (0, 0), (0, 0), (0, 0))
    flow = torch.tensor([[[0.0, 0.05, 4.97, 5.01]], [[0.0] * 4]], dtype=torch.float64)
    # error 0 and exactly 1/20 earn all weights, 4.97 only the last (0.01 of 50.5), 5.01 none
    assert metrics.wauc(flow, truth.double()).item() == pytest.approx(100 * (2 + 0.01 / 50.5) / 4, rel=1e-9)


def test_wauc_equals_the_sum_over_thresholds():
    error = np.random.default_rng(3).gamma(1.0, 2.0, 500)
    flow = torch.zeros(2, 1, 500, dtype=torch.float64)
    flow[0, 0] = torch.from_numpy(error)
    total = weights = 0.0
    for i in range(1, 101):
        weight = 1 - (i - 1) / 100
        total += weight * np.count_nonzero(error <= i / 20)
        weights += weight
    expected = 100 * total / (weights * error.size)
    assert metrics.wauc(flow, torch.zeros_like(flow)).item() == pytest.approx(expected, rel=1e-12)


def test_pixel_and_image_means_differ_by_the_number_of_valid_pixels():
    truth = torch.zeros(2, 2, 1, 4)
    flow = torch.zeros(2, 2, 1, 4)
    flow[0, 0], flow[1, 0] = 2.0, 6.0
    valid = torch.tensor([[[True, True, True, False]], [[True, False, False, False]]])
    assert metrics.epe(flow, truth, valid, aggregate="pixel").item() == pytest.approx((3 * 2 + 6) / 4)
    assert metrics.epe(flow, truth, valid, aggregate="image").item() == pytest.approx((2 + 6) / 2)
    valid[1] = False
    assert metrics.epe(flow, truth, valid, aggregate="image").item() == pytest.approx(2)
    with pytest.raises(ValueError, match="aggregate must be one of pixel, image"):
        metrics.epe(flow, truth, aggregate="batch")


def test_a_prediction_that_is_not_finite_is_refused_where_it_counts():
    truth, flow = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    flow[1, 0, 2] = math.nan
    with pytest.raises(ValueError, match="not finite at 1 of 6 valid pixels"):
        metrics.epe(flow, truth)
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[0, 2] = False
    assert metrics.epe(flow, truth, valid).item() == 0


def test_truth_that_is_not_finite_is_invalid_by_itself_and_refused_when_declared_valid():
    truth = row((math.nan, 0), (1, 0))
    assert metrics.epe(row((9, 9), (0, 0)), truth).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="flow_gt has non-finite values"):
        metrics.epe(row((9, 9), (0, 0)), truth, torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(("flow", "truth"), [((2, 3, 4), (2, 3, 5)), ((3, 3, 4), (3, 3, 4)), ((2, 4), (2, 4))])
def test_sizes_that_disagree_are_named(flow, truth):
    with pytest.raises(ValueError, match=rf"got \[{flow[0]}, "):
        metrics.epe(torch.zeros(flow), torch.zeros(truth))


def test_speed_bins_are_half_open(by_hand):
    flow, truth = by_hand  # true lengths 0, 5 | 10 | 40, 300
    groups = image_tallies(pixel_errors(flow, truth))
    assert [groups[name].count for name in ("all", "s0-10", "s10-40", "s40+")] == [5, 2, 1, 2]
    assert groups["s0-10"].mean()["epe"] == pytest.approx(0.5)
    assert groups["s10-40"].mean()["epe"] == pytest.approx(3)
    assert groups["s40+"].mean()["epe"] == pytest.approx(7.5)


def test_masks_come_with_their_complement(by_hand):
    flow, truth = by_hand
    occluded = torch.tensor([[False, True, False, False, True]])
    groups = image_tallies(pixel_errors(flow, truth), {"occluded": occluded, "fog": occluded})
    assert groups["occluded"].mean()["epe"] == pytest.approx(5.5)
    assert groups["non_occluded"].mean()["epe"] == pytest.approx(8 / 3)
    assert groups["not_fog"].as_list() == groups["non_occluded"].as_list()
    with pytest.raises(ValueError, match="mask 'occluded' must be bool"):
        image_tallies(pixel_errors(flow, truth), {"occluded": occluded[:, :3]})


def test_combine_names_both_means_and_skips_empty_images():
    one = Tally(3, {"epe": 6.0, "outlier_1px": 3, "outlier_3px": 1, "outlier_5px": 0, "fl_all": 1, "wauc": 1.5})
    other = Tally(1, {"epe": 6.0, "outlier_1px": 1, "outlier_3px": 1, "outlier_5px": 1, "fl_all": 1, "wauc": 0.25})
    empty = Tally(0, dict.fromkeys(metrics.METRICS, 0.0))
    scores = combine([one, empty, other])
    assert scores["epe_per_pixel"] == pytest.approx(3)
    assert scores["epe_per_image"] == pytest.approx(4)
    assert scores["outlier_3px_per_pixel"] == pytest.approx(50)
    assert scores["outlier_3px_per_image"] == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert scores["wauc_per_pixel"] == pytest.approx(43.75)
    assert math.isnan(combine([empty])["epe_per_image"])
    assert Tally.from_list(one.as_list()) == one


def test_protocols_publish_the_mean_of_their_benchmark():
    kitti = PROTOCOLS["kitti"]
    assert (kitti.aggregate_of("epe"), kitti.aggregate_of("fl_all")) == ("image", "pixel")
    assert PROTOCOLS["spring_min4"].aggregate_of("epe") == "pixel"
    assert PROTOCOLS["spring_subsample"].aggregate_of("outlier_1px") == "image"


def spring_pixel_by_loops(flow, samples):
    """The benchmark's rules for one pixel: flow (x, y), samples four true vectors."""
    if any(math.isnan(value) for sample in samples for value in sample):
        return None
    lengths = [math.hypot(*sample) for sample in samples]
    error = min(math.hypot(flow[0] - x, flow[1] - y) for x, y in samples)
    mean = sum(lengths) / 4
    speed = "s0-10" if mean < 10 else "s10-40" if mean < 40 else "s40+"
    return error, error > 1, error > 3 and error > 0.05 * max(lengths), speed


def test_spring_min4_follows_the_servers_rules():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(2, 24, 32, generator=generator) * torch.linspace(0.5, 60, 32)
    truth[0, 5, 7] = math.nan
    flow = truth[:, ::2, ::2].nan_to_num() + torch.randn(2, 12, 16, generator=generator) * 4
    groups = PROTOCOLS["spring_min4"].score(flow, truth)
    expected = {name: [] for name in ("all", "s0-10", "s10-40", "s40+")}
    for y in range(12):
        for x in range(16):
            samples = [truth[:, 2 * y + j, 2 * x + i].tolist() for j in (0, 1) for i in (0, 1)]
            result = spring_pixel_by_loops(flow[:, y, x].tolist(), samples)
            if result:
                expected["all"].append(result[:3])
                expected[result[3]].append(result[:3])
    assert len(expected["all"]) == 12 * 16 - 1
    for name, rows in expected.items():
        scores = groups[name].mean()
        assert groups[name].count == len(rows) > 0
        assert scores["epe"] == pytest.approx(np.mean([row[0] for row in rows]), rel=1e-9)
        assert scores["outlier_1px"] == pytest.approx(100 * np.mean([row[1] for row in rows]), rel=1e-9)
        assert scores["fl_all"] == pytest.approx(100 * np.mean([row[2] for row in rows]), rel=1e-9)


def test_spring_min4_is_never_worse_than_subsample_and_refuses_other_sizes():
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(2, 8, 12, generator=generator) * 9
    flow = torch.randn(2, 4, 6, generator=generator) * 9
    sub = PROTOCOLS["spring_subsample"].errors(flow, metrics.subsample(truth))
    best = PROTOCOLS["spring_min4"].errors(flow, truth)
    assert (best.epe <= sub.epe).all()
    assert (best.epe < sub.epe).any()
    with pytest.raises(ValueError, match=r"2H, 2W"):
        PROTOCOLS["spring_min4"].errors(flow, truth[:, ::2, ::2])


def test_forward_backward_error_by_hand():
    forward, backward = constant(2, 0, 4, 6)[None], constant(-1, 0, 4, 6)[None]
    assert metrics.forward_backward_error(forward, -forward).item() == 0
    assert metrics.forward_backward_error(forward, backward).item() == pytest.approx(1)
    backward[..., 3] = 5.0  # seen only from column 1
    expected = (3 * 1 + math.hypot(7, 5)) / 4  # columns 4 and 5 leave the image
    assert metrics.forward_backward_error(forward, backward).item() == pytest.approx(expected, rel=1e-6)
    everywhere = torch.ones(1, 4, 6, dtype=torch.bool)
    assert metrics.forward_backward_error(forward, -forward, everywhere).item() == 0


def lai_mask_by_loops(forward, backward):
    """Lai's mask, pixel by pixel in NumPy, border clamped; the flows have whole-pixel values."""
    height, width = forward.shape[1:]
    mask = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            f = forward[:, y, x]
            b = backward[:, min(max(int(y + f[1]), 0), height - 1), min(max(int(x + f[0]), 0), width - 1)]
            occluded = ((f + b) ** 2).sum() > 0.01 * ((f**2).sum() + (b**2).sum()) + 0.5
            gradient = 0.0
            if x + 1 < width:
                gradient += ((f - forward[:, y, x + 1]) ** 2).sum()
            if y + 1 < height:
                gradient += ((f - forward[:, y + 1, x]) ** 2).sum()
            mask[y, x] = occluded or gradient > 0.01 * (f**2).sum() + 0.002
    return mask


def test_occlusion_and_boundaries_follow_lai():
    rng = np.random.default_rng(0)
    forward = np.repeat(np.repeat(rng.integers(-3, 4, (2, 4, 5)), 3, 1), 3, 2).astype(np.float32)
    backward = -forward
    backward[:, 4:8, 5:9] = 3
    mask = metrics.occlusion_and_boundaries(torch.from_numpy(forward)[None], torch.from_numpy(backward)[None])[0]
    expected = lai_mask_by_loops(forward, backward)
    assert 0.2 < expected.mean() < 0.9
    assert np.array_equal(mask.numpy(), expected)


def test_warping_error_by_hand():
    frames = torch.zeros(3, 3, 2, 4)
    frames[1], frames[2] = 51.0, 153.0  # differences 0.2 and 0.4 of the range
    flow = torch.zeros(2, 2, 2, 4)
    nothing = torch.zeros(2, 2, 4, dtype=torch.bool)
    assert metrics.warping_error(frames, flow, nothing).item() == pytest.approx((0.04 + 0.16) / 2, rel=1e-6)
    frames[2, :, 0] = 51.0  # half of the second pair agrees ...
    assert metrics.warping_error(frames, flow, nothing).item() == pytest.approx((0.04 + 0.08) / 2, rel=1e-6)
    masked = nothing.clone()
    masked[1, 1] = True  # ... and only that half counts
    assert metrics.warping_error(frames, flow, masked).item() == pytest.approx(0.02, rel=1e-6)
    masked[1] = True
    assert metrics.warping_error(frames, flow, masked).item() == pytest.approx(0.02, rel=1e-6)
    with pytest.raises(ValueError, match="3 frames need flow and occluded for 2 pairs"):
        metrics.warping_error(frames, flow[:1], nothing)


def test_warping_error_follows_the_motion():
    generator = torch.Generator().manual_seed(0)
    scene = torch.rand(3, 12, 40, generator=generator) * 255
    frames = torch.stack([scene[..., 6 - 2 * t : 26 - 2 * t] for t in range(3)])  # content moves right by 2
    flow = constant(2, 0, 12, 20).expand(2, -1, -1, -1)
    leaving = torch.zeros(2, 12, 20, dtype=torch.bool)
    leaving[..., -2:] = True
    assert metrics.warping_error(frames, flow, leaving).item() < 1e-12
    assert metrics.warping_error(frames, torch.zeros_like(flow), leaving).item() > 0.05


def test_robustness_compares_two_predictions(by_hand):
    corrupted, clean = by_hand
    scores = metrics.robustness(clean, corrupted)
    assert scores["robustness_epe"] == pytest.approx(19 / 5)
    assert scores["robustness_1px"] == pytest.approx(60)
    assert scores["robustness_fl"] == pytest.approx(20)
    assert metrics.robustness_epe(clean, corrupted) == scores["robustness_epe"]
    steady = dict.fromkeys(metrics.ROBUSTNESS, 0.0)
    mean = metrics.mean_over_corruptions({"fog": scores, "snow": steady})
    assert mean["robustness_epe"] == pytest.approx(1.9)
    with pytest.raises(ValueError, match="no corruption"):
        metrics.mean_over_corruptions({})
