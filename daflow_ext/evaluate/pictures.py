"""Pictures of single results: frame, input, truth, prediction, error."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ..datasets import Clip, FlowDataset
from ..flow import Report, error_to_image, flow_to_image
from ..flow.metrics import PROTOCOLS, Tally
from ..frames import write_image
from .predictors import Predictor
from .records import RecordFile

ERROR_SCALE = 10.0
"""Pixels of error that are drawn in the brightest colour."""

FRAME, DEGRADED = "Frame", "Degraded"
"""What a report calls the clean frame and what the model saw."""

Panels = dict[str, torch.Tensor]


def worst_items(
    records: RecordFile, model: str, level: str, items: Sequence[str], count: int
) -> list[tuple[str, float]]:
    """The ``count`` items with the largest mean error, worst first: (name, EPE)."""
    scored = []
    for item in items:
        record = records.records.get((model, level, item), {})
        total = Tally.from_list(record["strata"]["all"]) if "strata" in record else None
        if total and total.count:
            scored.append((item, total.mean()["epe"]))
    return sorted(scored, key=lambda pair: -pair[1])[:count]


@dataclasses.dataclass(frozen=True)
class _Judged:
    """An item and its prediction; unknown is NaN. Of a truth with several samples per pixel, the first is shown."""

    frame: torch.Tensor
    degraded: torch.Tensor | None
    truth: torch.Tensor
    flow: torch.Tensor
    error: torch.Tensor


def _judge(clip: Clip, predictor: Callable[..., torch.Tensor], protocol: str) -> _Judged:
    pair, rule = clip.meta["pair"], PROTOCOLS[protocol]
    flow = predictor(clip.inputs, pair, pad_mode=clip.meta["pad_mode"])
    truth = torch.from_numpy(np.ascontiguousarray(clip.flow[pair])).permute(2, 0, 1)
    truth = torch.where(torch.from_numpy(clip.valid[pair]), truth, torch.nan)
    errors = rule.errors(flow, truth, None)
    return _Judged(
        _picture(clip.frames[pair]),
        None if clip.lq is None else _picture(clip.lq[pair]),
        truth[:, :: rule.samples, :: rule.samples],
        flow,
        torch.where(errors.valid, errors.epe, torch.nan),
    )


def panels(clip: Clip, predictor: Callable[..., torch.Tensor], protocol: str) -> Panels:
    """Named uint8 [3, H, W] pictures of one item; both flows share the scale of the truth.

    ``predictor`` is called as a :class:`Predictor`, without ``backward``.
    """
    return _panels(_judge(clip, predictor, protocol))


def _panels(one: _Judged) -> Panels:
    scale = max(1.0, float(torch.linalg.vector_norm(one.truth.nan_to_num(), dim=0).max()))
    return {
        "frame": one.frame,
        **({} if one.degraded is None else {"input": one.degraded}),
        "truth": flow_to_image(one.truth, scale),
        "prediction": flow_to_image(one.flow, scale),
        f"error, bright = {ERROR_SCALE:g} px": error_to_image(one.error, ERROR_SCALE),
    }


def _picture(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))


def write_worst(
    folder: pathlib.Path,
    dataset: FlowDataset,
    predictor: Predictor,
    worst: Sequence[tuple[str, float]],
    indices: Mapping[str, int],
    *,
    report: Report | None = None,
    level: str = "",
) -> list[pathlib.Path]:
    """One PNG per item of :func:`worst_items`, pictures below each other; they also become steps of a ``report``."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for place, (item, error) in enumerate(worst, start=1):
        one = _judge(dataset[indices[item]], predictor, dataset.protocol)
        path = folder / f"{place:02d}-{file_name(item)}-{error:.2f}px.png"
        write_image(path, torch.cat(list(_panels(one).values()), dim=1))
        written.append(path)
        if report is not None:
            report.add_step(
                f"{predictor.name}, {level}: {item}",
                images={FRAME: one.frame} | ({} if one.degraded is None else {DEGRADED: one.degraded}),
                flows={"Flow": one.flow, "True flow": one.truth},
                statistics={"EPE (px)": error},
            )
    return written


def file_name(text: str) -> str:
    """``text`` as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)
