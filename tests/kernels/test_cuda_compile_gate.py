"""What check_cuda_compile.py reads from the compiler and the linker."""

import importlib.util
import pathlib
import subprocess

import pytest

PATH = pathlib.Path(__file__).resolve().parent / "check_cuda_compile.py"
LOG = """\
[1/9] Building CUDA object CMakeFiles/_cuda.dir/kernels/cuda/corr_lookup.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6daflow4cuda47_GLOBAL__N__e796b644_14_corr_lookup_cu_a5dc786418\
corr_lookup_kernelINS0_4HalfELi8EEEvNS0_16CorrLookupParamsE' for 'sm_90'
ptxas info    : Function properties for _ZN6daflow4cuda
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 120 registers, used 1 barriers, 512 bytes smem
ptxas info    : Compiling entry function '_ZN6daflow4cuda47_GLOBAL__N__e796b644_14_corr_lookup_cu_a5dc786418\
corr_lookup_kernelIfLi4EEEvNS0_16CorrLookupParamsE' for 'sm_100'
    48 bytes stack frame, 60 bytes spill stores, 84 bytes spill loads
ptxas info    : Used 128 registers, used 0 barriers
"""


@pytest.fixture(scope="module")
def gate():
    spec = importlib.util.spec_from_file_location("check_cuda_compile", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_registers_shared_memory_and_spills_are_read(gate):
    clean, spilling = gate.parse_ptxas(LOG)
    assert clean[1:] == ("90", 120, 512, 0, 0)
    assert spilling[1:] == ("100", 128, 0, 144, 0)
    names = gate.demangle([clean.kernel, spilling.kernel])
    assert names[clean.kernel] == "corr_lookup: corr_lookup_kernel<Half, 8>"
    assert names[spilling.kernel] == "corr_lookup: corr_lookup_kernel<float, 4>"


@pytest.mark.parametrize(
    ("arch", "code"),
    [
        (
            "90",
            """
        arch = sm_90
        Function : tile
        /*0a10*/  HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0a20*/  FFMA R4, R8, R12, R4 ;
        /*0a30*/  HMMA.1688.F32.TF32 R4, R8, R12, R4 ;
        Function : plain
        /*0a10*/  FFMA R4, R8, R12, R4 ;
        """,
        ),
        (
            "",
            """
        .visible .entry tile(
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, ...;
        fma.rn.f32 %f1, %f2, %f3, %f1;
        mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, ...;
        .visible .entry plain(
        fma.rn.f32 %f1, %f2, %f3, %f1;
        """,
        ),
    ],
    ids=["SASS", "PTX"],
)
def test_matrix_instructions_are_counted(gate, arch, code):
    counts = gate.count_matrix_instructions(code)
    assert counts == {("tile", arch): 2, ("plain", arch): 0}
    usages = [gate.Usage(kernel, "90", 100, 0, 0) for kernel in ("tile", "plain", "other")]
    names = {usage.kernel: usage.kernel for usage in usages}
    assert [u.matrix_instructions for u in gate.with_instructions(usages, names, counts)] == [2, 0, 0]


def test_kernels_are_told_by_their_names(gate):
    assert gate.kernel_name("corr_lookup_tile: corr_lookup_tile_kernel<Half, true>") == "corr_lookup_tile_kernel"
    assert gate.kernel_name("plain_kernel") == "plain_kernel"


def test_symbols_that_nobody_defines_are_found(gate, tmp_path):
    source = tmp_path / "library.cpp"
    source.write_text(
        """
        extern "C" int aoti_torch_get_dim(void*, long*);
        extern "C" int aoti_torch_get_current_cuda_stream(int, void**);
        extern "C" int cublasCreate(void*);
        extern "C" int call() {
          return aoti_torch_get_dim(0, 0) + aoti_torch_get_current_cuda_stream(0, 0) + cublasCreate(0);
        }
        """
    )
    library = tmp_path / "library.so"
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    assert gate.unexpected_symbols(library) == ["cublasCreate"]
