"""The public function: layouts, reproducibility, presets, modes, what is recorded, bad input."""

import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from degrade_scenes import clip, texture

from daflow_ext.frames.degrade import LEVELS, PRESETS, ClipRecord, degrade, degrade_frames, degrade_many, get_config


def psnr(result, original):
    return 10 * np.log10(255**2 / np.mean((result.astype(float) - original) ** 2))


@pytest.fixture(scope="module")
def video():
    return clip(3, 96, 128)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_degrade_without_changing_the_layout(video, preset):
    result = degrade(video, preset, seed=2)
    assert result.shape == video.shape
    assert result.dtype == np.uint8
    assert 8 < psnr(result, video) < 32
    small = degrade(video, preset, seed=2, upscale=False)
    assert small.shape == (3, 24, 32, 3)


def test_upscaling_is_bicubic_enlargement_of_the_small_frames(video):
    """Torch's antialiased bicubic filter is Keys' kernel with a = -0.5 where it enlarges."""
    small = torch.from_numpy(degrade(video, seed=1, upscale=False)).permute(0, 3, 1, 2).float()
    large = torch.nn.functional.interpolate(small, (96, 128), mode="bicubic", antialias=True).clamp(0, 255)
    difference = large.permute(0, 2, 3, 1).numpy() - degrade(video, seed=1)
    assert np.abs(difference[:, 8:-8, 8:-8]).max() < 0.51  # torch treats edges otherwise


@pytest.mark.parametrize("size", [(109, 61), (37, 50), (16, 16), (5, 7)], ids=str)
def test_odd_and_small_sizes(size):
    frames = clip(2, *size)
    for preset in ("realbasicvsr", "star", "level5"):
        assert degrade(frames, preset, seed=3).shape == frames.shape
    expected = (2, max((size[0] + 2) // 4, 1), max((size[1] + 2) // 4, 1), 3)
    assert degrade(frames, seed=3, upscale=False).shape == expected


def test_torch_layouts_give_the_pixels_of_numpy(video):
    expected = degrade(video, seed=4)
    tensor = torch.from_numpy(video).permute(0, 3, 1, 2)
    result = degrade(tensor, seed=4)
    assert result.dtype == torch.uint8
    np.testing.assert_array_equal(result.permute(0, 2, 3, 1).numpy(), expected)
    floats = degrade(tensor.float(), seed=4)
    assert floats.dtype == torch.float32
    assert torch.equal(floats, result.float())
    batch = degrade(torch.stack([tensor, tensor]), seed=4)
    assert batch.shape == (2, 3, 3, 96, 128)
    assert torch.equal(batch[0], result)
    assert torch.equal(batch[1], degrade(tensor, seed=5))
    assert torch.equal(degrade(torch.stack([tensor, tensor]), seed=[5, 4])[1], result)


def test_half_precisions_and_gradients(video):
    """What training hands over: bfloat16 or float16 tensors, some of which require a gradient."""
    tensor = torch.from_numpy(video).permute(0, 3, 1, 2)
    expected = degrade(tensor, 1, seed=4).float()
    for dtype in (torch.bfloat16, torch.float16):
        result = degrade(tensor.to(dtype), 1, seed=4)
        assert result.dtype == dtype
        assert torch.equal(result.float(), expected)
    assert torch.equal(degrade(tensor.float().requires_grad_(), 1, seed=4), expected)


def test_single_image(video):
    result = degrade(video[0], "level2", seed=1)
    assert result.shape == video[0].shape
    np.testing.assert_array_equal(result, degrade(video[:1], "level2", seed=1)[0])


@pytest.mark.parametrize("preset", ["realbasicvsr", "star", "level3"])
def test_equal_seeds_give_equal_bits(video, preset):
    first = degrade(video, preset, seed=6)
    np.testing.assert_array_equal(first, degrade(video, preset, seed=6))
    assert (first != degrade(video, preset, seed=7)).mean() > 0.3


def test_streaming_equals_the_array(video):
    np.testing.assert_array_equal(np.stack(list(degrade_frames(iter(video), "star", 6))), degrade(video, "star", 6))


SCRIPT = """
import sys, hashlib, cv2, torch
from daflow_ext.frames.degrade import degrade_many
sys.path.insert(0, {folder!r})
from scenes import clip
if __name__ == "__main__":
    cv2.setNumThreads(2)
    torch.set_num_threads(2)
    for result in degrade_many([clip(3, 96, 128, seed) for seed in range(3)], "realbasicvsr", 11, workers=2):
        print(hashlib.sha256(result.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_threads_and_processes_change_nothing(tmp_path):
    """Three clips here on one thread, and in two worker processes of another program."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(folder=os.path.dirname(__file__)))
    there = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.split()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    here = [degrade(clip(3, 96, 128, seed), "realbasicvsr", 11 + seed) for seed in range(3)]
    cv2.setNumThreads(threads)
    assert there == [hashlib.sha256(result.tobytes()).hexdigest() for result in here]
    assert len(set(there)) == 3


def test_the_number_of_threads_changes_nothing(video):
    before = cv2.getNumThreads(), torch.get_num_threads()
    results = []
    for count in (1, 2):
        cv2.setNumThreads(count)
        torch.set_num_threads(count)
        results.append([degrade(video, "realbasicvsr", seed) for seed in range(4)])
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])
    np.testing.assert_array_equal(*results)


