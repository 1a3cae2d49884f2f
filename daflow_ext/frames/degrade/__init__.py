"""Low-quality video from high-quality video: the second-order recipe of video restoration, and single corruptions.

``degrade(video, "realbasicvsr", seed=1)``, ``degrade(video, 3)`` for severity level 3, ``corrupt(video, "fog", 2)``.
"""

from .config import LEVELS, PRESETS, DegradeConfig, OrderConfig, WalkSteps, get_config
from .corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt, corrupt_frames
from .pipeline import ClipRecord, degrade, degrade_frames, degrade_many
from .schedule import clip_seed

__all__ = [
    "CORRUPTIONS",
    "LEVELS",
    "PRESETS",
    "SEVERITIES",
    "ClipRecord",
    "Corruption",
    "DegradeConfig",
    "OrderConfig",
    "WalkSteps",
    "clip_seed",
    "corrupt",
    "corrupt_frames",
    "degrade",
    "degrade_frames",
    "degrade_many",
    "get_config",
]
