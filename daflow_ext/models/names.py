"""The names under which RAFT's weights travel: the official ones, which are ours too, and torchvision's."""

import re
from collections.abc import Mapping

import torch

_PREFIX = "module."  # official checkpoints were saved from nn.DataParallel

# Official name -> torchvision's. In a Conv2dNormActivation ".0" is the convolution and ".1" the norm.
_RULES = [
    (r"update_block\.encoder\.convc(\d)\.(\w+)", r"update_block.motion_encoder.convcorr\1.0.\2"),
    (r"update_block\.encoder\.convf(\d)\.(\w+)", r"update_block.motion_encoder.convflow\1.0.\2"),
    (r"update_block\.encoder\.conv\.(\w+)", r"update_block.motion_encoder.conv.0.\1"),
    (r"update_block\.gru\.conv([zrq])(\d)\.(\w+)", r"update_block.recurrent_block.convgru\2.conv\1.\3"),
    (r"update_block\.gru\.conv([zrq])\.(\w+)", r"update_block.recurrent_block.convgru1.conv\1.\2"),
    (r"update_block\.mask\.0\.(\w+)", r"mask_predictor.convrelu.0.\1"),
    (r"update_block\.mask\.2\.(\w+)", r"mask_predictor.conv.\1"),
    (r"([fc]net)\.conv1\.(\w+)", r"\1.convnormrelu.0.\2"),
    (r"([fc]net)\.norm1\.(\w+)", r"\1.convnormrelu.1.\2"),
    (r"([fc]net)\.conv2\.(\w+)", r"\1.conv.\2"),
    (r"([fc]net\.layer\d\.\d)\.conv(\d)\.(\w+)", r"\1.convnormrelu\2.0.\3"),
    (r"([fc]net\.layer\d\.\d)\.norm(\d)\.(\w+)", r"\1.convnormrelu\2.1.\3"),
]
_ENCODERS = {"fnet": "feature_encoder", "cnet": "context_encoder"}


def strip_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the ``module.`` of nn.DataParallel, if every name has it."""
    if not all(name.startswith(_PREFIX) for name in state):
        return dict(state)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}


def add_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With ``module.``, as the official scripts expect it."""
    return {_PREFIX + name: tensor for name, tensor in state.items()}


def is_torchvision(state: Mapping[str, torch.Tensor]) -> bool:
    return "feature_encoder.convnormrelu.0.weight" in state


def torchvision_name(name: str) -> str:
    """torchvision's name of the official parameter or buffer ``name``."""
    for pattern, template in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            name = match.expand(template)
            break
    encoder, dot, rest = name.partition(".")
    return _ENCODERS.get(encoder, encoder) + dot + rest


def to_torchvision(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names of torchvision's ``raft_large`` / ``raft_small``."""
    return {torchvision_name(name): tensor for name, tensor in state.items() if _shortcut_norm(name) not in state}


def from_torchvision(
    state: Mapping[str, torch.Tensor], official: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """torchvision's names to those of ``official``, a state of the same model; unknown names stay as they are."""
    back = {torchvision_name(name): name for name in official if _shortcut_norm(name) not in official}
    renamed = {back.get(name, name): tensor for name, tensor in state.items()}
    twins = {name: _shortcut_norm(name) for name in official}
    return renamed | {name: renamed[twin] for name, twin in twins.items() if twin in renamed}


def _shortcut_norm(name: str) -> str:
    """Official files hold the norm of a projected shortcut twice: ``norm3`` of a block is its ``downsample.1``."""
    return re.sub(r"(layer\d\.0)\.norm3\.", r"\1.downsample.1.", name) if ".norm3." in name else ""
