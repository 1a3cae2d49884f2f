"""The weights that come with the package: what they are, and what they must be good for."""

import json
import pathlib

import pytest

from daflow_ext import get_model, list_models
from daflow_ext.cli import main
from daflow_ext.models.registry import DEFAULT_MODEL, SHIPPED

NAMES = [model.name for model in list_models() if model.shipped]
PAIRS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "real_pairs.csv"


def test_the_default_is_shipped():
    assert DEFAULT_MODEL in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_small_complete_and_with_a_card(name):
    folder = SHIPPED / name
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= 16e6
    get_model(name)  # strict and finite
    card = (folder / "README.md").read_text()
    for heading in (
        "* Command: `daflow train",
        "* Steps:",
        "* Data:",
        "* Seed:",
        "* Hardware:",
        "## Metrics",
        "## Limits",
    ):
        assert heading in card


@pytest.mark.slow
def test_the_default_beats_raft_small_on_degraded_real_pairs(shared, tmp_path):
    """By 30 % of the EPE at medium and severe degradation; on clean frames it loses at most half as much again."""
    raft_small = shared / "weights" / "raft-small.pth"
    command = ["validate", "--model", f"ours={DEFAULT_MODEL}", "--model", f"raft={raft_small}", "--dataset", "pairs"]
    command += ["--root", str(shared / "data"), "--option", f"pairs={PAIRS}"]
    assert main([*command, "--degrade", "level3", "level5", "-o", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    epe = {(row["model"], row["level"]): row["scores"]["all"]["epe_per_image"] for row in rows}
    for level in ("level3", "level5"):
        assert epe["ours", level] <= 0.7 * epe["raft", level], (level, epe)
    assert epe["ours", "clean"] <= 1.5 * epe["raft", "clean"], epe
