"""``daflow info``: what is installed, and what can run here."""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
from typing import Any

HELP = "versions, GPU, and every op x backend with 'available' or the reason why not"
EXAMPLE = "daflow info"

_LIBRARIES = {"numpy": "numpy", "opencv": "cv2", "av": "av", "h5py": "h5py", "safetensors": "safetensors"}
_LIBRARIES |= {"tqdm": "tqdm", "triton": "triton"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def versions() -> dict[str, str]:
    """Versions of Python, this package, torch and the libraries around it ("not installed" for an absent one)."""
    import torch

    from .. import __version__

    found = {
        "daflow_ext": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda or "none, this torch is built without CUDA",
    }
    for name, module in _LIBRARIES.items():
        try:
            found[name] = importlib.import_module(module).__version__
        except ImportError:
            found[name] = "not installed"
    return found


def gpus() -> list[str]:
    """One line per visible CUDA device."""
    import torch

    lines = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        lines.append(f"{device.name}, sm_{device.major}{device.minor}, {device.total_memory / 2**30:.1f} GiB")
    return lines


def _build() -> dict[str, str]:
    try:
        from .. import _host
    except ImportError as error:
        return {"not built": str(error)}
    host: Any = _host  # compiled, without type hints
    return {key: str(value) for key, value in host.build_info().items()}


def _instruction_set() -> str:
    import torch

    from .. import _load

    return _load.CPU_MISSING or torch.ops.daflow_ext.cpu_capability()


def collect() -> dict:
    """Everything that ``daflow info`` tells, as plain data."""
    from .. import backends

    return {
        "versions": versions(),
        "gpus": gpus(),
        "build": _build(),
        "cpu_instruction_set": _instruction_set(),
        "default_backend": os.environ.get("DAFLOW_BACKEND", "auto"),
        "ops": backends.describe(),
    }


def run(args: argparse.Namespace) -> int:
    found = collect()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    _section("versions", found["versions"])
    _section("GPU", dict(enumerate(found["gpus"])) or {"none": "no CUDA device is visible"})
    _section("build", found["build"])
    _section(
        "running",
        {"CPU instruction set": found["cpu_instruction_set"], "default backend": found["default_backend"]},
    )
    print("ops")
    for op, answers in found["ops"].items():
        for backend, answer in answers.items():
            print(f"  {op:<16} {backend:<10} {answer}")
    return 0


def _section(title: str, rows: dict) -> None:
    print(title)
    for key, value in rows.items():
        print(f"  {key!s:<22} {value}")
