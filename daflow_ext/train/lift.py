"""Stage 1: the restoration transformer on whole clips, by flow matching."""

import pathlib
from typing import Any

import numpy as np
import torch

from ..features.dit4sr import DiT4SRTransformer2DModel
from ..features.restoration import LiftedRestoration
from ..flow.metrics import psnr
from .config import LiftConfig, LiftModelConfig
from .data import Batch, HeldOut, TrainingClips, open_clips
from .engine import Stage
from .losses import flow_matching_target, sample_sigmas
from .networks import restoration_of

FOLDER = "model"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class LiftStage(Stage):
    """The transformer of a restoration model and its loss; VAE and prompt are frozen."""

    unused_parameters = True

    def __init__(self, restoration: LiftedRestoration, config: LiftConfig, held_out: HeldOut | None):
        super().__init__()
        self.transformer, self.config, self.held_out = restoration.transformer, config, held_out
        self.title = f"{config.model.name}, lifted restoration transformer"
        self.restoration = restoration
        restoration.vae.eval().requires_grad_(False)
        choose_trainable(self.transformer, config.model)
        if config.train.checkpointing:
            self.transformer.enable_gradient_checkpointing()

    def place(self, device: torch.device) -> None:
        self.restoration.vae.to(device)
        self.restoration.prompt.to(device)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        hq, lq = (self.restoration.encode(batch[name]) for name in ("hq", "lq"))
        sigma = sample_sigmas(len(hq), self.config.loss).to(hq)
        return self._loss(hq, lq, sigma, torch.randn_like(hq)), {}

    def _loss(self, hq: torch.Tensor, lq: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the velocity at noise level ``sigma`` [B]."""
        noisy, target = flow_matching_target(hq, noise, sigma)
        text, pooled = self.restoration.prompt.batch(len(hq), noisy)
        velocity = self.transformer(noisy, lq, text, pooled, 1000 * sigma).sample
        error = (velocity.float() - target.float()).square().mean(dim=(1, 2, 3, 4))
        return (error * (sigma.square() if self.config.loss.target == "clean" else 1.0)).mean()

    def validate(self) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """PSNR of the restored frames against that of their input, and the loss at fixed noise."""
        figures: dict[str, float] = {}
        pictures: dict[str, torch.Tensor] = {}
        if self.held_out is None:
            return figures, pictures
        for level in self.config.validation.levels:
            rows = []
            for place, clip in enumerate(self.held_out.clips(level)):
                hq, lq = (self._clip(frames) for frames in (clip.frames, clip.inputs))
                restored = self.restoration.restore(
                    lq,
                    num_inference_steps=self.config.validation.iters,
                    generator=torch.Generator().manual_seed(0),
                    color_fix="none",
                )
                rows.append([self._fixed_loss(hq, lq), psnr(restored[0], hq[0]), psnr(lq[0], hq[0])])
                if place < self.config.validation.pictures:
                    shown = torch.cat([hq[0, 0], lq[0, 0], restored[0, 0]], dim=2)
                    pictures[f"{level}-{place}"] = shown.round().byte().cpu()
            names = ("loss", "psnr") if level == "clean" else ("loss", "psnr", "psnr_input")
            means = torch.tensor([[float(value) for value in row] for row in rows]).mean(0).tolist()
            figures |= {f"{name}/{level}": value for name, value in zip(names, means, strict=False)}
        return figures, pictures

    def _fixed_loss(self, hq: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
        """The loss averaged over five noise levels, always with the same noise."""
        clean, degraded = self.restoration.encode(hq), self.restoration.encode(lq)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        levels = clean.new_tensor([0.1, 0.3, 0.5, 0.7, 0.9])
        return torch.stack([self._loss(clean, degraded, sigma[None], noise) for sigma in levels]).mean()

    def _clip(self, frames: np.ndarray) -> torch.Tensor:
        clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None]
        return clip.to(self.transformer.device).float()

    def write(self, folder: pathlib.Path) -> list[str]:
        if self.config.model.lora_rank:
            self.transformer.save_lora_adapter(str(folder / "lora"))
            return ["lora/"]
        self.restoration.save(folder / FOLDER)
        return [f"{FOLDER}/"]


def choose_trainable(transformer: DiT4SRTransformer2DModel, config: LiftModelConfig) -> None:
    """Mark the parameters that ``config`` trains; the others are frozen.

    Raises:
        ImportError: adapters are asked for, but peft is not installed.
    """
    transformer.requires_grad_(False)
    if config.lora_rank:
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ImportError("model.lora_rank needs peft: pip install peft, or set it to 0") from error
        transformer.add_adapter(
            LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=list(LORA_TARGETS))
        )
        return
    # under hq_renorm nothing reads the key projection of the low-quality stream
    unread = "to_k_control" if transformer.config.lq_key_mode == "hq_renorm" else None
    for name, parameter in transformer.named_parameters():
        wanted = {"all": True, "attention": ".attn" in name, "control": "control" in name}[config.trainable]
        parameter.requires_grad_(wanted and not (unread and unread in name))


def build(config: LiftConfig) -> tuple[LiftStage, TrainingClips]:
    """What :class:`Trainer` needs for a configuration."""
    clips, held_out = open_clips(config, truth=False)
    torch.manual_seed(config.train.seed)
    restoration = restoration_of(config.model.name, config.model.init)
    changes: dict[str, Any] = {"lift": config.model.lift}
    if config.model.control_conv_scale is not None:
        changes["control_conv_scale"] = config.model.control_conv_scale
    restoration.transformer.register_to_config(**changes)
    return LiftStage(restoration, config, held_out), clips
