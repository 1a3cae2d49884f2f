"""Each data set on a miniature tree: which files are taken, splits, masks, and what a wrong tree says."""

import shutil

import numpy as np
import pytest

from daflow_ext import datasets
from daflow_ext.datasets import BadItemError, LayoutError


def levels(frames):
    """Red of each frame; the frames are flat."""
    assert (frames == frames[:, :1, :1]).all()
    assert (frames[:, 0, 0, 1] == frames[:, 0, 0, 0] + 1).all(), "channels are not RGB"
    return frames[:, 0, 0, 0].tolist()


def names(dataset):
    return [dataset.item_name(index) for index in range(len(dataset))]


def test_sintel(trees, tmp_path):
    root = trees.sintel(tmp_path)
    clean = datasets.open_dataset("sintel-clean", root)
    assert names(clean) == [f"{s}/frame_000{n}" for s in ("alley_1", "market_2") for n in (1, 2, 3)]
    clip = clean[4]
    assert levels(clip.frames) == [52, 53]
    assert clip.flow.shape == (1, trees.HEIGHT, trees.WIDTH, 2)
    assert clip.flow[0, 3, 5].tolist() == [2, 1]
    assert clip.valid.all()
    assert clip.masks["occluded"].sum() == 2 * trees.HEIGHT
    assert clip.masks["invalid"].sum() == trees.HEIGHT
    assert clip.lq is None
    assert clip.inputs is clip.frames
    assert (clip.meta["sequence"], clip.meta["pair"]) == ("market_2", 0)
    assert levels(datasets.open_dataset("sintel-final", root)[4].frames) == [152, 153]
    test = datasets.open_dataset("sintel-final", root, split="test")
    assert len(test) == 6
    assert test[0].flow is None
    assert levels(test[0].frames) == [111, 112]


def test_sintel_clips_of_three_are_shifted_back_at_the_end(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path), clip=3)
    assert [(levels(dataset[i].frames), dataset[i].meta["pair"]) for i in range(3)] == [
        ([1, 2, 3], 0),
        ([2, 3, 4], 0),
        ([2, 3, 4], 1),
    ]
    last = dataset[2]
    assert last.flow[1, 0, 0].tolist() == [3, 0]
    assert last.valid[1].all()
    assert not last.valid[0].any(), "the truth of other pairs is not read"
    assert last.masks["occluded"].sum() == 3 * trees.HEIGHT
    every = datasets.Sintel(tmp_path, clip=3, every_pair=True)[2]
    assert every.flow[:, 0, 0, 0].tolist() == [2, 3]
    assert every.valid.all()


@pytest.mark.parametrize(("name", "images"), [("kitti-2015", "image_2"), ("kitti-2012", "colored_0")])
def test_kitti(trees, tmp_path, name, images):
    dataset = datasets.open_dataset(name, trees.kitti(tmp_path, images))
    assert names(dataset) == [f"00000{n}/00000{n}_10" for n in range(3)]
    clip = dataset[1]
    assert levels(clip.frames) == [30, 31]
    assert clip.flow[0, 10, 3].tolist() == [1.5, -1.25]
    assert not clip.valid[0, :4].any()
    assert clip.valid[0, 4:].all()
    assert clip.masks["occluded"][4:8].all()
    assert clip.masks["occluded"].sum() == 4 * trees.WIDTH
    assert clip.meta["pad_mode"] == "kitti"
    assert datasets.open_dataset(name, tmp_path, split="testing")[2].flow is None
    shutil.rmtree(tmp_path / "training" / "flow_noc")
    assert datasets.open_dataset(name, tmp_path)[1].masks == {}


def test_kitti_uses_multiview_frames_for_longer_clips(trees, tmp_path):
    with pytest.raises(ValueError, match="a clip of 3 frames was asked for, the longest sequence has 2"):
        datasets.Kitti2015(trees.kitti(tmp_path / "pairs"), clip=3)
    dataset = datasets.Kitti2015(trees.kitti(tmp_path / "multi", multiview=True), clip=3)
    assert len(dataset) == 3
    clip = dataset[2]
    assert levels(clip.frames) == [50, 51, 52]
    assert clip.flow[0, 10, 3].tolist() == [2.5, -1.25]
    assert not clip.valid[1].any()


