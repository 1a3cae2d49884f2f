"""``daflow infer`` with a DA-Flow pipeline, and runs that are continued: the same files however a run ended."""

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext import DAFlowPipeline, open_frames, read_flow, read_image, write_image
from daflow_ext.cli import infer
from daflow_ext.cli._run_folder import RECORDS, SETTINGS, WARM
from daflow_ext.frames import write_video

FAST = ("--iters", "2")
BOTH = ("--warm-start", "--bidirectional")


@pytest.fixture
def clip(tmp_path):
    """A folder of six frames of 40 x 50 pixels."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(6):
        write_image(folder / f"{index}.png", torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8))
    return folder


def contents(folder):
    """Every file but the records, whose seconds differ."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORDS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lines(folder):
    return (folder / RECORDS).read_text().splitlines()


class Counted:
    """Fails when the ``fatal``-th file is written, as a full disk does."""

    def __init__(self, monkeypatch, fatal=None):
        self.written, real = 0, infer.write_flow

        def write(path, flow):
            self.written += 1
            if self.written == fatal:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            real(path, flow)

        monkeypatch.setattr(infer, "write_flow", write)


# ---- DA-Flow --------------------------------------------------------------------------------------------------------


def test_the_files_are_the_pipelines_flow(daflow, pipeline_folder, clip, tmp_path):
    out = tmp_path / "out"
    arguments = ("infer", clip, "--model", pipeline_folder, "-o", out, "--bidirectional", "--viz", "--seed", "3")
    code, text, err = daflow(*arguments, "--steps", "2", "--feature-steps", "0,1", "--json", *FAST)
    assert (code, err) == (0, "")
    pipe = DAFlowPipeline.from_pretrained(pipeline_folder)
    output = pipe(
        torch.stack(list(open_frames(clip))),
        num_inference_steps=2,
        feature_steps=[0, 1],
        iters=2,
        generator=torch.Generator().manual_seed(3),
        bidirectional=True,
    )
    summary = json.loads(text)
    for index, pair in enumerate(summary["pairs"]):
        assert pair["flow"] == str(out / f"flow/{index}.flo")
        assert torch.equal(read_flow(pair["flow"]), output.flows[0, index])
        assert torch.equal(read_flow(pair["flow_backward"]), output.backward_flows[0, index])
        assert torch.equal(read_image(pair["occlusion"])[0] > 0, output.occlusion[0, index])
        assert pair["mean_confidence"] == pytest.approx(output.confidence[0, index].mean().item())
        assert read_image(pair["color"]).shape == (3, 40, 50)
    settings = json.loads((out / SETTINGS).read_text())
    name = pipeline_folder.name
    expected = {"model": name, "seed": 3, "num_inference_steps": 2, "feature_steps": [0, 1], "iters": 2}
    assert settings | expected == settings
    assert (summary["model"], summary["feature_steps"]) == (name, [0, 1])


def test_two_frames_into_one_file(daflow, pipeline_folder, clip, tmp_path):
    pair = (clip / "0.png", clip / "1.png", "--model", pipeline_folder)
    assert daflow("infer", *pair, "-o", tmp_path / "a.flo", *FAST)[0] == 0
    assert read_flow(tmp_path / "a.flo").shape == (2, 40, 50)
    assert not (tmp_path / SETTINGS).exists()


def test_options_are_one_sentence(refused, pipeline_folder, tiny_weights, clip, tmp_path):
    def sentence(*arguments):
        return refused("infer", clip, "-o", tmp_path / "out", *arguments)

    model = ("--model", pipeline_folder)
    assert "--feature-steps must be first, all or a list as 0,2,5, got 'some'" in sentence(
        *model, "--feature-steps", "some"
    )
    assert "feature_steps must be indices in 0..1" in sentence(*model, "--steps", "2", "--feature-steps", "2")
    assert "--memory-budget must be a number of bytes as 4G or 512M, got 'much'" in sentence(
        *model, "--memory-budget", "much"
    )
    assert "memory_budget=1024 is too small for frames of 64x48" in sentence(*model, "--memory-budget", "1K")
    assert "the option for noise seed belongs to DA-Flow, but" in sentence("--weights", tiny_weights, "--seed", "1")
    error = sentence("--model", tiny_weights, "--memory-budget", "1G")
    assert "the option for memory budget belongs to DA-Flow" in error
    assert "is a folder; for a pipeline folder give --model" in sentence("--weights", pipeline_folder)
    assert "is neither a model (" in sentence("--model", "nothing")
    assert f"{clip} is no DA-Flow pipeline: model_index.json is missing" in sentence("--model", clip)
    for index in range(6):
        write_image(clip / f"{index}.png", torch.zeros(3, 40, 20, dtype=torch.uint8))
    assert "frame 0 is 20x40 pixels, DA-Flow needs at least 32x32" in sentence(*model)
    assert not (tmp_path / "out").exists()


