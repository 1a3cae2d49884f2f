"""Every kernel family against its formula in another form, and against what it is for."""

import itertools
import math

import numpy as np
import pytest

from daflow_ext.frames.degrade.kernels import FAMILIES, make_kernel, sinc_kernel

SHAPES = {"sigma_x": 2.4, "sigma_y": 0.9, "angle": 0.7, "beta": 1.6, "omega": 1.9}


def _moments(kernel):
    axis = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    x, y = np.meshgrid(axis, axis)
    kernel = kernel.astype(np.float64)
    return (kernel * x).sum(), (kernel * y).sum(), [(kernel * a * b).sum() for a, b in ((x, x), (x, y), (y, y))]


@pytest.mark.parametrize(("family", "size"), list(itertools.product(FAMILIES, (7, 13, 21))))
def test_sum_and_point_symmetry(family, size):
    kernel = make_kernel(family, size, **SHAPES)
    assert kernel.shape == (size, size)
    assert kernel.dtype == np.float32
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(kernel, kernel[::-1, ::-1])  # so the centre of mass is the centre, exactly
    assert np.allclose(_moments(kernel)[:2], 0, atol=1e-6)


def test_gaussian_has_the_covariance_asked_for():
    kernel = make_kernel("aniso", 31, sigma_x=3.0, sigma_y=1.2, angle=0.6)
    c, s = math.cos(0.6), math.sin(0.6)
    expected = [9 * c * c + 1.44 * s * s, (9 - 1.44) * c * s, 9 * s * s + 1.44 * c * c]
    np.testing.assert_allclose(_moments(kernel)[2], expected, rtol=2e-3)


def test_generalised_and_plateau_values():
    """Ratios to the centre, computed by hand on the axes of an unrotated kernel."""
    kernel = make_kernel("generalized_aniso", 9, sigma_x=2.0, sigma_y=1.0, angle=0.0, beta=2.0)
    assert kernel[4, 6] / kernel[4, 4] == pytest.approx(math.exp(-0.5), rel=1e-5)  # q = 1
    assert kernel[6, 4] / kernel[4, 4] == pytest.approx(math.exp(-8.0), rel=1e-5)  # q = 4, q^2 / 2 = 8
    kernel = make_kernel("plateau_iso", 9, sigma_x=2.0, sigma_y=2.0, beta=1.5)
    assert kernel[4, 6] / kernel[4, 4] == pytest.approx(0.5, rel=1e-5)
    assert kernel[8, 4] / kernel[4, 4] == pytest.approx(1 / (1 + 4**1.5), rel=1e-5)


def test_beta_one_is_the_gaussian():
    same = {"sigma_x": 1.7, "sigma_y": 1.1, "angle": 0.3}
    np.testing.assert_allclose(
        make_kernel("generalized_aniso", 15, beta=1.0, **same), make_kernel("aniso", 15, **same), rtol=1e-5
    )


@pytest.mark.parametrize("omega", [math.pi / 3, 2.0, math.pi])
def test_sinc_is_the_transform_of_a_disk(omega):
    """The kernel is the inverse Fourier transform of a disk of radius omega, here integrated numerically."""
    size = 21
    radius = (np.arange(4000) + 0.5) / 4000 * omega
    angle = (np.arange(64) + 0.5) / 64 * 2 * math.pi
    u, v = radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle)
    points = [(0, 0), (1, 0), (3, 2), (5, 5), (10, 10)]
    weight = radius[:, None] * (omega / 4000) * (2 * math.pi / 64) / (2 * math.pi) ** 2
    expected = [float((np.cos(u * x + v * y) * weight).sum()) for x, y in points]
    kernel = sinc_kernel(size, omega).astype(np.float64)
    scale = kernel[10, 10] / expected[0]  # the kernel is normalised to sum 1
    assert scale == pytest.approx(1, abs=0.2)
    np.testing.assert_allclose([kernel[10 + y, 10 + x] / scale for x, y in points], expected, atol=2e-5)


def test_sinc_passes_low_and_stops_high_frequencies():
    kernel = sinc_kernel(21, 1.2).astype(np.float64)
    x = np.arange(-10, 11)
    gain = lambda f: float((kernel * np.cos(f * x)[None]).sum())  # noqa: E731
    assert gain(0.5) == pytest.approx(1, abs=0.15)
    assert abs(gain(2.2)) < 0.1


@pytest.mark.parametrize("size", [0, 2, 8])
def test_even_sizes_are_refused(size):
    with pytest.raises(ValueError, match="odd size"):
        make_kernel("iso", size)


def test_unknown_family():
    with pytest.raises(ValueError, match=r"no kernel family 'box'; expected one of iso"):
        make_kernel("box", 7)
