"""``from_pretrained`` that raises where diffusers only warns, or says nothing."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.utils import logging


def strictly(load: Callable, name: Any, **kwargs: Any) -> Any:
    """What ``load``, a ``from_pretrained`` of diffusers, makes of the folder (or hub id) ``name``.

    Reads safetensors; ``use_safetensors=False`` reads pickles, restricted to tensors.

    Raises:
        ValueError: tensors are missing, unexpected, of another shape or not finite; names the folder and the first of
            them.
    """
    wants_info = kwargs.pop("output_loading_info", False)
    with _without_log():  # it lists every name; the error says what is wrong
        model, info = load(name, output_loading_info=True, **{"use_safetensors": True, **kwargs})
    problems = {kind: list(keys) for kind, keys in info.items() if keys}
    if problems:
        text = "; ".join(f"{kind.replace('_', ' ')} ({len(keys)}): {keys[:3]}" for kind, keys in problems.items())
        raise ValueError(f"{name} does not fit {type(model).__name__}: {text}")
    broken = [key for key, tensor in model.state_dict().items() if not _finite(tensor)]
    if broken:
        raise ValueError(f"{name}: damaged or diverged weights, not finite ({len(broken)}): {broken[:3]}")
    return (model, info) if wants_info else model


class StrictLoadingMixin:
    """To stand before ``ModelMixin`` among the bases: loading then accounts for every tensor."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a folder (or hub id) in diffusers layout; options as in ``ModelMixin.from_pretrained``.

        Raises:
            ValueError: tensors are missing, unexpected, of another shape or not finite; names the folder and the first
                of them.
        """
        loader: Any = super()
        return strictly(loader.from_pretrained, pretrained_model_name_or_path, **kwargs)


def _finite(tensor: torch.Tensor) -> bool:
    """By least and largest value, which reads billions of weights in a second; NaN is both."""
    return tensor.numel() == 0 or all(math.isfinite(float(value)) for value in torch.aminmax(tensor))


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Diffusers logs nothing, not even the errors that it raises."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
