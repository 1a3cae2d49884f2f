"""daflow analyze end to end on the untrained toy model."""

import json

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
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "best layers:" in printed
    record = json.loads((out / "zero_shot.json").read_text())
    assert record["layers"] == list(range(6))
    assert len(record["epe_px"]) == 2
    assert record["pixels"] == 2 * 48 * 64  # one clip of 3 frames; the fourth frame begins another
    assert sorted(record["best_layers"]) == sorted(set(record["best_layers"]))
    assert read_image(out / "zero_shot.png").shape[0] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flow", "nowhere"], "holds no flow file for frame frame_00"),
        ([], "give the truth by --flow DIR or by --teacher WEIGHTS"),
        (["--flow", "nowhere", "--layers", "9"], "--layers (9,) are outside 0..5"),
        (["--flow", "nowhere", "--frames", "9"], "holds fewer than 9 frames"),
    ],
)
def test_errors_are_one_sentence(clip, tmp_path, capsys, arguments, message):
    assert main(["analyze", str(clip), "--model", "tiny", "--steps", "1", "-o", str(tmp_path / "o"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_missing_model_is_named(clip, tmp_path, capsys):
    assert main(["analyze", str(clip), "--model", str(tmp_path), "--flow", str(tmp_path)]) == 1
    assert "is no restoration model: transformer/config.json is missing" in capsys.readouterr().err
