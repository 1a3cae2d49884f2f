"""What came out, as JSON and as a page: the verdict by the criterion that was fixed before, tables, time used."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from daflow_ext.datasets import CLEAN
from daflow_ext.evaluate.bootstrap import difference_interval
from daflow_ext.evaluate.records import RecordFile
from daflow_ext.evaluate.summary import Row, summarize
from daflow_ext.evaluate.zero_shot import ZeroShotTable
from daflow_ext.flow.metrics import Tally
from daflow_ext.train import checkpoint

from . import FAILURE, SUCCESS
from .plan import BASELINES, DEGRADED, LEVELS, TRANSFORMERS, VARIANTS, ZERO_SHOT_LEVEL, Plan

PROTOCOL = "dense"
COLUMNS = {
    "EPE": ("all", "epe_per_image"),
    "1px %": ("all", "outlier_1px_per_image"),
    "3px %": ("all", "outlier_3px_per_image"),
    "5px %": ("all", "outlier_5px_per_image"),
    "EPE visible": ("non_occluded", "epe_per_image"),
    "EPE occluded": ("occluded", "epe_per_image"),
}
"""Title of a column -> stratum and score."""
SECONDS = "s / pair"


def clip_errors(plan: Plan, records: RecordFile, items: Sequence[str], variant: str) -> np.ndarray | None:
    """EPE of every item, averaged over the degraded levels, of each seed; None where a result is missing.

    Shapes: [models, items], pixels.
    """
    rows = []
    for model in plan.all_models(variant):
        keys = [[(model, level, item) for level in DEGRADED] for item in items]
        if any(key not in records.records or "strata" not in records.records[key] for row in keys for key in row):
            return None
        found = [[Tally.from_list(records.records[key]["strata"]["all"]).mean()["epe"] for key in row] for row in keys]
        rows.append(np.mean(found, axis=1))
    return np.array(rows)


def compare(plan: Plan, records: RecordFile, items: Sequence[str]) -> list[dict]:
    """EPE of V3 minus that of every other variant, paired over clips, each variant averaged over its seeds."""
    ours, found = clip_errors(plan, records, items, "v3"), []
    for other in VARIANTS:
        theirs = None if other == "v3" else clip_errors(plan, records, items, other)
        if ours is None or theirs is None:
            continue
        ones = np.ones(len(items))
        found.append(
            {
                "variant": "v3",
                "reference": other,
                "epe_difference": float(ours.mean() - theirs.mean()),
                "interval": difference_interval((ours.mean(0), theirs.mean(0)), (ones, ones)),
                "per_seed": (ours.mean(1) - theirs.mean(1)).tolist(),
            }
        )
    return found


def verdict(differences: Sequence[Mapping]) -> bool | None:
    """The criterion of the package's docstring; None while a comparison it needs is missing."""
    needed = {one["reference"]: one["interval"] for one in differences if one["reference"] in BASELINES}
    if set(needed) != set(BASELINES) or None in needed.values():
        return None
    return all(high < 0 for _, high in needed.values())


def table_rows(plan: Plan, records: RecordFile, items: Sequence[str]) -> list[dict]:
    """Scores of every variant at every level, and their mean over the degraded ones ("degraded"), over its seeds."""
    whole = {}
    for variant in VARIANTS:
        rows = summarize(records, plan.all_models(variant), LEVELS, items, PROTOCOL)
        whole[variant] = [row for row in rows if row.items == len(items)]
    found = []
    for level, levels in ((CLEAN, (CLEAN,)), ("degraded", DEGRADED), *((one, (one,)) for one in DEGRADED)):
        for variant in VARIANTS:
            chosen = [row for row in whole[variant] if row.level in levels]
            seeds = len(plan.all_models(variant))
            if len(chosen) == seeds * len(levels):
                found.append({"variant": variant, "level": level, "seeds": seeds, **_means(chosen)})
    return found


def _means(rows: Sequence[Row]) -> dict[str, float | None]:
    values = {title: [row.scores[stratum][key] for row in rows] for title, (stratum, key) in COLUMNS.items()}
    means = {title: float(np.mean(column)) for title, column in values.items()}
    means[SECONDS] = float(np.mean([row.seconds_per_pair for row in rows]))
    return {title: None if math.isnan(mean) else mean for title, mean in means.items()}


