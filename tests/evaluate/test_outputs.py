"""Uploads, pseudo truth, pictures of the worst pairs."""

import json
import math
import zipfile

import cv2
import h5py
import numpy as np
import pytest
import torch

from daflow_ext import datasets
from daflow_ext.datasets import BadItemError
from daflow_ext.evaluate import RecordFile, ZeroPredictor, validate
from daflow_ext.evaluate.pictures import panels, worst_items, write_worst
from daflow_ext.evaluate.pseudo import confidence, write_pseudo
from daflow_ext.evaluate.submit import open_parts, write_submission
from daflow_ext.flow import Report, flow_to_image, forward_backward_consistency, read_flow
from daflow_ext.frames import read_image


class Level:
    """Flow (level of the frame, -1); backward its opposite."""

    clip = 2

    def __init__(self, name="level", add=0.0):
        self.name, self.identity, self.add = name, f"{name} {add}", add
        self.calls = 0

    def __call__(self, frames, pair, *, backward=False, pad_mode="sintel"):
        self.calls += 1
        flow = torch.empty(2, *frames.shape[1:3])
        flow[0], flow[1] = float(frames[pair, 0, 0, 0]) + self.add, -1.0
        return -flow if backward else flow


# -- submit -----------------------------------------------------------------------------------------------------------
def submit(name, root, output, predictor=None):
    return write_submission(name, open_parts(name, root, 2), predictor or Level(), output, workers=0)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_sintel_upload(trees, tmp_path):
    root, out = trees.sintel(tmp_path / "sintel"), tmp_path / "up"
    manifest = submit("sintel", root, out)
    assert files(out) == sorted(
        [f"{p}/{s}/frame_000{n}.flo" for p in ("clean", "final") for s in ("alley_1", "market_2") for n in (1, 2, 3)]
        + ["submission.json"]
    )
    assert manifest["files"] == 12
    data = (out / "final/market_2/frame_0002.flo").read_bytes()
    assert np.frombuffer(data, "<f4", 1)[0] == np.float32(202021.25)
    assert np.frombuffer(data, "<i4", 2, 4).tolist() == [trees.WIDTH, trees.HEIGHT]
    values = np.frombuffer(data, "<f4", offset=12).reshape(trees.HEIGHT, trees.WIDTH, 2)
    assert (values == [162, -1]).all()


