"""Tables made of the records: one row per model and level, confidence intervals, differences between models."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..flow.metrics import METRICS, PROTOCOLS, ROBUSTNESS, Tally, combine, mean_over_corruptions
from .bootstrap import difference_interval, interval
from .records import RecordFile
from .runner import UNSUPERVISED


@dataclasses.dataclass(frozen=True)
class Row:
    """One model at one level.

    Attributes:
        items: how many were scored. bad: name -> reason of those that could not be.
        scores: stratum -> ``<metric>_per_pixel`` and ``<metric>_per_image``.
        intervals: metric -> 95 % interval of the official mean over all pixels, None with fewer than two sequences.
        extra: means over items of the scores between predictions and of those without truth.
    Scores of a stratum without pixels are NaN.
    """

    model: str
    level: str
    items: int
    sequences: int
    bad: dict[str, str]
    scores: dict[str, dict[str, float]]
    intervals: dict[str, tuple[float, float] | None]
    extra: dict[str, float]
    seconds_per_pair: float

    def to_dict(self) -> dict:
        """Plain values for JSON, which has no NaN: None instead."""
        return _without_nan(dataclasses.asdict(self))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _good(records: RecordFile, model: str, level: str, items: Iterable[str]) -> list[dict]:
    found = (records.records.get((model, level, item)) for item in items)
    return [record for record in found if record and "error" not in record]


def summarize(
    records: RecordFile, models: Sequence[str], levels: Sequence[str], items: Sequence[str], protocol: str
) -> list[Row]:
    """One row per model and level over ``items``, in the order of the arguments."""
    return [_row(records, model, level, items, protocol) for level in levels for model in models]


def _row(records: RecordFile, model: str, level: str, items: Sequence[str], protocol: str) -> Row:
    good = _good(records, model, level, items)
    entries = [records.records.get((model, level, item)) for item in items]
    bad = {record["item"]: record["error"] for record in entries if record and "error" in record}
    scored = [record for record in good if "strata" in record]
    strata = dict.fromkeys(name for record in scored for name in record["strata"])
    tallies = {
        name: [Tally.from_list(record["strata"][name]) for record in scored if name in record["strata"]]
        for name in strata
    }
    extra: dict[str, float] = {}
    for kind, names in (("robustness", ROBUSTNESS), ("unsupervised", UNSUPERVISED)):
        values = [record[kind] for record in good if kind in record]
        if values:
            extra |= {name: sum(value[name] for value in values) / len(values) for name in names}
    return Row(
        model,
        level,
        len(good),
        len({record["sequence"] for record in good}),
        bad,
        {name: combine(values) for name, values in tallies.items()},
        {metric: interval(*_by_sequence(scored, metric, protocol)) for metric in METRICS} if scored else {},
        extra,
        sum(record["seconds"] for record in good) / len(good) if good else math.nan,
    )


def _by_sequence(
    scored: Sequence[Mapping], metric: str, protocol: str, sequences: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Per sequence, numerator and denominator of the official mean of a metric over all pixels."""
    sequences = sorted({record["sequence"] for record in scored}) if sequences is None else sequences
    place = {name: number for number, name in enumerate(sequences)}
    sums, weights = np.zeros(len(place)), np.zeros(len(place))
    by_pixel = PROTOCOLS[protocol].aggregate_of(metric) == "pixel"
    for record in scored:
        one = Tally.from_list(record["strata"]["all"])
        if one.count:
            weight = one.count if by_pixel else 1
            sums[place[record["sequence"]]] += one.mean()[metric] * weight
            weights[place[record["sequence"]]] += weight
    return sums, weights


def differences(
    records: RecordFile, models: Sequence[str], levels: Sequence[str], items: Sequence[str], protocol: str
) -> list[dict]:
    """EPE of every further model minus that of the first, on the items that both have, with a paired interval."""
    found = []
    for level in levels:
        for model in models[1:]:
            pair = [
                {r["item"]: r for r in _good(records, name, level, items) if "strata" in r}
                for name in (model, models[0])
            ]
            shared = [item for item in items if item in pair[0] and item in pair[1]]
            if not shared:
                continue
            sequences = sorted({pair[0][item]["sequence"] for item in shared})
            sides = [_by_sequence([one[item] for item in shared], "epe", protocol, sequences) for one in pair]
            (sums, weights), (other_sums, other_weights) = sides
            found.append(
                {
                    "level": level,
                    "model": model,
                    "reference": models[0],
                    "items": len(shared),
                    "epe_difference": float(sums.sum() / weights.sum() - other_sums.sum() / other_weights.sum()),
                    "interval": difference_interval((sums, other_sums), (weights, other_weights)),
                }
            )
    return found


