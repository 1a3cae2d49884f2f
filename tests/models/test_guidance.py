"""Guidance by flow: nothing to do where frames agree, less flicker where they do not, nothing at scale zero."""

import dataclasses

import pytest
import torch

pytest.importorskip("diffusers", reason="the restoration loop is built on diffusers; pip install diffusers")

from diffusers import AutoencoderTiny

from daflow_ext.features.restoration import LiftedRestoration
from daflow_ext.models.guidance import FlowGuidance, GuidanceSettings


@pytest.fixture
def loop(make_pipeline):
    """The restoration of the toy pipeline: its decoder is a pixel shuffle, linear and exact."""
    return make_pipeline().restoration()


def translated(step=(3, -2), size=(37, 51), count=3):
    """A clip [1, F, 3, H, W] that moves by whole pixels, and its true flows [1, F-1, 2, H, W]."""
    scene = torch.randint(0, 256, (3, size[0] + 20, size[1] + 20)).float()
    frames = [scene[:, 8 - t * step[1] :, 8 - t * step[0] :][:, : size[0], : size[1]] for t in range(count)]
    flow = torch.tensor(step).float()[:, None, None].expand(1, count - 1, 2, *size)
    return torch.stack(frames)[None], flow.contiguous(), -flow


def encoded(loop, frames):
    return loop.encode(loop.padder(frames).pad(frames)[0])


def decoded(loop, latents, frames):
    return loop.padder(frames).unpad(loop.decode_unclamped(latents)) / 255


@pytest.mark.parametrize("step", [(3, -2), (0, 0), (-1, 2)])
def test_a_translated_clip_with_its_true_flow_has_no_loss_and_no_gradient(loop, step):
    frames, forward, backward = translated(step)
    guidance = FlowGuidance(loop, forward, backward)
    images = (frames / 255).requires_grad_()
    loss = guidance.loss(images)
    (gradient,) = torch.autograd.grad(loss.sum(), images)
    assert loss.item() == 0
    assert (gradient == 0).all()
    # what the decoder gives back is the clip up to rounding
    latents = encoded(loop, frames).requires_grad_()
    loss = guidance.loss(decoded(loop, latents, frames))
    (gradient,) = torch.autograd.grad(loss.sum(), latents)
    assert loss.item() < 1e-12
    assert gradient.abs().max() < 1e-9
    # while the flow of another motion has both
    assert FlowGuidance(loop, forward + 1, backward - 1).loss(frames / 255).item() > 1e-2


def test_the_loss_is_the_mean_over_visible_pixels_by_hand(loop):
    frames = torch.rand(1, 3, 3, 32, 32)
    still = torch.zeros(1, 2, 2, 32, 32)
    expected = (frames[:, 1:] - frames[:, :-1]).square().mean()
    assert torch.allclose(FlowGuidance(loop, still, still).loss(frames)[0], expected, rtol=1e-5)
    moved = still.clone()
    moved[:, :, 0] = 2.0
    guidance = FlowGuidance(loop, moved, -moved)
    difference = frames[:, :-1, :, :, :-2] - frames[:, 1:, :, :, 2:]  # two columns leave the picture
    assert torch.allclose(guidance.loss(frames)[0], difference.square().mean(), rtol=1e-5)


