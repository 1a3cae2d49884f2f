"""Predictions in the folders and file formats that the benchmarks' servers take."""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..datasets import BadItemError, FlowDataset, FlowSequence, open_dataset
from ..flow import write_flow
from ..flow._codecs import KITTI_RANGE
from ..frames._files import atomic_path, json_object
from .predictors import Predictor
from .runner import BadItem, load_clips

MANIFEST = "submission.json"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One upload format.

    Attributes:
        parts: folder in the upload -> data set name; Sintel has two passes.
        path_of: (sequence, pair) -> path below that folder.
        split: the data set's test split.
        archive: the server takes a zip file of the folder.
        note: what is left to do by hand.
    """

    parts: Mapping[str, str]
    path_of: Callable[[FlowSequence, int], str]
    split: str = "test"
    archive: bool = False
    note: str = ""


def _sintel(sequence: FlowSequence, pair: int) -> str:
    return f"{sequence.name}/{sequence.frames.name(pair)}.flo"


def _kitti(sequence: FlowSequence, pair: int) -> str:
    return f"{sequence.frames.name(pair)}.png"


def _spring(sequence: FlowSequence, pair: int) -> str:
    scene, kind = sequence.name.split("/")
    number = sequence.frames.name(pair)[-4:]
    return f"{scene}/flow_{kind}/flow_{kind}_{number}.flo5"


BENCHMARKS = {
    "sintel": Benchmark(
        {"clean": "sintel-clean", "final": "sintel-final"},
        _sintel,
        note="pack clean and final with the benchmark's own bundler, then upload its file",
    ),
    "kitti-2012": Benchmark({"": "kitti-2012"}, _kitti, "testing", True, "upload the zip file"),
    "kitti-2015": Benchmark({"flow": "kitti-2015"}, _kitti, "testing", True, "upload the zip file"),
    "spring": Benchmark(
        {"": "spring"}, _spring, note="run the benchmark's own flow_subsampling on this folder, then upload its file"
    ),
}


def open_parts(name: str, root: pathlib.Path | None, clip: int) -> dict[str, FlowDataset]:
    """Folder in the upload -> its test set.

    Raises:
        LayoutError: the test split is not there.
    """
    rule = BENCHMARKS[name]
    options = {"split": rule.split, "clip": clip, "shorter": True}
    return {part: open_dataset(kind, root, **options) for part, kind in rule.parts.items()}


def write_submission(
    name: str,
    parts: Mapping[str, FlowDataset],
    predictor: Predictor,
    output: pathlib.Path,
    *,
    workers: int = 1,
    step: Callable[[int], object] = lambda count: None,
) -> dict:
    """Predict the whole test set into ``output``; files that are there already are kept, so a run can be continued.

    A submission must be complete, so a frame that cannot be read ends it. Flow beyond the range of KITTI's files is
    clipped to it, and the result says how many values.

    Returns the manifest, which ``output`` holds too.
    Raises:
        ValueError: ``output`` holds the submission of another model; a prediction that is not finite.
        BadItemError: a frame cannot be read.
    """
    rule = BENCHMARKS[name]
    output.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {"benchmark": name, "model": predictor.name, "identity": predictor.identity}
    _claim(output / MANIFEST, manifest)
    written: list[pathlib.Path] = []
    clipped = 0
    for part, dataset in parts.items():
        paths = {index: output / part / rule.path_of(*_place(dataset, index)) for index in range(len(dataset))}
        todo = [index for index, path in paths.items() if not path.is_file()]
        step(len(paths) - len(todo))
        for index, clip in zip(todo, load_clips(dataset, todo, workers), strict=True):
            if isinstance(clip, BadItem):
                raise BadItemError(f"{clip.name}: {clip.reason}", clip.name, clip.reason)
            flow = predictor(clip.inputs, clip.meta["pair"], pad_mode=clip.meta["pad_mode"])
            clipped += write_prediction(paths[index], flow)
            step(1)
        written += paths.values()
    manifest |= {"files": len(written), "clipped_values": clipped, "note": rule.note}
    if rule.archive:
        manifest["archive"] = str(_pack(output, written))
    _claim(output / MANIFEST, manifest)
    return manifest


def _place(dataset: FlowDataset, index: int) -> tuple[FlowSequence, int]:
    number, pair = dataset.items[index]
    return dataset.sequences[number], pair


def write_prediction(path: pathlib.Path, flow: torch.Tensor) -> int:
    """Write a dense flow; returns how many values did not fit KITTI's PNG and were clipped.

    Raises:
        ValueError: the flow is not finite everywhere.
    """
    if not flow.isfinite().all():
        raise ValueError(f"the flow predicted for {path} is not finite; the servers refuse such files")
    path.parent.mkdir(parents=True, exist_ok=True)
    beyond = 0
    if path.suffix == ".png":
        low, high = KITTI_RANGE
        beyond = int(((flow < low) | (flow > high)).sum())
        flow = flow.clamp(low, high)
    write_flow(path, flow)
    return beyond


def _claim(path: pathlib.Path, manifest: dict) -> None:
    """Write the manifest, unless the folder belongs to another submission."""
    if path.is_file():
        found = json_object(path)
        same = all(found.get(key) == manifest[key] for key in ("benchmark", "identity"))
        if not same:
            raise ValueError(
                f"{path.parent} holds the {found.get('benchmark')} submission of {found.get('model')} "
                f"({found.get('identity')}); give another output folder"
            )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1))


def _pack(output: pathlib.Path, files: list[pathlib.Path]) -> pathlib.Path:
    archive = output.with_name(f"{output.name}.zip")
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as pack:
        for file in files:
            pack.write(file, file.relative_to(output).as_posix())
    return archive
