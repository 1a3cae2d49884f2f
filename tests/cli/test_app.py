"""``daflow app``: what it does with a clip, its limits, and the page itself over HTTP (with gradio installed)."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from daflow_ext import read_image
from daflow_ext.cli import build_parser
from daflow_ext.cli._studio import Limits, Studio
from daflow_ext.cli.app import open_studio
from daflow_ext.frames import Video, write_video


@pytest.fixture
def film(clip, tmp_path):
    """The clip of four frames, 70 x 60 pixels, as a video."""
    path = tmp_path / "clip.mp4"
    write_video(path, [read_image(clip / f"frame{index}.png") for index in range(8, 12)], fps=10)
    return path


@pytest.fixture
def studio(tiny_weights, tmp_path):
    def make(**limits) -> Studio:
        words = ["app", "--model", str(tiny_weights), "--iters", "1", "--restoration", "tiny"]
        folder = tmp_path / "studio"
        folder.mkdir(exist_ok=True)
        return open_studio(build_parser().parse_args(words), Limits(**limits), folder)

    return make


def no_progress(share, what):
    assert 0 < share <= 1


def frames_of(path):
    return torch.stack(list(Video(path)))


def test_every_answer_is_a_film_and_a_line(studio, film):
    work = studio()
    path, text = work.flow(str(film), no_progress)
    assert frames_of(path).shape == (3, 3, 60 + 22, 3 * 70)
    assert text.startswith("3 pairs by RAFT-small: mean motion ")
    path, text = work.aligned(str(film), 1, no_progress)
    frames = frames_of(path)
    assert frames.shape == (4, 3, 82, 140)
    assert (
        frames[1, :, 24:, 2:68].float() - frames[1, :, 24:, 72:138].float()
    ).abs().mean() < 8  # the reference itself, H.264 apart
    assert text.endswith("% of frame 1")
    path, text = work.stabilized(str(film), 2.0, no_progress)
    assert frames_of(path).shape == (4, 3, 82, 140)
    assert "smoothed over 2 frames" in text
    assert {file.name.split("-")[0] for file in work.folder.iterdir()} == {"flow", "aligned", "stabilized"}
    # a second film of a kind replaces the first, and the flow is not computed again
    work.estimator.pairs = None
    again, _ = work.aligned(str(film), 3, no_progress)
    assert [str(file) for file in work.folder.glob("aligned-*")] == [again]


@pytest.mark.parametrize("guided", [False, True])
def test_restoring(studio, film, guided):
    pytest.importorskip("diffusers", reason="the restoration loop is built on diffusers; pip install diffusers")
    path, text = studio().restored(str(film), guided, 1, no_progress)
    assert frames_of(path).shape == (4, 3, 82, 140)
    assert text.startswith("4 frames by tiny, an untrained toy: the result means nothing")
    assert text.endswith("guided by the flow of RAFT-small" if guided else "without guidance")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"frames": 3}, r"more than 3 frames \(--max-frames\)"),
        ({"megapixels": 0.004}, r"the clip is 70x60, that is 0.00 megapixels, at most 0.004 are taken"),
        ({"megabytes": 1e-4}, r"MB, at most 0.0001 MB are taken \(--max-megabytes\)"),
    ],
)
def test_what_is_too_large_is_refused_with_the_remedy(studio, film, limits, message):
    work = studio(**limits)
    for task in (work.flow, lambda path, progress: work.restored(path, False, 1, progress)):
        with pytest.raises(ValueError, match=message):
            task(str(film), no_progress)
    assert not list(work.folder.iterdir())


def test_other_mistakes_are_one_sentence(studio, film, tmp_path, refused, tiny_weights):
    work = studio()
    with pytest.raises(ValueError, match="drop a clip first"):
        work.flow(None, no_progress)
    with pytest.raises(ValueError, match="the clip has frames 0 to 3, got 4"):
        work.aligned(str(film), 4, no_progress)
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match="cannot be opened as a video"):
        work.flow(str(tmp_path / "broken.mp4"), no_progress)
    with contextlib.suppress(ImportError):
        import gradio  # noqa: F401

        assert "at least 2 frames" in refused("app", "--max-frames", "1", "--model", tiny_weights)
        return
    assert 'pip install "daflow_ext[app]"' in refused("app", "--model", tiny_weights)


def test_an_app_that_ends_stops_its_work(studio, film):
    work = studio()
    seen = []

    def end_after_the_first(share, what):
        seen.append(share)
        work.end()

    with pytest.raises(RuntimeError, match="the app is ending"):
        work.flow(str(film), end_after_the_first)
    assert seen == [pytest.approx(1 / 3)]


def test_the_address_is_this_machine_unless_told_otherwise():
    assert build_parser().parse_args(["app"]).host == "127.0.0.1"


def test_the_page_answers_and_works(studio, film):
    """A browser's way: the page is fetched, a clip is sent, a film comes back; a mistake is a sentence."""
    pytest.importorskip("gradio", reason='the page is built on gradio; pip install "daflow_ext[app]"')
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    from daflow_ext.cli._interface import serving

    work = studio(frames=4)
    with serving(work, "127.0.0.1", None) as address:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=20) as answer:
            page = answer.read().decode()
        assert answer.status == 200
        assert "fonts.googleapis" not in page
        client = Client(address, verbose=False, download_files=str(work.folder / "client"))
        result, text = client.predict(handle_file(str(film)), api_name="/flow")
        result = result["video"] if isinstance(result, dict) else result
        assert frames_of(result).shape == (3, 3, 82, 210)
        assert text.startswith("3 pairs by RAFT-small")
        assert list((work.folder / "uploads").rglob("clip.mp4"))
        with pytest.raises(AppError, match="the clip has frames 0 to 3, got 9"):
            client.predict(handle_file(str(film)), 9, api_name="/aligned")
        client.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)
    assert "GRADIO_TEMP_DIR" not in os.environ


@pytest.mark.slow
def test_the_folder_is_gone_when_the_app_ends(tiny_weights, film, tmp_path):
    """In the middle of its work, too."""
    pytest.importorskip("gradio", reason='the page is built on gradio; pip install "daflow_ext[app]"')
    from gradio_client import Client, handle_file

    code = "import sys; from daflow_ext.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "app", "--model", str(tiny_weights), "--iters", "50"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        assert [path.name for path in tmp_path.glob("daflow_app_*")]
        client = Client(address, verbose=False, download_files=str(tmp_path / "client"))
        job = client.submit(handle_file(str(film)), api_name="/flow")
        while job.status().code.name != "PROGRESS":  # a pair is done, the next is being worked on
            assert not job.done()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    finally:
        process.kill()
    assert not list(pathlib.Path(tmp_path).glob("daflow_app_*"))