def test_degrade_many_takes_one_seed_per_clip(video):
    results = list(degrade_many([video, video, video], "star", 3))
    for index, result in enumerate(results):
        np.testing.assert_array_equal(result, degrade(video, "star", 3 + index))


def test_tensor_stages_run_the_same_recipe(video):
    """On a torch device (here the CPU) only the noise differs; without noise the results agree almost exactly."""
    quiet = [
        dataclasses.replace(order, noise_probs={"gaussian": 1.0}, gaussian_sigma=(0.0, 0.0))
        for order in get_config("realbasicvsr").orders
    ]
    config = dataclasses.replace(get_config("realbasicvsr"), orders=tuple(quiet), codec_scope="none")
    for seed in range(3):
        difference = np.abs(degrade(video, config, seed, device="cpu").astype(int) - degrade(video, config, seed))
        assert difference.mean() < 0.3
    noisy = degrade(video, seed=3, device="cpu")
    assert noisy.shape == video.shape
    np.testing.assert_array_equal(noisy, degrade(video, seed=3, device="cpu"))
    assert abs(psnr(noisy, video) - psnr(degrade(video, seed=3), video)) < 1.5


@pytest.mark.gpu
def test_tensor_stages_on_the_gpu(video):
    result = degrade(torch.from_numpy(video).permute(0, 3, 1, 2).cuda(), seed=3, device="cuda")
    assert result.is_cuda
    assert abs(psnr(result.cpu().permute(0, 2, 3, 1).numpy(), video) - psnr(degrade(video, seed=3), video)) < 1.5


def test_levels_get_worse():
    frames = clip(2, 96, 112, seed=5)
    quality = [np.mean([psnr(degrade(frames, level, seed), frames) for seed in range(8)]) for level in LEVELS]
    assert all(mild > worse + 0.5 for mild, worse in itertools.pairwise(quality)), quality


def test_usm_sharpens(video):
    """With everything else mild, the sharpened source shows as stronger gradients."""
    config = get_config(1)
    plain = dataclasses.replace(config, usm=False)
    steep = lambda frames: np.abs(np.diff(frames.astype(float), axis=2)).mean()  # noqa: E731
    sums = [sum(steep(degrade(video, c, seed)) for seed in range(4)) for c in (config, plain)]
    assert sums[0] > 1.02 * sums[1]