def test_spring_pairs_over_cameras_and_directions(trees, tmp_path):
    root = trees.spring(tmp_path)
    dataset = datasets.open_dataset("spring", root)
    assert len(dataset) == 2 * 2 * 2 * 2  # scenes, cameras, directions, pairs
    assert names(dataset)[:4] == [
        "0001/FW_left/frame_left_0001",
        "0001/FW_left/frame_left_0002",
        "0001/BW_left/frame_left_0003",
        "0001/BW_left/frame_left_0002",
    ]
    backward = dataset[2]
    assert levels(backward.frames) == [3, 2]
    assert backward.flow[0, 5, 5].tolist() == [-3, 0]  # the first of the 2x2 samples
    assert not backward.valid[0, 0, 0]
    assert backward.valid[0].sum() == trees.HEIGHT * trees.WIDTH - 1
    assert backward.meta["sequence"] == "0001", "directions of a scene are not independent"
    left = datasets.Spring(root, cameras=("left",), directions=("FW",))
    assert len(left) == 4
    assert datasets.Spring(root, split="test", cameras=("right",))[0].flow is None
    with pytest.raises(ValueError, match="cameras must be taken from left, right"):
        datasets.Spring(root, cameras=("top",))


def test_spring_min4_keeps_all_samples_and_maps_follow_the_benchmark(trees, tmp_path):
    dataset = datasets.open_dataset("spring-min4", trees.spring(tmp_path))
    assert dataset.protocol == "spring_min4"
    clip = dataset[1]
    assert clip.flow.shape == (1, 2 * trees.HEIGHT, 2 * trees.WIDTH, 2)
    assert clip.flow[0, 6:8, 4:6, 0].tolist() == [[2, 2.25], [2.5, 2.75]]
    columns = {name: mask.any(0).nonzero()[0].size for name, mask in clip.masks.items()}
    # 9 columns at double size: four full pixels and one of which half is marked, which is enough
    assert columns == {"high_detail": 2, "unmatched": 3, "non_rigid": 5, "sky": 5}
    sub = datasets.open_dataset("spring", tmp_path)[1]
    assert all(np.array_equal(mask, clip.masks[name]) for name, mask in sub.masks.items())
    assert datasets.Spring(trees.spring(tmp_path / "bare", maps=False))[0].masks == {}


@pytest.mark.parametrize("nested", [False, True])
def test_tartanair_split_is_every_hundredth_pair_of_the_concatenated_trajectories(trees, tmp_path, nested):
    root = trees.tartanair(
        tmp_path,
        {
            "abandonedfactory/Easy/P000": 4,
            "soulcity/Easy/P000": 151,  # pairs 0..149: scored 0, 100
            "soulcity/Hard/P001": 52,  # pairs 150..200: scored 200, its pair 50
            "westerndesert/Hard/P003": 101,  # pairs 201..300: scored 300, its pair 99
        },
        nested,
    )
    validation = datasets.TartanAir(root, split="validation")
    assert [name.split("/", 1 if nested else 0)[-1] for name in names(validation)] == [
        "soulcity/Easy/P000/000000_left",
        "soulcity/Easy/P000/000100_left",
        "soulcity/Hard/P001/000050_left",
        "westerndesert/Hard/P003/000099_left",
    ]
    clip = validation[2]
    assert clip.frames[:, 0, 0, 0].tolist() == [50, 51]
    assert clip.flow[0, 0, 0].tolist() == [50, 2]
    assert clip.valid[0].all(1).tolist() == [True, True, False, True]  # only code 100 is invalid
    assert clip.masks["occluded"].all(1).tolist() == [True, True, False, False]
    assert len(datasets.TartanAir(root, split="training")) == 3
    assert len(datasets.TartanAir(root, split="all")) == 3 + 150 + 51 + 100


