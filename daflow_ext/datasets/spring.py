"""Spring: HD stereo video with flow at twice the frames' resolution, in both cameras and directions of time."""

import pathlib
from typing import Any

import cv2
import numpy as np

from ..frames.io import decode_image
from .base import FlowDataset, FlowSequence, PathLike, Truth, complete, numbered, subfolders

CAMERAS = ("left", "right")
DIRECTIONS = ("FW", "BW")
GROUND_TRUTHS = ("subsample", "min4")


class Spring(FlowDataset):
    """37 training scenes, 19,852 pairs over cameras and directions (4,963 left forward); 10 test scenes.

    The truth has 2x2 vectors per frame pixel, in frame pixels. ``gt="subsample"`` takes the first of them (what papers
    report), ``gt="min4"`` keeps all four for the benchmark's own rule (best of four). Masks, where ``maps`` is there:
    "high_detail", "non_rigid", "unmatched", "sky", at frame resolution as the benchmark makes them.

    Source: Mehl et al., Spring: A High-Resolution High-Detail Dataset and Benchmark, CVPR 2023.
    """

    name = "spring"
    folder = "spring"
    splits = ("training", "test")
    layout = """\
spring/
  train/<scene>/frame_{left,right}/frame_left_0001.png ...
  train/<scene>/flow_{FW,BW}_{left,right}/flow_FW_left_0001.flo5 ...
  train/<scene>/maps/{detailmap_flow,matchmap_flow,rigidmap}_FW_left/*_0001.png, maps/skymap_left/*   (optional)
  test/<scene>/frame_{left,right}/frame_left_0001.png ..."""

    def __init__(
        self,
        root: PathLike,
        *,
        gt: str = "subsample",
        cameras: tuple[str, ...] = CAMERAS,
        directions: tuple[str, ...] = DIRECTIONS,
        **options: Any,
    ):
        if gt not in GROUND_TRUTHS:
            raise ValueError(f"spring: gt must be one of {', '.join(GROUND_TRUTHS)}, got {gt!r}")
        for what, given, known in (("cameras", cameras, CAMERAS), ("directions", directions, DIRECTIONS)):
            if not given or set(given) - set(known):
                raise ValueError(f"spring: {what} must be taken from {', '.join(known)}, got {given}")
        self.gt, self.cameras, self.directions = gt, cameras, directions
        self.protocol = f"spring_{gt}"
        super().__init__(root, **options)

    def find_sequences(self) -> list[FlowSequence]:
        split = self.need_folder("train" if self.split == "training" else "test")
        sequences = []
        for scene in subfolders(split):
            for camera in self.cameras:
                folder = scene / f"frame_{camera}"
                if not folder.is_dir():
                    raise self.layout_error(f"the folder {folder} is missing")
                found = numbered(folder, rf"frame_{camera}_(\d{{4}})\.png")
                if not found:
                    raise self.layout_error(f"{folder} has no frame_{camera}_XXXX.png")
                sequences += [self._sequence(scene, camera, direction, found) for direction in self.directions]
        return sequences

    def _sequence(self, scene: pathlib.Path, camera: str, direction: str, found: dict) -> FlowSequence:
        kind, step = f"{direction}_{camera}", 1 if direction == "FW" else -1
        flows, known = scene / f"flow_{kind}", set()
        if self.split == "training":
            if not flows.is_dir():
                raise self.layout_error(f"the folder {flows} is missing")
            starts = numbered(flows, rf"flow_{kind}_(\d{{4}})\.flo5")
            known = {number + offset for number in starts for offset in (0, step)}
        images = scene / f"frame_{camera}"
        frames = complete(found, images, f"frame_{camera}_{{:04d}}.png", known)
        if direction == "BW":
            frames = type(frames)(frames.files[::-1])
        truth = {}
        if self.split == "training":
            masks = self._masks(scene / "maps", kind, camera)
            for pair in range(len(frames) - 1):
                number = frames.name(pair)[-4:]
                files = {name: folder / f"{folder.name}_{number}.png" for name, folder in masks.items()}
                truth[pair] = Truth(flows / f"flow_{kind}_{number}.flo5", files)
        return FlowSequence(f"{scene.name}/{kind}", frames, truth, group=scene.name)

    @staticmethod
    def _masks(maps: pathlib.Path, kind: str, camera: str) -> dict[str, pathlib.Path]:
        folders = {
            "high_detail": maps / f"detailmap_flow_{kind}",
            "unmatched": maps / f"matchmap_flow_{kind}",
            "non_rigid": maps / f"rigidmap_{kind}",
            "sky": maps / f"skymap_{camera}",
        }
        return {name: folder for name, folder in folders.items() if folder.is_dir()}

    def truth_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return (2 * size[0], 2 * size[1]) if self.gt == "min4" else size

    def read_truth(self, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
        flow, valid = super().read_truth(truth)
        if flow.shape[0] % 2 or flow.shape[1] % 2:
            raise ValueError(
                f"{truth.flow} is {flow.shape[1]}x{flow.shape[0]}; Spring's flow has twice the frames' size"
            )
        return (flow, valid) if self.gt == "min4" else (flow[::2, ::2], valid[::2, ::2])

    def read_masks(self, truth: Truth, valid: np.ndarray) -> dict[str, np.ndarray]:
        height, width = (side // 2 for side in valid.shape) if self.gt == "min4" else valid.shape
        return {name: _map(path, height, width) for name, path in truth.masks.items()}


def _map(path: pathlib.Path, height: int, width: int) -> np.ndarray:
    """A map as bool at frame size: red or green of a colour image (matchmap), 2x2 majorities of a double-size one.

    Two of four pixels are a majority, as in the benchmark's own preparation.
    """
    image = decode_image(path, cv2.IMREAD_UNCHANGED)
    if image.ndim == 3:
        image = np.any(image[:, :, ::-1][:, :, :2], axis=-1)  # OpenCV's order is BGR; red and green are used
    marked = image > 0
    if marked.shape == (height, width):
        return marked
    if marked.shape != (2 * height, 2 * width):
        raise ValueError(f"{path} is {marked.shape[1]}x{marked.shape[0]}; {width}x{height} or twice that was expected")
    return marked.reshape(height, 2, width, 2).sum((1, 3)) >= 2
