"""The verbs on data sets, through the command line."""

import csv
import importlib.util
import json
import math
import pathlib
import re

import numpy as np
import pytest

from daflow_ext.cli import main

SIDE = 64


@pytest.fixture(scope="module")
def trees():
    path = pathlib.Path(__file__).parents[1] / "datasets" / "trees.py"
    spec = importlib.util.spec_from_file_location("dataset_trees", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(trees, tmp_path):
    """Two scenes of three flat frames, large enough to be degraded; flow (n, 0) and (n, 1)."""
    for offset, scene in enumerate(("alley_1", "market_2")):
        for number in (1, 2, 3):
            for split in ("training", "test"):
                for rendering in ("clean", "final"):
                    path = tmp_path / f"sintel/{split}/{rendering}/{scene}/frame_{number:04d}.png"
                    trees.picture(path, 60 * offset + number, SIDE, SIDE)
            if number < 3:
                flow = tmp_path / f"sintel/training/flow/{scene}/frame_{number:04d}.flo"
                trees.flo(flow, trees.vectors(number, offset, SIDE, SIDE))
    return tmp_path / "sintel"


def validate(root, out, *more, model="zero"):
    return main(["validate", "--model", model, "--dataset", "sintel-clean", "--root", str(root), "-o", str(out),
                 "--workers", "0", *more])  # fmt: skip


def test_one_table_of_clean_and_degraded_frames(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert validate(root, out, "--degrade", "3", "fog:2", "--worst", "1", "--robustness",
                    "--report", str(tmp_path / "pages/a.html")) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sintel-clean, all pixels of equal images")
    assert [line.split()[1] for line in lines[2:5]] == ["clean", "level3", "fog:2"]
    expected = np.mean([1, 2, math.sqrt(2), math.sqrt(5)])
    assert [line.split()[3] for line in lines[2:5]] == [f"{expected:.3f}"] * 3
    assert lines[-2:] == [str(tmp_path / "pages/a.html"), str(out / "summary.json")]
    summary = json.loads((out / "summary.json").read_text())
    assert [row["level"] for row in summary["rows"]] == ["clean", "level3", "fog:2"]
    assert summary["rows"][0]["scores"]["all"]["epe_per_image"] == pytest.approx(expected, rel=1e-6)
    assert summary["rows"][1]["extra"]["robustness_epe"] == 0
    assert summary["settings"]["dataset"] == "sintel-clean"
    assert "torch" in summary["versions"]
    with (out / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stratum"] == "all"]
    assert [row["level"] for row in rows] == ["clean", "level3", "fog:2"]
    assert float(rows[0]["epe_per_image"]) == pytest.approx(expected, rel=1e-6)
    assert sorted(path.name for path in (out / "worst").iterdir()) == ["zero-clean", "zero-fog_2", "zero-level3"]
    page = (tmp_path / "pages/a.html").read_text()
    head, *steps = [json.loads(text) for text in re.findall(r'<script type="application/json".*?>(.*?)</script>', page)]
    bars, table = head["results"]
    assert [group["name"] for group in bars["groups"]] == ["clean", "level3", "fog:2"]
    assert bars["groups"][0]["bars"][0]["value"] == pytest.approx(expected, rel=1e-6)
    assert table["rows"][0][:4] == ["zero", "clean", "4", f"{expected:.3f}"]
    assert [step["name"] for step in steps] == [f"zero, {level}: market_2/frame_0002" for level in
                                                ("clean", "level3", "fog:2")]  # fmt: skip
    assert list(steps[0]["images"]) == ["Frame"]
    assert list(steps[1]["images"]) == ["Frame", "Degraded"]
    assert head["swipe"] == ["Frame", "Degraded"]
    assert (out / "worst/zero-clean/01-market_2_frame_0002-2.24px.png").is_file()


def test_a_second_run_adds_levels_and_keeps_results(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert validate(root, out) == 0
    before = (out / "records.jsonl").read_bytes()
    assert validate(root, out, "--degrade", "1", "--json") == 0
    assert (out / "records.jsonl").read_bytes().startswith(before)
    printed = capsys.readouterr().out
    summary = json.loads(printed[printed.index("\n{\n") :])
    assert [row["level"] for row in summary["rows"]] == ["clean", "level1"]
    assert validate(root, out, "--seed", "5") == 1
    assert "was made with seed = 0, this run has 5" in capsys.readouterr().err
    assert validate(root, out, "--seed", "5", "--restart") == 0


def test_bad_items_are_named_and_counted(root, tmp_path, capsys):
    (root / "training/clean/market_2/frame_0001.png").unlink()
    assert validate(root, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "daflow validate: market_2/frame_0001: " in error
    assert "frame_0001.png does not exist" in error
    assert validate(root, tmp_path / "out", "--skip-bad") == 0
    shown = capsys.readouterr().out
    assert "bad items, not scored (1):" in shown
    assert "market_2/frame_0001: " in shown
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["rows"][0]["items"] == 3
    assert list(summary["rows"][0]["bad"]) == ["market_2/frame_0001"]


def test_every_and_limit_choose_items(root, tmp_path):
    assert validate(root, tmp_path / "out", "--every", "2", "--limit", "1") == 0
    lines = (tmp_path / "out/records.jsonl").read_text().splitlines()
    assert [json.loads(line)["item"] for line in lines[1:]] == ["alley_1/frame_0001"]


def test_precomputed_frames_are_a_level(root, tmp_path, capsys):
    assert (
        main(["degrade", str(root / "training/clean"), "-o", str(tmp_path / "lq/training/clean"), "--level", "2"]) == 0
    )
    assert validate(root, tmp_path / "out", "--lq-root", str(tmp_path / "lq")) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("zero")] == [
        "clean",
        "lq",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-clean"], "--no-clean leaves nothing to score"),
        (["--degrade", "9"], "no degradation '9'; expected a level 1..5"),
        (["--option", "camera=left"], "--option camera=left: sintel takes none, as NAME=VALUE"),
        (["--split", "val"], "split must be one of training, test, got 'val'"),
        (["--report", "page.png"], "--report writes an HTML page; expected a name ending in .html, got page.png"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--lq-window", "some"], "--lq-window must be a number or 'sequence', got 'some'"),
        (["--model", "zero"], "two models are called 'zero'"),
        (["--model", "nothing.pth"], "'nothing.pth' is neither a model ("),
    ],
)
def test_bad_arguments_are_one_sentence(root, tmp_path, capsys, arguments, message):
    assert validate(root, tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_wrong_root_shows_the_layout(tmp_path, capsys):
    assert validate(tmp_path, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "the folder" in error
    assert "training/flow/<scene>/frame_0001.flo" in error


def test_daflow_and_raft_in_one_table(root, tmp_path, capsys, pipeline_folder, tiny_weights):
    """Clips of three frames for the one, two of them for the other; the folder of a pipeline is enough."""
    more = ("--model", f"raft={tiny_weights}", "--iters", "1", "--backend", "reference", "--limit", "2")
    assert validate(root, tmp_path / "out", *more, model=f"da={pipeline_folder}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["da", "clean"], ["raft", "clean"]]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["settings"]["clip"] == 3
    assert "feature_steps=first" in summary["models"]["da"]
    steps = ("--steps", "2", "--feature-steps", "all")
    assert validate(root, tmp_path / "all", *more, *steps, model=f"da={pipeline_folder}") == 0
    summary = json.loads((tmp_path / "all/summary.json").read_text())
    assert "feature_steps=all" in summary["models"]["da"]
    capsys.readouterr()
    assert validate(root, tmp_path / "none", *steps) == 1
    assert "the option for steps belongs to DA-Flow, but no model here is one" in capsys.readouterr().err


def test_submit(root, tmp_path, capsys):
    arguments = ["submit", "--model", "zero", "--dataset", "sintel", "--root", str(root), "-o", str(tmp_path / "up")]
    assert main([*arguments, "--workers", "0"]) == 0
    assert "8 flow files of zero" in capsys.readouterr().out
    assert len(list((tmp_path / "up").rglob("*.flo"))) == 8


def test_pseudo(root, tmp_path, capsys):
    out = tmp_path / "flow"
    arguments = ["pseudo", str(root / "training/clean"), "--teacher", "zero", "-o", str(out), "--workers", "0"]
    assert main([*arguments, "--format", "flo"]) == 0
    assert "4 pairs of 2 sequences, flow of zero" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "alley_1/flow").iterdir()) == ["frame_0001.flo", "frame_0002.flo"]
    assert main(["validate", "--model", "zero", "--dataset", "folder", "--root", str(root / "training/clean"),
                 "--option", f"flow_root={out}", "-o", str(tmp_path / "scores"), "--workers", "0"]) == 0  # fmt: skip