def robustness_means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Per model, RobustSpring's plain mean of its robustness scores over the degraded levels, if there are several."""
    found = {}
    for model in dict.fromkeys(row.model for row in rows):
        scored = {row.level: row.extra for row in rows if row.model == model and ROBUSTNESS[0] in row.extra}
        if len(scored) > 1:
            found[model] = {"levels": len(scored), **mean_over_corruptions(scored)}
    return found


# -- showing ----------------------------------------------------------------------------------------------------------
_TITLES = {
    "epe": "EPE",
    "outlier_1px": "1px %",
    "outlier_3px": "3px %",
    "outlier_5px": "5px %",
    "fl_all": "Fl %",
    "wauc": "WAUC %",
}
_EXTRA_TITLES = {
    "robustness_epe": "R_EPE",
    "robustness_1px": "R_1px %",
    "robustness_fl": "R_Fl %",
    "forward_backward_px": "fw-bw px",
    "warping_error": "warp x1e3",
}


def screen_table(rows: Sequence[Row], protocol: str) -> str:
    """:func:`table_cells` as aligned text."""
    return _aligned(table_cells(rows, protocol))


def table_cells(rows: Sequence[Row], protocol: str) -> list[list[str]]:
    """A header and the rows: official means, the interval of EPE, EPE per stratum."""
    rule = PROTOCOLS[protocol]
    strata = [name for name in dict.fromkeys(key for row in rows for key in row.scores) if name != "all"]
    extras = [name for name in _EXTRA_TITLES if any(name in row.extra for row in rows)]
    header = ["model", "level", "items"]
    if any(row.scores for row in rows):
        header += ["EPE", "95 % CI", *list(_TITLES.values())[1:], *strata]
    header += [_EXTRA_TITLES[name] for name in extras] + (["bad"] if any(row.bad for row in rows) else [])
    lines = [header]
    for row in rows:
        cells = [row.model, row.level, str(row.items)]
        if "EPE" in header:
            overall = row.scores.get("all", {})
            official = {m: overall.get(f"{m}_per_{rule.aggregate_of(m)}", math.nan) for m in METRICS}
            cells += [_number(official["epe"], 3), _range(row.intervals.get("epe"))]
            cells += [_number(official[m], 2) for m in METRICS[1:]]
            key = f"epe_per_{rule.aggregate_of('epe')}"
            cells += [_number(row.scores.get(name, {}).get(key, math.nan), 3) for name in strata]
        cells += [_number(row.extra.get(n, math.nan) * (1e3 if n == "warping_error" else 1), 3) for n in extras]
        lines.append(cells + ([str(len(row.bad))] if "bad" in header else []))
    return lines


def official_epe(row: Row, protocol: str) -> float:
    """The mean end-point error that the benchmark publishes, NaN without truth."""
    return row.scores.get("all", {}).get(f"epe_per_{PROTOCOLS[protocol].aggregate_of('epe')}", math.nan)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _range(values: tuple[float, float] | None) -> str:
    return "-" if values is None else f"{values[0]:.3f}..{values[1]:.3f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        [cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(cells)]
        for cells in (zip(line, widths, strict=True) for line in lines)
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def csv_table(rows: Sequence[Row]) -> str:
    """The rows with every number: one line per model, level and stratum, both means."""
    keys = [f"{metric}_per_{mean}" for metric in METRICS for mean in ("pixel", "image")]
    extras = [*ROBUSTNESS, *UNSUPERVISED]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "level", "stratum", "items", "bad", *keys, "epe_low", "epe_high", *extras])
    for row in rows:
        for stratum, scores in (row.scores or {"all": {}}).items():
            whole = stratum == "all"
            low, high = (row.intervals.get("epe") or ("", "")) if whole else ("", "")
            more = [row.extra.get(name, "") if whole else "" for name in extras]
            values = [scores.get(key, math.nan) for key in keys]
            cells = ["" if math.isnan(value) else value for value in values]
            writer.writerow([row.model, row.level, stratum, row.items, len(row.bad), *cells, low, high, *more])
    return text.getvalue()
