"""A validation as a page: bars per level, the table, differences; the worst pairs are added as steps."""

import math
from collections.abc import Mapping, Sequence

from ..flow import Report
from ..flow.metrics import PROTOCOLS
from .pictures import DEGRADED, ERROR_SCALE, FRAME
from .summary import Row, official_epe, table_cells


def validation_page(rows: Sequence[Row], summary: Mapping, protocol: str, *, degraded: bool) -> Report:
    """The page of a validation.

    Args:
        rows: of :func:`summarize`. summary: what `daflow validate` writes as summary.json.
        degraded: some level has degraded frames, which the page then shows beside the clean ones.
    """
    settings = summary["settings"]
    models = list(dict.fromkeys(row.model for row in rows))
    report = Report(
        f"Validation on {settings['dataset']}",
        subtitle=f"{', '.join(models)}; {PROTOCOLS[protocol].note}",
        max_error=ERROR_SCALE,
        swipe=(FRAME, DEGRADED) if degraded else None,
        settings=settings | {f"model {name}": identity for name, identity in summary["models"].items()},
        versions=summary["versions"],
    )
    _add_bars(report, rows, protocol)
    header, *cells = table_cells(rows, protocol)
    note = "Official means; EPE in pixels, outliers in percent. 95 % CI: whole sequences resampled."
    report.add_table("Scores", header, cells, note)
    if summary["differences"]:
        differences = [
            [
                one["level"],
                f"{one['model']} minus {one['reference']}",
                f"{one['epe_difference']:+.3f}",
                "-" if one["interval"] is None else "{:+.3f}..{:+.3f}".format(*one["interval"]),
                one["items"],
            ]
            for one in summary["differences"]
        ]
        columns = ["level", "models", "difference", "95 % CI", "items"]
        report.add_table("EPE differences on the same items (px)", columns, differences)
    bad = [[row.model, row.level, item, reason] for row in rows for item, reason in row.bad.items()]
    if bad:
        report.add_table("Items that could not be scored", ["model", "level", "item", "reason"], bad)
    return report


def _add_bars(report: Report, rows: Sequence[Row], protocol: str) -> None:
    """End-point error per level; of data without truth, what is known instead."""
    title, values = "End-point error per level", [official_epe(row, protocol) for row in rows]
    intervals = [row.intervals.get("epe") for row in rows]
    if all(math.isnan(value) for value in values):
        title, values = (
            "Forward-backward error per level",
            [row.extra.get("forward_backward_px", math.nan) for row in rows],
        )
        intervals = [None] * len(rows)
    groups: dict[str, list] = {}
    for row, value, bounds in zip(rows, values, intervals, strict=True):
        groups.setdefault(row.level, []).append((row.model, None if math.isnan(value) else value, bounds))
    report.add_bars(
        title,
        groups,
        unit="px",
        note="Shorter is better. Black lines: 95 % intervals, where there are several sequences.",
    )
