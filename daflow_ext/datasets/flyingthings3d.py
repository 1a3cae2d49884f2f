"""FlyingThings3D: rendered stereo scenes of flying objects, flow into future and past."""

import pathlib
from typing import Any

from .base import FlowDataset, FlowSequence, PathLike, Truth, complete, numbered, subfolders

PASSES = ("clean", "final")
DIRECTIONS = ("into_future", "into_past")


class FlyingThings3D(FlowDataset):
    """960x540, scenes of 10 frames, both directions of time; ``training`` is TRAIN/{A,B,C}, ``test`` is TEST/{A,B,C}.

    As in RAFT's loader: the left camera, and the flow of a scene's last frame (which has no partner) is not used.

    Source: Mayer et al., CVPR 2016.
    """

    name = "flyingthings3d"
    folder = "FlyingThings3D"
    splits = ("training", "test")
    layout = """\
FlyingThings3D/
  frames_{cleanpass,finalpass}/{TRAIN,TEST}/{A,B,C}/0000/left/0006.png ...
  optical_flow/{TRAIN,TEST}/{A,B,C}/0000/into_future/left/OpticalFlowIntoFuture_0006_L.pfm ...
  optical_flow/{TRAIN,TEST}/{A,B,C}/0000/into_past/left/OpticalFlowIntoPast_0006_L.pfm ..."""

    def __init__(
        self,
        root: PathLike,
        *,
        dstype: str = "clean",
        cameras: tuple[str, ...] = ("left",),
        directions: tuple[str, ...] = DIRECTIONS,
        **options: Any,
    ):
        if dstype not in PASSES:
            raise ValueError(f"flyingthings3d: dstype must be one of {', '.join(PASSES)}, got {dstype!r}")
        for what, given, known in (("cameras", cameras, ("left", "right")), ("directions", directions, DIRECTIONS)):
            if not given or set(given) - set(known):
                raise ValueError(f"flyingthings3d: {what} must be taken from {', '.join(known)}, got {given}")
        self.dstype, self.cameras, self.directions = dstype, cameras, directions
        super().__init__(root, **options)

    def find_sequences(self) -> list[FlowSequence]:
        part = "TRAIN" if self.split == "training" else "TEST"
        images = self.need_folder(f"frames_{self.dstype}pass", part)
        flows = self.need_folder("optical_flow", part)
        for scene in (scene for letter in subfolders(flows) for scene in subfolders(letter)):
            folder = images / scene.relative_to(flows)
            if not folder.is_dir():
                raise self.layout_error(f"the scene {scene.relative_to(flows)} has truth, but {folder} is missing")
        sequences = []
        for letter in subfolders(images):
            for scene in subfolders(letter):
                for camera in self.cameras:
                    found = numbered(scene / camera, r"(\d{4})\.png") if (scene / camera).is_dir() else {}
                    if not found:
                        raise self.layout_error(f"{scene / camera} has no XXXX.png")
                    place = flows / letter.name / scene.name
                    sequences += [self._sequence(place, camera, direction, found) for direction in self.directions]
        return sequences

    def _sequence(self, place: pathlib.Path, camera: str, direction: str, found: dict) -> FlowSequence:
        folder = place / direction / camera
        if not folder.is_dir():
            raise self.layout_error(f"the folder {folder} is missing")
        images = next(iter(found.values())).parent
        word = "Future" if direction == "into_future" else "Past"
        known = numbered(folder, rf"OpticalFlowInto{word}_(\d{{4}})_[LR]\.pfm")
        frames = complete(found, images, "{:04d}.png", known)
        if direction == "into_past":
            frames = type(frames)(frames.files[::-1])
        truth = {
            pair: Truth(folder / f"OpticalFlowInto{word}_{frames.name(pair)}_{camera[0].upper()}.pfm")
            for pair in range(len(frames) - 1)
        }
        scene = "/".join(place.parts[-3:])  # TRAIN/A/0000
        return FlowSequence(f"{scene}/{direction}/{camera}", frames, truth, group=scene)
