"""Weights files of RAFT: read (official, torchvision, ours), check strictly, write without leaving half a file."""

import io
import json
import os
import pathlib
import pickle
from collections.abc import Callable, Mapping

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..frames._files import atomic_path, existing_file
from . import names

_CONFIG_KEY = "daflow_ext.raft"  # of the safetensors metadata
_SHOWN = 3  # names an error message lists
NAMINGS = ("daflow", "official", "torchvision")


def read(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, bool | int]]:
    """Tensors of a RAFT weights file, without ``module.``, and the constructor arguments they belong to.

    Never runs code from the file: safetensors, or pickles restricted to tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or no RAFT weights; names the file.
    """
    state, metadata = _read_tensors(existing_file(path))
    state = names.strip_prefix(state)
    config = _config_of(state, path)
    if _CONFIG_KEY in metadata:
        config = _stored_config(metadata[_CONFIG_KEY], config, path)
    return state, config


def load_strictly(model: nn.Module, state: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Load ``state`` (official or torchvision names) of the file ``path``; every name and shape must agree.

    Raises:
        ValueError: names that differ, or values that are not finite; names the file and the first of them; the model is
            unchanged.
    """
    expected = model.state_dict()
    if names.is_torchvision(state):
        state = names.from_torchvision(state, expected)
    differences = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {list(state[name].shape)} (expected {list(tensor.shape)})"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    if any(differences.values()):
        listed = "; ".join(f"{kind}: {_first(found)}" for kind, found in differences.items() if found)
        raise ValueError(f"{path}: not the weights of this {type(model).__name__}: {listed}")
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: damaged or diverged weights, not finite: {_first(broken)}")
    model.load_state_dict(state)


def write(
    state: Mapping[str, torch.Tensor], config: Mapping[str, bool | int], path: str | os.PathLike, naming: str = "daflow"
) -> None:
    """Write official-named tensors to ``path``: ``.safetensors``, or ``.pth`` / ``.pt`` for ``torch.load``.

    Args:
        naming: "daflow" (official names), "official" (the same with ``module.``, as the official scripts expect) or
            "torchvision".
    Raises:
        ValueError: unknown naming or suffix.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"{path}: weights are written to .safetensors, .pth or .pt, got suffix {path.suffix!r}")
    # copies: safetensors refuses tensors that share memory, as a shortcut norm does under its two names
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in renamed(state, naming).items()}
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            metadata = {"format": "pt", _CONFIG_KEY: json.dumps(dict(config))}
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))  # save_file would hide it from others
        else:
            torch.save(tensors, temporary)


def renamed(state: Mapping[str, torch.Tensor], naming: str) -> dict[str, torch.Tensor]:
    """Official-named tensors under the names of ``naming``; see :func:`write`."""
    rename: dict[str, Callable] = {"daflow": dict, "official": names.add_prefix, "torchvision": names.to_torchvision}
    if naming not in rename:
        raise ValueError(f"names must be one of {', '.join(NAMINGS)}, got {naming!r}")
    return rename[naming](state)


def _read_tensors(path: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # eight bytes of header length, then JSON
    try:
        if is_safetensors:
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        # from memory: reading a file, Python would first ask for as many bytes as a length in the pickle claims
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # the bytes of a broken pickle can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own text is a page on how to run the file's code
            reason = "it is no pickle of tensors alone; of a pickled model, save the state_dict()"
        raise ValueError(
            f"{path}: not a readable weights file (truncated, corrupt, or more than tensors): {reason}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # a training checkpoint
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__} {str(content)[:80]}")
    others = [f"{key!r}: {type(value).__name__}" for key, value in content.items() if not _is_entry(key, value)]
    if others:
        raise ValueError(
            f"{path}: expected a dictionary of tensors, alone or under 'state_dict', but it holds {_first(others)}"
        )
    return content, {}


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and torch.is_tensor(value)


def _stored_config(text: str, found: Mapping[str, bool | int], path: str | os.PathLike) -> dict[str, bool | int]:
    """The constructor arguments stored in a safetensors file; they must fit the shapes, which gave ``found``."""
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    whole = isinstance(config, dict) and {key: type(value) for key, value in config.items()} == {
        key: type(value) for key, value in found.items()
    }
    planes = [c["corr_levels"] * (2 * c["corr_radius"] + 1) ** 2 for c in (config, found)] if whole else []
    if not whole or min(config["corr_levels"], config["corr_radius"] + 1) < 1 or len(set(planes)) != 1:
        raise ValueError(
            f"{path}: its metadata {_CONFIG_KEY!r} does not describe its tensors: got {text[:200]}, "
            f"{json.dumps(dict(found))} would"
        )
    return config


def _config_of(state: Mapping[str, torch.Tensor], path: str | os.PathLike) -> dict[str, bool | int]:
    """Size, levels and radius from names and shapes."""
    if names.is_torchvision(state):
        corr1, corr2 = (f"update_block.motion_encoder.convcorr{i}.0.weight" for i in (1, 2))
    else:
        corr1, corr2 = (f"update_block.encoder.convc{i}.weight" for i in (1, 2))
    if corr1 not in state:
        raise ValueError(f"{path}: not RAFT weights: missing: {corr1}; the file has: {_first(list(state))}")
    if state[corr1].dim() != 4:
        raise ValueError(f"{path}: not RAFT weights: {corr1} is {list(state[corr1].shape)}, four dimensions expected")
    planes = state[corr1].shape[1]
    for levels in (4, 3, 2, 1, 5, 6):  # 4 first: it is what almost everyone trains
        side = round((planes / levels) ** 0.5)
        if levels * side**2 == planes and side % 2 == 1:
            return {"small": corr2 not in state, "corr_levels": levels, "corr_radius": side // 2}
    raise ValueError(f"{path}: {corr1} reads {planes} correlation channels, which is no levels * (2 radius + 1)^2")


def _first(found: list[str]) -> str:
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
