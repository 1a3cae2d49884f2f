"""How fast clips come out of a data set: 3-frame clips from PNG and .flo files, 2 workers, clean and degraded."""

import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator

import cv2
import numpy as np
import torch

from daflow_ext.datasets import Degradation, Sintel, collate, worker_init
from daflow_ext.flow import write_flow

from . import timing

OP = "loader"
WORKERS, CLIP, BATCH = 2, 3, 2
RECIPE = Degradation("realbasicvsr", "realbasicvsr")


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Clips per second of wall-clock time, and CPU time of the workers per clip, which a busy machine disturbs less.

    Nothing on a GPU, which has no part in it.
    """
    if device != "cpu":
        return
    sizes = [(256, 256)] if quick else [(256, 256), (436, 1024)]
    for height, width in sizes:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            _write_tree(root, height, width, frames=11 if quick else 41)
            for name, degrade in (("clean", None), (RECIPE.name, RECIPE)):
                dataset = Sintel(root, clip=CLIP, every_pair=True, degrade=degrade)
                _gate(dataset)
                clips, seconds, cpu = _drain(dataset)
                case, details = f"{name}, {CLIP} frames {width}x{height}", {"clips": clips, "batch": BATCH}
                yield timing.Record(OP, f"{case}, {WORKERS} workers", clips / seconds, "clips/s", details=details)
                yield timing.Record(OP, case, 1e3 * cpu / clips, "ms CPU per clip", details=details)


def _write_tree(root: pathlib.Path, height: int, width: int, frames: int) -> None:
    """One scene of moving coloured noise in Sintel's layout and formats."""
    rng = np.random.default_rng(0)
    picture = np.full((height, width + 2 * frames, 3), 128, np.float32)
    for cells, contrast in ((8, 30), (32, 20), (128, 12)):
        grid = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        picture += contrast * cv2.resize(grid, picture.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    picture = np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
    scene, flows = root / "training/clean/scene", root / "training/flow/scene"
    scene.mkdir(parents=True)
    flows.mkdir(parents=True)
    flow = np.zeros((2, height, width), np.float32)
    flow[0] = -2.0
    for number in range(1, frames + 1):
        cv2.imwrite(str(scene / f"frame_{number:04d}.png"), picture[:, 2 * number : 2 * number + width])
        if number < frames:
            write_flow(flows / f"frame_{number:04d}.flo", flow)


def _loader(dataset: Sintel, workers: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate, worker_init_fn=worker_init
    )


def _gate(dataset: Sintel) -> None:
    """The workers give the bits of this process."""
    for field in ("frames", "lq", "flow"):
        ours, theirs = (getattr(next(iter(_loader(dataset, workers))), field) for workers in (0, WORKERS))
        if (ours is None) != (theirs is None) or (ours is not None and not torch.equal(ours, theirs)):
            raise timing.WrongResultError(f"{OP}: {field} from workers differ from those of one process; not timed")


def _drain(dataset: Sintel) -> tuple[int, float, float]:
    """Clips, wall-clock seconds from the first batch to the last, CPU seconds of the workers in all."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    batches = iter(_loader(dataset, WORKERS))
    first = next(batches)
    began, clips = time.perf_counter(), 0
    for batch in batches:
        clips += len(batch.frames)
    seconds = time.perf_counter() - began
    del batches  # joins the workers, whose time counts from then on
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return clips, seconds, cpu * clips / (clips + len(first.frames))
