"""How a public op reaches its implementation, and how autograd of a compiled op is registered."""

from collections.abc import Callable
from typing import Any, NoReturn

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


def register_backward(op: str, fake: Callable) -> None:
    """Fake kernel of the compiled operator ``op_backward``, which has no gradient of its own."""
    if _load.CPU_MISSING is not None:
        return

    def refuse(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{op} is differentiable once; backend='reference' gives second derivatives, too")

    torch.library.register_fake(f"daflow_ext::{op}_backward", fake)
    # without it, PyTorch would take the gradient for a constant
    torch.library.register_autograd(f"daflow_ext::{op}_backward", refuse)
