"""Run the benchmarks: correctness first, then numbers.

python -m benchmarks.run                         everything on one CPU thread, minutes
python -m benchmarks.run --op corr_block --quick one op, small sizes
python -m benchmarks.run --json out.jsonl        also write one JSON object per line
python -m benchmarks.run --device cuda --save    also write benchmarks/results/<machine>-<date>.jsonl
                                                 (records of other ops in it stay)
"""

import argparse
import functools
import importlib
import json
import multiprocessing
import pathlib
import pkgutil
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from daflow_ext.frames._files import atomic_path

from . import timing

FOLDER = pathlib.Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 if a result was wrong (and therefore not timed) or a benchmark failed; the others go on.

    A missed goal is reported, not an error. Records are written after every op, so that none is lost with a later one.
    """
    options = _parser().parse_args(arguments)
    environment = timing.environment(options.device)
    sink = options.json or (_results_file(environment) if options.save else None)
    print(" | ".join(f"{key} {value}" for key, value in environment.items()))
    ops = [op for op in _benchmarks() if not options.op or op in options.op]
    measure = _measure if options.device == "cuda" or len(ops) == 1 else _measure_apart
    lines, failed = [], False
    for op in ops:
        begin = time.perf_counter()
        found, right = measure(op, options.quick, options.device)
        lines += [json.dumps({**environment, **record}) for record in found]
        failed |= not right
        print(f"{op:16} took {time.perf_counter() - begin:.0f} s", flush=True)
        if sink is not None:
            _write(sink, lines, keep=options.save)
    if sink is not None:
        print(f"wrote {len(lines)} records to {sink}")
    return 1 if failed else 0


def _measure(op: str, quick: bool, device: str) -> tuple[list[dict[str, object]], bool]:
    """The records of an op, printed as they come, and whether nothing went wrong."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 on both sides of a comparison
    found: list[dict[str, object]] = []
    try:
        with timing.threads(1):
            for record in _benchmarks()[op](quick, device):
                print(record.line(), flush=True)
                found.append(json.loads(record.json()))
    except timing.WrongResultError as error:
        print(f"{op:16} WRONG RESULT: {error}", file=sys.stderr)
        return found, False
    except ModuleNotFoundError as error:
        print(f"{op:16} stops, as something is not installed: {error}", file=sys.stderr)
    except Exception:
        print(f"{op:16} FAILED: {traceback.format_exc()}", file=sys.stderr)
        return found, False
    return found, True


def _measure_apart(op: str, quick: bool, device: str) -> tuple[list[dict[str, object]], bool]:
    """The same in a process of its own: on a CPU what ran before decides whether memory comes with page faults."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, op, quick, device).result()
        except BrokenProcessPool as error:
            print(f"{op:16} FAILED: {error}", file=sys.stderr)
            return [], False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", nargs="+", choices=sorted(_benchmarks()), help="only these")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the records there, one JSON per line")
    target.add_argument("--save", action="store_true", help="write them to benchmarks/results/<machine>-<date>.jsonl")
    return parser


@functools.cache
def _benchmarks() -> dict[str, Callable[[bool, str], Iterator[timing.Record]]]:
    """Every module of this package that has ``records``, but those that need a package which cannot be imported."""
    found = {}
    for info in _modules():
        try:
            module = importlib.import_module(f"{__package__}.{info.name}")
        except (ImportError, OSError, RuntimeError) as error:  # not there, or made for another torch
            print(f"{info.name:16} is left out: {error}", file=sys.stderr)
            continue
        if hasattr(module, "records"):
            found[info.name] = module.records
    return found


def _modules() -> list[pkgutil.ModuleInfo]:
    return [info for info in pkgutil.iter_modules([str(FOLDER)]) if info.name != "run"]


def _write(sink: pathlib.Path, lines: list[str], keep: bool) -> None:
    """``keep``: what the file says about ops that were not measured."""
    kept = _of_other_ops(sink, lines) if keep else []
    sink.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(sink) as path:
        path.write_text("".join(f"{line}\n" for line in kept + lines))


def _of_other_ops(file: pathlib.Path, lines: list[str]) -> list[str]:
    """What the file already says about ops that were not measured now."""
    measured = {json.loads(line)["op"] for line in lines}
    before = file.read_text().splitlines() if file.is_file() else []
    return [line for line in before if json.loads(line)["op"] not in measured]


def _results_file(environment: dict[str, object]) -> pathlib.Path:
    machine = str(environment.get("gpu", environment["cpu"])).lower()
    name = re.sub(r"[^a-z0-9]+", "-", machine).strip("-")
    return FOLDER / "results" / f"{name}-{str(environment['date'])[:10]}.jsonl"


if __name__ == "__main__":
    sys.exit(main())
