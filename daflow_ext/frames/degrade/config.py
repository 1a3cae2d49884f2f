"""What a degradation is made of: the second-order recipe as data, its presets and its five severity levels."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from .kernels import FAMILIES

Range = tuple[float, float]

PARAM_MODES = ("static", "walk", "iid")
CODEC_SCOPES = ("clip", "frame", "none")
INTERPOLATIONS = ("area", "bilinear", "bicubic")
DIRECTIONS = ("up", "down", "keep")
NOISES = ("gaussian", "poisson")
RESIZE_BASES = ("current", "lq")
LEVELS = (1, 2, 3, 4, 5)

SIZES = tuple(range(7, 22, 2))
SMALL_KERNEL = 13  # smaller sinc kernels take a narrower range of cut-offs
KERNEL_PROBS = {
    "iso": 0.405,
    "aniso": 0.225,
    "generalized_iso": 0.108,
    "generalized_aniso": 0.027,
    "plateau_iso": 0.108,
    "plateau_aniso": 0.027,
    "sinc": 0.1,
}


def _check_range(owner: str, name: str, values: Range, low: float, high: float) -> None:
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        raise ValueError(f"{owner}: {name} must be (low, high) with {low:g} <= low <= high <= {high:g}, got {values}")


def _check_probs(owner: str, name: str, values: Mapping[str, float], known: tuple[str, ...]) -> None:
    if not set(values) <= set(known):
        raise ValueError(f"{owner}: {name} knows {', '.join(known)}, got {', '.join(sorted(set(values) - set(known)))}")
    if any(p < 0 for p in values.values()) or abs(sum(values.values()) - 1) > 1e-6:
        raise ValueError(f"{owner}: {name} must be probabilities that sum to 1, got {dict(values)}")


def _check_one_of(owner: str, name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(known)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class WalkSteps:
    """Largest change of each value per frame when ``param_mode="walk"``; uniform, clipped to the value's range."""

    sigma: float = 0.02
    angle: float = 0.31416
    beta_generalized: float = 0.05
    beta_plateau: float = 0.1
    omega: float = 0.0628
    resize: float = 0.015
    gaussian_sigma: float = 0.1
    poisson_scale: float = 0.005
    jpeg_quality: float = 3.0


@dataclasses.dataclass(frozen=True)
class OrderConfig:
    """Blur, resize, noise and JPEG of one order; the defaults are the first order of Real-ESRGAN.

    Ranges are uniform. Units: kernel sigma in pixels of the frame it blurs, angles and ``omega`` in radians,
    ``gaussian_sigma`` in grey levels of 255, resize factors per side. Kernel sizes and families, directions,
    interpolations, noises are drawn with the probabilities given.
    """

    blur_prob: float = 1.0
    kernel_sizes: tuple[int, ...] = SIZES
    kernel_probs: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(KERNEL_PROBS))
    sigma: Range = (0.2, 3.0)
    angle: Range = (-math.pi, math.pi)
    beta_generalized: tuple[Range, Range] = ((0.5, 1.0), (1.0, 4.0))  # either, half the time each
    beta_plateau: tuple[Range, Range] = ((1.0, 1.0), (1.0, 2.0))
    omega_small: Range = (math.pi / 3, math.pi)  # kernels below 13 pixels
    omega_large: Range = (math.pi / 5, math.pi)
    resize_probs: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"up": 0.2, "down": 0.7, "keep": 0.1})
    resize_up: Range = (1.0, 1.5)
    resize_down: Range = (0.15, 1.0)
    resize_base: str = "current"  # the factor is relative to the current size, or to the LQ size
    interpolations: tuple[str, ...] = INTERPOLATIONS
    noise_probs: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"gaussian": 0.5, "poisson": 0.5})
    gaussian_sigma: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    gray_prob: float = 0.4
    jpeg_quality: Range = (30.0, 95.0)
    steps: WalkSteps = WalkSteps()

    def __post_init__(self) -> None:
        for name, values, low, high in (
            ("sigma", self.sigma, 1e-3, 100.0),
            ("angle", self.angle, -2 * math.pi, 2 * math.pi),
            ("omega_small", self.omega_small, 1e-3, math.pi),
            ("omega_large", self.omega_large, 1e-3, math.pi),
            ("resize_up", self.resize_up, 1.0, 8.0),
            ("resize_down", self.resize_down, 1e-3, 1.0),
            ("gaussian_sigma", self.gaussian_sigma, 0.0, 255.0),
            ("poisson_scale", self.poisson_scale, 0.0, 100.0),
            ("jpeg_quality", self.jpeg_quality, 1.0, 100.0),
            ("blur_prob and 1", (self.blur_prob, 1.0), 0.0, 1.0),
            ("gray_prob and 1", (self.gray_prob, 1.0), 0.0, 1.0),
            *(("beta_generalized", part, 0.1, 10.0) for part in self.beta_generalized),
            *(("beta_plateau", part, 0.1, 10.0) for part in self.beta_plateau),
        ):
            _check_range("OrderConfig", name, values, low, high)
        _check_probs("OrderConfig", "kernel_probs", self.kernel_probs, FAMILIES)
        _check_probs("OrderConfig", "resize_probs", self.resize_probs, DIRECTIONS)
        _check_probs("OrderConfig", "noise_probs", self.noise_probs, NOISES)
        _check_one_of("OrderConfig", "resize_base", self.resize_base, RESIZE_BASES)
        if not self.interpolations:
            raise ValueError(f"OrderConfig: interpolations must name at least one of {', '.join(INTERPOLATIONS)}")
        for name in self.interpolations:
            _check_one_of("OrderConfig", "interpolations", name, INTERPOLATIONS)
        if not self.kernel_sizes or any(size % 2 == 0 or size < 1 for size in self.kernel_sizes):
            # an even kernel has no centre pixel, so it moves the picture by half a pixel
            raise ValueError(f"OrderConfig: kernel_sizes must be odd, got {self.kernel_sizes}")


