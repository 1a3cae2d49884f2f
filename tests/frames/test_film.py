"""Videos written frame by frame."""

import pytest
import torch

from daflow_ext.frames import Video
from daflow_ext.frames.film import video_writer, write_video


def clip(count=6, height=32, width=48):
    x = torch.arange(width).expand(height, width)
    for index in range(count):
        yield torch.stack([4 * x, 200 - 2 * x, torch.full_like(x, 20 * index)]).byte()


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_a_video_reads_back_as_it_was_written(tmp_path, size):
    path = tmp_path / "a.mp4"
    assert write_video(path, clip(6, *size), fps=12.5) == 6
    video = Video(path)
    assert (video.length, video.fps) == (6, 12.5)
    for written, read in zip(clip(6, *size), video, strict=True):
        read = read[:, : size[0], : size[1]].float()
        assert (read - written.float()).abs().mean() < 3  # 4:2:0 and H.264 cost a little
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def broken():
        yield from clip(2)
        yield torch.zeros(3, 8, 8, dtype=torch.uint8)

    with pytest.raises(ValueError, match=r"frame 2 must be uint8 \[3, 32, 48\] .* got torch.uint8 \[3, 8, 8\]"):
        write_video(path, broken())
    with pytest.raises(ValueError, match="no frame"):
        write_video(path, [])
    with pytest.raises(ValueError, match="fps must be a positive"):
        write_video(path, clip(), fps=0)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_frames_as_they_come(tmp_path, suffix):
    path = tmp_path / f"a: b{suffix}"
    with video_writer(path, fps=25) as add:
        for frame in clip():
            add(frame)
        assert not path.exists()
    video = Video(path)
    assert video.fps == 25
    assert len(list(video)) == 6


def test_the_same_frames_give_the_same_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, clip())
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_name_that_is_no_video(tmp_path):
    with (
        pytest.raises(ValueError, match=r"expected a name ending in .mp4, .mov, .mkv"),
        video_writer(tmp_path / "a.gif", 25),
    ):
        pass
