"""The pixel stages on the CPU: OpenCV and NumPy, float32 [H, W, 3] in grey levels 0..255."""

import cv2
import numpy as np

from .resample import Size
from .resample import resize as resize  # a stage like the others
from .schedule import Noise, random_stream

USM_WEIGHT = 0.5
USM_THRESHOLD = 10.0  # grey levels
USM_SIZE, USM_SIGMA = 51, 8.0


def from_uint8(frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32."""
    return frame.astype(np.float32)


def to_uint8(frame: np.ndarray) -> np.ndarray:
    """Clipped and rounded to 8 bits."""
    return cv2.convertScaleAbs(np.clip(frame, 0.0, 255.0))


def unsharp_mask(frame: np.ndarray) -> np.ndarray:
    """Sharpen where there is detail: the mask of strong residuals is itself blurred, so that the change is gradual.

    Source: Real-ESRGAN (arXiv 2107.10833), section 3.3 and its released constants.
    """
    residual = frame - cv2.GaussianBlur(frame, (USM_SIZE, USM_SIZE), USM_SIGMA)
    mask = (np.abs(residual) > USM_THRESHOLD).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (USM_SIZE, USM_SIZE), USM_SIGMA)
    sharp = np.clip(frame + USM_WEIGHT * residual, 0.0, 255.0)
    return frame + soft * (sharp - frame)


def blur(frame: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate every channel with ``kernel`` (odd size); the frame is mirrored at its edges."""
    return cv2.filter2D(frame, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def poisson_peak(frame_uint8: np.ndarray) -> float:
    """Photons of a white pixel: the number of grey levels in use, rounded up to a power of two."""
    levels = int(np.count_nonzero(np.bincount(frame_uint8.reshape(-1), minlength=256)))
    return float(2 ** int(np.ceil(np.log2(levels))))


def _luma(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]


def add_noise(frame: np.ndarray, noise: Noise, seed: int, key: tuple[int, ...]) -> np.ndarray:
    """Gaussian noise of ``strength`` grey levels, or Poisson noise of scale ``strength``, clipped to 0..255.

    Poisson: ``s * (Poisson(x v) / v - x)`` for x in [0, 1] at 8-bit precision, v from :func:`poisson_peak`. ``gray``
    adds the same noise (made from the luma) to all channels.
    """
    rng = random_stream(seed, *key)
    if noise.kind == "gaussian":
        shape = (*frame.shape[:2], 1 if noise.gray else frame.shape[2])
        added = rng.standard_normal(shape, dtype=np.float32) * np.float32(noise.strength)
    else:
        clean = to_uint8(_luma(frame) if noise.gray else frame)
        clean = clean.reshape(*frame.shape[:2], -1)
        peak = poisson_peak(clean)
        expected = clean * np.float32(peak / 255.0)
        added = (rng.poisson(expected) - expected) * np.float32(255.0 * noise.strength / peak)
    return np.clip(frame + added, 0.0, 255.0).astype(np.float32, copy=False)


def jpeg(frame_uint8: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG (4:2:0) at ``quality`` 1..100 and back; uint8 [H, W, 3]."""
    bgr = cv2.cvtColor(frame_uint8, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # OpenCV's own bytes
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def size_of(frame: np.ndarray) -> Size:
    return frame.shape[0], frame.shape[1]
