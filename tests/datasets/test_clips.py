"""Damaged files, the low-quality side, batches and workers."""

import dataclasses

import numpy as np
import pytest
import torch

from daflow_ext import datasets
from daflow_ext.datasets import BadItemError, ImageFrames, VideoFrames, collate
from daflow_ext.frames import write_image
from daflow_ext.frames.degrade import clip_seed, corrupt, evaluation_set, get_config


def shift(frames, seed):
    """A degradation whose result tells its seed and how many frames it saw."""
    return (frames // 2 + seed % 50 + len(frames)).astype(np.uint8)


def truncate(path, keep=0.7):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


# -- bad items --------------------------------------------------------------------------------------------------------
def bad(dataset, index):
    with pytest.raises(BadItemError) as error:
        dataset[index]
    assert error.value.item == dataset.item_name(index)
    return error.value.reason


def test_a_corrupt_png_is_named_and_the_others_are_read(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path))
    truncate(tmp_path / "training/clean/alley_1/frame_0002.png")
    assert "frame_0002.png is truncated" in bad(dataset, 0)
    assert "frame_0002.png is truncated" in bad(dataset, 1)
    assert dataset[2].frames.shape[0] == 2


def test_a_missing_neighbour_keeps_its_place(trees, tmp_path):
    root = trees.sintel(tmp_path)
    (root / "training/clean/alley_1/frame_0003.png").unlink()
    dataset = datasets.Sintel(root)
    assert len(dataset) == 6, "the gap must not pair frames 2 and 4"
    assert dataset[0].frames[:, 0, 0, 0].tolist() == [1, 2]
    assert "frame_0003.png does not exist" in bad(dataset, 1)
    assert "frame_0003.png does not exist" in bad(dataset, 2)


def test_short_sequences_are_whole_clips_if_asked_for(trees, tmp_path):
    root = trees.sintel(tmp_path)  # 4 frames per sequence
    with pytest.raises(ValueError, match="a clip of 9 frames was asked for, the longest sequence has 4"):
        datasets.Sintel(root, clip=9)
    short = datasets.Sintel(root, clip=9, shorter=True)
    clip, pair = short[1], datasets.Sintel(root)[1]
    assert (len(clip.frames), clip.flow.shape[0], clip.meta["first"], clip.meta["pair"]) == (4, 3, 0, 1)
    assert np.array_equal(clip.frames[1:3], pair.frames)
    assert np.array_equal(clip.flow[1], pair.flow[0])
    assert clip.valid[1].any()
    assert not clip.valid[[0, 2]].any()
    assert datasets.Sintel(root, clip=9, shorter=True, every_pair=True)[1].valid.any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("maker", "name", "missing", "item"),
    [
        ("sintel", "sintel-clean", "training/clean/alley_1/frame_0001.png", 0),
        ("sintel", "sintel-clean", "training/clean/alley_1/frame_0004.png", 2),
        ("spring", "spring", "train/0001/frame_left/frame_left_0003.png", 2),
        ("spring", "spring", "train/0001/frame_left/frame_left_0001.png", 0),
        ("hd1k", "hd1k", "hd1k_input/image_2/000000_0002.png", 1),
        ("flyingthings3d", "flyingthings3d-clean", "frames_cleanpass/TRAIN/A/0000/left/0008.png", 1),
        ("middlebury", "middlebury", "other-data/Venus/frame11.png", 1),
        ("kitti", "kitti-2015", "training/image_2/000001_11.png", 1),
    ],
)
def test_a_missing_first_or_last_frame_is_noticed_by_its_truth(trees, tmp_path, maker, name, missing, item):
    root = getattr(trees, maker)(tmp_path)
    count = len(datasets.open_dataset(name, root))
    (root / missing).unlink()
    dataset = datasets.open_dataset(name, root)
    assert len(dataset) == count
    assert f"{missing} does not exist" in bad(dataset, item)


def test_a_missing_or_truncated_flow_is_named(trees, tmp_path):
    root = trees.sintel(tmp_path)
    truncate(root / "training/flow/alley_1/frame_0001.flo")
    (root / "training/flow/alley_1/frame_0002.flo").unlink()
    dataset = datasets.Sintel(root)
    assert "frame_0001.flo is truncated" in bad(dataset, 0)
    assert "frame_0002.flo does not exist" in bad(dataset, 1)
    spring = datasets.Spring(trees.spring(tmp_path / "spring"))
    truncate(tmp_path / "spring/train/0001/flow_FW_left/flow_FW_left_0001.flo5")
    assert "flow_FW_left_0001.flo5 is no whole HDF5 file" in bad(spring, 0)


