"""Draws docs/pictures/degradation.jpg: every preset, level and corruption on one frame of the demo scene.

python docs/pictures/degradation.py
"""

import pathlib

import cv2
import numpy as np

from daflow_ext.cli._demo_scene import layers, render
from daflow_ext.frames.degrade import CORRUPTIONS, PRESETS, corrupt, degrade

OUTPUT = pathlib.Path(__file__).with_suffix(".jpg")
COLUMNS, CAPTION = 4, 20
FRAMES = 5  # the codecs see a clip; its middle frame is shown


def _tile(picture: np.ndarray, caption: str) -> np.ndarray:
    picture = cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    bar = np.full((CAPTION, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, caption, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return cv2.copyMakeBorder(np.concatenate([bar, picture]), 0, 4, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def main() -> None:
    scene = layers()
    clip = np.stack([np.clip(np.rint(render(scene, t)), 0, 255).astype(np.uint8) for t in range(FRAMES)])
    middle = FRAMES // 2
    tiles = [_tile(clip[middle], "source")]
    tiles += [_tile(degrade(clip, name, seed=4)[middle], name) for name in PRESETS]
    tiles += [_tile(corrupt(clip, name, 3, seed=1)[middle], f"{name}, severity 3") for name in CORRUPTIONS]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[i : i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
    cv2.imwrite(str(OUTPUT), np.concatenate(rows)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
