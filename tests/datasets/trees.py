"""Miniature data sets in the publishers' layouts and file formats.

Every frame is one grey level and every flow one vector, both made of the frame's number, so that a test sees which
file a loader took.
"""

import pathlib

import cv2
import h5py
import numpy as np

HEIGHT, WIDTH = 16, 24


def picture(path, level, height=HEIGHT, width=WIDTH):
    """A frame whose pixels are (level, level + 1, level + 2) in RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (level + 2, level + 1, level)  # OpenCV writes BGR
    assert cv2.imwrite(str(path), image)


def mask(path, columns, height=HEIGHT, width=WIDTH, channels=1):
    """White in the first ``columns`` columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((height, width, channels) if channels > 1 else (height, width), np.uint8)
    image[:, :columns] = 255
    assert cv2.imwrite(str(path), image)


def vectors(x, y, height=HEIGHT, width=WIDTH):
    return np.broadcast_to(np.float32([x, y]), (height, width, 2)).copy()


def flo(path, flow):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = np.float32(202021.25).tobytes() + np.int32([flow.shape[1], flow.shape[0]]).tobytes()
    path.write_bytes(header + flow.astype("<f4").tobytes())


def pfm(path, flow):
    path.parent.mkdir(parents=True, exist_ok=True)
    three = np.dstack([flow, np.zeros(flow.shape[:2], np.float32)])[::-1]
    path.write_bytes(f"PF\n{flow.shape[1]} {flow.shape[0]}\n-1\n".encode() + three.astype("<f4").tobytes())


def kitti_png(path, flow, valid):
    path.parent.mkdir(parents=True, exist_ok=True)
    coded = np.rint(flow * 64 + 32768).astype(np.uint16)
    bgr = np.dstack([valid.astype(np.uint16), coded[..., 1], coded[..., 0]])
    bgr[~valid] = 0
    assert cv2.imwrite(str(path), bgr)


def flo5(path, flow):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("flow", data=flow, compression="gzip", compression_opts=5)


def sintel(root: pathlib.Path, scenes=("alley_1", "market_2"), frames=4):
    for offset, scene in enumerate(scenes):
        for number in range(1, frames + 1):
            for rendering in ("clean", "final"):
                level = 50 * offset + number + (100 if rendering == "final" else 0)
                picture(root / f"training/{rendering}/{scene}/frame_{number:04d}.png", level)
                picture(root / f"test/{rendering}/{scene}/frame_{number:04d}.png", level + 10)
            mask(root / f"training/invalid/{scene}/frame_{number:04d}.png", 1)
            if number < frames:
                flo(root / f"training/flow/{scene}/frame_{number:04d}.flo", vectors(number, offset))
                mask(root / f"training/occlusions/{scene}/frame_{number:04d}.png", number)
    return root


def kitti(root: pathlib.Path, images="image_2", scenes=3, multiview=False):
    for scene in range(scenes):
        for number in range(8, 13) if multiview else (10, 11):
            for split in ("training", "testing"):
                picture(root / f"{split}/{images}/{scene:06d}_{number:02d}.png", 20 * scene + number)
        valid = np.zeros((HEIGHT, WIDTH), bool)
        valid[4:] = True
        kitti_png(root / f"training/flow_occ/{scene:06d}_10.png", vectors(scene + 0.5, -1.25), valid)
        valid[:8] = False
        kitti_png(root / f"training/flow_noc/{scene:06d}_10.png", vectors(scene + 0.5, -1.25), valid)
    return root


