"""Draws the parameters of every frame of a clip: once, as a bounded random walk, or afresh for each frame."""

import dataclasses
import hashlib
import math

import numpy as np

from .config import SMALL_KERNEL, DegradeConfig, OrderConfig, Range

# First key of the random streams of a clip; pixel noise has streams of its own, so that it depends on nothing else.
PARAMETERS, PIXELS = 0, 1


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """The independent generator that belongs to ``seed`` and ``key``, whatever else was drawn before."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def clip_seed(seed: int, name: str) -> int:
    """The seed of one clip of a set: depends on its name, not on the order or the process that handles it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")


@dataclasses.dataclass(frozen=True)
class Blur:
    family: str
    size: int
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    angle: float = 0.0
    beta: float = 1.0
    omega: float = math.pi


@dataclasses.dataclass(frozen=True)
class Resize:
    direction: str
    factor: float
    base: str
    interpolation: str


@dataclasses.dataclass(frozen=True)
class Noise:
    kind: str
    strength: float  # Gaussian: sigma in grey levels; Poisson: scale
    gray: bool


@dataclasses.dataclass(frozen=True)
class Codec:
    """``bits``: what a frame may cost, in bits (a bit rate at 1 frame/s) or, with ``per_pixel``, in bits per pixel."""

    name: str
    bits: float
    per_pixel: bool


@dataclasses.dataclass(frozen=True)
class OrderParameters:
    blur: Blur | None
    resize: Resize
    noise: Noise
    jpeg_quality: int
    codec: Codec | None


@dataclasses.dataclass(frozen=True)
class FrameParameters:
    """Everything that is done to one frame. ``final_first``: resize to LQ size and sinc before the last compression."""

    orders: tuple[OrderParameters, ...]
    final_interpolation: str
    final_blur: Blur | None
    final_first: bool


class _Walker:
    """A value that moves by at most ``step`` at a time inside its range."""

    def __init__(self, rng: np.random.Generator, values: Range, step: float):
        self.low, self.high = values
        self.step = step
        self.value = float(rng.uniform(self.low, self.high))

    def move(self, rng: np.random.Generator) -> None:
        moved = self.value + rng.uniform(-self.step, self.step)
        self.value = float(min(max(moved, self.low), self.high))


def _choose(rng: np.random.Generator, probs: dict[str, float]) -> str:
    return str(rng.choice(list(probs), p=list(probs.values())))


class _BlurDraw:
    """One draw of the kernel family and size; its shape values can walk."""

    def __init__(self, rng: np.random.Generator, order: OrderConfig):
        self.family = _choose(rng, dict(order.kernel_probs))
        self.size = int(rng.choice(order.kernel_sizes))
        steps, walkers = order.steps, {}
        if self.family == "sinc":
            values = order.omega_small if self.size < SMALL_KERNEL else order.omega_large
            walkers["omega"] = _Walker(rng, values, steps.omega)
        else:
            walkers["sigma_x"] = _Walker(rng, order.sigma, steps.sigma)
            if self.family.endswith("aniso"):
                walkers["sigma_y"] = _Walker(rng, order.sigma, steps.sigma)
                walkers["angle"] = _Walker(rng, order.angle, steps.angle)
        for kind, ranges, step in (
            ("generalized", order.beta_generalized, steps.beta_generalized),
            ("plateau", order.beta_plateau, steps.beta_plateau),
        ):
            if self.family.startswith(kind):
                walkers["beta"] = _Walker(rng, ranges[int(rng.integers(len(ranges)))], step)
        self.walkers = walkers

    def parameters(self) -> Blur:
        values = {name: walker.value for name, walker in self.walkers.items()}
        if "sigma_x" in values:
            values.setdefault("sigma_y", values["sigma_x"])
        return Blur(self.family, self.size, **values)


