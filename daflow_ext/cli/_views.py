"""What ``daflow infer`` shows of a run: pictures, a film, a page; drawn from the written flow, one pair at a time."""

import argparse
import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import torch
from tqdm import tqdm

from ..flow import (
    Report,
    Trails,
    arrows,
    confidence_overlay,
    flow_to_image,
    forward_backward_confidence,
    occlusion_overlay,
    read_flow,
    side_by_side,
    warp,
    wheel_legend,
)
from ..flow.draw import line_thickness
from ..frames import Frames, read_image, video_writer, write_image
from ..frames.film import check_video_name
from ._page import check_page_name, write_page
from .info import versions

VIEWS = {
    "wheel": "color",
    "arrows": "arrows",
    "side": "side",
    "confidence": "confidence_overlay",
    "occlusion": "occlusion_overlay",
    "trails": "trails",
}
"""View -> the folder of its pictures."""

_BOTH_WAYS = ("confidence", "occlusion")
_FPS = 10.0
_FILM_SIDE = 3840  # a longer side is what many players refuse
_REPORT_STEPS = 200  # more make a page slow to open


def views(text: str) -> tuple[str, ...]:
    """The argument of ``--viz``."""
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in VIEWS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected a list of {', '.join(VIEWS)}, got {unknown[0]!r}")
    return names


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """``--viz``, ``--max-flow``, ``--video``, ``--fps`` and ``--report``."""
    parser.add_argument(
        "--viz",
        nargs="?",
        type=views,
        const=("wheel",),
        default=(),
        metavar="VIEW,...",
        help=f"write pictures: a list of {', '.join(VIEWS)} (wheel if none is named)",
    )
    parser.add_argument("--video", type=pathlib.Path, metavar="FILM", help="write the views as one film, side by side")
    parser.add_argument("--report", type=pathlib.Path, metavar="PAGE", help="write one HTML page to step through")
    parser.add_argument(
        "--max-flow",
        "--viz-max-flow",
        metavar="PX",
        type=float,
        help="length of full colour in pixels (default: the largest 99 %% length of any pair of the clip)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        metavar="N",
        help=f"of the film (default: the video's own, else {_FPS:g} frames per second)",
    )


