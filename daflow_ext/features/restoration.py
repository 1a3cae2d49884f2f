"""The restoration loop: low-quality frames in, denoising steps with tapped features (and restored frames) out."""

import collections
import copy
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import diffusers
import torch
from torch import nn

from ..frames import InputPadder
from ..frames._files import json_object
from .color_fix import COLOR_FIXES, fix_colors
from .dit4sr import DiT4SRTransformer2DModel
from .pixel_unshuffle import PixelUnshuffleVAE
from .prompt import Prompt
from .strict_loading import strictly
from .tiling import Tiles

LATENT_FACTOR = 8
"""Image pixels per latent pixel of the SD3 VAE."""


@dataclasses.dataclass
class RestorationStep:
    """What one denoising step shows.

    Shapes:
        queries, keys, tokens: per tapped layer [B, F, T, C] on the token grid ``grid`` = (h, w), T = h * w.
        latents: state after the step [B, F, 16, H/8, W/8] (padded); None after an early exit.
        denoised: clean latents as the step sees them: the velocity followed to its end. At the last step, ``latents``.
        frames: ``denoised`` as images [B, F, 3, H, W], float in [0, 255], with corrected colours; if asked for.
    Units:
        timestep in [0, 1000], 1000 = noise; sigma = timestep / 1000.
    """

    index: int
    timestep: float
    sigma: float
    grid: tuple[int, int]
    queries: dict[int, torch.Tensor]
    keys: dict[int, torch.Tensor]
    tokens: dict[int, torch.Tensor]
    latents: torch.Tensor | None
    denoised: torch.Tensor | None = None
    frames: torch.Tensor | None = None