class _OrderDraw:
    """One draw of everything in an order but the codec."""

    def __init__(self, rng: np.random.Generator, order: OrderConfig):
        self.base = order.resize_base
        self.blur = _BlurDraw(rng, order) if rng.random() < order.blur_prob else None
        self.direction = _choose(rng, dict(order.resize_probs))
        ranges = {"up": order.resize_up, "down": order.resize_down, "keep": (1.0, 1.0)}
        step = 0.0 if self.direction == "keep" else order.steps.resize
        self.resize = _Walker(rng, ranges[self.direction], step)
        self.interpolation = str(rng.choice(order.interpolations))
        self.noise = _choose(rng, dict(order.noise_probs))
        gaussian = self.noise == "gaussian"
        self.strength = _Walker(
            rng,
            order.gaussian_sigma if gaussian else order.poisson_scale,
            order.steps.gaussian_sigma if gaussian else order.steps.poisson_scale,
        )
        self.gray = bool(rng.random() < order.gray_prob)
        self.jpeg = _Walker(rng, order.jpeg_quality, order.steps.jpeg_quality)

    def move(self, rng: np.random.Generator) -> None:
        for walker in (*(self.blur.walkers.values() if self.blur else ()), self.resize, self.strength, self.jpeg):
            walker.move(rng)

    def parameters(self, codec: Codec | None) -> OrderParameters:
        return OrderParameters(
            blur=self.blur.parameters() if self.blur else None,
            resize=Resize(self.direction, self.resize.value, self.base, self.interpolation),
            noise=Noise(self.noise, self.strength.value, self.gray),
            jpeg_quality=round(self.jpeg.value),
            codec=codec,
        )


class _ClipDraw:
    """One draw of the whole recipe."""

    def __init__(self, rng: np.random.Generator, config: DegradeConfig):
        self.orders = [_OrderDraw(rng, order) for order in config.orders]
        self.codecs = [_draw_codec(rng, config) for _ in config.orders]
        self.final_interpolation = str(rng.choice(config.orders[-1].interpolations))
        self.final_size, self.final_omega = 0, None
        if rng.random() < config.final_sinc_prob:
            self.final_size = int(rng.choice(config.final_sizes))
            self.final_omega = _Walker(rng, config.final_omega, config.orders[-1].steps.omega)
        self.final_first = bool(rng.random() < config.final_first_prob)

    def move(self, rng: np.random.Generator) -> None:
        for order in self.orders:
            order.move(rng)
        if self.final_omega is not None:
            self.final_omega.move(rng)

    def parameters(self) -> FrameParameters:
        omega = self.final_omega
        return FrameParameters(
            orders=tuple(order.parameters(codec) for order, codec in zip(self.orders, self.codecs, strict=True)),
            final_interpolation=self.final_interpolation,
            final_blur=None if omega is None else Blur("sinc", self.final_size, omega=omega.value),
            final_first=self.final_first,
        )


def _draw_codec(rng: np.random.Generator, config: DegradeConfig) -> Codec | None:
    if config.codec_scope == "none":
        return None
    name = str(rng.choice(config.codecs))
    if config.bits_per_pixel is not None:
        return Codec(name, float(rng.uniform(*config.bits_per_pixel)), True)
    low, high = config.bit_rate
    return Codec(name, float(rng.integers(round(low), round(high), endpoint=True)), False)


class Schedule:
    """The parameters of frame 0, 1, 2, ... of one clip, drawn as they are asked for.

    ``schedule[i]`` depends on the configuration, the seed and i only. A codec that sees the whole clip, and its place
    relative to the resize to LQ size, are drawn once per clip in every mode.
    """

    def __init__(self, config: DegradeConfig, seed: int):
        self.config = config
        self._rng = random_stream(seed, PARAMETERS)
        self._draw = _ClipDraw(self._rng, config)
        self._frames = [self._draw.parameters()]

    def __getitem__(self, index: int) -> FrameParameters:
        while len(self._frames) <= index:
            self._advance()
        return self._frames[index]

    def _advance(self) -> None:
        mode = self.config.param_mode
        if mode == "walk":
            self._draw.move(self._rng)
        elif mode == "iid":
            before, self._draw = self._draw, _ClipDraw(self._rng, self.config)
            if self.config.codec_scope == "clip":
                self._draw.codecs, self._draw.final_first = before.codecs, before.final_first
        self._frames.append(self._draw.parameters())
