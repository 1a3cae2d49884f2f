"""The parts of a DA-Flow pipeline from published weights: where training begins."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from ..features.dit4sr import DiT4SRTransformer2DModel
from ..features.prompt import Prompt
from ..features.restoration import load_vae
from .config import CONFIGURATIONS, SCHEDULER
from .daflow import DAFlow
from .raft import RAFT

Path = str | os.PathLike


def start_parts(
    raft: Path,
    dit4sr: Path,
    *,
    vae: Path | None = None,
    prompt: Path | None = None,
    configuration: str = "daflow",
    tap_layers: Sequence[int] | None = None,
    correlation: str = "concat",
    lq_key_mode: str | None = None,
    torch_dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """vae, transformer, scheduler, prompt and flow, as :class:`daflow_ext.DAFlowPipeline` takes them.

    Args:
        raft: weights file. dit4sr: folder of the transformer, or one that holds ``transformer/`` and perhaps the
            further parts. vae: folder of a VAE. prompt: file for :meth:`Prompt.load`, or folder.
        configuration: whose heads the flow network gets. tap_layers, correlation: see :class:`daflow_ext.DAFlow`.
        lq_key_mode: see :class:`DiT4SRTransformer2DModel`; None for what the folder says.
        torch_dtype: of transformer and VAE.
    Raises:
        FileNotFoundError: a part is nowhere; names what to pass.
        ValueError: parts that do not load strictly or do not fit together.
    """
    network = RAFT.from_pretrained(raft)
    folder = pathlib.Path(dit4sr)
    weights = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if not (weights / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no transformer: neither config.json nor transformer/config.json is there")
    vae_folder = _part(vae, folder / "vae", "--vae")
    if not (vae_folder / "config.json").is_file():
        raise FileNotFoundError(f"{vae_folder} is no VAE: config.json is missing")
    prompt_path = _part(prompt, folder / "prompt", "--prompt")
    options = {} if lq_key_mode is None else {"lq_key_mode": lq_key_mode}
    transformer = DiT4SRTransformer2DModel.from_pretrained(weights, torch_dtype=torch_dtype, **options)
    flow = {key: value for key, value in CONFIGURATIONS[configuration]["flow"].items() if key != "small"}
    flow |= {"token_channels": transformer.config.num_attention_heads * transformer.config.attention_head_dim}
    if tap_layers is not None:
        flow["tap_layers"] = tuple(tap_layers)
    if (folder / "scheduler").is_dir():
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    else:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    return {
        "vae": load_vae(vae_folder, torch_dtype),
        "transformer": transformer,
        "scheduler": scheduler,
        "prompt": Prompt.from_pretrained(prompt_path) if prompt_path.is_dir() else Prompt.load(prompt_path),
        "flow": DAFlow.from_raft(network, correlation=correlation, **flow),
    }


def _part(given: Path | None, beside: pathlib.Path, option: str) -> pathlib.Path:
    path = beside if given is None else pathlib.Path(given)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give it by {option}")
    return path