class LiftedRestoration:
    """VAE, lifted transformer, flow-matching scheduler and encoded prompt, as one loop.

    Args:
        vae: ``AutoencoderKL`` or ``AutoencoderTiny`` of SD3 (16 latent channels, factor 8), or ``PixelUnshuffleVAE``.
        scheduler: ``FlowMatchEulerDiscreteScheduler``.
        prompt: what the frames show; the null prompt for features. negative_prompt: needed for guidance only.
        tile: side of the tiles, in latent pixels, in which larger frames are denoised; None for no tiling. Velocities
            and features of overlapping tiles are blended with a Gaussian window.
    Source: DiT4SR (arXiv 2503.23580) and DA-Flow (arXiv 2603.23499).
    """

    def __init__(
        self,
        vae: Any,
        transformer: DiT4SRTransformer2DModel,
        scheduler: Any,
        prompt: Prompt,
        *,
        negative_prompt: Prompt | None = None,
        tile: int | None = None,
        tile_overlap: int = 16,
    ):
        channels = vae.config.latent_channels
        if channels != transformer.config.in_channels:
            raise ValueError(
                f"the VAE has {channels} latent channels but the transformer takes {transformer.config.in_channels}"
            )
        self.vae, self.transformer, self.scheduler = vae, transformer, scheduler
        self.prompt, self.negative_prompt = prompt, negative_prompt
        self.tile, self.tile_overlap = tile, tile_overlap

    # ---- folders ----------------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **options: Any
    ) -> "LiftedRestoration":
        """From a folder with ``transformer/``, ``vae/``, ``scheduler/`` and ``prompt/``, in diffusers layout.

        ``"tiny"`` gives an untrained model of toy size instead, to try commands with. Further options as in the
        constructor.

        Raises:
            FileNotFoundError: a part is missing; names it.
            ValueError: a part does not fit.
        """
        if str(folder) == "tiny":
            return _tiny(cls, dtype, device, **options)
        folder = pathlib.Path(folder)
        for part in ("transformer/config.json", "vae/config.json", "scheduler", "prompt/config.json"):
            if not (folder / part).exists():
                raise FileNotFoundError(f"{folder} is no restoration model: {part} is missing")
        vae = load_vae(folder / "vae", dtype)
        transformer = DiT4SRTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        prompt = Prompt.from_pretrained(folder / "prompt")
        return cls(vae.eval().to(device), transformer.eval().to(device), scheduler, prompt, **options)

    def save(self, folder: str | os.PathLike) -> None:
        """Write a folder that :meth:`load` reads."""
        folder = pathlib.Path(folder)
        self.transformer.save_pretrained(folder / "transformer")
        self.vae.save_pretrained(folder / "vae")
        self.scheduler.save_pretrained(folder / "scheduler")
        self.prompt.save_pretrained(folder / "prompt")

    # ---- pixels and latents -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """[B, F, 3, H, W] in [0, 255], sides multiples of 16, to latents [B, F, 16, H/8, W/8]: the mode, no sample."""
        images = (frames.to(self.vae.dtype) / 127.5 - 1).flatten(0, 1)
        encoded = self.vae.encode(images)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        latents = (latents - self._shift) * self._scale
        return latents.unflatten(0, frames.shape[:2]).to(self.transformer.dtype)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`encode`; float in [0, 255]."""
        return self.decode_unclamped(latents).clamp(0, 255)

    def decode_unclamped(self, latents: torch.Tensor) -> torch.Tensor:
        """:meth:`decode` with its gradient; colours may leave [0, 255]."""
        images = self.vae.decode((latents / self._scale + self._shift).flatten(0, 1).to(self.vae.dtype)).sample
        return ((images.float() + 1) * 127.5).unflatten(0, latents.shape[:2])

    @property
    def _scale(self) -> float:
        return self.vae.config.scaling_factor

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    @property
    def can_share_text(self) -> bool:
        """Whether one text copy for all frames is exact: every frame sees all of them."""
        return self.transformer.config.lift != "none" and self.transformer.config.window is None

    # ---- the loop ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def steps(
        self,
        frames: torch.Tensor,
        *,
        num_inference_steps: int = 10,
        decode: bool = False,
        color_fix: str = "adain",
        **options: Any,
    ) -> Iterator[RestorationStep]:
        """Denoise from noise, yielding after each step.

        Args:
            frames: [B, F, 3, H, W], RGB, uint8 or float in [0, 255]; padded to multiples of 16 by repeating edges.
            decode: every step also carries the restored frames, as far as it sees them (one VAE decoding per step).
            color_fix: of those frames, as in :meth:`restore`.
            options: of :meth:`steps_from_latents`.
        Raises:
            ValueError: frames or options that do not fit together.
        """
        _check_color_fix(color_fix)
        if decode and options.get("first_step_only"):
            raise ValueError("decode needs whole steps: first_step_only stops before there are frames")
        lq = self.encode(self._padded(frames))
        for step in self.steps_from_latents(lq, num_inference_steps=num_inference_steps, **options):
            if decode and step.denoised is not None:
                step.frames = self._images(step.denoised, frames, color_fix)
            yield step

    @torch.no_grad()
    def steps_from_latents(
        self,
        lq: torch.Tensor,
        *,
        num_inference_steps: int,
        tap_layers: Sequence[int] = (),
        tap_tokens: bool = False,
        first_step_only: bool = False,
        guidance_scale: float = 1.0,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
        share_text: bool = False,
        guide: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> Iterator[RestorationStep]:
        """:meth:`steps` on encoded frames [B, F, 16, h, w].

        Args:
            tap_layers, tap_tokens: see :meth:`DiT4SRTransformer2DModel.forward`; ``share_text`` likewise.
            first_step_only: one evaluation that stops at the last tapped layer (features at a tenth of the cost).
            guidance_scale: classifier-free guidance when > 1; features are those of the unguided branch.
            generator: of the starting noise; ``noise`` gives it directly, [B, F, 16, h, w].
            guide: takes the index of a step and the clean latents as the step sees them, gives those to go on with; the
                same tensor leaves the step as it is (see :class:`daflow_ext.models.guidance.FlowGuidance`).
        Raises:
            ValueError: options that do not fit together.
        """
        if guidance_scale > 1 and self.negative_prompt is None:
            raise ValueError(f"guidance_scale={guidance_scale} needs a negative_prompt; none was given")
        if first_step_only and not tap_layers:
            raise ValueError("first_step_only needs tap_layers: it stops at the last of them")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be >= 1, got {num_inference_steps}")
        latents = _noise(lq, generator) if noise is None else noise.to(lq)
        if latents.shape != lq.shape:
            raise ValueError(f"noise is {list(latents.shape)} but the latents are {list(lq.shape)}")
        scheduler = copy.copy(self.scheduler)  # it counts steps, and several loops may run in turn
        scheduler.set_timesteps(num_inference_steps, device=lq.device)
        patch = self.transformer.config.patch_size
        grid = (lq.shape[-2] // patch, lq.shape[-1] // patch)
        options = {"tap_layers": tuple(tap_layers), "tap_tokens": tap_tokens, "share_text": share_text}
        for index, (timestep, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas, strict=False)):
            velocity, taps = self._evaluate(latents, lq, self.prompt, timestep, early_exit=first_step_only, **options)
            if guidance_scale > 1 and velocity is not None and self.negative_prompt is not None:
                negative, _ = self._evaluate(latents, lq, self.negative_prompt, timestep, share_text=share_text)
                velocity = negative + guidance_scale * (velocity - negative)
            denoised = None
            if velocity is not None:
                denoised = (latents.float() - sigma * velocity).to(velocity.dtype)
                guided = denoised if guide is None else guide(index, denoised)
                if guided is not denoised:
                    denoised, velocity = guided, ((latents.float() - guided.float()) / sigma).to(velocity.dtype)
                latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            yield RestorationStep(
                index=index,
                timestep=float(timestep),
                sigma=float(timestep) / scheduler.config.num_train_timesteps,
                grid=grid,
                latents=None if velocity is None else latents,
                denoised=denoised,
                **taps,
            )
            if first_step_only:
                return

    def restore(self, frames: torch.Tensor, *, color_fix: str = "adain", **options: Any) -> torch.Tensor:
        """The frames after the last step, [B, F, 3, H, W] float in [0, 255]; options as in :meth:`steps`.

        Args:
            color_fix: "adain" (mean and deviation of each channel follow the input), "wavelet" (low frequencies do), or
                "none".
        """
        _check_color_fix(color_fix)
        (last,) = collections.deque(self.steps(frames, **options), maxlen=1)  # earlier steps are let go
        if last.latents is None:
            raise ValueError("restore needs whole steps: first_step_only stops before there are frames")
        return self._images(last.latents, frames, color_fix)

    def _images(self, latents: torch.Tensor, frames: torch.Tensor, color_fix: str) -> torch.Tensor:
        restored = self.padder(frames).unpad(self.decode(latents))
        return fix_colors(restored, frames.to(restored), color_fix)

    def _evaluate(
        self, latents: torch.Tensor, lq: torch.Tensor, prompt: Prompt, timestep: torch.Tensor, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Velocity (None after an early exit) and taps of one step, tile by tile where the frames are larger."""
        tiles = Tiles(
            (latents.shape[-2], latents.shape[-1]), self.tile, self.tile_overlap, self.transformer.config.patch_size
        )
        text, pooled = prompt.batch(latents.shape[0], latents)

        def run(window: tuple[slice, slice]) -> tuple[Any, dict[str, Any]]:
            rows, columns = window
            output = self.transformer(
                latents[..., rows, columns],
                lq[..., rows, columns],
                text,
                pooled,
                timestep.to(latents.device),
                **options,
            )
            return output.sample, {"queries": output.queries, "keys": output.keys, "tokens": output.tokens}

        if len(tiles) == 1:
            return run((slice(None), slice(None)))
        return tiles.blend(run)

    def padder(self, frames: torch.Tensor) -> InputPadder:
        """Brings the sides of ``frames`` to whole tokens."""
        return InputPadder(frames.shape, multiple=LATENT_FACTOR * self.transformer.config.patch_size)

    def _padded(self, frames: torch.Tensor) -> torch.Tensor:
        if not isinstance(frames, torch.Tensor):
            raise TypeError(f"frames must be a tensor [B, F, 3, H, W], got {type(frames).__name__}")
        if frames.dim() != 5 or frames.shape[2] != 3 or frames.numel() == 0:
            raise ValueError(f"frames must be [B, F, 3, H, W], none of them 0, got {list(frames.shape)}")
        if frames.is_floating_point() and float(frames.amax()) <= 1:
            raise ValueError("frames are in [0, 255], but the maximum of these floats is <= 1; multiply by 255")
        return self.padder(frames).pad(frames.to(self.vae.device))[0]


