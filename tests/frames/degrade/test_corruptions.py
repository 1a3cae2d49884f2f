"""The 20 families: what each does, its severities, its behaviour over time."""

import numpy as np
import pytest
import torch
from degrade_scenes import clip, texture

from daflow_ext.frames.degrade import CORRUPTIONS, SEVERITIES, corrupt, corrupt_frames

ROBUSTSPRING = [
    "brightness",
    "contrast",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "rain",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
]

# saturate: 1 and 2 remove colour, the others add it, as on ImageNet-C's list; fog: see its own test
UNORDERED = {"saturate", "fog"}


@pytest.fixture(scope="module")
def video():
    return clip(3, 112, 150)


def error(result, original):
    return np.abs(result.astype(float) - original).mean()


def test_the_names_are_robustspring_s():
    assert sorted(CORRUPTIONS) == ROBUSTSPRING
    groups = {
        group: sum(family.group == group for family in CORRUPTIONS.values()) for group in ("color", "blur", "noise")
    }
    assert groups == {"color": 3, "blur": 5, "noise": 4}
    assert all(family.summary.endswith(".") and len(family.summary) < 120 for family in CORRUPTIONS.values())


@pytest.mark.parametrize("name", ROBUSTSPRING)
def test_every_family_keeps_layout_and_repeats(video, name):
    result = corrupt(video, name, 3, seed=5)
    assert result.shape == video.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, corrupt(video, name, 3, seed=5))
    np.testing.assert_array_equal(result, np.stack(list(corrupt_frames(iter(video), name, 3, 5))))
    assert error(result, video) > 0.5


def test_fog_hides_more_and_more(video):
    """The veil's own brightness varies from bank to bank, so what counts is how much of the scene is left."""
    left = [
        np.mean([np.corrcoef(corrupt(video, "fog", s, seed).ravel(), video.ravel())[0, 1] for seed in range(6)])
        for s in SEVERITIES
    ]
    assert left[0] > left[1] > left[2]  # 3 and 4 are equally dense, 4 has finer banks
    assert left[3] > left[4]


@pytest.mark.parametrize("name", sorted(set(ROBUSTSPRING) - UNORDERED))
def test_severities_are_ordered(video, name):
    errors = [np.mean([error(corrupt(video, name, s, seed), video) for seed in range(5)]) for s in SEVERITIES]
    if name == "spatter":  # 1 to 3 are clear drops, 4 and 5 mud
        assert errors[:3] == sorted(errors[:3])
        assert errors[3] < errors[4]
    elif name == "glass_blur":  # at this size the reach is one pixel throughout, and the rounds are 2 1 3 2 2
        assert errors[0] < errors[2]
    elif name == "snow":  # 3 has the largest flakes of the milder ones
        assert errors[0] < errors[1] < errors[4]
    else:
        assert errors == sorted(errors), errors


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "fog", "snow", "rain"]
)
def test_changes_over_time(name):
    still = np.stack([texture(96, 96)] * 3)
    result = corrupt(still, name, 3, seed=1)
    assert (result[0] != result[1]).mean() > 0.02


@pytest.mark.parametrize(
    "name",
    sorted(
        set(ROBUSTSPRING) - {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "fog", "snow", "rain"}
    ),
)
def test_fixed_in_time(name):
    still = np.stack([texture(96, 96)] * 3)
    result = corrupt(still, name, 3, seed=1)
    np.testing.assert_array_equal(result[0], result[2])


def test_noise_strengths():
    """Against the stated laws, on one grey level far from clipping."""
    level = 0.4
    frame = np.full((150, 150, 3), level, np.float32)
    laws = {"gaussian_noise": 0.08, "shot_noise": (level / 60) ** 0.5, "speckle_noise": 0.15 * level}
    for name, sigma in laws.items():
        values = CORRUPTIONS[name].make((150, 150), 1, 0)(frame, 0)
        assert values.std() == pytest.approx(sigma, rel=0.02), name
        assert values.mean() == pytest.approx(level, abs=0.002), name
    values = CORRUPTIONS["impulse_noise"].make((150, 150), 5, 0)(frame, 0)
    assert (values == 1).mean() == pytest.approx(0.135, abs=0.006)
    assert (values == 0).mean() == pytest.approx(0.135, abs=0.006)


def test_colour_families_by_hand():
    frame = np.zeros((4, 4, 3), np.float32)
    frame[:] = (0.5, 0.25, 0.0)
    bright = CORRUPTIONS["brightness"].make((4, 4), 2, 0)(frame, 0)
    np.testing.assert_allclose(bright[0, 0], [0.7, 0.35, 0.0], atol=1e-5)  # value 0.5 + 0.2, hue and saturation kept
    frame[0, 0] = (1.0, 1.0, 1.0)
    contrast = CORRUPTIONS["contrast"].make((4, 4), 1, 0)(frame, 0)
    mean = frame.mean(axis=(0, 1))
    np.testing.assert_allclose(contrast, mean + 0.4 * (frame - mean), atol=1e-6)
    gray = CORRUPTIONS["saturate"].make((4, 4), 2, 0)(frame, 0)[1, 1]  # saturation 1 -> 0.1
    np.testing.assert_allclose(gray, [0.5, 0.475, 0.45], atol=1e-3)


def test_lengths_grow_with_the_frame():
    """A point spreads twice as far in a frame of twice the size."""
    spreads = []
    for side in (224, 448):
        frame = np.zeros((side, side, 3), np.float32)
        frame[side // 2, side // 2] = 1
        blurred = CORRUPTIONS["defocus_blur"].make((side, side), 5, 0)(frame, 0)[..., 0]
        spreads.append((blurred > 0.3 * blurred.max()).sum() ** 0.5)
    assert spreads[1] == pytest.approx(2 * spreads[0], rel=0.1)


def test_torch_video():
    video = clip(2, 64, 80)
    tensor = torch.from_numpy(video).permute(0, 3, 1, 2)[None].float()
    result = corrupt(tensor, "fog", 2, seed=7)
    assert result.shape == tensor.shape
    assert result.dtype == torch.float32
    np.testing.assert_array_equal(result[0].permute(0, 2, 3, 1).numpy(), corrupt(video, "fog", 2, seed=7))


@pytest.mark.parametrize("name", ROBUSTSPRING)
def test_tiny_frames(name):
    assert corrupt(texture(5, 7), name, 5).shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: corrupt(v, "hail"), r"no corruption 'hail'; expected one of brightness, contrast"),
        (lambda v: corrupt(v, "fog", 0), r"severity must be a whole number from 1 \(mild\) to 5 \(worst\), got 0"),
        (lambda v: corrupt(v, "fog", 2.0), r"severity must be a whole number from 1 \(mild\) to 5 \(worst\), got 2.0"),
        (lambda v: corrupt(v, "fog", 3, seed=-2), r"a seed must not be negative"),
        (lambda v: list(corrupt_frames([v[0], v[1][:40]], "fog")), r"frame 1 is 150x40 pixels"),
    ],
)
def test_bad_input(video, call, message):
    with pytest.raises(ValueError, match=message):
        call(video)
