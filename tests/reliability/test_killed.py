"""kill -9 while a verb runs: at most the item in work is lost, and the same command goes on.

``infer`` is in tests/cli/test_infer_resume.py, ``train`` in tests/train/test_trainer.py.
"""

import json
import sys

import pytest

from daflow_ext.cli import main
from tests.reliability import common

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="kill -9")]


def test_degrade_goes_on_after_the_last_whole_clip(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        common.write_clip(tmp_path / "in" / name, 4)
    command = ("degrade", tmp_path / "in", "--level", 2, "--seed", 5, "-o")
    out, whole, records = tmp_path / "out", tmp_path / "whole", tmp_path / "out" / "unfinished.jsonl"
    # the first line is the run, then one per clip; a third clip is in work
    process = common.start(*command, out)
    common.kill_when(process, lambda: common.whole_lines(records) >= 3 and (out / "c").is_dir())
    finished = common.whole_lines(records) - 1
    assert 2 <= finished < 5
    assert not (out / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for name in "ab" for path in (out / name).iterdir()}
    (out / "c").mkdir(exist_ok=True)
    (out / "c" / ".0.png.1.tmp").write_bytes(b"left behind")

    assert main([str(word) for word in (*command, out)]) == 0
    assert main([str(word) for word in (*command, whole)]) == 0
    assert common.visible(out) == common.visible(whole)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # these were not made anew
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert main(["degrade", "--check", str(out)]) == 0


def test_degrade_refuses_to_go_on_with_other_settings(tmp_path, capsys):
    common.write_clip(tmp_path / "in" / "a", 3)
    (tmp_path / "in" / "b").mkdir()
    (tmp_path / "in" / "b" / "0.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert "0.png" in common.sentence(capsys, "degrade", tmp_path / "in", "-o", out, "--level", 1)
    assert common.whole_lines(out / "unfinished.jsonl") == 2
    error = common.sentence(capsys, "degrade", tmp_path / "in", "-o", out, "--level", 2)
    assert "holds an unfinished set with another settings; give a new folder" in error
    (tmp_path / "in" / "b" / "0.png").write_bytes((tmp_path / "in" / "a" / "0.png").read_bytes())
    assert main(["degrade", str(tmp_path / "in"), "-o", str(out), "--level", "1"]) == 0
    assert [clip["name"] for clip in json.loads((out / "manifest.json").read_text())["clips"]] == ["a", "b"]
    assert not (out / "unfinished.jsonl").exists()


def test_validate_keeps_every_scored_item(tmp_path, tiny_weights):
    common.write_pairs(tmp_path / "data", 40)
    command = ("validate", "--dataset", "pairs", "--root", tmp_path / "data", "--model", tiny_weights, "--iters", 2,
               "--workers", 0, "-o")  # fmt: skip
    out, records = tmp_path / "out", tmp_path / "out" / "records.jsonl"
    process = common.start(*command, out)
    common.kill_when(process, lambda: common.whole_lines(records) >= 6)
    kept = records.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 6 <= kept.count(b"\n") < 41
    assert not (out / "summary.json").exists()
    with records.open("ab") as file:
        file.write(b'{"model": "tiny", "lev')  # what a kill in the middle of a write leaves

    common.finish(common.start(*command, out))
    common.finish(common.start(*command, tmp_path / "whole"))
    assert records.read_bytes().startswith(kept)
    again, whole = (json.loads((folder / "summary.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert [row["scores"] for row in again["rows"]] == [row["scores"] for row in whole["rows"]]
    items = [json.loads(line)["item"] for line in records.read_text().splitlines()[1:]]
    assert sorted(items) == sorted(set(items)), "an item was scored twice"
    assert len(items) == 40