def load_vae(folder: pathlib.Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The autoencoder of a folder in diffusers layout, of whichever class its configuration names.

    Raises:
        ValueError: no autoencoder of diffusers or ours, or tensors that do not fit it.
    """
    name = str(json_object(folder / "config.json").get("_class_name", ""))
    vae_class: Any = PixelUnshuffleVAE if name == PixelUnshuffleVAE.__name__ else getattr(diffusers, name, None)
    if not hasattr(vae_class, "decode"):
        raise ValueError(f"{folder}/config.json: expected the class of an autoencoder, got {name!r}")
    return strictly(vae_class.from_pretrained, folder, torch_dtype=dtype)


def _check_color_fix(method: str) -> None:
    if method not in COLOR_FIXES:
        raise ValueError(f"color_fix must be one of {', '.join(COLOR_FIXES)}, got {method!r}")


def _noise(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Normal noise drawn on the generator's device, so that a seed means the same everywhere."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like)


def _tiny(cls: type[LiftedRestoration], dtype: torch.dtype, device: str, **options: Any) -> LiftedRestoration:
    """An untrained toy model with fixed weights: every command runs, no result means anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderTiny(
            latent_channels=16,
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
        )
        transformer = DiT4SRTransformer2DModel(
            sample_size=32,
            num_layers=6,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=16,
            caption_projection_dim=128,
            pooled_projection_dim=16,
            pos_embed_max_size=128,
            dual_attention_layers=(0, 1, 2),
        )
        prompt = Prompt.of(torch.randn(4, 16), torch.randn(16))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    # nn.Module's own: that of diffusers warns of modules to keep in float32 even where there are none
    for module in (vae, transformer):
        nn.Module.to(module.eval(), device, dtype)
    return cls(vae, transformer, scheduler, prompt, **options)
