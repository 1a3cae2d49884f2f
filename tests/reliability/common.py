"""What the tests of interruption share: the command in a process of its own, small inputs, small disks."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from daflow_ext.cli import main
from daflow_ext.frames import write_image

MAIN = "import sys; from daflow_ext.cli import main; sys.exit(main(sys.argv[1:]))"


def start(*arguments: object, code: str = MAIN) -> subprocess.Popen:
    """``daflow`` with these arguments, on one thread: their number changes the last bits."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)


def kill_when(process: subprocess.Popen, ready: Callable[[], bool], seconds: float = 240) -> None:
    """SIGKILL as soon as ``ready``; fails if the process ends first."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, f"ended before it could be killed: {process.stderr.read()}"
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def whole_lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def visible(folder: pathlib.Path) -> dict[str, bytes]:
    """Name -> content of every file that is not hidden: temporary ones are."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_clip(folder: pathlib.Path, frames: int, height: int = 40, width: int = 56) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(folder.name))
    for index in range(frames):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        write_image(folder / f"{index}.png", image)


def write_pairs(root: pathlib.Path, count: int, height: int = 40, width: int = 56) -> None:
    """A data set of ``daflow validate --dataset pairs``: ``count`` pairs with constant flow."""
    write_clip(root / "frames", 2, height, width)
    flow = np.ones((2, height, width), np.float32)
    np.save(root / "flow.npy", flow)
    rows = [f"p{index:04d},s{index % 4},frames/0.png,frames/1.png,flow.npy" for index in range(count)]
    (root / "pairs.csv").write_text("\n".join(["name,sequence,image1,image2,flow", *rows, ""]))


@contextlib.contextmanager
def disk(folder: pathlib.Path, size: str) -> Iterator[Callable[[], None]]:
    """A file system of its own in ``folder``; call what this gives to make it read-only. Needs root."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a file system can be mounted by root only: {mounted.stderr.decode().strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def sentence(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Runs the command in this process; it must fail with one sentence, which is returned."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 1
    assert out == ""
    assert err.startswith("daflow ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err
