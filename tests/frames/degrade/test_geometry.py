"""Nothing moves: a ramp stays a ramp through every stage, at every size, and textures stay where they are."""

import dataclasses
import itertools

import cv2
import numpy as np
import pytest
import torch
from degrade_scenes import displacement, plane, plane_shift, texture

from daflow_ext.frames.degrade import CORRUPTIONS, PRESETS, corrupt, degrade, get_config, stages, tensor_stages
from daflow_ext.frames.degrade import codec as video
from daflow_ext.frames.degrade.kernels import FAMILIES, make_kernel
from daflow_ext.frames.degrade.pipeline import ClipRecord, _Backend, _Chain
from daflow_ext.frames.degrade.schedule import Noise

LIMIT = 0.1  # pixels of the original
EXACT = 2e-3  # what float32 arithmetic leaves of 0, on ramps of a few hundred grey levels

SIZES = [(64, 64), (109, 256), (97, 61), (33, 47), (128, 131)]
FACTORS = [0.15, 0.25, 0.37, 0.61, 0.93, 1.0, 1.07, 1.49, 4.0]


def tensor(frame):
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)


def array(frame):
    return frame.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resize(size, interpolation):
    """Also to sizes that no common factor explains, and on both backends."""
    targets = {tuple(max(round(side * factor), 8) for side in size) for factor in FACTORS}
    targets |= {(size[0] - 1, size[1] + 1), (size[0] // 2, size[1] // 3)}
    for target in targets:
        coarse = max(a / b for a, b in zip(size, target, strict=True))
        margin = 2 * max(coarse, 1) + 2
        ramps = stages.resize(plane(*size), target, interpolation)
        assert ramps.shape[:2] == target
        assert plane_shift(ramps, size, margin) < EXACT, target
        other = array(tensor_stages.resize(tensor(plane(*size)), target, interpolation))
        assert plane_shift(other, size, margin) < EXACT, target


def test_the_usual_filters_would_move_things():
    """Why the resampler is our own: OpenCV's cubic and area filters displace ramps by more than the limit."""
    ramp = plane(64, 64)
    cubic = cv2.resize(ramp, (256, 256), interpolation=cv2.INTER_CUBIC) * 4
    grid = np.arange(256, dtype=np.float32) - 1.5
    assert np.abs(cubic[128, 16:-16, 0] - grid[16:-16]).max() > 1.5 * LIMIT
    area = cv2.resize(plane(64, 255), (380, 64), interpolation=cv2.INTER_AREA)
    assert plane_shift(area, (64, 255), 8) > 1.5 * LIMIT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(64, 64), (61, 97)], ids=str)