def test_codec_scopes_see_different_clips():
    still = np.stack([texture(96, 96)] * 6)
    costs = {}
    for scope in ("clip", "frame", "none"):
        config = dataclasses.replace(get_config("realbasicvsr"), codec_scope=scope, param_mode="static")
        record = ClipRecord()
        frames = list(degrade_frames(still, config, 2, record=record))
        assert len(frames) == 6
        assert len(record.encodings) == {"clip": 2, "frame": 12, "none": 0}[scope]
        costs[scope] = record.encodings
    assert [one.frames for one in costs["clip"]] == [6, 6]
    assert {one.frames for one in costs["frame"]} == {1}


def test_record_states_what_was_done(video):
    record = ClipRecord()
    list(degrade_frames(video, "level3", 9, record=record))
    values = record.to_dict()
    assert values["size"] == (96, 128)
    assert values["lq_size"] == (24, 32)
    assert len(values["parameters"]) == 3
    second = values["encodings"][1]
    assert second["encoder"] in ("libx264", "mpeg4")
    assert second["bits_per_pixel"] == pytest.approx(8 * second["bytes"] / (3 * second["size"][0] * second["size"][1]))


def test_static_repeats_the_frame_but_for_the_noise():
    """No noise, no codec: a still clip stays still with static parameters, and not with iid ones."""
    still = np.stack([texture(64, 64)] * 3)
    orders = tuple(
        dataclasses.replace(order, noise_probs={"gaussian": 1.0}, gaussian_sigma=(0.0, 0.0))
        for order in get_config("star").orders
    )
    config = dataclasses.replace(get_config("star"), orders=orders, codec_scope="none", param_mode="static")
    frames = degrade(still, config, 1)
    np.testing.assert_array_equal(frames[0], frames[2])
    frames = degrade(still, dataclasses.replace(config, param_mode="iid"), 1)
    assert (frames[0] != frames[2]).mean() > 0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda v: degrade(v[..., :2]),
            ValueError,
            r"a video must be NumPy \[T, H, W, 3\] .* got NumPy \(3, 96, 128, 2\)",
        ),
        (lambda v: degrade(torch.from_numpy(v)), ValueError, r"got torch \(3, 96, 128, 3\)"),
        (lambda v: degrade(v[:0]), ValueError, r"none of them empty, got NumPy \(0, 96, 128, 3\)"),
        (lambda v: degrade(v.astype(np.int32)), TypeError, r"uint8 or float in \[0, 255\], got int32"),
        (lambda v: degrade(v / 255), ValueError, r"got a maximum of .*; multiply by 255"),
        (lambda v: degrade(v.astype(np.float32) - 300), ValueError, r"values in \[0, 255\], got -"),
        (lambda v: degrade(np.where(v > 90, np.nan, v)), ValueError, r"values in \[0, 255\], got nan"),
        (lambda v: degrade("clip.mp4"), TypeError, r"got str"),
        (lambda v: degrade(v, seed=-1), ValueError, r"a seed must not be negative, got -1"),
        (lambda v: degrade(v, seed=[1, 2]), ValueError, r"1 clips need one seed or 1, got 2"),
        (lambda v: degrade(v, seed=1.5), TypeError, r"a seed must be an integer or a sequence of integers, got 1.5"),
        (lambda v: degrade(v, seed=None), TypeError, r"a seed must be an integer or a sequence of integers, got None"),
        (lambda v: degrade(v, seed=[1.5]), TypeError, r"seeds must be integers, got \[1.5\]"),
        (lambda v: degrade(v, ["star"]), ValueError, r"no degradation preset \['star'\]"),
        (lambda v: degrade(v, "blurry"), ValueError, r"no degradation preset 'blurry'"),
        (
            lambda v: list(degrade_frames([v[0], v[1][:50]])),
            ValueError,
            r"frame 1 is 128x50 pixels, the first one \(128, 96\)",
        ),
        (lambda v: list(degrade_frames([v[0].astype(float)])), ValueError, r"a frame must be uint8 \[H, W, 3\]"),
    ],
)
def test_bad_input(video, make, error, message):
    with pytest.raises(error, match=message):
        make(video)
