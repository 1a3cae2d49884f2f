"""``daflow infer --viz --video --report``: what is drawn, and that a continued run draws the same."""

import errno
import json
import re

import pytest
import torch

from daflow_ext.cli import _views, infer
from daflow_ext.cli._run_folder import RECORDS
from daflow_ext.flow import (
    Trails,
    confidence_overlay,
    flow_to_image,
    forward_backward_confidence,
    occlusion_overlay,
    read_flow,
    warp,
)
from daflow_ext.frames import open_frames, read_image, write_video

FAST = ("--iters", "2", "--backend", "reference")
ALL = ("--bidirectional", "--viz", "arrows,side,wheel,confidence,occlusion,trails")


def page_data(path):
    found = re.findall(r'<script type="application/json".*?>(.*?)</script>', path.read_text())
    return json.loads(found[0]), [json.loads(text) for text in found[1:]]


def contents(folder):
    """Every file but the records, whose seconds differ."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORDS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_view(daflow, tiny_weights, clip, tmp_path):
    out = tmp_path / "out"
    film, page = out / "films/a.mp4", out / "a.html"
    run = ("infer", clip, "--weights", tiny_weights, "-o", out, *ALL, "--video", film, "--report", page, *FAST)
    code, text, err = daflow(*run)
    assert (code, err) == (0, "")
    assert text.splitlines()[-3:] == [str(out), str(film), str(page)]
    head, steps = page_data(page)
    scale = head["maxFlow"]
    assert f"full colour = {scale:.2f} px" in text
    names = ["frame8", "frame9", "frame10"]
    trails = Trails()
    for name in names:
        frame, flow = read_image(clip / f"{name}.png"), read_flow(out / f"flow/{name}.flo")
        occluded = read_image(out / f"occlusion/{name}.png")[0] > 0
        confidence = forward_backward_confidence(flow, read_flow(out / f"flow_backward/{name}.flo"))
        color = read_image(out / f"color/{name}.png")
        assert torch.equal(color, flow_to_image(flow, scale))
        expected = {
            "side": torch.cat([frame, color], 2),
            "confidence_overlay": confidence_overlay(frame, confidence),
            "occlusion_overlay": occlusion_overlay(frame, occluded),
            "trails": trails.draw(frame),
        }
        trails.advance(flow, occluded)
        for folder, picture in expected.items():
            assert torch.equal(read_image(out / folder / f"{name}.png"), picture), folder
        assert not torch.equal(read_image(out / f"arrows/{name}.png"), frame)
        assert (out / f"color_backward/{name}.png").is_file()
    frames = list(open_frames(film))
    assert open_frames(film).fps == 10
    assert [tuple(frame.shape) for frame in frames] == [(3, 2 * (60 + 22), 3 * 70)] * 3  # six panels with captions
    panel, frame = frames[0][:, 22:82, :70], read_image(clip / "frame8.png")  # the frame comes first
    assert (panel.float().mean(0) - frame.float().mean(0)).abs().mean() < 6  # the colours of noise suffer in 4:2:0
    assert [step["name"] for step in steps] == names
    assert list(steps[0]["images"]) == ["Frame", "Next frame, warped"]
    assert list(steps[0]["maps"]) == ["Confidence", "Occluded"]
    assert {"iters", "weights", "backend"} <= {row[0] for row in head["about"][0]["rows"]}
    assert set(head["statistics"][0]["values"]) == {
        "mean length (px)", "99 % length (px)", "longest (px)", "occluded (%)", "mean confidence",
    }  # fmt: skip


def test_the_swipe_shows_the_next_frame_warped(daflow, tiny_weights, clip, tmp_path, monkeypatch):
    seen = []
    real = _views.Report.add_step

    def add_step(self, name, **things):
        seen.append(things)
        real(self, name, **things)

    monkeypatch.setattr(_views.Report, "add_step", add_step)
    page = tmp_path / "a.html"
    pair = (clip / "frame8.png", clip / "frame9.png")
    run = ("infer", *pair, "--weights", tiny_weights, "-o", tmp_path / "a.flo", "--report", page, *FAST)
    assert daflow(*run)[0] == 0  # beside a single flow file, too
    flow = read_flow(tmp_path / "a.flo")
    expected = warp(read_image(pair[1]), flow).round().byte()
    assert torch.equal(seen[0]["images"]["Next frame, warped"], expected)
    assert torch.equal(seen[0]["flows"]["Flow"], flow)
    assert seen[0]["maps"] == {}


def test_a_continued_run_draws_the_same(daflow, refused, tiny_weights, clip, tmp_path, monkeypatch):
    def run(name):
        out = tmp_path / name / "out"
        return ("infer", clip, "--weights", tiny_weights, "-o", out, *ALL, "--video", out / "a.mp4", "--report",
                out / "a.html", *FAST)  # fmt: skip

    assert daflow(*run("whole"))[0] == 0
    real, calls = infer.write_flow, []

    def full_disk(path, flow):
        calls.append(path)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, flow)

    with monkeypatch.context() as patch:
        patch.setattr(infer, "write_flow", full_disk)
        assert "the flow of the 2 pair(s) before is complete" in refused(*run("out"))
    assert len(list(open_frames(tmp_path / "out/out/a.mp4"))) == 2  # a film and a page of what there is
    assert len(page_data(tmp_path / "out/out/a.html")[1]) == 2
    assert daflow(*run("out"))[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    before = contents(tmp_path / "out")
    assert daflow(*run("out"))[0] == 0  # nothing left to estimate
    assert contents(tmp_path / "out") == before


def test_a_film_without_views_keeps_the_rate_and_the_given_scale(daflow, tiny_weights, tmp_path):
    video, film = tmp_path / "in.mp4", tmp_path / "film.mkv"
    write_video(video, (torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8) for _ in range(3)), fps=12.5)
    run = ("infer", video, "--weights", tiny_weights, "-o", tmp_path / "out", "--video", film, *FAST)
    code, text, _ = daflow(*run, "--viz-max-flow", "7", "--json")
    assert code == 0
    summary = json.loads(text)
    assert summary["color_scale_px"] == 7
    assert summary["video"] == str(film)
    read = open_frames(film)
    assert read.fps == 12.5
    frames = list(read)
    assert len(frames) == 2
    assert frames[0].shape == (3, 48 + 22, 2 * 64)  # frame and colours
    colors = flow_to_image(read_flow(tmp_path / "out/flow/in_000000.flo"), 7.0).float()
    assert (frames[0][:, 22:, 64:112] - colors[..., :48]).abs().mean() < 12  # beside the legend; 4:2:0
    assert not (tmp_path / "out/color").exists()
    assert daflow(*run, "--fps", "5", "--max-flow", "7")[0] == 0
    assert open_frames(film).fps == 5


def test_a_film_is_never_wider_than_players_show(monkeypatch):
    monkeypatch.setattr(_views, "_FILM_SIDE", 100)
    artist = _views._Artist((), 1.0, filmed=True)
    frame = torch.zeros(3, 60, 80, dtype=torch.uint8)
    scene = _views.Scene("a", frame, frame, torch.zeros(2, 60, 80), None, None, None)
    assert artist.film_frame(scene, artist.draw(scene)).shape == (3, 51, 100)  # of 82 x 160


def test_a_long_clip_has_a_step_for_every_nth_pair(daflow, tiny_weights, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(_views, "_REPORT_STEPS", 2)
    page = tmp_path / "a.html"
    assert daflow("infer", clip, "--weights", tiny_weights, "-o", tmp_path / "out", "--report", page, *FAST)[0] == 0
    head, steps = page_data(page)
    assert [step["name"] for step in steps] == ["frame8", "frame10"]
    assert [row["step"] for row in head["statistics"]] == [0, None, 1]
    assert head["subtitle"].endswith("; the slider shows one of every 2, the curves all")


def test_frames_are_read_one_at_a_time(tmp_path):
    class Endless:
        given = 0

        def name(self, index):
            return str(index)

        def __iter__(self):
            while True:
                self.given += 1
                yield torch.zeros(3, 8, 8, dtype=torch.uint8)

    from daflow_ext.flow import write_flow

    write_flow(tmp_path / "a.flo", torch.zeros(2, 8, 8))
    frames = Endless()
    for index, scene in enumerate(_views._scenes(frames, [{"flow": tmp_path / "a.flo"}] * 50)):
        assert scene.name == str(index)
        assert frames.given == index + 2
    assert index == 49


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--viz", "wheel,arow"), "argument --viz: expected a list of wheel, arrows, side, confidence, occlusion, "
                                  "trails, got 'arow'"),
        (("--viz", "confidence"), "--viz confidence needs flow in both directions; add --bidirectional"),
        (("--video", "a.gif"), "cannot write a.gif as a video; expected a name ending in .mp4, .mov, .mkv"),
        (("--report", "a.png"), "--report writes an HTML page; expected a name ending in .html, got a.png"),
        (("--fps", "25"), "--fps must be positive and goes with --video, got 25.0"),
        (("--video", "a.mp4", "--fps", "0"), "--fps must be positive and goes with --video, got 0.0"),
        (("--viz-max-flow", "0"), "--max-flow must be a positive number of pixels, got 0.0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(refused, tiny_weights, clip, tmp_path, arguments, message):
    assert message in refused("infer", clip, "--weights", tiny_weights, "-o", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_overwritten(refused, tiny_weights, tmp_path):
    video = tmp_path / "a.mp4"
    write_video(video, (torch.zeros(3, 16, 16, dtype=torch.uint8) for _ in range(3)))
    before = video.read_bytes()
    error = refused("infer", video, "--weights", tiny_weights, "-o", tmp_path / "out", "--video", video)
    assert f"--video {video} is an input itself" in error
    assert video.read_bytes() == before