def zero_shot_tables(records: RecordFile) -> dict[str, dict]:
    """Mean error per transformer, denoising step and layer."""
    tables: dict[str, ZeroShotTable] = {}
    for (transformer, _, _), one in records.records.items():
        table = ZeroShotTable(
            tuple(one["layers"]), tuple(one["timesteps"]), torch.tensor(one["total"], dtype=torch.float64), one["count"]
        )
        tables[transformer] = tables[transformer] + table if transformer in tables else table
    return {
        name: {
            "clips": sum(key[0] == name for key in records.records),
            "timesteps": tables[name].timesteps,
            "layers": tables[name].layers,
            "epe": tables[name].epe.tolist(),
        }
        for name in TRANSFORMERS
        if name in tables
    }


def read_json(path: pathlib.Path) -> Any:
    """None where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else None


def training_times(out: pathlib.Path) -> dict[str, dict]:
    """Steps and seconds of every run that was begun."""
    found = {}
    for folder in sorted(path.parent for path in out.glob("*/finished.json")):
        finished = json.loads((folder / "finished.json").read_text())
        found[folder.name] = {"steps": finished["steps"], "seconds": finished["seconds"], "finished": True}
    for path in sorted(out.glob(f"*/{checkpoint.NAME}")):
        if path.parent.name not in found:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found[path.parent.name] = {"steps": state["step"], "seconds": state["seconds"], "finished": False}
    return found


def sentence(plan: Plan, decided: bool | None) -> str:
    """The result in words."""
    if plan.quick:
        return "A quick run: it shows that everything runs; its figures mean nothing."
    if decided is None:
        return "Unfinished: not every variant is trained and scored, so nothing is decided."
    return f"Success: {SUCCESS}." if decided else f"Result: {FAILURE}. (Asked for: {SUCCESS}.)"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    environment, plan = report["environment"], report["plan"]
    machine = environment.get("gpu") or f"{environment['cpu']}, {environment['cores']} cores"
    sizes = ", ".join(f"{name} {plan[name]}" for name in ("steps", "dit_steps", "seeds", "clips", "batch", "crop"))
    start = plan["raft"] or "random weights"
    lines = [
        "# Degradation-aware flow, in small",
        "",
        report["sentence"],
        "",
        f"* {environment['date']}, {machine}, torch {environment['torch']}, commit {environment['commit']}",
        f"* `{report['command']}`",
        f"* {sizes}; V1 starts from {start}",
        "",
        "## V3 minus the others",
        "Mean EPE over the degraded levels, pixels; negative: V3 is better. The interval is over clips.",
        "",
    ]
    differences = [
        [
            one["reference"].upper(),
            f"{one['epe_difference']:+.3f}",
            _range(one["interval"]),
            _list(one["per_seed"], "+.3f"),
        ]
        for one in report["differences"]
    ]
    lines += _table(["against", "EPE", "95 %", "per seed"], differences)
    lines += ["", "## Scores on held-out clips", "Means over clips and seeds.", ""]
    titles = (*COLUMNS, SECONDS)
    scores = [
        [
            one["variant"].upper(),
            one["level"],
            *("-" if one[title] is None else f"{one[title]:.3f}" for title in titles),
        ]
        for one in report["rows"]
    ]
    lines += _table(["variant", "level", *titles], scores)
    for name, one in report["zero_shot"].items():
        lines += ["", f"## Matching without training: {name}"]
        lines += [f"EPE in pixels of {one['clips']} clips at {ZERO_SHOT_LEVEL}, timestep down, layer across.", ""]
        cells = [[f"{t:.0f}", *(f"{x:.2f}" for x in row)] for t, row in zip(one["timesteps"], one["epe"], strict=True)]
        lines += _table(["t", *map(str, one["layers"])], cells)
    lines += ["", "## Training time", ""]
    times = [
        [name, str(one["steps"]) + ("" if one["finished"] else " (unfinished)"), f"{one['seconds']:.0f}"]
        for name, one in report["seconds"].items()
    ]
    lines += _table(["run", "steps", "seconds"], times)
    return "\n".join(lines) + "\n"


def _range(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.3f} .. {interval[1]:+.3f}"


def _list(values: Sequence[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