def spring(root: pathlib.Path, scenes=("0001", "0004"), frames=3, maps=True):
    """Samples (0, 0), (1, 0), (0, 1), (1, 1) of each pixel differ by their index."""
    samples = np.tile(np.float32([[0, 0.25], [0.5, 0.75]]), (HEIGHT, WIDTH))
    for offset, scene in enumerate(scenes):
        for camera in ("left", "right"):
            for number in range(1, frames + 1):
                level = 50 * offset + number + (100 if camera == "right" else 0)
                picture(root / f"train/{scene}/frame_{camera}/frame_{camera}_{number:04d}.png", level)
                picture(root / f"test/{scene}/frame_{camera}/frame_{camera}_{number:04d}.png", level)
                for direction, sign in (("FW", 1), ("BW", -1)):
                    if not 1 <= number + sign <= frames:
                        continue
                    kind = f"{direction}_{camera}"
                    flow = vectors(sign * number, 0, 2 * HEIGHT, 2 * WIDTH)
                    flow[..., 0] += samples
                    flow[0, 0] = np.nan
                    flo5(root / f"train/{scene}/flow_{kind}/flow_{kind}_{number:04d}.flo5", flow)
                    if maps:
                        folder = root / f"train/{scene}/maps"
                        mask(folder / f"detailmap_flow_{kind}/detailmap_flow_{kind}_{number:04d}.png", 2)
                        mask(folder / f"matchmap_flow_{kind}/matchmap_flow_{kind}_{number:04d}.png", 3, channels=3)
                        mask(folder / f"rigidmap_{kind}/rigidmap_{kind}_{number:04d}.png", 9, 2 * HEIGHT, 2 * WIDTH)
                if maps:
                    mask(
                        root / f"train/{scene}/maps/skymap_{camera}/skymap_{camera}_{number:04d}.png",
                        10,
                        2 * HEIGHT,
                        2 * WIDTH,
                    )
    return root


def tartanair(root: pathlib.Path, trajectories, nested=False):
    """``trajectories``: path -> number of frames."""
    for path, frames in trajectories.items():
        folder = root / (f"archive/{path}" if nested else path)
        for number in range(frames):
            picture(folder / f"image_left/{number:06d}_left.png", number % 200, 4, 6)
            if number + 1 < frames:
                (folder / "flow").mkdir(exist_ok=True)
                stem = folder / f"flow/{number:06d}_{number + 1:06d}"
                np.save(f"{stem}_flow.npy", vectors(number, 2, 4, 6))
                codes = np.zeros((4, 6), np.uint8)
                codes[0], codes[1], codes[2] = 1, 10, 100
                np.save(f"{stem}_mask.npy", codes)
    return root


def flyingchairs(root: pathlib.Path, pairs=5):
    for number in range(1, pairs + 1):
        picture(root / f"data/{number:05d}_img1.ppm", number)
        picture(root / f"data/{number:05d}_img2.ppm", number + 100)
        flo(root / f"data/{number:05d}_flow.flo", vectors(number, -number))
    return root


def flyingthings3d(root: pathlib.Path, frames=3):
    for part in ("TRAIN", "TEST"):
        for letter, scene in (("A", "0000"), ("B", "0001")):
            for number in range(6, 6 + frames):
                for rendering in ("clean", "final"):
                    level = number + (100 if rendering == "final" else 0)
                    picture(root / f"frames_{rendering}pass/{part}/{letter}/{scene}/left/{number:04d}.png", level)
                for direction, word, sign in (("into_future", "Future", 1), ("into_past", "Past", -1)):
                    flows = root / f"optical_flow/{part}/{letter}/{scene}/{direction}/left"
                    pfm(flows / f"OpticalFlowInto{word}_{number:04d}_L.pfm", vectors(sign * number, 0.5))
    return root


def hd1k(root: pathlib.Path, sequences=2, frames=3):
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[:, :5] = False
    for sequence in range(sequences):
        for number in range(frames):
            stem = f"{sequence:06d}_{number:04d}.png"
            picture(root / "hd1k_input/image_2" / stem, 20 * sequence + number)
            kitti_png(root / "hd1k_flow_gt/flow_occ" / stem, vectors(sequence, number), valid)
    return root


def middlebury(root: pathlib.Path):
    for scene, numbers in (("RubberWhale", range(7, 15)), ("Venus", (10, 11))):
        for number in numbers:
            picture(root / f"other-data/{scene}/frame{number:02d}.png", number)
        flow = vectors(1.5, -0.5)
        flow[0] = 1.6666667e9  # Middlebury's mark of unknown flow
        flo(root / f"other-gt-flow/{scene}/flow10.flo", flow)
    for number in (10, 11):
        picture(root / f"eval-data/Army/frame{number}.png", number)
    return root


def video(path: pathlib.Path, levels, height=32, width=48):
    """A lossless-enough video of flat grey frames."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 4_000_000
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
