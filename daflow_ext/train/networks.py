"""The flow networks of stage 2, and the frozen transformer whose features DA-Flow reads."""

import pathlib
from typing import TYPE_CHECKING, Any

import torch

from .._extras import require_diffusers
from ..models import RAFT
from .config import FlowModelConfig

if TYPE_CHECKING:
    from ..features.restoration import LiftedRestoration
    from ..models.daflow import DAFlow

Features = dict[int, torch.Tensor]


class FrozenFeatures:
    """Queries and keys of a clip from the lifted transformer, which is not trained and no part of the checkpoint.

    Args:
        restoration: VAE, transformer, scheduler and prompt. layers: tapped. tokens: post-AdaNorm tokens instead.
        step: the denoising step that is read, or "random".
    """

    def __init__(
        self, restoration: "LiftedRestoration", layers: tuple[int, ...], tokens: bool, step: int | str, steps: int
    ):
        self.restoration, self.layers, self.tokens, self.step, self.steps = restoration, layers, tokens, step, steps
        for part in (restoration.vae, restoration.transformer):
            part.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        for part in (self.restoration.vae, self.restoration.transformer, self.restoration.prompt):
            part.to(device)

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor, generator: torch.Generator | None = None) -> tuple[Features, Features]:
        """Queries of frames 0 .. T-2 and keys of frames 1 .. T-1, each {layer: [B (T - 1), tokens, C]}, float32.

        ``generator`` draws the starting noise, as the pipeline does it; otherwise torch's own.
        """
        step = int(torch.randint(self.steps, ())) if self.step == "random" else self.step
        loop = self.restoration.steps(
            frames,
            num_inference_steps=self.steps,
            tap_layers=self.layers,
            tap_tokens=self.tokens,
            first_step_only=step == 0,
            generator=generator,
        )
        seen = next(one for one in loop if one.index == step)
        queries, keys = (seen.tokens, seen.tokens) if self.tokens else (seen.queries, seen.keys)
        return (
            {layer: x[:, :-1].flatten(0, 1).float() for layer, x in queries.items()},
            {layer: x[:, 1:].flatten(0, 1).float() for layer, x in keys.items()},
        )


def build_network(config: FlowModelConfig) -> "tuple[RAFT | DAFlow, FrozenFeatures | None]":
    """RAFT alone, or DA-Flow's flow network with its frozen transformer; random parts by torch's seed.

    Raises:
        ValueError: settings that do not fit the network, weights of another one. FileNotFoundError: no such weights.
        ImportError: DA-Flow without diffusers.
    """
    alone = config.name.startswith("raft-")
    foreign = ("restoration", "raft", "options") if alone else ("dropout",)
    given = [f"model.{name}" for name in foreign if getattr(config, name)]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be set for {config.name}")
    return (_raft(config), None) if alone else _daflow(config)


def _raft(config: FlowModelConfig) -> RAFT:
    small = config.name == "raft-small"
    if config.init is None:
        return RAFT(small, dropout=config.dropout)
    model = RAFT.from_pretrained(config.init, dropout=config.dropout)
    if model.small != small:
        other = "raft-small" if model.small else "raft-large"
        raise ValueError(f"model.name is {config.name} but {config.init} holds {other}")
    return model


def _daflow(config: FlowModelConfig) -> "tuple[DAFlow, FrozenFeatures]":
    require_diffusers(config.name)
    from ..models.pipeline import DAFlowPipeline

    dtype = getattr(torch, config.restoration_dtype)
    if config.init is not None:
        given = [f"model.{name}" for name in ("restoration", "raft", "options") if getattr(config, name)]
        if given:
            raise ValueError(f"model.init already decides {', '.join(given)}; give one of them")
        pipe = DAFlowPipeline.from_pretrained(config.init, torch_dtype=dtype)
        flow, restoration = pipe.flow, pipe.restoration()
    else:
        flow = _flow_network(config)
        restoration = restoration_of(config.name, config.restoration, dtype)
    tokens = flow.config.features == "tokens"
    features = FrozenFeatures(
        restoration, tuple(flow.config.tap_layers), tokens, config.feature_step, config.num_inference_steps
    )
    return flow, features


def _flow_network(config: FlowModelConfig) -> "DAFlow":
    from ..models.config import CONFIGURATIONS
    from ..models.daflow import DAFlow

    settings = {**CONFIGURATIONS[config.name]["flow"], **config.options}
    if config.raft is None:
        return DAFlow(**settings)
    raft = RAFT.from_pretrained(config.raft)
    if raft.small != settings.get("small", False):
        raise ValueError(f"{config.raft} does not hold the RAFT that {config.name} is built on")
    return DAFlow.from_raft(raft, **{name: value for name, value in settings.items() if name not in raft.config})


def restoration_of(name: str, folder: str | None, dtype: torch.dtype = torch.float32) -> "LiftedRestoration":
    """The restoration model of ``folder``, or a random one of the named architecture."""
    from ..features.restoration import LiftedRestoration
    from ..models.config import build_parts

    if folder is not None:
        return LiftedRestoration.load(pathlib.Path(folder), dtype=dtype)
    parts: dict[str, Any] = build_parts(name, torch_dtype=dtype)
    return LiftedRestoration(*(parts[part] for part in ("vae", "transformer", "scheduler", "prompt")))
