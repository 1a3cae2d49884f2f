"""Runs many mutated files through a reader, in forked workers whose death, silence and memory are watched.

Input ``index`` of a reader is made from the seed and these two alone, so every finding can be made again:

    python -m tests.fuzz --only npz --first 1234 --count 1 --keep /tmp/found
"""

import collections
import contextlib
import dataclasses
import math
import mmap
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback

from . import mutate
from .readers import READERS, Reader

SLACK = 64 * 2**20  # an arena of malloc is that large; files of a few kB need far less
SANITIZED = os.environ.get("DAFLOW_TEST_SANITIZE") == "1"  # its allocator keeps what was freed
HARD_LIMIT = 4 * 2**30  # of address space beyond what the worker has: never take the machine down


@dataclasses.dataclass
class Result:
    """What came of the inputs of one reader."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    findings: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, int] = dataclasses.field(default_factory=dict)  # finding -> index of the first such input

    def found(self, what: str, index: int) -> None:
        self.findings[what] += 1
        self.examples.setdefault(what, index)


def make_input(name: str, seeds: list[bytes], seed: int, index: int) -> bytes:
    """Input ``index``: every hundredth is a seed as it is."""
    rng = random.Random(f"{seed} {name} {index}")
    if index % 100 == 0:
        return seeds[index // 100 % len(seeds)]
    return mutate.mutated(rng, seeds, READERS[name].inside)


def run(name: str, seed: int, first: int, count: int, *, limit: float, keep: pathlib.Path | None = None) -> Result:
    """``count`` inputs of reader ``name`` from ``first`` on; ``limit`` seconds for each."""
    reader, result, began = READERS[name], Result(name), time.monotonic()
    seeds = list(reader.seeds())
    position = first
    while position < first + count:
        position = _worker(reader, seeds, seed, position, first + count, limit, result, keep)
    result.seconds = time.monotonic() - began
    return result


def _worker(reader, seeds, seed, first, end, limit, result, keep) -> int:
    """One forked process; returns the index to go on from."""
    shared = mmap.mmap(-1, 8)
    shared[:] = struct.pack("<q", first)
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        code = 1
        try:
            outcome = _read_all(reader, result.name, seeds, seed, first, end, limit, shared, keep)
            with os.fdopen(send, "wb") as pipe:
                pickle.dump(outcome, pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(send)
    killed = _watch(pid, shared, limit)
    with os.fdopen(receive, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    at = struct.unpack("<q", shared[:])[0]
    if content:
        part, following = pickle.loads(content)
        _merge(result, part)
        return following
    result.inputs += at - first + 1  # which of them were accepted died with the worker
    what = "hang" if killed else f"crash: signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "crash: exit"
    result.found(what, at)
    _keep(keep, result.name, at, make_input(result.name, seeds, seed, at), reader)
    return at + 1


def _watch(pid: int, shared: mmap.mmap, limit: float) -> bool:
    """Wait for the end of a worker; True if it had to be killed because one input took too long."""
    seen, since, pause = shared[:], time.monotonic(), 0.001
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(pause)
        pause = min(0.1, pause * 2)
        now = time.monotonic()
        if shared[:] != seen:
            seen, since = shared[:], now
        elif now - since > limit:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _read_all(reader, name, seeds, seed, first, end, limit, shared, keep) -> tuple[Result, int]:
    """In the worker: read one input after the other; ends early after memory was taken, to measure from anew."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)  # libraries print warnings
    result = Result(name)
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="daflow_fuzz_", dir=root) as folder:
        path = pathlib.Path(folder) / reader.file
        _read(reader, path, seeds[0])  # what is loaded at first use is no growth
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + HARD_LIMIT,) * 2)
        for index in range(first, end):
            shared[:] = struct.pack("<q", index)
            data = make_input(name, seeds, seed, index)
            before, peak = _memory("VmSize"), _memory("VmPeak")
            began = time.process_time()
            what = _read(reader, path, data)
            taken = time.process_time() - began
            result.inputs += 1
            result.accepted += what == "accepted"
            result.refused += what == "refused"
            result.slowest = max(result.slowest, taken)
            if what == "refused" and index % 100 == 0:
                what = "a valid file is refused"
            if what not in ("accepted", "refused"):
                result.found(what, index)
                _keep(keep, name, index, data, reader)
            now = _memory("VmPeak")
            if not SANITIZED and now > max(peak, before + SLACK + reader.ratio * len(data)):
                result.found("memory beyond the bound", index)
                _keep(keep, name, index, data, reader)
                return result, index + 1
            for other in path.parent.iterdir():
                shutil.rmtree(other) if other.is_dir() else other.unlink()
    return result, end


def _read(reader: Reader, path: pathlib.Path, data: bytes) -> str:
    """``accepted``, ``refused`` in a documented way, or what went wrong."""
    path.write_bytes(data)
    try:
        reader.read(path)
    except reader.errors as error:
        return "refused" if str(error).strip() else f"{type(error).__name__} without a message"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {pathlib.Path(place.filename).name}:{place.lineno}: {str(error)[:80]}"
    return "accepted"


def _memory(field: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _keep(folder: pathlib.Path | None, name: str, index: int, data: bytes, reader: Reader) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{index}{pathlib.Path(reader.file).suffix}").write_bytes(data)


def _merge(result: Result, part: Result) -> None:
    result.inputs += part.inputs
    result.accepted += part.accepted
    result.refused += part.refused
    result.slowest = max(result.slowest, part.slowest)
    for what, count in part.findings.items():
        result.findings[what] += count
        result.examples.setdefault(what, part.examples[what])


@contextlib.contextmanager
def one_thread():
    """A forked worker must not wait for threads that only its parent has."""
    import cv2
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(-1)


def shares(total: int) -> dict[str, int]:
    """How many of ``total`` inputs each reader gets."""
    weight = sum(reader.share for reader in READERS.values())
    return {name: math.ceil(total * reader.share / weight) for name, reader in READERS.items()}
