"""``daflow align``: the neighbours of every frame, laid onto it, with masks of what they show of it."""

import argparse
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from tqdm import tqdm

from .. import __version__
from ..flow import Aligned, align
from ..frames import Frames, open_frames, read_image, write_image, write_video
from ..models.pair_flow import PairFlow
from ._estimate import Estimator, add_model_arguments, add_source_arguments
from ._flow_files import frame_names, load_flow
from ._run_folder import RunFolder

HELP = "warp the neighbours of every frame onto it, with occlusion masks"
DESCRIPTION = """\
For every frame: its neighbours, warped onto it along the flow, and masks of the pixels that they really show. What
video restoration needs to borrow from neighbouring frames.

OUT/before1/NAME.png, after1/NAME.png    the frame before, the frame after, laid onto frame NAME; up to --radius
OUT/before1_visible/NAME.png, ...        white = pixels of frame NAME that the neighbour shows too
OUT/preview.mp4                          before, frame, after side by side; what is not shown is red
OUT/run.json, pairs.jsonl                the settings, and a line per finished frame

A neighbour beyond the ends of the clip has no file. Flow to frames further away is chained along the frames between.
A pixel is masked where going there and back does not return, at any link of the chain. Every file appears whole or not
at all, and the same command goes on where a run ended; with other settings it asks for --overwrite."""
EXAMPLE = "daflow align clip.mp4 --radius 2 -o aligned"

_HIDDEN = torch.tensor([200.0, 0.0, 0.0])[:, None, None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", metavar="FRAME", help="images, or one folder of images, or one video")
    add_source_arguments(parser)
    parser.add_argument(
        "--flow",
        metavar="DIR",
        type=pathlib.Path,
        help="flow files in place of a model: DIR/flow and DIR/flow_backward, as `daflow infer --bidirectional` writes",
    )
    parser.add_argument("--radius", type=int, default=1, metavar="R", help="neighbours on each side (default 1)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=pathlib.Path,
        default="daflow_aligned",
        help="folder (default %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="discard the results of an earlier run in OUT")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_model_arguments(parser, iters=20)


class Window(NamedTuple):
    """A frame and its neighbours; ``center``: its place among ``frames`` [N, 3, H, W], ``number``: that in the clip."""

    number: int
    center: int
    frames: torch.Tensor
    forward: torch.Tensor
    backward: torch.Tensor


def run(args: argparse.Namespace) -> int:
    if args.radius < 1:
        raise ValueError(f"--radius must be at least 1, got {args.radius}")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file, a folder was expected")
    frames = open_frames(*args.input)
    estimator, source, identity = load_flow(args)
    settings = {
        "frames": [str(pathlib.Path(path).resolve()) for path in args.input],
        "flow": identity,
        "device": estimator.device.type,
        "radius": args.radius,
        **estimator.settings,
        "daflow": __version__,
    }
    folder = RunFolder(
        args.output, settings, frames=frames, used=lambda done: done + args.radius, overwrite=args.overwrite
    )
    _align(estimator, frames, folder, args.radius)
    preview = args.output / "preview.mp4"
    write_video(preview, _preview(frames, folder), getattr(frames, "fps", None) or 12.0)
    shares = [share for record in folder.records for share in record["visible_percent"].values()]
    visible = sum(shares) / len(shares)
    if args.json:
        records = [
            {"files": record["files"], "visible_percent": record["visible_percent"]} for record in folder.records
        ]
        summary = {"source": frames.source, "flow": source, "radius": args.radius, "output": str(args.output)}
        print(json.dumps({**summary, "visible_percent": visible, "preview": str(preview), "frames": records}, indent=2))
        return 0
    print(f"{estimator.name}: {len(folder.records)} frames, neighbours show {visible:.1f} % of them")
    print(preview)
    return 0


def _align(estimator: Estimator, frames: Frames, folder: RunFolder, radius: int) -> None:
    """Write what is missing."""
    start, _ = folder.resume(1, warm_start=False)
    if frames.length is not None and start >= frames.length:
        return
    name, begun = frame_names(frames), False
    first_pair = max(0, start - radius) // estimator.stride * estimator.stride
    pairs = estimator.pairs(frames, start=first_pair, bidirectional=True)
    windows = tqdm(_windows(pairs, radius, first_pair), total=frames.length, initial=start, unit="frame", disable=None)
    for window in windows:
        if window.number < start:  # was there already; only its flow is needed again
            continue
        if not begun:  # not before there is something to write: a refused input leaves no folder
            folder.begin()
            begun = True
        aligned = align(window.frames, window.forward, window.backward, window.center)
        folder.add(_write(folder.root, name(window.number), aligned), 1, None)


def _windows(pairs: Iterator[PairFlow], radius: int, first: int) -> Iterator[Window]:
    """Every frame with up to ``radius`` neighbours on each side; holds 2 * radius + 1 frames."""
    held: list[PairFlow] = []  # consecutive pairs
    index = first
    for pair in pairs:
        held.append(pair)
        if pair.index - index + 1 == radius:
            yield _window(held, index)
            index += 1
            held = [one for one in held if one.index >= index - radius]
    while held and index <= held[-1].index + 1:
        yield _window(held, index)
        index += 1
        held = [one for one in held if one.index >= index - radius]


def _window(held: list[PairFlow], index: int) -> Window:
    frames = torch.stack([*(pair.image1 for pair in held), held[-1].image2])
    forward, backward = (torch.stack([getattr(pair, name) for pair in held]) for name in ("forward", "backward"))
    return Window(index, index - held[0].index, frames, forward, backward)


def _write(root: pathlib.Path, name: str, aligned: Aligned) -> dict:
    """Write the neighbours and masks of a frame; returns what the run remembers of it."""
    files, shares = {}, {}
    for place, (frame, visible) in enumerate(zip(aligned.frames, aligned.visible, strict=True)):
        if place == aligned.reference:
            continue
        distance = place - aligned.reference
        kind = f"{'after' if distance > 0 else 'before'}{abs(distance)}"
        images = {kind: frame.round().clamp(0, 255).byte(), f"{kind}_visible": visible[None].byte() * 255}
        for folder, image in images.items():
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, image)
            files[folder] = str(path.relative_to(root))
        shares[kind] = 100 * visible.float().mean().item()
    return {"files": files, "visible_percent": shares}


def _preview(frames: Frames, folder: RunFolder) -> Iterator[torch.Tensor]:
    """Before, frame and after side by side, read back one by one: a clip of any length fits in memory."""
    for frame, record in zip(frames, folder.records, strict=True):
        sides = []
        for kind in ("before1", "after1"):
            side = frame.float() * 0
            if kind in record["files"]:
                visible = read_image(folder.root / record["files"][f"{kind}_visible"])[:1] > 0
                side = torch.where(visible, read_image(folder.root / record["files"][kind]).float(), _HIDDEN)
            sides.append(side.byte())
        yield torch.cat([sides[0], frame, sides[1]], -1)
