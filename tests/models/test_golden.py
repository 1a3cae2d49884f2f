"""The whole network against the numbers of the official code on real pairs; limits are those of the golden set."""

import copy
import dataclasses
import pathlib

import numpy as np
import pytest
import torch

from daflow_ext.flow import read_flow
from daflow_ext.frames import InputPadder, read_image
from daflow_ext.models import RAFT

PAIRS = [
    "chairs_0000000",
    "middlebury_RubberWhale",
    "middlebury_Dimetrodon",
    "sintel_alley_1_clean_0002",
    "kitti_2015_000000",
]
# Limits on the mean absolute difference, "full float32".
FLOW_LOW = {1: 2e-5, 4: 5e-5, 12: 5e-5, 32: 1e-3}
FLOW_UP = {12: 4e-4, 32: 8e-3}
# RAFT-small does not solve this pair; rounding noise alone moves it further than the limits above.
CHAOTIC = ("small", "kitti_2015_000000")

_ALLEY = "sintel/alley_1"
# EPE at 20 iterations, official code, replicate padding: (small, large).
EPE_20 = {
    ("middlebury/RubberWhale/frame10.png", "middlebury/RubberWhale/frame11.png", "flow10.flo"): (0.320, 0.177),
    ("middlebury/Dimetrodon/frame10.png", "middlebury/Dimetrodon/frame11.png", "flow10.flo"): (0.246, 0.163),
    (f"{_ALLEY}/clean/frame_0001.png", f"{_ALLEY}/clean/frame_0002.png", "../flow/frame_0001.flo"): (0.237, 0.117),
    (f"{_ALLEY}/clean/frame_0002.png", f"{_ALLEY}/clean/frame_0003.png", "../flow/frame_0002.flo"): (0.269, 0.125),
    (f"{_ALLEY}/clean/frame_0003.png", f"{_ALLEY}/clean/frame_0004.png", "../flow/frame_0003.flo"): (0.275, 0.126),
    ("flyingchairs/0000000-img0.ppm", "flyingchairs/0000000-img1.ppm", "0000000-gt.flo"): (2.712, 1.302),
    ("flyingchairs/0000001-img0.ppm", "flyingchairs/0000001-img1.ppm", "0000001-gt.flo"): (0.970, 0.737),
    ("kitti/2015_000010/img_10.png", "kitti/2015_000010/img_11.png", "flow_occ.png"): (1.826, 0.338),
}


@dataclasses.dataclass
class Pair:
    """A golden file, its padded images and its truth."""

    golden: np.lib.npyio.NpzFile
    images: list[torch.Tensor]
    padder: InputPadder
    truth: tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass
class Trace:
    """What happened: feature maps, hidden state and context; then lists that start with step 1."""

    features: tuple[torch.Tensor, ...]
    flow_low: list[torch.Tensor]
    corr: list[torch.Tensor]
    net: list[torch.Tensor]


def read_pair(shared: pathlib.Path, name: str, device: torch.device | str = "cpu") -> Pair:
    golden = np.load(shared / "golden" / "raft" / f"{name}.npz")
    paths = [shared / "data" / str(golden[key]) for key in ("frame1", "frame2", "truth")]
    frames = [read_image(path)[None].to(device) for path in paths[:2]]
    padder = InputPadder(frames[0].shape, mode=str(golden["pad_mode"]))
    return Pair(golden, padder.pad(*frames), padder, read_flow(paths[2], return_valid=True))


@torch.no_grad()
def trace(model: RAFT, images: list[torch.Tensor], iters: int) -> Trace:
    corr, net = [], []

    def remember(module, inputs, outputs):
        corr.append(inputs[2])
        net.append(outputs[0])

    features = model.features(*model.frames(*images))
    handle = model.update_block.register_forward_hook(remember)
    model.features = lambda image1, image2: features  # computed once
    try:
        flow_low = model(*images, iters=iters, upsample=False)
    finally:
        handle.remove()
        del model.features
    return Trace(features, flow_low, corr, net)


def epe(flow: torch.Tensor, truth: tuple[torch.Tensor, torch.Tensor]) -> float:
    expected, valid = truth
    return (flow.cpu().double() - expected.double()).square().sum(0).sqrt()[valid].mean().item()


def mean_difference(actual: torch.Tensor, expected: np.ndarray) -> float:
    return np.abs(actual.cpu().numpy() - expected).mean(dtype=np.float64)


@torch.no_grad()
def check_stages(model: RAFT, size: str, golden: np.lib.npyio.NpzFile, record: Trace) -> None:
    """Channel means and spreads of every stage: names the first one that deviates."""
    stages = dict(zip(("fmap1", "fmap2", "net_it00", "inp"), record.features, strict=True))
    for step in (1, 12):
        stages |= {f"corr_it{step:02}": record.corr[step - 1], f"net_it{step:02}": record.net[step - 1]}
        if size == "large":
            stages[f"mask_it{step:02}"] = model.update_block.mask(record.net[step - 1])
    for stage, values in stages.items():
        values = values[0].double().flatten(1).cpu()
        actual = torch.stack([values.mean(1), values.std(1, correction=0)]).numpy()
        np.testing.assert_allclose(actual, golden[f"{size}_chan_{stage}"], rtol=1e-5, atol=1e-5, err_msg=stage)


