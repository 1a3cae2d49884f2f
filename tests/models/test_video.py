"""Flow along a video: the same as on the whole clip, entered anywhere, in constant memory."""

import itertools
import subprocess
import sys

import pytest
import torch

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext.flow import forward_backward_consistency
from daflow_ext.models.chunks import carried


@pytest.fixture(scope="module")
def pipe(make_pipeline):
    return make_pipeline()


@pytest.fixture
def frames():
    return (torch.rand(6, 3, 40, 50) * 255).byte()


def seeded():
    return torch.Generator().manual_seed(0)


def walk(pipe, frames, **options):
    return list(pipe.video(iter(frames), iters=2, generator=seeded(), **options))


@pytest.mark.parametrize("count", [2, 5, 6])
def test_the_walk_gives_the_flow_of_the_call(pipe, frames, count):
    """Bit for bit, each pair once and in order."""
    output = pipe(frames[:count], iters=2, generator=seeded(), bidirectional=True)
    pairs = walk(pipe, frames[:count], bidirectional=True)
    assert [pair.index for pair in pairs] == list(range(count - 1))
    for index, pair in enumerate(pairs):
        assert torch.equal(pair.forward, output.flows[0, index])
        assert torch.equal(pair.backward, output.backward_flows[0, index])
        assert torch.equal(pair.occluded, output.occlusion[0, index])
        assert torch.equal(pair.confidence, output.confidence[0, index])
        assert torch.equal(pair.image1, frames[index])
        assert torch.equal(pair.image2, frames[index + 1])
        assert torch.equal(pair.occluded, forward_backward_consistency(pair.forward, pair.backward))


def test_every_frame_is_encoded_once_and_every_chunk_evaluated_once(pipe, frames, monkeypatch):
    encoded, evaluated = [], []
    encode, forward = pipe.vae.encode, pipe.transformer.forward
    monkeypatch.setattr(pipe.vae, "encode", lambda x: (encoded.append(len(x)), encode(x))[1])
    monkeypatch.setattr(pipe.transformer, "forward", lambda *a, **o: (evaluated.append(1), forward(*a, **o))[1])
    walk(pipe, frames, bidirectional=True, warm_start=True)
    assert encoded == [1] * 6
    assert len(evaluated) == 3


@pytest.mark.parametrize("warm_start", [False, True])
def test_entering_in_the_middle_goes_on_as_if_never_left(pipe, frames, warm_start):
    options = {"warm_start": warm_start, "bidirectional": True}
    whole = walk(pipe, frames, **options)
    rest = walk(pipe, frames, start=2, warm=whole[1].warm, **options)
    assert [pair.index for pair in rest] == [2, 3, 4]
    for pair, expected in zip(rest, whole[2:], strict=True):
        assert torch.equal(pair.forward, expected.forward)
        assert torch.equal(pair.backward, expected.backward)
    with pytest.raises(ValueError, match="start must be a multiple of 2, where a chunk begins, got 3"):
        walk(pipe, frames, start=3)
    with pytest.raises(ValueError, match="start must be a multiple of 2, where a chunk begins, got -2"):
        walk(pipe, frames, start=-2)


def test_warm_start_begins_at_the_carried_flow(pipe, frames, monkeypatch):
    starts, forward = [], pipe.flow.forward

    def watched(*arguments, flow_init=None, **options):
        starts.append(flow_init)
        return forward(*arguments, flow_init=flow_init, **options)

    monkeypatch.setattr(pipe.flow, "forward", watched)
    padded = frames[:, :, :32, :48]  # multiples of 16: nothing is cut off
    pairs = walk(pipe, padded, warm_start=True, bidirectional=True)
    order = [(0, False), (1, False), (0, True), (1, True), (2, False), (3, False), (2, True), (3, True)]
    assert starts[0] is starts[2] is None
    for (index, backward), start in list(zip(order, starts, strict=False))[1:]:
        if index:
            before = pairs[index - 1].backward if backward else pairs[index - 1].forward
            torch.testing.assert_close(start, carried(before[None], backward=backward), rtol=0, atol=1e-6)
    cold = walk(pipe, padded, bidirectional=True)
    assert torch.equal(cold[0].forward, pairs[0].forward)
    assert not torch.equal(cold[1].forward, pairs[1].forward)
    assert cold[1].warm is None


def test_only_a_chunk_is_read_ahead(pipe):
    read = []

    def endless():
        for index in itertools.count():
            read.append(index)
            yield (torch.rand(3, 32, 32) * 255).byte()

    pairs = pipe.video(endless(), iters=1)
    for index in range(5):
        assert next(pairs).index == index
        assert len(read) == 3 + index // 2 * 2


def test_a_bad_frame_in_the_middle(pipe, frames):
    def broken(bad):
        yield from frames[:4]
        yield bad

    for bad, message in (
        (frames[0, :, 1:], "frame 4 is 50x39 pixels but the first is 50x40"),
        (frames[0].float() * torch.nan, "frame 4 holds NaN"),
        (frames[0, :1], r"frame 4 must be RGB \[3, H, W\], got \[1, 40, 50\]"),
    ):
        pairs = pipe.video(broken(bad), iters=1)
        assert [next(pairs).index, next(pairs).index] == [0, 1]
        with pytest.raises(ValueError, match=message):
            next(pairs)
    for count in (0, 1):
        with pytest.raises(ValueError, match=rf"the video holds {count} frame\(s\), optical flow needs at least two"):
            walk(pipe, frames[:count])


def test_options_are_refused_before_a_frame_is_read(pipe):
    def never():
        raise AssertionError
        yield

    with pytest.raises(ValueError, match="feature_steps must be"):
        pipe.video(never(), feature_steps="some")


MEMORY_OF_A_LONG_CLIP = """
import sys, torch
from daflow_ext import DAFlowPipeline

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))

torch.set_num_threads(1)
pipe = DAFlowPipeline.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(0)
frames = ((torch.rand(3, 64, 96, generator=generator) * 255).byte() for _ in range(250))
after = {}
for pair in pipe.video(frames, iters=1, bidirectional=True, warm_start=True):
    after[pair.index + 2] = resident()
print(after[50], after[250])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_250_frames_take_the_memory_of_50(pipeline_folder):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_A_LONG_CLIP, pipeline_folder], capture_output=True, text=True, check=True
    )
    early, late = (int(number) for number in done.stdout.split())
    one_pair = 64 * 96 * (2 * 3 + 2 * 8 + 5)  # two frames, two flows, occlusion and confidence
    assert late - early < 200 * one_pair / 4, (early, late)  # a quarter of what keeping them would take