@pytest.mark.parametrize(
    ("name", "images", "folder"), [("kitti-2015", "image_2", "flow/"), ("kitti-2012", "colored_0", "")]
)
def test_kitti_upload(trees, tmp_path, name, images, folder):
    root, out = trees.kitti(tmp_path / "kitti", images), tmp_path / "up"
    manifest = submit(name, root, out)
    expected = [f"{folder}00000{n}_10.png" for n in range(3)]
    with zipfile.ZipFile(tmp_path / "up.zip") as pack:
        assert sorted(pack.namelist()) == expected
        png = cv2.imdecode(np.frombuffer(pack.read(expected[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert manifest["archive"] == str(tmp_path / "up.zip")
    assert png.dtype == np.uint16
    assert (png == [1, 32768 - 64, 32768 + 30 * 64]).all()  # BGR: valid, y, x


def test_kitti_upload_clips_what_its_files_cannot_hold(trees, tmp_path):
    manifest = submit("kitti-2015", trees.kitti(tmp_path / "k", scenes=1), tmp_path / "up", Level(add=600.0))
    assert manifest["clipped_values"] == trees.HEIGHT * trees.WIDTH
    assert read_flow(tmp_path / "up/flow/000000_10.png")[0].max() == pytest.approx(511.984375)


def test_spring_upload(trees, tmp_path):
    out = tmp_path / "up"
    submit("spring", trees.spring(tmp_path / "spring", scenes=("0003",)), out)
    kinds = [(d, c) for c in ("left", "right") for d in ("FW", "BW")]
    numbers = {"FW": (1, 2), "BW": (2, 3)}
    assert files(out) == sorted(
        [f"0003/flow_{d}_{c}/flow_{d}_{c}_000{n}.flo5" for d, c in kinds for n in numbers[d]] + ["submission.json"]
    )
    with h5py.File(out / "0003/flow_BW_right/flow_BW_right_0003.flo5") as file:
        assert list(file) == ["flow"]
        assert file["flow"].shape == (trees.HEIGHT, trees.WIDTH, 2)
        assert (file["flow"].compression, file["flow"].compression_opts) == ("gzip", 5)
        assert (file["flow"][()] == [103, -1]).all()


def test_a_submission_is_continued_but_not_mixed(trees, tmp_path):
    root, out = trees.sintel(tmp_path / "sintel"), tmp_path / "up"
    submit("sintel", root, out)
    (out / "clean/alley_1/frame_0002.flo").unlink()
    again = Level()
    submit("sintel", root, out, again)
    assert again.calls == 1
    with pytest.raises(ValueError, match=r"holds the sintel submission of level \(level 0\.0\)"):
        submit("sintel", root, out, Level("other"))
    with pytest.raises(ValueError, match="is not finite; the servers refuse such files"):
        submit("sintel", root, tmp_path / "nan", Level(add=math.nan))
    (root / "test/clean/alley_1/frame_0003.png").write_bytes(b"")
    with pytest.raises(BadItemError, match=r"alley_1/frame_0002: .*frame_0003\.png"):
        submit("sintel", root, tmp_path / "broken")


# -- pseudo -----------------------------------------------------------------------------------------------------------
def test_confidence_agrees_with_the_consistency_check():
    generator = torch.Generator().manual_seed(0)
    forward = torch.full((2, 40, 50), 3.0) + torch.randn(2, 40, 50, generator=generator) * 0.3
    backward = -forward + torch.randn(2, 40, 50, generator=generator) * 0.6
    score = confidence(forward, backward)
    occluded = forward_backward_consistency(forward, backward)
    assert 0.1 < occluded.float().mean() < 0.9
    assert torch.equal(score > 0.5, ~occluded)
    still = torch.zeros(2, 4, 4)
    assert (confidence(still, still) == 1).all()
    moved = still.clone()
    moved[0] = 1.0
    # |f + b|^2 = 1 over 0.01 * 1 + 0.5, and the last column leaves the image
    assert confidence(moved, still)[:, :3].flatten().tolist() == pytest.approx([0.51 / 1.51] * 12)
    assert (confidence(moved, still)[:, 3] == 0).all()
    moved[0, 0, 0] = math.nan
    assert confidence(moved, still)[0, 0] == 0


def test_pseudo_truth_is_read_back(trees, tmp_path):
    root, out = tmp_path / "video", tmp_path / "flow"
    for number in range(3):
        trees.picture(root / f"YouHQ-Train/a/x_00/{number:05d}.png", 2 * number)
    teacher = Level()
    manifest = write_pseudo(datasets.Folder(root), teacher, out, backward=True, workers=0)
    assert (manifest["pairs"], manifest["sequences"], manifest["bad"]) == (2, 1, {})
    place = out / "YouHQ-Train/a/x_00"
    kinds = ("flow", "flow_backward", "confidence", "confidence_backward")
    assert files(place) == sorted(f"{kind}/0000{n}.png" for kind in kinds for n in (0, 1))
    assert read_flow(place / "flow_backward/00001.png")[:, 5, 5].tolist() == [-2, 1]
    certain = read_image(place / "confidence/00001.png")[0]
    # the flow (2, -1) leaves the image in the two last columns and the first row
    assert certain[0].max() == 0
    assert certain[:, -2:].max() == 0
    assert (certain[1:, :-2] == 255).all()
    clip = datasets.YouHQ(root, flow_root=out, clip=3, every_pair=True)[0]
    assert clip.flow[1, 5, 5].tolist() == [2, -1]
    assert np.array_equal(clip.valid[1], certain.numpy() >= 128)
    calls = teacher.calls
    write_pseudo(datasets.Folder(root), teacher, out, backward=True, workers=0)
    assert teacher.calls == calls, "nothing is estimated twice"
    with pytest.raises(ValueError, match="was made with teacher = 'level', this run has 'other'"):
        write_pseudo(datasets.Folder(root), Level("other"), out, backward=True, workers=0)


def test_pseudo_truth_names_bad_frames(trees, tmp_path):
    root = tmp_path / "video"
    for number in range(4):
        trees.picture(root / f"clip/{number}.png", number)
    (root / "clip/2.png").write_bytes(b"")
    with pytest.raises(BadItemError, match=r"clip/1: .*2\.png"):
        write_pseudo(datasets.Folder(root), Level(), tmp_path / "a", workers=0)
    manifest = write_pseudo(datasets.Folder(root), Level(), tmp_path / "b", skip_bad=True, workers=0)
    assert list(manifest["bad"]) == ["clip/1", "clip/2"]
    assert manifest["pairs"] == 1
    assert json.loads((tmp_path / "b/pseudo.json").read_text()) == manifest


# -- pictures ---------------------------------------------------------------------------------------------------------
def test_the_worst_pairs_as_pictures(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path))
    items = [dataset.item_name(index) for index in range(len(dataset))]
    records = RecordFile(tmp_path / "r.jsonl", {})
    validate(lambda level: dataset, ["clean"], [ZeroPredictor()], records, workers=0)
    worst = worst_items(records, "zero", "clean", items, 2)
    assert [name for name, _ in worst] == ["market_2/frame_0003", "alley_1/frame_0003"]
    assert worst[0][1] == pytest.approx(math.hypot(3, 1), rel=1e-6)
    report, indices = Report("worst"), {name: n for n, name in enumerate(items)}
    written = write_worst(tmp_path / "worst", dataset, ZeroPredictor(), worst, indices, report=report, level="clean")
    assert [path.name for path in written] == [
        "01-market_2_frame_0003-3.16px.png", "02-alley_1_frame_0003-3.00px.png",
    ]  # fmt: skip
    picture = read_image(written[0])
    assert picture.shape == (3, 4 * trees.HEIGHT, trees.WIDTH)
    report.write(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert '"name":"zero, clean: market_2/frame_0003"' in page
    assert '"values":{"EPE (px)":3.1623}' in page


def test_panels_share_one_scale_and_grey_marks_the_unknown(trees, tmp_path):
    dataset = datasets.Middlebury(trees.middlebury(tmp_path))
    shown = panels(dataset[0], Level(), "dense")
    assert list(shown) == ["frame", "truth", "prediction", "error, bright = 10 px"]
    scale = math.hypot(1.5, 0.5)
    flow = torch.tensor([1.5, -0.5])[:, None, None].expand(2, trees.HEIGHT, trees.WIDTH)
    assert torch.equal(shown["truth"][:, 1:], flow_to_image(flow, scale)[:, 1:])
    assert (shown["truth"][:, 0] == 0).all()
    assert (shown["error, bright = 10 px"][:, 0] == 128).all()
    assert (shown["error, bright = 10 px"][:, 1:] != 128).any()
    degraded = datasets.Middlebury(tmp_path, degrade=lambda frames, seed: frames + 1)
    assert list(panels(degraded[0], Level(), "dense"))[:2] == ["frame", "input"]
