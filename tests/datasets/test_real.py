"""The same loaders on real files, linked into the publishers' layouts."""

import pathlib

import numpy as np
import pytest

from daflow_ext import datasets


@pytest.fixture
def data(shared):
    return shared / "data"


def link(target, source):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def test_sintel(data, tmp_path):
    for part, folder in (("clean", "clean"), ("final", "final"), ("flow", "flow"), ("occlusions", "occlusions")):
        link(tmp_path / "training" / folder / "alley_1", data / "sintel/alley_1" / part)
    link(tmp_path / "training/invalid/alley_1", data / "sintel/alley_1/invalid")
    dataset = datasets.Sintel(tmp_path, dstype="final")
    assert len(dataset) == 3
    clip = dataset[1]  # the sample has occlusions of frame 2 only
    assert clip.frames.shape == (2, 436, 1024, 3)
    length = np.linalg.norm(clip.flow[0], axis=-1)
    assert clip.valid.all()
    assert length.mean() == pytest.approx(2.98, abs=0.005)
    assert 0 < clip.masks["occluded"].mean() < 0.2
    assert clip.masks["invalid"].mean() < 0.02
    with pytest.raises(datasets.BadItemError, match=r"occlusions/alley_1/frame_0001\.png does not exist"):
        dataset[0]


def test_kitti(data, tmp_path):
    for folder in ("image_2", "flow_occ", "flow_noc"):
        (tmp_path / "training" / folder).mkdir(parents=True)
    source = data / "kitti/2015_000010"
    for number in (10, 11):
        link(tmp_path / f"training/image_2/000010_{number}.png", source / f"img_{number}.png")
    link(tmp_path / "training/flow_occ/000010_10.png", source / "flow_occ.png")
    link(tmp_path / "training/flow_noc/000010_10.png", source / "flow_noc.png")
    clip = datasets.Kitti2015(tmp_path)[0]
    assert clip.valid.sum() == 111664
    assert np.linalg.norm(clip.flow[clip.valid], axis=-1).mean() == pytest.approx(9.03, abs=0.005)
    assert 0 < clip.masks["occluded"].sum() < 0.3 * 111664


def test_middlebury(data, tmp_path):
    for scene in ("RubberWhale", "Dimetrodon"):
        link(tmp_path / "other-data" / scene, data / "middlebury" / scene)
        link(tmp_path / "other-gt-flow" / scene, data / "middlebury" / scene)
    dataset = datasets.Middlebury(tmp_path)
    assert [int(dataset[index].valid.sum()) for index in range(2)] == [215820, 222970]
    assert datasets.Middlebury(tmp_path, clip=3)[1].frames.shape == (3, 388, 584, 3)


def test_flyingchairs(data, tmp_path):
    for number in (0, 1):
        for name, ours in (("img0.ppm", "img1.ppm"), ("img1.ppm", "img2.ppm"), ("gt.flo", "flow.flo")):
            link(tmp_path / f"data/{number:05d}_{ours}", data / f"flyingchairs/{number:07d}-{name}")
    dataset = datasets.FlyingChairs(tmp_path, split="all")
    assert np.linalg.norm(dataset[1].flow, axis=-1).mean() == pytest.approx(4.51, abs=0.005)


def test_folder_of_videos(data):
    dataset = datasets.Folder(data / "videos")
    lengths = {one.name: len(one.frames) for one in dataset.sequences}
    assert lengths["carphone_pristine.mp4"] == lengths["carphone_distorted.mp4"] == 120
    assert lengths["bikes.mp4"] == 250
    first = dataset.items.index((0, 0))
    assert dataset[first].frames.dtype == np.uint8


def test_the_listed_real_pairs(data):
    listing = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "real_pairs.csv"
    dataset = datasets.Pairs(data, pairs=listing)
    counts = {dataset[index].meta["name"]: int(dataset[index].valid.sum()) for index in range(len(dataset))}
    assert counts["RubberWhale"] == 222970
    assert counts["kitti/000010"] == 111664
    assert counts["alley_1/clean/2"] == 446464
    visible = np.load(data / "airsim/derived_flow_000000_000010.npz")["visible"]
    assert counts["airsim"] == visible.sum()