def test_flyingchairs_split_file(trees, tmp_path):
    root = trees.flyingchairs(tmp_path)
    assert len(datasets.FlyingChairs(root, split="all")) == 5
    with pytest.raises(LayoutError, match=r"has neither chairs_split\.txt nor FlyingChairs_train_val\.txt"):
        datasets.FlyingChairs(root)
    (root / "chairs_split.txt").write_text("1\n1\n2\n1\n2\n")
    assert names(datasets.FlyingChairs(root)) == [f"0000{n}/0000{n}_img1" for n in (1, 2, 4)]
    validation = datasets.FlyingChairs(root, split="validation")
    assert levels(validation[0].frames) == [3, 103]
    assert validation[0].flow[0, 0, 0].tolist() == [3, -3]
    (root / "chairs_split.txt").write_text("1\n1\n2\n")
    with pytest.raises(LayoutError, match="must have 5 lines of 1 or 2"):
        datasets.FlyingChairs(root)


def test_flyingthings3d_both_directions(trees, tmp_path):
    root = trees.flyingthings3d(tmp_path)
    dataset = datasets.open_dataset("flyingthings3d-final", root)
    assert len(dataset) == 2 * 2 * 2
    assert names(dataset)[:4] == [
        "TRAIN/A/0000/into_future/left/0006",
        "TRAIN/A/0000/into_future/left/0007",
        "TRAIN/A/0000/into_past/left/0008",
        "TRAIN/A/0000/into_past/left/0007",
    ]
    assert levels(dataset[1].frames) == [107, 108]
    assert dataset[1].flow[0, 0, 0].tolist() == [7, 0.5]
    assert levels(dataset[2].frames) == [108, 107]
    assert dataset[2].flow[0, 0, 0].tolist() == [-8, 0.5]
    assert names(datasets.FlyingThings3D(root, split="test"))[0].startswith("TEST/")


def test_hd1k(trees, tmp_path):
    dataset = datasets.HD1K(trees.hd1k(tmp_path))
    assert names(dataset) == [f"00000{s}/00000{s}_000{n}" for s in (0, 1) for n in (0, 1)]
    clip = dataset[3]
    assert levels(clip.frames) == [21, 22]
    assert clip.flow[0, 0, 9].tolist() == [1, 1]
    assert not clip.valid[0, :, :5].any()


def test_middlebury_unknown_flow_and_neighbours(trees, tmp_path):
    root = trees.middlebury(tmp_path)
    dataset = datasets.Middlebury(root)
    assert names(dataset) == ["RubberWhale/frame10", "Venus/frame10"]
    clip = dataset[0]
    assert levels(clip.frames) == [10, 11]
    assert not clip.valid[0, 0].any()
    assert clip.valid[0, 1:].all()
    assert clip.flow[0, 0, 0].tolist() == [0, 0]
    assert datasets.Middlebury(root, split="test")[0].flow is None
    three = datasets.Middlebury(root, clip=3)
    assert levels(three[0].frames) == [10, 11, 12]
    with pytest.raises(BadItemError, match="Venus/frame10: the sequence has 2 frames, a clip needs 3"):
        three[1]


def test_youhq_takes_folders_and_videos(trees, tmp_path):
    for number in range(4):
        trees.picture(tmp_path / f"YouHQ-Train/animal/abc_00/{number:05d}.png", 10 * number)
    trees.video(tmp_path / "YouHQ-Train/city/def_00.mp4", [30, 60, 90])
    trees.picture(tmp_path / "YouHQ40-Test/x_00/00000.png", 7)
    trees.picture(tmp_path / "YouHQ40-Test/x_00/00001.png", 8)
    dataset = datasets.YouHQ(tmp_path, clip=3)
    assert names(dataset) == [
        "YouHQ-Train/animal/abc_00/00000",
        "YouHQ-Train/animal/abc_00/00001",
        "YouHQ-Train/animal/abc_00/00002",
        "YouHQ-Train/city/def_00.mp4/000000",
        "YouHQ-Train/city/def_00.mp4/000001",
    ]
    assert levels(dataset[1].frames) == [10, 20, 30]
    assert dataset[3].frames.shape == (3, 32, 48, 3)
    np.testing.assert_allclose(dataset[3].frames.mean((1, 2, 3)), [30, 60, 90], atol=2)
    assert len(datasets.YouHQ(tmp_path, split="test")) == 1


