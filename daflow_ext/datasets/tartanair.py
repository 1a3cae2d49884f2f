"""TartanAir: simulated flights with dense flow from depth and pose."""

import os
import pathlib

import numpy as np

from ..flow._arrays import npy_array
from .base import FlowDataset, FlowSequence, Truth, complete, numbered

VALIDATION_ENVIRONMENTS = ("westerndesert", "soulcity")
VALIDATION_STEP = 100


class TartanAir(FlowDataset):
    """640x480; ``validation`` is FlowSeek's: westerndesert and soulcity, both difficulties, every 100th pair.

    ``training`` is the rest, ``all`` everything. The counted pairs are those of all trajectories in the order of their
    paths. Mask values: 0 visible, 1 and 10 occluded by others or by itself, 100 out of view; only the last is
    invalid (SEA-RAFT's rule), the occluded ones are the mask "occluded". Flow of moving objects is known to be wrong.

    Source: Wang et al., TartanAir, IROS 2020; the split: FlowSeek (Poggi & Tosi, ICCV 2025).
    """

    name = "tartanair"
    folder = "tartanair"
    splits = ("training", "validation", "all")
    lq_window = 15  # trajectories have up to a thousand frames of which one in a hundred is scored
    layout = """\
tartanair/
  <environment>/{Easy,Hard}/P000/image_left/000000_left.png ...
  <environment>/{Easy,Hard}/P000/flow/000000_000001_flow.npy 000000_000001_mask.npy ...
(folders in between, as some archives unpack them, do not matter)"""

    def find_sequences(self) -> list[FlowSequence]:
        sequences, passed = [], 0
        for folder in self._trajectories():
            path = folder.relative_to(self.root).as_posix()
            held_out = any(environment in path for environment in VALIDATION_ENVIRONMENTS)
            if self.split != "all" and held_out != (self.split == "validation"):
                continue
            found = numbered(folder / "image_left", r"(\d{6})_left\.png")
            if not found:
                raise self.layout_error(f"{folder / 'image_left'} has no XXXXXX_left.png")
            if not (folder / "flow").is_dir():
                raise self.layout_error(f"the folder {folder / 'flow'} is missing")
            one = self._sequence(folder, path, found)
            count = len(one.frames) - 1
            if self.split == "validation":
                chosen = tuple(pair for pair in range(count) if (passed + pair) % VALIDATION_STEP == 0)
                one = FlowSequence(one.name, one.frames, one.truth, chosen)
            passed += count
            sequences.append(one)
        if not sequences:
            raise self.layout_error(f"no trajectory of the {self.split} split was found in {self.root}")
        return sequences

    def _trajectories(self) -> list[pathlib.Path]:
        found = []
        for folder, below, _ in os.walk(self.root, followlinks=True):
            if "image_left" in below:
                found.append(pathlib.Path(folder))
                below.clear()
        return sorted(found, key=str)

    @staticmethod
    def _sequence(folder: pathlib.Path, path: str, found: dict[int, pathlib.Path]) -> FlowSequence:
        starts = numbered(folder / "flow", r"(\d{6})_\d{6}_flow\.npy")
        known = {number + step for number in starts for step in (0, 1)}
        frames = complete(found, folder / "image_left", "{:06d}_left.png", known)
        first, truth = min({*found, *known}), {}
        for pair in range(len(frames) - 1):
            stem = f"{first + pair:06d}_{first + pair + 1:06d}"
            flows = folder / "flow"
            truth[pair] = Truth(flows / f"{stem}_flow.npy", {"codes": flows / f"{stem}_mask.npy"})
        return FlowSequence(path, frames, truth)

    def read_truth(self, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
        flow, valid = super().read_truth(truth)
        return flow, valid & (_codes(truth.masks["codes"], valid.shape) < 50)

    def read_masks(self, truth: Truth, valid: np.ndarray) -> dict[str, np.ndarray]:
        codes = _codes(truth.masks["codes"], valid.shape)
        return {"occluded": (codes == 1) | (codes == 10)}


def _codes(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    codes = npy_array(path)
    if codes.dtype != np.uint8 or codes.shape != size:
        raise ValueError(f"{path} holds {codes.dtype} {codes.shape}; a mask uint8 {size} was expected")
    return codes
