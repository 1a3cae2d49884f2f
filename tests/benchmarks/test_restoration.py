"""The table of unguided and guided restoration: exact flow must lower the warping error."""

import json

import pytest

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")
pytest.importorskip("torchmetrics", reason="PSNR and SSIM are torchmetrics'; pip install torchmetrics")

from benchmarks import restoration


def test_exact_flow_lowers_the_warping_error(pipeline_folder, tmp_path, capsys):
    arguments = ["--model", str(pipeline_folder), "--clips", "1", "--frames", "3", "--size", "64", "80", "--steps", "2"]
    arguments += ["--flows", "none", "oracle", "--out", str(tmp_path)]
    assert restoration.main(arguments) == 0
    result = json.loads((tmp_path / "restoration.json").read_text())
    scores = result["scores"]
    assert list(scores) == ["input", "restored", "guided-oracle", "truth"]
    assert scores["guided-oracle"]["warping_error"] < 0.8 * scores["restored"]["warping_error"]
    assert scores["truth"]["warping_error"] < scores["input"]["warping_error"]
    assert f"{scores['restored']['warping_error']:.4f}" in capsys.readouterr().out
    written = [path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")]
    assert restoration.main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")] == written  # nothing is made twice
