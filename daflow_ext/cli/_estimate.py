"""What ``infer`` and ``demo`` share: the model arguments, and flow along a clip."""

import argparse
import pathlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .. import backends
from ..flow import forward_backward_consistency, forward_interpolate
from ..frames import InputPadder
from ..models import RAFT
from ..models.raft import SMALLEST_SIDE


def add_model_arguments(parser: argparse.ArgumentParser, *, iters: int) -> None:
    """``--iters``, ``--device`` and ``--backend``."""
    parser.add_argument("--iters", type=int, default=iters, metavar="N", help="refinement steps (default %(default)s)")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto = cuda where our CUDA kernels can run"
    )
    parser.add_argument(
        "--backend",
        choices=["auto", *backends.BACKENDS],
        default="auto",
        help="implementation of the correlation; auto = compiled kernels of the device, see `daflow info`",
    )


def load_model(weights: pathlib.Path, args: argparse.Namespace) -> tuple[RAFT, torch.device]:
    """The model in evaluation mode on the device that the arguments ask for.

    Raises:
        FileNotFoundError, ValueError: no such weights, weights of another model, a device or backend that cannot run.
    """
    if args.iters < 1:
        raise ValueError(f"--iters must be at least 1, got {args.iters}")
    able, reason = backends.can_run("corr_lookup", "cuda")
    if args.device == "cuda" and args.backend != "reference" and not able:
        raise ValueError(f"--device cuda cannot run: {reason}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda cannot run: no CUDA device is visible")
    name = ("cuda" if able else "cpu") if args.device == "auto" else args.device
    if args.backend != "auto":
        able, reason = backends.can_run("corr_lookup", args.backend, name)
        if not able:
            raise ValueError(f"--backend {args.backend} cannot run: {reason}")
    if not weights.exists():
        raise FileNotFoundError(f"the weights file {weights} does not exist")
    device = torch.device(name)
    return RAFT.from_pretrained(weights, backend=args.backend).eval().to(device), device


def model_name(model: RAFT) -> str:
    """What messages call the model: RAFT-small or RAFT-large."""
    return f"RAFT-{'small' if model.small else 'large'}"


@dataclass
class PairFlow:
    """One pair of neighbouring frames and its flow, on the CPU.

    image1, image2: uint8 [3, H, W]. forward: [2, H, W], pixels, from image1 to image2. backward: [2, H, W] from image2
    to image1; occluded: bool [H, W], pixels of image1 that image2 does not show; both None unless asked for.
    """

    index: int
    image1: torch.Tensor
    image2: torch.Tensor
    forward: torch.Tensor
    backward: torch.Tensor | None
    occluded: torch.Tensor | None
    seconds: float


def estimate_clip(
    model: RAFT,
    frames,
    device: torch.device,
    *,
    iters: int,
    warm_start: bool = False,
    bidirectional: bool = False,
) -> Iterator[PairFlow]:
    """Flow of every pair of neighbouring frames; two frames are held at a time.

    ``warm_start`` begins each pair at the previous flow carried along itself instead of at zero.

    Raises:
        ValueError: fewer than two frames, and what reading the frames raises.
    """
    image1, count = None, 0
    start_forward = start_backward = None
    cpu_backend = "reference" if model.backend == "reference" else "auto"  # the flows to compare are on the CPU
    for image2 in frames:
        count += 1
        if image1 is not None:
            began = time.perf_counter()
            low, forward = _flow(model, image1, image2, device, iters, start_forward)
            backward = occluded = None
            if warm_start:
                start_forward = forward_interpolate(low)
            if bidirectional:
                low, backward = _flow(model, image2, image1, device, iters, start_backward)
                occluded = forward_backward_consistency(forward, backward, backend=cpu_backend)
                if warm_start:  # the motion goes on, so these vectors travel against their own direction
                    start_backward = -forward_interpolate(-low)
            yield PairFlow(count - 2, image1, image2, forward, backward, occluded, time.perf_counter() - began)
        image1 = image2
    if count < 2:
        raise ValueError(f"{frames.source} holds {count} frame(s), optical flow needs at least two")


@torch.inference_mode()
def _flow(
    model: RAFT,
    image1: torch.Tensor,
    image2: torch.Tensor,
    device: torch.device,
    iters: int,
    flow_init: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """flow_low as the model gives it, and the flow at image size on the CPU."""
    padder = InputPadder(image1.shape, minimum=SMALLEST_SIDE)
    padded = padder.pad(image1[None].to(device), image2[None].to(device))
    low, flow = model(*padded, iters=iters, flow_init=flow_init, test_mode=True)
    return low, padder.unpad(flow)[0].float().cpu().contiguous()
