"""``daflow analyze``: which layers and denoising steps of the restoration transformer know where things went."""

import argparse
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from ..flow import Report
from ._page import check_page_name, write_page
from .info import versions

if TYPE_CHECKING:
    from ..evaluate.zero_shot import ZeroShotTable
    from ..features.restoration import LiftedRestoration
    from ..frames import Frames
    from ..models import RAFT

HELP = "zero-shot flow per layer and denoising step of a restoration transformer"
DESCRIPTION = """\
For every layer and denoising step: flow by softargmax of the HQ query of a frame and the HQ key of the next, against
the true flow or that of a RAFT teacher on the clean frames. Prints the table (end-point error in pixels) and the best
layers; writes OUT/zero_shot.json and OUT/zero_shot.png, with --report one HTML page, too.

LQ is a folder of frames, a video, or a folder of such (every clip below it counts). The true flow comes from --flow
(files named after the first frame of each pair, or what `daflow pseudo` wrote) or, as pseudo ground truth, from
--teacher weights run on --hq (the clean frames; default: LQ itself). --hq and --flow are laid out as LQ is."""
EXAMPLE = "daflow analyze clip --teacher raft-tiny-lq --steps 2 -o analysis --report analysis/page.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lq", metavar="LQ", type=pathlib.Path, help="folder of degraded frames or clips, or a video")
    parser.add_argument(
        "--model",
        metavar="M",
        default="daflow-tiny",
        help="as of `daflow restore`: a name, a DA-Flow folder, a folder with transformer/, vae/, scheduler/ and "
        "prompt/; or 'tiny', an untrained toy (default %(default)s)",
    )
    parser.add_argument("--hq", metavar="HQ", type=pathlib.Path, help="clean frames of the same scene, for the teacher")
    parser.add_argument("--teacher", metavar="W", help="RAFT by name or weights, for pseudo ground truth")
    parser.add_argument("--flow", metavar="DIR", type=pathlib.Path, help="folder of true flow files")
    parser.add_argument("--layers", metavar="I", type=int, nargs="+", help="layers, counted from 0 (default: all)")
    parser.add_argument("--steps", metavar="N", type=int, default=10, help="denoising steps (default %(default)s)")
    parser.add_argument("--frames", metavar="F", type=int, default=3, help="frames per clip (default %(default)s)")
    parser.add_argument("--clips", metavar="N", type=int, help="stop after this many clips")
    parser.add_argument(
        "--temperature",
        type=float,
        help="divides the products of all heads (default: sqrt of the channels of a head, attention's own scale)",
    )
    parser.add_argument("--mode", choices=["global", "local"], default="global", help="see docs/ops/softargmax_flow.md")
    parser.add_argument("--radius", type=int, metavar="R", help="cells that a match may lie away")
    parser.add_argument("--iters", type=int, default=20, metavar="N", help="teacher's refinement steps")
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("-o", "--output", metavar="OUT", type=pathlib.Path, default="daflow_analysis")
    parser.add_argument("--report", type=pathlib.Path, metavar="PAGE", help="write one HTML page with the heat map")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    parser.set_defaults(backend="auto", tile=None)  # what loading a model asks for, too


class Scene(NamedTuple):
    """Where one clip's degraded frames are, its clean frames and its flow files."""

    lq: pathlib.Path
    hq: pathlib.Path | None
    flow: pathlib.Path | None


Truth = Callable[[torch.Tensor, list[str]], tuple[torch.Tensor, torch.Tensor]]
"""(frames [F, 3, H, W], their names) -> flow [F-1, 2, H, W], valid [F-1, H, W]."""


