"""Drawn parameters against the distributions that the recipe states; fixed seeds, bounds of about one in 10,000."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from daflow_ext.frames.degrade import LEVELS, PRESETS, DegradeConfig, get_config
from daflow_ext.frames.degrade.config import FIRST_ORDER, SECOND_ORDER, OrderConfig
from daflow_ext.frames.degrade.schedule import Schedule, clip_seed

DRAWS = 3000
IID = dataclasses.replace(get_config("realbasicvsr"), param_mode="iid", codec_scope="frame")


@pytest.fixture(scope="module")
def frames():
    schedule = Schedule(IID, seed=1)
    return [schedule[index] for index in range(DRAWS)]


def check_share(hits, total, probability):
    """A binomial count within 4 sigma."""
    sigma = math.sqrt(total * probability * (1 - probability))
    assert abs(hits - total * probability) <= 4 * sigma + 1e-9, f"{hits} of {total}, expected {probability:.4f}"


def check_uniform(values, low, high):
    """Kolmogorov-Smirnov against U(low, high)."""
    values = np.sort(np.asarray(values, dtype=float))
    assert low <= values[0]
    assert values[-1] <= high
    expected = (values - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(expected - steps[:-1]).max(), np.abs(expected - steps[1:]).max())
    assert distance < 2.3 / math.sqrt(len(values)), distance


ORDERS = pytest.mark.parametrize("order", [0, 1], ids=["first", "second"])


@ORDERS
def test_kernel_families_and_sizes(frames, order):
    blurs = [frame.orders[order].blur for frame in frames if frame.orders[order].blur is not None]
    check_share(len(blurs), DRAWS, (1.0, 0.8)[order])
    stated = {  # sinc 0.1; of the rest .45 .25 .12 .03 .12 .03
        "iso": 0.9 * 0.45,
        "aniso": 0.9 * 0.25,
        "generalized_iso": 0.9 * 0.12,
        "generalized_aniso": 0.9 * 0.03,
        "plateau_iso": 0.9 * 0.12,
        "plateau_aniso": 0.9 * 0.03,
        "sinc": 0.1,
    }
    for family, probability in stated.items():
        check_share(sum(blur.family == family for blur in blurs), len(blurs), probability)
    for size in (7, 9, 11, 13, 15, 17, 19, 21):
        check_share(sum(blur.size == size for blur in blurs), len(blurs), 1 / 8)


@ORDERS
def test_kernel_values(frames, order):
    blurs = [frame.orders[order].blur for frame in frames if frame.orders[order].blur is not None]
    high = (3.0, 1.5)[order]
    check_uniform([blur.sigma_x for blur in blurs if blur.family != "sinc"], 0.2, high)
    aniso = [blur for blur in blurs if blur.family.endswith("aniso")]
    check_uniform([blur.sigma_y for blur in aniso], 0.2, high)
    check_uniform([blur.angle for blur in aniso], -math.pi, math.pi)
    assert abs(np.corrcoef([(blur.sigma_x, blur.sigma_y) for blur in aniso], rowvar=False)[0, 1]) < 0.12
    assert all(blur.sigma_x == blur.sigma_y for blur in blurs if blur.family.endswith("_iso") or blur.family == "iso")
    sinc = [blur for blur in blurs if blur.family == "sinc"]
    check_uniform([blur.omega for blur in sinc if blur.size < 13], math.pi / 3, math.pi)
    check_uniform([blur.omega for blur in sinc if blur.size >= 13], math.pi / 5, math.pi)


@ORDERS
def test_beta(frames, order):
    blurs = [frame.orders[order].blur for frame in frames if frame.orders[order].blur is not None]
    generalised = [blur.beta for blur in blurs if blur.family.startswith("generalized")]
    check_share(sum(beta < 1 for beta in generalised), len(generalised), 0.5)
    check_uniform([beta for beta in generalised if beta < 1], 0.5, 1)
    check_uniform([beta for beta in generalised if beta >= 1], 1, 4)
    plateau = [blur.beta for blur in blurs if blur.family.startswith("plateau")]
    check_share(sum(beta == 1 for beta in plateau), len(plateau), 0.5)
    check_uniform([beta for beta in plateau if beta != 1], 1, 2)


@ORDERS
def test_resize(frames, order):
    resizes = [frame.orders[order].resize for frame in frames]
    probabilities, up, low = ((0.2, 0.7, 0.1), 1.5, 0.15) if order == 0 else ((0.3, 0.4, 0.3), 1.2, 0.3)
    for direction, probability in zip(("up", "down", "keep"), probabilities, strict=True):
        check_share(sum(resize.direction == direction for resize in resizes), DRAWS, probability)
    check_uniform([resize.factor for resize in resizes if resize.direction == "up"], 1, up)
    check_uniform([resize.factor for resize in resizes if resize.direction == "down"], low, 1)
    assert {resize.factor for resize in resizes if resize.direction == "keep"} == {1.0}
    for name in ("area", "bilinear", "bicubic"):
        check_share(sum(resize.interpolation == name for resize in resizes), DRAWS, 1 / 3)


@ORDERS
def test_noise_and_jpeg(frames, order):
    noises = [frame.orders[order].noise for frame in frames]
    gaussian = [noise.strength for noise in noises if noise.kind == "gaussian"]
    check_share(len(gaussian), DRAWS, 0.5)
    check_uniform(gaussian, 1, (30, 25)[order])
    check_uniform([noise.strength for noise in noises if noise.kind == "poisson"], 0.05, (3, 2.5)[order])
    check_share(sum(noise.gray for noise in noises), DRAWS, 0.4)
    qualities = np.array([frame.orders[order].jpeg_quality for frame in frames])
    assert qualities.min() == 30
    assert qualities.max() == 95
    for low in range(31, 95, 8):  # the end values have half the share of the others, because of rounding
        check_share(int(((qualities >= low) & (qualities < low + 8)).sum()), DRAWS, 8 / 65)


def test_codecs_and_final_stage(frames):
    for order in (0, 1):
        codecs = [frame.orders[order].codec for frame in frames]
        for name in ("libx264", "h264", "mpeg4"):
            check_share(sum(codec.name == name for codec in codecs), DRAWS, 1 / 3)
        check_uniform([codec.bits for codec in codecs], 1e4, 1e5)
        assert all(codec.bits == int(codec.bits) and not codec.per_pixel for codec in codecs)
    sinc = [frame.final_blur for frame in frames if frame.final_blur is not None]
    check_share(len(sinc), DRAWS, 0.8)
    check_uniform([blur.omega for blur in sinc], math.pi / 3, math.pi)
    check_share(sum(blur.size == 21 for blur in sinc), len(sinc), 1 / 8)
    check_share(sum(frame.final_first for frame in frames), DRAWS, 0.5)


def test_static_repeats_and_walk_takes_bounded_steps():
    static = Schedule(dataclasses.replace(IID, param_mode="static"), seed=3)
    assert all(static[index] == static[0] for index in range(20))
    largest = {"sigma": 0.0, "factor": 0.0, "quality": 0.0, "omega": 0.0}
    for seed in range(40):
        walk = Schedule(dataclasses.replace(IID, param_mode="walk"), seed=seed)
        frames = [walk[index] for index in range(60)]
        for before, after in itertools.pairwise(frames):
            assert after.final_first == before.final_first
            for order, (one, two) in enumerate(zip(before.orders, after.orders, strict=True)):
                limit = (0.015, 0.03)[order]
                assert (one.resize.direction, one.noise.kind, one.noise.gray, one.codec) == (
                    two.resize.direction,
                    two.noise.kind,
                    two.noise.gray,
                    two.codec,
                )
                assert abs(two.resize.factor - one.resize.factor) <= limit
                assert abs(two.jpeg_quality - one.jpeg_quality) <= 4  # 3 before rounding
                assert abs(two.noise.strength - one.noise.strength) <= (0.1 if one.noise.kind == "gaussian" else 0.005)
                assert 30 <= two.jpeg_quality <= 95
                largest["factor"] = max(largest["factor"], abs(two.resize.factor - one.resize.factor) / limit)
                largest["quality"] = max(largest["quality"], abs(two.jpeg_quality - one.jpeg_quality) / 3)
                if one.blur is not None:
                    assert (one.blur.family, one.blur.size) == (two.blur.family, two.blur.size)
                    assert abs(two.blur.sigma_x - one.blur.sigma_x) <= 0.02
                    assert abs(two.blur.angle - one.blur.angle) <= 0.31416
                    assert abs(two.blur.omega - one.blur.omega) <= 0.0628
                    largest["sigma"] = max(largest["sigma"], abs(two.blur.sigma_x - one.blur.sigma_x) / 0.02)
                    largest["omega"] = max(largest["omega"], abs(two.blur.omega - one.blur.omega) / 0.0628)
    assert all(value > 0.95 for value in largest.values()), largest  # the bounds are reached: it does walk


def test_walk_stays_in_its_range():
    narrow = OrderConfig(gaussian_sigma=(5.0, 5.3), noise_probs={"gaussian": 1.0})
    walk = Schedule(DegradeConfig(orders=(narrow,)), seed=0)
    values = [walk[index].orders[0].noise.strength for index in range(400)]
    assert min(values) == 5.0
    assert max(values) == 5.3


def test_iid_keeps_what_a_whole_clip_codec_needs():
    schedule = Schedule(dataclasses.replace(IID, codec_scope="clip"), seed=5)
    frames = [schedule[index] for index in range(50)]
    assert len({(frame.orders[0].codec, frame.orders[1].codec, frame.final_first) for frame in frames}) == 1
    assert len({frame.orders[0].blur for frame in frames}) > 40


def test_parameters_depend_on_seed_and_index_only():
    schedule = Schedule(IID, seed=7)
    late = schedule[30]
    assert Schedule(IID, seed=7)[30] == late
    assert schedule[30] == late
    assert Schedule(IID, seed=8)[30] != late


def test_clip_seeds_differ_by_name_and_seed():
    seeds = {clip_seed(seed, name) for seed in range(20) for name in ("", "a", "b", "a/b")}
    assert len(seeds) == 80
    assert clip_seed(0, "a") == clip_seed(0, "a")


def test_levels_split_every_range_into_fifths():
    """Level by level the strengths grow, and together the levels cover the recipe's ranges."""
    orders = [[get_config(level).orders[order] for level in LEVELS] for order in (0, 1)]
    for levels, whole in zip(orders, (FIRST_ORDER, SECOND_ORDER), strict=True):
        for name in ("sigma", "gaussian_sigma", "poisson_scale"):
            ranges = [getattr(level, name) for level in levels]
            assert ranges[0][0] == getattr(whole, name)[0]
            assert ranges[-1][1] == pytest.approx(getattr(whole, name)[1])
            assert all(a[1] == pytest.approx(b[0]) for a, b in itertools.pairwise(ranges))
        for name in ("jpeg_quality", "resize_down", "omega_small", "omega_large"):
            ranges = [getattr(level, name) for level in levels]
            assert ranges[0][1] == pytest.approx(getattr(whole, name)[1])
            assert ranges[-1][0] == getattr(whole, name)[0]
            assert all(a[0] == pytest.approx(b[1]) for a, b in itertools.pairwise(ranges))
    bits = [get_config(level).bits_per_pixel for level in LEVELS]
    assert all(a[0] > b[1] for a, b in itertools.pairwise(bits))


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_json(name):
    import json

    config = get_config(name)
    assert DegradeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_name_left_out_is_no_default():
    """A stored set must not be remade with what the default is today."""
    for place in (lambda v: v, lambda v: v["orders"][1], lambda v: v["orders"][0]["steps"]):
        values = get_config("star").to_dict()
        name = next(iter(place(values)))
        del place(values)[name]
        with pytest.raises(ValueError, match=rf"not a degradation configuration: .* lacks {name}"):
            DegradeConfig.from_dict(values)


