"""The gate of the CUDA code on a machine without a GPU: compiles all of it and looks at what the compiler made.

    python tests/kernels/check_cuda_compile.py                    # all target architectures
    python tests/kernels/check_cuda_compile.py --archs "80;90"    # some of them
    python tests/kernels/check_cuda_compile.py --json usage.json  # also record every figure there

Builds daflow_ext/_cuda.so as CMakeLists.txt describes it, but in a scratch folder, against the torch of this Python
(the one for the CPU will do). Prints registers, shared memory, spills and tensor-core instructions of every kernel on
every architecture. Exits with 1 if a kernel spills registers without an entry in EXPLAINED_SPILLS, if one of
TENSOR_CORE_KERNELS does not use tensor cores, or if the library needs a symbol that neither torch's stable interface
nor the system libraries give.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]

EXPLAINED_SPILLS: dict[str, str] = {}
"""Kernels allowed to spill, by the start of their name in the table, with the reason."""

TENSOR_CORE_KERNELS = ("corr_lookup_tile_kernel", "grad_fmap1_tile_kernel", "grad_pyramid_tile_kernel")
"""Kernels whose products must be matrix instructions, by their names without template arguments."""

CUDA_ONLY_SYMBOLS = {"aoti_torch_get_current_cuda_stream"}
"""What only a torch with CUDA defines, and only there is the library loaded."""

_FUNCTION = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class Usage(NamedTuple):
    """What one kernel needs on one architecture; shared memory without its dynamic part, in bytes as the spills.

    ``matrix_instructions``: in its machine code; where nothing can disassemble, in its PTX for compute capability 8.0.
    """

    kernel: str
    arch: str
    registers: int
    shared: int
    spill: int
    matrix_instructions: int = 0


def parse_ptxas(log: str) -> list[Usage]:
    """Resource usage from the output of `ptxas -v`; mangled names."""
    usages, kernel, arch, spill = [], None, "", 0
    for line in log.splitlines():
        if match := _FUNCTION.search(line):
            kernel, arch, spill = match[1], match[2], 0
        elif match := _SPILLS.search(line):
            spill = int(match[1]) + int(match[2])
        elif (match := _REGISTERS.search(line)) and kernel is not None:
            shared = _SHARED.search(line)
            usages.append(Usage(kernel, arch, int(match[1]), int(shared[1]) if shared else 0, spill))
            kernel = None
    return usages


def demangle(names: list[str]) -> dict[str, str]:
    """Short readable names: kernel<T, n> of a file, without namespaces and parameters."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = {}
    for name, full in zip(names, text.splitlines(), strict=True):
        source = re.search(r"_(\w+?)_cu_", name)
        readable = re.sub(r"\w+::|\(anonymous namespace\)::|^void ", "", full).split("(")[0]
        short[name] = (re.sub(r"^.*_\d+_", "", source[1]) + ": " if source else "") + readable
    return short


def kernel_name(readable: str) -> str:
    """Of "file: kernel<T, n>"."""
    return readable.split(": ")[-1].split("<")[0]