def check_view_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for what could only fail after the flow is estimated."""
    if args.max_flow is not None and not 0 < args.max_flow < float("inf"):
        raise ValueError(f"--max-flow must be a positive number of pixels, got {args.max_flow}")
    if args.fps is not None and not (args.video and 0 < args.fps < float("inf")):
        raise ValueError(f"--fps must be positive and goes with --video, got {args.fps}")
    for name in _BOTH_WAYS:
        if name in args.viz and not args.bidirectional:
            raise ValueError(f"--viz {name} needs flow in both directions; add --bidirectional")
    if args.video:
        check_video_name(args.video)
        if args.video.is_dir():
            raise ValueError(f"--video {args.video} is a folder, a file was expected")
    check_page_name(args.report)
    for flag, path in (("--video", args.video), ("--report", args.report)):
        if path and path.is_file() and any(path.samefile(one) for one in args.input):
            raise ValueError(f"{flag} {path} is an input itself; give another name")


@dataclass
class Scene:
    """A pair as it was written: frames, flow, and what both directions tell. Shapes as in ``PairFlow``."""

    name: str
    image1: torch.Tensor
    image2: torch.Tensor
    flow: torch.Tensor
    backward: torch.Tensor | None
    occluded: torch.Tensor | None
    confidence: torch.Tensor | None


def _scenes(frames: Frames, paths: Sequence[Mapping[str, str]]) -> Iterator[Scene]:
    images = itertools.islice(frames, len(paths) + 1)
    for index, (image1, image2) in enumerate(itertools.pairwise(images)):
        flow, backward, occluded, confidence = read_flow(paths[index]["flow"]), None, None, None
        if "flow_backward" in paths[index]:
            backward = read_flow(paths[index]["flow_backward"])
            occluded = read_image(paths[index]["occlusion"])[0] > 0
            confidence = forward_backward_confidence(flow, backward)
        yield Scene(frames.name(index), image1, image2, flow, backward, occluded, confidence)


def draw_run(
    args: argparse.Namespace,
    frames: Frames,
    records: Sequence[Mapping],
    paths: Sequence[Mapping[str, str]],
    picture_file: Callable[[str, int], pathlib.Path],
    settings: Mapping[str, object],
) -> tuple[float | None, list[dict[str, str]]]:
    """Everything that the arguments ask for, in one walk over the frames and the written flow.

    It always begins at the first pair and replaces what is there, so that a run that was continued ends with the same
    pictures, film and page.

    Args:
        records, paths: of every pair, what the run remembers of it and where its files are.
        picture_file: (folder, index of the pair) -> where a picture goes.
        settings: for the page.
    Returns the length of full colour, and per pair folder -> picture.
    """
    if not (args.viz or args.video or args.report):
        return None, []
    # the length that 99 % of the vectors of a pair do not exceed, at least one pixel: a few wild ones pale nothing
    scale = args.max_flow or max(1.0, *(record["p99_px"] for record in records))
    artist = _Artist(args.viz, scale, filmed=bool(args.video))
    every = -(-len(records) // _REPORT_STEPS)
    report = _report(args, frames, len(records), every, scale, settings) if args.report else None
    pictures: list[dict[str, str]] = []
    with contextlib.ExitStack() as stack:
        film = None
        if args.video:
            args.video.parent.mkdir(parents=True, exist_ok=True)
            film = stack.enter_context(video_writer(args.video, args.fps or getattr(frames, "fps", None) or _FPS))
        walk = tqdm(_scenes(frames, paths), total=len(paths), unit="pair", desc="drawing", disable=None)
        for index, scene in enumerate(walk):
            drawn = artist.draw(scene)
            if film is not None:
                film(artist.film_frame(scene, drawn))
            pictures.append({})
            for folder, picture in artist.files(scene, drawn).items():
                path = picture_file(folder, index)
                write_image(path, picture)
                pictures[-1][folder] = str(path)
            if report is not None:
                _add_to_report(report, scene, records[index], shown=index % every == 0)
    if report is not None:
        write_page(report, args.report)
    return scale, pictures


class _Artist:
    """Draws the views of one pair after the other."""

    def __init__(self, chosen: Sequence[str], scale: float, *, filmed: bool):
        self.chosen, self.scale = tuple(chosen), scale
        self.panels = _film_panels(chosen) if filmed else []
        self.trails = Trails() if "trails" in chosen else None

    def draw(self, scene: Scene) -> dict[str, torch.Tensor]:
        """Name of the view -> picture; trails go on from pair to pair."""
        image, wanted = scene.image1, {*self.chosen, *self.panels}
        drawn = {"frame": image}
        if wanted & {"wheel", "side"}:
            drawn["wheel"] = flow_to_image(scene.flow, self.scale)
        if "arrows" in wanted:
            spacing, thickness = max(16, max(image.shape) // 24), line_thickness(image.shape)
            drawn["arrows"] = arrows(image, scene.flow, spacing=spacing, thickness=thickness)
        if "confidence" in wanted and scene.confidence is not None:
            drawn["confidence"] = confidence_overlay(image, scene.confidence)
        if "occlusion" in wanted and scene.occluded is not None:
            drawn["occlusion"] = occlusion_overlay(image, scene.occluded)
        if self.trails is not None:
            drawn["trails"] = self.trails.draw(image)
            self.trails.advance(scene.flow, scene.occluded)
        if "side" in self.chosen:
            drawn["side"] = side_by_side([image, drawn["wheel"]])
        return drawn

    def files(self, scene: Scene, drawn: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Folder -> picture."""
        found = {VIEWS[name]: drawn[name] for name in self.chosen}
        if "wheel" in self.chosen and scene.backward is not None:
            found["color_backward"] = flow_to_image(scene.backward, self.scale)
        return found

    def film_frame(self, scene: Scene, drawn: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The panels with captions, and the wheel in a corner of the colours."""
        captions = {
            "frame": scene.name,
            "wheel": f"flow, full colour = {self.scale:.1f} px",
            "arrows": "arrows to where pixels go",
            "confidence": "orange: flow not sure",
            "occlusion": "pink: occluded in the next frame",
            "trails": "points carried by the flow",
        }
        tiles = [with_legend(drawn[name]) if name == "wheel" else drawn[name] for name in self.panels]
        frame = side_by_side(tiles, [captions[name] for name in self.panels])
        factor = _FILM_SIDE / max(frame.shape[1:])
        if factor >= 1:
            return frame
        size = tuple(round(side * factor) for side in frame.shape[:0:-1])
        pixels = cv2.resize(frame.permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_AREA)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _film_panels(chosen: Sequence[str]) -> list[str]:
    """The views as they come; "side", or no view at all, means the frame beside the colours, first."""
    if chosen and "side" not in chosen:
        return list(chosen)
    return list(dict.fromkeys(["frame", "wheel", *(name for name in chosen if name != "side")]))


def with_legend(picture: torch.Tensor) -> torch.Tensor:
    """The colour wheel in the lower right corner, on white."""
    side = min(picture.shape[1:]) // 5
    if side < 16:
        return picture
    picture = picture.clone()
    picture[:, -side:, -side:] = wheel_legend(side)
    return picture


def _report(
    args: argparse.Namespace, frames: Frames, pairs: int, every: int, scale: float, settings: Mapping[str, object]
) -> Report:
    subtitle = f"{frames.source}: {pairs} pair(s) of neighbouring frames"
    if every > 1:
        subtitle += f"; the slider shows one of every {every}, the curves all"
    return Report(
        f"Optical flow of {pathlib.Path(args.input[0]).name}",
        subtitle=subtitle,
        max_flow=scale,
        swipe=("Frame", "Next frame, warped"),
        settings=settings,
        versions=versions(),
    )


def _add_to_report(report: Report, scene: Scene, record: Mapping, *, shown: bool) -> None:
    statistics = {
        "mean length (px)": record["mean_px"],
        "99 % length (px)": record["p99_px"],
        "longest (px)": record["max_px"],
    }
    if scene.occluded is not None:
        statistics["occluded (%)"] = record["occluded_percent"]
        statistics["mean confidence"] = record["mean_confidence"]
    if not shown:
        report.add_statistics(scene.name, statistics)
        return
    both_ways = {"Confidence": scene.confidence, "Occluded": scene.occluded}
    maps = {kind: values for kind, values in both_ways.items() if values is not None}
    warped = warp(scene.image2, scene.flow).round().clamp(0, 255).to(torch.uint8)
    images = {"Frame": scene.image1, "Next frame, warped": warped}
    report.add_step(scene.name, images=images, flows={"Flow": scene.flow}, maps=maps, statistics=statistics)
