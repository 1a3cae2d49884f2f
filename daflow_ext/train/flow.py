"""Stage 2: a flow network on degraded clips, with the truth of the clean ones."""

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..datasets import Clip
from ..evaluate.pictures import panels
from ..flow.metrics import epe
from ..models import RAFT, weights
from .config import FlowConfig
from .data import Batch, HeldOut, TrainingClips, open_clips
from .engine import Stage
from .losses import sequence_loss
from .networks import FrozenFeatures, build_network

if TYPE_CHECKING:
    from ..models.daflow import DAFlow

WEIGHTS = "model.safetensors"
PIPELINE = "model"


class FlowStage(Stage):
    """RAFT or DA-Flow's flow network, and its loss on all pairs of a clip."""

    def __init__(
        self,
        model: "RAFT | DAFlow",
        features: FrozenFeatures | None,
        config: FlowConfig,
        held_out: HeldOut | None,
    ):
        super().__init__()
        self.model, self.features, self.config, self.held_out = model, features, config, held_out
        self.frozen_written = False  # the transformer is large and does not change: once per process is enough
        self.title = f"{config.model.name}, degradation-aware optical flow"
        self.raft = [model if isinstance(model, RAFT) else model.raft]  # in a list: its parameters are the model's
        if config.train.checkpointing:
            # not the context encoder: running it twice would count its batch statistics twice
            heads = [] if isinstance(model, RAFT) else [model.heads]
            for module in filter(None, (self.raft[0].fnet, self.raft[0].update_block, *heads)):
                _recompute(module)

    def place(self, device: torch.device) -> None:
        if self.features is not None:
            self.features.to(device)

    def train(self, mode: bool = True) -> "FlowStage":
        super().train(mode)
        if self.config.model.freeze_bn:
            self.raft[0].freeze_bn()
        return self

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = self.config.loss
        predictions = self.predict(batch["lq"], iters=loss.iters)
        flow, valid = batch["flow"].flatten(0, 1), batch["valid"].flatten(0, 1)
        value = sequence_loss(predictions, flow, valid, gamma=loss.gamma, max_flow=loss.max_flow)
        with torch.no_grad():
            error = torch.linalg.vector_norm(predictions[-1] - flow, dim=1)
            error = torch.where(valid, error, 0.0).sum() / valid.sum().clamp_min(1)
        return value, {"epe": error}

    def predict(self, lq: torch.Tensor, iters: int, generator: torch.Generator | None = None, **options: Any) -> Any:
        """RAFT's output for every pair of neighbours of [B, T, 3, H, W], flattened to B (T - 1)."""
        images = lq[:, :-1].flatten(0, 1), lq[:, 1:].flatten(0, 1)
        taps = () if self.features is None else self.features(lq, generator)
        return self.model(*images, *taps, iters=iters, **options)

    def validate(self) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        figures: dict[str, float] = {}
        pictures: dict[str, torch.Tensor] = {}
        if self.held_out is None:
            return figures, pictures
        for level in self.config.validation.levels:
            errors = []
            for place, clip in enumerate(self.held_out.clips(level)):
                flow = self._clip_flow(clip.inputs)
                truth = torch.from_numpy(np.ascontiguousarray(clip.flow)).permute(0, 3, 1, 2)
                errors.append(epe(flow, truth, torch.from_numpy(np.ascontiguousarray(clip.valid))))
                if place < self.config.validation.pictures:
                    pictures[f"{level}-{place}"] = self._picture(clip, flow)
            figures[f"epe/{level}"] = float(torch.stack(errors).nanmean())
        return figures, pictures

    def _clip_flow(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 [T, H, W, 3] to [T - 1, 2, H, W] on the CPU; the same starting noise for every clip."""
        device = next(self.model.parameters()).device
        clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None].to(device)
        noise = torch.Generator().manual_seed(0)
        return self.predict(clip, self.config.validation.iters, noise, test_mode=True)[1].float().cpu()

    @staticmethod
    def _picture(clip: Clip, flow: torch.Tensor) -> torch.Tensor:
        shown = panels(clip, lambda frames, pair, pad_mode: flow[pair], "dense")
        return torch.cat(list(shown.values()), dim=2)

    def write(self, folder: pathlib.Path) -> list[str]:
        if self.features is None or isinstance(self.model, RAFT):
            raft = self.raft[0]
            weights.write(raft.state_dict(), raft.config, folder / WEIGHTS)
            return [WEIGHTS]
        from ..models.pipeline import DAFlowPipeline

        target = folder / PIPELINE
        if self.frozen_written:
            self.model.save_pretrained(target / "flow")
        else:
            loop = self.features.restoration
            pipe = DAFlowPipeline(loop.vae, loop.transformer, loop.scheduler, loop.prompt, self.model)
            pipe.save_pretrained(target)
            self.frozen_written = True
        return [f"{PIPELINE}/"]


def _recompute(module: nn.Module) -> None:
    """Have the backward pass run ``module`` again instead of keeping its activations."""
    forward = module.forward

    def again(*args: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)

    module.forward = again


def build(config: FlowConfig) -> tuple[FlowStage, TrainingClips]:
    """What :class:`Trainer` needs for a configuration."""
    clips, held_out = open_clips(config, truth=True)
    torch.manual_seed(config.train.seed)
    model, features = build_network(config.model)
    return FlowStage(model, features, config, held_out), clips
