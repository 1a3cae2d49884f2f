"""Any folder of frames or videos, with or without flow; YouHQ is one of them."""

import os
import pathlib
from typing import Any, ClassVar

import numpy as np

from ..flow.formats import SUFFIXES
from ..frames.degrade.evaluation_set import VIDEO_SUFFIXES
from ..frames.io import IMAGE_SUFFIXES, _natural_key, read_image
from .base import FlowDataset, FlowSequence, PathLike, Truth
from .sources import FrameSource, ImageFrames, UnreadableVideo, VideoFrames


class Folder(FlowDataset):
    """Every folder below ``root`` that holds images is a sequence, and so is every video file.

    Flow, if there is any, lies under ``flow_root`` as ``daflow pseudo`` writes it:
    ``<sequence>/flow/<frame>.<suffix>`` and, optionally, ``<sequence>/confidence/<frame>.png``, where a pixel is valid
    from 128 up.
    """

    name = "folder"
    folder = "frames"
    splits: ClassVar[tuple[str, ...]] = ("all", "training", "test")
    layout = """\
ROOT/
  <any folders>/<frames>.png ...       (jpg, ppm, ... in natural order: frame2 before frame10)
  <any folders>/<video>.mp4 ...        (avi, mov, mkv, ...)
FLOW_ROOT/<sequence>/flow/<frame>.png .flo .npy ...   (optional)
FLOW_ROOT/<sequence>/confidence/<frame>.png           (optional)"""

    def __init__(self, root: PathLike, *, flow_root: PathLike | None = None, split: str = "all", **options: Any):
        self.flow_root = None if flow_root is None else pathlib.Path(flow_root)
        if self.flow_root is not None and not self.flow_root.is_dir():
            raise self.layout_error(f"flow_root {self.flow_root} is no folder")
        super().__init__(root, split=split, **options)

    def search_root(self) -> pathlib.Path:
        return self.root

    def find_sequences(self) -> list[FlowSequence]:
        sequences = []
        for folder, below, files in os.walk(self.search_root(), followlinks=True):
            below[:] = sorted(name for name in below if not name.startswith("."))
            place = pathlib.Path(folder)
            shown = [place / name for name in files if not name.startswith(".")]
            images = sorted((path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES), key=_natural_key)
            if len(images) > 1:
                sequences.append(self._sequence(place, ImageFrames(images)))
            videos = sorted(path for path in shown if path.suffix.lower() in VIDEO_SUFFIXES)
            sequences += [self._video(path) for path in videos]
        return sorted((one for one in sequences if len(one.frames) > 1), key=lambda one: one.name)

    def _video(self, path: pathlib.Path) -> FlowSequence:
        try:
            frames = VideoFrames(path)
        except (ValueError, OSError) as error:
            bad = UnreadableVideo(path, str(error), self.clip)
            return FlowSequence(path.relative_to(self.root).as_posix(), bad, pairs=(0,))
        return self._sequence(path, frames)

    def _sequence(self, path: pathlib.Path, frames: FrameSource) -> FlowSequence:
        name = path.relative_to(self.root).as_posix()
        name = self.root.resolve().name if name == "." else name
        if self.flow_root is None:
            return FlowSequence(name, frames)
        flows = self.flow_root / name / "flow"
        if not flows.is_dir():
            raise self.layout_error(f"the folder {flows} is missing")
        by_stem = {one.stem: one for one in flows.iterdir() if one.suffix.lower() in SUFFIXES.values()}
        confidence = self.flow_root / name / "confidence"
        truth = {}
        for pair in range(len(frames) - 1):
            stem = frames.name(pair)
            masks = {"confidence": confidence / f"{stem}.png"} if confidence.is_dir() else {}
            truth[pair] = Truth(by_stem.get(stem, flows / f"{stem}.png"), masks)
        return FlowSequence(name, frames, truth)

    def read_truth(self, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
        flow, valid = super().read_truth(truth)
        if truth.masks:
            valid &= read_image(truth.masks["confidence"])[0].numpy() >= CONFIDENT
        return flow, valid

    def read_masks(self, truth: Truth, valid: np.ndarray) -> dict[str, np.ndarray]:
        return {}  # the confidence decides what is valid


CONFIDENT = 128
"""A pixel of a confidence image counts as valid from this value up."""


class YouHQ(Folder):
    """38,576 training clips (``YouHQ-Train``), 40 test clips (``YouHQ40-Test``), about 32 frames of 1080x1920 each.

    Clips are folders of frames or video files, in category folders; flow comes from ``daflow pseudo``. The data are for
    non-commercial use only (S-Lab licence).

    Source: Zhou et al., Upscale-A-Video, CVPR 2024.
    """

    name = "youhq"
    folder = "YouHQ"
    splits: ClassVar[tuple[str, ...]] = ("training", "test")
    layout = """\
YouHQ/
  YouHQ-Train/<category>/<clip>/00000.png ...   or   YouHQ-Train/<category>/<clip>.mp4
  YouHQ40-Test/<clip>/00000.png ...             or   YouHQ40-Test/<clip>.mp4
FLOW_ROOT/<sequence>/flow/<frame>.png, confidence/<frame>.png   (optional, from `daflow pseudo`)"""

    def __init__(self, root: PathLike, *, split: str = "training", **options: Any):
        super().__init__(root, split=split, **options)

    def search_root(self) -> pathlib.Path:
        return self.need_folder("YouHQ-Train" if self.split == "training" else "YouHQ40-Test")
