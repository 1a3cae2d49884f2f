"""The blur kernels of Real-ESRGAN: Gaussian, generalised Gaussian, plateau and sinc, each point-symmetric and of sum 1.

With q = x^T Sigma^-1 x, Sigma = R diag(sigma_x^2, sigma_y^2) R^T:
``exp(-q/2)`` (Gaussian), ``exp(-q^beta/2)`` (generalised), ``1/(1 + q^beta)`` (plateau) and the circular low-pass
``omega J1(omega r) / (2 pi r)`` (sinc).
Source: Real-ESRGAN (Wang et al., ICCVW 2021, arXiv 2107.10833).
"""

import math

import numpy as np
import torch

FAMILIES = (
    "iso",
    "aniso",
    "generalized_iso",
    "generalized_aniso",
    "plateau_iso",
    "plateau_aniso",
    "sinc",
)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"a kernel needs an odd size (an even one moves the picture by half a pixel), got {size}")
    axis = np.arange(size, dtype=np.float64) - size // 2
    return np.meshgrid(axis, axis)  # x, y


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def _quadratic_form(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    x, y = _grid(size)
    along = (math.cos(angle) * x + math.sin(angle) * y) / sigma_x
    across = (math.cos(angle) * y - math.sin(angle) * x) / sigma_y
    return along**2 + across**2


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0) -> np.ndarray:
    """Shapes: float32 [size, size]. Units: pixels, radians (from x towards y)."""
    return _normalised(np.exp(-0.5 * _quadratic_form(size, sigma_x, sigma_y, angle)))


def generalized_kernel(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> np.ndarray:
    """Gaussian with the exponent ``beta``: below 1 peaked, above 1 flat. Shapes, units: :func:`gaussian_kernel`."""
    return _normalised(np.exp(-0.5 * _quadratic_form(size, sigma_x, sigma_y, angle) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> np.ndarray:
    """A flat top with heavy tails. Shapes, units: :func:`gaussian_kernel`."""
    return _normalised(1 / (1 + _quadratic_form(size, sigma_x, sigma_y, angle) ** beta))


def sinc_kernel(size: int, omega: float) -> np.ndarray:
    """The ideal circular low-pass of cut-off ``omega`` (radians per pixel), cut at ``size``: ringing and overshoot."""
    x, y = _grid(size)
    radius = np.hypot(x, y)
    radius[size // 2, size // 2] = 1.0
    bessel = torch.special.bessel_j1(torch.from_numpy(omega * radius)).numpy()
    kernel = omega * bessel / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = omega**2 / (4 * math.pi)
    return _normalised(kernel)


def make_kernel(
    family: str,
    size: int,
    sigma_x: float = 1.0,
    sigma_y: float = 1.0,
    angle: float = 0.0,
    beta: float = 1.0,
    omega: float = math.pi,
) -> np.ndarray:
    """A kernel by the name of its family; values that the family does not have are ignored.

    Raises:
        ValueError: unknown family or even size.
    """
    if family == "sinc":
        return sinc_kernel(size, omega)
    if family in ("iso", "aniso"):
        return gaussian_kernel(size, sigma_x, sigma_y, angle)
    if family in ("generalized_iso", "generalized_aniso"):
        return generalized_kernel(size, sigma_x, sigma_y, angle, beta)
    if family in ("plateau_iso", "plateau_aniso"):
        return plateau_kernel(size, sigma_x, sigma_y, angle, beta)
    raise ValueError(f"no kernel family {family!r}; expected one of {', '.join(FAMILIES)}")
