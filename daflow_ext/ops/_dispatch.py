"""How a public op reaches its implementation, and how autograd of a compiled op is registered."""

from collections.abc import Callable

import torch

from .. import _load, backends, reference


def empty_channels_last(like: torch.Tensor, batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    """[B, C, H, W] in channels_last memory, permuted so that its strides are the kernels' also where a side is 1."""
    return like.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)


def implementation(op: str, backend: str, device: torch.device) -> Callable:
    """The function that runs ``op``: the reference, or the compiled operator behind its dispatcher."""
    if backends.resolve(op, backend, device) == "reference":
        return getattr(reference, op)
    return getattr(torch.ops.daflow_ext, op).default


def register(op: str, fake: Callable, backward: Callable, setup_context: Callable) -> None:
    """Fake kernel and autograd of the compiled operator ``op``; nothing to do where the library is not built."""
    if _load.CPU_MISSING is not None:
        return
    torch.library.register_fake(f"daflow_ext::{op}", fake)
    torch.library.register_autograd(f"daflow_ext::{op}", backward, setup_context=setup_context)


def register_fake(op: str, fake: Callable) -> None:
    """Fake kernel of an operator without autograd of its own (the backward operators)."""
    if _load.CPU_MISSING is None:
        torch.library.register_fake(f"daflow_ext::{op}", fake)
