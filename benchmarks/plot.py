"""Draw time and memory of the correlation against the resolution, from a file of records.

python -m benchmarks.plot benchmarks/results/<machine>-<date>.jsonl [-o docs/pictures/speed.png]
"""

import argparse
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from daflow_ext.frames._files import atomic_path

OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "docs" / "pictures" / "speed.png"
PANEL = (480, 340)  # width, height
MARGIN = (72, 40, 20, 48)  # left, top, right, bottom
COLORS = {"on_the_fly": (176, 96, 16), "volume": (60, 150, 60), "plain": (40, 40, 200)}  # BGR; others are grey
NAMES = {"on_the_fly": "daflow_ext", "volume": "daflow_ext, stored volume", "plain": "plain PyTorch"}

Series = dict[str, dict[int, float]]  # way -> {pixels of the image: value}


def read(path: pathlib.Path) -> tuple[Series, Series, dict[int, str], str]:
    """Milliseconds, MiB, the spelling of every image size, and the machine.

    Raises:
        ValueError: the file has no record that can be drawn.
    """
    times, memory, sizes, machine = {}, {}, {}, ""
    for record in map(json.loads, path.read_text().splitlines()):
        if record["op"] != "corr_block" or "grid" not in record or "way" not in record:
            continue
        height, width = (8 * side for side in record["grid"])
        pixels = height * width
        sizes[pixels] = f"{height}x{width}"
        machine = f"{record.get('gpu', record['cpu'])}, {record['date'][:10]}"
        if "plain" in record:
            times.setdefault(record["way"], {})[pixels] = record["ms"]
            times.setdefault("plain", {})[pixels] = record["plain"]["ms"]
        elif record.get("layout", "channels_last") == "channels_last":
            memory.setdefault(record["way"], {})[pixels] = record["peak_mib"]
            if "plain_peak_mib" in record:
                memory.setdefault("plain", {})[pixels] = record["plain_peak_mib"]
    if not times or not memory:
        raise ValueError(f"{path} has no times and memory of corr_block; write it by benchmarks.run --op corr_block")
    return times, memory, sizes, machine


def panel(title: str, series: Series, sizes: dict[int, str]) -> np.ndarray:
    """One diagram, both axes logarithmic. [H, W, 3] uint8, BGR."""
    (width, height), (left, top, right, bottom) = PANEL, MARGIN
    image = np.full((height, width, 3), 255, np.uint8)
    values = [value for points in series.values() for value in points.values()]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
    across = _scale(sizes, left + 24, width - right - 24)
    up = _scale((low, high), height - bottom, top)
    _text(image, title, (left - 52, 22), 0.5)
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        y = up(10.0**power)
        cv2.line(image, (left, y), (width - right, y), (225, 225, 225), 1)
        _text(image, f"{10**power:,}" if power >= 0 else f"{10.0**power:g}", (12, y + 4))
    for index, (pixels, name) in enumerate(sorted(sizes.items())):
        _text(image, name, (across(pixels) - 34, height - bottom + (20 if index % 2 == 0 else 36)))
    for index, (name, points) in enumerate(series.items()):
        color = COLORS.get(name, (120, 120, 120))
        corners = [(across(pixels), up(value)) for pixels, value in sorted(points.items())]
        for start, end in itertools.pairwise(corners):
            cv2.line(image, start, end, color, 2, cv2.LINE_AA)
        for corner in corners:
            cv2.circle(image, corner, 4, color, -1, cv2.LINE_AA)
        _text(image, NAMES.get(name, name), (left + 10, top + 14 + 16 * index), color=color)
    return image


def _scale(values: Iterable[float], begin: int, end: int) -> Callable[[float], int]:
    """Where a value lies between ``begin`` and ``end``, logarithmically."""
    logs = [math.log(value) for value in values]
    least, span = min(logs), (max(logs) - min(logs)) or 1.0
    return lambda value: round(begin + (math.log(value) - least) / span * (end - begin))


def _text(image: np.ndarray, text: str, corner: tuple[int, int], size: float = 0.42, color=(40, 40, 40)) -> None:
    cv2.putText(image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)


def draw(path: pathlib.Path) -> np.ndarray:
    """Both diagrams of a file of records. [H, W, 3] uint8, BGR."""
    times, memory, sizes, machine = read(path)
    # ours last: the order of the legend, and what is drawn on top
    times, memory = ({name: s[name] for name in sorted(s, key=lambda n: n != "plain")} for s in (times, memory))
    diagrams = [
        panel("correlation, build + 12 lookups: ms", times, sizes),
        panel("peak memory beyond the feature maps: MiB", memory, sizes),
    ]
    footer = np.full((26, 2 * PANEL[0], 3), 255, np.uint8)
    _text(footer, f"256 channels, radius 4, 4 levels, float32; {machine}", (20, 16))
    return np.concatenate([np.concatenate(diagrams, axis=1), footer])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args()
    encoded = cv2.imencode(".png", draw(args.records))[1]
    with atomic_path(args.output) as path:
        path.write_bytes(encoded.tobytes())


if __name__ == "__main__":
    main()
