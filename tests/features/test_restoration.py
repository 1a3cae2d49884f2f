"""The restoration loop: the official sampling run, tiny VAEs, taps, tiling, colours, errors."""

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers", reason="the restoration loop is built on diffusers; pip install diffusers")

from diffusers import AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler

from daflow_ext.features.color_fix import fix_colors
from daflow_ext.features.dit4sr import DiT4SRTransformer2DModel
from daflow_ext.features.restoration import LiftedRestoration, Prompt
from daflow_ext.features.tiling import Tiles

TINY = {
    "sample_size": 16,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 6,
    "pos_embed_max_size": 32,
    "dual_attention_layers": (0,),
}


def _scheduler():
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)


@pytest.fixture
def prompt():
    return Prompt.of(torch.randn(5, 12), torch.randn(6))


@pytest.fixture
def restoration(prompt):
    def make(vae=None, **options):
        torch.manual_seed(3)
        vae = vae or AutoencoderTiny(
            latent_channels=16,
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
        )
        transformer = DiT4SRTransformer2DModel(**TINY)
        for parameter in transformer.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3 * parameter[0].numel() ** -0.5)
        return LiftedRestoration(vae.eval(), transformer.eval(), _scheduler(), prompt, **options)

    return make


@pytest.fixture
def frames():
    return (torch.rand(1, 3, 3, 40, 56) * 255).byte()


@pytest.mark.parametrize("mode", ["hq_renorm", "own"])
def test_three_steps_equal_the_official_run(shared, mode):
    import json

    folder = shared / "golden/dit4sr"
    golden, inputs = load_file(folder / "scheduler_sampling.safetensors"), load_file(folder / "inputs.safetensors")
    model = DiT4SRTransformer2DModel(
        **json.loads((folder / "config.json").read_text()), lq_key_mode=mode, keep_unused_attn2_text=True
    )
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "state_dict.safetensors").items()})
    prompt = Prompt.of(inputs["sampling/text"][0], inputs["sampling/pooled"][0])
    loop = LiftedRestoration(AutoencoderTiny(latent_channels=16), model.eval(), _scheduler(), prompt)
    steps = list(
        loop.steps_from_latents(
            inputs["sampling/lq"][:, None], num_inference_steps=3, noise=inputs["sampling/noise"][:, None]
        )
    )
    assert torch.allclose(torch.tensor([s.timestep for s in steps]), golden["scheduler/steps3/timesteps"].float())
    for step in steps:
        official = golden[f"sampling/{mode}/f32/step{step.index}/latents"]
        assert (step.latents[:, 0] - official).abs().max() < 1e-5


def test_schedule_equals_the_official_tables(shared):
    golden = load_file(shared / "golden/dit4sr/scheduler_sampling.safetensors")
    for steps in (3, 10, 40):
        scheduler = _scheduler()
        scheduler.set_timesteps(steps)
        for name in ("timesteps", "sigmas"):
            truth = golden[f"scheduler/steps{steps}/{name}"]
            assert torch.allclose(getattr(scheduler, name).to(truth), truth, rtol=1e-6, atol=0)


def test_taesd3_round_trip_on_a_real_frame(shared):
    import cv2

    vae = AutoencoderTiny(latent_channels=16)
    state = {}
    for half, prefix in (("encoder", "encoder.layers."), ("decoder", "decoder.layers.")):
        stored = load_file(shared / f"weights/taesd3_{half}.safetensors")
        own = [k for k in vae.state_dict() if k.startswith(prefix)]
        assert len(stored) == len(own)
        shift = min(int(k.removeprefix(prefix).split(".")[0]) for k in own) - min(int(k.split(".")[0]) for k in stored)
        for key, tensor in stored.items():
            index, rest = key.split(".", 1)
            state[f"{prefix}{int(index) + shift}.{rest}"] = tensor.float()
    vae.load_state_dict(state)
    image = cv2.imread(str(shared / "data/sintel/alley_1/clean/frame_0001.png"))[:256, :384, ::-1].copy()
    frames = torch.from_numpy(image).permute(2, 0, 1)[None, None]
    loop = LiftedRestoration(vae, DiT4SRTransformer2DModel(**TINY), _scheduler(), None)
    latents = loop.encode(frames)
    assert latents.shape == (1, 1, 16, 32, 48)
    mse = (loop.decode(latents) - frames.float()).square().mean()
    assert 10 * torch.log10(255**2 / mse) > 26  # PSNR of a tiny auto-encoder; noise would give 8


