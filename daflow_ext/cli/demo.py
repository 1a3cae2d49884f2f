"""``daflow demo``: flow on the clip that ships with the package, as a page to look at."""

import argparse
import pathlib

import numpy as np
import torch

from ..flow import Report, warp
from ..frames import Video
from . import _demo_scene, info
from ._estimate import add_model_arguments, add_source_arguments, load_estimator, source_name

HELP = "flow on a short clip that ships with the package, shown in one HTML file"
DESCRIPTION = """\
Computes flow along a short clip (moving shapes, blurred, noisy and compressed; made by our own script, so the true flow
is known) and writes OUT/report.html: frames, flow, true flow, error, confidence and occlusion with a slider, and the
vector under the cursor. The last line printed is its path.

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
    report = Report(
        f"Optical flow of the demo clip, {estimator.name}",
        subtitle=f"{_demo_scene.CLIP.name}, {_demo_scene.WIDTH}x{_demo_scene.HEIGHT} pixels: moving shapes, blurred, "
        "noisy and compressed; the true flow is known",
        max_flow=max(_longest(_demo_scene.true_flow(scene, time)) for time in range(_demo_scene.FRAMES - 1)),
        max_error=3.0,
        swipe=("Frame", "Next frame, warped"),
        settings={
            "weights": pathlib.Path(source_name(args)).name,
            "device": estimator.device,
            **estimator.settings,
            "flow": "pixels, x to the right, y down, from each frame to the next",
        },
        versions=info.versions(),
    )
    errors, seconds = [], []
    for pair in estimator.pairs(Video(_demo_scene.CLIP), bidirectional=True):
        assert pair.confidence is not None  # in both directions
        assert pair.occluded is not None
        truth = torch.from_numpy(_demo_scene.true_flow(scene, pair.index))
        error = torch.linalg.vector_norm(pair.forward - truth, dim=0)
        errors.append(error.mean().item())
        seconds.append(pair.seconds)
        report.add_step(
            f"frame {pair.index}",
            images={"Frame": pair.image1, "Next frame, warped": warp(pair.image2, pair.forward).round().byte()},
            flows={"Flow": pair.forward, "True flow": truth},
            maps={"Confidence": pair.confidence, "Occluded": pair.occluded},
            statistics={
                "EPE (px)": errors[-1],
                "error above 3 px (%)": 100 * (error > 3).float().mean().item(),
                "mean length (px)": torch.linalg.vector_norm(pair.forward, dim=0).mean().item(),
                "occluded (%)": 100 * pair.occluded.float().mean().item(),
            },
        )
    page = (args.output / "report.html").resolve()
    report.write(page)
    print(
        f"{estimator.name}, {args.iters} iterations on {estimator.device}: EPE {_mean(errors):.2f} px, "
        f"{_mean(seconds):.2f} s per pair, both directions"
    )
    print(page)
    return 0


def _longest(flow: np.ndarray) -> float:
    return float(np.hypot(*flow).max())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
