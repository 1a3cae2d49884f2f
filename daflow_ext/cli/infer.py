"""``daflow infer``: flow between two frames, along a folder of frames or along a video."""

import argparse
import json
import pathlib

import torch
from tqdm import tqdm

from ..flow import flow_to_image, read_flow, write_flow
from ..flow.formats import SUFFIXES
from ..frames import open_frames, write_image
from ..frames.io import IMAGE_SUFFIXES
from ._estimate import PairFlow, add_model_arguments, estimate_clip, load_model, model_name

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

An OUT that ends in the suffix of a format takes the flow of a single pair itself. Every file appears whole or not at
all; when a later frame cannot be read, the files before it stay.
formats: flo (Middlebury), png16 (KITTI, rounds to 1/64 pixel, up to 512), npy and npz (2, H, W), flo5 (HDF5), pfm."""
EXAMPLE = "daflow infer frame1.png frame2.png --weights raft-small.pth -o out --viz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", metavar="FRAME", help="two images, or one folder of images, or one video")
    parser.add_argument(
        "--weights", metavar="W", type=pathlib.Path, required=True, help="RAFT weights (.pth, .safetensors)"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=pathlib.Path, default="daflow_out", help="folder (default %(default)s)"
    )
    parser.add_argument("--format", choices=list(SUFFIXES), help="flow files (default flo, or what OUT ends in)")
    parser.add_argument("--viz", action="store_true", help="write colour images too")
    parser.add_argument(
        "--max-flow",
        metavar="PX",
        type=float,
        help="with --viz: length of full colour in pixels (default: the largest 99 %% length of any pair of the clip)",
    )
    parser.add_argument("--warm-start", action="store_true", help="begin each pair at the previous flow, carried along")
    parser.add_argument("--bidirectional", action="store_true", help="write backward flow and occlusion masks too")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_model_arguments(parser, iters=20)


class _Outputs:
    """Where the files of a run go."""

    def __init__(self, args: argparse.Namespace, frames):
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
        """Write the flow files of a pair; returns what the run tells about it."""
        paths = {"flow": self.file("flow", pair.index)}
        write_flow(paths["flow"], pair.forward)
        if pair.backward is not None:
            paths["flow_backward"] = self.file("flow_backward", pair.index)
            write_flow(paths["flow_backward"], pair.backward)
            paths["occlusion"] = self.file("occlusion", pair.index)
            write_image(paths["occlusion"], pair.occluded[None].byte() * 255)
        record = {kind: str(path) for kind, path in paths.items()}
        length = torch.linalg.vector_norm(pair.forward, dim=0)
        record |= {"mean_px": length.mean().item(), "max_px": length.max().item(), "seconds": round(pair.seconds, 4)}
        if pair.occluded is not None:
            record["occluded_percent"] = 100 * pair.occluded.float().mean().item()
        return record

    def colorize(self, records: list[dict], max_flow: float) -> None:
        """Colour images of all flow files written, read back one by one: a clip of any length fits in memory."""
        for index, record in enumerate(records):
            for kind, source in (("color", "flow"), ("color_backward", "flow_backward")):
                if source in record:
                    path = self.file(kind, index)
                    write_image(path, flow_to_image(read_flow(record[source]), max_flow))
                    record[kind] = str(path)


def run(args: argparse.Namespace) -> int:
    if len(args.input) > 2:
        raise ValueError(f"two images, one folder or one video were expected, got {len(args.input)} paths")
    if args.max_flow is not None and not 0 < args.max_flow < float("inf"):
        raise ValueError(f"--max-flow must be a positive number of pixels, got {args.max_flow}")
    frames = open_frames(*args.input)
    outputs = _Outputs(args, frames)
    model, device = load_model(args.weights, args)
    options = {"iters": args.iters, "warm_start": args.warm_start, "bidirectional": args.bidirectional}

    records, scale, failure = [], 0.0, None
    pairs = estimate_clip(model, frames, device, **options)
    total = frames.length - 1 if frames.length else None
    single_pair = len(args.input) == 2
    try:
        for pair in tqdm(pairs, total=total, unit="pair", disable=True if single_pair else None):
            records.append(outputs.write(pair))
            scale = max(scale, _scale(pair.forward))
    except Exception as error:
        failure = error
    if args.viz and records:
        scale = args.max_flow or scale
        outputs.colorize(records, scale)
    if failure is not None:
        if not records:
            raise failure
        done = f"the flow of the {len(records)} pair(s) before is complete in {args.output}"
        raise RuntimeError(f"{failure}; {done}") from failure

    summary = {
        "source": frames.source,
        "model": model_name(model),
        "weights": str(args.weights),
        "device": str(device),
        "backend": args.backend,
        **options,
        "unit": "pixels; channel 0 = x to the right, 1 = y down; from the earlier frame to the later",
        "output": str(args.output),
        "color_scale_px": scale if args.viz else None,
        "pairs": records,
    }
    _show(summary, args.json)
    return 0


def _scale(flow: torch.Tensor) -> float:
    """The length that 99 % of the vectors do not exceed, at least one pixel; a few wild ones do not pale the rest."""
    length = torch.linalg.vector_norm(flow, dim=0).flatten()
    return max(1.0, length.kthvalue(max(1, round(0.99 * length.numel()))).values.item())


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
    print(summary["output"])