# ---- continued runs -------------------------------------------------------------------------------------------------


def test_other_frames_of_the_same_name_are_no_continuation(daflow, refused, tiny_weights, clip, tmp_path):
    run = ("infer", clip, "--model", tiny_weights, "-o", tmp_path / "out", "--iters", "1")
    assert daflow(*run)[0] == 0
    before = contents(tmp_path / "out")
    last = sorted(clip.iterdir())[-1]
    write_image(last.with_name("9.png"), read_image(last))  # one more: the run grows
    assert daflow(*run)[0] == 0
    grown = contents(tmp_path / "out")
    assert {name for name in grown if name.startswith("flow")} == {
        *(name for name in before if name.startswith("flow")),
        f"flow/{last.stem}.flo",
    }
    write_image(clip / "1.png", torch.zeros(3, 40, 50, dtype=torch.uint8))
    message = refused(*run)
    assert "holds results of another 1.png (its size has changed); give another folder, or --overwrite" in message
    assert contents(tmp_path / "out") == grown
    assert daflow(*run, "--overwrite")[0] == 0
    assert contents(tmp_path / "out") != grown


def test_another_video_of_the_same_name_is_no_continuation(daflow, refused, tiny_weights, clip, tmp_path):
    film, frames = tmp_path / "film.mp4", [read_image(path) for path in sorted(clip.iterdir())]
    run = ("infer", film, "--model", tiny_weights, "-o", tmp_path / "out", "--iters", "1")
    write_video(film, frames, 10)
    assert daflow(*run)[0] == 0
    write_video(film, frames[:3], 10)
    assert "holds results of another film.mp4" in refused(*run)


