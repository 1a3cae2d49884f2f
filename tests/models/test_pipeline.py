"""DA-Flow's pipeline: chunks, feature steps, both directions, files, bad input."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext import (
    DAFlowPipeline,
    InputPadder,
    PixelUnshuffleVAE,
    Prompt,
    backends,
    forward_backward_consistency,
    read_image,
)
from daflow_ext.models import RAFT
from daflow_ext.models.chunks import carried, chosen_steps, on_grid
from daflow_ext.models.tile_memory import choose_tiles


@pytest.fixture(scope="module")
def pipe(make_pipeline):
    return make_pipeline()


@pytest.fixture
def frames():
    """Five frames of 50 x 70: smooth texture that moves by (3, 1) a frame."""
    scene = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 24) * 255, scale_factor=4, mode="bicubic")
    scene = scene.clamp(0, 255).round()[0]
    return torch.stack([scene[:, 4 - i : 54 - i, 12 - 3 * i : 82 - 3 * i] for i in range(5)]).byte()


def seeded():
    return torch.Generator().manual_seed(0)


def flow_of(pipe, frames, **options):
    return pipe(frames, iters=2, generator=seeded(), **options)


class Calls:
    """Counts what the transformer is asked."""

    def __init__(self, pipe, monkeypatch):
        self.frames, self.early, forward = [], [], pipe.transformer.forward

        def counted(*arguments, **options):
            self.frames.append(arguments[0].shape[1])
            self.early.append(options["early_exit"])
            return forward(*arguments, **options)

        monkeypatch.setattr(pipe.transformer, "forward", counted)


# ---- chunks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "chunks"), [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_one_early_exit_per_chunk_serves_both_directions(pipe, frames, monkeypatch, count, chunks):
    calls = Calls(pipe, monkeypatch)
    output = flow_of(pipe, frames[:count], bidirectional=True)
    assert calls.frames == [3] * chunks
    assert calls.early == [True] * chunks
    assert output.flows.shape == output.backward_flows.shape == (1, count - 1, 2, 50, 70)
    assert output.flows.dtype == torch.float32


def test_a_pair_is_what_the_network_makes_of_its_chunk(pipe, frames):
    """Padding, noise, taps and who asks, spelled out for pair (3, 4) of chunk (2, 3, 4) and its way back."""
    output = flow_of(pipe, frames, bidirectional=True)
    padder = InputPadder(frames.shape, multiple=16)
    chunk = padder.pad(frames[2:5])[0]
    latents = (torch.nn.functional.pixel_unshuffle(chunk / 127.5 - 1, 8) * 2)[None]
    noise = torch.randn(1, 3, 192, 8, 10, generator=seeded())
    with torch.no_grad():
        taps = pipe.transformer(
            noise, latents, *pipe.prompt.batch(1, noise), torch.tensor(1000.0), tap_layers=(0, 2), share_text=True
        )
        queries, keys = ({layer: tap[:, 1] for layer, tap in side.items()} for side in (taps.queries, taps.keys))
        queries2, keys2 = ({layer: tap[:, 2] for layer, tap in side.items()} for side in (taps.queries, taps.keys))
        forward = pipe.flow(chunk[None, 1], chunk[None, 2], queries, keys2, iters=2, test_mode=True)[1]
        backward = pipe.flow(chunk[None, 2], chunk[None, 1], queries2, keys, iters=2, test_mode=True)[1]
    torch.testing.assert_close(output.flows[0, 3], padder.unpad(forward)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.backward_flows[0, 3], padder.unpad(backward)[0], rtol=1e-4, atol=1e-4)
    assert (output.flows[0, 3] - output.flows[0, 2]).abs().mean() > 0.01  # the frames do matter


def test_other_chunks_and_a_longer_clip_change_nothing(pipe, frames):
    whole = flow_of(pipe, frames).flows
    assert torch.equal(flow_of(pipe, frames[:3]).flows, whole[:, :2])
    assert torch.equal(flow_of(pipe, frames[2:]).flows, whole[:, 2:])
    swapped = flow_of(pipe, frames[[2, 3, 4, 2, 0, 1, 2]]).flows  # chunks (2, 3, 4), (4, 2, 0), (0, 1, 2)
    assert torch.equal(swapped[:, :2], whole[:, 2:])
    assert torch.equal(swapped[:, 4:], whole[:, :2])
    padded = flow_of(pipe, torch.cat([frames, frames[-1:], frames[-1:]])).flows
    assert torch.equal(padded[:, :4], whole)


def test_a_missing_third_frame_is_the_last_one_repeated(pipe, frames):
    two = flow_of(pipe, frames[:2]).flows
    assert torch.equal(two[:, 0], flow_of(pipe, frames[[0, 1, 1]]).flows[:, 0])
    assert torch.equal(flow_of(pipe, frames[:4]).flows[:, 2], flow_of(pipe, frames[[2, 3, 3]]).flows[:, 0])
    assert not torch.equal(two[:, 0], flow_of(pipe, frames[:3]).flows[:, 0])  # the third frame is seen


def test_batch_items_are_independent(pipe, frames):
    both = flow_of(pipe, torch.stack([frames[:3], frames[2:]])).flows
    for item, clip in zip(both, (frames[:3], frames[2:]), strict=True):
        torch.testing.assert_close(item, flow_of(pipe, clip).flows[0], rtol=1e-4, atol=2e-4)


def test_the_seed_decides_the_noise(pipe, frames):
    first, again = flow_of(pipe, frames).flows, flow_of(pipe, frames).flows
    other = pipe(frames, iters=2, generator=torch.Generator().manual_seed(1)).flows
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_forms_of_frames_agree(pipe, frames):
    flows = flow_of(pipe, frames[:3]).flows
    for form in (frames[None, :3], frames[:3].float(), list(frames[:3])):
        assert torch.equal(flow_of(pipe, form).flows, flows)
    assert torch.equal(flow_of(pipe, frames[:3], return_dict=False)[0], flows)


def test_the_frame_that_chunks_share_is_encoded_once(pipe, frames, monkeypatch):
    encoded, encode = [], pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda x: (encoded.append(len(x)), encode(x))[1])
    flow_of(pipe, frames)
    assert encoded == [1] * 5


def test_tiles_may_be_dark(pipe):
    """Float frames are checked as wholes; the left two thirds of these are black."""
    frames = torch.zeros(2, 3, 128, 384)
    frames[..., 256:] = torch.rand(2, 3, 128, 128) * 255
    assert choose_tiles(pipe, (128, 384), 24_000_000, iters=2).flow <= 256
    assert flow_of(pipe, frames, memory_budget=24_000_000).flows.isfinite().all()


# ---- steps, directions, starts --------------------------------------------------------------------------------------


def test_several_steps_are_averaged(pipe, frames, monkeypatch):
    calls = Calls(pipe, monkeypatch)
    every = flow_of(pipe, frames[:3], num_inference_steps=4, feature_steps="all", output_steps=True)
    assert calls.early == [False] * 4
    assert every.step_flows.shape == (4, 1, 2, 2, 50, 70)
    torch.testing.assert_close(every.flows, every.step_flows.mean(0), rtol=0, atol=1e-5)
    assert (every.step_flows[0] - every.step_flows[3]).abs().mean() > 1e-3
    some = flow_of(pipe, frames[:3], num_inference_steps=4, feature_steps=[2, 0], output_steps=True)
    assert calls.early == [False] * 7  # stops after step 2
    assert torch.equal(some.step_flows, every.step_flows[[0, 2]])
    first = flow_of(pipe, frames[:3], num_inference_steps=4)
    assert calls.early[7:] == [True]
    torch.testing.assert_close(first.flows, every.step_flows[0], rtol=0, atol=1e-5)
    assert first.step_flows is None


def test_occlusion_is_that_of_the_flows(pipe, frames):
    output = flow_of(pipe, frames, bidirectional=True)
    for pair in range(4):
        forward, backward = output.flows[0, pair], output.backward_flows[0, pair]
        assert torch.equal(output.occlusion[0, pair], forward_backward_consistency(forward, backward))
    near = (output.confidence - math.exp(-1)).abs() < 1e-6
    assert torch.equal((output.confidence < math.exp(-1)) | near, output.occlusion | near)
    turned = flow_of(pipe, frames[[2, 1, 0]], bidirectional=True)
    plain = flow_of(pipe, frames[:3], bidirectional=True)
    assert turned.backward_flows.shape == plain.flows.shape
    assert plain.confidence.dtype == torch.float32


def test_flow_init_is_where_refinement_starts(pipe, frames, monkeypatch):
    start = torch.randn(1, 2, 2, 50, 70) * 8
    seen, forward = [], pipe.flow.forward

    def watched(*arguments, flow_init=None, **options):
        seen.append(flow_init)
        return forward(*arguments, flow_init=flow_init, **options)

    monkeypatch.setattr(pipe.flow, "forward", watched)
    flow_of(pipe, frames[:3], flow_init=start)
    (padded,) = InputPadder(start.shape, multiple=16).pad(start)
    for pair in range(2):
        assert torch.equal(seen[pair], on_grid(padded[:, pair]))
    uniform = torch.tensor([16.0, -8.0])[None, :, None, None].expand(1, 2, 32, 32)
    assert torch.equal(on_grid(uniform), uniform[..., :4, :4] / 8)


def test_a_carried_flow_goes_on():
    flow = torch.zeros(1, 2, 64, 64)
    flow[:, 0, 16:32, 16:32] = 8.0  # a block that moves by one cell of the 1/8 grid
    moved = carried(flow)
    assert moved[0, 0, 2:4, 3:5].eq(1).all()
    back = torch.zeros(1, 2, 64, 64)
    back[:, 0, 16:32, 24:40] = -8.0  # the same block, seen from the frame after
    assert carried(back, backward=True)[0, 0, 2:4, 4:6].eq(-1).all()


def test_restored_frames_are_those_of_the_restoration(pipe, frames):
    from daflow_ext.features.restoration import LiftedRestoration

    output = flow_of(pipe, frames, num_inference_steps=2, output_restored=True)
    assert output.restored.shape == (1, 5, 3, 50, 70)
    assert output.restored.min() >= 0
    assert output.restored.max() <= 255
    loop = LiftedRestoration(pipe.vae, pipe.transformer, pipe.scheduler, pipe.prompt)
    noise = torch.randn(1, 3, 192, 8, 10, generator=seeded())
    for first, shown in ((0, slice(0, 3)), (2, slice(1, 3))):  # the shared frame is that of the chunk before
        expected = loop.restore(frames[None, first : first + 3], num_inference_steps=2, noise=noise)
        torch.testing.assert_close(
            output.restored[:, first : first + 3][:, shown], expected[:, shown], rtol=1e-3, atol=1e-2
        )


def test_variants_of_the_ablation_run(make_pipeline, frames):
    plain = flow_of(make_pipeline(), frames[:3]).flows
    for config in (
        {"lift": "none"},
        {"features": "tokens"},
        {"encoders": False},
        {"correlation": "sum"},
        {"upsampling": "bilinear"},
    ):
        flows = flow_of(make_pipeline(**config), frames[:3]).flows
        assert flows.isfinite().all()
        assert not torch.equal(flows, plain)


def test_without_lifting_the_third_frame_is_not_seen(make_pipeline, frames):
    """Per frame, a pair depends on its own two frames alone."""
    single = make_pipeline(lift="none")
    third_replaced = frames[[0, 1, 4]]
    assert torch.equal(flow_of(single, frames[:3]).flows[:, 0], flow_of(single, third_replaced).flows[:, 0])
    lifted = make_pipeline()
    assert not torch.equal(flow_of(lifted, frames[:3]).flows[:, 0], flow_of(lifted, third_replaced).flows[:, 0])


def test_started_from_raft_the_pipeline_is_raft(make_pipeline, frames):
    raft = RAFT(small=True).eval()
    pipe = make_pipeline(raft, correlation="sum")
    padder = InputPadder(frames.shape, multiple=16)
    padded = padder.pad(frames)[0]
    with torch.no_grad():
        expected = padder.unpad(raft(padded[:-1], padded[1:], iters=2, test_mode=True)[1])
    torch.testing.assert_close(flow_of(pipe, frames).flows[0], expected, rtol=1e-4, atol=1e-3)


# ---- backends -------------------------------------------------------------------------------------------------------


def both_backends(pipe, frames, iters):
    flows = []
    for backend in ("reference", "auto"):
        pipe.set_backend(backend)
        flows.append(pipe(frames, iters=iters, generator=seeded(), bidirectional=True))
    return flows


def test_backends_agree(make_pipeline, frames):
    reference, kernels = both_backends(make_pipeline(), frames[:3], 6)
    assert (reference.flows - kernels.flows).norm(dim=2).mean() < 1e-3
    assert (reference.backward_flows - kernels.backward_flows).norm(dim=2).mean() < 1e-3
    with pytest.raises(ValueError, match="backend must be auto or one of"):
        make_pipeline().set_backend("fast")


def test_the_reference_backend_is_that_of_every_op(make_pipeline, frames, monkeypatch):
    """Nothing asks for kernels: not the transformer's attention, the correlation, nor what compares the directions."""
    pipe, asked, resolve = make_pipeline(), set(), backends.resolve

    def watched(op, backend, device):
        asked.add((op, backend))
        return resolve(op, backend, device)

    monkeypatch.setattr(backends, "resolve", watched)
    pipe.set_backend("reference")
    flow_of(pipe, frames[:3], bidirectional=True)
    assert {"st_attention", "corr_lookup", "bilinear_sample"} <= {op for op, _ in asked}
    assert {backend for _, backend in asked} == {"reference"}