def test_kl_latents_are_scaled_and_shifted():
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
    loop = LiftedRestoration(vae, DiT4SRTransformer2DModel(**TINY), _scheduler(), None)
    frames = (torch.rand(1, 2, 3, 32, 32) * 255).byte()
    with torch.no_grad():
        mode = vae.encode(frames[0].float() / 127.5 - 1).latent_dist.mode()
        decoded = vae.decode(mode).sample
    latents = loop.encode(frames)
    assert torch.allclose(latents[0], (mode - 0.0609) * 1.5305, atol=1e-6)
    assert torch.allclose(loop.decode(latents)[0], ((decoded + 1) * 127.5).clamp(0, 255), atol=1e-2)


def test_steps_are_reproducible_and_tap_every_step(restoration, frames):
    loop = restoration()
    runs = []
    for seed in (7, 7, 8):
        generator = torch.Generator().manual_seed(seed)
        runs.append(list(loop.steps(frames, num_inference_steps=3, tap_layers=(0, 2), generator=generator)))
    first, second, other = runs
    assert [step.index for step in first] == [0, 1, 2]
    assert first[0].timestep == 1000
    assert first[0].grid == (3, 4)  # 40 x 56 is padded to 48 x 64
    for step, again in zip(first, second, strict=True):
        assert torch.equal(step.latents, again.latents)
        assert step.queries[2].shape == (1, 3, 12, 16)
        assert all(torch.equal(step.queries[layer], again.queries[layer]) for layer in (0, 2))
    assert not torch.equal(first[-1].latents, other[-1].latents)
    assert not torch.equal(first[0].queries[2], first[1].queries[2])


def test_frames_of_every_step_on_request(restoration, frames):
    """Each step decodes the clean image its velocity points to; the last one's is what restore gives."""
    loop, noise = restoration(), torch.randn(1, 3, 16, 6, 8)
    options = {"num_inference_steps": 3, "noise": noise, "color_fix": "wavelet"}
    steps = list(loop.steps(frames, decode=True, **options))
    previous = noise
    for step, sigma, after in zip(steps, *_sigmas(3), strict=True):
        velocity = (step.latents - previous) / (after - sigma)
        assert torch.allclose(step.denoised, previous - sigma * velocity, atol=1e-4)
        decoded = loop.decode(step.denoised)[..., 4:44, 4:60]  # 40 x 56 was padded to 48 x 64
        assert torch.equal(step.frames, fix_colors(decoded, frames.float(), "wavelet"))
        previous = step.latents
    assert torch.equal(steps[-1].denoised, steps[-1].latents)
    assert torch.equal(steps[-1].frames, loop.restore(frames, **options))
    assert all(step.frames is None for step in loop.steps(frames, **options))
    early = {"tap_layers": (1,), "first_step_only": True}
    with pytest.raises(ValueError, match="decode needs whole steps"):
        next(loop.steps(frames, decode=True, **early))
    with pytest.raises(ValueError, match="restore needs whole steps"):
        loop.restore(frames, **early)
    with pytest.raises(ValueError, match="color_fix must be one of adain, wavelet, none, got 'none at all'"):
        next(loop.steps(frames, color_fix="none at all"))


def _sigmas(steps):
    scheduler = _scheduler()
    scheduler.set_timesteps(steps)
    return scheduler.sigmas[:-1], scheduler.sigmas[1:]


def test_loops_of_two_clips_may_run_in_turn(restoration, frames):
    """The scheduler counts steps: each loop needs a count of its own."""
    loop, noise = restoration(), torch.randn(1, 3, 16, 6, 8)
    other = frames.flip(-1)
    alone = [list(loop.steps(clip, num_inference_steps=3, noise=noise)) for clip in (frames, other)]
    together = zip(*(loop.steps(clip, num_inference_steps=3, noise=noise) for clip in (frames, other)), strict=True)
    for turn, pair in enumerate(together):
        assert all(torch.equal(step.latents, alone[clip][turn].latents) for clip, step in enumerate(pair))


def test_first_step_only_equals_the_first_step(restoration, frames):
    loop, noise = restoration(), torch.randn(1, 3, 16, 6, 8)
    options = {"num_inference_steps": 4, "tap_layers": (1,), "noise": noise}
    full = next(iter(loop.steps(frames, **options)))
    (fast,) = loop.steps(frames, first_step_only=True, **options)
    assert fast.latents is None
    assert torch.equal(fast.queries[1], full.queries[1])
    assert torch.equal(fast.keys[1], full.keys[1])


