"""Middlebury: eight scenes with dense truth for one pair each."""

from .base import FlowDataset, FlowSequence, Truth, complete, numbered, subfolders


class Middlebury(FlowDataset):
    """``training``: the "other" set (pairs frame10 -> frame11 with truth). ``test``: the benchmark's evaluation set.

    Pixels of unknown flow are not scored. Clips of more than two frames use frames 07 to 14 where a scene has them.

    Source: Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011.
    """

    name = "middlebury"
    folder = "middlebury"
    splits = ("training", "test")
    layout = """\
middlebury/
  other-data/<scene>/frame10.png frame11.png (frame07.png ... frame14.png)
  other-gt-flow/<scene>/flow10.flo
  eval-data/<scene>/frame10.png frame11.png      (test)"""

    def find_sequences(self) -> list[FlowSequence]:
        training = self.split == "training"
        images = self.need_folder("other-data" if training else "eval-data")
        flows = self.need_folder("other-gt-flow") if training else None
        sequences = []
        for scene in subfolders(flows or images):
            folder = images / scene.name
            if not folder.is_dir():
                raise self.layout_error(f"the scene {scene.name} has truth, but {folder} is missing")
            found = numbered(folder, r"frame(\d{2})\.png")
            if not found:
                raise self.layout_error(f"{folder} has no frameXX.png")
            known = found | {number: folder / f"frame{number:02d}.png" for number in (10, 11)}
            frames = complete(known, folder, "frame{:02d}.png")
            pair = 10 - min(known)
            truth = {pair: Truth(scene / "flow10.flo")} if training else {}
            sequences.append(FlowSequence(scene.name, frames, truth, (pair,)))
        return sequences
