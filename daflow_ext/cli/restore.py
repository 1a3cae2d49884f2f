"""``daflow restore``: a restored video, guided by flow; with the clean video a table of scores."""

import argparse
import json
import pathlib
import re
from typing import TYPE_CHECKING, Any

import torch

from .._extras import require_diffusers
from ..flow.metrics import lpips, psnr
from ..frames import Frames, ImageSequence, open_frames, write_video
from ..frames._files import atomic_path
from ..models.registry import DEFAULT_MODEL
from ._estimate import add_model_arguments
from ._run_folder import RunFolder

if TYPE_CHECKING:
    from ..models.guidance import GuidanceSettings

HELP = "restore a degraded video with the lifted transformer, guided by flow"
DESCRIPTION = """\
Restores a clip with the restoration transformer of a DA-Flow model, three frames at a time. With --flow, every
denoising step pulls neighbouring frames together along the flow, where both show the same thing: less flicker.

--flow says which flow guides: none; raft (weights of --raft, on the frames as they came); daflow (--daflow, else the
model itself); or a folder of flow files, DIR/flow and DIR/flow_backward, as `daflow infer --bidirectional -o DIR`
writes (of the clean video: an oracle). Several make several videos beside each other.

OUT/restored/frames/NAME.png         with --flow none
OUT/guided-FLOW/frames/NAME.png      with another flow, named raft, daflow or after its folder
OUT/.../restored.mp4                 with --video
OUT/scores.json                      with --truth: PSNR, SSIM, LPIPS and warping error of input and results
OUT/.../run.json, pairs.jsonl        the settings, and a line per finished chunk

Frames keep their size: enlarge small ones first. Every file appears whole or not at all, and the same command goes on
where a run ended; with other settings it asks for --overwrite.

The warping error compares each frame with the next one warped back along the clean video's flow (--truth-flow), where
that is visible and no motion boundary."""
EXAMPLE = "daflow restore clip.mp4 --flow none raft --steps 10 -o restored --video"

RESTORATION_MODEL = "daflow-tiny"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", nargs="+", metavar="VIDEO_OR_FOLDER", help="one video, one folder of images, or images"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=pathlib.Path, default="daflow_restored", help="folder (%(default)s)"
    )
    parser.add_argument(
        "--model",
        metavar="M",
        default=RESTORATION_MODEL,
        help="the restoration: a model by name (`daflow list`), a DA-Flow or restoration folder, or 'tiny', an "
        "untrained toy (default %(default)s)",
    )
    parser.add_argument(
        "--flow", nargs="+", metavar="F", default=["raft"], help="none, raft, daflow or DIR; several (default raft)"
    )
    parser.add_argument(
        "--raft", metavar="M", default="raft-tiny-lq", help="for --flow raft: its name or weights (default %(default)s)"
    )
    parser.add_argument("--daflow", metavar="M", help="for --flow daflow (default: that of --model)")
    group = parser.add_argument_group("guidance")
    group.add_argument(
        "--guidance-scale", type=float, default=1.0, metavar="S", help="share of the best gradient step (default 1)"
    )
    group.add_argument("--guidance-steps", metavar="A-B", help="denoising steps that are guided, as 3-9 (default all)")
    group.add_argument(
        "--guidance-iterations", type=int, default=1, metavar="N", help="gradient steps in each of them (default 1)"
    )
    parser.add_argument(
        "--color-fix", choices=["adain", "wavelet", "none"], default="adain", help="tones follow the input (adain)"
    )
    parser.add_argument("--tile", type=int, metavar="PX", help="side of the transformer's tiles (default: no tiles)")
    parser.add_argument("--video", action="store_true", help="write an MP4 of each result too")
    group = parser.add_argument_group("scores")
    group.add_argument("--truth", type=pathlib.Path, metavar="CLEAN", help="the clean video or folder of frames")
    group.add_argument(
        "--truth-flow",
        metavar="M",
        default=DEFAULT_MODEL,
        help="its flow: a model by name or weights, or DIR (default %(default)s)",
    )
    group.add_argument(
        "--lpips", nargs="?", const=True, metavar="FILE", help="LPIPS too, of these weights; without FILE downloaded"
    )
    parser.add_argument("--overwrite", action="store_true", help="discard the results of an earlier run in OUT")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_model_arguments(parser, iters=20)