def run(args: argparse.Namespace) -> int:
    from ..evaluate.zero_shot import heat_map
    from ..frames import write_image
    from ..frames._files import atomic_path
    from ._restoration import load

    if (args.flow is None) == (args.teacher is None):
        raise ValueError("give the truth by --flow DIR or by --teacher WEIGHTS, one of them")
    if args.steps < 1 or args.frames < 2:
        raise ValueError(f"--steps must be at least 1 and --frames at least 2, got {args.steps} and {args.frames}")
    if args.clips is not None and args.clips < 1:
        raise ValueError(f"--clips must be at least 1, got {args.clips}")
    if args.temperature is not None and not args.temperature > 0:
        raise ValueError(f"--temperature must be > 0, got {args.temperature}")
    check_page_name(args.report)
    restoration = load(args).loop
    depth = restoration.transformer.config.num_layers
    layers = tuple(args.layers) if args.layers else tuple(range(depth))
    if any(not 0 <= layer < depth for layer in layers):
        raise ValueError(f"--layers {layers} are outside 0..{depth - 1}")
    if args.temperature is None:
        args.temperature = restoration.transformer.config.attention_head_dim**0.5
    table = _analyze(args, restoration, layers)

    record = {
        "model": args.model,
        "input": str(args.lq),
        "truth": str(args.flow) if args.flow else f"{args.teacher}, {args.iters} iterations on {args.hq or args.lq}",
        "layers": list(table.layers),
        "timesteps": list(table.timesteps),
        "epe_px": table.epe.tolist(),
        "best_layers": table.best(),
        "pixels": table.count,
        "temperature": args.temperature,
        "seed": args.seed,
        "mode": args.mode,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.output / "zero_shot.json") as path:
        path.write_text(json.dumps(record, indent=2))
    write_image(args.output / "zero_shot.png", heat_map(table))
    if args.report is not None:
        write_page(_page(table, record), args.report)
    if args.json:
        print(json.dumps(record))
        return 0
    print("end-point error (px); layer across, timestep down")
    print("      t " + "".join(f"{layer:8d}" for layer in table.layers))
    for timestep, row in zip(table.timesteps, table.epe.tolist(), strict=True):
        print(f"{timestep:7.1f} " + "".join(f"{value:8.3f}" for value in row))
    print(f"best layers: {', '.join(map(str, table.best()))}\n{args.report or args.output / 'zero_shot.png'}")
    return 0


def _page(table: "ZeroShotTable", record: dict[str, Any]) -> Report:
    report = Report(
        f"Zero-shot flow of {record['model']}",
        subtitle=f"{record['input']}: end-point error of flow from queries and keys of each layer, without training",
        settings={name: value for name, value in record.items() if name not in ("epe_px", "timesteps")},
        versions=versions(),
    )
    report.add_heat_map(
        "End-point error (px): denoising step down, layer across",
        table.layers,
        [f"t = {timestep:.0f}" for timestep in table.timesteps],
        table.epe.tolist(),
        corner="step",
        note=f"Dark violet is best, yellow worst; {table.count} pixels with known flow.",
    )
    mean = dict(zip(table.layers, table.epe.mean(0).tolist(), strict=True))
    bars = [(f"layer {layer}", mean[layer], None) for layer in sorted(mean, key=lambda layer: mean[layer])]
    report.add_bars("Mean over the steps, best layer first", {"": bars}, unit="px")
    return report


def _analyze(args: argparse.Namespace, restoration: "LiftedRestoration", layers: tuple[int, ...]) -> "ZeroShotTable":
    """The table of all clips of all scenes."""
    from ..evaluate.zero_shot import analyze_clip
    from ..frames import open_frames
    from ..models import RAFT, get_model

    scenes = [(scene, open_frames(scene.lq)) for scene in _scenes(args)]
    model = get_model(args.teacher).to(restoration.transformer.device) if args.teacher else None
    if model is not None and not isinstance(model, RAFT):
        raise ValueError(f"--teacher {args.teacher} is a DA-Flow; RAFT by name or weights was expected")
    lengths = [source.length for _, source in scenes]
    known = [length for length in lengths if length is not None]
    clips = sum(math.ceil((length - 1) / (args.frames - 1)) for length in known)
    total = clips if len(known) == len(lengths) else None
    table, index = None, 0
    with tqdm(
        desc="clips", unit="clip", total=min(filter(None, (total, args.clips)), default=None), disable=None
    ) as bar:
        for scene, source in scenes:
            if model is not None:
                truth = _teacher(model, scene, args)
            else:
                assert scene.flow is not None  # asked for where no teacher is given
                truth = _flow_files(scene.flow)
            for frames, names in _clips(source, args.frames):
                if index == args.clips:
                    break
                flow, valid = truth(frames, names)
                found = analyze_clip(
                    restoration,
                    *_fill(frames, flow, valid, args.frames),
                    layers=layers,
                    num_inference_steps=args.steps,
                    temperature=args.temperature,
                    generator=torch.Generator().manual_seed(args.seed + index),
                    mode=args.mode,
                    radius=args.radius,
                )
                table = found if table is None else table + found
                index += 1
                bar.update()
    if table is None or table.count == 0:
        raise ValueError(f"{args.lq}: no pixel with a known flow; nothing to judge")
    return table


