"""Draws docs/pictures/flow.jpg: a frame of the demo clip as the model sees it, its true flow, and RAFT's.

python docs/pictures/flow.py --weights raft-small.pth
"""

import argparse
import pathlib

import cv2
import numpy as np
import torch

from daflow_ext import RAFT, InputPadder, flow_to_image
from daflow_ext.cli._demo_scene import degraded_frames, layers, true_flow

OUTPUT = pathlib.Path(__file__).with_suffix(".jpg")
PAIR = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    model = RAFT.from_pretrained(parser.parse_args().weights)
    frames = [torch.from_numpy(frame).permute(2, 0, 1)[None] for frame in degraded_frames()[PAIR : PAIR + 2]]
    truth = torch.from_numpy(true_flow(layers(), PAIR)).float()
    padder = InputPadder(frames[0].shape)
    with torch.inference_mode():
        flow = padder.unpad(model(*padder.pad(*frames), iters=20, test_mode=True)[1])[0]
    error = float((flow - truth).square().sum(0).sqrt().mean())
    scale = float(truth.square().sum(0).sqrt().max())
    tiles = [frames[0][0], flow_to_image(truth, max_flow=scale), flow_to_image(flow, max_flow=scale)]
    captions = ["degraded frame", "true flow", f"RAFT-{'small' if model.small else 'large'}, EPE {error:.2f} px"]
    row = []
    for tile, caption in zip(tiles, captions, strict=True):
        picture = np.ascontiguousarray(tile.permute(1, 2, 0).numpy())
        bar = np.full((24, picture.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, caption, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        row.append(np.concatenate([bar, picture]))
    cv2.imwrite(str(OUTPUT), np.concatenate(row, 1)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
