"""Where the time and the memory of a flow go: stage by stage, measured while a model runs."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .raft import RAFT

STAGES = ("vae encode", "transformer", "vae decode", "heads", "encoders", "correlation", "update", "upsampling")
"""In the order of a run; RAFT alone has the last four."""


@dataclasses.dataclass
class Stage:
    """What one stage took in all its calls.

    Units:
        milliseconds: wall time (on a GPU after synchronisation). cpu_seconds: of the process, on a CPU; None on a GPU.
        peak_bytes: the largest growth of memory during a call, beyond what was there at its start: allocated memory on
        a GPU, resident memory on Linux, None where neither is known or wanted. Resident memory that an earlier call
        left to the allocator is not seen growing: measure it in the first run.
    """

    name: str
    calls: int = 0
    milliseconds: float = 0.0
    cpu_seconds: float | None = None
    peak_bytes: int | None = None


class StageMeter:
    """Measures the calls of a model inside ``with StageMeter(model) as meter``; then ``meter.stages`` has the results,
    ``meter.total`` those of the whole block.

    Each stage is one method of a part of the model, wrapped for the time of the block.

    Args:
        memory: also measure peaks, which costs a millisecond a call on a CPU.
    Attributes:
        highest_bytes: the most memory held during the block, weights included; None if unknown or not measured.
    """

    def __init__(self, model: Any, *, memory: bool):
        self.memory = memory
        raft = model if isinstance(model, RAFT) else model.flow.raft
        self.device = next(raft.parameters()).device
        self.stages = {name: Stage(name) for name in STAGES}
        self.total = Stage("total")
        self._methods = [
            (raft, "features", "encoders"),
            (raft, "correlation", "correlation"),
            (raft, "update", "update"),
            (raft, "flow", "upsampling"),
        ]
        if raft is not model:
            self._methods += [
                (model.vae, "encode", "vae encode"),
                (model.vae, "decode", "vae decode"),
                (model.transformer, "forward", "transformer"),
                (model.flow.heads, "forward", "heads"),
            ]
        self._exits = contextlib.ExitStack()
        self._before, self._highest = 0, 0
        self.highest_bytes: int | None = None

    def __enter__(self) -> "StageMeter":
        for part, method, stage in self._methods:
            part.__dict__[method] = self._wrapped(getattr(part, method), stage)  # shadows the method of the class
            self._exits.callback(part.__dict__.pop, method)
        self._reset_peak()  # what happened before is not this block's
        self._highest = 0
        self._exits.enter_context(self._measured(self.total))
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()
        self.stages = {name: stage for name, stage in self.stages.items() if stage.calls}
        if self.total.peak_bytes is not None:  # the peak was reset at every stage
            self.highest_bytes = self._highest
            self.total.peak_bytes = max(self.total.peak_bytes, self._highest - self._before)

    def rows(self) -> list[Stage]:
        """The stages that ran, what lies between them, and the total."""
        parts = list(self.stages.values())
        rest = Stage("other", 1, self.total.milliseconds - sum(part.milliseconds for part in parts))
        if self.total.cpu_seconds is not None:
            rest.cpu_seconds = self.total.cpu_seconds - sum(part.cpu_seconds or 0.0 for part in parts)
        return [*parts, rest, self.total]

    def _wrapped(self, call: Callable, name: str) -> Callable:
        def measured(*arguments: Any, **options: Any) -> Any:
            with self._measured(self.stages[name]):
                result = call(*arguments, **options)
            # a correlation block is built once and asked many times
            return self._wrapped(result, name) if name == "correlation" and callable(result) else result

        return measured

    @contextlib.contextmanager
    def _measured(self, stage: Stage) -> Iterator[None]:
        start = self._reset_peak()
        if stage is self.total:
            self._before = start or 0
        began, cpu = time.perf_counter(), time.process_time()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        else:
            stage.cpu_seconds = (stage.cpu_seconds or 0.0) + time.process_time() - cpu
        stage.calls += 1
        stage.milliseconds += 1e3 * (time.perf_counter() - began)
        peak = self._peak()
        if peak is not None and start is not None:
            self._highest = max(self._highest, peak)
            stage.peak_bytes = max(stage.peak_bytes or 0, peak - start)

    def _reset_peak(self) -> int | None:
        """Forget the peak; gives the memory held now."""
        if not self.memory:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._highest = max(self._highest, torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        self._highest = max(self._highest, self._peak() or 0)
        with contextlib.suppress(OSError):  # not Linux, or not allowed: then the peak is not known
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")

    def _peak(self) -> int | None:
        if not self.memory:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM")


def _resident(field: str) -> int | None:
    """Bytes of a line of /proc/self/status; None where there is none."""
    status = pathlib.Path("/proc/self/status")
    if not status.is_file():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(field))
