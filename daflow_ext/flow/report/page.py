"""A page to look at flow with: one HTML file that needs nothing else."""

import html
import importlib.resources
import json
import os
import string
from collections.abc import Mapping, Sequence

import torch

from ...frames._files import atomic_path
from ..colors import color_wheel, length_quantile
from ..draw import OCCLUDED, UNSURE, check_picture, error_ramp, value_ramp
from ..warp import check_flow
from .encode import encode_colors, encode_flow, encode_map, encode_picture, stride_for

_SCRIPTS = ("decode.js", "colors.js", "viewer.js", "sections.js", "main.js")


class Report:
    """A page with tables, a slider over the steps of a clip below, then settings; it opens without a network.

        report = Report("My clip", swipe=("Frame", "Next frame, warped"))
        report.add_step("0001", images={"Frame": frame, ...}, flows={"Flow": flow}, maps={"Confidence": confidence})
        report.write("report.html")

    Every image, flow and map is a panel. Two flows also make a panel of their difference, "Error". The page draws flow
    from the stored vectors, so that their scale can be changed there and the vector under the cursor be read.

    Args:
        subtitle: a line under the title.
        max_flow: length of full colour in pixels; None: see :func:`flow_scale`.
        max_error: pixels of the brightest colour of the error.
        swipe: names of two images that share a panel, with a divider to move between them.
        settings, versions: two tables of text.
        picture_side, flow_side: longest sides at which pictures and flow are stored; flow as every n-th pixel.
    """

    def __init__(
        self,
        title: str,
        *,
        subtitle: str = "",
        max_flow: float | None = None,
        max_error: float = 10.0,
        swipe: tuple[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
        versions: Mapping[str, object] | None = None,
        picture_side: int = 960,
        flow_side: int = 480,
    ):
        self.title, self.subtitle, self.swipe = title, subtitle, swipe
        self.max_flow, self.max_error = max_flow, max_error
        self.settings, self.versions = settings or {}, versions or {}
        self.picture_side, self.flow_side = picture_side, flow_side
        self._steps: list[str] = []
        self._statistics: list[dict] = []
        self._sections: list[dict] = []
        self._panels: dict[str, str] = {}
        self._longest = 1.0

    def add_step(
        self,
        name: str,
        *,
        images: Mapping[str, torch.Tensor] | None = None,
        flows: Mapping[str, torch.Tensor] | None = None,
        maps: Mapping[str, torch.Tensor] | None = None,
        statistics: Mapping[str, float] | None = None,
    ) -> None:
        """The next position of the slider. Only its compressed form is kept.

        Args:
            images: name -> picture. flows: name -> flow; unknown vectors are allowed.
            maps: name -> what is laid over the first image: floating point is a confidence in [0, 1], coloured where it
                is low; bool is a mask, coloured where it is True.
            statistics: name -> number, drawn as curves over the clip.
        Shapes: images uint8 [3, H, W], flows [2, H, W], maps [H, W], all of one size within a step.
        Raises:
            ValueError: something of another shape, nothing at all.
        """
        images, flows, maps = images or {}, flows or {}, maps or {}
        height, width = _size(name, images, flows, maps)
        stride = stride_for(height, width, self.flow_side)
        for kind, given in (("image", images), ("flow", flows), ("map", maps)):
            self._panels |= dict.fromkeys(given, kind)
        for flow in flows.values():
            self._longest = max(self._longest, length_quantile(flow))
        step = {
            "name": name,
            "row": len(self._statistics),
            "size": [width, height],
            "images": {key: encode_picture(image, self.picture_side) for key, image in images.items()},
            "flows": {key: encode_flow(flow, stride) for key, flow in flows.items()},
            "maps": {key: encode_map(values, stride) for key, values in maps.items()},
        }
        self.add_statistics(name, statistics or {}, step=len(self._steps))
        self._steps.append(_json(step))

    def add_statistics(self, name: str, statistics: Mapping[str, float], *, step: int | None = None) -> None:
        """Numbers of a pair that has no step of its own (in a clip too long to show every pair)."""
        values = {key: round(float(value), 4) for key, value in statistics.items()}
        self._statistics.append({"name": name, "step": step, "values": values})

    def add_table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
        """A table of text; columns of numbers are aligned to the right."""
        self._sections.append(_table(title, columns, rows, note))

    def add_bars(self, title: str, groups: Mapping[str, Sequence[tuple]], unit: str = "", note: str = "") -> None:
        """Bars in groups: group -> (label, value, interval or None) each; an interval is (low, high)."""
        named = [
            {
                "name": name,
                "bars": [{"label": label, "value": value, "interval": bounds} for label, value, bounds in bars],
            }
            for name, bars in groups.items()
        ]
        self._sections.append({"kind": "bars", "title": title, "groups": named, "unit": unit, "note": note})

    def add_heat_map(
        self,
        title: str,
        columns: Sequence[object],
        rows: Sequence[object],
        values: Sequence[Sequence[float]],
        *,
        corner: str = "",
        note: str = "",
    ) -> None:
        """A table of numbers whose cells are coloured from the least to the largest.

        Args:
            values: one sequence per row. corner: what rows and columns are.
        """
        self._sections.append(
            {
                "kind": "heat",
                "title": title,
                "columns": [str(name) for name in columns],
                "rows": [str(name) for name in rows],
                "values": [[float(value) for value in row] for row in values],
                "corner": corner,
                "note": note,
            }
        )

    def write(self, path: str | os.PathLike) -> None:
        """Write the page; it appears whole or not at all.

        Raises:
            ValueError: neither steps nor tables, a folder that does not exist.
        """
        if not self._steps and not self._sections:
            raise ValueError(f"cannot write {path}: the report has neither steps nor tables")
        about = [
            _table(title, [], list(rows.items()))
            for title, rows in (("Settings", self.settings), ("Versions", self.versions))
            if rows
        ]
        head = {
            "title": self.title,
            "subtitle": self.subtitle,
            "maxFlow": self._longest if self.max_flow is None else self.max_flow,
            "maxError": self.max_error,
            "swipe": self.swipe,
            "panels": [{"name": name, "kind": kind} for name, kind in self._panels.items()],
            "wheel": encode_colors(color_wheel()),
            "errorRamp": encode_colors(error_ramp()),
            "valueRamp": encode_colors(value_ramp()),
            "overlays": {"confidence": {"color": UNSURE, "alpha": 0.8}, "mask": {"color": OCCLUDED, "alpha": 0.6}},
            "statistics": self._statistics if any(row["values"] for row in self._statistics) else [],
            "results": self._sections,
            "about": about,
        }
        data = [f'<script type="application/json" id="head">{_json(head)}</script>']
        data += [f'<script type="application/json" class="step">{step}</script>' for step in self._steps]
        page = string.Template(_resource("page.html")).substitute(
            title=html.escape(self.title),
            style=_resource("page.css"),
            data="\n".join(data),
            script="\n".join(_resource(name) for name in _SCRIPTS),
        )
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> dict:
    cells = [[_text(value) for value in row] for row in rows]
    return {"kind": "table", "title": title, "columns": list(columns), "rows": cells, "note": note}


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _size(name: str, images: Mapping, flows: Mapping, maps: Mapping) -> tuple[int, int]:
    what = f"Report.add_step {name!r}"
    for image in images.values():
        check_picture(what, image)
    for key, flow in flows.items():
        check_flow(what, key, flow)
    given = {**images, **flows, **maps}
    sizes = {key: tuple(tensor.shape[-2:]) for key, tensor in given.items()}
    if len(set(sizes.values())) != 1 or any(values.dim() != 2 for values in maps.values()):
        shapes = {key: list(tensor.shape) for key, tensor in given.items()}
        raise ValueError(f"{what}: images, flows and maps of one size were expected, got {shapes}")
    return next(iter(sizes.values()))


def _json(value: object) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