def test_truth_of_another_size_is_named(trees, tmp_path):
    root = trees.sintel(tmp_path)
    trees.flo(root / "training/flow/alley_1/frame_0001.flo", trees.vectors(0, 0, 8, 8))
    assert "frame_0001.flo is 8x8, its frames are 24x16" in bad(datasets.Sintel(root), 0)
    trees.flo5(tmp_path / "s/train/0001/flow_FW_left/flow_FW_left_0001.flo5", trees.vectors(0, 0))
    spring = datasets.Spring(trees.spring(tmp_path / "s"))
    trees.flo5(tmp_path / "s/train/0001/flow_FW_left/flow_FW_left_0001.flo5", trees.vectors(0, 0))
    assert "is 12x8, its frames are 24x16" in bad(spring, 0)


def test_a_damaged_video_is_named(trees, tmp_path):
    trees.video(tmp_path / "clip.avi", range(200))
    dataset = datasets.Folder(tmp_path)
    assert len(dataset) == 199
    truncate(tmp_path / "clip.avi", 0.75)
    assert dataset[0].frames.shape == (2, 32, 48, 3)
    assert "clip.avi" in bad(dataset, 198)
    assert dataset[1].frames.shape == (2, 32, 48, 3), "the frames before the damage stay readable"


def test_an_unreadable_video_is_one_bad_item_among_good_ones(trees, tmp_path):
    trees.video(tmp_path / "good.avi", [10, 20, 30])
    (tmp_path / "bad.avi").write_bytes(b"no video")
    dataset = datasets.Folder(tmp_path)
    assert [dataset.item_name(index) for index in range(3)] == [
        "bad.avi/000000",
        "good.avi/000000",
        "good.avi/000001",
    ]
    assert "bad.avi cannot be opened as a video" in bad(dataset, 0)
    assert dataset[2].frames.shape == (2, 32, 48, 3)


def test_bad_items_survive_a_loaders_worker(trees, tmp_path):
    root = trees.sintel(tmp_path)
    (root / "training/clean/alley_1/frame_0003.png").unlink()
    loader = iter(torch.utils.data.DataLoader(datasets.Sintel(root), batch_size=None, num_workers=1))
    assert next(loader).meta["name"] == "alley_1/frame_0001"
    with pytest.raises(BadItemError, match=r"alley_1/frame_0002: .*frame_0003\.png does not exist"):
        next(loader)


# -- sources ----------------------------------------------------------------------------------------------------------
def test_video_frames_in_any_order(trees, tmp_path):
    shades = list(range(0, 240, 6))
    trees.video(tmp_path / "v.avi", shades)
    source = VideoFrames(tmp_path / "v.avi")
    assert len(source) == len(shades)
    for start, stop in [(0, 2), (1, 3), (1, 2), (30, 33), (20, 24), (3, 5), (0, 40)]:
        np.testing.assert_allclose(source.read(start, stop).mean((1, 2, 3)), shades[start:stop], atol=2.5)
    with pytest.raises(ValueError, match="ends after 40 frames, frame 41 was asked for"):
        source.read(39, 42)
    np.testing.assert_allclose(source.read(0, 1).mean(), shades[0], atol=2.5)


def test_frames_of_one_clip_have_one_size(trees, tmp_path):
    trees.picture(tmp_path / "a.png", 1)
    trees.picture(tmp_path / "b.png", 1, 8, 8)
    with pytest.raises(ValueError, match=r"b\.png is 8x8 pixels, .*a\.png is 24x16"):
        ImageFrames([tmp_path / "a.png", tmp_path / "b.png"]).read(0, 2)


def test_workers_start_after_a_video_was_read(trees, tmp_path):
    trees.video(tmp_path / "v.avi", range(0, 200, 10))
    dataset = datasets.Folder(tmp_path)
    dataset[3]  # a decoder with threads is open now
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, worker_init_fn=datasets.worker_init, timeout=60
    )
    for index, clip in enumerate(loader):
        np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), [10 * index, 10 * index + 10], atol=2.5)


