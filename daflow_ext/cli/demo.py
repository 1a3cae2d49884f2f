"""``daflow demo``: flow on the clip that ships with the package, as a page to look at."""

import argparse
import pathlib

import torch

from ..flow import write_report
from ..frames import Video
from . import _demo_scene, info
from ._estimate import add_model_arguments, add_source_arguments, load_estimator, source_name

HELP = "flow on a short clip that ships with the package, shown in one HTML file"
DESCRIPTION = """\
Computes flow along a short clip (moving shapes, blurred, noisy and compressed; made by our own script, so the true flow
is known) and writes OUT/report.html: frames, flow and true flow with a slider. The last line printed is its path.

EPE is the end-point error in pixels: the mean distance between computed and true vectors."""
EXAMPLE = "daflow demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=pathlib.Path, default="daflow_demo", help="folder (default %(default)s)"
    )
    add_model_arguments(parser, iters=12)


def run(args: argparse.Namespace) -> int:
    estimator = load_estimator(args)
    args.output.mkdir(parents=True, exist_ok=True)
    scene = _demo_scene.layers()
    panels = {"Frame": [], "Flow": [], "True flow": []}
    statistics = []
    for pair in estimator.pairs(Video(_demo_scene.CLIP)):
        truth = torch.from_numpy(_demo_scene.true_flow(scene, pair.index))
        for pictures, picture in zip(panels.values(), (pair.image1, pair.forward, truth), strict=True):
            pictures.append(picture)
        error = torch.linalg.vector_norm(pair.forward - truth, dim=0)
        statistics.append(
            {
                "EPE (px)": error.mean().item(),
                "error above 3 px (%)": 100 * (error > 3).float().mean().item(),
                "mean motion (px)": torch.linalg.vector_norm(pair.forward, dim=0).mean().item(),
                "seconds": pair.seconds,
            }
        )
    page = (args.output / "report.html").resolve()
    write_report(
        page,
        panels,
        title=f"Optical flow of the demo clip, {estimator.name}",
        statistics=statistics,
        settings={
            "weights": pathlib.Path(source_name(args)).name,
            "device": estimator.device,
            **estimator.settings,
            "clip": f"{_demo_scene.CLIP.name}, {_demo_scene.WIDTH}x{_demo_scene.HEIGHT}, {_demo_scene.FRAMES} frames",
            "flow": "pixels, x to the right, y down, from each frame to the next",
        },
        versions=info.versions(),
        max_flow=max(flow.norm(dim=0).max().item() for flow in panels["True flow"]),
    )
    mean = sum(row["EPE (px)"] for row in statistics) / len(statistics)
    seconds = sum(row["seconds"] for row in statistics) / len(statistics)
    print(
        f"{estimator.name}, {args.iters} iterations on {estimator.device}: EPE {mean:.2f} px, {seconds:.2f} s per pair"
    )
    print(page)
    return 0
