"""MPI-Sintel: 23 training scenes with truth (1041 pairs per pass), 12 test scenes."""

from typing import Any

from ..flow.formats import SUFFIXES
from .base import FlowDataset, FlowSequence, PathLike, Truth, complete, numbered, subfolders

PASSES = ("clean", "final")


class Sintel(FlowDataset):
    """Frames 1024x436; masks "occluded" and "invalid" where their folders are there.

    ``dstype`` is the rendering pass, "clean" or "final". Scores use all pixels, as RAFT and SEA-RAFT do; "invalid" is
    a stratum, not a mask of the score.

    Source: Butler et al., A Naturalistic Open Source Movie for Optical Flow Evaluation, ECCV 2012.
    """

    name = "sintel"
    folder = "Sintel"
    splits = ("training", "test")
    protocol = "sintel"
    layout = """\
Sintel/
  training/{clean,final}/<scene>/frame_0001.png ...
  training/flow/<scene>/frame_0001.flo ...
  training/{occlusions,invalid}/<scene>/frame_0001.png ...   (optional)
  test/{clean,final}/<scene>/frame_0001.png ..."""

    def __init__(self, root: PathLike, *, dstype: str = "clean", **options: Any):
        if dstype not in PASSES:
            raise ValueError(f"sintel: dstype must be one of {', '.join(PASSES)}, got {dstype!r}")
        self.dstype = dstype
        super().__init__(root, **options)

    def find_sequences(self) -> list[FlowSequence]:
        images = self.need_folder(self.split, self.dstype)
        flows = self.need_folder(self.split, "flow") if self.split == "training" else None
        masks = {
            name: self.root / self.split / folder
            for name, folder in (("occluded", "occlusions"), ("invalid", "invalid"))
            if (self.root / self.split / folder).is_dir()
        }
        for scene in subfolders(flows) if flows else ():
            if not (images / scene.name).is_dir():
                raise self.layout_error(f"the scene {scene.name} has truth, but {images / scene.name} is missing")
        sequences = []
        for scene in subfolders(images):
            found = numbered(scene, r"frame_(\d+)\.png")
            if not found:
                raise self.layout_error(f"{scene} has no frame_XXXX.png")
            known: set[int] = set()
            if flows:
                if not (flows / scene.name).is_dir():
                    raise self.layout_error(f"the scene {scene.name} has frames, but {flows / scene.name} is missing")
                starts = numbered(flows / scene.name, r"frame_(\d+)\.flo")
                known = {number + step for number in starts for step in (0, 1)}
            frames = complete(found, scene, "frame_{:04d}.png", known)
            truth = {}
            if flows:
                for pair in range(len(frames) - 1):
                    stem = frames.name(pair)
                    truth[pair] = Truth(
                        flows / scene.name / (stem + SUFFIXES["flo"]),
                        {name: folder / scene.name / f"{stem}.png" for name, folder in masks.items()},
                    )
            sequences.append(FlowSequence(scene.name, frames, truth))
        return sequences
