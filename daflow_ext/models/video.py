"""Flow along a video in constant memory: every pair once, transformer features once per chunk."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ..flow import forward_backward_confidence, forward_backward_consistency
from ..frames import InputPadder
from .chunks import CHUNK, MULTIPLE, ChunkEstimator, ChunkFlow, carried
from .pair_flow import PairFlow

SMALLEST_SIDE = 32
"""Pixels per side that DA-Flow asks of a frame: two transformer tokens."""


def check_frame(frame: torch.Tensor, index: int, like: torch.Tensor | None = None) -> None:
    """Raise one sentence unless ``frame`` is [3, H, W] in [0, 255], large enough, of the size of ``like``.

    Raises:
        TypeError, ValueError: names the frame, what came and what was expected.
    """
    if not isinstance(frame, torch.Tensor) or (frame.dtype != torch.uint8 and not frame.is_floating_point()):
        came = frame.dtype if isinstance(frame, torch.Tensor) else type(frame).__name__
        raise TypeError(f"frame {index} must be a tensor, uint8 or floating in [0, 255], got {came}")
    if frame.dim() != 3 or frame.shape[0] != 3:
        raise ValueError(f"frame {index} must be RGB [3, H, W], got {list(frame.shape)}")
    if like is not None and frame.shape != like.shape:
        raise ValueError(
            f"frame {index} is {frame.shape[2]}x{frame.shape[1]} pixels but the first is "
            f"{like.shape[2]}x{like.shape[1]}; all frames must have one size"
        )
    if min(frame.shape[1:]) < SMALLEST_SIDE:
        raise ValueError(
            f"frame {index} is {frame.shape[2]}x{frame.shape[1]} pixels, DA-Flow needs at least "
            f"{SMALLEST_SIDE}x{SMALLEST_SIDE}"
        )
    if frame.is_floating_point():
        if not bool(frame.isfinite().all()):
            raise ValueError(f"frame {index} holds NaN or infinite pixels, but frames are in [0, 255]")
        if float(frame.amax()) <= 1:
            raise ValueError(
                f"frame {index} is a float frame whose maximum is {float(frame.amax()):g}, but frames are in [0, 255]; "
                "multiply by 255 (or pass uint8 if it really is black)"
            )


def estimate_video(
    frames: Iterable[torch.Tensor],
    open_estimator: Callable[[tuple[int, int]], ChunkEstimator],
    *,
    warm_start: bool,
    backend: str = "auto",
    start: int = 0,
    warm: dict[str, torch.Tensor] | None = None,
) -> Iterator[PairFlow]:
    """The pairs of a video, in order; holds three frames and the features of one chunk.

    Args:
        open_estimator: size of the padded frames (H, W) -> :class:`ChunkEstimator`.
        start: first pair to estimate, an even number (chunks are two pairs). warm: what :class:`PairFlow` said of the
            pair before it.
    Raises:
        ValueError, TypeError: fewer than two frames, frames that do not fit, and what reading them raises.
    """
    if start < 0 or start % (CHUNK - 1):
        raise ValueError(f"start must be a multiple of {CHUNK - 1}, where a chunk begins, got {start}")
    window: list[torch.Tensor] = []
    latents: list[torch.Tensor] = []
    first, index = None, start
    walk = _Walk(open_estimator, warm_start, backend, warm or {})
    for number, frame in enumerate(itertools.islice(frames, start, None), start):
        check_frame(frame, number, first)
        first = frame if first is None else first
        window.append(frame)
        if len(window) == CHUNK:
            yield from walk.chunk(window, index, latents)
            index, window = index + CHUNK - 1, window[-1:]
    if len(window) == 2:  # an even number of frames: the last one stands for the missing third
        yield from walk.chunk([*window, window[-1]], index, latents, pairs=1)
    elif first is None or (not start and index == 0):
        source = getattr(frames, "source", "the video")
        raise ValueError(f"{source} holds {len(window)} frame(s), optical flow needs at least two")


class _Walk:
    """What is carried from chunk to chunk: the shared frame's latents and the warm start."""

    def __init__(self, open_estimator: Callable, warm_start: bool, backend: str, warm: dict):
        self.open_estimator = open_estimator
        self.estimator: Any = None  # a ChunkEstimator and an InputPadder, once the size is known
        self.padder: Any = None
        self.warm_start, self.warm, self.backend = warm_start, warm, backend

    def chunk(self, window: list[torch.Tensor], index: int, latents: list, pairs: int = 2) -> Iterator[PairFlow]:
        began = time.perf_counter()
        if self.estimator is None:
            self.padder = InputPadder(window[0].shape, multiple=MULTIPLE)
            self.estimator = self.open_estimator(self.padder.pad(window[0])[0].shape[-2:])
        device = self.estimator.noise.device
        padded = self.padder.pad(torch.stack(window).to(device))[0]
        while len(latents) < CHUNK:  # the frame shared with the chunk before is there already
            repeated = len(latents) > pairs
            latents.append(latents[-1] if repeated else self.estimator.encode(padded[None, len(latents)]))
        starts = [[self.warm[kind].to(device) if kind in self.warm else None, None] for kind in ("forward", "backward")]
        flow = self.estimator(padded[None], torch.cat(latents, 1), pairs, *starts)
        del latents[:-1]
        results = self._results(flow, pairs)
        seconds = (time.perf_counter() - began) / pairs
        for pair, result in enumerate(results):
            if self.warm_start:
                self.warm = result["warm"]
            yield PairFlow(index + pair, window[pair], window[pair + 1], seconds=seconds, **result)

    def _results(self, flow: ChunkFlow, pairs: int) -> list[dict]:
        results = []
        for pair in range(pairs):
            forward: Any = flow.forward[0, pair]
            backward: Any = None if flow.backward is None else flow.backward[0, pair]
            warm = None
            if self.warm_start:
                warm = {"forward": carried(forward[None]).cpu()}
                if backward is not None:
                    warm["backward"] = carried(backward[None], backward=True).cpu()
            # cut before comparing: what leaves the frame is hidden, also where padding would still show it
            forward, backward = (
                None if one is None else self.padder.unpad(one).contiguous() for one in (forward, backward)
            )
            occluded = confidence = None
            if backward is not None:
                occluded = forward_backward_consistency(forward, backward, backend=self.backend).cpu()
                confidence = forward_backward_confidence(forward, backward, backend=self.backend).cpu()
                backward = backward.cpu()
            results.append(
                {
                    "forward": forward.cpu(),
                    "backward": backward,
                    "occluded": occluded,
                    "confidence": confidence,
                    "warm": warm,
                }
            )
        return results
