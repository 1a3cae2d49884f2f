"""What single stages do to pixels: noise statistics, the unsharp mask, the codecs, and the PyTorch twins."""

import math

import cv2
import numpy as np
import pytest
import torch
from degrade_scenes import clip, texture

from daflow_ext.frames.degrade import codec as video
from daflow_ext.frames.degrade import stages, tensor_stages
from daflow_ext.frames.degrade.kernels import make_kernel
from daflow_ext.frames.degrade.resample import keys_weights
from daflow_ext.frames.degrade.schedule import Noise


def tensor(frame):
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)


def array(frame):
    return frame.permute(1, 2, 0).numpy()


BACKENDS = pytest.mark.parametrize(
    "add_noise",
    [
        stages.add_noise,
        lambda frame, noise, seed, key: array(tensor_stages.add_noise(tensor(frame), noise, seed, key)),
    ],
    ids=["numpy", "torch"],
)


def test_keys_weights_by_hand():
    """Twice as many pixels: taps at a quarter and three quarters, from the polynomial with a = -1/2."""
    indices, weights = keys_weights(5, 10)
    np.testing.assert_array_equal(indices[4], [0, 1, 2, 3])  # centre 4.5 / 2 - 0.5 = 1.75
    expected = [-0.0234375, 0.2265625, 0.8671875, -0.0703125]
    np.testing.assert_allclose(weights[4], expected, rtol=1e-6)
    np.testing.assert_allclose(weights[5], expected[::-1], rtol=1e-6)
    np.testing.assert_array_equal(indices[0], [0, 0, 0, 1])  # edges repeated


def test_area_of_whole_factors_is_the_block_mean():
    frame = texture(24, 36).astype(np.float32)
    blocks = frame.reshape(6, 4, 9, 4, 3).mean(axis=(1, 3))
    # 4 bilinear samples per cell sit on the pixel centres
    np.testing.assert_allclose(stages.resize(frame, (6, 9), "area"), blocks, atol=1e-3)


@BACKENDS
@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise(add_noise, gray):
    frame = np.full((128, 128, 3), 127.0, np.float32)
    added = add_noise(frame, Noise("gaussian", 12.0, gray), 1, (1, 0, 0)) - frame
    assert added.std() == pytest.approx(12.0, rel=0.02)
    assert abs(added.mean()) < 0.3
    assert float((added**3).mean()) / 12**3 == pytest.approx(0, abs=0.1)
    assert float((added**4).mean()) / 12**4 == pytest.approx(3, abs=0.2)
    equal = np.ptp(added, axis=2).max()
    assert equal < 1e-4 if gray else equal > 5


@BACKENDS
@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_variance_follows_the_brightness(add_noise, gray):
    """Variance of s * (Poisson(x v) / v - x) is s^2 x / v; 150 grey levels in use make v = 256."""
    looked_at, width = (60, 120, 180), 120
    levels = np.arange(50, 200)
    ramp = np.repeat(levels, np.where(np.isin(levels, looked_at), width, 2)).astype(np.float32)
    frame = np.broadcast_to(ramp[None, :, None], (60, len(ramp), 3)).copy()
    added = add_noise(frame, Noise("poisson", 1.5, gray), 2, (1, 0, 0)) - frame
    for level in looked_at:
        part = added[:, ramp == level]
        expected = 255 * 1.5 * math.sqrt(level / 255 / 256)
        assert part.std() == pytest.approx(expected, rel=0.05)
        assert abs(part.mean()) < 0.6
        # skewness of a Poisson count, 1 / sqrt(expected count)
        assert float((part**3).mean()) / expected**3 == pytest.approx(1 / math.sqrt(level * 256 / 255), abs=0.1)
    equal = np.ptp(added, axis=2).max()
    assert equal < 1e-3 if gray else equal > 5


def test_poisson_peak_counts_grey_levels():
    assert stages.poisson_peak(np.full((4, 4), 7, np.uint8)) == 1
    assert stages.poisson_peak(np.arange(5, dtype=np.uint8)) == 8
    assert stages.poisson_peak(np.arange(256).astype(np.uint8)) == 256


def test_noise_depends_on_its_key_only():
    frame = np.full((32, 32, 3), 100.0, np.float32)
    noise = Noise("gaussian", 10.0, False)
    first = stages.add_noise(frame, noise, 5, (1, 0, 3))
    np.testing.assert_array_equal(first, stages.add_noise(frame, noise, 5, (1, 0, 3)))
    for other in ((5, (1, 1, 3)), (5, (1, 0, 4)), (6, (1, 0, 3))):
        changed = stages.add_noise(frame, noise, *other) - frame
        assert abs(np.corrcoef(changed.ravel(), (first - frame).ravel())[0, 1]) < 0.1


def test_unsharp_mask_sharpens_edges_and_leaves_flat_parts():
    step = np.full((120, 160, 3), 80.0, np.float32)
    step[:, 80:] = 180.0
    sharp = stages.unsharp_mask(step)
    assert sharp[60, 79, 0] < 70  # overshoot on both sides
    assert sharp[60, 80, 0] > 190
    assert np.abs(sharp - step)[:, :20].max() < 0.5  # beyond the reach of two blurs of sigma 8
    faint = np.full((120, 160, 3), 100.0, np.float32)
    faint[:, 80:] = 115.0  # residual 7.5: below the threshold of 10
    np.testing.assert_array_equal(stages.unsharp_mask(faint), faint)


