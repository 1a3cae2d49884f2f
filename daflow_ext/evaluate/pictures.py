"""Pictures of single results: frame, input, truth, prediction, error."""

import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..datasets import Clip, FlowDataset
from ..flow import error_to_image, flow_to_image, write_report
from ..flow.metrics import PROTOCOLS, Tally
from ..frames import write_image
from .predictors import Predictor
from .records import RecordFile

ERROR_SCALE = 10.0
"""Pixels of error that are drawn in the brightest colour."""

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


def panels(clip: Clip, predictor: Predictor, protocol: str) -> Panels:
    """Named uint8 [3, H, W] pictures of one item; both flows share the scale of the truth."""
    pair = clip.meta["pair"]
    flow = predictor(clip.inputs, pair, pad_mode=clip.meta["pad_mode"])
    rule = PROTOCOLS[protocol]
    truth = torch.from_numpy(np.ascontiguousarray(clip.flow[pair])).permute(2, 0, 1)
    truth = torch.where(torch.from_numpy(clip.valid[pair]), truth, torch.nan)
    errors = rule.errors(flow, truth, None)
    shown = truth[:, :: rule.samples, :: rule.samples]
    scale = max(1.0, float(torch.linalg.vector_norm(shown.nan_to_num(), dim=0).max()))
    pictures = {"frame": _picture(clip.frames[pair])}
    if clip.lq is not None:
        pictures["input"] = _picture(clip.lq[pair])
    pictures["truth"] = flow_to_image(shown, scale)
    pictures["prediction"] = flow_to_image(flow, scale)
    pictures[f"error, bright = {ERROR_SCALE:g} px"] = error_to_image(
        torch.where(errors.valid, errors.epe, torch.nan), ERROR_SCALE
    )
    return pictures


def _picture(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))


def write_worst(
    folder: pathlib.Path,
    dataset: FlowDataset,
    predictor: Predictor,
    worst: Sequence[tuple[str, float]],
    indices: Mapping[str, int],
    *,
    html: bool = False,
) -> list[pathlib.Path]:
    """One PNG per item of :func:`worst_items`, pictures below each other; with ``html`` also a page to step through."""
    folder.mkdir(parents=True, exist_ok=True)
    written, shown = [], []
    for place, (item, error) in enumerate(worst, start=1):
        pictures = panels(dataset[indices[item]], predictor, dataset.protocol)
        path = folder / f"{place:02d}-{file_name(item)}-{error:.2f}px.png"
        write_image(path, torch.cat(list(pictures.values()), dim=1))
        written.append(path)
        shown.append(pictures)
    if html and shown:
        by_name = {name: [pictures[name] for pictures in shown] for name in shown[0]}
        write_report(
            folder / "index.html",
            by_name,
            title=f"{predictor.name}: the {len(shown)} worst pairs of {dataset.name}",
            statistics=[{"EPE (px)": error} for _, error in worst],
            settings={f"step {place}": item for place, (item, _) in enumerate(worst, start=1)},
            max_flow=1.0,
        )
        written.append(folder / "index.html")
    return written


def file_name(text: str) -> str:
    """``text`` as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)