def test_presets_are_what_they_are_named_after():
    assert (PRESETS["realbasicvsr"].param_mode, PRESETS["realbasicvsr"].codec_scope) == ("walk", "clip")
    assert (PRESETS["star"].param_mode, PRESETS["star"].codec_scope) == ("iid", "frame")
    assert [order.resize_base for order in PRESETS["star"].orders] == ["current", "lq"]  # second order: of H / 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_config("worst"), r"no degradation preset 'worst'; expected one of realbasicvsr, star"),
        (lambda: get_config(6), r"no degradation preset 6"),
        (lambda: OrderConfig(kernel_sizes=(8,)), r"kernel_sizes must be odd, got \(8,\)"),
        (lambda: OrderConfig(sigma=(3.0, 1.0)), r"sigma must be \(low, high\)"),
        (lambda: OrderConfig(jpeg_quality=(0.0, 95.0)), r"jpeg_quality .* got \(0.0, 95.0\)"),
        (lambda: OrderConfig(noise_probs={"gaussian": 0.7}), r"noise_probs must be probabilities that sum to 1"),
        (lambda: OrderConfig(kernel_probs={"box": 1.0}), r"kernel_probs knows iso, .* got box"),
        (lambda: OrderConfig(interpolations=("nearest",)), r"interpolations must be one of area, .* got 'nearest'"),
        (lambda: OrderConfig(gray_prob=1.5), r"gray_prob .* got"),
        (lambda: DegradeConfig(param_mode="random"), r"param_mode must be one of static, walk, iid, got 'random'"),
        (lambda: DegradeConfig(codec_scope="video"), r"codec_scope must be one of clip, frame, none"),
        (lambda: DegradeConfig(scale=0), r"scale must be a whole number from 1 up"),
        (lambda: DegradeConfig(scale=2.5), r"scale must be a whole number from 1 up .* got scale 2.5"),
        (lambda: DegradeConfig(final_sizes=()), r"final_sizes must be odd, got \(\)"),
        (lambda: OrderConfig(interpolations=()), r"interpolations must name at least one of area"),
        (lambda: DegradeConfig.from_dict({"preset": "star"}), r"not a degradation configuration"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
