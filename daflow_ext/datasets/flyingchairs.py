"""FlyingChairs: 22,872 rendered pairs of moving chairs."""

import pathlib

from .base import FlowDataset, FlowSequence, Truth, numbered
from .sources import ImageFrames

SPLIT_FILES = ("chairs_split.txt", "FlyingChairs_train_val.txt")


class FlyingChairs(FlowDataset):
    """512x384; ``training`` (22,232 pairs) and ``validation`` (640) after the authors' split file, ``all`` without it.

    Source: Dosovitskiy et al., FlowNet, ICCV 2015.
    """

    name = "flyingchairs"
    folder = "FlyingChairs_release"
    splits = ("training", "validation", "all")
    layout = """\
FlyingChairs_release/
  data/00001_img1.ppm 00001_img2.ppm 00001_flow.flo ...
  chairs_split.txt or FlyingChairs_train_val.txt (one line per pair: 1 = training, 2 = validation; "all" needs none)"""

    def find_sequences(self) -> list[FlowSequence]:
        data = self.need_folder("data")
        # a pair with any of its files counts, so that reading it names the missing one
        found = sorted(numbered(data, r"(\d{5})_img1\.ppm").keys() | numbered(data, r"(\d{5})_flow\.flo").keys())
        if not found:
            raise self.layout_error(f"{data} has no XXXXX_img1.ppm")
        chosen = found
        if self.split != "all":
            kinds = self._split(len(found))
            wanted = 1 if self.split == "training" else 2
            chosen = [number for number, kind in zip(found, kinds, strict=True) if kind == wanted]
        return [self._sequence(data, number) for number in chosen]

    def _split(self, count: int) -> list[int]:
        file = next((path for path in map(self.root.joinpath, SPLIT_FILES) if path.is_file()), None)
        if file is None:
            raise self.layout_error(f"{self.root} has neither {' nor '.join(SPLIT_FILES)}")
        try:
            kinds = [int(word) for word in pathlib.Path(file).read_text().split()]
        except ValueError as error:
            raise ValueError(f"{file} is no split file: {error}") from error
        if len(kinds) != count or set(kinds) - {1, 2}:
            raise self.layout_error(
                f"{file} must have {count} lines of 1 or 2, one per pair; it has {len(kinds)} numbers"
            )
        return kinds

    @staticmethod
    def _sequence(data: pathlib.Path, number: int) -> FlowSequence:
        stem = f"{number:05d}"
        frames = ImageFrames([data / f"{stem}_img1.ppm", data / f"{stem}_img2.ppm"])
        return FlowSequence(stem, frames, {0: Truth(data / f"{stem}_flow.flo")})