def test_blur(size, family):
    for taps in (7, 21):
        kernel = make_kernel(family, taps, sigma_x=2.9, sigma_y=0.6, angle=0.8, beta=0.7, omega=1.3)
        ramps = plane(*size)
        assert plane_shift(stages.blur(ramps, kernel), size, taps // 2) < EXACT
        assert plane_shift(array(tensor_stages.blur(tensor(ramps), kernel)), size, taps // 2) < EXACT


def test_unsharp_mask():
    ramps = plane(128, 131, slope=0.4) + 60
    for sharp in (stages.unsharp_mask(ramps), array(tensor_stages.unsharp_mask(tensor(ramps)))):
        assert plane_shift((sharp - 60) / 0.4, (128, 131), 52) < EXACT
    picture = texture(160, 161).astype(np.float32)
    assert np.abs(displacement(stages.unsharp_mask(picture), picture, 2)).max() < LIMIT


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@pytest.mark.parametrize("gray", [False, True])
def test_noise(kind, gray):
    """Noise is no displacement on the mean: it has mean 0."""
    noise = Noise(kind, 20.0 if kind == "gaussian" else 1.5, gray)
    picture = (texture(96, 97) * 0.5 + 64).astype(np.float32)  # away from clipping, which is not symmetric
    for module, frame, back in ((stages, picture, np.asarray), (tensor_stages, tensor(picture), array)):
        mean = np.mean([back(module.add_noise(frame, noise, 3, (1, 0, index))) for index in range(60)], axis=0)
        assert np.abs(displacement(mean, picture, 2)).max() < LIMIT


@pytest.mark.parametrize("quality", [30, 60, 95])
@pytest.mark.parametrize("size", [(64, 64), (61, 97), (33, 47)], ids=str)
def test_jpeg(size, quality):
    """Also in colour, where the chroma planes have half the size."""
    found = [displacement(stages.jpeg(texture(*size, seed), quality), texture(*size, seed)) for seed in range(12)]
    assert np.abs(np.mean(found, axis=0)).max() < LIMIT
    for channel in range(3):
        shifts = []
        for seed in range(12):
            picture = np.full((*size, 3), 110, np.uint8)
            picture[..., channel] = texture(*size, seed)[..., 0]
            shifts.append(displacement(stages.jpeg(picture, quality)[..., channel], picture[..., channel]))
        assert np.abs(np.mean(shifts, axis=0)).max() < LIMIT


def test_yuv_conversion_keeps_coloured_ramps():
    """4:2:0 there and back; a dither over many ramps removes the rounding to 8 bits."""
    total = np.zeros((66, 130, 3))
    for offset in range(24):
        ramps = plane(66, 130) + np.array([offset * 1.04, offset * 1.04, 0.0])
        rounded = np.rint(ramps).astype(np.uint8)
        total += video.from_yuv420(video.to_yuv420(rounded)) - rounded.astype(float)
    shift = cv2.blur(total / 24, (7, 7))[8:-8, 8:-8]
    assert np.abs(shift).max() < LIMIT * 2  # slopes are 1 level a pixel; the blur leaves rounding noise of 0.05
    assert np.abs(shift.mean(axis=(0, 1))).max() < 0.05


@pytest.mark.parametrize("name", ["libx264", "mpeg4"])
@pytest.mark.parametrize("size", [(64, 64), (61, 97), (109, 64)], ids=str)
def test_codec(size, name):
    """A still clip: prediction from other frames has nothing to carry along."""
    found = []
    for seed in range(6):
        frames = [texture(*size, seed)] * 3
        for frame in video.compress(frames, 8.0, True, video.Encoded(name)):
            assert frame.shape[:2] == size
            found.append(displacement(frame, frames[0], 2))
    assert np.abs(np.mean(found, axis=0)).max() < LIMIT


def _smooth_chain(config, size, seed):
    """The whole recipe on ramps without what rounds: noise, JPEG and codecs are left out, frames stay float."""
    chain = _Chain(config, seed, True, _Backend(stages, lambda frame: frame, lambda frame: frame), ClipRecord())
    chain.record.size = size
    chain.record.lq_size = tuple((side + 2) // 4 for side in size)
    stream = iter([plane(*size)] * 2)
    for order in range(2):
        stream = chain._pixels(stream, order)
    return list(chain._upscaled(chain._final(stream, before=False)))


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("size", [(512, 512), (437, 603), (515, 390)], ids=str)
def test_whole_recipe(size, preset, monkeypatch):
    """Every draw of every preset, seen through its own filters only: the middle of the frame does not move."""
    monkeypatch.setattr(stages, "add_noise", lambda frame, noise, seed, key: frame)
    monkeypatch.setattr(stages, "unsharp_mask", lambda frame: frame)  # it clips; tested above
    config = get_config(preset)
    orders = tuple(  # the reach of the filters must stay inside the frame: small kernels, not too small frames
        dataclasses.replace(order, kernel_sizes=(7, 9), resize_down=tuple(max(v, 0.3) for v in order.resize_down))
        for order in config.orders
    )
    changes = {"codec_scope": "none", "final_first_prob": 0.0, "final_sizes": (7, 9)}
    config = dataclasses.replace(config, orders=orders, **changes)
    for seed in range(4):
        for ramps in _smooth_chain(config, size, seed):
            assert plane_shift(ramps, size, 0.4 * min(size)) < LIMIT / 5


@pytest.mark.parametrize("preset", ["realbasicvsr", "star", "level1", "level3"])
def test_whole_recipe_on_a_texture(preset):
    """With noise, JPEG and codecs, on the mean over seeds."""
    picture = texture(160, 169, seed=4)
    still = np.stack([picture] * 2)
    found = [displacement(frame, picture) for seed in range(12) for frame in degrade(still, preset, seed)]
    assert np.abs(np.mean(found, axis=0)).max() < LIMIT


STEADY = [name for name, family in CORRUPTIONS.items() if not family.moves_pixels]


@pytest.mark.parametrize("name", [name for name in STEADY if CORRUPTIONS[name].group != "weather"])
@pytest.mark.parametrize("size", [(160, 160), (131, 203)], ids=str)
def test_corruptions(name, size):
    picture = (texture(*size, seed=2) * 0.5 + 50).astype(np.uint8)
    found = [
        displacement(corrupt(picture, name, severity, seed), picture)
        for severity, seed in itertools.product((1, 3, 5), range(6))
    ]
    assert np.abs(np.mean(found, axis=0)).max() < LIMIT


@pytest.mark.parametrize("name", [name for name in STEADY if CORRUPTIONS[name].group == "weather"])
@pytest.mark.parametrize("severity", [1, 5])
def test_weather_covers_but_does_not_move(name, severity):
    """A change of one pixel of the scene is seen at that pixel and nowhere else."""
    size = (71, 98)
    apply = CORRUPTIONS[name].make(size, severity, 3)
    before = texture(*size).astype(np.float32) / 512
    seen = 0
    for row, column in ((0, 0), (35, 40), (70, 97), (13, 61)):
        after = before.copy()
        after[row, column] *= 0.5
        changed = np.abs(apply(after, 4) - apply(before, 4)).max(axis=2) > 0
        seen += changed[row, column]
        changed[row, column] = False
        assert not changed.any()
    assert seen > 0


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur"])
def test_blurring_corruptions_keep_ramps(name):
    size = (201, 230)
    for severity in (1, 3, 5):
        apply = CORRUPTIONS[name].make(size, severity, 1)
        assert plane_shift(apply(plane(*size), 0), size, 45) < LIMIT


@pytest.mark.parametrize("severity", [1, 5])
def test_corruptions_that_move_pixels_say_so(severity):
    """Their displacement is bounded, and nearly 0 on the mean over the frame."""
    size = (200, 301)
    for name, most in (("elastic_transform", 5 * 2.5 * 200 / 448), ("glass_blur", 2 * 2 * 4)):
        assert CORRUPTIONS[name].moves_pixels
        ramps = CORRUPTIONS[name].make(size, severity, 3)(plane(*size), 0) - plane(*size)
        assert 0.2 < np.abs(ramps[20:-20, 20:-20, :2]).max() < most
        assert np.abs(ramps[20:-20, 20:-20].mean(axis=(0, 1))[:2]).max() < 0.35
