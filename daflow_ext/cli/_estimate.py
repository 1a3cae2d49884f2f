"""Every model as one thing: an estimator that walks along a clip. With the arguments that choose and set it."""

import argparse
import hashlib
import itertools
import json
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from .. import backends
from ..flow import forward_backward_confidence, forward_backward_consistency, forward_interpolate
from ..frames import Frames, InputPadder
from ..models import RAFT, get_model
from ..models.pair_flow import PairFlow
from ..models.raft import SMALLEST_SIDE
from ..models.registry import DEFAULT_MODEL

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


Warm = dict[str, torch.Tensor]
"""What the pairs so far leave for the next one: the low-resolution flow of each direction."""


class Estimator(Protocol):
    """A model with its settings.

    Attributes:
        model: the network. name: what messages call it. device: where it runs. iters: refinement steps.
        settings: what its results depend on, beside frames and weights.
        stride: how many pairs are estimated together; a clip is entered at multiples of it.
    """

    model: Any
    name: str
    device: torch.device
    iters: int
    settings: dict[str, Any]
    stride: int

    def pairs(
        self,
        frames: Frames,
        *,
        warm_start: bool = False,
        bidirectional: bool = False,
        start: int = 0,
        warm: Warm | None = None,
    ) -> Iterator[PairFlow]:
        """Flow of every pair of neighbouring frames from pair ``start`` on, a few frames held at a time.

        ``warm_start`` begins each pair at the previous flow carried along itself instead of at zero; ``warm`` is what
        the pair before ``start`` left for that.

        Raises:
            ValueError: fewer than two frames, and what reading the frames raises.
        """


# ---- arguments ------------------------------------------------------------------------------------------------------


def add_model_arguments(parser: argparse.ArgumentParser, *, iters: int, seed_flag: str = "--seed") -> None:
    """What every model takes: ``--iters``, ``--device``, ``--backend``; and what DA-Flow takes beside that."""
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
    group = parser.add_argument_group("DA-Flow models")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps (default 10)")
    group.add_argument(
        "--feature-steps",
        metavar="S",
        help="steps whose features are used: first (default: one transformer evaluation), all, or a list as 0,2,5",
    )
    group.add_argument(
        seed_flag, dest="noise_seed", type=int, metavar="N", help="of the starting noise of the denoising (default 0)"
    )
    group.add_argument(
        "--memory-budget", metavar="BYTES", help="stay under it by working in tiles, as 4G (default: no tiles)"
    )
    group.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the transformer and VAE (default float32)"
    )


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """``--weights`` or ``--model``, for :func:`load_estimator`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--weights", metavar="W", type=pathlib.Path, help="RAFT weights (.pth, .safetensors)")
    group.add_argument(
        "--model",
        metavar="M",
        help="a model by name (`daflow list`), RAFT weights, or a DA-Flow pipeline folder; without either: "
        f"{DEFAULT_MODEL}, which comes with the package",
    )


def feature_steps(text: str) -> str | list[int]:
    """The argument of ``--feature-steps``.

    Raises:
        ValueError: neither a word nor a list of numbers.
    """
    if text in ("first", "all"):
        return text
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"--feature-steps must be first, all or a list as 0,2,5, got {text!r}")
    return [int(number) for number in text.split(",")]


def memory_bytes(text: str) -> int:
    """The argument of ``--memory-budget``: 4G, 512M or a plain number of bytes.

    Raises:
        ValueError: something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"--memory-budget must be a number of bytes as 4G or 512M, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


# ---- loading --------------------------------------------------------------------------------------------------------


