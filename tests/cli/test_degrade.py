"""``daflow degrade``: what it writes, that it can be made again and checked, and how it refuses."""

import json
import shutil

import cv2
import numpy as np
import pytest

from daflow_ext.frames import read_image
from daflow_ext.frames.degrade import clip_seed, corrupt, degrade, get_config
from daflow_ext.frames.degrade.evaluation_set import Settings, check_set, find_clips, read_manifest


def pictures(folder):
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.png"))}


def stacked(paths):
    return np.stack([read_image(path).permute(1, 2, 0).numpy() for path in paths])


@pytest.fixture
def video(tmp_path, clip):
    """The clip as a lossless video."""
    path = tmp_path / "film.avi"
    frames = stacked(sorted(clip.iterdir(), key=lambda p: int(p.stem[5:])))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, (70, 60))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()
    return path


def test_folder_of_frames(daflow, clip, tmp_path):
    out = tmp_path / "lq"
    code, text, _ = daflow("degrade", clip, "-o", out, "--level", 2, "--seed", 7)
    assert code == 0
    assert text.startswith("4 frames of 1 clip(s), ")
    assert text.endswith(f"{out / 'manifest.json'}\n")
    # natural order: frame8, frame9, frame10, frame11
    names = [f"frame{index}.png" for index in (8, 9, 10, 11)]
    expected = degrade(stacked([clip / name for name in names]), 2, clip_seed(7, ""))
    np.testing.assert_array_equal(stacked([out / name for name in names]), expected)

    manifest = json.loads((out / "manifest.json").read_text())
    (entry,) = manifest["clips"]
    assert Settings.from_dict(manifest["settings"]) == Settings(config=get_config(2), seed=7)
    assert list(entry["outputs"]) == names
    assert entry["seed"] == clip_seed(7, "")
    assert entry["size"] == [60, 70]
    assert entry["lq_size"] == [15, 18]
    assert len(entry["parameters"]) == 4
    assert entry["parameters"][0]["orders"][0]["noise"]["kind"] in ("gaussian", "poisson")
    assert all(encoding["bits_per_pixel"] > 0 for encoding in entry["encodings"])
    assert {"opencv", "numpy", "pyav", "libavcodec", "daflow_ext"} <= set(manifest["versions"])


def test_image(daflow, clip, tmp_path):
    code, _, _ = daflow("degrade", clip / "frame9.png", "-o", tmp_path / "lq", "--preset", "star", "--no-upscale")
    assert code == 0
    assert list(pictures(tmp_path / "lq")) == ["frame9.png"]
    assert read_image(tmp_path / "lq" / "frame9.png").shape == (3, 15, 18)


def test_video_has_the_pixels_of_its_frames(daflow, video, clip, tmp_path):
    assert daflow("degrade", video, "-o", tmp_path / "a", "--seed", 3)[0] == 0
    assert daflow("degrade", clip, "-o", tmp_path / "b", "--seed", 3)[0] == 0
    found = pictures(tmp_path / "a")
    assert list(found) == [f"film_{index:06d}.png" for index in range(4)]
    frames = [tmp_path / "b" / f"frame{index}.png" for index in (8, 9, 10, 11)]
    np.testing.assert_array_equal(stacked(found.values()), stacked(frames))


def test_corruption(daflow, clip, tmp_path):
    code, text, _ = daflow("degrade", clip, "-o", tmp_path / "lq", "--corruption", "fog", "--severity", 2, "--json")
    assert code == 0
    summary = json.loads(text)
    assert summary["settings"] == {"corruption": "fog", "severity": 2, "seed": 0}
    assert (summary["clips"], summary["frames"], summary["bits_per_pixel"]) == (1, 4, None)
    names = [f"frame{index}.png" for index in (8, 9, 10, 11)]
    expected = corrupt(stacked([clip / name for name in names]), "fog", 2, clip_seed(0, ""))
    np.testing.assert_array_equal(stacked([tmp_path / "lq" / name for name in names]), expected)


@pytest.fixture
def tree(tmp_path, clip, video):
    """Two folders of frames and a video, with a file that is neither."""
    root = tmp_path / "tree"
    for name in ("day/left", "night"):
        shutil.copytree(clip, root / name)
    shutil.copy(video, root / "night.avi")
    shutil.copy(video, root / "day" / "walk.avi")
    (root / "readme.txt").write_text("no frames")
    return root


