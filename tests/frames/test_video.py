"""Reading videos, whole and broken."""

import struct

import numpy as np
import pytest
import torch

from daflow_ext.frames import Video, open_frames

av = pytest.importorskip("av", reason="videos are read with PyAV; pip install av")

COUNT, HEIGHT, WIDTH = 24, 48, 64


def write_video(path, *, b_frames=0):
    """A bright square that moves to the right by two pixels per frame; returns the path."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "10", "bf": str(b_frames), "g": "12"}
        for index in range(COUNT):
            picture = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
            picture[16:32, 2 * index : 2 * index + 16] = (220, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def left_edge(frame):
    """First column of the square in uint8 [3, H, W]."""
    return int((frame[0, 24] > 125).nonzero()[0])


def until_error(video):
    """All frames up to the error, and its message."""
    frames = []
    with pytest.raises(ValueError, match="ends early") as caught:
        frames.extend(video)
    return frames, str(caught.value)


@pytest.mark.parametrize("b_frames", [0, 3])
def test_frames_in_order_as_often_as_wanted(tmp_path, b_frames):
    video = open_frames(write_video(tmp_path / "a.mp4", b_frames=b_frames))
    assert video.length == COUNT
    assert video.fps == 25
    assert video.name(7) == "a_000007"
    for _ in range(2):
        frames = list(video)
        assert [left_edge(frame) for frame in frames] == [2 * index for index in range(COUNT)]
        assert all(frame.shape == (3, HEIGHT, WIDTH) and frame.dtype == torch.uint8 for frame in frames)
    red, green, blue = frames[0][:, 24, 8].tolist()
    assert red > 200 > 60 > max(green, blue)


@pytest.mark.parametrize("b_frames", [0, 3])
def test_truncated_video_keeps_the_frames_before(tmp_path, b_frames):
    path = write_video(tmp_path / "cut.mp4", b_frames=b_frames)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.75)])
    frames, message = until_error(open_frames(path))
    assert 4 < len(frames) < COUNT
    assert [left_edge(frame) for frame in frames] == [2 * index for index in range(len(frames))]
    assert message.startswith(f"the video {path} ends early: frame {len(frames)} cannot be read")


def test_video_cut_between_two_frames(tmp_path):
    path = write_video(tmp_path / "cut.mp4")
    with av.open(str(path)) as container:
        packet = next(p for index, p in enumerate(container.demux(video=0)) if index == 10)
        position = packet.pos
    path.write_bytes(path.read_bytes()[:position])
    frames, message = until_error(open_frames(path))
    assert len(frames) == 10
    assert "ends early: frame 10 cannot be read" in message


def test_matroska_states_a_duration_only(tmp_path):
    path, data = tmp_path / "cut.mkv", write_video(tmp_path / "whole.mkv").read_bytes()
    assert len(list(open_frames(tmp_path / "whole.mkv"))) == COUNT
    path.write_bytes(data[: int(len(data) * 0.75)])
    frames, message = until_error(open_frames(path))
    assert 0 < len(frames) < COUNT
    assert message.startswith(f"the video {path} ends early: frame {len(frames)} cannot be read")


def test_colon_in_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative name, whose first part looks like a protocol
    write_video(tmp_path / "a.mp4").rename("take:1.mp4")
    assert len(list(open_frames("take:1.mp4"))) == COUNT


def test_damage_in_the_middle_is_an_error(tmp_path):
    path = write_video(tmp_path / "hole.mp4")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = next(p for index, p in enumerate(container.demux(video=0)) if index == 10)
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    frames, message = until_error(open_frames(path))
    assert len(frames) <= 10
    assert f"ends early: frame {len(frames)} cannot be read" in message


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\x00\x00\x00\x20ftypisom" + bytes(500)])
def test_not_a_video(tmp_path, content):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken.mp4 (cannot be opened as a video|holds no video stream)"):
        open_frames(path)


def test_rotation_of_the_file_is_applied(tmp_path):
    path = write_video(tmp_path / "turned.mp4")
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: nine 16.16 (2.30) numbers follow 40 bytes
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, HEIGHT * 65536, 0, 2**30)  # 90 degrees clockwise
    upright = next(iter(Video(path)))
    path.write_bytes(data)
    turned = next(iter(Video(path)))
    assert turned.shape == (3, WIDTH, HEIGHT)
    assert torch.equal(turned, torch.rot90(upright, -1, (1, 2)))


@pytest.mark.parametrize(
    ("name", "count", "stated", "size"),
    [
        ("carphone_pristine.mp4", 120, 120, (144, 176)),
        ("tree.avi", 68, 444, (240, 320)),  # its header counts dropped frames
    ],
)
def test_real_videos(shared, name, count, stated, size):
    video = open_frames(shared / "data/videos" / name)
    assert video.length == stated
    frames = 0
    for frame in video:
        assert frame.shape == (3, *size)
        frames += 1
    assert frames == count


def test_real_video_without_its_index(shared, tmp_path):
    data = (shared / "data/videos/bikes.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut.mp4 cannot be opened as a video"):
        open_frames(path)