def build(archs: str, scratch: pathlib.Path) -> str:
    """Configures and builds the `_cuda` target in `scratch`; the build's output."""
    locator = importlib.util.spec_from_file_location("torch_locator", ROOT / "_build" / "torch_locator.py")
    module = importlib.util.module_from_spec(locator)
    locator.loader.exec_module(module)
    torch = module.find_torch()
    if torch is None:
        raise SystemExit("check_cuda_compile: no torch >= 2.10 found to compile against; pip install torch")
    import pybind11

    tools = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=tools)
    ninja = shutil.which("ninja", path=tools)
    configure = [
        cmake or "cmake", "-S", str(ROOT), "-B", str(scratch),
        *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        "-DCMAKE_BUILD_TYPE=Release", "-DDAFLOW_CUDA=1", f"-DDAFLOW_CUDA_ARCHS={archs}",
        f"-DDAFLOW_TORCH_DIR={torch.root}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
    log = ""
    for command in (configure, [configure[0], "--build", str(scratch), "--target", "_cuda", "--parallel", jobs]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        log += done.stdout
        if done.returncode != 0:
            raise SystemExit(f"{log}\ncheck_cuda_compile: the build failed")
    return log


def count_matrix_instructions(code: str) -> dict[tuple[str, str], int]:
    """Per kernel (mangled) and architecture, from what `cuobjdump -sass` prints; from PTX the architecture is empty."""
    counts, kernel, arch = {}, None, ""
    for line in code.splitlines():
        if match := re.match(r"\s*arch = sm_(\w+)", line):
            arch = match[1]
        elif match := re.search(r"(?:Function : |\.entry )(\w+)", line):
            kernel = match[1], arch
            counts.setdefault(kernel, 0)
        elif kernel is not None and re.search(r"\bHMMA\.|\bmma\.sync\.", line):
            counts[kernel] += 1
    return counts


def cuobjdump() -> str | None:
    """Of the CUDA toolkit, or the one that Triton carries."""
    places = [os.environ["PATH"], "/usr/local/cuda/bin"]
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        places.append(str(pathlib.Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(places))


def matrix_instructions(library: pathlib.Path, sources: set[str]) -> dict[tuple[str, str], int]:
    """The counts for `library`; without cuobjdump, for the PTX of its `sources` (stems in kernels/cuda)."""
    if tool := cuobjdump():
        commands = [[tool, "-sass", str(library)]]
    else:
        nvcc = shutil.which("nvcc", path=f"{os.environ['PATH']}{os.pathsep}/usr/local/cuda/bin") or "nvcc"
        folder = ROOT / "kernels" / "cuda"
        options = [
            "-ptx",
            "-std=c++17",
            "-arch=compute_80",
            "--expt-relaxed-constexpr",
            f"-I{ROOT / 'csrc'}",
            f"-I{folder}",
        ]
        commands = [[nvcc, *options, str(folder / f"{source}.cu"), "-o", "-"] for source in sorted(sources)]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    return count_matrix_instructions("\n".join(outputs))


def with_instructions(usages: list[Usage], names: dict[str, str], counts: dict[tuple[str, str], int]) -> list[Usage]:
    """Kernels told apart by readable names: PTX of its own has other hashes in those of unnamed namespaces."""
    readable = demangle(sorted({kernel for kernel, _ in counts}))
    by_name = {(readable[kernel], arch): count for (kernel, arch), count in counts.items()}
    return [
        usage._replace(
            matrix_instructions=by_name.get(
                (names[usage.kernel], usage.arch), by_name.get((names[usage.kernel], ""), 0)
            )
        )
        for usage in usages
    ]


def symbols(library: pathlib.Path, *options: str) -> list[str]:
    lines = subprocess.run(
        ["nm", "-D", *options, str(library)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line.split()[-1] for line in lines]


def unexpected_symbols(library: pathlib.Path) -> list[str]:
    """Undefined symbols that no library of a torch with CUDA would define."""
    import torch

    torch_library = pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    defined = {name.split("@")[0] for name in symbols(torch_library, "--defined-only")}
    versioned = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_")  # libc, libstdc++, libgcc
    weak = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__cxa_finalize"}
    return [
        name
        for name in symbols(library, "--undefined-only")
        if not versioned.search(name) and name not in defined | weak | CUDA_ONLY_SYMBOLS
    ]


def print_table(usages: list[Usage], names: dict[str, str]) -> None:
    archs = sorted({usage.arch for usage in usages}, key=int)
    rows = defaultdict(dict)
    for usage in usages:
        rows[names[usage.kernel]][usage.arch] = usage
    width = max(len(name) for name in rows)
    print("registers per thread / static shared bytes / matrix instructions, and spilled bytes where there are any")
    print(f"{'kernel':{width}}", *(f"{'sm_' + arch:>16}" for arch in archs))
    for name, by_arch in sorted(rows.items()):
        cells = []
        for arch in archs:
            usage = by_arch.get(arch)
            spill = f" SPILL {usage.spill}" if usage and usage.spill else ""
            text = f"{usage.registers}/{usage.shared}/{usage.matrix_instructions}{spill}" if usage else "-"
            cells.append(f"{text:>16}")
        print(f"{name:{width}}", *cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="80;86;89;90;100;120", help="target architectures (default: %(default)s)")
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="write one object per kernel and architecture"
    )
    arguments = parser.parse_args()
    archs = arguments.archs
    with tempfile.TemporaryDirectory(prefix="daflow-cuda-gate-") as scratch:
        usages = parse_ptxas(build(archs, pathlib.Path(scratch)))
        library = pathlib.Path(scratch) / "_cuda.so"
        unexpected = unexpected_symbols(library)
        names = demangle(sorted({usage.kernel for usage in usages}))
        dense = {usage.kernel for usage in usages if kernel_name(names[usage.kernel]) in TENSOR_CORE_KERNELS}
        counts = matrix_instructions(library, {names[kernel].split(":")[0] for kernel in dense})
    usages = with_instructions(usages, names, counts)
    print_table(usages, names)
    if arguments.json is not None:
        records = [usage._asdict() | {"kernel": names[usage.kernel]} for usage in usages]
        arguments.json.write_text(json.dumps(records, indent=1))

    failures = []
    expected = {arch.strip() for arch in archs.split(";")}
    seen = {usage.arch for usage in usages}
    if seen != expected:
        failures.append(
            f"compiled for sm_{', sm_'.join(sorted(seen))} but expected sm_{', sm_'.join(sorted(expected))}"
        )
    for usage in usages:
        name = names[usage.kernel]
        if usage.spill and not any(name.startswith(allowed) for allowed in EXPLAINED_SPILLS):
            failures.append(f"{name} spills {usage.spill} bytes on sm_{usage.arch}")
        if usage.kernel in dense and usage.matrix_instructions == 0:
            failures.append(f"{name} uses no tensor cores on sm_{usage.arch}")
    failures += [f"no kernel {name}" for name in TENSOR_CORE_KERNELS if name not in map(kernel_name, names.values())]
    failures += [f"unexpected undefined symbol {name}" for name in unexpected]
    for failure in failures:
        print(f"check_cuda_compile: {failure}", file=sys.stderr)
    kernels = len({usage.kernel for usage in usages})
    print(
        f"{kernels} kernels x {len(seen)} architectures: {'FAILED' if failures else 'no spills, symbols as expected'}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