def test_tree_keeps_its_shape_and_clips_their_own_seeds(daflow, tree, tmp_path):
    assert daflow("degrade", tree, "-o", tmp_path / "lq", "--level", 1, "--seed", 1)[0] == 0
    manifest = json.loads((tmp_path / "lq" / "manifest.json").read_text())
    # the video night.avi keeps its suffix because the folder night exists
    assert {clip["name"] for clip in manifest["clips"]} == {"day/left", "day/walk", "night", "night.avi"}
    assert len({clip["seed"] for clip in manifest["clips"]}) == 4
    assert (tmp_path / "lq" / "day" / "left" / "frame8.png").is_file()
    assert (tmp_path / "lq" / "night.avi" / "night_000003.png").is_file()
    # a clip's pixels do not depend on the others
    only = tmp_path / "only"
    shutil.copytree(tree / "night", only / "night")
    assert daflow("degrade", only, "-o", tmp_path / "lq2", "--level", 1, "--seed", 1)[0] == 0
    for name, path in pictures(tmp_path / "lq2").items():
        assert path.read_bytes() == (tmp_path / "lq" / name).read_bytes()


def test_check_and_remake(daflow, refused, clip, tmp_path):
    first, again = tmp_path / "lq", tmp_path / "again"
    assert daflow("degrade", clip, "-o", first, "--preset", "realbasicvsr", "--param-mode", "iid", "--seed", 5)[0] == 0
    assert daflow("degrade", "--check", first)[1] == f"{first}: all 4 files match the manifest\n"
    assert "all 8 files" in daflow("degrade", clip, "--check", first / "manifest.json")[1]
    code, text, _ = daflow("degrade", clip, "-o", again, "--remake", first)
    assert code == 0
    assert text.endswith(f"equal to {first}, pixel by pixel\n")
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (first, again)]
    assert manifests[0] == manifests[1]

    picture = cv2.imread(str(first / "frame9.png"))
    picture[3, 4, 1] ^= 1
    cv2.imwrite(str(first / "frame9.png"), picture)
    (first / "frame8.png").unlink()
    code, text, error = daflow("degrade", "--check", first)
    assert code == 1
    assert text.splitlines() == [
        f"{first / 'frame8.png'} is missing",
        f"{first / 'frame9.png'} has other pixels than the manifest states",
    ]
    assert "2 of 4 files" in error


def test_check_sees_every_byte_of_a_frame(daflow, clip, tmp_path):
    """Any flipped bit, anything appended, and images that the manifest does not list."""
    made = tmp_path / "lq"
    assert daflow("degrade", clip / "frame9.png", "-o", made, "--level", 5, "--no-upscale")[0] == 0
    manifest, path = read_manifest(made), made / "frame9.png"
    data = path.read_bytes()
    for position in (*range(0, len(data), 7), *range(len(data) - 12, len(data))):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert [problem for problem in check_set(manifest, made) if problem], position
    path.write_bytes(data + b"x")
    assert list(check_set(manifest, made)) == [f"{path} does not end as a PNG file does"]
    path.write_bytes(data)
    assert list(check_set(manifest, made)) == [None]
    shutil.copy(path, made / "frame10.png")
    assert list(check_set(manifest, made)) == [None, f"{made / 'frame10.png'} is not in the manifest"]


def test_changed_or_missing_sources_are_found(daflow, clip, tmp_path):
    assert daflow("degrade", clip, "-o", tmp_path / "lq", "--level", 1)[0] == 0
    (clip / "frame8.png").write_bytes((clip / "frame9.png").read_bytes())
    (clip / "frame11.png").unlink()
    code, text, error = daflow("degrade", clip, "--check", tmp_path / "lq", "--json")
    assert code == 1
    problems = json.loads(text)["problems"]
    assert problems == [
        f"{clip / 'frame8.png'} is another file than the set was made from",
        f"frame11.png is missing in {clip}",
    ]
    assert "2 of 8 files" in error
    code, _, error = daflow("degrade", clip, "-o", tmp_path / "again", "--remake", tmp_path / "lq")
    assert code == 1
    assert "frame(s) differ from" in error


@pytest.mark.slow
def test_workers_change_nothing(daflow, tree, tmp_path):
    for count in (1, 2):
        out = tmp_path / f"lq{count}"
        assert daflow("degrade", tree, "-o", out, "--level", 3, "--workers", count)[0] == 0
    assert (tmp_path / "lq1" / "manifest.json").read_text() == (tmp_path / "lq2" / "manifest.json").read_text()