FIRST_ORDER = OrderConfig()
SECOND_ORDER = OrderConfig(
    blur_prob=0.8,
    sigma=(0.2, 1.5),
    resize_probs={"up": 0.3, "down": 0.4, "keep": 0.3},
    resize_up=(1.0, 1.2),
    resize_down=(0.3, 1.0),
    gaussian_sigma=(1.0, 25.0),
    poisson_scale=(0.05, 2.5),
    steps=WalkSteps(resize=0.03),
)


@dataclasses.dataclass(frozen=True)
class DegradeConfig:
    """The whole recipe. :func:`get_config` gives the named ones, ``dataclasses.replace`` changes single values.

    Attributes:
        orders: the degradations, one after the other.
        param_mode: how values follow each other over a clip: ``static`` (one draw per clip), ``walk`` (one draw, then a
            bounded random walk of the continuous values) or ``iid`` (a fresh draw per frame).
        codec_scope: what the video encoder sees at once: the whole ``clip``, one ``frame``, or ``none`` (no encoder).
        codecs, bit_rate: drawn uniformly per encoding; bit/s at a declared 1 frame/s, so bits per frame.
        bits_per_pixel: takes the place of ``bit_rate`` where given; means the same strength at every frame size.
        usm: sharpen the source with an unsharp mask first, as Real-ESRGAN does.
        scale: how many times smaller than the source the LQ frame is, per side.
        final_sinc_prob, final_sizes, final_omega: the sinc filter after the resize to LQ size.
        final_first_prob: how often [resize to LQ size, sinc] comes before the last compression instead of after it.
    """

    name: str = "realbasicvsr"
    orders: tuple[OrderConfig, ...] = (FIRST_ORDER, SECOND_ORDER)
    param_mode: str = "walk"
    codec_scope: str = "clip"
    codecs: tuple[str, ...] = ("libx264", "h264", "mpeg4")
    bit_rate: Range = (1e4, 1e5)
    bits_per_pixel: Range | None = None
    usm: bool = True
    scale: int = 4
    final_sinc_prob: float = 0.8
    final_sizes: tuple[int, ...] = SIZES
    final_omega: Range = (math.pi / 3, math.pi)
    final_first_prob: float = 0.5

    def __post_init__(self) -> None:
        _check_one_of("DegradeConfig", "param_mode", self.param_mode, PARAM_MODES)
        _check_one_of("DegradeConfig", "codec_scope", self.codec_scope, CODEC_SCOPES)
        _check_range("DegradeConfig", "bit_rate", self.bit_rate, 1.0, 1e12)
        _check_range("DegradeConfig", "final_omega", self.final_omega, 1e-3, math.pi)
        if self.bits_per_pixel is not None:
            _check_range("DegradeConfig", "bits_per_pixel", self.bits_per_pixel, 1e-4, 100.0)
        for name in ("final_sinc_prob", "final_first_prob"):
            _check_range("DegradeConfig", f"{name} and 1", (getattr(self, name), 1.0), 0.0, 1.0)
        if not self.final_sizes or any(size % 2 == 0 or size < 1 for size in self.final_sizes):
            raise ValueError(f"DegradeConfig: final_sizes must be odd, got {self.final_sizes}")
        if not isinstance(self.scale, numbers.Integral) or self.scale < 1 or not self.orders or not self.codecs:
            raise ValueError(
                "DegradeConfig: scale must be a whole number from 1 up and orders, codecs not empty, "
                f"got scale {self.scale}, {len(self.orders)} orders, codecs {self.codecs}"
            )

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "DegradeConfig":
        """The inverse of :meth:`to_dict`, also after a trip through JSON.

        Raises:
            ValueError: unknown or missing names, or values out of range.
        """
        try:
            orders = tuple(
                _build(OrderConfig, order, steps=_build(WalkSteps, order["steps"])) for order in values["orders"]
            )
            return _build(cls, values, orders=orders)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a degradation configuration: {error}") from error


