"""Reading images and folders."""

import hashlib
import os

import cv2
import numpy as np
import pytest
import torch

from daflow_ext.frames import ImageSequence, open_frames, read_image, write_image
from daflow_ext.frames._files import atomic_path


@pytest.fixture
def picture():
    """RGB noise, [3, H, W]."""
    return torch.randint(0, 256, (3, 21, 34), dtype=torch.uint8)


@pytest.mark.parametrize("suffix", [".png", ".ppm", ".bmp", ".tif"])
def test_lossless_round_trip(tmp_path, picture, suffix):
    write_image(tmp_path / f"a{suffix}", picture)
    assert torch.equal(read_image(tmp_path / f"a{suffix}"), picture)


def test_jpeg_keeps_the_channel_order(tmp_path):
    red = torch.zeros(3, 16, 16, dtype=torch.uint8)
    red[0] = 255
    write_image(tmp_path / "a.jpg", red)
    mean = read_image(tmp_path / "a.jpg").float().mean((1, 2))
    assert mean[0] > 250
    assert mean[1:].max() < 5


def test_grey_alpha_and_16_bit(tmp_path, picture):
    grey = picture[0].numpy()
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert torch.equal(read_image(tmp_path / "grey.png"), picture[:1].expand(3, -1, -1))

    bgra = np.dstack([picture.numpy()[::-1].transpose(1, 2, 0), np.full_like(grey, 7)])
    cv2.imwrite(str(tmp_path / "alpha.png"), bgra)
    assert torch.equal(read_image(tmp_path / "alpha.png"), picture)

    deep = np.array([[0, 128, 129, 257, 65535, 65406]], np.uint16)  # steps of 257, rounded
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert read_image(tmp_path / "deep.png")[0].tolist() == [[0, 0, 1, 1, 255, 254]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".ppm", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.98])
def test_truncated_image_is_named(tmp_path, picture, suffix, kept, capfd):
    path = tmp_path / f"cut{suffix}"
    write_image(path, picture)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=f"{path.name} is (truncated|no complete image)"):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_what_is_no_8_bit_image(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text.png is no complete image"):
        read_image(tmp_path / "text.png")
    cv2.imwrite(str(tmp_path / "float.tif"), np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"float.tif has float32 pixels"):
        read_image(tmp_path / "float.tif")
    with pytest.raises(FileNotFoundError, match=r"absent.png does not exist"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_write_image_refuses(tmp_path, picture):
    with pytest.raises(ValueError, match="uint8 \\[3, H, W\\]"):
        write_image(tmp_path / "a.png", picture.float())
    with pytest.raises(ValueError, match=r"cannot write an image as '.gif'"):
        write_image(tmp_path / "a.gif", picture)
    too_wide = torch.zeros(3, 1, 70000, dtype=torch.uint8)
    for name, image in (("a.pgm", picture), ("a.jpg", too_wide), ("a.png", picture[:, :0])):
        with pytest.raises(ValueError, match=r"cannot write an image \(.*the format does not hold it"):
            write_image(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_keeps_links_and_refuses_what_is_no_file(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):  # a device of root's would be replaced
        with pytest.raises(ValueError, match="it exists and is no file"), atomic_path(path):
            pass


def test_atomic_path_leaves_old_file_on_failure(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half_a_file():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_file()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"the folder .*absent does not exist"), atomic_path(tmp_path / "absent" / "a"):
        pass


def test_folder_is_sorted_naturally(tmp_path, picture):
    for index in (10, 9, 100, 1):
        write_image(tmp_path / f"Frame{index}.png", (picture // 2 + index).to(torch.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    frames = open_frames(tmp_path)
    assert frames.length == 4
    assert [frames.name(index) for index in range(4)] == ["Frame1", "Frame9", "Frame10", "Frame100"]
    for _ in range(2):  # as often as wanted
        assert [int((frame - picture // 2)[0, 0, 0]) for frame in frames] == [1, 9, 10, 100]


def test_names_stay_apart(tmp_path, picture):
    for name in ("a.png", "a.ppm", "b.png"):
        write_image(tmp_path / name, picture)
    frames = open_frames(tmp_path)
    assert [frames.name(index) for index in range(2)] == ["a.png", "a.ppm"]
    (tmp_path / "next").mkdir()
    write_image(tmp_path / "next" / "a.png", picture)
    assert open_frames(tmp_path / "a.png", tmp_path / "next" / "a.png").name(0) == "a"


def test_too_few_frames(tmp_path, picture):
    with pytest.raises(ValueError, match=f"{tmp_path.name} holds no image, optical flow needs at least two"):
        open_frames(tmp_path)
    write_image(tmp_path / "only.png", picture)
    with pytest.raises(ValueError, match=r"holds one image \(only.png\), optical flow needs at least two"):
        open_frames(tmp_path)
    with pytest.raises(ValueError, match=r"only.png is one image, optical flow needs two"):
        open_frames(tmp_path / "only.png")
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        open_frames(tmp_path / "absent")
    with pytest.raises(ValueError, match="needs two image files"):
        open_frames()


def test_another_size_is_named_after_the_good_frames(tmp_path, picture):
    for name, image in (("1.png", picture), ("2.png", picture), ("3.png", picture[:, :20])):
        write_image(tmp_path / name, image)
    seen = []
    with pytest.raises(ValueError, match=r"3.png is 34x20 pixels, but .*1.png is 34x21"):
        seen.extend(open_frames(tmp_path))
    assert len(seen) == 2


def test_decodes_the_pixels_of_the_goldens(shared):
    golden = np.load(shared / "golden/raft/middlebury_RubberWhale.npz")
    folder = shared / "data/middlebury/RubberWhale"
    for key, image in zip(
        ("image1", "image2"), ImageSequence([folder / "frame10.png", folder / "frame11.png"], "pair"), strict=True
    ):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == str(golden[f"{key}_rgb_sha256"])


def test_reads_every_real_image(shared):
    sizes = {
        "flyingchairs/0000000-img0.ppm": (384, 512),
        "kitti/2015_000010/img_10.png": (375, 1242),
        "sintel/alley_1/final/frame_0001.png": (436, 1024),
        "flyingchairs2_tiny/0000000-img_0.png": (50, 50),
        "airsim/000000_887749_rgb.png": (384, 512),
    }
    for name, size in sizes.items():
        assert read_image(shared / "data" / name).shape == (3, *size)
