"""daflow analyze end to end on the untrained toy model."""

import json
import re

import pytest
import torch

pytest.importorskip("diffusers", reason="daflow analyze needs diffusers; pip install diffusers")

from daflow_ext.cli import main
from daflow_ext.flow import write_flow
from daflow_ext.frames import read_image, write_image


@pytest.fixture
def clip(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16), (48, 64), mode="bicubic")[0].clamp(0, 1)
    for index in range(4):
        write_image(folder / f"frame_{index:02d}.png", (image.roll(index, 2) * 255).byte())
        flow = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 48, 64)
        write_flow(tmp_path / "flow" / f"frame_{index:02d}.flo", flow) if index else (tmp_path / "flow").mkdir()
    write_flow(tmp_path / "flow" / "frame_00.flo", flow)
    return folder


def test_table_json_and_picture(clip, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "analyze",
        str(clip),
        "--model",
        "tiny",
        "--flow",
        str(tmp_path / "flow"),
        "--steps",
        "2",
        "-o",
        str(out),
        "--report",
        str(tmp_path / "pages" / "a.html"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "best layers:" in printed
    record = json.loads((out / "zero_shot.json").read_text())
    assert record["layers"] == list(range(6))
    assert len(record["epe_px"]) == 2
    assert record["pixels"] == 3 * 48 * 64  # a clip of 3 frames, and one of 2 that is filled up
    assert sorted(record["best_layers"]) == sorted(set(record["best_layers"]))
    assert read_image(out / "zero_shot.png").shape[0] == 3
    page = (tmp_path / "pages" / "a.html").read_text()
    heat, bars = json.loads(re.search(r'id="head">(.*?)</script>', page)[1])["results"]
    assert (heat["kind"], heat["values"]) == ("heat", record["epe_px"])
    assert heat["columns"] == [str(layer) for layer in record["layers"]]
    layers = [bar["label"] for bar in bars["groups"][0]["bars"]]
    assert layers[:4] == [f"layer {layer}" for layer in record["best_layers"][:4]]


def analyze(folder, out, *arguments):
    assert main(["analyze", str(folder), "--model", "tiny", "--steps", "1", "-o", str(out), *map(str, arguments)]) == 0
    return json.loads((out / "zero_shot.json").read_text())


def test_a_folder_of_clips_is_the_mean_of_its_clips(clip, tmp_path):
    """Flow in the layout of `daflow pseudo` for one of them, with pixels of low confidence; odd sizes for the other."""
    clips, flows = tmp_path / "clips", tmp_path / "flows"
    clip.rename(clips.mkdir() or clips / "a")
    (tmp_path / "flow").rename((flows / "a").mkdir(parents=True) or flows / "a" / "flow")
    (flows / "a" / "confidence").mkdir()
    certain = torch.full((1, 48, 64), 255).byte()
    certain[:, :12] = 127
    for index in range(3):
        write_image(flows / "a" / "confidence" / f"frame_{index:02d}.png", certain)
    for folder in (clips / "b", flows / "b"):
        folder.mkdir()
    for index in range(2):
        write_image(clips / "b" / f"{index}.png", (torch.rand(3, 33, 35) * 255).byte())
    write_flow(flows / "b" / "0.flo", torch.ones(2, 33, 35))
    together = analyze(clips, tmp_path / "out", "--flow", flows)
    alone = [
        analyze(clips / name, tmp_path / name, "--flow", flows / name / tail, "--seed", seed)
        for name, tail, seed in (("a", "flow", 0), ("b", "", 2))  # the seed counts clips
    ]
    assert [record["pixels"] for record in alone] == [3 * 36 * 64, 33 * 35]
    assert together["pixels"] == sum(record["pixels"] for record in alone)
    pixels, epe = ([torch.tensor(record[key]) for record in alone] for key in ("pixels", "epe_px"))
    mean = (pixels[0] * epe[0] + pixels[1] * epe[1]) / together["pixels"]
    torch.testing.assert_close(torch.tensor(together["epe_px"]), mean)


def test_the_teacher_sees_the_clean_frames(clip, tmp_path, monkeypatch):
    """Pseudo ground truth of frames of 8x8 pixels, which the teacher gets padded, and of clean frames elsewhere."""
    from daflow_ext.models import RAFT

    seen = []

    def forward(self, first, second, **options):
        seen.append(first)
        flow = torch.ones(first.shape[0], 2, *first.shape[-2:])
        return flow, flow

    monkeypatch.setattr(RAFT, "forward", forward)
    for part, value in (("lq", 50), ("hq", 200)):
        (tmp_path / part).mkdir()
        for index in range(3):
            write_image(tmp_path / part / f"{index}.png", torch.full((3, 8, 8), value).byte())
    record = analyze(tmp_path / "lq", tmp_path / "out", "--hq", tmp_path / "hq", "--teacher", "raft-tiny-lq")
    assert [frames.shape for frames in seen] == [(2, 3, 16, 16)]
    assert (seen[0] == 200).all()
    assert record["pixels"] == 2 * 8 * 8
    assert len(record["epe_px"][0]) == 6


def test_truth_without_a_known_pixel_is_refused(clip, tmp_path, capsys):
    for path in (tmp_path / "flow").iterdir():
        write_flow(path, torch.full((2, 48, 64), 1e10))
    arguments = ["analyze", str(clip), "--model", "tiny", "--steps", "1", "--flow", str(tmp_path / "flow")]
    assert main([*arguments, "-o", str(tmp_path / "o")]) == 1
    assert "no pixel with a known flow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "daflow-tiny"], "--teacher daflow-tiny is a DA-Flow; RAFT by name or weights was expected"),
        (["--flow", "nowhere"], "holds no flow file for frame frame_00"),
        ([], "give the truth by --flow DIR or by --teacher WEIGHTS"),
        (["--flow", "nowhere", "--layers", "9"], "--layers (9,) are outside 0..5"),
        (["--flow", "nowhere", "--frames", "1"], "--frames at least 2, got 1 and 1"),
        (
            ["--flow", "nowhere", "--report", "a.pdf"],
            "--report writes an HTML page; expected a name ending in .html, got a.pdf",
        ),
        (["--flow", "nowhere", "--clips", "0"], "--clips must be at least 1, got 0"),
        (["--flow", "nowhere", "--temperature", "0"], "temperature must be > 0, got 0.0"),
    ],
)
def test_errors_are_one_sentence(clip, tmp_path, capsys, arguments, message):
    assert main(["analyze", str(clip), "--model", "tiny", "--steps", "1", "-o", str(tmp_path / "o"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_the_shipped_model_is_analysed_unless_another_is_named(clip, tmp_path):
    arguments = ["--teacher", "raft-tiny-lq", "--iters", "1", "--steps", "1", "--clips", "1", "-o", str(tmp_path / "o")]
    assert main(["analyze", str(clip), *arguments]) == 0
    record = json.loads((tmp_path / "o/zero_shot.json").read_text())
    assert record["model"] == "daflow-tiny"
    assert record["truth"] == f"raft-tiny-lq, 1 iterations on {clip}"
    assert record["layers"] == list(range(8))


def test_missing_model_is_named(clip, tmp_path, capsys):
    assert main(["analyze", str(clip), "--model", str(clip), "--flow", str(tmp_path)]) == 1
    assert "is no restoration model: transformer/config.json is missing" in capsys.readouterr().err