def test_jpeg_loses_more_at_lower_quality():
    picture = texture(96, 130)
    errors = [np.abs(stages.jpeg(picture, quality).astype(int) - picture).mean() for quality in (95, 70, 50, 30)]
    assert errors == sorted(errors)
    assert errors[0] < 3


def test_colours_are_not_swapped():
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    for result in (
        stages.jpeg(red, 90),
        video.from_yuv420(video.to_yuv420(red)),
        next(video.compress([red], 1e5, False, video.Encoded("libx264"))),
    ):
        assert np.abs(result.astype(int) - red).max() <= 4


def test_yuv_is_what_players_expect():
    """Our planes are BT.601 in video range: FFmpeg's own conversion reads the colours back."""
    import av

    picture = cv2.resize(texture(8, 8), (64, 64), interpolation=cv2.INTER_CUBIC)
    frame = av.VideoFrame.from_ndarray(video.to_yuv420(picture), format="yuv420p")
    assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - picture).mean() < 2.5


@pytest.mark.parametrize("name", ["libx264", "h264", "mpeg4"])
@pytest.mark.parametrize("size", [(64, 64), (61, 45), (9, 12)], ids=str)
def test_codec_keeps_size_and_count(size, name):
    record = video.Encoded(name)
    frames = clip(5, *size)
    result = np.stack(list(video.compress(frames, 2e4, False, record)))
    assert result.shape == frames.shape
    assert np.abs(result.astype(int) - frames).mean() < 25
    assert record.frames == 5
    assert record.size == size
    assert record.bytes > 0
    assert record.bits_per_pixel == pytest.approx(8 * record.bytes / (5 * size[0] * size[1]))


def test_codec_spends_what_it_is_given():
    """At two sizes, within the looseness of one-pass rate control; more bits, less error."""
    spent, errors = {}, {}
    for height in (48, 112):
        frames = clip(30, height, 2 * height)
        noisy = np.clip(frames + np.random.default_rng(0).normal(0, 20, frames.shape), 0, 255).astype(np.uint8)
        for bits in (0.3, 1.2):
            record = video.Encoded("libx264")
            result = np.stack(list(video.compress(noisy, bits, True, record)))
            spent[height, bits] = record.bits_per_pixel
            errors[height, bits] = np.abs(result.astype(int) - noisy).mean()
    for (_, bits), value in spent.items():
        assert bits / 2 < value < 2 * bits
    for height in (48, 112):
        assert errors[height, 1.2] < 0.95 * errors[height, 0.3]  # most of the picture is noise


def test_codec_uses_the_clip():
    """A still clip costs far less per frame than single pictures: frames are predicted from others."""
    still = [texture(96, 96)] * 10
    whole, single = video.Encoded("libx264"), video.Encoded("libx264")
    list(video.compress(still, 6.0, True, whole))
    list(video.compress(still[:1], 6.0, True, single))
    assert whole.bytes < 4 * single.bytes


def test_frames_of_other_sizes_take_the_first_size():
    frames = [texture(40, 60), texture(44, 66), texture(37, 55)]
    result = list(video.compress(frames, 1e5, False, video.Encoded("libx264")))
    assert [frame.shape for frame in result] == [(40, 60, 3)] * 3


@pytest.mark.parametrize("name", ["libx264", "mpeg4"])
def test_codec_repeats_itself(name):
    """x264's default rate control gives other bits in about one of three runs of this clip."""
    frames = [texture(400, 400)[i : 96 + i, i : 96 + i] for i in range(3)]
    noisy = [np.clip(f + np.random.default_rng(1).normal(0, 9, f.shape), 0, 255).astype(np.uint8) for f in frames]
    results = {
        b"".join(frame.tobytes() for frame in video.compress(noisy, 3e4, False, video.Encoded(name))) for _ in range(25)
    }
    assert len(results) == 1


def test_missing_encoder_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"PyAV .* has no video encoder 'h266'; install the `av` wheel"):
        next(video.compress([texture(16, 16)], 1e4, False, video.Encoded("h266")))


@pytest.mark.parametrize("size", [(64, 80), (33, 47), (9, 14)], ids=str)
def test_tensor_filters_equal_the_numpy_ones(size):
    frame = texture(*size).astype(np.float32)
    for taps in (7, 21):  # 21 taps reach beyond a 9-pixel frame more than once
        kernel = make_kernel("aniso", taps, sigma_x=2.5, sigma_y=0.8, angle=0.5)
        np.testing.assert_allclose(
            array(tensor_stages.blur(tensor(frame), kernel)), stages.blur(frame, kernel), atol=2e-3
        )
    for target in ((16, 21), (size[0], size[1] * 2), (size[0] * 4, size[1] + 1)):
        for interpolation in ("area", "bilinear", "bicubic"):
            np.testing.assert_allclose(
                array(tensor_stages.resize(tensor(frame), target, interpolation)),
                stages.resize(frame, target, interpolation),
                atol=2e-2,  # OpenCV's bilinear weights have float32 positions
            )


def test_tensor_unsharp_mask_equals_the_numpy_one():
    frame = texture(90, 101).astype(np.float32)
    difference = np.abs(array(tensor_stages.unsharp_mask(tensor(frame))) - stages.unsharp_mask(frame))
    # a residual at the threshold may fall on either side of it
    assert np.quantile(difference, 0.999) < 0.02
    np.testing.assert_array_equal(tensor_stages.to_uint8(tensor(frame)), stages.to_uint8(frame))
