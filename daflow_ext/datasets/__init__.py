"""Data sets: frames in high and low quality, flow, masks; each with its publisher's layout, splits and scoring rule.

``open_dataset("sintel-final", root)`` or the classes; all give :class:`Clip` objects, see :class:`FlowDataset`.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from .base import BadItemError, Clip, FlowDataset, FlowSequence, LayoutError, Truth, collate, worker_init
from .degradation import CLEAN, Degradation, degradations
from .flyingchairs import FlyingChairs
from .flyingthings3d import FlyingThings3D
from .folder import Folder, YouHQ
from .hd1k import HD1K
from .kitti import Kitti2012, Kitti2015
from .middlebury import Middlebury
from .pairs import Pairs
from .scenes import Scene, Scenes
from .sintel import Sintel
from .sources import ImageFrames, VideoFrames
from .spring import Spring
from .tartanair import TartanAir

DATASETS: dict[str, Callable[..., FlowDataset]] = {
    "sintel-clean": functools.partial(Sintel, dstype="clean"),
    "sintel-final": functools.partial(Sintel, dstype="final"),
    "kitti-2012": Kitti2012,
    "kitti-2015": Kitti2015,
    "spring": Spring,
    "spring-min4": functools.partial(Spring, gt="min4"),
    "tartanair": TartanAir,
    "flyingchairs": FlyingChairs,
    "flyingthings3d-clean": functools.partial(FlyingThings3D, dstype="clean"),
    "flyingthings3d-final": functools.partial(FlyingThings3D, dstype="final"),
    "hd1k": HD1K,
    "middlebury": Middlebury,
    "youhq": YouHQ,
    "folder": Folder,
    "pairs": Pairs,
}
"""Names of the command line."""


def dataset_class(name: str) -> Any:
    """The class behind a name of :data:`DATASETS`.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(DATASETS)}")
    maker = DATASETS[name]
    return maker.func if isinstance(maker, functools.partial) else maker


def open_dataset(name: str, root: str | pathlib.Path | None = None, **options: Any) -> FlowDataset:
    """A data set by its name; without ``root`` it is looked for in ``datasets/<its folder>``."""
    cls = dataset_class(name)
    return DATASETS[name](pathlib.Path("datasets", cls.folder) if root is None else root, **options)


__all__ = [
    "CLEAN",
    "DATASETS",
    "HD1K",
    "BadItemError",
    "Clip",
    "Degradation",
    "FlowDataset",
    "FlowSequence",
    "FlyingChairs",
    "FlyingThings3D",
    "Folder",
    "ImageFrames",
    "Kitti2012",
    "Kitti2015",
    "LayoutError",
    "Middlebury",
    "Pairs",
    "Scene",
    "Scenes",
    "Sintel",
    "Spring",
    "TartanAir",
    "Truth",
    "VideoFrames",
    "YouHQ",
    "collate",
    "dataset_class",
    "degradations",
    "open_dataset",
    "worker_init",
]
