"""The full-size model on a CPU with 24 GB: built, saved, loaded strictly, run once with early exit."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_full_size_model_loads_strictly_and_runs(tmp_path):
    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("needs 8 GB of disk in the temporary folder")
    command = [sys.executable, "-m", "benchmarks.dit4sr", "--folder", str(tmp_path / "model")]
    # two processes: building must not count towards the peak memory of loading and running
    subprocess.run([*command, "--build-only"], cwd=ROOT, check=True)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path / "model")
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert found["tensors"] == 1383
    assert found["parameters"] == 2_716_814_144
    assert found["peak_rss_gb"] < 16
