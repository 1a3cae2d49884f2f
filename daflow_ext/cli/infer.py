"""``daflow infer``: flow between two frames, along a folder of frames or along a video."""

import argparse
import json
import pathlib
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..flow import write_flow
from ..flow.colors import length_quantile
from ..flow.formats import SUFFIXES
from ..frames import Frames, open_frames, write_image
from ..frames.io import IMAGE_SUFFIXES
from ..models.pair_flow import PairFlow
from ._estimate import Estimator, add_model_arguments, add_source_arguments, load_estimator, model_identity, source_name
from ._run_folder import RunFolder
from ._views import add_view_arguments, check_view_arguments, draw_run

HELP = "flow between two frames, along a folder of frames or a video"
DESCRIPTION = """\
Optical flow between two frames, or between all neighbouring frames of a folder or a video.

Flow is in pixels of the input frames: channel 0 = x to the right, channel 1 = y down. It points from the earlier frame
to the later one: pixel (x, y) of frame 1 is found at (x + flow[0], y + flow[1]) in frame 2.

OUT/flow/NAME.flo            flow of each pair, named after its first frame (read with daflow_ext.read_flow)
OUT/flow_backward/NAME.flo   with --bidirectional: from the later frame to the earlier
OUT/occlusion/NAME.png       with --bidirectional: white = pixels of the earlier frame that the later one does not show
OUT/color/NAME.png           with --viz: hue = direction, saturation = length, one scale for the whole clip
OUT/color_backward/NAME.png  with both
OUT/run.json, pairs.jsonl    the settings, and a line per finished pair

--viz takes a list: wheel (OUT/color), arrows, side (frame beside colours), trails (points carried along the clip), and
with --bidirectional confidence and occlusion (over the frame; OUT/confidence_overlay, OUT/occlusion_overlay). --video
makes one film of these views side by side, of frame and colours without --viz. --report makes one HTML page that needs
no network: a slider over the clip, frame against warped next frame, the vector under the cursor. All three are drawn
when the flow of the whole clip is written, in a second walk over the frames; until then the common colour scale is not
known, unless --max-flow gives it.

An OUT that ends in the suffix of a format takes the flow of a single pair itself. Every file appears whole or not at
all; when a later frame cannot be read or the disk is full, the files before it stay. The same command goes on where a
run ended, however it ended; with other settings it asks for --overwrite.

models: daflow-tiny, a small DA-Flow trained on degraded video, comes with the package and is the default; raft-tiny-lq,
too, is several times faster. Others: RAFT (--weights or --model) or a DA-Flow folder (--model). DA-Flow reads three
frames at a time and joins RAFT's features with those of a restoration transformer. --feature-steps first runs that
transformer once per three frames, all runs every denoising step and averages their flows.

formats: flo (Middlebury), png16 (KITTI, rounds to 1/64 pixel, up to 512), npy and npz (2, H, W), flo5 (HDF5), pfm."""
EXAMPLE = "daflow infer frame1.png frame2.png -o out --viz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", metavar="FRAME", help="two images, or one folder of images, or one video")
    add_source_arguments(parser)
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=pathlib.Path, default="daflow_out", help="folder (default %(default)s)"
    )
    parser.add_argument("--format", choices=list(SUFFIXES), help="flow files (default flo, or what OUT ends in)")
    parser.add_argument("--warm-start", action="store_true", help="begin each pair at the previous flow, carried along")
    parser.add_argument("--bidirectional", action="store_true", help="write backward flow and occlusion masks too")
    parser.add_argument("--overwrite", action="store_true", help="discard the results of an earlier run in OUT")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_view_arguments(parser)
    add_model_arguments(parser, iters=20)


class _Outputs:
    """Where the files of a run go."""

    def __init__(self, args: argparse.Namespace, frames: Frames):
        suffixes = {suffix: name for name, suffix in SUFFIXES.items()}
        named = None if args.output.is_dir() else suffixes.get(args.output.suffix.lower())
        if args.format and named and args.format != named:
            raise ValueError(f"--format {args.format} and --output {args.output} disagree")
        if named and (args.viz or args.bidirectional or frames.length != 2):
            raise ValueError(f"--output {args.output} is one file, but this run writes several; give a folder")
        if args.output.suffix.lower() in IMAGE_SUFFIXES and not named and not args.output.is_dir():
            raise ValueError(f"--output {args.output} is no flow file; for pictures give a folder and --viz")
        if args.output.is_file() and any(args.output.samefile(path) for path in args.input):
            raise ValueError(f"--output {args.output} is an input itself; give another output")
        if args.output.exists() and not args.output.is_dir() and not named:
            raise ValueError(f"--output {args.output} is a file, a folder was expected")
        self.root, self.single, self.frames = args.output, bool(named), frames
        self.suffix = SUFFIXES[args.format or named or "flo"]

    def file(self, kind: str, index: int) -> pathlib.Path:
        """The file of pair ``index``; its folder is made if need be."""
        if self.single:
            path = self.root
        else:
            suffix = self.suffix if kind.startswith("flow") else ".png"
            path = self.root / kind / (self.frames.name(index) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, pair: PairFlow) -> dict:
        """Write the flow files of a pair; returns what the run remembers of it."""
        files = {"flow": self.file("flow", pair.index)}
        write_flow(files["flow"], pair.forward)
        if pair.backward is not None and pair.occluded is not None:
            files["flow_backward"] = self.file("flow_backward", pair.index)
            write_flow(files["flow_backward"], pair.backward)
            files["occlusion"] = self.file("occlusion", pair.index)
            write_image(files["occlusion"], pair.occluded[None].byte() * 255)
        length = torch.linalg.vector_norm(pair.forward, dim=0)
        record = {
            "files": {kind: str(path if self.single else path.relative_to(self.root)) for kind, path in files.items()},
            "mean_px": length.mean().item(),
            "max_px": length.max().item(),
            "p99_px": length_quantile(pair.forward),
            "seconds": round(pair.seconds, 4),
        }
        if pair.occluded is not None and pair.confidence is not None:
            record["occluded_percent"] = 100 * pair.occluded.float().mean().item()
            record["mean_confidence"] = pair.confidence.mean().item()
        return record

    def paths(self, record: dict) -> dict[str, str]:
        """Where the files of a record lie."""
        return {kind: name if self.single else str(self.root / name) for kind, name in record["files"].items()}