def test_folder_with_pseudo_flow(trees, tmp_path):
    root = tmp_path / "frames"
    for number in (1, 2, 10):
        trees.picture(root / f"walk/f{number}.png", number)
        trees.flo(tmp_path / f"flow/walk/flow/f{number}.flo", trees.vectors(number, 0))
        trees.mask(tmp_path / f"flow/walk/confidence/f{number}.png", 6)
    trees.video(root / "clip.avi", [10, 20])
    bare = datasets.Folder(root)
    assert names(bare) == ["clip.avi/000000", "walk/f1", "walk/f2"]
    assert levels(bare[2].frames) == [2, 10], "natural order"
    with pytest.raises(LayoutError, match=r"clip\.avi/flow is missing"):
        datasets.Folder(root, flow_root=tmp_path / "flow")
    (root / "clip.avi").unlink()
    clip = datasets.Folder(root, flow_root=tmp_path / "flow")[1]
    assert clip.flow[0, 0, 0].tolist() == [2, 0]
    assert clip.valid.sum() == 6 * trees.HEIGHT
    assert names(datasets.Folder(root / "walk")) == ["walk/f1", "walk/f2"]


def test_pairs_of_a_list(trees, tmp_path):
    trees.picture(tmp_path / "a.png", 1)
    trees.picture(tmp_path / "b.png", 2)
    trees.flo(tmp_path / "ab.flo", trees.vectors(3, 4))
    trees.mask(tmp_path / "occ.png", 5)
    listing = tmp_path / "pairs.csv"
    listing.write_text(
        "name,sequence,image1,image2,flow,occluded,pad\none,s,a.png,b.png,ab.flo,occ.png,kitti\ntwo,s,b.png,a.png,,,\n"
    )
    dataset = datasets.open_dataset("pairs", tmp_path, pairs=listing)
    assert names(dataset) == ["one", "two"]
    clip = dataset[0]
    assert (levels(clip.frames), clip.flow[0, 0, 0].tolist()) == ([1, 2], [3, 4])
    assert (clip.meta["sequence"], clip.meta["pad_mode"]) == ("s", "kitti")
    assert clip.masks["occluded"].sum() == 5 * trees.HEIGHT
    assert dataset[1].flow is None
    np.savez(tmp_path / "extra.npz", seen=np.arange(trees.WIDTH) < np.full((trees.HEIGHT, 1), 7))
    row = "name,sequence,image1,image2,flow,valid\none,s,a.png,b.png,ab.flo,extra.npz:{}\n"
    listing.write_text(row.format("seen"))
    assert datasets.Pairs(tmp_path, pairs=listing)[0].valid.sum() == 7 * trees.HEIGHT
    np.savez(tmp_path / "extra.npz", thin=np.ones((1, trees.WIDTH), bool))  # would be spread over all rows
    listing.write_text(row.format("thin"))
    with pytest.raises(BadItemError, match=r"extra\.npz:thin is a mask \(1, \d+\), but its flow is "):
        datasets.Pairs(tmp_path, pairs=listing)[0]
    listing.write_text(row.format("unseen"))
    with pytest.raises(BadItemError, match=r"extra\.npz has no array 'unseen'"):
        datasets.Pairs(tmp_path, pairs=listing)[0]
    listing.write_text("name,image1,image2,flow\n")
    with pytest.raises(LayoutError, match="has no column sequence"):
        datasets.Pairs(tmp_path, pairs=listing)
    listing.write_text("name,sequence,image1,image2,flow\nx,s,a.png,b.png,\nx,s,a.png,b.png,\n")
    with pytest.raises(ValueError, match="names must be unique, 'x' stands in 2 rows"):
        datasets.Pairs(tmp_path, pairs=listing)


