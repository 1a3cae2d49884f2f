"""Loss of quality: JPEG, coarse pixels, a warped lens."""

import cv2
import numpy as np

from ..resample import Size, resize
from ..schedule import PARAMETERS, random_stream
from ..stages import jpeg
from .registry import Filter, at, corruption, unit
from .texture import smooth


@corruption("quality")
def jpeg_compression(size: Size, severity: int, seed: int) -> Filter:
    """JPEG at low quality."""
    quality = at(severity, (25, 18, 15, 10, 7))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        return jpeg(np.rint(frame * 255).astype(np.uint8), quality).astype(np.float32) / 255

    return apply


@corruption("quality")
def pixelate(size: Size, severity: int, seed: int) -> Filter:
    """Blocks of one colour: reduced by averaging, enlarged without interpolation."""
    factor = at(severity, (0.6, 0.5, 0.4, 0.3, 0.25))
    coarse = tuple(max(round(side * factor), 1) for side in size)

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        # EXACT takes the block that holds the pixel's centre; plain INTER_NEAREST is half a pixel off
        return cv2.resize(resize(frame, coarse, "area"), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    return apply


@corruption("quality", moves_pixels=True)
def elastic_transform(size: Size, severity: int, seed: int) -> Filter:
    """A wavy pane before the lens: a smooth random displacement (0.5 .. 2.5 reference pixels rms), fixed in time."""
    rms = at(severity, (0.5, 1.0, 1.5, 2.0, 2.5)) * unit(size)
    rng = random_stream(seed, PARAMETERS)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    x = columns + rms * smooth(size, rng, 8 * unit(size))
    y = rows + rms * smooth(size, rng, 8 * unit(size))
    return lambda frame, index: cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