def test_equal_stems_keep_their_suffix(clip):
    shutil.copy(clip / "frame8.png", clip / "frame8.bmp")
    (found,) = find_clips(clip)
    frames = found.open()
    assert {found.frame_name(index, frames) for index in (0, 1)} == {"frame8.bmp", "frame8.png"}


def test_a_damaged_frame_is_named_and_no_manifest_is_written(refused, clip, tmp_path):
    data = (clip / "frame10.png").read_bytes()
    (clip / "frame10.png").write_bytes(data[: len(data) // 2])
    error = refused("degrade", clip, "-o", tmp_path / "lq", "--level", 1)
    assert "frame10.png is truncated" in error
    assert not (tmp_path / "lq" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "an INPUT and an output folder (-o OUT) are needed"),
        (["{clip}"], "an INPUT and an output folder (-o OUT) are needed"),
        (["{clip}/none", "-o", "{tmp}/x"], "none does not exist; an image, a folder or a video was expected"),
        (["{clip}", "-o", "{clip}/lq"], "lies inside the input"),
        (["{clip}", "-o", "{clip}/frame8.png"], "frame8.png is a file, a folder was expected"),
        (["{clip}", "-o", "{tmp}/x", "--severity", "2"], "--severity belongs to --corruption"),
        (["{clip}", "-o", "{tmp}/x", "--corruption", "fog", "--param-mode", "iid"], "leave out --param-mode"),
        (["{clip}", "-o", "{tmp}/x", "--corruption", "hail"], "invalid choice: 'hail'"),
        (["{clip}", "-o", "{tmp}/x", "--level", "6"], "invalid choice: 6"),
        (["{clip}", "-o", "{tmp}/x", "--level", "1", "--preset", "star"], "not allowed with argument"),
        (["{clip}", "-o", "{tmp}/x", "--seed", "-1"], "a seed must not be negative, got -1"),
        (["{clip}", "-o", "{tmp}/x", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["{clip}", "-o", "{tmp}/x", "--remake", "{tmp}"], "manifest.json does not exist"),
        (["--check", "{clip}"], "manifest.json does not exist"),
        (["--check", "{clip}/frame8.png"], "is no JSON"),
        (["{empty}", "-o", "{tmp}/x"], "holds no image and no video"),
    ],
)
def test_refusals(refused, clip, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"{clip}": clip, "{tmp}": tmp_path, "{empty}": tmp_path / "empty"}
    for key, value in names.items():
        arguments = [argument.replace(key, str(value)) for argument in arguments]
    assert message in refused("degrade", *arguments)
    assert not (tmp_path / "x" / "manifest.json").exists()


def test_a_set_is_not_overwritten(daflow, refused, clip, tmp_path):
    assert daflow("degrade", clip, "-o", tmp_path / "lq", "--level", 1)[0] == 0
    assert "already holds a set" in refused("degrade", clip, "-o", tmp_path / "lq", "--level", 2)
    message = refused("degrade", clip, "-o", tmp_path / "x", "--remake", tmp_path / "lq", "--seed", 0)
    assert "--remake takes its settings from the manifest; leave out --seed" in message


def test_frames_of_an_interrupted_run_are_not_mixed_in(refused, clip, tmp_path):
    (tmp_path / "lq").mkdir()
    shutil.copy(clip / "frame8.png", tmp_path / "lq" / "other.png")
    assert "lq is not empty" in refused("degrade", clip, "-o", tmp_path / "lq", "--level", 1)


def test_other_manifests_are_refused(refused, tmp_path):
    path = tmp_path / "manifest.json"
    for text, message in (
        ("[]", "holds no JSON object but list"),
        ('{"format": "x"}', "no manifest of degraded frames"),
    ):
        path.write_text(text)
        assert message in refused("degrade", "--check", path)
    path.write_text(json.dumps({"format": "daflow degraded frames", "format_version": 99}))
    assert "has format version 99, expected 1" in refused("degrade", "--check", path)
    head = {"format": "daflow degraded frames", "format_version": 1}
    for rest in ({}, {"settings": {}, "clips": 3}, {"settings": {}, "clips": [{"name": "a"}]}):
        path.write_text(json.dumps(head | rest))
        assert "manifest.json is incomplete" in refused("degrade", "--check", path)
