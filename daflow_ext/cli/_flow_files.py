"""Flow files as an estimator: what ``daflow infer --bidirectional`` wrote, or the true flow of a data set."""

import argparse
import itertools
import pathlib
from collections.abc import Callable, Iterator

import torch

from ..flow import forward_backward_confidence, forward_backward_consistency, read_flow
from ..flow.formats import SUFFIXES
from ..frames import Frames, ImageSequence
from ..models.pair_flow import PairFlow
from ._estimate import Estimator, Warm, load_estimator, model_identity, source_name

FORWARD, BACKWARD = "flow", "flow_backward"


def load_flow(args: argparse.Namespace) -> tuple[Estimator, str, str]:
    """``--flow DIR`` or else a model, with its name and what identifies it in the settings of a run.

    Raises:
        FileNotFoundError, ValueError: what :class:`FlowFiles` and :func:`load_estimator` raise.
    """
    if args.flow is not None:
        if args.weights is not None or args.model is not None:
            raise ValueError("--flow gives the flow itself; leave out --weights and --model")
        return FlowFiles(args.flow), str(args.flow), str(args.flow.resolve())
    estimator = load_estimator(args)
    return estimator, str(source_name(args)), model_identity(estimator.model)


def frame_names(frames: Frames) -> Callable[[int], str]:
    """The name that files made from frame ``index`` get, also for the last frame, which starts no pair."""
    paths = frames.paths if isinstance(frames, ImageSequence) else []
    if len({path.stem for path in paths}) < len(paths):
        return lambda index: paths[index].name
    return frames.name


class FlowFiles:
    """A folder of flow files in both directions as an :class:`~daflow_ext.cli._estimate.Estimator`.

    ``DIR/flow/NAME`` holds the flow from frame NAME to the next, ``DIR/flow_backward/NAME`` that back, in any format;
    NAME is that of the earlier frame, as ``daflow infer --bidirectional`` names it.

    Raises:
        FileNotFoundError: one of the two folders is missing.
    """

    model: object = None
    name, stride, iters = "flow files", 1, 0
    device = torch.device("cpu")
    settings: dict[str, object]

    def __init__(self, root: pathlib.Path):
        for kind in (FORWARD, BACKWARD):
            if not (root / kind).is_dir():
                raise FileNotFoundError(
                    f"{root} has no folder {kind}/; expected what `daflow infer --bidirectional -o {root}` writes"
                )
        self.root, self.settings = root, {"model": self.name}

    def pairs(
        self,
        frames: Frames,
        *,
        warm_start: bool = False,
        bidirectional: bool = True,
        start: int = 0,
        warm: Warm | None = None,
    ) -> Iterator[PairFlow]:
        """The pairs of ``frames`` from ``start`` on; both directions in any case, nothing to warm."""
        image1 = None
        for index, image2 in enumerate(itertools.islice(frames, start, None), start):
            if image1 is not None:
                flow = self._read(FORWARD, frames.name(index - 1), image1)
                back = self._read(BACKWARD, frames.name(index - 1), image1)
                occluded = forward_backward_consistency(flow, back)
                confidence = forward_backward_confidence(flow, back)
                yield PairFlow(index - 1, image1, image2, flow, back, occluded, confidence, seconds=0.0)
            image1 = image2

    def _read(self, kind: str, name: str, image: torch.Tensor) -> torch.Tensor:
        folder = self.root / kind
        path = next((path for suffix in SUFFIXES.values() if (path := folder / (name + suffix)).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{folder} holds no flow file for frame {name} (such as {name}.flo)")
        flow = read_flow(path)
        if flow.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"{path} is {flow.shape[2]}x{flow.shape[1]} but frame {name} is {image.shape[2]}x{image.shape[1]}"
            )
        return flow
