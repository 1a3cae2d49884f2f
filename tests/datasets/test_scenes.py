"""Rendered scenes: the flow is exact, occlusion follows the layers, a seed gives the same bits everywhere."""

import hashlib
import importlib.util
import pickle

import numpy as np
import pytest
import torch

from daflow_ext.datasets import Scenes, collate, worker_init
from daflow_ext.datasets.textures import PHOTOS, SPLITS, load_textures, renderer
from daflow_ext.frames import write_image

SIZE = (96, 112)


def scenes(length=24, **options):
    return Scenes(length, **{"size": SIZE, "max_displacement": 30.0, **options})


def targets(flow):
    """Where the pixels of a frame are in the other one: x, y, and the top left one of the four pixels around."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x + flow[..., 0], y + flow[..., 1]
    ix = np.clip(np.floor(x), 0, width - 2).astype(int)
    iy = np.clip(np.floor(y), 0, height - 2).astype(int)
    return x, y, ix, iy


def cubic(t):
    """Weights of the points -1, 0, 1, 2 for the cubic through them."""
    return [
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    ]


def read_at(image, layers, flow, own):
    """The image [H, W, C] at the ends of the flow, and where all 16 pixels around are of the layer `own`."""
    height, width = own.shape
    x, y, ix, iy = targets(flow)
    inside = (ix >= 1) & (iy >= 1) & (ix < width - 2) & (iy < height - 2)
    ix, iy = np.clip(ix, 1, width - 3), np.clip(iy, 1, height - 3)
    wx, wy = cubic(x - ix), cubic(y - iy)
    value, same = np.zeros(image.shape), inside
    for j in range(4):
        for i in range(4):
            at = iy + j - 1, ix + i - 1
            value += (wy[j] * wx[i])[..., None] * image[at]
            same = same & (layers[at] == own)
    return value, same


def pairs(scene):
    """(from, to, flow, flow back, occluded) of all pairs in both directions."""
    for k in range(len(scene.flow)):
        yield k, k + 1, scene.flow[k], scene.backward[k], scene.occluded[k]
        yield k + 1, k, scene.backward[k], scene.flow[k], scene.occluded_backward[k]


# -- exactness --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"shake": 1.0, "frames": 5}, {"max_displacement": 100.0, "size": (128, 128)}])
def test_flow_joins_equal_surface_points(options):
    """An analytic picture painted on the surfaces is the same at both ends of the flow, far below a pixel."""
    data, compared = scenes(12, **options), 0
    for index in range(len(data)):
        scene = data.scene(index)
        for k, to, flow, _, occluded in pairs(scene):
            u, same = read_at(scene.reference[to], scene.layers[to], flow, scene.layers[k])
            same &= ~occluded
            assert np.abs(u - scene.reference[k])[same].max(initial=0) < 1e-3
            painted = [np.sin(0.5 * a[..., 0]) * np.cos(0.7 * a[..., 1]) for a in (u, scene.reference[k])]
            assert np.abs(painted[0] - painted[1])[same].max(initial=0) < 1e-3
            compared += same.sum()
    assert compared > 0.5 * len(data) * 2 * len(scene.flow) * scene.layers[0].size


def test_round_trip_returns():
    data = scenes(shake=0.5)
    for index in range(12):
        scene = data.scene(index)
        for k, to, flow, back, occluded in pairs(scene):
            found, same = read_at(back, scene.layers[to], flow, scene.layers[k])
            same &= ~occluded
            assert np.abs(flow + found)[same].max(initial=0) < 1e-2


def smooth_textures():
    y, x = np.mgrid[:256, :256] / 256
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in ((3, 4, 0), (5, -2, 1), (-2, 6, 2))]
    return renderer().SceneTextures([np.rint(127.5 + 80 * np.stack(waves, -1)).astype(np.uint8)], [1.0])


def offset_of(frames, k, to, flow, own, occluded, layers):
    """The mean displacement, by least squares over the grey values, that is left between frame `to` warped and `k`."""
    warped, same = read_at(frames[to].astype(float), layers[to], flow, own)
    slopes = np.stack(np.gradient(warped, axis=(1, 0)), -1)
    same = same & ~occluded
    same[[0, -1]] = same[:, [0, -1]] = False
    same[1:-1, 1:-1] &= same[1:-1, :-2] & same[1:-1, 2:] & same[:-2, 1:-1] & same[2:, 1:-1]
    rest = (frames[k] - warped)[same]
    left = np.linalg.lstsq(slopes[same].reshape(-1, 2), rest.reshape(-1), rcond=None)[0]
    return left, np.abs(rest)


def test_frames_move_as_the_flow_says():
    """On the rendered grey values themselves, with a smooth texture; a flow off by 1/20 pixel is noticed."""
    data = scenes(8, lighting=0.0)
    data._bank = smooth_textures()
    for index in range(len(data)):
        scene = data.scene(index)
        for k, to, flow, _, occluded in pairs(scene):
            arguments = scene.layers[k], occluded, scene.layers
            left, rest = offset_of(scene.frames, k, to, flow, *arguments)
            assert np.abs(left).max() < 0.01
            assert rest.mean() < 1.0
            assert np.quantile(rest, 0.99) < 4
            shifted, _ = offset_of(scene.frames, k, to, flow + np.float32([0.05, 0]), *arguments)
            assert 0.03 < np.linalg.norm(shifted - left) < 0.07


def test_edges_are_covered_in_proportion():
    """One plain layer on a plain background: the layer owns the pixels of which it covers at least half."""
    data, mixed = scenes(30, layers=(1, 1), lighting=0.0), []
    data._bank = renderer().SceneTextures([np.full((8, 8, 3), 100, np.uint8)], [1.0])
    for index in range(len(data)):
        scene = data.scene(index)
        frame, own = scene.frames[0].astype(float), scene.layers[0]
        if not (own == 1).any():
            continue
        behind = np.median(frame[own == 0], axis=0)
        contrast = frame - behind
        channel = np.abs(contrast).max((0, 1)).argmax()
        contrast = contrast[..., channel]
        full = contrast.flat[np.abs(contrast).argmax()]
        if abs(full) > 30 and (contrast == full).sum() > 50:
            share, slack = contrast / full, 1.01 / abs(full)
            assert (share > -slack).all()
            assert (share[own == 1] > 0.5 - slack).all()
            assert (share[own == 0] < 0.5 + slack).all()
            mixed.append(share[(share > 0.1) & (share < 0.9)])
    assert np.histogram(np.concatenate(mixed), 8, (0.1, 0.9))[0].min() > 20, "edges take all shares"


# -- occlusion and depth ----------------------------------------------------------------------------------------------
def test_occlusion_follows_depth_and_frame():
    hidden = seen = outside = 0
    data = scenes(shake=0.5, layers=(4, 8))
    for index in range(16):
        scene = data.scene(index)
        for k, to, flow, _, occluded in pairs(scene):
            x, y, ix, iy = targets(flow)
            inside = (x >= 0) & (y >= 0) & (x <= SIZE[1] - 1) & (y <= SIZE[0] - 1)
            assert occluded[~inside].all()
            own, around = scene.layers[k], [scene.layers[to][iy + j, ix + i] for j in (0, 1) for i in (0, 1)]
            nearer = np.sum([layer > own for layer in around], axis=0)
            assert not occluded[inside & (nearer == 0)].any(), "nothing lies in front"
            assert occluded[inside & (nearer == 4)].all()
            assert not np.any(np.all([layer < own for layer in around], axis=0) & inside & (own > 0) & occluded)
            hidden, seen = hidden + (nearer == 4)[inside].sum(), seen + (nearer == 0)[inside].sum()
            outside += (~inside).sum()
    assert min(hidden, seen, outside) > 1000


def test_what_is_seen_again_is_not_occluded():
    """Where the other frame shows the very surface point, the mask must say so; where it shows another one, too."""
    data = scenes(layers=(4, 8))
    for index in range(16):
        scene = data.scene(index)
        for k, to, flow, _, occluded in pairs(scene):
            u, same = read_at(scene.reference[to], scene.layers[to], flow, scene.layers[k])
            assert not occluded[same].any()
            assert (np.abs(u - scene.reference[k])[same] < 1e-3).all()
            x, y, _, _ = targets(flow)
            at = np.clip(np.rint(y), 0, SIZE[0] - 1).astype(int), np.clip(np.rint(x), 0, SIZE[1] - 1).astype(int)
            far = np.linalg.norm(scene.reference[to][at] - scene.reference[k], axis=-1) > 3
            shown = (scene.layers[to][at] == scene.layers[k]) & ~far & ~occluded
            # the rest are seen pixels at an outline, whose nearest pixel belongs to another layer
            assert (~shown & ~occluded).mean() < 0.02


# -- distribution -----------------------------------------------------------------------------------------------------
def test_displacements_are_log_uniform_and_bounded():
    data = scenes(300, size=(64, 64), layers=(0, 0), min_displacement=1.0, max_displacement=64.0, shake=0.0)
    flow = data.render(range(300))["flow"]
    largest = np.linalg.norm(flow, axis=-1).reshape(300, -1).max(1)
    assert largest.max() <= 64
    counts = np.histogram(np.log2(largest), 6, (0, np.log2(0.95 * 64)))[0]
    assert counts.min() >= 30, counts  # 50 each, were it uniform
    assert counts.max() <= 75, counts


@pytest.mark.parametrize(("limit", "frames"), [(0.6, 2), (8.0, 3), (100.0, 3), (40.0, 8)])
def test_no_pixel_moves_further_than_allowed(limit, frames):
    rendered = scenes(40, size=(64, 80), frames=frames, max_displacement=limit, shake=0.7).render(range(40))
    for name in ("flow", "backward"):
        assert np.linalg.norm(rendered[name], axis=-1).max() <= limit


def test_velocity_is_nearly_constant():
    scene = Scenes(1, size=(128, 128), frames=3, layers=(0, 0), max_displacement=20.0, min_displacement=19.0, shake=0.0)
    flow = scene.scene(0).flow
    change = np.linalg.norm(flow[1] - flow[0], axis=-1)
    assert 0 < change.mean() < 0.5 * np.linalg.norm(flow, axis=-1).mean()


def test_layers_are_of_all_kinds():
    layers = scenes(60, size=(128, 128)).render(range(60))["layers"]
    counts = [len(np.unique(clip)) - 1 for clip in layers]
    assert max(counts) >= 7
    assert min(counts) <= 3


# -- same seed, same bits ---------------------------------------------------------------------------------------------
def digest(rendered):
    return {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in rendered.items()}


def test_threads_and_order_change_nothing():
    data = scenes(shake=0.5, motion_blur=0.3)
    whole = data.render(range(12), threads=1)
    assert digest(whole) == digest(data.render(range(12), threads=3))
    for index in (11, 4):
        assert all(
            (array[0] == whole[name][index]).all() for name, array in data.render([index], everything=False).items()
        )


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_change_nothing(start):
    data = scenes(4)
    loader = torch.utils.data.DataLoader(
        data, 2, num_workers=1, collate_fn=collate, worker_init_fn=worker_init, multiprocessing_context=start
    )
    batches = list(loader)
    assert torch.equal(
        torch.cat([batch.frames for batch in batches]), torch.from_numpy(data.render(range(4))["frames"])
    )
    assert torch.equal(batches[1].flow[1], torch.from_numpy(data[3].flow))


def test_bits_are_those_of_every_machine():
    """Frozen: only a deliberate change of the renderer may change them."""
    rendered = Scenes(3, size=(48, 64), shake=1.0, motion_blur=0.5, lighting=1.0).render(range(3))
    assert digest(rendered) == FROZEN


FROZEN = {
    "frames": "5b4869406145eb1a",
    "flow": "328f4866e36976f8",
    "occluded": "5385d094875ba0a5",
    "layers": "eda3105a7b266425",
    "backward": "f959432aff7eec39",
    "occluded_backward": "0e15145face8b8fe",
    "reference": "71e0683c28b356dd",
}


def test_seed_split_and_epoch_make_other_scenes():
    data = scenes()
    frames = data.render(range(4))["frames"]
    others = [scenes(seed=1), scenes(split="validation"), scenes()]
    others[2].set_epoch(1)
    for other in others:
        assert not np.any(np.all((other.render(range(4))["frames"] == frames).reshape(4, -1), axis=1))
    assert others[2].item_name(0) == "training/00000024"
    assert (frames[0] != frames[1]).any()


def test_blur_and_light_leave_the_motion_alone():
    plain, changed = (scenes(6, motion_blur=p, lighting=p).render(range(6)) for p in (0.0, 1.0))
    assert (plain["frames"] != changed["frames"]).mean() > 0.5
    for name in ("flow", "backward", "occluded", "layers"):
        assert (plain[name] == changed[name]).all()
    still = {"max_displacement": 0.05, "min_displacement": 0.01, "shake": 0.0, "lighting": 0.0}
    sharp, blurred = (scenes(6, motion_blur=p, **still).render(range(6))["frames"] for p in (0.0, 1.0))
    assert np.abs(sharp.astype(int) - blurred).max() <= 6, "nothing moves, nothing blurs"


# -- the loader's contract --------------------------------------------------------------------------------------------
def test_a_clip_has_the_fields_of_the_other_data_sets():
    data = scenes(degrade=lambda frames, seed: (frames // 2 + seed % 50).astype(np.uint8), frames=4)
    clip, scene = data[3], data.scene(3)
    assert clip.frames.shape == clip.lq.shape == (4, *SIZE, 3)
    assert (clip.frames == scene.frames).all()
    assert (clip.flow == scene.flow).all()
    assert clip.valid.all()
    assert (clip.masks["occluded"] == scene.occluded[0]).all()
    assert (clip.lq == data[3].lq).all()
    assert clip.meta["name"] == data.item_name(3) == "training/00000003"
    assert (data[-1].frames == data[23].frames).all()


def test_pickled_data_gives_the_same():
    data = scenes()
    assert (pickle.loads(pickle.dumps(data))[2].frames == data[2].frames).all()


# -- textures ---------------------------------------------------------------------------------------------------------
def test_folders_are_split_by_image(tmp_path):
    for number in range(60):
        write_image(tmp_path / f"{number}.png", torch.full((3, 20, 24), number, dtype=torch.uint8))
    found = [{int(image[0, 0, 0]) for image in load_textures([tmp_path], split)[0]} for split in SPLITS]
    assert set.union(*found) == set(range(60))
    assert sum(map(len, found)) == 60
    assert len(found[0]) > 25
    both, weights = load_textures([tmp_path, "procedural"], "training")
    assert sum(weights[: len(found[0])]) == pytest.approx(sum(weights[len(found[0]) :]))
    assert len(both) == len(weights)
    assert scenes(textures=tmp_path)[0].frames.std() < scenes(textures=(tmp_path, "procedural"))[0].frames.std()


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("skimage", "sklearn"))), reason="scikit-image or scikit-learn is missing"
)
def test_photographs_are_split_by_image():
    found = [{image.tobytes() for image in load_textures(["photos"], split)[0]} for split in SPLITS]
    assert [len(one) for one in found] == [14, 3, 4] == [len(PHOTOS[split]) for split in SPLITS]
    assert len(set.union(*found)) == 21
    assert scenes(textures="photos", split="test")[0].frames.std() > 10


def test_patterns_have_fine_structure():
    for kind in ("noise", "cells", "glyphs"):
        image = renderer().scene_pattern(kind, 3, 128).astype(float)
        assert np.abs(np.diff(image, axis=1)).mean() > 1
        assert (image == renderer().scene_pattern(kind, 3, 128)).all()
        assert (image != renderer().scene_pattern(kind, 4, 128)).any()


# -- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 1}, "frames must be at least 2, got 1"),
        ({"size": (8, 64)}, "height and width must be 16 .. 8192, got 8 x 64"),
        ({"max_displacement": 0.1}, "0 < min <= max <= 1000"),
        ({"layers": (3, 2)}, "layers must satisfy"),
        ({"elastic": 1.5}, "elastic must be 0 .. 1, got 1.5"),
        ({"motion_blur": -0.1}, "motion_blur must be 0 .. 1"),
        ({"max_displacement": float("nan")}, "displacements must satisfy"),
        ({"split": "train"}, "split must be one of training, validation, test, got 'train'"),
        ({"textures": "nowhere"}, "'nowhere' is no folder"),
        ({"textures": ()}, "at least one source"),
        ({"length": 0}, "length must be at least 1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**{"length": 4, **options})


def test_bad_textures_and_indices(tmp_path):
    with pytest.raises(ValueError, match="holds 0 images"):
        Scenes(textures=tmp_path)
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        renderer().SceneTextures([np.zeros((8, 8), np.uint8)], [1.0])
    with pytest.raises(IndexError, match="24 clips, item 24"):
        scenes()[24]
    with pytest.raises(ValueError, match="threads must be"):
        scenes().render([0], threads=0)
