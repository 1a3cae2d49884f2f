"""Pairs listed in a CSV file: any frames with any truth."""

import collections
import csv
import pathlib
from typing import Any

import numpy as np

from ..flow._arrays import npz_arrays
from .base import FlowDataset, FlowSequence, PathLike, Truth, read_mask
from .sources import ImageFrames

COLUMNS = ("name", "sequence", "image1", "image2", "flow")


class Pairs(FlowDataset):
    """Pairs from a CSV file whose paths are relative to ``root``; ``ROOT/pairs.csv`` unless ``pairs`` names another.

    Columns: ``name`` (unique), ``sequence`` (pairs that belong together; confidence intervals resample these),
    ``image1``, ``image2``, ``flow`` (empty: no truth). Optional: ``occluded`` (a mask, white = occluded), ``valid`` (a
    mask, white = scored, beside what the flow file says), ``pad`` ("sintel" or "kitti": how a network pads the frames).
    A mask is an image or an array in an .npz file, as ``FILE.npz:NAME``.
    """

    name = "pairs"
    folder = "."
    splits = ("all", "training", "test")
    layout = """\
pairs.csv:
  name,sequence,image1,image2,flow,occluded
  walk/0001,walk,walk/0001.png,walk/0002.png,walk/0001.flo,walk/0001_occ.png
(paths relative to the root; flow and occluded may be empty)"""

    def __init__(self, root: PathLike, *, pairs: PathLike | None = None, split: str = "all", **options: Any):
        self.list = pathlib.Path(root, "pairs.csv") if pairs is None else pathlib.Path(pairs)
        super().__init__(root, split=split, **options)

    def find_sequences(self) -> list[FlowSequence]:
        rows = self._rows()
        name, count = collections.Counter(row["name"] for row in rows).most_common(1)[0] if rows else ("", 0)
        if count > 1:
            raise ValueError(f"{self.list}: names must be unique, {name!r} stands in {count} rows")
        return [self._sequence(row) for row in rows]

    def _rows(self) -> list[dict[str, str]]:
        if not self.list.is_file():
            raise self.layout_error(f"the list {self.list} does not exist")
        with self.list.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
            if missing:
                raise self.layout_error(f"{self.list} has no column {', '.join(missing)}")
            try:
                rows = list(reader)
            except csv.Error as error:
                raise ValueError(f"{self.list} is no list: {error}") from error
            short = next((row for row in rows if None in row or None in row.values()), None)
            if short is not None:
                raise ValueError(f"{self.list}: {short['name']!r} has another number of columns than the first line")
            return rows

    def _sequence(self, row: dict[str, str]) -> FlowSequence:
        frames = ImageFrames([self.root / row["image1"], self.root / row["image2"]])
        masks = {name: self.root / row[name] for name in ("occluded", "valid") if row.get(name)}
        truth = {0: Truth(self.root / row["flow"], masks)} if row["flow"] else {}
        pad = row.get("pad") or self.pad_mode
        return FlowSequence(row["name"], frames, truth, group=row["sequence"], pad_mode=pad)

    def read_truth(self, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
        flow, valid = super().read_truth(truth)
        return flow, valid & _mask(truth.masks["valid"], valid.shape) if "valid" in truth.masks else valid

    def read_masks(self, truth: Truth, valid: np.ndarray) -> dict[str, np.ndarray]:
        return {name: _mask(path, valid.shape) for name, path in truth.masks.items() if name != "valid"}

    def item_name(self, index: int) -> str:
        return self._item(index)[0].name


def _mask(path: pathlib.Path, size: tuple[int, ...]) -> np.ndarray:
    """A mask image, or an array of an .npz file, as bool [H, W]."""
    file, colon, name = path.name.partition(".npz:")
    if colon:
        archive = path.with_name(f"{file}.npz")
        arrays, names = npz_arrays(archive, (name,))
        if name not in arrays:
            raise ValueError(f"{archive} has no array {name!r}, it has {', '.join(names) or 'nothing'}")
        mask = arrays[name].astype(bool)
    else:
        mask = read_mask(path)
    if mask.shape != size:
        raise ValueError(f"{path} is a mask {mask.shape}, but its flow is {size}")
    return mask
