"""Two runs that would write to one place: the second is refused, until the first has ended, however it ended."""

import os
import sys
import time

import pytest

from daflow_ext.cli import main
from daflow_ext.frames._files import sole_writer
from tests.reliability import common

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="claims are Linux's")

# a run that never ends, with a worker that outlives it
HELD = """
import os, pathlib, sys, time
from daflow_ext.frames._files import sole_writer
with sole_writer(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(600)
"""


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_claim(tmp_path, tiny_weights, capsys):
    common.write_clip(tmp_path / "in", 2)
    out, ready = tmp_path / "out", tmp_path / "ready"
    command = ("infer", tmp_path / "in", "--weights", tiny_weights, "--iters", 1, "-o", out)
    held = common.start(out, ready, code=HELD)
    deadline = time.monotonic() + 120
    while not ready.exists():
        assert held.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (out, tmp_path / "link" / "out"):
        error = common.sentence(capsys, *command[:-1], place)
        assert f"another process is writing to {place}" in error
    assert not out.exists()
    held.kill()
    held.wait()
    assert main([str(word) for word in command]) == 0


def test_a_claim_ends_with_its_block(tmp_path):
    for _ in range(2):
        with sole_writer(tmp_path), pytest.raises(ValueError, match="another process"), sole_writer(tmp_path):
            pass


def test_a_forked_worker_holds_no_claim(tmp_path):
    (told, alive), (end, ended) = os.pipe(), os.pipe()
    with sole_writer(tmp_path):
        worker = os.fork()
        if worker == 0:
            os.write(alive, b"x")
            os.read(end, 1)
            os._exit(0)
        os.read(told, 1)
    try:
        with sole_writer(tmp_path):
            pass
    finally:
        os.write(ended, b"x")
        os.waitpid(worker, 0)
