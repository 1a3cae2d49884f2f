"""``daflow benchmark``: where the time and the memory of a model go."""

import argparse
import dataclasses
import json
import platform
import re
from collections.abc import Callable
from typing import Any

import torch

from .. import __version__
from ..frames import InputPadder
from ..models import RAFT, get_model, list_models
from ..models.stages import StageMeter
from ._estimate import add_model_arguments, chosen_device, estimator_options, load_model

HELP = "time and peak memory of a model, stage by stage"
DESCRIPTION = """\
Runs a model on random frames and prints a table: VAE, transformer, heads, encoders, correlation, update, upsampling,
with milliseconds per run, CPU-seconds (on a CPU) and the growth of memory during the stage. A name of `daflow list`
whose weights are not there is measured with random ones: they do not change the arithmetic.

On a GPU every stage waits for the device, so the total is a little more than a run without the table."""
EXAMPLE = "daflow benchmark --model raft-small --size 128x256 --iters 4 --repeats 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", default="daflow-tiny", help="name, RAFT weights or pipeline folder")
    parser.add_argument("--size", metavar="HxW", default="256x256", help="of the frames (default %(default)s)")
    parser.add_argument("--frames", type=int, default=3, metavar="N", help="of the clip (default %(default)s)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="timed runs, after one that measures memory (default %(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch (default: torch's own choice)")
    parser.add_argument("--bidirectional", action="store_true", help="flow in both directions")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_model_arguments(parser, iters=20)


def run(args: argparse.Namespace) -> int:
    size = re.fullmatch(r"(\d+)x(\d+)", args.size)
    if size is None:
        raise ValueError(f"--size must be HEIGHTxWIDTH as 436x1024, got {args.size!r}")
    for name, least in (("frames", 2), ("repeats", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    try:
        result = _measure(args, int(size[1]), int(size[2]))
    finally:
        torch.set_num_threads(threads)
    print(json.dumps(result, indent=2) if args.json else _table(result))
    return 0


def _measure(args: argparse.Namespace, height: int, width: int) -> dict:
    model, weights = _model(args)
    options = estimator_options(model, args)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, args.frames, 3, height, width), generator=generator, dtype=torch.uint8)
    call = _raft_call(model, frames, args) if isinstance(model, RAFT) else _pipeline_call(model, frames, options, args)
    with torch.no_grad():
        with StageMeter(model, memory=True) as first:  # later runs reuse what the first one took
            call()
        with StageMeter(model, memory=False) as meter:
            for _ in range(args.repeats):
                call()
    peaks = {stage.name: stage.peak_bytes for stage in first.rows()}
    rows = []
    for stage in meter.rows():
        row = dataclasses.asdict(stage) | {
            "calls": max(1, round(stage.calls / args.repeats)),
            "peak_bytes": peaks[stage.name],
        }
        row["milliseconds"] = round(stage.milliseconds / args.repeats, 3)
        if stage.cpu_seconds is not None:
            row["cpu_seconds"] = round(stage.cpu_seconds / args.repeats, 4)
        rows.append(row)
    device = meter.device
    return {
        "model": args.model,
        "weights": weights,
        "size": [height, width],
        "frames": args.frames,
        "bidirectional": args.bidirectional,
        **options,
        "dtype": args.dtype or "float32",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "repeats": args.repeats,
        "highest_bytes": first.highest_bytes,
        "versions": {"daflow": __version__, "torch": torch.__version__},
        "stages": rows,
    }


def _model(args: argparse.Namespace) -> tuple[Any, str]:
    """The model and whether its weights are trained."""
    missing = {info.name for info in list_models() if not info.shipped}
    if args.model not in missing:
        return load_model(args.model, args), "trained"
    device = chosen_device(args)
    options = {} if args.dtype is None else {"torch_dtype": getattr(torch, args.dtype)}
    if args.model.startswith("raft-"):
        return get_model(args.model, pretrained=False, backend=args.backend).to(device), "random"
    model: Any = get_model(args.model, pretrained=False, **options)
    model.flow.float()  # as from_pretrained leaves it
    model.set_backend(args.backend)
    return model.to(device), "random"


def _raft_call(model: RAFT, frames: torch.Tensor, args: argparse.Namespace) -> Callable[[], None]:
    clip = InputPadder(frames.shape).pad(frames[0].to(next(model.parameters()).device))[0]

    def call() -> None:
        for first, second in zip(clip[:-1, None], clip[1:, None], strict=True):
            model(first, second, iters=args.iters, test_mode=True)
            if args.bidirectional:
                model(second, first, iters=args.iters, test_mode=True)

    return call


def _pipeline_call(
    model: Any, frames: torch.Tensor, options: dict[str, Any], args: argparse.Namespace
) -> Callable[[], None]:
    settings = {name: value for name, value in options.items() if name != "seed"}

    def call() -> None:
        generator = torch.Generator().manual_seed(options["seed"])
        model(frames, generator=generator, bidirectional=args.bidirectional, **settings)

    return call


def _table(result: dict) -> str:
    height, width = result["size"]
    steps = ""
    if "feature_steps" in result:
        steps = f", features of {result['feature_steps']} of {result['num_inference_steps']} steps"
    lines = [
        f"{result['model']} ({result['weights']} weights, {result['dtype']}), {result['frames']} frames of "
        f"{height}x{width}, {result['iters']} iterations{steps}; {result['device']}, {result['threads']} thread(s)",
        f"{'stage':<12} {'calls':>6} {'ms':>12} {'CPU-s':>9} {'peak MiB':>9}",
    ]
    for row in result["stages"]:
        cpu = "-" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.3f}"
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}"
        lines.append(f"{row['name']:<12} {row['calls']:>6.0f} {row['milliseconds']:>12.2f} {cpu:>9} {peak:>9}")
    if result["highest_bytes"] is not None:
        lines.append(f"most memory held, weights included: {result['highest_bytes'] / 2**20:.0f} MiB")
    return "\n".join(lines)
