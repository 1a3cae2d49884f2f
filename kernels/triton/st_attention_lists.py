"""Key tiles that each frame sees, as lists: frames that a window hides are not in them, and no mask is stored."""

import functools
from collections.abc import Sequence

import torch

from .streams import Stream

Run = tuple[int, int]  # first frame, frames


def key_lists(
    keys: Sequence[Stream], frames: int, window: int, reference: Sequence[int], block: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of key tiles, one for each of ``frames`` frames and a last one for queries that see every frame.

    Shapes:
        entries: [tiles, 4] int32, a row (stream, frame, token, tokens): ``tokens`` <= ``block`` tokens from ``token``
            on, counted from the start of ``frame``. starts: [2 * lists + 1] int32: list i has its whole tiles from
            starts[2 i] on and its partial ones from starts[2 i + 1] on, and ends at starts[2 i + 2].
    """
    shapes = tuple((key.frames, key.tokens, bool(key.joined)) for key in keys)
    return _key_lists(shapes, frames, window, tuple(reference), block, device)


@functools.lru_cache(maxsize=256)
def _key_lists(shapes, total: int, window: int, reference: tuple[int, ...], block: int, device: torch.device):
    entries, starts = [], []
    for frame in (*range(total), None):
        tiles = [
            (stream, first, token, min(block, count * tokens - token))
            for stream, (frames, tokens, joined) in enumerate(shapes)
            for first, count in _runs(frame, frames, joined, window, reference)
            for token in range(0, count * tokens, block)
        ]
        whole = [tile for tile in tiles if tile[3] == block]
        starts += [len(entries), len(entries) + len(whole)]
        entries += whole + [tile for tile in tiles if tile[3] < block]
    starts.append(len(entries))
    return tuple(torch.tensor(rows, dtype=torch.int32, device=device) for rows in (entries, starts))


def _runs(frame: int | None, frames: int, joined: bool, window: int, reference: tuple[int, ...]) -> list[Run]:
    """Runs of consecutive tokens that a frame, or None for all frames, sees of a stream; one frame belongs to all."""
    first, last = 0, frames
    if frame is not None and frames > 1:
        first, last = max(frame - window, 0), min(frame + window + 1, frames)
    extra = [(r, 1) for r in reference if r < frames and not first <= r < last]
    return [(first, last - first), *extra] if joined else [(f, 1) for f in range(first, last)] + extra