def chosen_device(args: argparse.Namespace) -> torch.device:
    """The device that the arguments ask for.

    Raises:
        ValueError: a device or backend that cannot run here, ``--iters`` below 1.
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
    return torch.device(name)


def load_model(source: str | pathlib.Path, args: argparse.Namespace) -> Any:
    """RAFT or a DA-Flow pipeline, in evaluation mode on the device that the arguments ask for.

    Raises:
        FileNotFoundError, ValueError: no such model, a device or backend that cannot run.
    """
    device = chosen_device(args)
    options = {"backend": args.backend}
    is_raft = pathlib.Path(source).is_file() or str(source).startswith("raft-")
    if args.dtype is not None and not is_raft:
        options["torch_dtype"] = getattr(torch, args.dtype)
    model = get_model(source, **options)
    if isinstance(model, RAFT):
        model.eval()
    return model.to(device)


def refuse_daflow_options(args: argparse.Namespace, model: str) -> None:
    """Raise if an option was given that only DA-Flow takes; ``model`` says what there is instead."""
    for name in ("steps", "feature_steps", "noise_seed", "memory_budget", "dtype"):
        if getattr(args, name) is not None:
            raise ValueError(f"the option for {name.replace('_', ' ')} belongs to DA-Flow, but {model}")


def source_name(args: argparse.Namespace) -> str | pathlib.Path:
    """What :func:`add_source_arguments` was given."""
    return args.weights or args.model or DEFAULT_MODEL


def load_estimator(args: argparse.Namespace) -> Estimator:
    """The model of ``--weights`` or ``--model``, else the default one, ready to walk.

    Raises:
        FileNotFoundError, ValueError: no such file, and what :func:`load_model` raises.
    """
    if args.weights is not None and not args.weights.exists():
        chosen_device(args)
        raise FileNotFoundError(f"the weights file {args.weights} does not exist")
    if args.weights is not None and not args.weights.is_file():
        raise ValueError(f"--weights {args.weights} is a folder; for a pipeline folder give --model")
    source = source_name(args)
    model = load_model(source, args)
    if isinstance(model, RAFT):
        refuse_daflow_options(args, f"{source} is {raft_name(model)}")
        name = raft_name(model) if pathlib.Path(source).is_file() else str(source)
        return RaftEstimator(model, name, **estimator_options(model, args))
    return DAFlowEstimator(model, **estimator_options(model, args))


def estimator_options(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the model's estimator or predictor."""
    if isinstance(model, RAFT):
        return {"iters": args.iters}
    options = {
        "iters": args.iters,
        "num_inference_steps": 10 if args.steps is None else args.steps,
        "feature_steps": feature_steps(args.feature_steps or "first"),
        "seed": args.noise_seed or 0,
        "memory_budget": None if args.memory_budget is None else memory_bytes(args.memory_budget),
    }
    from ..models.chunks import chosen_steps

    chosen_steps(options["feature_steps"], options["num_inference_steps"])  # before anything is read
    return options


def model_identity(model: Any) -> str:
    """Sixteen digits that change when a weight or the configuration does."""
    networks = {"": model} if isinstance(model, RAFT) else model.components
    digest = hashlib.sha256()
    for part, network in networks.items():
        digest.update(f"{part} {json.dumps(dict(network.config), sort_keys=True, default=str)}".encode())
        if isinstance(network, torch.nn.Module):
            for name, tensor in network.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def raft_name(model: RAFT) -> str:
    """What messages call a RAFT: RAFT-small or RAFT-large."""
    return f"RAFT-{'small' if model.small else 'large'}"


# ---- walking --------------------------------------------------------------------------------------------------------


class RaftEstimator:
    """RAFT, pair by pair; see :class:`Estimator`."""

    stride = 1

    def __init__(self, model: RAFT, name: str, *, iters: int):
        self.model = model
        self.iters = iters
        self.name, self.device = name, next(model.parameters()).device
        self.settings: dict[str, Any] = {"model": self.name, "iters": iters, "backend": model.backend}

    def pairs(
        self,
        frames: Frames,
        *,
        warm_start: bool = False,
        bidirectional: bool = False,
        start: int = 0,
        warm: Warm | None = None,
    ) -> Iterator[PairFlow]:
        image1, count = None, start
        carry = {kind: low.to(self.device) for kind, low in (warm or {}).items()}
        backend = "reference" if self.model.backend == "reference" else "auto"  # the flows to compare are on the CPU
        for image2 in itertools.islice(frames, start, None):
            count += 1
            if image1 is not None:
                began = time.perf_counter()
                low, forward = _flow(self.model, image1, image2, self.device, self.iters, carry.get("forward"))
                backward = occluded = confidence = None
                if warm_start:
                    carry["forward"] = forward_interpolate(low)
                if bidirectional:
                    low, backward = _flow(self.model, image2, image1, self.device, self.iters, carry.get("backward"))
                    occluded = forward_backward_consistency(forward, backward, backend=backend)
                    confidence = forward_backward_confidence(forward, backward, backend=backend)
                    if warm_start:  # the motion goes on, so these vectors travel against their own direction
                        carry["backward"] = -forward_interpolate(-low)
                seconds = time.perf_counter() - began
                left = {kind: low.cpu() for kind, low in carry.items()} if warm_start else None
                yield PairFlow(
                    count - 2, image1, image2, forward, backward, occluded, confidence, seconds=seconds, warm=left
                )
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


class DAFlowEstimator:
    """A DA-Flow pipeline, chunk by chunk; see :class:`Estimator`."""

    stride = 2

    def __init__(self, pipe: Any, *, seed: int = 0, **options: Any):
        self.name = pathlib.Path(pipe.config.get("_name_or_path") or "DA-Flow").name
        self.model, self.seed, self.options = pipe, seed, options
        self.device, self.iters = pipe.device, options["iters"]
        self.settings = {
            "model": self.name,
            "seed": seed,
            "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
            "backend": pipe.backend,
            **options,
        }

    def pairs(
        self,
        frames: Frames,
        *,
        warm_start: bool = False,
        bidirectional: bool = False,
        start: int = 0,
        warm: Warm | None = None,
    ) -> Iterator[PairFlow]:
        found: Iterator[PairFlow] = self.model.video(
            frames,
            generator=torch.Generator().manual_seed(self.seed),
            warm_start=warm_start,
            bidirectional=bidirectional,
            start=start,
            warm=warm,
            **self.options,
        )
        return found