# -- low quality ------------------------------------------------------------------------------------------------------
def test_degradation_is_seeded_by_names_and_independent_of_order(trees, tmp_path):
    root = trees.sintel(tmp_path)
    make = lambda seed=0: datasets.Sintel(root, degrade=shift, seed=seed)  # noqa: E731
    one, other = make(), make()
    first = [one[index].lq for index in range(6)]
    second = [other[index].lq for index in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not np.array_equal(a, b[:1]) for a, b in zip(first, (make(1)[i].lq for i in range(6)), strict=True))
    added = {int(clip[0, 0, 0, 0]) - frame // 2 for clip, frame in zip(first, (1, 2, 3, 51, 52, 53), strict=True)}
    assert len(added) > 3, "every clip has its own seed"


def test_a_window_is_degraded_together(trees, tmp_path):
    root = trees.sintel(tmp_path, frames=6)
    seen = []

    def watch(frames, seed):
        seen.append((frames[:, 0, 0, 0].tolist(), seed))
        return shift(frames, seed)

    whole = datasets.Sintel(root, degrade=watch, lq_window="sequence")
    clips = [whole[index] for index in range(5)]
    assert [frames for frames, _ in seen] == [[1, 2, 3, 4, 5, 6]], "once for the whole sequence"
    assert seen[0][1] == clip_seed(0, "alley_1")
    for clip in clips:
        assert np.array_equal(clip.lq, clip.frames // 2 + seen[0][1] % 50 + 6)
    seen.clear()
    windowed = datasets.Sintel(root, degrade=watch, lq_window=4)
    clips = [windowed[index] for index in range(5)]
    assert [frames for frames, _ in seen] == [[1, 2, 3, 4], [3, 4, 5, 6]]
    assert [clip.inputs.shape[0] for clip in clips] == [2] * 5
    assert clips[4].frames[:, 0, 0, 0].tolist() == [5, 6]


def test_a_whole_sequence_gets_the_pixels_of_daflow_degrade(tmp_path):
    generator = np.random.default_rng(0)
    for scene in ("alley_1", "market_2"):
        for number in (1, 2, 3):
            coarse = torch.from_numpy(generator.integers(0, 256, (3, 8, 12), np.uint8))
            path = tmp_path / f"hq/training/clean/{scene}/frame_{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, coarse.repeat_interleave(8, 1).repeat_interleave(8, 2))
        (tmp_path / "hq/training/flow" / scene).mkdir(parents=True)
    settings = evaluation_set.Settings(config=get_config(3), seed=7)
    evaluation_set.make_set(tmp_path / "hq/training/clean", tmp_path / "lq/training/clean", settings)
    options = {"degrade": datasets.Degradation("level3", "level3"), "lq_window": "sequence", "seed": 7}
    flying = datasets.Sintel(tmp_path / "hq", **options)
    small = dataclasses.replace(settings, upscale=False)
    evaluation_set.make_set(tmp_path / "hq/training/clean", tmp_path / "small/training/clean", small)
    stored = [datasets.Sintel(tmp_path / "hq", lq_root=tmp_path / name) for name in ("lq", "small")]
    for index in (0, 1, 3):
        ours = flying.low_quality(*_clip_of(flying, index))
        for one in stored:
            assert np.array_equal(ours, one.low_quality(*_clip_of(one, index)))
        assert not np.array_equal(ours, _clip_of(flying, index)[2])


def _clip_of(dataset, index):
    """What the low-quality side is asked for: sequence, first frame, frames."""
    number, pair = dataset.items[index]
    sequence = dataset.sequences[number]
    return sequence, pair, sequence.frames.read(pair, pair + 2)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("3", ["level3"]),
        ("level3", ["level3"]),
        ("levels", [f"level{n}" for n in range(1, 6)]),
        ("realbasicvsr", ["realbasicvsr"]),
        ("fog", ["fog:3"]),
        ("fog:5", ["fog:5"]),
    ],
)
def test_words_for_degradations(word, names):
    assert [one.name for one in datasets.degradations(word)] == names


def test_all_corruptions_are_the_twenty_of_robustspring():
    found = datasets.degradations("corruptions:2")
    assert len(found) == 20
    assert {one.severity for one in found} == {2}
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    fog = next(one for one in found if one.name == "fog:2")
    assert np.array_equal(fog(frames, 5), corrupt(frames, "fog", 2, 5))


@pytest.mark.parametrize("word", ["6", "fogg", "fog:9", "level3:2", "levels:1", ""])
def test_unknown_degradations_list_what_exists(word):
    with pytest.raises(
        ValueError, match=r"no degradation .* expected a level 1\.\.5, levels, a preset \(realbasicvsr, "
    ):
        datasets.degradations(word)


def test_an_epoch_changes_the_degradation(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path), degrade=shift)
    before = dataset[0].lq.copy()
    assert np.array_equal(before, dataset[0].lq)
    different = 0
    for epoch in range(1, 6):
        dataset.set_epoch(epoch)
        different += not np.array_equal(before, dataset[0].lq)
    assert different >= 4


def test_a_degradation_that_changes_the_shape_is_refused(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path), degrade=lambda frames, seed: frames[:, ::2])
    with pytest.raises(TypeError, match=r"must return uint8 \(2, 16, 24, 3\) .* returned uint8 \(2, 8, 24, 3\)"):
        dataset[0]


