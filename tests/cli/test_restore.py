"""``daflow restore``: the frames of the loop as files, guided or not; runs that go on; the table of scores."""

import json

import pytest
import torch

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext import DAFlowPipeline, open_frames, read_image, write_image
from daflow_ext.cli import _restoration
from daflow_ext.frames import Video
from daflow_ext.models import registry
from daflow_ext.models.guidance import GuidanceSettings
from daflow_ext.models.pair_flow import PairFlow
from daflow_ext.models.restore import restore_video

FAST = ("--steps", 2, "--iters", 1)


def frames_of(folder):
    return torch.stack([read_image(folder / f"frames/frame{index}.png") for index in range(8, 12)])


def pngs(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_the_files_are_the_frames_of_the_loop(daflow, pipeline_folder, clip, true_flow, tmp_path):
    out = tmp_path / "out"
    arguments = ("restore", clip, "--model", pipeline_folder, "-o", out, "--seed", 3, "--video", *FAST)
    code, text, err = daflow(*arguments, "--flow", "none", true_flow, "--guidance-scale", "0.7", "--json")
    assert (code, err) == (0, "")
    summary = json.loads(text)
    assert summary["restoration"].startswith(f"the folder {pipeline_folder} (")
    loop = DAFlowPipeline.from_pretrained(pipeline_folder).restoration()
    frames = torch.stack(list(open_frames(clip)))
    forward = torch.tensor([-2.0, 0.0])[:, None, None].expand(2, 60, 70)
    pairs = [PairFlow(k, frames[k], frames[k + 1], forward, -forward, None, None, 0.0) for k in range(3)]
    for label, flows in (("restored", None), ("guided-truth", pairs)):
        chunks = restore_video(
            frames,
            loop,
            pairs=flows,
            guidance=GuidanceSettings(0.7),
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
        )
        expected = torch.cat([chunk.frames for chunk in chunks]).round().byte()
        assert torch.equal(frames_of(out / label), expected)
        assert summary["results"][label]["frames"] == [str(out / label / f"frames/frame{n}.png") for n in range(8, 12)]
        assert len(list(Video(out / label / "restored.mp4"))) == 4


def test_flow_of_both_models_guides(daflow, pipeline_folder, clip, tiny_weights, tmp_path):
    out = tmp_path / "out"
    arguments = ("restore", clip, "--model", pipeline_folder, "--raft", tiny_weights, "-o", out, *FAST)
    code, text, err = daflow(*arguments, "--flow", "none", "raft", "daflow")
    assert (code, err) == (0, "")
    assert text.startswith(f"restoration weights: the folder {pipeline_folder} (")
    results = [frames_of(out / label) for label in ("restored", "guided-raft", "guided-daflow")]
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])
    code, _, err = daflow(*arguments, "--flow", "raft", "--guidance-scale", 0, "-o", tmp_path / "zero")
    assert (code, err) == (0, "")
    assert torch.equal(frames_of(tmp_path / "zero/guided-raft"), results[0])


@pytest.mark.parametrize("fatal", [2, 4])
def test_a_run_goes_on_where_it_failed(daflow, pipeline_folder, clip, true_flow, tmp_path, monkeypatch, fatal):
    arguments = ("restore", clip, "--model", pipeline_folder, "--flow", true_flow, *FAST, "-o")
    daflow(*arguments, tmp_path / "whole")
    written = []

    def fail(path, image):
        written.append(path)
        if len(written) == fatal:
            raise OSError("No space left on device")
        write_image(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(_restoration, "write_image", fail)
        code, _, err = daflow(*arguments, tmp_path / "out")
    assert (code, err) == (1, "daflow restore: No space left on device\n")
    assert daflow(*arguments, tmp_path / "out")[0] == 0
    assert pngs(tmp_path / "out") == pngs(tmp_path / "whole")
    with monkeypatch.context() as patch:  # finished: nothing is written again
        patch.setattr(_restoration, "write_image", None)
        assert daflow(*arguments, tmp_path / "out")[0] == 0
    code, _, err = daflow(*arguments, tmp_path / "out", "--guidance-steps", "1-1")
    assert code == 1
    assert "holds a run with guidance = " in err


def test_truth_gives_a_table(daflow, pipeline_folder, clip, true_flow, tmp_path):
    pytest.importorskip("torchmetrics", reason="PSNR and SSIM are torchmetrics'; pip install torchmetrics")
    noisy, out = tmp_path / "noisy", tmp_path / "out"
    noisy.mkdir()
    for index in range(8, 12):
        frame = read_image(clip / f"frame{index}.png")
        write_image(noisy / f"frame{index}.png", (frame + 20 * torch.randn(frame.shape)).clamp(0, 255).byte())
    arguments = ("restore", noisy, "--model", pipeline_folder, "--flow", "none", true_flow, "-o", out, *FAST)
    code, text, err = daflow(*arguments, "--truth", clip, "--truth-flow", true_flow)
    assert (code, err) == (0, "")
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores) == ["input", "restored", "guided-truth", "truth"]
    assert scores["guided-truth"]["warping_error"] < scores["restored"]["warping_error"]
    lines = text.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["input"][0] == f"{scores['input']['psnr']:.2f}"
    assert lines[-1].startswith("LPIPS is left out: ")