def _build(cls: type, values: Mapping, **built: Any) -> Any:
    """``cls`` from plain values, all of them: a name left out must not become today's default."""
    missing = {field.name for field in dataclasses.fields(cls)} - set(values)
    if missing:
        raise KeyError(f"{cls.__name__} lacks {', '.join(sorted(missing))}")
    return cls(**{**{name: _tuple(value) for name, value in values.items()}, **built})


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, (list, tuple)) else value


def _fifth(values: Range, level: int, *, harsh: str = "high") -> Range:
    """The ``level``-th fifth of a range, counted from its mild end."""
    low, high = values
    width = (high - low) / len(LEVELS)
    first = level - 1 if harsh == "high" else len(LEVELS) - level
    return low + first * width, low + (first + 1) * width


def _order_at(order: OrderConfig, level: int) -> OrderConfig:
    return dataclasses.replace(
        order,
        sigma=_fifth(order.sigma, level),
        omega_small=_fifth(order.omega_small, level, harsh="low"),
        omega_large=_fifth(order.omega_large, level, harsh="low"),
        resize_probs={"down": 1.0},
        resize_down=_fifth(order.resize_down, level, harsh="low"),
        resize_base="lq" if order is SECOND_ORDER else "current",
        gaussian_sigma=_fifth(order.gaussian_sigma, level),
        poisson_scale=_fifth(order.poisson_scale, level),
        jpeg_quality=_fifth(order.jpeg_quality, level, harsh="low"),
    )


def _level(level: int) -> DegradeConfig:
    """Every strength from the ``level``-th fifth of the recipe's range; always a reduction, bits by the pixel."""
    bits = 2.0 * 0.5 ** (level - 1)  # level 1: 2 bit per LQ pixel, halved at each step
    return DegradeConfig(
        name=f"level{level}",
        orders=tuple(_order_at(order, level) for order in (FIRST_ORDER, SECOND_ORDER)),
        bits_per_pixel=(0.75 * bits, bits),
        final_omega=_fifth((math.pi / 3, math.pi), level, harsh="low"),
    )


PRESETS: dict[str, DegradeConfig] = {
    "realbasicvsr": DegradeConfig(),
    "star": DegradeConfig(
        name="star",
        orders=(FIRST_ORDER, dataclasses.replace(SECOND_ORDER, resize_base="lq")),
        param_mode="iid",
        codec_scope="frame",
    ),
    **{f"level{level}": _level(level) for level in LEVELS},
}


def get_config(which: "str | int | DegradeConfig") -> DegradeConfig:
    """A preset by name, a severity level by number (1 mild .. 5 worst), or the configuration itself.

    Raises:
        ValueError: no such preset or level.
    """
    if isinstance(which, DegradeConfig):
        return which
    name = f"level{which}" if isinstance(which, numbers.Integral) else which
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"no degradation preset {which!r}; expected one of {', '.join(PRESETS)}, or a level 1..5")
    return PRESETS[name]
