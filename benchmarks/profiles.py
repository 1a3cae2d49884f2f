"""Where the time of whole models goes, operator by operator and stage by stage: what is worth making faster.

``python -m benchmarks.run --op profiles``: RAFT-large, RAFT-small and daflow-tiny in inference. Shares, not speeds: the
profiler itself takes time. The models are checked where they are timed (:mod:`benchmarks.model`,
:mod:`benchmarks.daflow`).
"""

from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from daflow_ext import get_model
from daflow_ext.models import RAFT
from daflow_ext.models.stages import StageMeter

from . import daflow, model, timing

OP = "profiles"
LEAST_SHARE = 1.0  # percent; operators below are left out


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """The share of every stage, then of every operator, its own time without that of the operators it calls."""
    for case, network, call in _cases(quick, device):
        with torch.inference_mode():
            call()
            with StageMeter(network, memory=False) as meter:
                call()
            activities = [ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
            with profile(activities=activities) as profiled:
                call()
        for stage in meter.rows()[:-1]:
            share = 100 * daflow.seconds(stage) / daflow.seconds(meter.total)
            yield timing.Record(OP, f"{case}: {stage.name}", share, "% of time", details={"calls": stage.calls})
        yield from operator_records(case, profiled, device)


def operator_records(case: str, profiled: profile, device: str) -> Iterator[timing.Record]:
    """One record per operator of a profile, the largest share first."""
    kind = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: getattr(event, kind), reverse=True)
    total = sum(getattr(event, kind) for event in events)
    for event in events:
        share = 100 * getattr(event, kind) / total
        if share >= LEAST_SHARE:
            yield timing.Record(OP, f"{case}: {event.key}", share, "% of time", details={"calls": event.count})


def _cases(quick: bool, device: str) -> Iterator[tuple[str, torch.nn.Module, Callable[[], object]]]:
    generator = torch.Generator().manual_seed(0)
    height, width, side = (128, 256, 96) if quick else (model.HEIGHT, model.WIDTH, 256)
    images = [255 * torch.rand(1, 3, height, width, generator=generator).to(device) for _ in range(2)]
    for size in ("large", "small"):
        raft = RAFT(size == "small", memory="on_the_fly").eval().to(device)
        yield f"RAFT-{size} {height}x{width}", raft, lambda raft=raft: raft(*images, model.ITERS, test_mode=True)
    pipe = get_model(daflow.MODEL, pretrained=False).to(device)
    frames = torch.randint(0, 256, (1, 3, 3, side, side), generator=generator).byte()
    yield f"{daflow.MODEL} 3x{side}x{side}", pipe, lambda: pipe(frames, iters=daflow.ITERS)
