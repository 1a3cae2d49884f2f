"""The operator library asks torch for its stable C interface only, so one build serves every torch from 2.10 on."""

import pathlib
import re
import shutil
import subprocess

import pytest

import daflow_ext

LIBRARY = pathlib.Path(daflow_ext.__file__).parent / "_C.abi3.so"


def _readelf(*options: str) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    return subprocess.run(["readelf", "--wide", *options, LIBRARY], capture_output=True, text=True, check=True).stdout


def test_no_cpp_symbol_of_torch_is_needed():
    undefined = set(re.findall(r" UND (\S+)", _readelf("--dyn-syms")))
    assert "torch_call_dispatcher" in undefined
    cpp = {symbol for symbol in undefined if re.match(r"_ZNK?(2at|3c10|5torch|6caffe2)", symbol)}
    assert not cpp
    versioned = re.compile(r".*@(GLIBC|GLIBCXX|CXXABI|GCC)_")
    others = {symbol for symbol in undefined if not versioned.match(symbol) and not symbol.startswith("_")}
    assert all(symbol.startswith(("aoti_torch_", "torch_")) for symbol in others), others


def test_only_libtorch_is_linked_and_no_path_of_this_machine():
    dynamic = _readelf("--dynamic")
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\]", dynamic))
    assert "libtorch.so" in needed
    assert not {name for name in needed if name.startswith(("libtorch_", "libc10", "libpython"))}
    assert "RUNPATH" not in dynamic
    assert "RPATH" not in dynamic
