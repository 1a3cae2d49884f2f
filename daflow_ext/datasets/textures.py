"""Textures of the rendered scenes: procedural ones, photographs of installed packages, folders of images."""

import functools
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..frames.degrade import clip_seed
from ..frames.io import IMAGE_SUFFIXES, read_image

SPLITS = ("training", "validation", "test")

PHOTOS = {
    "training": (
        "skimage/data/astronaut.png",
        "skimage/data/brick.png",
        "skimage/data/camera.png",
        "skimage/data/cell.png",
        "skimage/data/chelsea.png",
        "skimage/data/clock_motion.png",
        "skimage/data/coins.png",
        "skimage/data/grass.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/ihc.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/page.png",
        "skimage/data/retina.jpg",
        "sklearn/datasets/images/china.jpg",
    ),
    "validation": ("skimage/data/moon.png", "skimage/data/rocket.jpg", "skimage/data/text.png"),
    "test": (
        "skimage/data/coffee.png",
        "skimage/data/gravel.png",
        "skimage/data/microaneurysms.png",
        "sklearn/datasets/images/flower.jpg",
    ),
}
"""Pictures that come inside the packages scikit-image and scikit-learn, split by picture."""

PATTERNS, PATTERN_SIZE = 48, 384
LARGEST_SIDE = 1024


def renderer() -> Any:
    """The compiled module that makes textures and scenes.

    Raises:
        ImportError: it is not built.
    """
    try:
        from .. import _host
    except ImportError as error:
        raise ImportError(
            f"the scene renderer is not built ({error}); run `pip install .` in the source tree"
        ) from error
    return _host


def load_textures(sources: Sequence[str | os.PathLike], split: str) -> tuple[list[np.ndarray], list[float]]:
    """Images uint8 [H, W, 3] and their weights; every source weighs 1.

    Raises:
        ValueError: no source, a source that is no folder, or one without images.
    """
    if not sources:
        raise ValueError("textures must name at least one source: procedural, photos or a folder of images")
    images: list[np.ndarray] = []
    weights: list[float] = []
    for source in sources:
        found = _load(source, split)
        images += found
        weights += [1 / len(found)] * len(found)
    return images, weights


def _load(source: str | os.PathLike, split: str) -> list[np.ndarray]:
    if source == "procedural":
        return _patterns(split)
    paths = _photos(split) if source == "photos" else _folder(pathlib.Path(source), split)
    return [_read(path) for path in paths]


@functools.lru_cache(maxsize=len(SPLITS))
def _patterns(split: str) -> list[np.ndarray]:
    kinds = ("noise", "cells", "glyphs", "noise")
    seed = clip_seed(0, f"textures/{split}") & (2**63 - 1)
    return [renderer().scene_pattern(kinds[i % len(kinds)], seed + i, PATTERN_SIZE) for i in range(PATTERNS)]


def _photos(split: str) -> list[pathlib.Path]:
    """The photographs of a split; packages are only located, not imported."""
    folders = {}
    for package, name in (("skimage", "scikit-image"), ("sklearn", "scikit-learn")):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"textures='photos' needs {name}; pip install 'daflow_ext[train]'")
        folders[package] = pathlib.Path(spec.submodule_search_locations[0]).parent
    paths = [folders[photo.split("/")[0]] / photo for photo in PHOTOS[split]]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"textures='photos': the installed packages lack {', '.join(missing)}")
    return paths


def _folder(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """All images below a folder whose name falls to the split: about 14, 3 and 4 of 21."""
    if not root.is_dir():
        raise ValueError(f"textures must be procedural, photos or folders of images; {str(root)!r} is no folder")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    chosen = [path for path in paths if _split_of(path.relative_to(root).as_posix()) == split]
    if not chosen:
        raise ValueError(f"{root} holds {len(paths)} images, none of which falls to the {split} split")
    return chosen


def _split_of(name: str) -> str:
    number = clip_seed(0, name) % 21
    return "training" if number < 14 else "validation" if number < 17 else "test"


def _read(path: pathlib.Path) -> np.ndarray:
    image = np.ascontiguousarray(read_image(path).permute(1, 2, 0).numpy())
    scale = LARGEST_SIDE / max(image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
