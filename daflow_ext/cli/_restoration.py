"""The parts of ``daflow restore``: its model, the flows that guide, the walk along the clip, the scores."""

import argparse
import copy
import dataclasses
import pathlib
import types
from collections.abc import Iterable, Iterator

import torch
from tqdm import tqdm

from .. import __version__
from ..evaluate.restored_video import score_videos
from ..features.restoration import LATENT_FACTOR, LiftedRestoration
from ..frames import Frames, read_image, write_image
from ..models import RAFT, registry
from ..models.chunks import MULTIPLE, tile_overlap
from ..models.guidance import GuidanceSettings
from ..models.restore import restore_video
from ._estimate import (
    DAFlowEstimator,
    Estimator,
    chosen_device,
    estimator_options,
    load_estimator,
    load_model,
    model_identity,
)
from ._flow_files import FlowFiles, frame_names
from ._run_folder import RunFolder

FLOWS = ("none", "raft", "daflow")


@dataclasses.dataclass
class Restorer:
    """The restoration loop; the pipeline it is part of, if any; where its weights come from; what identifies them."""

    loop: LiftedRestoration
    pipe: object | None
    origin: str
    identity: str


def load(args: argparse.Namespace) -> Restorer:
    """The model of ``--model``.

    Raises:
        FileNotFoundError, ValueError: no such model, one that restores nothing.
    """
    name, path, pipe = str(args.model), pathlib.Path(args.model), None
    if name == "tiny" or (path.is_dir() and not (path / "flow").is_dir()):
        dtype = getattr(torch, args.dtype or "float32")
        loop = LiftedRestoration.load(name, dtype=dtype, device=str(chosen_device(args)))
    else:
        pipe = load_model(name, args)
        if isinstance(pipe, RAFT):
            raise ValueError(f"--model {name} is RAFT, which restores nothing; a DA-Flow model was expected")
        loop = pipe.restoration()
    if args.backend == "reference":
        loop.transformer.set_attention_backend("reference")
    if args.tile is not None:
        if args.tile < 4 * MULTIPLE or args.tile % MULTIPLE:
            raise ValueError(f"--tile must be a multiple of {MULTIPLE} of at least {4 * MULTIPLE}, got {args.tile}")
        loop.tile, loop.tile_overlap = args.tile // LATENT_FACTOR, tile_overlap(args.tile) // LATENT_FACTOR
    parts = {part: getattr(loop, part) for part in ("vae", "transformer", "scheduler", "prompt")}
    millions = sum(p.numel() for part in (loop.vae, loop.transformer) for p in part.parameters()) / 1e6
    origin = f"the folder {name}"
    if name == "tiny":
        origin = "tiny, an untrained toy: the result means nothing"
    elif not path.exists() and (registry.SHIPPED / name).is_dir():
        origin = f"{name}, which comes with the package, trained for its features: its frames are worse than the input"
    return Restorer(
        loop, pipe, f"{origin} ({millions:.1f} M parameters)", model_identity(types.SimpleNamespace(components=parts))
    )


def open_flow(kind: str, args: argparse.Namespace, model: Restorer) -> Estimator | None:
    """What guides: none, raft, daflow or a folder of flow files.

    Raises:
        FileNotFoundError, ValueError: weights or files that are not there.
    """
    if kind == "none":
        return None
    if kind == "raft":
        raft = _flow_model(args.raft, args)
        if not isinstance(raft.model, RAFT):
            raise ValueError(f"--raft {args.raft} is a DA-Flow; for its flow give --flow daflow --daflow {args.raft}")
        return raft
    if kind != "daflow":
        return FlowFiles(pathlib.Path(kind))
    pipe = model.pipe if args.daflow is None else load_model(args.daflow, args)
    if pipe is None or isinstance(pipe, RAFT):
        raise ValueError(f"--flow daflow: {args.daflow or args.model} has no such flow; give --daflow PIPELINE")
    return DAFlowEstimator(pipe, **estimator_options(pipe, args))


