"""Tools every benchmark shares: the record, the correctness gate, interleaved timing, peak memory, the machine.

On the CPU the unit is CPU-seconds of the process on one thread (``time.process_time``), which a busy neighbour disturbs
least; on a GPU it is the time between two CUDA events, the first behind a pause in which Python gets ahead.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import torch

import daflow_ext

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD_START = 1_000_000  # clock cycles, about half a millisecond: the time of launches is then not that of kernels


class WrongResultError(AssertionError):
    """A candidate disagrees with the truth; nothing is timed then."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One line of a report.

    Args:
        op: the benchmark, named as its module.
        case: what was measured, sizes included.
        value, unit: the result.
        goal: what the value should reach (``at_least``) or stay under; None where there is nothing to reach.
        details: whatever else belongs to the number: times, errors, settings.
    """

    op: str
    case: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = True
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def json(self) -> str:
        fields = dataclasses.asdict(self)
        return json.dumps({**fields.pop("details"), **fields, "met": self.met})

    def line(self) -> str:
        """For people: case, value, goal."""
        goal = ""
        if self.goal is not None:
            goal = f"  (goal {'>=' if self.at_least else '<='} {self.goal:g}: {'met' if self.met else 'MISSED'})"
        return f"{self.op:16} {self.case:58} {self.value:>10.4g} {self.unit}{goal}"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one candidate over the repetitions: median and the 20 % and 80 % quantiles."""

    median: float
    p20: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        cuts = statistics.quantiles(seconds, n=5, method="inclusive")
        return cls(statistics.median(seconds), cuts[0], cuts[-1], len(seconds))

    def milliseconds(self) -> dict[str, float | int]:
        """The fields as they go into a record."""
        return {
            "ms": round(self.median * 1e3, 4),
            "ms_p20": round(self.p20 * 1e3, 4),
            "ms_p80": round(self.p80 * 1e3, 4),
            "repeats": self.repeats,
        }


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    warmup: int = 1,
    device: str = "cpu",
    budget: float = math.inf,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Timing]:
    """Time the candidates in turn (a b c, a b c, ...), so that a slow spell of the machine hits all of them alike.

    Args:
        budget: seconds by the clock after which no further round begins; three rounds there are at least, if asked for.
        clock: of the CPU; ``time.perf_counter`` where threads share the work.
    """
    for call in candidates.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - begin > budget:
            break
        for name, call in candidates.items():
            seconds[name].append(_seconds(call, device, clock))
    return {name: Timing.of(values) for name, values in seconds.items()}


def peak_here(call: Callable[[], object], device: str) -> int | None:
    """Peak of CUDA's allocator during a call, beyond what was alive before it; None on the CPU (see peak_bytes)."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _seconds(call: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    if torch.device(device).type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(HEAD_START)
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3
    begin = clock()
    call()
    return clock() - begin


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with ``count`` torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gate(name: str, result: torch.Tensor, truth: torch.Tensor, atol: float) -> float:
    """Largest absolute difference of ``result`` to ``truth``.

    Raises:
        WrongResultError: other shape, non-finite values, or a difference above ``atol``.
    """
    if result.shape != truth.shape:
        raise WrongResultError(f"{name}: shape {list(result.shape)}, expected {list(truth.shape)}; not timed")
    worst = (result.double() - truth.double()).abs().max().item() if truth.numel() else 0.0
    if not worst <= atol:  # also refuses NaN
        raise WrongResultError(f"{name}: differs from the truth by {worst:.3g}, allowed {atol:.3g}; not timed")
    return worst


def peak_bytes(target: str, **options: object) -> int:
    """Peak memory that a call needs beyond what was alive before it, in a process of its own.

    Resident memory on the CPU, the allocator's on CUDA (if ``options["device"]`` says so).

    Args:
        target: ``"package.module:function"``. ``function(**options)`` prepares the inputs and returns the call to
            measure; a small warm-up of the libraries belongs in the preparation.
        options: anything JSON can carry.
    """
    command = [sys.executable, "-m", "benchmarks.timing", target, json.dumps(options)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def _measure_peak(target: str, options: dict[str, object]) -> int:
    module, function = target.split(":")
    torch.set_num_threads(1)
    call = getattr(importlib.import_module(module), function)(**options)
    if options.get("device") == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    before = _status_bytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the preparation
    result = call()
    peak = _status_bytes("VmHWM") - before
    del result
    return max(peak, 0)


def _status_bytes(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; peak memory is measured on Linux only")


def environment(device: str = "cpu") -> dict[str, object]:
    """Date, machine and versions: what a number means nothing without."""
    where = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "daflow_ext": daflow_ext.__version__,
        "daflow_ext_capability": torch.ops.daflow_ext.cpu_capability(),
    }
    if torch.device(device).type == "cuda":
        where |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return where


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"


def _cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the peak memory in bytes of one call; used by peak_bytes().")
    parser.add_argument("target")
    parser.add_argument("options", type=json.loads)
    arguments = parser.parse_args()
    print(_measure_peak(arguments.target, arguments.options))
