"""The scene of the demo clip: textured shapes over a moving ground, its true flow, and the degraded video made of it.

Every layer is a texture that an affine motion A(t) carries, so the true flow of a pixel p that shows layer k is
A_k(t + 1) A_k(t)^-1 p - p, exactly. ``python -m daflow_ext.cli._demo_scene`` writes assets/demo_clip.mp4 anew.
"""

import math
import pathlib
import sys
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

CLIP = pathlib.Path(__file__).resolve().parents[1] / "assets" / "demo_clip.mp4"
WIDTH, HEIGHT, FRAMES, FPS = 384, 224, 20, 12
TEXTURE = 256  # side of a shape's texture; the ground's is larger
SHUTTER = np.linspace(-0.25, 0.25, 5)  # times, in frames, that one exposure averages
SUPERSAMPLING = 2
NOISE = 7.0  # standard deviation of the sensor noise, in grey levels
QUALITY = 24  # constant rate factor of H.264: compression stays visible


@dataclass
class Layer:
    """A texture [h, w, 3] with its shape [h, w] in 0..1 and its motion: position, turn and size over time."""

    texture: np.ndarray
    shape: np.ndarray
    start: tuple[float, float]
    speed: tuple[float, float]
    turn: float = 0.0  # radians per frame
    size: float = 1.0
    growth: float = 1.0  # factor per frame
    sway: tuple[float, float] = (0.0, 0.0)  # amplitude in pixels of a slow swing

    def motion(self, t: float) -> np.ndarray:
        """Texture pixel to image pixel, [3, 3]."""
        height, width = self.shape.shape
        scale = self.size * self.growth**t
        cos, sin = scale * math.cos(self.turn * t), scale * math.sin(self.turn * t)
        swing = math.sin(2 * math.pi * t / FRAMES)
        x = self.start[0] + self.speed[0] * t + self.sway[0] * swing
        y = self.start[1] + self.speed[1] * t + self.sway[1] * swing
        to_image = np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])
        return to_image @ np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])


def _clouds(rng: np.random.Generator, height: int, width: int, color: tuple, contrast: float) -> np.ndarray:
    """Noise of all scales around a colour."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 7):
        cells = 2**octave * max(1, width // 256)
        grid = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        grid = 0.7 * grid.mean(axis=2, keepdims=True) + 0.3 * grid  # mostly grey
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / octave**0.7
    return np.clip(np.array(color, np.float32) + contrast * total, 0, 255)


def _tiles(texture: np.ndarray, side: int, strength: float) -> np.ndarray:
    """The texture with every other tile darkened."""
    y, x = np.indices(texture.shape[:2]) // side
    return texture * np.where((x + y) % 2 == 0, 1.0, strength)[..., None].astype(np.float32)


def _disc(side: int) -> np.ndarray:
    y, x = np.indices((side, side)) - (side - 1) / 2
    return (np.hypot(x, y) < side / 2 - 2).astype(np.float32)


def _star(side: int, points: int = 5) -> np.ndarray:
    corners = [
        (side / 2 + radius * math.sin(angle), side / 2 - radius * math.cos(angle))
        for index in range(2 * points)
        for radius, angle in [((side / 2 - 2) * (1.0, 0.45)[index % 2], math.pi * index / points)]
    ]
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return mask.astype(np.float32)


def layers() -> list[Layer]:
    """The scene, from back to front."""
    rng = np.random.default_rng(7)
    ground = _tiles(_clouds(rng, 512, 768, (118, 128, 112), 26), 48, 0.86)
    ball = _tiles(_clouds(rng, TEXTURE, TEXTURE, (200, 90, 60), 30), 32, 0.7)
    box = _tiles(_clouds(rng, TEXTURE, TEXTURE, (70, 110, 190), 34), 24, 0.75)
    star = _clouds(rng, TEXTURE, TEXTURE, (220, 190, 70), 36)
    bar = _tiles(_clouds(rng, 40, TEXTURE, (60, 60, 66), 20), 20, 1.7)
    square, full = np.ones((TEXTURE, TEXTURE), np.float32), np.ones((512, 768), np.float32)
    return [
        Layer(ground, full, (185, 112), (0.9, 0.25), turn=0.0015, size=0.66, growth=1.003),
        Layer(box, square, (285, 128), (-2.6, 0.3), turn=0.012, size=0.36),
        Layer(ball, _disc(TEXTURE), (70, 92), (5.2, 0.0), turn=0.07, size=0.33, sway=(0, 34)),
        Layer(bar, np.ones((40, TEXTURE), np.float32), (200, 196), (0.6, -1.0), turn=-0.05, size=0.62),
        Layer(star, _star(TEXTURE), (330, 30), (-8.0, 5.5), turn=-0.04, size=0.26, growth=1.012),
    ]


def render(scene: list[Layer], t: float) -> np.ndarray:
    """The sharp picture at time t, RGB float32 [H, W, 3]."""
    size = (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING)
    zoom = np.diag([SUPERSAMPLING, SUPERSAMPLING, 1.0])
    zoom[:2, 2] = (SUPERSAMPLING - 1) / 2  # pixel centres on pixel centres
    picture = np.zeros((size[1], size[0], 3), np.float32)
    for layer in scene:
        matrix = (zoom @ layer.motion(t))[:2]
        cover = cv2.warpAffine(layer.shape, matrix, size, flags=cv2.INTER_LINEAR)[..., None]
        texture = cv2.warpAffine(layer.texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        picture = cover * texture + (1 - cover) * picture
    return cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def true_flow(scene: list[Layer], t: float) -> np.ndarray:
    """Flow from the picture at t to the one at t + 1, float32 [2, H, W] in pixels, of what each pixel shows at t."""
    grid = np.stack([*np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), np.ones((HEIGHT, WIDTH))])
    flow = np.zeros((2, HEIGHT, WIDTH))
    for layer in scene:
        cover = cv2.warpAffine(layer.shape, layer.motion(t)[:2], (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR) >= 0.5
        step = layer.motion(t + 1) @ np.linalg.inv(layer.motion(t)) - np.eye(3)
        flow = np.where(cover, np.einsum("ij,jhw->ihw", step, grid)[:2], flow)
    return flow.astype(np.float32)


def degraded_frames() -> list[np.ndarray]:
    """The frames before compression: motion blur, a soft lens, sensor noise; RGB uint8 [H, W, 3]."""
    scene, rng = layers(), np.random.default_rng(11)
    frames = []
    for index in range(FRAMES):
        exposure = np.mean([render(scene, index + offset) for offset in SHUTTER], axis=0)
        picture = cv2.GaussianBlur(exposure, (0, 0), 0.8) + rng.normal(0, NOISE, exposure.shape)
        frames.append(np.clip(np.rint(picture), 0, 255).astype(np.uint8))
    return frames


def write_clip(path: pathlib.Path) -> None:
    """Encode the degraded frames as H.264; one thread, so that the same library gives the same file."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(QUALITY), "preset": "slow", "bf": "0"}
        for picture in degraded_frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    write_clip(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else CLIP)