@pytest.mark.parametrize("name", [name for name in datasets.DATASETS if name not in ("folder", "pairs")])
def test_a_wrong_tree_shows_the_expected_layout(name, tmp_path):
    cls = datasets.dataset_class(name)
    with pytest.raises(LayoutError, match="is no folder") as absent:
        datasets.open_dataset(name, tmp_path / "nothing")
    assert cls.layout in str(absent.value)
    (tmp_path / "holiday").mkdir()
    with pytest.raises(LayoutError) as wrong:
        datasets.open_dataset(name, tmp_path)
    assert cls.layout in str(wrong.value)
    assert str(tmp_path) in str(wrong.value)


@pytest.mark.parametrize(
    ("maker", "name", "removed", "missing"),
    [
        ("sintel", "sintel-clean", "training/flow", "training/flow is missing"),
        ("sintel", "sintel-clean", "training/flow/market_2", "scene market_2 has frames, but"),
        ("kitti", "kitti-2015", "training/flow_occ", "training/flow_occ is missing"),
        ("sintel", "sintel-clean", "training/clean/market_2", "scene market_2 has truth, but"),
        ("spring", "spring", "train/0004/flow_BW_right", "flow_BW_right is missing"),
        ("spring", "spring", "train/0004/frame_right", "frame_right is missing"),
        ("flyingthings3d", "flyingthings3d-clean", "optical_flow/TRAIN/B/0001/into_past", "into_past/left is missing"),
        ("flyingthings3d", "flyingthings3d-clean", "frames_cleanpass/TRAIN/B", "scene B/0001 has truth, but"),
        ("hd1k", "hd1k", "hd1k_flow_gt", "flow_occ is missing"),
        ("middlebury", "middlebury", "other-data/Venus", "scene Venus has truth, but"),
    ],
)
def test_a_partial_tree_names_what_is_missing(trees, tmp_path, maker, name, removed, missing):
    root = getattr(trees, maker)(tmp_path)
    datasets.open_dataset(name, root)
    shutil.rmtree(root / removed)
    with pytest.raises(LayoutError, match=missing) as error:
        datasets.open_dataset(name, root)
    assert datasets.dataset_class(name).layout in str(error.value)


@pytest.mark.parametrize(
    ("maker", "name", "removed", "index"),
    [
        ("kitti", "kitti-2015", "training/image_2/000001_*.png", 1),
        ("hd1k", "hd1k", "hd1k_input/image_2/000001_*.png", 2),
        ("flyingchairs", "flyingchairs", "data/00003_img*.ppm", 2),
    ],
)
def test_truth_without_frames_is_a_bad_item(trees, tmp_path, maker, name, removed, index):
    """The set does not get smaller in silence."""
    root, options = getattr(trees, maker)(tmp_path), {"split": "all"} if maker == "flyingchairs" else {}
    before = len(datasets.open_dataset(name, root, **options))
    for path in root.glob(removed):
        path.unlink()
    dataset = datasets.open_dataset(name, root, **options)
    assert len(dataset) == before
    with pytest.raises(datasets.BadItemError, match="does not exist"):
        dataset[index]


def test_unknown_names_and_options_list_what_exists(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'sintell'; expected one of sintel-clean, "):
        datasets.open_dataset("sintell", tmp_path)
    with pytest.raises(ValueError, match="split must be one of training, test, got 'val'"):
        datasets.Sintel(tmp_path, split="val")
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        datasets.Sintel(tmp_path, clip=1)
    with pytest.raises(ValueError, match=r"sintel: datasets/Sintel is no folder"):
        datasets.open_dataset("sintel-clean")
