"""A video of 10 000 frames through ``daflow infer``: memory does not grow with its length."""

import json
import pathlib

import pytest

from tests.reliability import common

FRAMES, SIDE = 10_000, 32

# The whole command on a real video; only the network's arithmetic is left out, its calls are counted.
CODE = """
import pathlib, sys, torch
from daflow_ext.cli import _estimate, main
from daflow_ext.models import RAFT

class Still(RAFT):
    calls = 0

    def forward(self, image1, image2, iters, flow_init=None, test_mode=True):
        if Still.calls % 500 == 0:
            status = pathlib.Path("/proc/self/status").read_text()
            print(Still.calls, status.split("VmRSS:")[1].split()[0], file=memory, flush=True)
        Still.calls += 1
        height, width = image1.shape[-2:]
        return torch.zeros(1, 2, height // 8, width // 8), torch.zeros(1, 2, height, width)

memory = open(sys.argv[1], "w")
_estimate.load_model = lambda source, args: Still(small=True).eval()
sys.exit(main(sys.argv[2:]))
"""


def write_video(path: pathlib.Path, frames: int) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for index in range(frames):
            image = np.full((SIDE, SIDE, 3), index % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_frames(tmp_path, tiny_weights):
    write_video(tmp_path / "long.mp4", FRAMES)
    out, log = tmp_path / "out", tmp_path / "memory.txt"
    command = (log, "infer", tmp_path / "long.mp4", "--weights", tiny_weights, "--iters", 1, "-o", out)
    common.finish(common.start(*command, code=CODE))
    assert common.whole_lines(out / "pairs.jsonl") == FRAMES - 1
    assert len(list((out / "flow").iterdir())) == FRAMES - 1
    assert json.loads((out / "pairs.jsonl").read_text().splitlines()[-1])["files"]["flow"].endswith("_009998.flo")
    resident = {int(call): int(kilobytes) for call, kilobytes in map(str.split, log.read_text().splitlines())}
    assert len(resident) == FRAMES // 500
    grown = max(resident.values()) - resident[1000]
    print(f"resident memory grew by {grown} kB over {FRAMES - 1000} pairs")
    # the record of a pair, a file name and some numbers, is kept: about a kilobyte
    assert grown < 24 * 1024, resident
