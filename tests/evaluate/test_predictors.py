"""RAFT as a function from a clip to a flow, and the golden errors of real pairs."""

import pathlib

import numpy as np
import pytest
import torch

from daflow_ext import datasets
from daflow_ext.evaluate import DAFlowPredictor, RaftPredictor, ZeroPredictor, score_clip
from daflow_ext.flow.metrics import Tally
from daflow_ext.frames import InputPadder
from daflow_ext.models import RAFT


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return RAFT(small=True).eval()


@pytest.fixture(scope="module")
def frames():
    scene = np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8)
    return np.stack([scene, np.roll(scene, 2, 1), np.roll(scene, 4, 1)])


def test_the_pair_is_taken_from_the_clip_in_either_direction(model, frames):
    predict = RaftPredictor("r", model, "hash", iters=2)
    assert predict.identity == "hash iters=2"
    forward = predict(frames, 1)
    assert forward.shape == (2, 70, 110)
    assert forward.dtype == torch.float32
    assert torch.equal(forward, predict(frames[1:], 0))
    assert torch.equal(predict(frames, 1, backward=True), predict(frames[::-1], 0))


def test_frames_are_padded_as_the_data_set_says(model, frames):
    two = torch.from_numpy(frames[:2]).permute(0, 3, 1, 2)
    at_the_bottom = torch.cat([two, two[..., -1:, :].expand(-1, -1, 2, -1)], -2)
    both = torch.cat([at_the_bottom[..., :1], at_the_bottom, at_the_bottom[..., -1:]], -1)
    with torch.inference_mode():
        expected = model(both[:1], both[1:], iters=2, test_mode=True)[1][0, :, :70, 1:111]
    predict = RaftPredictor("r", model, "", iters=2)
    torch.testing.assert_close(predict(frames, 0, pad_mode="kitti"), expected, rtol=0, atol=1e-5)
    assert not torch.equal(predict(frames, 0), predict(frames, 0, pad_mode="kitti"))


def test_scale_runs_on_resized_frames_and_keeps_the_units(frames):
    class Shift:
        """A stand-in that moves everything by (3, 5) of its own pixels."""

        def eval(self):
            return self

        def parameters(self):
            yield torch.zeros(1)

        def __call__(self, image1, image2, iters, test_mode):
            self.size = tuple(image1.shape[-2:])
            flow = torch.tensor([3.0, 5.0])[None, :, None, None].expand(1, 2, *self.size)
            return None, flow

    model = Shift()
    flow = RaftPredictor("r", model, "", scale=-1)(np.zeros((2, 200, 301, 3), np.uint8), 0)
    assert model.size == (104, 152)  # 100 x 150, padded to multiples of 8
    assert flow.shape == (2, 200, 301)
    torch.testing.assert_close(flow[0], torch.full((200, 301), 3 * 301 / 150))
    torch.testing.assert_close(flow[1], torch.full((200, 301), 10.0))


def test_daflow_sees_the_pair_and_the_frame_after_it(make_pipeline, frames):
    pipe = make_pipeline()
    predict = DAFlowPredictor("d", pipe, "hash", iters=2, seed=4)
    assert predict.clip == 3
    four = np.concatenate([frames, frames[:1]])
    clip = torch.from_numpy(four).permute(0, 3, 1, 2)
    padder = InputPadder(clip.shape, multiple=16)

    def flows(*indices, **options):
        chunk = padder.pad(clip[list(indices)])[0]
        return padder.unpad(pipe(chunk, iters=2, generator=torch.Generator().manual_seed(4), **options).flows[0])

    assert torch.equal(predict(four, 0), flows(0, 1, 2)[0])
    assert torch.equal(predict(four, 1), flows(1, 2, 3)[0])
    assert torch.equal(predict(four, 2), flows(1, 2, 3)[1])  # the last pair: the frame before it
    assert torch.equal(predict(four[:2], 0), flows(0, 1)[0])
    backward = predict(four, 0, backward=True)
    chunk = padder.pad(clip[:3])[0]
    both = pipe(chunk, iters=2, generator=torch.Generator().manual_seed(4), bidirectional=True)
    assert torch.equal(backward, padder.unpad(both.backward_flows[0, 0]))
    assert not torch.equal(predict(four, 0, pad_mode="kitti"), predict(four, 0))
    assert predict(four, 0).dtype == torch.float32


def test_what_changes_results_changes_the_identity(make_pipeline):
    pipe = make_pipeline()
    settings = ({}, {"iters": 3}, {"seed": 1}, {"feature_steps": "all"}, {"num_inference_steps": 4}, {"scale": -1})
    identities = {DAFlowPredictor("d", pipe, "hash", **one).identity for one in settings}
    assert len(identities) == len(settings)


def test_zero():
    assert not ZeroPredictor()(np.ones((2, 4, 6, 3), np.uint8), 0).any()


LISTED = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "real_pairs.csv"
# official code, 20 iterations, fp32: (raft-small, raft-sintel)
GOLDEN = {
    "RubberWhale": (0.320, 0.177),
    "Dimetrodon": (0.246, 0.163),
    "alley_1/clean/1": (0.237, 0.117),
    "alley_1/clean/2": (0.269, 0.125),
    "alley_1/clean/3": (0.275, 0.126),
    "chairs/0": (2.712, 1.302),
    "chairs/1": (0.970, 0.737),
    "kitti/000010": (1.826, 0.338),
    "airsim": (0.176, 0.131),
}
QUICK = ("chairs/1", "airsim")


def check_golden(shared, weights, name):
    dataset = datasets.Pairs(shared / "data", pairs=LISTED)
    index = [dataset.item_name(one) for one in range(len(dataset))].index(name)
    predict = RaftPredictor(weights, RAFT.from_pretrained(shared / "weights" / f"{weights}.pth"), "", iters=20)
    scores = score_clip(dataset[index], predict, dataset.protocol)
    golden = GOLDEN[name][weights == "raft-sintel"]
    # half a unit of the last printed digit, and the rounding noise that the goldens allow
    assert Tally.from_list(scores["strata"]["all"]).mean()["epe"] == pytest.approx(golden, abs=0.0005 + 0.001)


@pytest.mark.parametrize("name", QUICK)
def test_golden_errors(shared, name):
    check_golden(shared, "raft-small", name)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["raft-small", "raft-sintel"])
@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden_errors_of_all_pairs(shared, weights, name):
    check_golden(shared, weights, name)