def test_guidance_is_the_stated_combination(restoration, prompt, frames):
    negative = Prompt.of(prompt.prompt_embeds * -1, prompt.pooled_prompt_embeds * 0.5)
    loop, noise = restoration(negative_prompt=negative), torch.randn(1, 3, 16, 6, 8)
    lq = loop.encode(loop._padded(frames))
    plain, opposite = restoration(), restoration()
    opposite.prompt = negative

    def velocity(loop, scale=1.0):
        (step,) = loop.steps_from_latents(lq, num_inference_steps=1, noise=noise, guidance_scale=scale)
        return noise - step.latents  # one Euler step from sigma 1 to 0

    expected = velocity(opposite) + 3 * (velocity(plain) - velocity(opposite))
    assert torch.allclose(velocity(loop, 3.0), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 needs a negative_prompt"):
        next(plain.steps(frames, guidance_scale=2.0))


@pytest.mark.parametrize("method", ["adain", "wavelet", "none"])
def test_restore_keeps_size_and_range(restoration, frames, method):
    restored = restoration().restore(frames, color_fix=method, num_inference_steps=2)
    assert restored.shape == frames.shape
    assert restored.min() >= 0
    assert restored.max() <= 255


def test_color_fixes_follow_the_source():
    source = torch.rand(1, 2, 3, 64, 80) * 100 + 50
    drifted = source * 0.5 + 80
    assert (fix_colors(drifted, source, "adain") - source).abs().max() < 1e-2
    tinted = source + torch.tensor([20.0, -10.0, 5.0])[:, None, None]
    assert (fix_colors(tinted, source, "wavelet") - source).abs().max() < 1e-3
    assert torch.equal(fix_colors(drifted, source, "none"), drifted)
    for method in ("adain", "wavelet"):  # flat frames, and frames of one pixel
        for flat in (torch.full((1, 1, 3, 8, 8), 7.0), torch.full((1, 1, 3, 1, 1), 7.0)):
            assert (fix_colors(flat, flat * 20, method) - 140).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((20, 34), 12, 4), ((12, 12), 12, 4), ((14, 40), 16, 0), ((8, 8), 64, 16)]
)
def test_tiles_cover_and_blend_to_the_identity(size, tile, overlap):
    tiles = Tiles(size, tile, overlap, 2)
    image = torch.randn(1, 2, 3, *size)
    tokens = torch.randn(1, 2, 5, size[0] // 2, size[1] // 2)

    def run(window):
        cells = tuple(slice(s.start // 2, s.stop // 2) for s in window)
        return image[(..., *window)], {"queries": {4: tokens[(..., *cells)].flatten(3).transpose(2, 3)}}

    velocity, taps = tiles.blend(run)
    assert torch.allclose(velocity, image, atol=1e-5)
    assert torch.allclose(taps["queries"][4], tokens.flatten(3).transpose(2, 3), atol=1e-5)


def test_tiled_run_is_close_to_whole_only_where_it_should(restoration, frames):
    large = frames.repeat(1, 1, 1, 3, 3)
    generator = torch.Generator().manual_seed(0)
    tiled = restoration(tile=8, tile_overlap=4)
    steps = list(tiled.steps(large, num_inference_steps=2, tap_layers=(1,), generator=generator))
    assert steps[-1].latents.isfinite().all()
    assert steps[0].queries[1].shape == (1, 3, 8 * 11, 16)
    with pytest.raises(ValueError, match="tile 7 and overlap 4 must be multiples of 2"):
        next(restoration(tile=7, tile_overlap=4).steps(large))


def test_prompt_file(tmp_path):
    good = {"prompt_embeds": torch.randn(5, 12), "pooled_prompt_embeds": torch.randn(6)}
    save_file(good, tmp_path / "null.safetensors")
    prompt = Prompt.load(tmp_path / "null.safetensors")
    assert torch.equal(prompt.prompt_embeds, good["prompt_embeds"])
    prompt.save_pretrained(tmp_path / "prompt")
    again = Prompt.from_pretrained(tmp_path / "prompt")
    for name, tensor in good.items():
        assert torch.equal(getattr(again, name), tensor)
    save_file({"embeds": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"bad.safetensors: expected prompt_embeds and pooled"):
        Prompt.load(tmp_path / "bad.safetensors")


def test_bad_frames(restoration):
    with pytest.raises(ValueError, match=r"frames must be \[B, F, 3, H, W\], none of them 0, got \[3, 3, 8, 8\]"):
        next(restoration().steps(torch.zeros(3, 3, 8, 8)))
    with pytest.raises(ValueError, match="num_inference_steps must be >= 1, got 0"):
        next(restoration().steps(torch.full((1, 1, 3, 16, 16), 9.0), num_inference_steps=0))
    with pytest.raises(TypeError, match=r"frames must be a tensor .*, got ndarray"):
        next(restoration().steps(torch.zeros(1, 1, 3, 8, 8).numpy()))
    with pytest.raises(ValueError, match=r"none of them 0, got \[1, 0, 3, 8, 8\]"):
        next(restoration().steps(torch.zeros(1, 0, 3, 8, 8)))
    with pytest.raises(ValueError, match="multiply by 255"):
        next(restoration().steps(torch.rand(1, 1, 3, 16, 16)))
    with pytest.raises(ValueError, match="VAE has 4 latent channels but the transformer takes 16"):
        LiftedRestoration(AutoencoderTiny(latent_channels=4), DiT4SRTransformer2DModel(**TINY), _scheduler(), None)
