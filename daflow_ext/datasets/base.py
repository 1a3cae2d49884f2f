"""What all data sets share: sequences of frames with truth, clips cut from them, errors that name the item."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
import torch

from ..flow.formats import read_flow
from ..frames.io import read_image
from .low_quality import LowQuality
from .sources import FrameSource, ImageFrames

PathLike = str | os.PathLike


class LayoutError(ValueError):
    """The folder given is not the data set, or a part of it is missing; the message shows the expected layout."""


class BadItemError(ValueError):
    """One item cannot be read.

    Attributes: ``item``, its name in the data set, and ``reason``, which names the file; a loader's worker passes on
    the message alone, with both inside.
    """

    def __init__(self, message: str, item: str = "", reason: str = ""):
        super().__init__(message)
        self.item, self.reason = item, reason


@dataclasses.dataclass(frozen=True)
class Truth:
    """The files of one pair's ground truth: the flow and named masks."""

    flow: pathlib.Path
    masks: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FlowSequence:
    """Frames in the order of the flow (backward in time where the flow is), and the truth of pairs (i, i+1).

    Attributes:
        pairs: the scored first frames; None: every pair.
        group: sequences that are not independent of each other share one (directions of one scene); the name if empty.
        pad_mode: how a network's input is padded, if not as the data set says.
    """

    name: str
    frames: FrameSource
    truth: Mapping[int, Truth] = dataclasses.field(default_factory=dict)
    pairs: tuple[int, ...] | None = None
    group: str = ""
    pad_mode: str | None = None

    def scored(self) -> Sequence[int]:
        return range(len(self.frames) - 1) if self.pairs is None else self.pairs


@dataclasses.dataclass
class Clip:
    """A few consecutive frames with what is known of them. Arrays, or tensors with a batch axis after :func:`collate`.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB, as stored (high quality).
        lq: uint8 [T, H, W, 3], the same frames degraded; None without degradation.
        flow: float32 [T-1, H, W, 2] in pixels, pair t from frame t to t+1, 0 where unknown. Spring with all its samples
            has [T-1, 2H, 2W, 2]. None without truth.
        valid: bool [T-1, H, W] (or 2H, 2W), where the flow is known.
        masks: named bool [H, W] of the scored pair ("occluded", ...).
        meta: dataset, name, sequence (or group of sequences), index (of the item), first (frame of the sequence), pair
            (the scored one in the clip), pad_mode.
    """

    frames: Any
    lq: Any
    flow: Any
    valid: Any
    masks: dict[str, Any]
    meta: dict[str, Any]

    @property
    def inputs(self) -> Any:
        """What a model gets to see: the degraded frames if there are any."""
        return self.frames if self.lq is None else self.lq


