"""``daflow infer``: what it writes, and what it refuses."""

import json

import cv2
import pytest
import torch

from daflow_ext.cli._estimate import RaftEstimator
from daflow_ext.cli._run_folder import RECORDS, SETTINGS, WARM
from daflow_ext.flow import flow_to_image, read_flow
from daflow_ext.flow.formats import SUFFIXES
from daflow_ext.frames import InputPadder, open_frames, read_image, write_image
from daflow_ext.models import RAFT

FAST = ("--iters", "2", "--backend", "reference")


def files(folder):
    """What a run wrote, beside its own record."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return sorted(found - {SETTINGS, RECORDS, WARM})


def model_flow(weights, first, second, iters=2):
    """The flow by the model itself, padded by hand."""
    model = RAFT.from_pretrained(weights, backend="reference")
    images = [read_image(path)[None] for path in (first, second)]
    padder = InputPadder(images[0].shape)
    with torch.inference_mode():
        return padder.unpad(model(*padder.pad(*images), iters=iters, test_mode=True)[1])[0]


@pytest.mark.parametrize("name", [name for name in SUFFIXES if name != "png16"])
def test_pair_in_every_format(daflow, tiny_weights, clip, tmp_path, name):
    first, second = clip / "frame8.png", clip / "frame9.png"
    out = tmp_path / "out"
    code, text, err = daflow("infer", first, second, "--weights", tiny_weights, "-o", out, "--format", name, *FAST)
    assert (code, err) == (0, "")
    assert text.splitlines()[-1] == str(out)
    assert files(out) == [f"flow/frame8{SUFFIXES[name]}"]
    flow = read_flow(out / "flow" / f"frame8{SUFFIXES[name]}")
    torch.testing.assert_close(flow, model_flow(tiny_weights, first, second), rtol=1e-5, atol=1e-5)


def test_the_smallest_frames(daflow, tiny_weights, tmp_path):
    for index in (1, 2):
        write_image(tmp_path / f"{index}.png", torch.randint(0, 256, (3, 1, 5), dtype=torch.uint8))
    arguments = ("infer", tmp_path / "1.png", tmp_path / "2.png", "--weights", tiny_weights, "-o", tmp_path / "a.flo")
    assert daflow(*arguments, *FAST)[0] == 0
    flow, valid = read_flow(tmp_path / "a.flo", return_valid=True)
    assert flow.shape == (2, 1, 5)
    assert valid.all()


def test_one_file_named_by_the_user(daflow, refused, tiny_weights, clip, tmp_path):
    pair = (clip / "frame8.png", clip / "frame9.png", "--weights", tiny_weights, *FAST)
    assert daflow("infer", *pair, "-o", tmp_path / "a.pfm")[0] == 0
    assert read_flow(tmp_path / "a.pfm").shape == (2, 60, 70)
    for extra in (("--viz",), ("--bidirectional",)):
        assert "is one file, but this run writes several" in refused("infer", *pair, "-o", tmp_path / "a.flo", *extra)
    assert "disagree" in refused("infer", *pair, "-o", tmp_path / "a.flo", "--format", "npy")
    assert "is one file" in refused("infer", clip, "--weights", tiny_weights, *FAST, "-o", tmp_path / "b.flo")


def test_folder_with_everything(daflow, tiny_weights, clip, tmp_path):
    out = tmp_path / "out"
    arguments = ("infer", clip, "--weights", tiny_weights, "-o", out, "--viz", "--bidirectional", "--json", *FAST)
    code, text, err = daflow(*arguments)
    assert (code, err) == (0, "")
    names = ["frame10", "frame8", "frame9"]
    kinds = {"color": ".png", "color_backward": ".png", "flow": ".flo", "flow_backward": ".flo", "occlusion": ".png"}
    assert files(out) == sorted(f"{kind}/{name}{suffix}" for kind, suffix in kinds.items() for name in names)

    summary = json.loads(text)
    assert [pair["flow"] for pair in summary["pairs"]] == [str(out / f"flow/frame{index}.flo") for index in (8, 9, 10)]
    flow = read_flow(out / "flow/frame9.flo")
    record = summary["pairs"][1]
    assert record["mean_px"] == pytest.approx(flow.norm(dim=0).mean().item(), rel=1e-5)
    assert record["max_px"] == pytest.approx(flow.norm(dim=0).max().item(), rel=1e-5)
    # backward flow is the flow with the frames swapped, the mask is 0 or 255, one colour scale serves the whole clip
    backward = model_flow(tiny_weights, clip / "frame10.png", clip / "frame9.png")
    torch.testing.assert_close(read_flow(out / "flow_backward/frame9.flo"), backward, rtol=1e-5, atol=1e-5)
    mask = cv2.imread(str(out / "occlusion/frame9.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (60, 70)
    assert set(mask.flatten().tolist()) <= {0, 255}
    assert (mask > 0).mean() * 100 == pytest.approx(record["occluded_percent"])
    for name in names:
        picture = flow_to_image(read_flow(out / f"flow/{name}.flo"), summary["color_scale_px"])
        assert torch.equal(read_image(out / f"color/{name}.png"), picture)


def write_video(path, frames, codec="libx264"):
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[2], frames[0].shape[1], "yuv420p"
        stream.options = {"bf": "0"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@pytest.fixture
def video(tmp_path):
    """Eight frames of noise, so that every one takes bytes."""
    path = tmp_path / "noise.mp4"
    write_video(path, [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(8)])
    return path


def test_video(daflow, tiny_weights, video, tmp_path):
    out = tmp_path / "out"
    code, _, err = daflow("infer", video, "--weights", tiny_weights, "-o", out, "--warm-start", *FAST)
    assert (code, err) == (0, "")
    assert files(out) == [f"flow/noise_{index:06d}.flo" for index in range(7)]


def test_warm_start_begins_at_the_carried_flow(tiny_weights, clip):
    from daflow_ext.flow import forward_interpolate

    model = RAFT.from_pretrained(tiny_weights, backend="reference")
    estimator = RaftEstimator(model, "RAFT-small", iters=2)
    cold, warm = (list(estimator.pairs(open_frames(clip), warm_start=on, bidirectional=True)) for on in (False, True))
    assert torch.equal(cold[0].forward, warm[0].forward)
    assert torch.equal(cold[0].backward, warm[0].backward)
    images = [read_image(clip / f"frame{index}.png")[None] for index in (8, 9, 10)]
    padder = InputPadder(images[0].shape)
    first, second, third = padder.pad(*images)
    with torch.inference_mode():
        low, _ = model(first, second, iters=2, test_mode=True)
        _, forward = model(second, third, iters=2, flow_init=forward_interpolate(low), test_mode=True)
        low, _ = model(second, first, iters=2, test_mode=True)
        _, backward = model(third, second, iters=2, flow_init=-forward_interpolate(-low), test_mode=True)
    assert torch.equal(warm[1].forward, padder.unpad(forward)[0])
    assert torch.equal(warm[1].backward, padder.unpad(backward)[0])
    assert not torch.equal(warm[1].forward, cold[1].forward)


def test_a_clip_is_read_one_frame_at_a_time(tiny_weights):
    class Endless:
        source, length, alive = "endless", None, 0

        def __iter__(self):
            while True:
                self.alive += 1
                yield torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)

    frames = Endless()
    model = RAFT.from_pretrained(tiny_weights, backend="reference")
    pairs = RaftEstimator(model, "RAFT-small", iters=1).pairs(frames)
    for index, pair in zip(range(3), pairs, strict=False):
        assert pair.index == index
        assert frames.alive == index + 2


# Refusals: an exit code, one sentence, and whole files


def test_video_that_ends_early(daflow, tiny_weights, video, tmp_path):
    data = video.read_bytes()
    video.write_bytes(data[: len(data) * 3 // 4])
    out = tmp_path / "out"
    code, text, err = daflow("infer", video, "--weights", tiny_weights, "-o", out, "--viz", *FAST)
    assert (code, text) == (1, "")
    assert err.count("\n") == 1
    written = sorted((out / "flow").iterdir())
    assert 1 <= len(written) < 7
    assert f"the video {video} ends early: frame {len(written) + 1} cannot be read" in err
    assert f"the flow of the {len(written)} pair(s) before is complete in {out}" in err
    for path in written:
        assert read_flow(path).shape == (2, 64, 64)
    assert len(files(out)) == 2 * len(written)  # a colour image for each, nothing temporary


def test_frame_of_another_size_and_unreadable_frame(daflow, tiny_weights, clip, tmp_path):
    image = read_image(clip / "frame8.png")
    whole = (clip / "frame11.png").read_bytes()
    for content, message in ((None, "frame11.png is 70x59 pixels, but"), (whole[:-100], "frame11.png is truncated")):
        if content is None:
            write_image(clip / "frame11.png", image[:, 1:])
        else:
            (clip / "frame11.png").write_bytes(content)
        out = tmp_path / message.split()[2]
        code, _, err = daflow("infer", clip, "--weights", tiny_weights, "-o", out, *FAST)
        assert code == 1
        assert message in err
        assert err.count("\n") == 1
        assert files(out) == ["flow/frame8.flo", "flow/frame9.flo"]
        assert read_flow(out / "flow/frame9.flo").shape == (2, 60, 70)


def test_a_failed_run_keeps_what_was_there(daflow, tiny_weights, clip, tmp_path):
    out = tmp_path / "out"
    (out / "flow").mkdir(parents=True)
    (out / "flow/frame10.flo").write_bytes(b"from an earlier run")
    (clip / "frame10.png").write_bytes(b"")
    code, _, err = daflow("infer", clip, "--weights", tiny_weights, "-o", out, *FAST)
    assert code == 1
    assert "frame10.png is no complete image" in err
    assert (out / "flow/frame10.flo").read_bytes() == b"from an earlier run"
    assert files(out) == ["flow/frame10.flo", "flow/frame8.flo"]


def test_inputs_that_are_no_clip(refused, tiny_weights, clip, tmp_path):
    def sentence(*inputs):
        return refused("infer", *inputs, "--weights", tiny_weights, "-o", tmp_path / "out", *FAST)

    single = tmp_path / "single"
    single.mkdir()
    write_image(single / "only.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert f"the folder {single} holds one image (only.png), optical flow needs at least two" in sentence(single)
    assert "only.png is one image, optical flow needs two" in sentence(single / "only.png")
    assert "absent.png does not exist" in sentence(clip / "frame8.png", clip / "absent.png")
    assert "absent does not exist" in sentence(tmp_path / "absent")
    assert "got 3 paths" in sentence(clip, clip, clip)
    (tmp_path / "text.txt").write_text("no video")
    assert "text.txt cannot be opened as a video" in sentence(tmp_path / "text.txt")
    write_video(tmp_path / "one.mp4", [torch.zeros(3, 64, 64, dtype=torch.uint8)])
    assert "one.mp4 holds 1 frame(s), optical flow needs at least two" in sentence(tmp_path / "one.mp4")
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit(refused, clip, tmp_path):
    def sentence(weights):
        return refused("infer", clip, "--weights", weights, "-o", tmp_path / "out", *FAST)

    assert "absent.pth does not exist" in sentence(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    assert "text.pth" in sentence(tmp_path / "text.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    assert "other.pth: not RAFT weights" in sentence(tmp_path / "other.pth")
    assert not (tmp_path / "out").exists()


def test_arguments_that_cannot_be(refused, tiny_weights, clip, tmp_path):
    def sentence(*arguments):
        return refused("infer", clip, "--weights", tiny_weights, "-o", tmp_path / "out", *arguments)

    assert "--iters must be at least 1, got 0" in sentence("--iters", "0")
    assert "--max-flow must be a positive number of pixels, got -1.0" in sentence("--max-flow", "-1")
    if not torch.cuda.is_available():
        assert "--device cuda cannot run: " in sentence("--device", "cuda")
        assert "--backend cuda cannot run: " in sentence("--backend", "cuda")
    (tmp_path / "file").touch()
    assert "file is a file, a folder was expected" in refused(
        "infer", clip, "--weights", tiny_weights, "-o", tmp_path / "file"
    )


def test_an_input_is_never_overwritten(refused, tiny_weights, clip):
    first, second = clip / "frame8.png", clip / "frame9.png"
    before = second.read_bytes()
    (clip / "link.png").symlink_to(second)
    for output in (second, clip / "link.png"):
        error = refused("infer", first, second, "--weights", tiny_weights, "-o", output, *FAST)
        assert f"--output {output} is an input itself" in error
    assert second.read_bytes() == before


def test_a_picture_is_no_flow_file(refused, tiny_weights, clip, tmp_path):
    error = refused("infer", clip, "--weights", tiny_weights, "-o", tmp_path / "flow.jpg", *FAST)
    assert "flow.jpg is no flow file; for pictures give a folder and --viz" in error
    assert not (tmp_path / "flow.jpg").exists()


def test_png_that_cannot_hold_the_flow(daflow, tiny_weights, clip, tmp_path, monkeypatch):
    from daflow_ext.cli import _estimate

    real = _estimate._flow

    def wild(*arguments):
        low, flow = real(*arguments)
        return low, flow + 600

    monkeypatch.setattr(_estimate, "_flow", wild)
    code, _, err = daflow("infer", clip, "--weights", tiny_weights, "-o", tmp_path / "out", "--format", "png16", *FAST)
    assert code == 1
    assert "does not fit a KITTI PNG" in err
    assert err.count("\n") == 1
    assert files(tmp_path / "out") == []


# Real frames, real weights


def test_real_pair_is_as_accurate_as_the_official_code(daflow, shared, tmp_path):
    folder = shared / "data/middlebury/RubberWhale"
    weights = shared / "weights/raft-small.pth"
    code, _, err = daflow(
        "infer", folder / "frame10.png", folder / "frame11.png", "--weights", weights, "-o", tmp_path / "a.flo"
    )
    assert (code, err) == (0, "")
    truth, valid = read_flow(folder / "flow10.flo", return_valid=True)
    error = (read_flow(tmp_path / "a.flo") - truth).norm(dim=0)[valid].mean().item()
    assert error == pytest.approx(0.320, abs=0.0006)  # official code, 20 iterations