def test_tiles_are_blended_to_nearly_the_same_frames(daflow, pipeline_folder, clip, tmp_path):
    arguments = ("restore", clip, "--model", pipeline_folder, "--flow", "none", *FAST)
    for name, tile in (("whole", ()), ("large", ("--tile", 96)), ("tiles", ("--tile", 64))):
        assert daflow(*arguments, "-o", tmp_path / name, *tile)[0] == 0
    whole, large, tiles = (frames_of(tmp_path / f"{name}/restored").float() for name in ("whole", "large", "tiles"))
    assert torch.equal(whole, large)  # 80 x 64 pixels fit one tile
    assert not torch.equal(whole, tiles)
    assert (whole - tiles).abs().mean() < 0.2 * whole.std()


def test_untrained_and_missing_weights_are_named(daflow, refused, clip, tmp_path):
    code, text, err = daflow("restore", clip, "--model", "tiny", "--flow", "none", "-o", tmp_path / "out", "--steps", 1)
    assert (code, err) == (0, "")
    assert text.startswith("restoration weights: tiny, an untrained toy: the result means nothing (")
    message = refused("restore", clip, "--model", "daflow", "-o", tmp_path / "out")
    assert "no weights of daflow come with the package" in message


def test_raft_is_raft_unless_told_otherwise(daflow, refused, clip, tmp_path):
    """Not the model that is the default elsewhere: the table sets RAFT against DA-Flow."""
    arguments = ("restore", clip, "-o", tmp_path / "out", *FAST, "--flow")
    assert daflow(*arguments, "raft", "daflow")[0] == 0
    settings = [json.loads((tmp_path / f"out/guided-{name}/run.json").read_text()) for name in ("raft", "daflow")]
    assert [one["flow_settings"]["model"] for one in settings] == ["raft-tiny-lq", "daflow-tiny"]
    message = refused(*arguments, "raft", "--raft", "daflow-tiny")
    assert "--raft daflow-tiny is a DA-Flow; for its flow give --flow daflow --daflow daflow-tiny" in message


def test_shipped_weights_are_used_without_being_named(daflow, pipeline_folder, clip, tmp_path, monkeypatch):
    """Weights that come with the package lie in a folder of the model's name."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/daflow-tiny").symlink_to(pipeline_folder)
    monkeypatch.setattr(registry, "SHIPPED", tmp_path / "weights")
    code, text, err = daflow("restore", clip, "--flow", "daflow", "-o", tmp_path / "out", *FAST)
    assert (code, err) == (0, "")
    assert text.startswith("restoration weights: daflow-tiny, which comes with the package, trained for its features: ")
    assert "its frames are worse than the input (" in text.splitlines()[0]
    daflow("restore", clip, "--model", pipeline_folder, "--flow", "daflow", "-o", tmp_path / "same", *FAST)
    assert pngs(tmp_path / "out") == pngs(tmp_path / "same")


def test_errors_are_one_sentence(refused, pipeline_folder, tiny_weights, clip, true_flow, tmp_path):
    start = ("restore", clip, "--model", pipeline_folder, "-o", tmp_path / "new")
    for arguments, message in (
        (("--flow", "none", "none"), "name each once"),
        (("--flow", tmp_path / "absent"), "has no folder flow/"),
        (("--guidance-steps", "3"), "must be a range as 3-9, got '3'"),
        (("--guidance-scale", "-1"), "scale must be a number >= 0, got -1.0"),
        (("--tile", "50"), "--tile must be a multiple of 16 of at least 64, got 50"),
        (("--model", tiny_weights), "is RAFT, which restores nothing"),
        (("--model", clip), "is no restoration model: transformer/config.json is missing"),
        (("--model", "tiny", "--flow", "daflow"), "give --daflow PIPELINE"),
        (("--steps", "0", "--flow", "none"), "--steps must be at least 1, got 0"),
        (("--truth", tmp_path), "holds no image"),
        (("--lpips", "w.safetensors"), "--lpips compares with clean frames; give them by --truth"),
        (("--truth", clip, "--lpips", tmp_path / "absent.safetensors"), "absent.safetensors"),
    ):
        assert message in refused(*start, *arguments)
    assert not (tmp_path / "new").exists()