def check_run(model: RAFT, size: str, name: str, shared: pathlib.Path, iters: int) -> None:
    """flow_low after 1, 4, 12, 32 steps; flow_up, its mean and spread, and EPE after 12, 32; every stage."""
    pair = read_pair(shared, name, model.fnet.conv1.weight.device)
    record, golden, chaotic = trace(model, pair.images, iters), pair.golden, (size, name) == CHAOTIC
    if not chaotic:
        check_stages(model, size, golden, record)
    for step in (step for step in FLOW_LOW if step <= iters and not (chaotic and step == 32)):
        limit = 1e-3 if chaotic and step == 12 else FLOW_LOW[step]
        difference = mean_difference(record.flow_low[step - 1][0], golden[f"{size}_flow_low_it{step:02}"])
        assert difference <= limit, f"flow_low, step {step}"
    for step in (step for step in FLOW_UP if step <= iters):
        with torch.no_grad():
            flow = pair.padder.unpad(model.flow(record.flow_low[step - 1], record.net[step - 1]))[0]
        assert abs(epe(flow, pair.truth) - golden[f"{size}_epe_it{step}"]) <= (0.2 if chaotic else 1e-3), step
        if chaotic and step == 32:
            continue
        limit = 8e-3 if chaotic else FLOW_UP[step]
        assert mean_difference(flow[:, ::4, ::4], golden[f"{size}_flow_up_s4_it{step}"]) <= limit, f"flow_up, {step}"
        if not chaotic:
            values = flow.double().flatten(1)
            assert mean_difference(values.mean(1), golden[f"{size}_flow_up_mean_it{step}"]) <= 1e-3, step
            assert mean_difference(values.std(1, correction=0), golden[f"{size}_flow_up_std_it{step}"]) <= 1e-3, step


@pytest.mark.parametrize("name", PAIRS)
def test_small(official, shared, name):
    check_run(official("small", "auto"), "small", name, shared, 32)


@pytest.mark.parametrize("name", PAIRS[1:])  # the first is the next test's
def test_large(official, shared, name):
    check_run(official("large", "auto"), "large", name, shared, 12)


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_backend(official, shared, size, backend):
    check_run(official(size, backend), size, "chairs_0000000", shared, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_every_pair_to_the_end(official, shared, size, name, backend):
    check_run(official(size, backend), size, name, shared, 32)


@pytest.mark.parametrize("size", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_float64(official, shared, size):
    """Without rounding noise the network is the official one, far below any float32 limit."""
    model = copy.deepcopy(official(size, "reference")).double()
    pair = read_pair(shared, "chairs_0000000")
    flow_low = trace(model, pair.images, 12).flow_low[-1]
    assert flow_low.dtype == torch.float64
    assert mean_difference(flow_low[0], pair.golden[f"{size}_flow_low_it12_fp64"]) <= 2e-7


@pytest.mark.slow
@pytest.mark.parametrize("names", EPE_20, ids=lambda names: names[0])
@pytest.mark.parametrize("size", ["small", "large"])
def test_epe_after_20_iterations(official, shared, size, names):
    first, second, truth = (shared / "data" / path for path in (*names[:2], pathlib.Path(names[0]).parent / names[2]))
    frames = [read_image(path)[None] for path in (first, second)]
    padder = InputPadder(frames[0].shape, mode="kitti" if "kitti" in names[0] else "sintel")
    with torch.no_grad():
        _, flow = official(size, "auto")(*padder.pad(*frames), iters=20, test_mode=True)
    error = epe(padder.unpad(flow)[0], read_flow(truth, return_valid=True))
    assert abs(error - EPE_20[names][size == "large"]) <= 1.5e-3  # 0.001 and the rounding of the table


@pytest.mark.parametrize("size", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_epe_of_rendered_motion(official, shared, size):
    """airsim, whose flow is derived from depth and pose."""
    folder = shared / "data" / "airsim"
    frames = [read_image(folder / f"{name}_rgb.png")[None] for name in ("000000_887749", "000010_889036")]
    derived = np.load(folder / "derived_flow_000000_000010.npz")
    truth = torch.from_numpy(derived["flow"]).permute(2, 0, 1), torch.from_numpy(derived["visible"])
    with torch.no_grad():
        _, flow = official(size, "auto")(*frames, iters=20, test_mode=True)
    assert abs(epe(flow[0], truth) - {"small": 0.176, "large": 0.131}[size]) <= 1.5e-3
