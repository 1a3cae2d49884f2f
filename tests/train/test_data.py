import numpy as np
import pytest
import torch

from daflow_ext.frames.degrade.schedule import random_stream
from daflow_ext.train import FlowConfig, read_config
from daflow_ext.train.augment import jitter, random_crop
from daflow_ext.train.config import AugmentConfig, DataConfig, DegradeChoice
from daflow_ext.train.data import HeldOut, TrainingClips, loader, open_held_out


def still(**changes):
    """No augmentation but what is named."""
    none = dict.fromkeys(("stretch", "brightness", "contrast", "saturation", "hue", "flip_x", "flip_y"), 0.0)
    return AugmentConfig(**{**none, "scale": (0.0, 0.0), **changes})


def warped_error(frames, flow, valid, margin):
    """Mean absolute difference of frame 0 and frame 1 followed back along the flow, nearest pixels."""
    height, width = frames.shape[1:3]
    y, x = np.mgrid[margin : height - margin, margin : width - margin]
    to_x = np.rint(x + flow[0, y, x, 0]).astype(int).clip(0, width - 1)
    to_y = np.rint(y + flow[0, y, x, 1]).astype(int).clip(0, height - 1)
    error = np.abs(frames[1, to_y, to_x].astype(float) - frames[0, y, x])
    return error[valid[0, y, x]].mean()


@pytest.mark.parametrize(
    "config",
    [still(), still(flip_x=1.0), still(flip_y=1.0), still(flip_x=1.0, flip_y=1.0), still(scale=(1.0, 1.0))],
    ids=["plain", "flip_x", "flip_y", "both", "doubled"],
)
def test_flow_follows_the_geometry(config, translations):
    for index in range(6):
        clip = translations()[index]
        moved = np.abs(clip.frames[1].astype(float) - clip.frames[0]).mean()
        frames, flow, valid = random_crop(clip.frames, clip.flow, clip.valid, (32, 48), config, random_stream(0, index))
        assert frames.shape == (3, 32, 48, 3)
        assert flow.dtype == np.float32
        assert warped_error(frames, flow, valid, 9) <= (2.0 if config.scale[0] else 0.0)
        if np.abs(clip.flow).max() > 1:
            assert moved > 5


def test_unknown_vectors_do_not_bleed(translations):
    clip = translations()[1]
    clip.valid[:, ::2] = False
    clip.flow[:, ::2] = 1e6
    _, flow, valid = random_crop(
        clip.frames, clip.flow, clip.valid, (32, 48), still(scale=(0.3, 0.3), stretch=0.2), random_stream(0, 1)
    )
    assert 0.3 < valid.mean() < 0.7
    assert np.abs(flow[valid]).max() < 10


def test_clips_smaller_than_the_crop_are_enlarged(translations):
    clip = translations((24, 40))[2]
    frames, flow, _ = random_crop(clip.frames, clip.flow, clip.valid, (48, 64), still(), random_stream(0, 1))
    assert frames.shape[1:3] == (48, 64)
    np.testing.assert_allclose(flow[0, 0, 0], clip.flow[0, 0, 0] * [64 / 40, 2.0], rtol=1e-5)


def test_colours_change_alike_in_all_frames():
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    config = AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
    made = jitter(np.stack([frame, frame]), config, np.random.default_rng(1))
    assert np.array_equal(made[0], made[1])
    assert np.abs(made[0].astype(int) - frame).mean() > 3
    assert np.array_equal(jitter(frame[None], still(), np.random.default_rng(1))[0], frame)
    grey = np.repeat(frame[:, :, :1], 3, axis=2)
    turned = jitter(grey[None], still(hue=0.2, saturation=0.5), np.random.default_rng(2))[0].astype(int)
    assert np.abs(turned - grey).max() <= 1


def stream(clips, seed=0, **changes):
    config = DataConfig(crop=(32, 48), augment=still(flip_x=0.5), **changes)
    return TrainingClips(clips, config, seed)


def test_a_sample_depends_on_seed_and_number_alone(translations):
    first, again, other = stream(translations()), stream(translations()), stream(translations(), seed=1)
    for number in (5, 3):
        one = first[number]
        assert all(torch.equal(one[name], again[number][name]) for name in one)
    assert not torch.equal(first[3]["lq"], other[3]["lq"])
    assert not torch.equal(first[3]["lq"], first[19]["lq"])  # the same scene in the next pass, drawn anew


def test_the_clean_share_is_what_was_asked_for(translations):
    source = translations(still=True)
    clean = stream(source, degrade=DegradeChoice(0.5, {"level1": 1.0}))
    share = np.mean([torch.equal(one["lq"], one["hq"]) for one in map(clean.__getitem__, range(60))])
    assert 0.3 < share < 0.7
    always = stream(source, degrade=DegradeChoice(0.0, {"level1": 1.0, "fog:2": 1.0}))
    assert not any(torch.equal(always[n]["lq"], always[n]["hq"]) for n in range(10))


def test_data_sets_are_visited_once_per_pass_in_another_order(translations):
    source = translations(count=7)
    clips = stream(source, source="sintel-clean")
    passes = [[clips._item(n) for n in range(start, start + 7)] for start in (0, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1]


def batches(source, **options):
    made = loader(stream(source), **{"done": 0, "total": 4, "rank": 0, "world": 1, "batch": 2, **options})
    return [one["lq"] for one in made]


def test_workers_processes_and_restarts_change_no_clip(translations):
    whole = batches(translations(), workers=0)
    assert all(torch.equal(a, b) for a, b in zip(whole, batches(translations(), workers=2), strict=True))
    late = batches(translations(), workers=0, done=3)
    assert len(late) == 1
    assert torch.equal(late[0], whole[3])
    parts = [batches(translations(), workers=0, batch=1, rank=rank, world=2) for rank in (0, 1)]
    assert all(torch.equal(torch.cat(pair), one) for pair, one in zip(zip(*parts, strict=True), whole, strict=True))


def test_held_out_clips_are_the_same_each_time(translations):
    held_out = HeldOut(translations(), (32, 48), 3, 0)
    runs = [[clip.lq for clip in held_out.clips("level3")] for _ in range(2)]
    assert len(runs[0]) == 3
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    assert all(clip.lq is None for clip in held_out.clips("clean"))
    with pytest.raises(ValueError, match="'levels' stands for 5 degradations"):
        next(held_out.clips("levels"))


def test_validation_on_training_clips_is_refused():
    config = read_config(FlowConfig, "raft-tiny-lq")
    config.validation.options = {}
    with pytest.raises(ValueError, match="validation would score training clips"):
        open_held_out(config)


def test_a_source_without_truth_is_named(translations):
    class Blind(translations):
        def __getitem__(self, index):
            clip = super().__getitem__(index)
            clip.flow = clip.valid = None
            return clip

    with pytest.raises(ValueError, match="3 has no flow to train with"):
        stream(Blind())[3]
