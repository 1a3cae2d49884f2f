"""The gate of the Triton kernels on a machine without a GPU: compiles what would be launched, reads the machine code.

    python tests/kernels/check_triton_compile.py                                # all target architectures
    python tests/kernels/check_triton_compile.py --archs 90 --only st_attention # some architectures, some cases
    python tests/kernels/check_triton_compile.py --json usage.json              # also record every figure there

The launch code of kernels/triton runs as it is, on tensors without storage, for a driver that only names the target; so
every kernel is compiled with the very arguments, tile sizes and specialisations it would be launched with; the forward
kernel of st_attention also with every candidate of an architecture. Each case is compiled in a child process, since a
failing compiler pass may abort. Prints registers per thread and shared memory, and exits with 1 if a kernel spills
registers, or if one that multiplies matrices has no tensor-core instruction. --json also tells the instructions per
exponential of the hot loop, which is about one per score.
"""

import argparse
import concurrent.futures
import functools
import json
import math
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from daflow_ext.kernels.triton import (  # noqa: E402
    qk_norm,
    softargmax_flow,
    st_attention,
    st_attention_backward,
    tuning,
)

# Compute capability -> shared memory that a program may have, in KB. 8.6 and 8.9 run what is compiled for 8.0.
ARCHS = {80: 99, 90: 227, 100: 227, 120: 99}
TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA)\b")
TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Usage(NamedTuple):
    """What the machine code of one kernel needs; ``spill`` in bytes of stack and local memory per thread.

    ``per_exponential``: instructions of the leanest loop with matrix products and exponentials, per exponential; 0 if
    there is no such loop.
    """

    kernel: str
    registers: int
    shared: int
    spill: int
    tensor_core_instructions: int
    per_exponential: float = 0.0


class Case(NamedTuple):
    """A call of the launch code; ``multiplies``: its kernels must use tensor cores; ``archs``: only for these."""

    name: str
    run: Callable[[], object]
    fp32_precision: str = "tf32"
    multiplies: bool = True
    archs: tuple[int, ...] | None = None


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# Frames and tokens: 3 frames of 1080p, high and low quality, and one text shared by all.
STREAMS = (3, 8160), (3, 8160), (1, 333)
SMALL_BOUND = 8.1  # of scores, as the norms of q and k give it: no running maximum


def attention(
    dtype: torch.dtype, width: int, window: int = -1, reference_frames: tuple[int, ...] = (), bound: float = math.inf
) -> None:
    """Forward and backward; the text with its multiplicity."""
    q, k, v = ([meta(1, frames, count, 24, width, dtype=dtype) for frames, count in STREAMS] for _ in range(3))
    options = (0.125, window, reference_frames, (1.0, 1.0, 3.0))
    *outputs, lse = st_attention.forward(q, k, v, *options, bound)
    if bound < math.inf:
        return  # the backward pass does not know of it
    st_attention_backward.backward(outputs, q, k, v, outputs, lse, *options)


def candidate(config: tuning.Config, score_bound: float) -> None:
    """The forward pass of :func:`attention` with launch options that are not the default."""
    q, k, v = ([meta(1, frames, count, 24, 64, dtype=torch.bfloat16) for frames, count in STREAMS] for _ in range(3))
    with tuning.use(st_attention=config):
        st_attention.forward(q, k, v, 0.125, -1, (), (1.0, 1.0, 3.0), score_bound)


