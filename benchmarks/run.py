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
import pathlib
import pkgutil
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator

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
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 on both sides of a comparison
    sink = options.json or (_results_file(environment) if options.save else None)
    print(" | ".join(f"{key} {value}" for key, value in environment.items()))
    lines, failed = [], False
    with timing.threads(1):
        for op, records in _benchmarks().items():
            if options.op and op not in options.op:
                continue
            begin = time.perf_counter()
            try:
                for record in records(options.quick, options.device):
                    print(record.line(), flush=True)
                    lines.append(json.dumps({**environment, **json.loads(record.json())}))
            except timing.WrongResultError as error:
                failed = True
                print(f"{op:16} WRONG RESULT: {error}", file=sys.stderr)
            except ModuleNotFoundError as error:
                print(f"{op:16} stops, as something is not installed: {error}", file=sys.stderr)
            except Exception:
                failed = True
                print(f"{op:16} FAILED: {traceback.format_exc()}", file=sys.stderr)
            print(f"{op:16} took {time.perf_counter() - begin:.0f} s", flush=True)
            if sink is not None:
                _write(sink, lines, keep=options.save)
    if sink is not None:
        print(f"wrote {len(lines)} records to {sink}")
    return 1 if failed else 0


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
    torch.manual_seed(0)
    sys.exit(main())
