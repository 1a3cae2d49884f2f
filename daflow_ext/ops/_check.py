"""Argument checks shared by the ops: each raises one sentence with what came and what was expected."""

from collections.abc import Sequence

import torch

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def spell(tensor: torch.Tensor) -> str:
    """A tensor as an error message shows it."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"


def floating(op: str, name: str, tensor: torch.Tensor, rank: int, axes: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dim() != rank:
        raise ValueError(f"{op}: {name} must be {axes}, got {spell(tensor)}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64, got {spell(tensor)}")
    if tensor.dtype == torch.float64 and tensor.device.type == "cuda":
        raise TypeError(f"{op}: float64 runs on the CPU and the reference only, got {name} {spell(tensor)}")


def same(op: str, first_name: str, first: torch.Tensor, name: str, tensor: torch.Tensor, *, dtype: bool = True) -> None:
    """Same device, and same dtype unless told otherwise."""
    if tensor.device != first.device:
        raise ValueError(f"{op}: {name} is {spell(tensor)} but {first_name} is on {first.device}; move one of them")
    if dtype and tensor.dtype != first.dtype:
        raise TypeError(f"{op}: {name} is {spell(tensor)} but {first_name} is {first.dtype}; give both the same dtype")


def coordinates(op: str, coords: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """coords: [B, 2, H, W] or [B, N, 2, H, W], float32 (float64 beside float64 features)."""
    if not isinstance(coords, torch.Tensor):
        raise TypeError(f"{op}: coords must be a tensor, got {type(coords).__name__}")
    if coords.dim() not in (4, 5) or coords.shape[-3] != 2:
        raise ValueError(f"{op}: coords must be [B, 2, H, W] or [B, N, 2, H, W] (x, then y), got {spell(coords)}")
    if coords.dtype != torch.float32 and not (coords.dtype == like.dtype == torch.float64):
        raise TypeError(
            f"{op}: coords must be float32 (half precision moves the window by up to half a pixel), got {spell(coords)}"
        )
    same(op, like_name, like, "coords", coords, dtype=False)
    if coords.shape[0] != like.shape[0]:
        raise ValueError(f"{op}: batch of coords is {coords.shape[0]} but {like_name} is {spell(like)}")


def radius_pair(op: str, radius: int | Sequence[int]) -> list[int]:
    """[radius_y, radius_x], both >= 0."""
    pair = [radius, radius] if isinstance(radius, int) else list(radius)
    if len(pair) != 2 or any(not isinstance(r, int) or r < 0 for r in pair):
        raise ValueError(f"{op}: radius must be an integer >= 0 or a pair (radius_y, radius_x), got {radius!r}")
    return pair


def window_order(op: str, order: str) -> None:
    if order not in ("xy", "yx"):
        raise ValueError(f"{op}: order must be 'xy' (x offset slow, RAFT) or 'yx' (y offset slow), got {order!r}")


def output_dtype(op: str, out_dtype: torch.dtype, device: torch.device) -> None:
    if out_dtype not in FLOATING or (out_dtype == torch.float64 and device.type == "cuda"):
        raise TypeError(f"{op}: out_dtype must be float32, float16, bfloat16 (or float64 on the CPU), got {out_dtype}")