def unaligned_attention(dtype: torch.dtype, width: int) -> None:
    """Tokens 8 bytes off the alignment that descriptors and wide loads need."""
    tokens = [meta(1, 3, count, 24 * width + 8 // dtype.itemsize, dtype=dtype) for count in (8160, 8160, 333)]
    streams = [x[..., : 24 * width].unflatten(-1, (24, width)) for x in tokens]
    st_attention.forward(streams, streams, streams, 0.125, -1, (), (1.0, 1.0, 1.0))


def softargmax(dtype: torch.dtype, radius: int = -1, local: bool = False) -> None:
    """One pair of 1080p frames at the width of the backbone, forward and backward."""
    query, key = meta(1, 68 * 120, 1536, dtype=dtype), meta(1, 68 * 120, 1536, dtype=dtype)
    flow, _, _, lse, best = softargmax_flow.forward(query, key, 68, 120, 39.2, radius, local)
    softargmax_flow.backward(flow, query, key, flow, lse, best, 39.2, radius, local)


def norm(dtype: torch.dtype) -> None:
    """Queries and keys of three streams, forward and backward."""
    shapes = [(1, 3, tokens, 24, 64) for tokens in (8160, 8160, 333)] * 2
    streams, weights = [meta(*shape, dtype=dtype) for shape in shapes], [meta(64, dtype=dtype)] * 6
    qk_norm.backward(qk_norm.forward(streams, weights, 1e-6), streams, weights, 1e-6)


def cases() -> Iterator[Case]:
    half, single = torch.bfloat16, torch.float32
    for name, dtype in (("bf16", half), ("tf32", single)):
        for width in (64, 128):
            yield Case(f"st_attention {name} d={width}", lambda d=dtype, w=width: attention(d, w))
            yield Case(
                f"st_attention {name} d={width} max-free", lambda d=dtype, w=width: attention(d, w, bound=SMALL_BOUND)
            )
        yield Case(f"softargmax_flow {name}", lambda d=dtype: softargmax(d))
    yield Case("st_attention tf32x3 d=64", lambda: attention(single, 64), "ieee")
    yield Case("st_attention bf16 d=64 window, reference frames", lambda: attention(half, 64, 1, (0,)))
    yield Case("st_attention bf16 d=64 unaligned", lambda: unaligned_attention(half, 64))
    yield Case("st_attention tf32x3 d=64 max-free", lambda: attention(single, 64, bound=SMALL_BOUND), "ieee")
    for arch, by_name in tuning.CANDIDATES["st_attention"].items():
        for name, config in by_name.items():
            for end, bound in (("", math.inf), (" max-free", SMALL_BOUND)):
                run = functools.partial(candidate, config, bound)
                yield Case(f"st_attention candidate {name}{end}", run, archs=(arch,))
    yield Case("softargmax_flow tf32x3", lambda: softargmax(single), "ieee")
    yield Case("softargmax_flow bf16 local", lambda: softargmax(half, 4, True))
    yield Case("qk_norm bf16", lambda: norm(half), multiplies=False)


class Target:
    """Stands in for Triton's driver: names an architecture, has no device."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def compile_case(case: Case, arch: int) -> list[Usage]:
    """Run the launch code of a case with launching replaced by compiling. To be called in a process of its own."""
    triton.runtime.driver.set_active(Target(arch))
    torch.backends.cuda.matmul.fp32_precision = case.fp32_precision
    compiled = []
    original = triton.JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((kernel.metadata.name + (" repair" if kwargs.get("REPAIR") else ""), kernel))

    triton.JITFunction.run = run
    case.run()
    return [inspect(name, kernel) for name, kernel in compiled]


def inspect(name: str, kernel: triton.compiler.CompiledKernel) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = _output(TOOLS / "cuobjdump", "--dump-resource-usage", file.name)
        instructions = _output(TOOLS / "nvdisasm", "-c", file.name)
    counts = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", resources)}
    return Usage(
        name,
        counts["REG"],
        kernel.metadata.shared,
        counts["STACK"] + counts["LOCAL"],
        len(TENSOR_CORES.findall(instructions)),
        per_exponential(instructions),
    )


def per_exponential(disassembly: str) -> float:
    """See :class:`Usage`; a loop is what lies between a label and a later branch to it, with no other loop inside."""
    labels, instructions = {}, []
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    branches = ((index, re.search(r"\bBRA\b.*?(\.L_x_\d+)", text)) for index, text in enumerate(instructions))
    loops = [(labels[to[1]], index) for index, to in branches if to and labels.get(to[1], index + 1) <= index]
    found = []
    for first, last in loops:
        if any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
            continue
        body = "\n".join(instructions[first : last + 1])
        exponentials = body.count("MUFU.EX2")
        if exponentials and TENSOR_CORES.search(body):
            found.append((last + 1 - first) / exponentials)
    return round(min(found, default=0.0), 2)


def _output(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def in_child(case: Case, arch: int) -> list[Usage] | str:
    """The usages, or why there are none. Forked, so that Triton and torch are imported once."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        try:
            writer.send([tuple(usage) for usage in compile_case(case, arch)])
        except Exception as error:  # whatever it was, it is this case's result
            writer.send("".join(traceback.format_exception_only(error)).strip())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    writer.close()
    try:
        answer = reader.recv()
    except EOFError:
        answer = "the compiler aborted"
    process.join()
    return answer if isinstance(answer, str) else [Usage(*usage) for usage in answer]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--archs", type=int, nargs="+", default=[*ARCHS], help="compute capabilities (default: %(default)s)"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="write one object per kernel and architecture"
    )
    arguments = parser.parse_args()
    chosen = [case for case in cases() if arguments.only in case.name]
    rows: dict[str, dict[int, str]] = defaultdict(dict)
    records, failures = [], []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        answers = {
            (case, arch): pool.submit(in_child, case, arch)
            for case in chosen
            for arch in arguments.archs
            if case.archs is None or arch in case.archs
        }
    for (case, arch), future in answers.items():
        answer = future.result()
        if isinstance(answer, str):
            failures.append(f"{case.name} does not compile for sm_{arch}: {answer}")
            continue
        for usage in answer:
            label = f"{case.name}: {usage.kernel}"
            records.append({"case": case.name, "arch": arch, **usage._asdict()})
            spill = f" SPILL {usage.spill}" if usage.spill else ""
            rows[label][arch] = f"{usage.registers}/{usage.shared / 1024:.0f} K/{usage.tensor_core_instructions}{spill}"
            if usage.spill:
                failures.append(f"{label} spills {usage.spill} bytes on sm_{arch}")
            if usage.shared > 1024 * ARCHS.get(arch, 99):
                failures.append(f"{label} needs {usage.shared} bytes of shared memory on sm_{arch}")
            if case.multiplies and usage.tensor_core_instructions == 0:
                failures.append(f"{label} has no tensor-core instruction on sm_{arch}")
    print_table(rows, arguments.archs)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "kernels": records}, indent=1))
    for failure in failures:
        print(f"check_triton_compile: {failure}", file=sys.stderr)
    print(f"{len(rows)} kernels x {len(arguments.archs)} architectures: {'FAILED' if failures else 'no spills'}")
    return 1 if failures else 0


def print_table(rows: dict[str, dict[int, str]], archs: list[int]) -> None:
    print("registers per thread / shared memory / tensor-core instructions, and spilled bytes where there are any")
    width = max(map(len, rows), default=0)
    print(f"{'':{width}}", *(f"{f'sm_{arch}':>14}" for arch in archs))
    for label, by_arch in rows.items():
        print(f"{label:{width}}", *(f"{by_arch.get(arch, '-'):>14}" for arch in archs))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