class FlowDataset(torch.utils.data.Dataset):
    """Clips of ``clip`` frames around every scored pair of a data set.

    The scored pair comes first in its clip; where the sequence ends earlier, the clip is shifted back.

    Args:
        root: the data set's folder, laid out as its publisher does (``layout``).
        clip: frames per clip, at least 2.
        shorter: a sequence of fewer frames is a clip as it is (evaluation), not an error.
        every_pair: read the truth of all pairs of the clip (training), not only of the scored one.
        degrade: makes low quality from high on the fly: ``degrade(frames uint8 [F, H, W, 3], seed) -> same``.
        lq_root: folder with precomputed low-quality frames under the same relative paths; instead of ``degrade``.
        lq_window: how many frames are degraded together: "sequence" (all, as an evaluation set should be), or a number,
            at least the clip. None: the clip alone.
        seed: decides every degradation, together with the names of sequence and window.
    Raises:
        LayoutError: ``root`` is not this data set. While indexing: :class:`BadItemError`.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    layout: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("training",)
    protocol: str = "dense"
    pad_mode: ClassVar[str] = "sintel"
    lq_window: ClassVar[int | str] = "sequence"
    """What evaluation should degrade together."""

    def __init__(
        self,
        root: PathLike,
        *,
        split: str = "training",
        clip: int = 2,
        shorter: bool = False,
        every_pair: bool = False,
        degrade: Callable[[np.ndarray, int], np.ndarray] | None = None,
        lq_root: PathLike | None = None,
        lq_window: int | str | None = None,
        seed: int = 0,
    ):
        if clip < 2:
            raise ValueError(f"{self.name}: a clip has at least 2 frames, got {clip}")
        if split not in self.splits:
            raise ValueError(f"{self.name}: split must be one of {', '.join(self.splits)}, got {split!r}")
        self.root, self.split = pathlib.Path(root), split
        self.clip, self.shorter, self.every_pair = clip, shorter, every_pair
        self.low_quality = LowQuality.choose(self.name, self.root, degrade, lq_root, lq_window, seed)
        if not self.root.is_dir():
            raise self.layout_error(f"{self.root} is no folder")
        self.sequences = self.find_sequences()
        self.items = [(number, pair) for number, one in enumerate(self.sequences) for pair in one.scored()]
        if not self.items:
            raise self.layout_error(f"no frame pair was found in {self.root}")
        longest = max(len(one.frames) for one in self.sequences)
        if clip > longest and not shorter:
            raise ValueError(f"{self.name}: a clip of {clip} frames was asked for, the longest sequence has {longest}")

    # -- what a data set defines --------------------------------------------------------------------------------------
    def find_sequences(self) -> list[FlowSequence]:
        """All sequences below ``root``, sorted; raises :meth:`layout_error` for a wrong or partial tree."""
        raise NotImplementedError

    def read_truth(self, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
        """Flow [H, W, 2] with zeros where unknown, and valid [H, W]."""
        flow, valid = read_flow(truth.flow, return_valid=True, unknown=0.0)
        return flow.permute(1, 2, 0).numpy(), valid.numpy()

    def read_masks(self, truth: Truth, valid: np.ndarray) -> dict[str, np.ndarray]:
        """Named masks [H, W]; by default, white is True in every mask file."""
        return {name: read_mask(path) for name, path in truth.masks.items()}

    # -- indexing -----------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.items)

    def item_name(self, index: int) -> str:
        """A name that stays the same between runs: ``<sequence>/<first frame>``."""
        sequence, pair = self._item(index)
        return f"{sequence.name}/{sequence.frames.name(pair)}"

    def _item(self, index: int) -> tuple[FlowSequence, int]:
        number, pair = self.items[index]
        return self.sequences[number], pair

    def __getitem__(self, index: int) -> Clip:
        sequence, pair = self._item(index)
        name = self.item_name(index)
        try:
            return self._read(sequence, pair, name, index)
        except (ValueError, OSError) as error:
            raise BadItemError(f"{name}: {error}", name, str(error)) from error

    def _read(self, sequence: FlowSequence, pair: int, name: str, index: int) -> Clip:
        length = min(self.clip, len(sequence.frames)) if self.shorter else self.clip
        first = min(pair, len(sequence.frames) - length)
        if first < 0:
            raise ValueError(f"the sequence has {len(sequence.frames)} frames, a clip needs {self.clip}")
        frames = sequence.frames.read(first, first + length)
        scored = pair - first
        flow, valid, masks = self._read_truths(sequence, range(first, first + length - 1), scored, frames.shape[1:3])
        lq = self.low_quality(sequence, first, frames) if self.low_quality else None
        meta = {
            "dataset": self.name,
            "name": name,
            "sequence": sequence.group or sequence.name,
            "index": index,
            "first": first,
            "pair": scored,
            "pad_mode": sequence.pad_mode or self.pad_mode,
        }
        return Clip(frames, lq, flow, valid, masks, meta)

    def _read_truths(
        self, sequence: FlowSequence, pairs: range, scored: int, size: tuple[int, int]
    ) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, np.ndarray]]:
        """Stacked truth of the clip's pairs (zeros and invalid where none is read) and the scored pair's masks."""
        wanted = range(len(pairs)) if self.every_pair else [scored]
        found = {t: sequence.truth[pairs[t]] for t in wanted if pairs[t] in sequence.truth}
        if not found:
            return None, None, {}
        flows, valids, masks = None, np.zeros(0, bool), {}
        for t, truth in found.items():
            flow, valid = self.read_truth(truth)
            if valid.shape != self.truth_size(size):
                raise ValueError(
                    f"{truth.flow} is {valid.shape[1]}x{valid.shape[0]}, its frames are {size[1]}x{size[0]} pixels"
                )
            if flows is None:
                flows = np.zeros((len(pairs), *flow.shape), np.float32)
                valids = np.zeros((len(pairs), *valid.shape), bool)
            flows[t], valids[t] = flow, valid
            if t == scored:
                masks = self.read_masks(truth, valid)
        return flows, valids, masks

    def truth_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the truth of frames of this size must have."""
        return size

    def layout_error(self, problem: str) -> LayoutError:
        return LayoutError(f"{self.name}: {problem}. Expected layout:\n{self.layout}")

    def need_folder(self, *parts: str) -> pathlib.Path:
        """``root / parts``, or the layout error that says it is missing."""
        path = self.root.joinpath(*parts)
        if not path.is_dir():
            raise self.layout_error(f"the folder {path} is missing")
        return path

    def set_epoch(self, epoch: int) -> None:
        """Give every clip another degradation in this epoch (call it before the loader starts its workers)."""
        if self.low_quality:
            self.low_quality.epoch = epoch


