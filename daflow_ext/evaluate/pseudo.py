"""Pseudo ground truth: a teacher's flow on high-quality video, with a confidence per pixel."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import torch

from ..datasets import BadItemError, Folder
from ..flow import warp, write_flow
from ..flow._codecs import KITTI_RANGE
from ..flow.formats import SUFFIXES
from ..frames import write_image
from ..frames._files import atomic_path, json_object
from .predictors import Predictor
from .runner import BadItem, load_clips

MANIFEST = "pseudo.json"
ALPHA1, ALPHA2 = 0.01, 0.5


def confidence(
    flow_fw: torch.Tensor, flow_bw: torch.Tensor, alpha1: float = ALPHA1, alpha2: float = ALPHA2
) -> torch.Tensor:
    """How well going forth and back returns, as 1 / (1 + q) with q the squared gap over what is allowed.

    q = |f + b'|^2 / (alpha1 (|f|^2 + |b'|^2) + alpha2), b' = flow_bw(p + flow_fw(p)). Above 1/2 exactly where
    :func:`daflow_ext.flow.forward_backward_consistency` calls a pixel visible; 0 where p leaves the image.

    Shapes: [2, H, W] -> [H, W] in [0, 1].
    """
    returned, inside = warp(flow_bw, flow_fw, mask=True)
    gap = (flow_fw + returned).square().sum(0)
    allowed = alpha1 * (flow_fw.square().sum(0) + returned.square().sum(0)) + alpha2
    return torch.where(inside, allowed / (allowed + gap), 0.0).nan_to_num(0.0)


def write_pseudo(
    dataset: Folder,
    predictor: Predictor,
    output: pathlib.Path,
    *,
    file_format: str = "png16",
    backward: bool = False,
    skip_bad: bool = False,
    workers: int = 1,
    step: Callable[[int], object] = lambda count: None,
) -> dict:
    """Write flow and confidence of every pair; pairs that are there already are kept, so a run can be continued.

    ``OUT/<sequence>/flow/<frame>.png``, ``OUT/<sequence>/confidence/<frame>.png`` (255 = certain, valid from 128 up);
    with ``backward`` also ``flow_backward`` and ``confidence_backward``, of the pair's second frame, under the name of
    the first. Vectors beyond KITTI's range (``png16``) are marked unknown.

    Returns the manifest, which ``output`` holds too.
    Raises:
        ValueError: ``output`` was made by another teacher or with other settings.
        BadItemError: frames that cannot be read; with ``skip_bad`` they are listed in the manifest.
    """
    output.mkdir(parents=True, exist_ok=True)
    settings = {
        "teacher": predictor.name,
        "identity": predictor.identity,
        "format": file_format,
        "backward": backward,
        "alpha1": ALPHA1,
        "alpha2": ALPHA2,
    }
    _check_settings(output / MANIFEST, settings)
    paths = {index: _paths(dataset, index, output, file_format, backward) for index in range(len(dataset))}
    todo = [index for index, files in paths.items() if not all(path.is_file() for path in files.values())]
    step(len(paths) - len(todo))
    bad = {}
    for index, clip in zip(todo, load_clips(dataset, todo, workers), strict=True):
        if isinstance(clip, BadItem):
            if not skip_bad:
                raise BadItemError(f"{clip.name}: {clip.reason}", clip.name, clip.reason)
            bad[clip.name] = clip.reason
        else:
            _write_pair(paths[index], clip.frames, clip.meta, predictor)
        step(1)
    manifest = settings | {"pairs": len(paths) - len(bad), "sequences": len(dataset.sequences), "bad": bad}
    _write(output / MANIFEST, manifest)
    return manifest


def _paths(
    dataset: Folder, index: int, output: pathlib.Path, file_format: str, backward: bool
) -> dict[str, pathlib.Path]:
    number, pair = dataset.items[index]
    sequence = dataset.sequences[number]
    folder, stem = output / sequence.name, sequence.frames.name(pair)
    paths = {}
    for kind in ("", "_backward") if backward else ("",):
        # confidence last: it stands for a complete pair
        paths[f"flow{kind}"] = folder / f"flow{kind}" / (stem + SUFFIXES[file_format])
        paths[f"confidence{kind}"] = folder / f"confidence{kind}" / f"{stem}.png"
    return paths


def _write_pair(paths: dict[str, pathlib.Path], frames: Any, meta: dict, predictor: Predictor) -> None:
    pair, pad_mode = meta["pair"], meta["pad_mode"]
    forward = predictor(frames, pair, pad_mode=pad_mode)
    back = predictor(frames, pair, backward=True, pad_mode=pad_mode)
    for kind, (flow, other) in {"": (forward, back), "_backward": (back, forward)}.items():
        if f"flow{kind}" not in paths:
            continue
        for path in (paths[f"flow{kind}"], paths[f"confidence{kind}"]):
            path.parent.mkdir(parents=True, exist_ok=True)
        low, high = KITTI_RANGE
        fits = ((flow >= low) & (flow <= high)).all(0) if paths[f"flow{kind}"].suffix == ".png" else None
        write_flow(paths[f"flow{kind}"], flow, fits)
        certain = (256 * confidence(flow, other)).clamp(max=255).byte()
        write_image(paths[f"confidence{kind}"], certain[None])


def _check_settings(path: pathlib.Path, settings: dict) -> None:
    if path.is_file():
        found = json_object(path)
        for name, value in settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{path.parent} was made with {name} = {found.get(name)!r}, this run has {value!r}; give another "
                    "output folder"
                )
    _write(path, settings)


def _write(path: pathlib.Path, manifest: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1))