def test_precomputed_frames(trees, tmp_path):
    root, lq = trees.sintel(tmp_path / "hq"), tmp_path / "lq"
    for number in range(1, 5):
        trees.picture(lq / f"training/clean/alley_1/frame_{number:04d}.png", 100 + number)
        trees.picture(lq / f"training/clean/market_2/frame_{number:04d}.png", 60, 4, 6)  # a quarter of each side
    dataset = datasets.Sintel(root, lq_root=lq)
    assert dataset[1].lq[:, 0, 0, 0].tolist() == [102, 103]
    assert dataset[1].inputs is not dataset[1].frames
    assert (dataset[4].lq[..., 0] == 60).all()
    assert dataset[4].lq.shape == dataset[4].frames.shape
    trees.picture(lq / "training/clean/market_2/frame_0001.png", 60, 9, 9)
    trees.picture(lq / "training/clean/market_2/frame_0002.png", 60, 9, 9)
    assert "low-quality frames of market_2 are 9x9; 24x16 or a quarter" in bad(dataset, 3)
    (lq / "training/clean/alley_1/frame_0004.png").unlink()
    assert "lq/training/clean/alley_1/frame_0004.png does not exist" in bad(dataset, 2)


def test_precomputed_video(trees, tmp_path):
    trees.video(tmp_path / "hq/a/clip.mp4", [100, 120, 140])
    trees.video(tmp_path / "lq/a/clip.mp4", [50, 60, 70])
    lq = datasets.Folder(tmp_path / "hq", lq_root=tmp_path / "lq")[1].lq
    np.testing.assert_allclose(lq.mean((1, 2, 3)), [60, 70], atol=2)
    (tmp_path / "lq/a/clip.mp4").unlink()
    for number in range(3):
        trees.picture(tmp_path / f"lq/a/clip/{number:06d}.png", 10 * number, 32, 48)
    lq = datasets.Folder(tmp_path / "hq", lq_root=tmp_path / "lq")[1].lq
    assert lq[:, 0, 0, 0].tolist() == [10, 20]
    (tmp_path / "lq/a/clip/000001.png").unlink()  # not the next one in its place
    message = bad(datasets.Folder(tmp_path / "hq", lq_root=tmp_path / "lq"), 0)
    assert "low quality of a/clip.mp4 has 2 frames" in message
    assert message.endswith("the original has 3")


def test_precomputed_frames_of_a_video_are_in_natural_order(trees, tmp_path):
    trees.video(tmp_path / "hq/clip.mp4", [100, 120, 140])
    for number in (9, 10, 11):
        trees.picture(tmp_path / f"lq/clip/f{number}.png", 10 * number, 32, 48)
    lq = datasets.Folder(tmp_path / "hq", lq_root=tmp_path / "lq")[0].lq
    assert lq[:, 0, 0, 0].tolist() == [90, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degrade": shift, "lq_root": "x"}, "give degrade or lq_root, not both"),
        ({"lq_root": "nowhere"}, "lq_root nowhere is no folder"),
        ({"degrade": shift, "lq_window": "all"}, "lq_window must be 'sequence', a number of frames or None, got 'all'"),
    ],
)
def test_bad_options(trees, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.Sintel(trees.sintel(tmp_path), **options)


# -- batches ----------------------------------------------------------------------------------------------------------
def test_batches_through_two_workers_equal_the_items(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path), clip=3, every_pair=True, degrade=shift)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=3, num_workers=2, collate_fn=collate, worker_init_fn=datasets.worker_init
    )
    batches = list(loader)
    assert [batch.meta["name"] for batch in batches] == [
        [dataset.item_name(index) for index in range(start, start + 3)] for start in (0, 3)
    ]
    for batch, start in zip(batches, (0, 3), strict=True):
        assert batch.frames.shape == (3, 3, trees.HEIGHT, trees.WIDTH, 3)
        for position in range(3):
            clip = dataset[start + position]
            assert torch.equal(batch.lq[position], torch.from_numpy(clip.lq))
            assert torch.equal(batch.flow[position], torch.from_numpy(clip.flow))
            assert torch.equal(batch.valid[position], torch.from_numpy(clip.valid))
            assert torch.equal(batch.masks["occluded"][position], torch.from_numpy(clip.masks["occluded"]))


def test_a_batch_needs_one_size(trees, tmp_path):
    small, big = trees.sintel(tmp_path / "a"), tmp_path / "b"
    for number in (1, 2):
        trees.picture(big / f"x/{number}.png", 3, 32, 32)
    first, other = datasets.Sintel(small)[0], datasets.Folder(big)[0]
    with pytest.raises(
        ValueError, match=r"frames of one batch must have one size, got \(2, 16, 24, 3\), \(2, 32, 32, 3\)"
    ):
        collate([first, other])
    first.frames = other.frames
    with pytest.raises(ValueError, match="only 1 of 2 clips have flow"):
        collate([first, other])