def test_hidden_pixels_pull_nothing(loop):
    frames, forward, backward = translated((0, 0))
    forward[..., 10, 10] = 30.0  # there and back does not return
    forward[..., 20, 20] = torch.nan
    frames[:, 1, :, 10, 10] += 50
    guidance = FlowGuidance(loop, forward, backward)
    images = (frames / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(guidance.loss(images).sum(), images)
    assert gradient.isfinite().all()
    assert not guidance.visible[0][:, 0, 10, 10].any()
    assert not guidance.visible[0][:, 0, 20, 20].any()


@pytest.mark.parametrize("scale", [0.1, 1.0, 1.9])
def test_flicker_gets_less(loop, scale):
    frames, forward, backward = translated(size=(48, 64))
    flicker = frames + torch.tensor([-12.0, 15.0, -6.0])[None, :, None, None, None]
    guidance = FlowGuidance(loop, forward, backward, GuidanceSettings(scale))
    latents = encoded(loop, flicker)
    before, after = (guidance.loss(decoded(loop, z, frames)) for z in (latents, guidance(0, latents)))
    assert after.item() < before.item()
    if scale == 1:
        assert after.item() < 0.5 * before.item()
        many = FlowGuidance(loop, forward, backward, GuidanceSettings(scale, iterations=30))
        assert many.loss(decoded(loop, many(0, latents), frames)).item() < 1e-2 * before.item()


def test_the_line_search_takes_the_best_step_of_a_linear_decoder(loop):
    frames, forward, backward = translated(size=(32, 48))
    latents = encoded(loop, frames + 20 * torch.randn_like(frames))

    def loss(scale):
        guidance = FlowGuidance(loop, forward, backward, GuidanceSettings(scale))
        return guidance.loss(decoded(loop, guidance(0, latents), frames)).item()

    assert loss(1.0) < min(loss(0.97), loss(1.03))
    assert loss(2.0) == pytest.approx(loss(0.0), rel=1e-3)  # a parabola about its lowest point


def test_every_clip_of_a_batch_is_guided_as_alone(loop):
    clips = [translated((1, 0)), translated((2, -2))]
    frames, forward, backward = (torch.cat(parts) for parts in zip(*clips, strict=True))
    frames[1] += 40 * torch.randn_like(frames[1])
    latents = encoded(loop, frames)
    together = FlowGuidance(loop, forward, backward)(0, latents)
    for index in range(2):
        one = slice(index, index + 1)
        alone = FlowGuidance(loop, forward[one], backward[one])(0, latents[one])
        assert torch.allclose(together[one], alone, atol=1e-5)


def test_an_anchor_stays_and_pulls_the_others(loop):
    frames, forward, backward = translated((0, 0), size=(32, 32))
    anchor = frames[:, 0] * 0 + 100.0
    settings = GuidanceSettings(iterations=50)
    latents = encoded(loop, frames)
    guided = FlowGuidance(loop, forward, backward, settings, anchor=anchor)(0, latents)
    assert torch.equal(guided[:, 0], latents[:, 0])
    assert (decoded(loop, guided, frames)[:, 1:] * 255 - 100).abs().max() < 2


def test_fewer_pairs_leave_the_frames_behind_them(loop):
    frames, forward, backward = translated((0, 0), size=(32, 32))
    latents = encoded(loop, frames + 20 * torch.randn_like(frames))
    guided = FlowGuidance(loop, forward[:, :1], backward[:, :1])(0, latents)
    assert torch.equal(guided[:, 2], latents[:, 2])
    assert not torch.equal(guided[:, 1], latents[:, 1])


def test_scale_zero_and_steps_outside_the_range_change_no_bit(loop):
    frames, forward, backward = translated((2, 1))
    noise = torch.randn(1, 3, 192, 6, 8)
    options = {"num_inference_steps": 3, "noise": noise, "color_fix": "none"}
    plain = loop.restore(frames, **options)

    def guided(settings):
        return loop.restore(frames, guide=FlowGuidance(loop, forward, backward, settings), **options)

    assert torch.equal(guided(GuidanceSettings(scale=0)), plain)
    assert torch.equal(guided(GuidanceSettings(first_step=3)), plain)
    assert not torch.equal(guided(GuidanceSettings(first_step=2)), plain)
    assert not torch.equal(guided(GuidanceSettings(last_step=0)), plain)
    # a clip that agrees with its flow has no gradient: the very same tensor goes on
    still = FlowGuidance(loop, forward * 0, backward * 0)
    grey = torch.full((1, 3, 192, 6, 8), 0.5)
    assert still(0, grey) is grey


def test_guidance_lowers_the_warping_loss_of_the_restored_clip(loop):
    frames, forward, backward = translated((2, 1), size=(48, 48))
    options = {"num_inference_steps": 4, "generator": None, "noise": torch.randn(1, 3, 192, 6, 6)}
    judge = FlowGuidance(loop, forward, backward)
    losses = []
    for scale in (0.0, 0.5, 1.0):
        guide = FlowGuidance(loop, forward, backward, GuidanceSettings(scale))
        steps = list(loop.steps(frames, guide=guide, **options))
        assert torch.allclose(steps[-1].denoised, steps[-1].latents, atol=1e-4)
        losses.append(judge.loss(decoded(loop, steps[-1].latents, frames)).item())
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.6 * losses[0]


def test_half_precision_is_guided_and_stays_half(make_pipeline):
    half = make_pipeline().to(torch.bfloat16).restoration()
    frames, forward, backward = translated((2, 1), size=(48, 48))
    judge = FlowGuidance(half, forward, backward)
    losses = []
    for scale in (0.0, 1.0):
        guide = FlowGuidance(half, forward, backward, GuidanceSettings(scale))
        steps = list(half.steps(frames, guide=guide, num_inference_steps=3, noise=torch.ones(1, 3, 192, 6, 6)))
        assert {step.latents.dtype for step in steps} == {torch.bfloat16}
        losses.append(judge.loss(decoded(half, steps[-1].latents, frames)).item())
    assert losses[1] < 0.7 * losses[0]


def test_a_decoder_that_is_not_linear_is_guided_too(loop):
    torch.manual_seed(1)
    vae = AutoencoderTiny(latent_channels=16, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    tiny = LiftedRestoration.load("tiny")
    curved = LiftedRestoration(vae.eval(), tiny.transformer, tiny.scheduler, tiny.prompt)
    forward = torch.zeros(1, 2, 2, 32, 32)
    latents = torch.randn(1, 3, 16, 4, 4)
    guidance = FlowGuidance(curved, forward, forward, GuidanceSettings(0.5))
    before, after = (guidance.loss(curved.decode_unclamped(z) / 255).item() for z in (latents, guidance(0, latents)))
    assert after < before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "scale must be a number >= 0, got -1.0"),
        ({"scale": float("nan")}, "scale must be a number >= 0, got nan"),
        ({"first_step": 4, "last_step": 2}, r"a range from 0 on, got 4\.\.2"),
        ({"iterations": 0}, "at least 1 iteration, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GuidanceSettings(**settings)


def test_flows_that_do_not_fit_are_refused(loop):
    flow = torch.zeros(1, 2, 2, 32, 32)
    with pytest.raises(ValueError, match=r"both flows must be \[B, P, 2, H, W\]"):
        FlowGuidance(loop, flow, flow[:, :1])
    assert dataclasses.asdict(GuidanceSettings())["scale"] == 1.0
