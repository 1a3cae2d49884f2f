"""``daflow align``: neighbours laid onto every frame, exactly where the motion is known; runs that go on."""

import json

import pytest
import torch

from daflow_ext import read_image, write_image
from daflow_ext.cli import align as verb
from daflow_ext.frames import Video


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_neighbours_of_a_translated_clip_are_the_frame_itself(daflow, clip, true_flow, tmp_path, radius):
    out = tmp_path / "out"
    code, text, err = daflow("align", clip, "--flow", true_flow, "--radius", radius, "-o", out, "--json")
    assert (code, err) == (0, "")
    summary = json.loads(text)
    for index, record in enumerate(summary["frames"]):
        frame = read_image(clip / f"frame{index + 8}.png")
        expected = {distance for distance in range(-radius, radius + 1) if distance and 0 <= index + distance < 4}
        kinds = {f"{'after' if distance > 0 else 'before'}{abs(distance)}": distance for distance in expected}
        assert record["files"].keys() == {*kinds, *(f"{kind}_visible" for kind in kinds)}
        for kind, distance in kinds.items():
            visible = read_image(out / record["files"][f"{kind}_visible"])[0] == 255
            shown = torch.ones(60, 70, dtype=torch.bool)
            if distance > 0:
                shown[:, : 2 * distance] = False
            else:
                shown[:, 2 * distance :] = False
            assert torch.equal(visible, shown)
            aligned = read_image(out / record["files"][kind])
            assert torch.equal(aligned[:, shown], frame[:, shown])
            assert record["visible_percent"][kind] == pytest.approx(100 * (70 - 2 * abs(distance)) / 70)
    preview = list(Video(out / "preview.mp4"))
    assert (len(preview), preview[0].shape) == (4, (3, 60, 210))


def test_a_model_gives_the_flow(daflow, clip, tiny_weights, tmp_path):
    code, text, err = daflow("align", clip, "--weights", tiny_weights, "--iters", 1, "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    assert text.splitlines()[0].startswith("RAFT-small: 4 frames, neighbours show ")
    assert (tmp_path / "out/before1/frame11.png").is_file()


def test_a_run_goes_on_where_it_failed(daflow, clip, true_flow, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    arguments = ("align", clip, "--flow", true_flow, "--radius", 2, "-o")
    daflow(*arguments, whole)
    written = []

    def fail(path, image):
        written.append(path)
        if len(written) == 9:
            raise OSError("No space left on device")
        write_image(path, image)

    monkeypatch.setattr(verb, "write_image", fail)
    code, _, err = daflow(*arguments, out)
    assert (code, err) == (1, "daflow align: No space left on device\n")
    assert not (out / "preview.mp4").exists()
    written.clear()
    monkeypatch.setattr(verb, "write_image", lambda path, image: (written.append(path), write_image(path, image)))
    assert daflow(*arguments, out)[0] == 0
    assert len(written) == 2 * (2 + 3 + 3 + 2) - 2 * 2  # the first frame was finished
    for path in whole.rglob("*.png"):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()
    written.clear()
    assert daflow(*arguments, out)[0] == 0
    assert not written
    code, _, err = daflow("align", clip, "--flow", true_flow, "--radius", 1, "-o", out)
    assert code == 1
    assert "radius = 2, this one has 1" in err


def test_errors_are_one_sentence(refused, clip, true_flow, tmp_path):
    assert "--radius must be at least 1, got 0" in refused("align", clip, "--radius", 0)
    assert "has no folder flow/" in refused("align", clip, "--flow", clip, "-o", tmp_path / "out")
    assert "leave out --weights" in refused("align", clip, "--flow", true_flow, "--model", "raft-tiny-lq")
    (true_flow / "flow_backward/frame9.flo").unlink()
    message = refused("align", clip, "--flow", true_flow, "-o", tmp_path / "out")
    assert "holds no flow file for frame frame9" in message
    assert not (tmp_path / "out/preview.mp4").exists()
