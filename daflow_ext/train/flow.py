"""Stage 2: a flow network on degraded clips, with the truth of the clean ones."""

import pathlib

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..datasets import Clip
from ..evaluate.pictures import panels
from ..flow.metrics import epe
from ..models import RAFT, weights
from .config import FlowConfig, FlowModelConfig
from .data import Batch, HeldOut, TrainingClips, open_source
from .engine import Stage
from .losses import sequence_loss

WEIGHTS = "model.safetensors"
RAFT_NAMES = ("raft-small", "raft-large")


class FlowStage(Stage):
    """RAFT and its loss on both pairs of a clip."""

    def __init__(self, model: RAFT, config: FlowConfig, held_out: HeldOut | None):
        super().__init__()
        self.model, self.config, self.held_out = model, config, held_out
        self.title = f"{config.model.name}, degradation-aware optical flow"
        if config.train.checkpointing:
            # not the context encoder: running it twice would count its batch statistics twice
            for module in (model.fnet, model.update_block):
                _recompute(module)

    def train(self, mode: bool = True) -> "FlowStage":
        super().train(mode)
        if self.config.model.freeze_bn:
            self.model.freeze_bn()
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

    def predict(self, lq: torch.Tensor, iters: int, **options) -> list[torch.Tensor] | tuple:
        """RAFT's output for every pair of neighbours of [B, T, 3, H, W], flattened to B (T - 1)."""
        return self.model(lq[:, :-1].flatten(0, 1), lq[:, 1:].flatten(0, 1), iters=iters, **options)

    def validate(self) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        figures, pictures = {}, {}
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
        """uint8 [T, H, W, 3] to [T - 1, 2, H, W] on the CPU."""
        device = next(self.model.parameters()).device
        clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None].to(device)
        return self.predict(clip, iters=self.config.validation.iters, test_mode=True)[1].float().cpu()

    @staticmethod
    def _picture(clip: Clip, flow: torch.Tensor) -> torch.Tensor:
        shown = panels(clip, lambda frames, pair, pad_mode: flow[pair], "dense")
        return torch.cat(list(shown.values()), dim=2)

    def write(self, folder: pathlib.Path) -> list[str]:
        weights.write(self.model.state_dict(), self.model.config, folder / WEIGHTS)
        return [WEIGHTS]


def _recompute(module: nn.Module) -> None:
    """Have the backward pass run ``module`` again instead of keeping its activations."""
    forward = module.forward

    def again(*args):
        return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)

    module.forward = again


def build_model(config: FlowModelConfig) -> RAFT:
    """The network of ``model``, from weights or random (decided by the caller's seed).

    Raises:
        ValueError: an unknown name, weights of another network. FileNotFoundError: no such weights.
    """
    if config.name not in RAFT_NAMES:
        raise ValueError(f"model.name must be one of {', '.join(RAFT_NAMES)}, got {config.name!r}")
    small = config.name == "raft-small"
    if config.init is None:
        return RAFT(small, dropout=config.dropout)
    model = RAFT.from_pretrained(config.init, dropout=config.dropout)
    if model.small != small:
        raise ValueError(
            f"model.name is {config.name} but {config.init} holds raft-{'small' if model.small else 'large'}"
        )
    return model


def build(config: FlowConfig) -> tuple[FlowStage, TrainingClips]:
    """What :class:`Trainer` needs for a configuration."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    clips = TrainingClips(open_source(config.data), config.data, config.train.seed)
    held_out = None
    if config.validation.every:
        changes = dict(config.validation.options)
        if config.validation.root is not None:
            changes["root"] = config.validation.root
        held_out = HeldOut(open_source(config.data, **changes), config.data.crop, config.validation.clips, 0)
    return FlowStage(model, config, held_out), clips
