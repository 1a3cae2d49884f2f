"""HD1K: real driving scenes at 2560x1080 with sparse flow and its uncertainty."""

import pathlib
import re

from .base import FlowDataset, FlowSequence, Truth, complete


class HD1K(FlowDataset):
    """35 training sequences, 1,047 pairs; flow in KITTI's format. The flow of a sequence's last frame is not used.

    Source: Kondermann et al., The HCI Benchmark Suite, CVPR Workshops 2016.
    """

    name = "hd1k"
    folder = "HD1K"
    protocol = "kitti"
    layout = """\
HD1K/
  hd1k_input/image_2/000000_0000.png 000000_0001.png ...
  hd1k_flow_gt/flow_occ/000000_0000.png ..."""

    def find_sequences(self) -> list[FlowSequence]:
        images = self.need_folder("hd1k_input", "image_2")
        flows = self.need_folder("hd1k_flow_gt", "flow_occ")
        groups, truths = _by_sequence(images), _by_sequence(flows)
        if not groups:
            raise self.layout_error(f"{images} has no NNNNNN_FFFF.png")
        sequences = []
        for group in sorted(groups.keys() | truths.keys()):
            found, known = groups.get(group, {}), truths.get(group, {})
            frames = complete(found, images, group + "_{:04d}.png", known)
            truth = {pair: Truth(flows / f"{frames.name(pair)}.png") for pair in range(len(frames) - 1)}
            sequences.append(FlowSequence(group, frames, truth))
        return sequences


def _by_sequence(folder: pathlib.Path) -> dict[str, dict[int, pathlib.Path]]:
    """Files NNNNNN_FFFF.png by sequence and frame."""
    groups: dict[str, dict[int, pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"(\d{6})_(\d{4})\.png", path.name)
        if match:
            groups.setdefault(match[1], {})[int(match[2])] = path
    return groups