def read_mask(path: pathlib.Path) -> np.ndarray:
    """A black-and-white image as bool [H, W]: non-zero is True."""
    return (read_image(path) > 0).any(0).numpy()


def numbered(folder: pathlib.Path, pattern: str) -> dict[int, pathlib.Path]:
    """Files of ``folder`` whose name matches ``pattern`` with one number group, by that number."""
    matcher = re.compile(pattern)
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            match = matcher.fullmatch(entry.name)
            if match and not entry.name.startswith("."):
                found[int(match[1])] = folder / entry.name
    return dict(sorted(found.items()))


def complete(
    found: Mapping[int, pathlib.Path], folder: pathlib.Path, name: str, also: Iterable[int] = ()
) -> ImageFrames:
    """Frames from the first to the last number; a missing one keeps its place, so that reading it names the file.

    ``name`` is a file's in ``folder``, with braces for the number (``frame{:02d}.png``); ``also`` are numbers that must
    exist, because there is truth for them.
    """
    numbers = {*found, *also}
    every = range(min(numbers), max(numbers) + 1)
    return ImageFrames([found.get(number) or folder / name.format(number) for number in every])


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def worker_init(worker: int) -> None:
    """For ``DataLoader(worker_init_fn=worker_init)``: workers are the parallelism, OpenCV adds no threads in them."""
    cv2.setNumThreads(0)


def collate(clips: Sequence[Clip]) -> Clip:
    """A batch for ``torch.utils.data.DataLoader(collate_fn=collate)``: tensors [B, ...], meta as lists.

    Masks that not all clips have are dropped.

    Raises:
        ValueError: clips of different sizes, or only some with truth.
    """
    fields = {}
    for field in ("frames", "lq", "flow", "valid"):
        values = [getattr(one, field) for one in clips]
        known = [value is not None for value in values]
        if any(known) and not all(known):
            raise ValueError(f"only {sum(known)} of {len(clips)} clips have {field}; they cannot share a batch")
        fields[field] = _stack(field, values) if all(known) else None
    shared = set.intersection(*(set(one.masks) for one in clips))
    masks = {name: _stack(name, [one.masks[name] for one in clips]) for name in sorted(shared)}
    return Clip(**fields, masks=masks, meta={key: [one.meta[key] for one in clips] for key in clips[0].meta})


def _stack(name: str, arrays: list[np.ndarray]) -> torch.Tensor:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"{name} of one batch must have one size, got {', '.join(map(str, sorted(shapes)))}")
    return torch.from_numpy(np.stack(arrays))
