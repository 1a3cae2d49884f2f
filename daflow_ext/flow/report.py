"""A page to look at: frames and flow side by side, in one HTML file that needs nothing else."""

import base64
import html
import json
import os
import pathlib
import string
from collections.abc import Mapping, Sequence

import torch

from ..frames._files import atomic_path
from ..frames.io import encode_image
from .colors import flow_to_image
from .warp import pixel_grid

_TEMPLATE = pathlib.Path(__file__).resolve().parents[1] / "assets" / "report.html"


def write_report(
    path: str | os.PathLike,
    panels: Mapping[str, Sequence[torch.Tensor]],
    *,
    title: str,
    statistics: Sequence[Mapping[str, float]] = (),
    settings: Mapping[str, object] | None = None,
    versions: Mapping[str, object] | None = None,
    max_flow: float | None = None,
) -> None:
    """Write one HTML file with a slider over the steps of a clip; it opens without a network and works by keyboard.

    Args:
        panels: caption -> one picture per step, all panels of one length, shown side by side.
        statistics: per step, name -> number; shown under the pictures, with means over the clip.
        settings, versions: two tables of text.
        max_flow: length of full colour in pixels, one for all flows; None takes the longest vector of all.
    Shapes:
        a picture is uint8 [3, H, W] (an image) or floating point [2, H, W] (a flow; coloured by :func:`flow_to_image`).
    Raises:
        ValueError: no pictures, panels or statistics of different lengths, a folder that does not exist.
    """
    lengths = {caption: len(pictures) for caption, pictures in panels.items()}
    steps = max(lengths.values(), default=0)
    if steps == 0 or set(lengths.values()) != {steps} or len(statistics) not in (0, steps):
        raise ValueError(
            f"write_report: every panel needs one picture per step, got {lengths} and {len(statistics)} statistics"
        )
    if max_flow is None:
        max_flow = _longest(panels)
    data = {
        "captions": list(panels),
        "pictures": [[_data_uri(picture, max_flow) for picture in pictures] for pictures in panels.values()],
        "statistics": [{name: round(float(value), 4) for name, value in row.items()} for row in statistics],
    }
    page = string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        panels="\n".join(
            f'<figure><img alt="{html.escape(caption)}, step 1 of {steps}" src="{uris[0]}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, uris in zip(panels, data["pictures"], strict=True)
        ),
        last=steps - 1,
        steps=steps,
        wheel=_data_uri(_wheel_picture(), max_flow=1.0),
        max_flow=f"{max_flow:.1f}",
        means=_table(_means(statistics)),
        settings=_table(settings or {}),
        versions=_table(versions or {}),
        data=json.dumps(data).replace("</", "<\\/"),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _longest(panels: Mapping[str, Sequence[torch.Tensor]]) -> float:
    flows = [picture for pictures in panels.values() for picture in pictures if picture.is_floating_point()]
    lengths = [torch.linalg.vector_norm(flow, dim=0).nan_to_num(0, 0, 0).max().item() for flow in flows]
    return max(lengths, default=0.0) or 1.0


def _data_uri(picture: torch.Tensor, max_flow: float) -> str:
    """Images as JPEG, flow colours as PNG (flat areas and sharp edges)."""
    if picture.is_floating_point():
        kind, content = "png", encode_image(flow_to_image(picture, max_flow), ".png")
    else:
        kind, content = "jpeg", encode_image(picture, ".jpg")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _wheel_picture(side: int = 121) -> torch.Tensor:
    """The legend as a flow: every vector of length up to 1, from the centre outwards; unknown outside the disc."""
    vectors = (pixel_grid(side, side) - (side - 1) / 2) / (side / 2)
    return torch.where(vectors.square().sum(0) <= 1, vectors, torch.nan)


def _means(statistics: Sequence[Mapping[str, float]]) -> dict[str, str]:
    if not statistics:
        return {}
    return {name: f"{sum(float(row[name]) for row in statistics) / len(statistics):.3f}" for name in statistics[0]}


def _table(rows: Mapping[str, object]) -> str:
    return "".join(
        f'<tr><th scope="row">{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