def run(args: argparse.Namespace) -> int:
    require_diffusers("daflow restore")
    from . import _restoration

    if args.lpips and args.truth is None:
        raise ValueError("--lpips compares with clean frames; give them by --truth")
    labels = _labels(args.flow)
    guidance = _guidance(args)
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}")
    frames = open_frames(*args.input)
    truth = None if args.truth is None else _truth(args, frames)
    model = _restoration.load(args)
    flows = {label: _restoration.open_flow(kind, args, model) for label, kind in labels.items()}
    if not args.json:
        print(f"restoration weights: {model.origin}", flush=True)
    results = {}
    for label, flow in flows.items():
        results[label] = _restoration.run_folder(args, frames, model, label, flow, guidance)
        _restoration.restore(frames, model, flow, results[label], guidance, args)
        if args.video:
            rate = getattr(frames, "fps", None) or 12.0
            write_video(args.output / label / "restored.mp4", _restoration.written(results[label]), rate)
    scores = None if truth is None else _restoration.score(frames, truth, results, args)
    if scores is not None:
        with atomic_path(args.output / "scores.json") as path:
            path.write_text(json.dumps(scores, indent=1) + "\n")
    summary = {
        "source": frames.source,
        "restoration": model.origin,
        "device": model.loop.transformer.device.type,
        "output": str(args.output),
        "results": {label: _result(folder) for label, folder in results.items()},
        "scores": scores,
    }
    _show(summary, args)
    return 0


def _labels(kinds: list[str]) -> dict[str, str]:
    """Folder of each result -> flow that guides it."""
    labels: dict[str, str] = {}
    for kind in kinds:
        label = "restored" if kind == "none" else f"guided-{pathlib.Path(kind).resolve().name}"
        if label in labels:
            raise ValueError(f"--flow {labels[label]} and {kind} would both be written to {label}/; name each once")
        labels[label] = kind
    return labels


def _guidance(args: argparse.Namespace) -> "GuidanceSettings":
    from ..models.guidance import GuidanceSettings

    first, last = 0, None
    if args.guidance_steps is not None:
        match = re.fullmatch(r"(\d+)-(\d+)", args.guidance_steps)
        if match is None:
            raise ValueError(f"--guidance-steps must be a range as 3-9, got {args.guidance_steps!r}")
        first, last = int(match[1]), int(match[2])
    return GuidanceSettings(args.guidance_scale, first, last, args.guidance_iterations)


def _truth(args: argparse.Namespace, frames: Frames) -> Frames:
    """The clean frames; what scoring needs is missed before the work, not after."""
    blank = torch.zeros(1, 3, 64, 64)
    psnr(blank, blank)
    if args.lpips:
        lpips(blank, blank, weights=None if args.lpips is True else args.lpips)
    truth = open_frames(args.truth)
    if isinstance(frames, ImageSequence) and isinstance(truth, ImageSequence) and frames.length != truth.length:
        raise ValueError(f"{args.truth} holds {truth.length} frames, {frames.source} {frames.length}")
    return truth


def _result(folder: RunFolder) -> dict[str, Any]:
    files = [str(folder.root / path) for record in folder.records for path in record["files"].values()]
    return {"frames": files, "seconds": round(sum(record["seconds"] for record in folder.records), 4)}


def _show(summary: dict, args: argparse.Namespace) -> None:
    from ..evaluate.restored_video import score_table

    if args.json:
        print(json.dumps(summary, indent=2))
        return
    for label, result in summary["results"].items():
        count = len(result["frames"])
        print(f"{args.output / label}: {count} frames, {result['seconds'] / count:.2f} s per frame")
    if summary["scores"] is not None:
        print(score_table(summary["scores"]))
        if not args.lpips:
            print("LPIPS is left out: give --lpips FILE with its weights (or --lpips, which downloads them)")