def _flow_model(source: str, args: argparse.Namespace) -> Estimator:
    options = copy.copy(args)
    options.weights, options.model = None, source
    for name in ("steps", "feature_steps", "noise_seed", "memory_budget", "dtype"):
        setattr(options, name, None)  # these are the restoration's here
    return load_estimator(options)


def run_folder(
    args: argparse.Namespace,
    frames: Frames,
    model: Restorer,
    label: str,
    flow: Estimator | None,
    guidance: GuidanceSettings,
) -> RunFolder:
    """The record of one result in OUT; what an earlier run of the same settings finished is kept."""
    identity = None
    if flow is not None:
        identity = str(flow.root.resolve()) if isinstance(flow, FlowFiles) else model_identity(flow.model)
    settings = {
        "frames": [str(pathlib.Path(path).resolve()) for path in args.input],
        "restoration": model.identity,
        "steps": _steps(args),
        "seed": args.noise_seed or 0,
        "color_fix": args.color_fix,
        "tile": args.tile,
        "dtype": str(model.loop.transformer.dtype).removeprefix("torch."),
        "device": model.loop.transformer.device.type,
        "backend": args.backend,
        "flow": identity,
        "flow_settings": None if flow is None else flow.settings,
        "guidance": None if flow is None else dataclasses.asdict(guidance),
    }
    return RunFolder(
        args.output / label,
        {**settings, "daflow": __version__},
        frames=frames,
        used=lambda chunks: 2 * chunks + 1,
        overwrite=args.overwrite,
    )


def _steps(args: argparse.Namespace) -> int:
    return 10 if args.steps is None else args.steps


def restore(
    frames: Frames,
    model: Restorer,
    flow: Estimator | None,
    folder: RunFolder,
    guidance: GuidanceSettings,
    args: argparse.Namespace,
) -> None:
    """Write the frames that are missing."""
    start, warm = folder.resume(1, warm_start=flow is not None)
    # a chunk is two pairs
    pairs = None if flow is None else flow.pairs(frames, start=2 * start, bidirectional=True)
    chunks = restore_video(
        frames,
        model.loop,
        pairs=pairs,
        guidance=guidance,
        num_inference_steps=_steps(args),
        generator=torch.Generator().manual_seed(args.noise_seed or 0),
        color_fix=args.color_fix,
        start=start,
        anchor=warm["anchor"] if warm else None,
        backend="reference" if args.backend == "reference" else "auto",
    )
    name, total = frame_names(frames), frames.length and frames.length // 2
    begun = False
    for chunk in tqdm(chunks, desc=folder.root.name, total=total, initial=start, unit="chunk", disable=None):
        if not begun:  # not before there is something to write: a refused input leaves no folder
            folder.begin()
            (folder.root / "frames").mkdir(exist_ok=True)
            begun = True
        files = {}
        for index, frame in enumerate(chunk.frames, chunk.first):
            files[str(index)] = f"frames/{name(index)}.png"
            write_image(folder.root / files[str(index)], frame.round().byte())
        record = {"files": files, "seconds": round(chunk.seconds, 4)}
        folder.add(record, 1, None if flow is None else {"anchor": chunk.anchor})


def written(folder: RunFolder) -> Iterator[torch.Tensor]:
    """The frames of a result, read back one by one."""
    for record in folder.records:
        for path in record["files"].values():
            yield read_image(folder.root / path)


def score(
    frames: Frames, truth: Frames, results: dict[str, RunFolder], args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """The scores of the input and of every result against the clean video."""
    folder = pathlib.Path(args.truth_flow)
    estimator = FlowFiles(folder) if folder.is_dir() else _flow_model(args.truth_flow, args)
    videos: dict[str, Iterable[torch.Tensor]] = {"input": frames}
    videos |= {label: written(folder) for label, folder in results.items()}
    return score_videos(estimator.pairs(truth, bidirectional=True), videos, lpips_weights=args.lpips)
