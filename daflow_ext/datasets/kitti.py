"""KITTI 2012 and 2015: sparse flow of single pairs, with and without occluded pixels."""

import pathlib
import re
from typing import ClassVar

import numpy as np

from ..flow.formats import read_flow
from .base import FlowDataset, FlowSequence, Truth, complete


class Kitti(FlowDataset):
    """Common to both years: pairs (_10, _11); earlier and later frames are used by longer clips where they exist.

    The mask "occluded" marks valid pixels that ``flow_noc`` lacks. EPE is the mean of the images' means, Fl-all a share
    of all pixels.
    """

    folder = "KITTI"
    splits = ("training", "testing")
    protocol = "kitti"
    pad_mode = "kitti"
    images: ClassVar[str]

    def find_sequences(self) -> list[FlowSequence]:
        folder = self.need_folder(self.split, self.images)
        flows = non_occluded = None
        if self.split == "training":
            flows = self.need_folder(self.split, "flow_occ")
            non_occluded = self.root / self.split / "flow_noc"
        scenes = self._frames_by_scene(folder)
        if not scenes:
            raise self.layout_error(f"{folder} has no NNNNNN_10.png")
        for scene in self._frames_by_scene(flows) if flows else ():
            scenes.setdefault(scene, {})  # truth without frames: reading the pair names the missing file
        sequences = []
        for scene, found in sorted(scenes.items()):
            known = found | {number: folder / f"{scene}_{number:02d}.png" for number in (10, 11)}
            frames = complete(known, folder, scene + "_{:02d}.png")
            pair = 10 - min(known)
            truth = {}
            if flows and non_occluded:
                masks = {"non_occluded": non_occluded / f"{scene}_10.png"} if non_occluded.is_dir() else {}
                truth[pair] = Truth(flows / f"{scene}_10.png", masks)
            sequences.append(FlowSequence(scene, frames, truth, (pair,)))
        return sequences

    @staticmethod
    def _frames_by_scene(folder: pathlib.Path) -> dict[str, dict]:
        scenes: dict[str, dict] = {}
        for path in sorted(folder.iterdir()):
            match = re.fullmatch(r"(\d{6})_(\d{2})\.png", path.name)
            if match:
                scenes.setdefault(match[1], {})[int(match[2])] = path
        return {scene: found for scene, found in scenes.items() if 10 in found or 11 in found}

    def read_masks(self, truth: Truth, valid: np.ndarray) -> dict[str, np.ndarray]:
        if not truth.masks:
            return {}
        _, visible = read_flow(truth.masks["non_occluded"], return_valid=True)
        return {"occluded": valid & ~visible.numpy()}


class Kitti2015(Kitti):
    """200 training pairs of driving scenes with moving cars. Source: Menze & Geiger, CVPR 2015."""

    name = "kitti-2015"
    images = "image_2"
    layout = """\
KITTI/                                 (data_scene_flow.zip; clips of 3 need data_scene_flow_multiview.zip, too)
  training/image_2/000000_10.png 000000_11.png ...
  training/flow_occ/000000_10.png ...  (16 bit: x, y, valid)
  training/flow_noc/000000_10.png ...  (optional)
  testing/image_2/000000_10.png 000000_11.png ..."""


class Kitti2012(Kitti):
    """194 training pairs of static driving scenes. Source: Geiger et al., CVPR 2012."""

    name = "kitti-2012"
    folder = "KITTI2012"
    images = "colored_0"
    layout = """\
KITTI2012/                             (data_stereo_flow.zip; clips of 3 need data_stereo_flow_multiview.zip, too)
  training/colored_0/000000_10.png 000000_11.png ...
  training/flow_occ/000000_10.png ...  (16 bit: x, y, valid)
  training/flow_noc/000000_10.png ...  (optional)
  testing/colored_0/000000_10.png 000000_11.png ..."""
