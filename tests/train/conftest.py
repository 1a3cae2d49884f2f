"""A stand-in for rendered scenes: textures that translate, with exact flow."""

import cv2
import numpy as np
import pytest
from accelerate.state import AcceleratorState

from daflow_ext.datasets import Clip
from daflow_ext.train import FlowConfig, read_config

TINY = (
    "model.init=null",
    "data.crop=[32, 48]",
    "loss.iters=2",
    "train.steps=6",
    "train.batch=2",
    "train.workers=0",
    "train.checkpoint_every=2",
    "validation.every=0",
)


class Translations:
    """Clip ``index`` shows a smooth texture that moves by a constant whole number of pixels per frame."""

    def __init__(self, size=(48, 64), frames=3, count=16, still=False):
        self.size, self.frames, self.count, self.still = size, frames, count, still

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        height, width = self.size
        dx, dy = (0, 0) if self.still else rng.integers(-4, 5, 2)
        margin = 4 * self.frames
        canvas = rng.integers(0, 256, (height + 2 * margin, width + 2 * margin, 3)).astype(np.float32)
        canvas = cv2.GaussianBlur(canvas, (0, 0), 2)
        canvas = ((canvas - canvas.min()) / np.ptp(canvas) * 255).astype(np.uint8)
        frames = [
            canvas[margin - t * dy : margin - t * dy + height, margin - t * dx : margin - t * dx + width]
            for t in range(self.frames)
        ]
        flow = np.broadcast_to(np.float32([dx, dy]), (self.frames - 1, height, width, 2)).copy()
        valid = np.ones(flow.shape[:3], bool)
        meta = {"name": str(index), "pair": 0, "pad_mode": "sintel"}
        return Clip(np.stack(frames), None, flow, valid, {}, meta)


@pytest.fixture(autouse=True)
def forget_precision():
    """accelerate keeps the precision of the first Accelerator for the whole process; call this between two."""
    AcceleratorState._reset_state()
    return AcceleratorState._reset_state


@pytest.fixture
def translations():
    return Translations


@pytest.fixture
def flow_config():
    """The packaged configuration made tiny, with further overrides."""
    return lambda *overrides: read_config(FlowConfig, "raft-tiny-lq", (*TINY, *overrides))