def test_backends_agree_on_real_frames(make_pipeline, shared):
    raft = RAFT.from_pretrained(shared / "weights/raft-small.pth")
    folder = shared / "data/middlebury/RubberWhale"
    frames = torch.stack([read_image(folder / f"frame{index}.png") for index in (10, 11)])[:, :, 60:300, 60:380]
    reference, kernels = both_backends(make_pipeline(raft, correlation="sum"), frames, 12)
    assert reference.flows.abs().mean() > 0.5
    assert (reference.flows - kernels.flows).norm(dim=2).mean() < 1e-3


# ---- files ----------------------------------------------------------------------------------------------------------


def test_round_trip(pipe, pipeline_folder, frames):
    loaded = DAFlowPipeline.from_pretrained(pipeline_folder)
    assert not loaded.flow.training
    for name in ("vae", "transformer", "prompt", "flow"):
        saved, found = (getattr(one, name).state_dict() for one in (pipe, loaded))
        assert saved.keys() == found.keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in saved.items())
    torch.testing.assert_close(
        flow_of(loaded, frames[:3]).flows, flow_of(pipe, frames[:3]).flows, rtol=1e-4, atol=1e-4
    )  # not bit for bit: the weights lie elsewhere in memory
    index = json.loads((pipeline_folder / "model_index.json").read_text())
    assert {name for name in index if name[0] != "_"} == {"vae", "transformer", "scheduler", "prompt", "flow"}
    half = DAFlowPipeline.from_pretrained(pipeline_folder, torch_dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    assert half.flow.dtype == torch.float32
    difference = flow_of(half, frames[:3]).flows - flow_of(pipe, frames[:3]).flows
    assert difference.isfinite().all()


@pytest.mark.parametrize("part", ["flow", "transformer", "prompt"])
def test_a_missing_tensor_is_refused(pipeline_folder, tmp_path, part):
    folder = tmp_path / "broken"
    shutil.copytree(pipeline_folder, folder)
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{part} does not fit .*missing keys.*{name}"):
        DAFlowPipeline.from_pretrained(folder)


def test_a_vae_with_a_missing_tensor_is_refused(make_pipeline, tmp_path):
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    make_pipeline(vae=vae).save_pretrained(tmp_path / "pipe")
    DAFlowPipeline.from_pretrained(tmp_path / "pipe")
    (file,) = (tmp_path / "pipe/vae").glob("*.safetensors")
    tensors = load_file(file)
    del tensors["decoder.layers.0.bias"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"vae does not fit AutoencoderTiny: missing keys \(1\): \['decoder"):
        DAFlowPipeline.from_pretrained(tmp_path / "pipe")


def test_no_pipeline_folder(pipeline_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no DA-Flow pipeline: model_index\.json is missing"):
        DAFlowPipeline.from_pretrained(tmp_path)
    shutil.copytree(pipeline_folder, tmp_path / "half")
    shutil.rmtree(tmp_path / "half/flow")
    with pytest.raises(FileNotFoundError, match="half is no DA-Flow pipeline: flow/ is missing"):
        DAFlowPipeline.from_pretrained(tmp_path / "half")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        DAFlowPipeline.from_pretrained(tmp_path / "nowhere")


def test_parts_that_do_not_fit(pipe, make_pipeline):
    parts = {name: part for name, part in pipe.components.items() if name != "flow"}
    with pytest.raises(ValueError, match=r"taps layers \[5\], but the transformer has layers 0..2"):
        DAFlowPipeline(**parts, flow=make_pipeline_flow(pipe, tap_layers=(0, 5)))
    with pytest.raises(ValueError, match="reads tokens of 40 channels, but the transformer is 32 wide"):
        DAFlowPipeline(**parts, flow=make_pipeline_flow(pipe, token_channels=40))
    with pytest.raises(ValueError, match="the VAE has 48 latent channels but the transformer takes 192"):
        DAFlowPipeline(**{**pipe.components, "vae": PixelUnshuffleVAE(4, 48)})
    with pytest.raises(ValueError, match="the prompt's encodings are 12 and 7 wide but the transformer takes 12 and 6"):
        DAFlowPipeline(**{**pipe.components, "prompt": Prompt(2, 12, 7)})


def make_pipeline_flow(pipe, **changes):
    config = {name: value for name, value in pipe.flow.config.items() if name[0] != "_"}
    return type(pipe.flow)(**{**config, **changes})


# ---- bad input ------------------------------------------------------------------------------------------------------


def bad_frames():
    good = (torch.rand(3, 3, 40, 48) * 255).byte()
    floats = good.float()
    broken = floats.clone()
    broken[1, 2, 3, 4] = torch.nan
    return [
        (good[:1], "at least two frames, got 1"),
        ([], "at least two frames, got 0"),
        (good[:, :, :20], "frame 0 is 48x20 pixels, DA-Flow needs at least 32x32"),
        ([good[0], good[1][:, 1:]], "frame 1 is 48x39 pixels but the first is 48x40; all frames must have one size"),
        (broken, "frame 1 holds NaN or infinite pixels"),
        (floats / 255, "maximum is .*, but frames are in .0, 255.; multiply by 255"),
        (good[:, :1], r"frame 0 must be RGB \[3, H, W\], got \[1, 40, 48\]"),
        (good[0], r"frames must be \[B, F, 3, H, W\] or \[F, 3, H, W\], got \[3, 40, 48\]"),
        (good[:0], "frames are empty"),
        (list(good.numpy()), "frame 0 must be a tensor, uint8 or floating in .0, 255., got ndarray"),
        (good.int(), "frame 0 must be a tensor, uint8 or floating in .0, 255., got torch.int32"),
    ]


@pytest.mark.parametrize(("frames", "message"), bad_frames())
def test_bad_frames_are_one_sentence(pipe, frames, message):
    with pytest.raises((ValueError, TypeError), match=message) as refusal:
        pipe(frames)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iters": 0}, "iters must be an integer >= 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer >= 1, got 0"),
        ({"feature_steps": "last"}, "feature_steps must be 'first', 'all' or a list of step indices, got 'last'"),
        ({"feature_steps": [10]}, r"feature_steps must be indices in 0..9 .*, got \[10\]"),
        ({"feature_steps": []}, "feature_steps must be indices"),
        ({"feature_steps": 3}, "feature_steps must be 'first', 'all' or a list of step indices, got 3"),
        ({"flow_init": torch.zeros(1, 1, 2, 40, 48)}, r"flow_init must be floating \[1, 2, 2, 40, 48\]"),
        ({"color_fix": "sepia"}, "color_fix must be one of"),
        ({"memory_budget": 1000}, "memory_budget=1000 is too small for frames of 48x48: [0-9]+ bytes is the least"),
    ],
)
def test_bad_options_are_one_sentence(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe((torch.rand(3, 3, 40, 48) * 255).byte(), **options)


def test_chosen_steps():
    assert chosen_steps("first", 10) == (0,)
    assert chosen_steps("all", 3) == (0, 1, 2)
    assert chosen_steps([4, 1, 4], 5) == (1, 4)
