"""``daflow demo`` and the clip that ships with the package."""

import functools
import re

import numpy as np
import torch

from daflow_ext.cli import _demo_scene
from daflow_ext.flow import warp
from daflow_ext.frames import Video
from daflow_ext.models.registry import DEFAULT_MODEL


def test_clip_is_the_scene():
    frames = list(Video(_demo_scene.CLIP))
    assert len(frames) == _demo_scene.FRAMES
    assert _demo_scene.CLIP.stat().st_size < 400_000
    scene = _demo_scene.layers()
    for index in (0, 13):
        rendered = torch.from_numpy(_demo_scene.render(scene, index)).permute(2, 0, 1)
        difference = (frames[index] - rendered).abs().mean().item()
        assert difference < 8, difference  # noise, blur and compression; another frame differs by more
        assert difference < 0.7 * (frames[index + 2] - rendered).abs().mean().item()


def test_true_flow_warps_the_next_picture_back():
    scene = _demo_scene.layers()
    for time in (2, 11):
        image1, image2 = (
            torch.from_numpy(_demo_scene.render(scene, time + step)).permute(2, 0, 1).contiguous() for step in (0, 1)
        )
        flow = torch.from_numpy(_demo_scene.true_flow(scene, time))
        back, inside = warp(image2, flow, mask=True, backend="reference")
        difference = (back - image1).abs().mean(0)[inside]
        still = (image2 - image1).abs().mean(0)[inside]
        # all but the outlines of the shapes and what they cover
        assert difference.quantile(0.9) < 3
        assert difference.median() < 0.25 * still.median()


def test_scene_is_deterministic(monkeypatch):
    monkeypatch.setattr(_demo_scene, "FRAMES", 1)
    first, second = _demo_scene.degraded_frames(), _demo_scene.degraded_frames()
    assert np.array_equal(first[0], second[0])


def test_demo_writes_a_page_and_prints_its_path(daflow, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("daflow_ext.cli.demo.Video", lambda path: FirstFrames(path, 3))
    code, out, err = daflow(
        "demo", "--weights", tiny_weights, "-o", tmp_path / "a" / "b", "--iters", "1", "--backend", "reference"
    )
    assert (code, err) == (0, "")
    page = tmp_path / "a" / "b" / "report.html"
    assert out.splitlines()[-1] == str(page.resolve())
    text = page.read_text()
    for word in ("RAFT-small", "EPE (px)", "tiny.pth", "True flow", torch.__version__):
        assert word in text


def test_demo_of_a_pipeline(daflow, pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("daflow_ext.cli.demo.Video", lambda path: FirstFrames(path, 3))
    code, out, err = daflow("demo", "--model", pipeline_folder, "-o", tmp_path, "--iters", "1", "--seed", "7")
    assert (code, err) == (0, "")
    assert out.startswith(f"{pipeline_folder.name}, 1 iterations on cpu: EPE ")
    text = (tmp_path / "report.html").read_text()
    for word in ("feature_steps", pipeline_folder.name):
        assert word in text


class FirstFrames(Video):
    """The beginning of a video."""

    def __init__(self, path, count):
        super().__init__(path)
        self.count = count

    def __iter__(self):
        for _, frame in zip(range(self.count), super().__iter__(), strict=False):
            yield frame


def test_the_shipped_weights_are_the_default(daflow, tmp_path, monkeypatch):
    monkeypatch.setattr("daflow_ext.cli.demo.Video", functools.partial(FirstFrames, count=3))
    code, out, _ = daflow("demo", "--iters", "12", "-o", tmp_path / "out")
    assert code == 0
    name, error = re.match(r"(\S+), 12 iterations on \S+: EPE ([\d.]+) px", out).groups()
    assert name == DEFAULT_MODEL
    assert float(error) < 1.5  # trained weights; random ones are off by the mean motion of several pixels and more


def test_missing_weights_are_named(refused, tmp_path):
    assert "absent.pth does not exist" in refused("demo", "--weights", tmp_path / "absent.pth", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
