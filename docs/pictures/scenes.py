"""Draws docs/pictures/scenes.jpg: rendered clips, their flow, what is occluded, and who lies in front.

python docs/pictures/scenes.py         (photographs: pip install 'daflow_ext[train]')
"""

import pathlib

import cv2
import numpy as np
import torch

from daflow_ext.datasets import Scenes
from daflow_ext.flow import flow_to_image

OUTPUT = pathlib.Path(__file__).with_suffix(".jpg")
CLIPS = (3, 1, 8, 14)
CAPTIONS = ("frame 0", "frame 1", "frame 2", "flow 0 to 1", "occluded 0 to 1", "layers of frame 0")
BAR = 20


def _row(scenes: Scenes, index: int) -> np.ndarray:
    scene = scenes.scene(index)
    flow = flow_to_image(torch.from_numpy(scene.flow[0]).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    masked = np.where(scene.occluded[0][..., None], np.uint8([255, 0, 0]), scene.frames[0] // 2)
    depth = cv2.applyColorMap(scene.layers[0] * np.uint8(28), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.concatenate([*scene.frames, flow, masked, depth], axis=1)


def main() -> None:
    scenes = Scenes(100, textures=("photos", "photos", "procedural"), motion_blur=0.2, max_displacement=60.0)
    rows = np.concatenate([_row(scenes, index) for index in CLIPS])
    bar = np.full((BAR, rows.shape[1], 3), 255, np.uint8)
    for column, caption in enumerate(CAPTIONS):
        place = (column * rows.shape[1] // len(CAPTIONS) + 4, 15)
        cv2.putText(bar, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(str(OUTPUT), np.concatenate([bar, rows])[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
