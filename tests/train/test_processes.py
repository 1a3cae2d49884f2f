"""Two processes with gloo give the steps of one process with the double batch."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import pytest

from daflow_ext.train import checkpoint

RUN = """
    import sys
    sys.path.insert(0, {tests!r})
    from conftest import TINY, Translations
    from test_trainer import make
    from daflow_ext.train import FlowConfig, read_config

    config = read_config(FlowConfig, "raft-tiny-lq", (*TINY, *sys.argv[2:]))
    trainer = make(config, Translations(), sys.argv[1])
    print(trainer.accelerator.num_processes, trainer.run().reason)
"""


def launch(tmp_path, world, *overrides):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUN.format(tests=str(pathlib.Path(__file__).parent))))
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / f"world{world}"), *overrides],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        assert out.split() == [str(world), "finished"]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(tmp_path):
    launch(tmp_path, 1, "train.batch=4", "train.steps=3")
    launch(tmp_path, 2, "train.batch=2", "train.steps=3")
    one, two = (checkpoint.records(tmp_path / f"world{world}") for world in (1, 2))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
