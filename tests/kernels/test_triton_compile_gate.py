"""check_triton_compile.py refuses what it says it refuses; the compiler itself is not run here."""

import importlib.util
import json
import pathlib
import sys

import pytest

pytest.importorskip("triton", reason="the gate compiles Triton kernels; pip install triton")

SPEC = importlib.util.spec_from_file_location(
    "check_triton_compile", pathlib.Path(__file__).resolve().parent / "check_triton_compile.py"
)
gate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gate)

GOOD = gate.Usage("_forward", registers=128, shared=65536, spill=0, tensor_core_instructions=8)


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    """check(answer) -> (exit status, stderr, recorded kernels) where every case compiles to ``answer`` on sm_80."""

    def run(answer, *arguments):
        monkeypatch.setattr(gate, "in_child", lambda case, arch: answer)
        monkeypatch.setattr(sys, "argv", ["check", "--archs", "80", "--json", str(tmp_path / "usage.json"), *arguments])
        status = gate.main()
        return status, capsys.readouterr().err, json.loads((tmp_path / "usage.json").read_text())["kernels"]

    return run


def test_good_kernels_pass_and_are_recorded(check):
    status, errors, kernels = check([GOOD], "--only", "softargmax_flow bf16 local")
    assert (status, errors) == (0, "")
    assert kernels == [{"case": "softargmax_flow bf16 local", "arch": 80, **GOOD._asdict()}]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([GOOD._replace(spill=16)], "_forward spills 16 bytes on sm_80"),
        ([GOOD._replace(shared=100 * 1024)], "needs 102400 bytes of shared memory on sm_80"),
        ([GOOD._replace(tensor_core_instructions=0)], "has no tensor-core instruction on sm_80"),
        ("the compiler aborted", "does not compile for sm_80: the compiler aborted"),
    ],
)
def test_bad_kernels_fail(check, answer, message):
    status, errors, _ = check(answer, "--only", "softargmax_flow bf16 local")
    assert status == 1
    assert message in errors


def test_kernels_that_multiply_nothing_need_no_tensor_cores(check):
    assert check([GOOD._replace(tensor_core_instructions=0)], "--only", "qk_norm")[0] == 0


def test_instructions_per_exponential_are_those_of_the_leanest_innermost_loop():
    def loop(label, fillers, exponentials):
        body = ["FADD R1, R1, R2"] * fillers + ["MUFU.EX2 R3, R3"] * exponentials + ["HGMMA.64x64x16.F32.BF16 R24"]
        return [f"{label}:", *body, f"@P0 BRA `({label})"]

    lines = [".L_x_0:", *loop(".L_x_1", 4, 2), *loop(".L_x_2", 13, 3), "@P1 BRA `(.L_x_0)", "BRA `(.L_x_9)", ".L_x_9:"]
    text = "\n".join(
        line if line.endswith(":") else f"        /*{4 * i:04x}*/  {line} ;" for i, line in enumerate(lines)
    )
    assert gate.per_exponential(text) == 4.0  # (4 + 2 + 2) / 2, against (13 + 3 + 2) / 3
    assert gate.per_exponential(text.replace("HGMMA", "FFMA")) == 0.0


def test_candidates_are_compiled_for_their_architecture_only():
    cases = [case for case in gate.cases() if case.name.startswith("st_attention candidate")]
    for arch, by_name in gate.tuning.CANDIDATES["st_attention"].items():
        of_arch = [case.name for case in cases if case.archs == (arch,)]
        assert sorted(of_arch) == sorted(
            f"st_attention candidate {n}{end}" for n in by_name for end in ("", " max-free")
        )
