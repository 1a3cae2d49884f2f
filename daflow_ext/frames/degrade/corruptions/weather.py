"""Fog, frost, rain, snow and spatter, all made from random fields: no image files."""

import math

import cv2
import numpy as np

from ..resample import Size
from ..schedule import PARAMETERS, random_stream
from .registry import Filter, at, corruption, unit
from .texture import drifted, filtered_periodic, fractal, line_kernel, normalised, smooth

WATER = np.array([0.69, 0.93, 0.93], np.float32)
MUD = np.array([0.25, 0.16, 0.08], np.float32)
ICE = np.array([0.82, 0.92, 1.0], np.float32)


@corruption("weather")
def fog(size: Size, severity: int, seed: int) -> Filter:
    """Banks of fog that drift slowly sideways."""
    strength, decay = at(severity, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)))
    rng = random_stream(seed, PARAMETERS)
    # diamond-square whose amplitude falls by `decay` per octave has this spectrum
    bank = fractal(size, rng, 1 + math.log2(decay))
    angle, speed = rng.uniform(-0.4, 0.4), 1.5 * unit(size)

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        veil = drifted(bank, index * speed * math.cos(angle), index * speed * math.sin(angle))
        peak = max(float(frame.max()), 1e-3)
        return (frame + strength * veil[..., None]) * (peak / (peak + strength))

    return apply


@corruption("weather")
def frost(size: Size, severity: int, seed: int) -> Filter:
    """Ice crystals on the lens, denser towards the edges, fixed in time."""
    kept, added = at(severity, ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)))
    rng = random_stream(seed, PARAMETERS)
    # the zero lines of random fields look like needles; two scales make branches
    needles = sum(
        weight * np.exp(-np.abs(smooth(size, rng, width * unit(size))) / 0.25) for width, weight in ((9, 1.0), (3, 0.7))
    )
    y, x = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    edge = np.clip(0.25 + 0.75 * np.maximum(np.abs(x), np.abs(y)) + 0.5 * (fractal(size, rng, 1.8) - 0.5), 0, 1)
    layer = (normalised(needles) * edge)[..., None].astype(np.float32) * ICE
    return lambda frame, index: kept * frame + added * layer


def _falling(layer: np.ndarray, angle: float, speed: float, index: int) -> np.ndarray:
    """A periodic layer after ``index`` frames at ``speed`` pixels a frame along ``angle`` (from x towards y)."""
    steps = (round(index * speed * math.sin(angle)), round(index * speed * math.cos(angle)))
    return np.roll(layer, steps, axis=(0, 1))


def _flakes(size: Size, rng: np.random.Generator, zoom: float, threshold: float, streak: np.ndarray) -> np.ndarray:
    """Flakes about ``zoom`` pixels wide, where a normal field passes ``threshold``. Shapes: float32 [H, W]."""
    coarse = tuple(max(round(side / zoom), 2) for side in size)
    grains = cv2.resize(rng.standard_normal(coarse, dtype=np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return filtered_periodic(
        np.where(grains > threshold, np.clip(grains * 0.3 + 0.4, 0, 1), 0).astype(np.float32), streak
    )


@corruption("weather")
def snow(size: Size, severity: int, seed: int) -> Filter:
    """Falling flakes at two distances, before a whitened scene."""
    threshold, zoom, radius, sigma, kept = at(
        severity,
        (
            (1.9, 3, 10, 4, 0.8),
            (1.7, 3, 12, 4, 0.7),
            (1.5, 4, 12, 8, 0.7),
            (1.35, 4.5, 12, 8, 0.65),
            (1.2, 3, 12, 12, 0.55),
        ),
    )
    rng, px = random_stream(seed, PARAMETERS), unit(size)
    angle = math.radians(rng.uniform(60, 120))
    streak = line_kernel(radius * px / 2, sigma * px / 2, angle)
    layers = [(_flakes(size, rng, max(zoom * px * near, 1), threshold, streak), 14 * px * near) for near in (0.7, 1.6)]

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
        white = kept * frame + (1 - kept) * np.maximum(frame, gray * 1.5 + 0.5)
        return white + sum((_falling(layer, angle, speed, index) for layer, speed in layers), np.float32(0))[..., None]

    return apply


@corruption("weather")
def rain(size: Size, severity: int, seed: int) -> Filter:
    """Falling streaks at two distances, before a dimmed scene."""
    share, length, bright, kept = at(
        severity,
        (
            (0.002, 14, 0.4, 0.95),
            (0.003, 18, 0.45, 0.9),
            (0.005, 22, 0.5, 0.85),
            (0.008, 26, 0.55, 0.8),
            (0.012, 32, 0.6, 0.75),
        ),
    )
    rng, px = random_stream(seed, PARAMETERS), unit(size)
    angle = math.radians(rng.uniform(75, 105))
    layers = []
    for near in (0.6, 1.2):
        streak = line_kernel(max(length * px * near / 2, 1), max(length * px * near / 3, 1), angle)
        drops = (rng.random(size) < share / near / max(px, 0.25)).astype(np.float32)
        layers.append((np.minimum(filtered_periodic(drops, streak) / streak.max(), 1), 2 * length * px * near))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        veil = sum((_falling(layer, angle, speed, index) for layer, speed in layers), np.float32(0))[..., None]
        return kept * frame + bright * np.minimum(veil, 1) * (1 - kept * frame)

    return apply


@corruption("weather")
def spatter(size: Size, severity: int, seed: int) -> Filter:
    """Splashes on the lens, fixed in time: clear drops at severities 1 to 3, mud at 4 and 5."""
    threshold, width, opacity, mud = at(
        severity,
        ((1.9, 7, 0.6, False), (1.6, 6, 0.65, False), (1.35, 5, 0.7, False), (1.2, 6, 0.9, True), (0.9, 6, 0.95, True)),
    )
    field = smooth(size, random_stream(seed, PARAMETERS), width * unit(size))
    cover = np.clip((field - threshold) / 0.15, 0, 1)[..., None] * np.float32(opacity)
    # drops shine where their surface leans towards the light
    shade = np.clip(0.75 + 0.5 * normalised(cv2.Sobel(field, cv2.CV_32F, 1, 1, ksize=3)), 0, 1)[..., None]
    color = MUD if mud else WATER * shade
    return lambda frame, index: frame * (1 - cover) + color * cover