@pytest.mark.parametrize("kind", ["raft", "daflow"])
@pytest.mark.parametrize("fatal", [2, 3, 6])
def test_a_full_disk_keeps_what_was_written(
    daflow, refused, pipeline_folder, tiny_weights, clip, tmp_path, monkeypatch, kind, fatal
):
    model = ("--weights", tiny_weights) if kind == "raft" else ("--model", pipeline_folder)
    run = ("infer", clip, *model, *BOTH, "--viz", *FAST, "-o")
    assert daflow(*run, tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        Counted(patch, fatal)
        if fatal == 2:  # the backward flow of the first pair
            assert "No space left on device" in refused(*run, tmp_path / "out")
        else:
            complete = (fatal - 1) // 2
            error = refused(*run, tmp_path / "out")
            assert f"the flow of the {complete} pair(s) before is complete in {tmp_path / 'out'}" in error
            assert "the same command goes on from there" in error
            assert len(lines(tmp_path / "out")) == complete
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".tmp")]
    counted = Counted(monkeypatch)
    assert daflow(*run, tmp_path / "out")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    complete = {2: 0, 3: 1, 6: 2}[fatal]
    assert counted.written == 2 * (5 - (complete if kind == "raft" else complete // 2 * 2))
    assert len(lines(tmp_path / "out")) == 5


def test_a_real_limit_on_file_size(daflow, pipeline_folder, clip, tmp_path):
    """The operating system refuses the first flow file (16 kB)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        code, _, err = daflow("infer", clip, "--model", pipeline_folder, *FAST, "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert "File too large" in err
    assert err.count("\n") == 1
    assert set(contents(tmp_path / "out")) == {SETTINGS}
    assert daflow("infer", clip, "--model", pipeline_folder, *FAST, "-o", tmp_path / "out")[0] == 0


def test_an_unreadable_frame_keeps_what_was_written(daflow, refused, pipeline_folder, clip, tmp_path):
    run = ("infer", clip, "--model", pipeline_folder, *FAST, "-o")
    assert daflow(*run, tmp_path / "whole")[0] == 0
    whole = (clip / "4.png").read_bytes()
    (clip / "4.png").write_bytes(whole[:-60])
    error = refused(*run, tmp_path / "out")
    assert "4.png is truncated" in error
    assert "the flow of the 2 pair(s) before is complete" in error  # the chunk of frames 2, 3, 4 is not
    (clip / "4.png").write_bytes(whole)
    assert daflow(*run, tmp_path / "out")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kill -9")
def test_killed_and_run_again_gives_the_files_of_one_run(daflow, pipeline_folder, clip, tmp_path):
    for index in range(6, 16):
        write_image(clip / f"{index}.png", torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8))
    out = tmp_path / "out"
    run = ("infer", clip, "--model", pipeline_folder, *BOTH, "--iters", "8", "-o")
    main = "import sys; from daflow_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", main, *(str(word) for word in run), str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ((out / RECORDS).exists() and len(lines(out)) >= 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed_after = len(lines(out))
    assert 3 <= killed_after < 15
    old = {path: path.stat().st_mtime_ns for path in (out / "flow").glob("[01].flo")}
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the killed process: the number of threads changes the last bits
    try:
        assert daflow(*run, out)[0] == 0
        assert daflow(*run, tmp_path / "whole")[0] == 0
    finally:
        torch.set_num_threads(torch_threads)
    assert {path: path.stat().st_mtime_ns for path in old} == old  # these were not made anew
    assert contents(out).keys() - contents(tmp_path / "whole").keys() <= {
        name for name in contents(out) if name.endswith(".tmp")
    }
    assert {name: data for name, data in contents(out).items() if not name.endswith(".tmp")} == contents(
        tmp_path / "whole"
    )
    assert [json.loads(line)["files"]["flow"] for line in lines(out)] == [f"flow/{index}.flo" for index in range(15)]


def test_other_settings_want_overwrite(daflow, refused, tiny_weights, pipeline_folder, clip, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run = ("infer", clip, "--weights", tiny_weights, "-o", out)
    assert daflow(*run, *FAST, "--format", "npy")[0] == 0
    before = contents(out)
    for changed, message in (
        (("--iters", "3", "--format", "npy"), "holds a run with iters = 2, this one has 3"),
        ((*FAST,), "holds a run with format = '.npy', this one has '.flo'"),
        ((*FAST, "--format", "npy", "--bidirectional"), "with bidirectional = False, this one has True"),
    ):
        error = refused(*run, *changed)
        assert message in error
        assert "give another folder, or --overwrite to discard that run" in error
    error = refused("infer", clip, "--model", pipeline_folder, "-o", out, *FAST, "--format", "npy")
    assert "give another folder, or --overwrite" in error
    assert contents(out) == before
    assert daflow(*run, *FAST, "--overwrite")[0] == 0
    assert {name for name in contents(out) if name.startswith("flow/")} == {f"flow/{index}.flo" for index in range(5)}
    counted = Counted(monkeypatch)
    assert daflow(*run, *FAST)[0] == 0  # nothing left to do
    assert counted.written == 0


def test_a_damaged_record_and_lost_files(daflow, refused, tiny_weights, clip, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run = ("infer", clip, "--weights", tiny_weights, "-o", out, *FAST)
    assert daflow(*run)[0] == 0
    before = contents(out)
    with (out / RECORDS).open("a") as file:
        file.write('{"files": {"fl')  # a line that a crash cut off
    (out / "flow/3.flo").unlink()
    counted = Counted(monkeypatch)
    assert daflow(*run)[0] == 0
    assert counted.written == 2
    assert contents(out) == before
    assert len(lines(out)) == 5
    (out / SETTINGS).write_text("{")
    assert "run.json does not describe a run" in refused(*run)


def test_without_its_warm_start_a_run_begins_anew(daflow, pipeline_folder, clip, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run = ("infer", clip, "--model", pipeline_folder, "-o", out, "--warm-start", *FAST)
    assert daflow(*run)[0] == 0
    before = contents(out)
    (out / WARM).unlink()
    (out / "flow/4.flo").unlink()
    counted = Counted(monkeypatch)
    assert daflow(*run)[0] == 0
    assert counted.written == 5
    assert contents(out) == before


# ---- real video -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["videos/bikes.mp4", "videos/carphone_distorted.mp4", "videos/tree.avi", "frames/raft_demo"]
)
def test_real_clips_end_with_files_that_open(daflow, pipeline_folder, shared, tmp_path, name):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index, frame in enumerate(itertools.islice(open_frames(shared / "data" / name), 4)):
        write_image(frames / f"{index}.png", frame)
    out = tmp_path / "out"
    code, _, err = daflow(
        *("infer", frames, "--model", pipeline_folder, "-o", out, "--viz", "--bidirectional", "--iters", "1"),
        *("--memory-budget", "1G"),
    )
    assert (code, err) == (0, "")
    size = read_image(frames / "0.png").shape[1:]
    for index in range(3):
        assert read_flow(out / f"flow/{index}.flo").shape == (2, *size)
        assert read_flow(out / f"flow/{index}.flo").isfinite().all()
        assert read_image(out / f"color/{index}.png").shape == (3, *size)
