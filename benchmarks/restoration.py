"""Does flow help restoration? Scores of unguided and guided restoration on rendered scenes, whose flow is exact.

python -m benchmarks.restoration --quick               small clips, few steps: shows that it runs
python -m benchmarks.restoration --out runs/restore    the table; goes on where it stopped
python -m benchmarks.restoration --model FOLDER        of other restoration weights

Every clip is degraded and restored by `daflow restore`: unguided, and guided by the flow of RAFT on the degraded
frames (raft), of DA-Flow on them (daflow, where the model has a flow network) and by the exact flow (oracle). The
warping error takes the exact flow, too. Scores are means over clips.
"""

import argparse
import contextlib
import io
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch

from daflow_ext.cli import main as daflow
from daflow_ext.datasets import Scenes
from daflow_ext.datasets.degradation import degradations
from daflow_ext.evaluate.restored_video import score_table
from daflow_ext.flow import write_flow
from daflow_ext.frames import write_image
from daflow_ext.frames._files import atomic_path
from daflow_ext.models.registry import SHIPPED

from . import timing


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or that of `daflow restore`."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.clips, options.frames, options.size, options.steps = 2, 4, (64, 96), 2
    with contextlib.ExitStack() as stack:
        out = options.out or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flows = options.flows or _flows(options.model)
        rows = []
        for index, clip in enumerate(_clips(options, out)):
            if status := _restore(options, clip, flows):
                return status
            rows.append(json.loads((clip / "result/scores.json").read_text()))
            print(f"clip {index + 1} of {options.clips}", file=sys.stderr, flush=True)
        result = _result(options, rows)
        if options.out is not None:
            with atomic_path(out / "restoration.json") as path:
                path.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{options.clips} clips of {options.frames} frames {options.size[1]}x{options.size[0]}, {options.degrade}, "
        f"{options.steps} steps, {options.model}"
    )
    print(score_table(result["scores"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restoration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="2 clips of 4 frames 96x64, 2 steps")
    parser.add_argument("--model", default="daflow-tiny", help="as for `daflow restore` (default %(default)s)")
    parser.add_argument("--flows", nargs="+", metavar="F", choices=("none", "raft", "daflow", "oracle"))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 224), metavar=("H", "W"))
    parser.add_argument("--degrade", default="level3", help="as for `daflow degrade` (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--guidance-iterations", type=int, default=1)
    parser.add_argument("--lpips", metavar="FILE", help="weights for LPIPS")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="keep the clips and the table there")
    return parser


def _flows(model: str) -> list[str]:
    folder = SHIPPED / model if (SHIPPED / model).is_dir() else pathlib.Path(model)
    return ["none", "raft", *(["daflow"] if (folder / "flow").is_dir() else []), "oracle"]


def _clips(options: argparse.Namespace, out: pathlib.Path):
    """Folders with clean/, lq/ and oracle/; those that are there stay."""
    (degradation,) = degradations(options.degrade)
    scenes = Scenes(
        options.clips,
        size=tuple(options.size),
        frames=options.frames,
        max_displacement=12.0,
        split="test",
        lighting=0.0,
    )
    settings = {"clips": options.clips, "frames": options.frames, "size": options.size, "degrade": options.degrade}
    for index in range(options.clips):
        folder = out / f"clip{index:03d}-{options.frames}x{options.size[0]}x{options.size[1]}-{degradation.name}"
        marker = folder / "clip.json"
        if not marker.exists():
            _write_clip(folder, scenes.scene(index), degradation, index)
            marker.write_text(json.dumps(settings))
        yield folder


def _write_clip(folder: pathlib.Path, scene, degradation, seed: int) -> None:
    for kind in ("clean", "lq", "oracle/flow", "oracle/flow_backward"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    degraded = degradation(scene.frames, seed)
    for index, (clean, lq) in enumerate(zip(scene.frames, degraded, strict=True)):
        write_image(folder / f"clean/{index:04d}.png", _planes(clean))
        write_image(folder / f"lq/{index:04d}.png", _planes(lq))
    for index, (forward, backward) in enumerate(zip(scene.flow, scene.backward, strict=True)):
        write_flow(folder / f"oracle/flow/{index:04d}.flo", _planes(forward))
        write_flow(folder / f"oracle/flow_backward/{index:04d}.flo", _planes(backward))


def _planes(image: np.ndarray) -> torch.Tensor:
    """[H, W, C] -> [C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _restore(options: argparse.Namespace, clip: pathlib.Path, flows: list[str]) -> int:
    oracle = clip / "oracle"
    kinds = [str(oracle) if flow == "oracle" else flow for flow in flows]
    lpips = ["--lpips", options.lpips] if options.lpips else []
    command = ["restore", clip / "lq", "-o", clip / "result", "--model", options.model, "--steps", options.steps]
    command += ["--guidance-scale", options.guidance_scale, "--guidance-iterations", options.guidance_iterations]
    command += ["--truth", clip / "clean", "--truth-flow", oracle, "--json", *lpips, "--flow", *kinds]
    with contextlib.redirect_stdout(io.StringIO()):
        return daflow([str(word) for word in command])


def _result(options: argparse.Namespace, rows: list[dict]) -> dict:
    scores = {
        name: {score: sum(row[name][score] for row in rows) / len(rows) for score in values}
        for name, values in rows[0].items()
    }
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "quick", "lpips")}
    return {**timing.environment("cpu"), **settings, "scores": scores, "clips_scores": rows}


if __name__ == "__main__":
    sys.exit(main())