def _scenes(args: argparse.Namespace) -> list[Scene]:
    """LQ itself, or every clip below it, with what lies at the same place under --hq and --flow."""
    from ..datasets import Folder
    from ..frames.io import IMAGE_SUFFIXES

    if not args.lq.is_dir() or any(path.suffix.lower() in IMAGE_SUFFIXES for path in args.lq.iterdir()):
        return [Scene(args.lq, args.hq, args.flow)]
    scenes = []
    for sequence in Folder(args.lq).sequences:
        first = sequence.frames.files[0]
        place = first if args.lq / sequence.name == first else first.parent  # a video, or a folder of images
        below = place.relative_to(args.lq)
        flow = None
        if args.flow is not None:
            written = args.flow / below / "flow"  # by `daflow pseudo`
            flow = written if written.is_dir() else args.flow / below
        scenes.append(Scene(place, args.hq and args.hq / below, flow))
    return scenes


def _clips(source: "Frames", length: int) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Consecutive clips that share their last and first frame, so that every pair is judged once; the last is shorter
    where frames run out."""
    frames, names = [], []
    for index, frame in enumerate(source):
        frames.append(frame)
        names.append(source.name(index))
        if len(frames) == length:
            yield torch.stack(frames), names
            frames, names = frames[-1:], names[-1:]
    if len(frames) > 1:
        yield torch.stack(frames), names


def _fill(frames: torch.Tensor, flow: torch.Tensor, valid: torch.Tensor, length: int) -> tuple[torch.Tensor, ...]:
    """A short clip at full length, as the model saw the others: the last frame repeated, in pairs that do not count."""
    missing = length - len(frames)
    if missing == 0:
        return frames, flow, valid
    return (
        torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]),
        torch.cat([flow, torch.zeros_like(flow[-1:]).expand(missing, -1, -1, -1)]),
        torch.cat([valid, torch.zeros_like(valid[-1:]).expand(missing, -1, -1)]),
    )


def _flow_files(folder: pathlib.Path) -> Truth:
    from ..datasets.folder import CONFIDENT
    from ..flow import read_flow
    from ..flow.formats import SUFFIXES
    from ..frames import read_image

    def truth(frames: torch.Tensor, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        flows, valids = [], []
        for name in names[:-1]:
            files = [folder / (name + suffix) for suffix in SUFFIXES.values() if (folder / (name + suffix)).is_file()]
            if not files:
                raise FileNotFoundError(f"{folder} holds no flow file for frame {name} (such as {name}.flo)")
            flow, valid = read_flow(files[0], return_valid=True, unknown=0)
            certain = folder.parent / "confidence" / f"{name}.png"
            if folder.name == "flow" and certain.is_file():
                valid &= read_image(certain)[0] >= CONFIDENT
            flows.append(flow)
            valids.append(valid)
        return torch.stack(flows), torch.stack(valids)

    return truth


def _teacher(model: "RAFT", scene: Scene, args: argparse.Namespace) -> Truth:
    """Pseudo ground truth: RAFT on the clean frames at the same positions."""
    from ..frames import InputPadder, open_frames
    from ..models.raft import SMALLEST_SIDE

    clean = _clips(open_frames(scene.hq), args.frames) if scene.hq else None

    @torch.no_grad()
    def truth(frames: torch.Tensor, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        hq = frames if clean is None else next((clip for clip, _ in clean), frames[:0])
        if hq.shape != frames.shape:
            found = list(hq.shape) if len(hq) else "nothing"
            raise ValueError(f"{scene.hq}: the clean clip beside {names[0]} is {found}, expected {list(frames.shape)}")
        padder = InputPadder(hq.shape, minimum=SMALLEST_SIDE)
        device = next(model.parameters()).device
        first, second = padder.pad(hq[:-1].to(device), hq[1:].to(device))
        flow = padder.unpad(model(first, second, iters=args.iters, test_mode=True)[1]).cpu()
        return flow, torch.ones(flow.shape[0], *flow.shape[-2:], dtype=torch.bool)

    return truth
