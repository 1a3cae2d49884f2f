"""Scores models on a data set: item by item, in order, resumable, nothing skipped in silence."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..datasets import CLEAN, BadItemError, Clip, FlowDataset, worker_init
from ..flow.metrics import (
    PROTOCOLS,
    forward_backward_error,
    occlusion_and_boundaries,
    robustness,
    warping_error,
)
from .predictors import Predictor
from .records import RecordFile

UNSUPERVISED = ("forward_backward_px", "warping_error")
"""Scores of items without truth."""


@dataclasses.dataclass(frozen=True)
class BadItem:
    """An item that could not be scored."""

    name: str
    reason: str


class _Guarded(torch.utils.data.Dataset):
    """Clips of a data set; a bad item comes back as :class:`BadItem` instead of ending the loader."""

    def __init__(self, dataset: FlowDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Clip | BadItem:
        try:
            return self.dataset[index]
        except BadItemError as error:
            return BadItem(error.item, error.reason)


def load_clips(dataset: FlowDataset, indices: Sequence[int], workers: int) -> Iterator[Clip | BadItem]:
    """The clips of ``indices`` in this order, read ahead by ``workers`` processes (0: in this one)."""
    loader = torch.utils.data.DataLoader(
        _Guarded(dataset),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        worker_init_fn=worker_init,
        collate_fn=_as_it_is,
    )
    yield from loader


def _as_it_is(clip: Any) -> Any:
    return clip


def score_clip(clip: Clip, predictor: Predictor, protocol: str, *, compare_clean: bool = False) -> dict:
    """The scores of one item, as they go into the records.

    With truth: ``strata``, sums per group of pixels. Without: ``unsupervised``, from flows in both directions and the
    high-quality frames. ``compare_clean``: also ``robustness``, how far the degradation moved the prediction.

    Raises:
        ValueError: a prediction that is not finite.
    """
    pair, pad_mode = clip.meta["pair"], clip.meta["pad_mode"]
    began = time.perf_counter()
    flow = predictor(clip.inputs, pair, pad_mode=pad_mode)
    scores: dict = {"seconds": round(time.perf_counter() - began, 4)}
    if not flow.isfinite().all():
        raise ValueError(f"the flow predicted by {predictor.name} is not finite")
    if clip.flow is not None:
        truth = torch.from_numpy(clip.flow[pair]).permute(2, 0, 1)
        valid: Any = torch.from_numpy(clip.valid[pair])
        masks = {name: torch.from_numpy(mask) for name, mask in clip.masks.items()}
        rule = PROTOCOLS[protocol]
        if rule.samples > 1:  # the truth has several vectors per pixel; it marks unknown ones as NaN there
            truth, valid = torch.where(valid, truth, torch.nan), None
        scores["strata"] = {name: one.as_list() for name, one in rule.score(flow, truth, valid, masks).items()}
    else:
        backward = predictor(clip.inputs, pair, backward=True, pad_mode=pad_mode)
        scores["unsupervised"] = _without_truth(clip, flow[None], backward[None], pair)
    if compare_clean and clip.lq is not None:
        scores["robustness"] = robustness(predictor(clip.frames, pair, pad_mode=pad_mode), flow)
    return scores


def _without_truth(clip: Clip, forward: torch.Tensor, backward: torch.Tensor, pair: int) -> dict[str, float]:
    frames = torch.from_numpy(np.ascontiguousarray(clip.frames[pair : pair + 2])).permute(0, 3, 1, 2)
    hidden = occlusion_and_boundaries(forward, backward)
    return {
        "forward_backward_px": forward_backward_error(forward, backward).item(),
        "warping_error": warping_error(frames, forward, hidden).item(),
    }


def validate(
    open_level: Callable[[str], FlowDataset],
    levels: Sequence[str],
    predictors: Sequence[Predictor],
    records: RecordFile,
    *,
    indices: Callable[[FlowDataset], Sequence[int]] = lambda dataset: range(len(dataset)),
    workers: int = 1,
    compare_clean: bool = False,
    skip_bad: bool = False,
    step: Callable[[str], None] = lambda text: None,
) -> None:
    """Score every model at every level on the chosen items; results go to ``records``, those already there are kept.

    ``open_level(level)`` opens the data set with that degradation ("clean": none). ``step(text)`` is called after each
    item, also after those that were there before.

    Raises:
        BadItemError: an item that cannot be read or scored; with ``skip_bad`` it is recorded as bad instead.
    """
    for level in levels:
        dataset = open_level(level)
        names = {dataset.item_name(index): index for index in indices(dataset)}
        done = {one.name: records.done(one.name, one.identity, level) for one in predictors}
        waiting = {name: [one for one in predictors if name not in done[one.name]] for name in names}
        for _ in range(sum(len(predictors) - len(left) for left in waiting.values())):
            step(level)
        todo = [names[name] for name, left in waiting.items() if left]
        # one item, all models: it is loaded and degraded once
        for clip in load_clips(dataset, todo, min(workers, len(todo))):
            for predictor in waiting[clip.name if isinstance(clip, BadItem) else clip.meta["name"]]:
                record = _result(clip, predictor, dataset.protocol, compare_clean and level != CLEAN)
                if "error" in record and not skip_bad:
                    raise BadItemError(f"{record['item']}: {record['error']}", record["item"], record["error"])
                identity = {"model": predictor.name, "identity": predictor.identity, "level": level}
                records.add(identity | record)
                step(f"{level}, {predictor.name}")


def _result(clip: Clip | BadItem, predictor: Predictor, protocol: str, compare_clean: bool) -> dict:
    if isinstance(clip, BadItem):
        return {"item": clip.name, "error": clip.reason}
    item = {"item": clip.meta["name"], "sequence": clip.meta["sequence"]}
    try:
        return item | score_clip(clip, predictor, protocol, compare_clean=compare_clean)
    except ValueError as error:
        return item | {"error": str(error)}