def run(args: argparse.Namespace) -> int:
    if len(args.input) > 2:
        raise ValueError(f"two images, one folder or one video were expected, got {len(args.input)} paths")
    check_view_arguments(args)
    frames = open_frames(*args.input)
    outputs = _Outputs(args, frames)
    estimator = load_estimator(args)
    options = {"warm_start": args.warm_start, "bidirectional": args.bidirectional}
    folder = None if outputs.single else _run_folder(args, outputs, estimator, options)

    records, failure = [] if folder is None else folder.records, None
    try:
        records = _estimate(estimator, frames, outputs, folder, options)
    except Exception as error:
        failure, records = error, records if folder is None else folder.records
    settings = {
        "weights": str(source_name(args)),
        "device": str(estimator.device),
        **estimator.settings,
        **options,
        "unit": "pixels; channel 0 = x to the right, 1 = y down; from the earlier frame to the later",
    }
    scale: float | None = None
    pictures: list[dict[str, str]] = []
    if records:
        paths = [outputs.paths(record) for record in records]
        scale, pictures = draw_run(args, frames, records, paths, outputs.file, settings)
    if failure is not None:
        if not records:
            raise failure
        done = f"the flow of the {len(records)} pair(s) before is complete in {args.output}"
        raise RuntimeError(f"{failure}; {done}, the same command goes on from there") from failure

    pairs = [
        {**outputs.paths(record), **{name: value for name, value in record.items() if name != "files"}}
        for record in records
    ]
    for pair, picture in zip(pairs, pictures, strict=False):
        pair |= picture
    summary = {
        "source": frames.source,
        **settings,
        "output": str(args.output),
        "color_scale_px": scale,
        **{name: str(path) for name, path in (("video", args.video), ("report", args.report)) if path},
        "pairs": pairs,
    }
    _show(summary, args.json)
    return 0


def _run_folder(args: argparse.Namespace, outputs: _Outputs, estimator: Estimator, options: dict) -> RunFolder:
    """The record of this run in OUT; what an earlier one of the same settings finished is kept."""
    settings = {
        "frames": [str(pathlib.Path(path).resolve()) for path in args.input],
        "weights": model_identity(estimator.model),
        "device": estimator.device.type,
        "format": outputs.suffix,
        **estimator.settings,
        **options,
        "daflow": __version__,
    }
    return RunFolder(
        args.output, settings, frames=outputs.frames, used=lambda pairs: pairs + 1, overwrite=args.overwrite
    )


def _estimate(
    estimator: Estimator, frames: Frames, outputs: _Outputs, folder: RunFolder | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Walk along the frames and write; gives the records of all pairs, those of an earlier run included."""
    start, warm = (0, None) if folder is None else folder.resume(estimator.stride, warm_start=options["warm_start"])
    pairs = estimator.pairs(frames, start=start, warm=warm, **options)
    total = frames.length - 1 if frames.length else None
    single, begun = [], False
    for pair in tqdm(pairs, total=total, initial=start, unit="pair", disable=True if total == 1 else None):
        if folder is None:
            single.append(outputs.write(pair))
            continue
        if not begun:  # not before there is something to write: a refused input leaves no folder
            folder.begin()
            begun = True
        folder.add(outputs.write(pair), estimator.stride, pair.warm)
    return single if folder is None else folder.records


def _show(summary: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    pairs = summary["pairs"]
    mean = sum(pair["mean_px"] for pair in pairs) / len(pairs)
    seconds = sum(pair["seconds"] for pair in pairs) / len(pairs)
    print(
        f"{summary['model']}, {summary['iters']} iterations on {summary['device']}: {len(pairs)} pair(s), mean motion "
        f"{mean:.2f} px, {seconds:.2f} s per pair"
    )
    if summary["color_scale_px"]:
        print(f"full colour = {summary['color_scale_px']:.2f} px")
    for name in ("output", "video", "report"):
        if name in summary:
            print(summary[name])
