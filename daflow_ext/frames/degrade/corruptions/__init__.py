"""The 20 corruption families of RobustSpring by name, each at severities 1..5; see :func:`corrupt`."""

from . import blur, color, noise, quality, weather  # noqa: F401  (importing a family registers it)
from .registry import CORRUPTIONS, SEVERITIES, Corruption, check_corruption, corrupt, corrupt_frames

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "check_corruption", "corrupt", "corrupt_frames"]
