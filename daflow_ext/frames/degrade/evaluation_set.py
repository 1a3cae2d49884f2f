"""Degraded data sets that can be made again and checked: PNG frames beside a manifest that says how they were made."""

import dataclasses
import functools
import glob
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import cv2
import numpy as np
import torch

from .._files import atomic_path, json_object
from ..io import IMAGE_SUFFIXES, ImageSequence, _natural_key, read_image, write_image
from ..video import Video
from .config import DegradeConfig
from .corruptions import check_corruption, corrupt_frames
from .layout import seeds_of
from .pipeline import ClipRecord, degrade_frames, map_processes
from .schedule import clip_seed

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.jsonl"
FORMAT, FORMAT_VERSION = "daflow degraded frames", 1
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class Clip(NamedTuple):
    """One clip of a set. ``name``: its folder below the set (empty for a single clip), which also seeds it."""

    name: str
    paths: tuple[pathlib.Path, ...]
    is_video: bool

    def open(self) -> "ImageSequence | Video":
        return Video(self.paths[0]) if self.is_video else ImageSequence(self.paths, str(self.paths[0].parent))

    def frame_name(self, index: int, frames: "ImageSequence | Video") -> str:
        if self.is_video:
            return frames.name(index)
        stems = [path.stem for path in self.paths]
        return stems[index] if len(set(stems)) == len(stems) else self.paths[index].name


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is done to every clip: the recipe ``config``, or one ``corruption`` at a ``severity``."""

    config: DegradeConfig | None = None
    corruption: str | None = None
    severity: int = 3
    seed: int = 0
    upscale: bool = True

    def __post_init__(self) -> None:
        if (self.config is None) == (self.corruption is None):
            raise ValueError("give either a recipe or a corruption")
        if self.corruption is not None:
            check_corruption(self.corruption, self.severity)
        seeds_of(self.seed, 1)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        if self.corruption is not None:
            return {"corruption": self.corruption, "severity": self.severity, "seed": self.seed}
        assert self.config is not None  # or the corruption
        return {"config": self.config.to_dict(), "seed": self.seed, "upscale": self.upscale}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Settings":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: other names, or values out of range.
        """
        values = dict(values)
        if values.get("config") is not None:
            values["config"] = DegradeConfig.from_dict(values["config"])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not the settings of a degradation: {error}") from error

    def apply(self, frames: Iterator[np.ndarray], clip: str, record: ClipRecord) -> Iterator[np.ndarray]:
        seed = clip_seed(self.seed, clip)
        if self.corruption is not None:
            return corrupt_frames(frames, self.corruption, self.severity, seed)
        assert self.config is not None
        return degrade_frames(frames, self.config, seed, upscale=self.upscale, record=record)


def _has_suffix(path: pathlib.Path, suffixes: tuple[str, ...]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def _video_name(path: pathlib.Path, source: pathlib.Path) -> str:
    """Without the suffix, unless a folder or another video claims that name."""
    rivals = [other for other in path.parent.glob(f"{glob.escape(path.stem)}*") if other.stem == path.stem]
    return (path if len(rivals) > 1 else path.with_suffix("")).relative_to(source).as_posix()


def find_clips(source: pathlib.Path) -> list[Clip]:
    """An image or a video as one clip; below a folder, every folder of images and every video file as a clip.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: a folder without images and videos.
    """
    if source.is_file():
        return [Clip("", (source,), not _has_suffix(source, IMAGE_SUFFIXES))]
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist; an image, a folder or a video was expected")
    clips = []
    for folder in [source, *sorted(path for path in source.rglob("*") if path.is_dir())]:
        files = sorted(folder.iterdir(), key=_natural_key)
        images = tuple(path for path in files if _has_suffix(path, IMAGE_SUFFIXES))
        name = "" if folder == source else folder.relative_to(source).as_posix()
        if images:
            clips.append(Clip(name, images, False))
        clips += [Clip(_video_name(path, source), (path,), True) for path in files if _has_suffix(path, VIDEO_SUFFIXES)]
    if not clips:
        kinds = " ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise ValueError(f"the folder {source} holds no image and no video, nor do the folders in it ({kinds})")
    return clips


def count_frames(source: pathlib.Path) -> int | None:
    """Frames below ``source``, None where a video does not tell."""
    lengths = [clip.open().length for clip in find_clips(source)]
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def versions() -> dict[str, str]:
    """The libraries whose numbers the pixels depend on."""
    import av

    from ... import __version__

    ffmpeg = {name: ".".join(map(str, number)) for name, number in av.library_versions.items()}
    return {
        "daflow_ext": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "opencv_cpu": cv2.getCPUFeaturesLine(),  # OpenCV's filters round differently on other instruction sets
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "torch": str(torch.__version__),
        "pyav": importlib.metadata.version("av"),
        **{name: ffmpeg[name] for name in ("libavcodec", "libavformat", "libavutil")},
    }


def file_hash(path: pathlib.Path) -> str:
    """SHA-256 of the bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def pixel_hash(frame: np.ndarray) -> str:
    """SHA-256 of the size and pixels of a uint8 [H, W, 3] frame: the same for every encoder of lossless files."""
    header = "x".join(map(str, frame.shape)).encode()
    return hashlib.sha256(header + b"\n" + np.ascontiguousarray(frame).tobytes()).hexdigest()


def _no_progress(steps: int) -> None:
    pass


def _make_clip(
    clip: Clip, settings: Settings, output: pathlib.Path, step: Callable[[int], object] = _no_progress
) -> dict:
    """Write the frames of one clip; returns its entry in the manifest."""
    frames, record = clip.open(), ClipRecord()
    folder = output / clip.name if clip.name else output
    folder.mkdir(parents=True, exist_ok=True)

    def arrays() -> Iterator[np.ndarray]:
        for frame in frames:
            yield frame.permute(1, 2, 0).contiguous().numpy()
            step(1)

    outputs = {}
    for index, frame in enumerate(settings.apply(arrays(), clip.name, record)):
        path = folder / f"{clip.frame_name(index, frames)}.png"
        write_image(path, torch.from_numpy(frame).permute(2, 0, 1))
        outputs[path.relative_to(output).as_posix()] = pixel_hash(frame)
        step(1)
    if not outputs:
        raise ValueError(f"{frames.source} holds no frame")
    entry = {
        "name": clip.name,
        "seed": clip_seed(settings.seed, clip.name),
        "frames": len(outputs),
        "inputs": {path.name: file_hash(path) for path in clip.paths},
        "outputs": outputs,
    }
    return entry if settings.config is None else {**entry, **record.to_dict()}


def _check_folders(source: pathlib.Path, output: pathlib.Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, a folder was expected")
    if (output / MANIFEST).exists():
        raise ValueError(f"{output} already holds a set ({MANIFEST}); give another folder")
    if (output / UNFINISHED).exists():
        return
    if output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise ValueError(f"{output} is not empty, its files would mix with the set; give a new folder")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"the output {output} lies inside the input {source}; give a folder outside of it")


class _Unfinished:
    """What a run has finished, in a file that is there until the manifest is: the run, then a line per clip.

    A killed run is continued with the clips that lack their line; a line cut off is dropped, and so are the frames of
    clips that were in work.

    Raises:
        ValueError: the file is another run's, or no such file.
    """

    def __init__(self, source: pathlib.Path, output: pathlib.Path, settings: Settings):
        self.path = output / UNFINISHED
        run = {"input": str(source.resolve()), "settings": settings.to_dict(), "versions": versions()}
        run = json.loads(json.dumps(run))
        self.entries: dict[str, dict] = {}
        if not self.path.exists():
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(run) + "\n")
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        os.truncate(self.path, whole)
        try:
            stored, *entries = [json.loads(line) for line in data[:whole].decode().splitlines()]
            self.entries = {entry["name"]: entry for entry in entries}
            other = sorted(name for name in run if stored[name] != run[name])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path} does not describe an unfinished set; give a new folder") from error
        if other:
            raise ValueError(f"{output} holds an unfinished set with another {', '.join(other)}; give a new folder")
        finished = {output / name for entry in self.entries.values() for name in entry["outputs"]}
        for path in output.rglob("*"):
            if path.suffix in (".png", ".tmp") and path not in finished:
                path.unlink()

    def entry(self, clip: Clip) -> dict | None:
        """The entry of a clip that is finished: the same input files, and every output there."""
        entry = self.entries.get(clip.name)
        if entry is None or not all((self.path.parent / name).is_file() for name in entry["outputs"]):
            return None
        return entry if entry["inputs"] == {path.name: file_hash(path) for path in clip.paths} else None

    def add(self, entry: dict) -> dict:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return entry


def make_set(
    source: pathlib.Path,
    output: pathlib.Path,
    settings: Settings,
    *,
    workers: int = 1,
    step: Callable[[int], object] = _no_progress,
) -> dict:
    """Degrade everything below ``source`` into PNG files below ``output``, and write the manifest last.

    Each clip draws from a seed of its own, made from ``settings.seed`` and its name, so the pixels do not depend on
    ``workers``, on the order, or on which other clips there are. ``step(n)`` is told of n more frames read or written:
    twice :func:`count_frames` in all.

    Called again after it was interrupted, or killed, it goes on after the last clip that was finished.

    Returns the manifest.
    Raises:
        ValueError, FileNotFoundError: nothing to read, an unreadable frame, a set in ``output`` already, an unfinished
            one of another input, other settings or other library versions, or an output inside ``source``.
    """
    clips = find_clips(source)
    _check_folders(source, output)
    output.mkdir(parents=True, exist_ok=True)
    unfinished = _Unfinished(source, output, settings)
    entries = {clip.name: unfinished.entry(clip) for clip in clips}
    step(sum(2 * entry["frames"] for entry in entries.values() if entry))
    left = [clip for clip in clips if entries[clip.name] is None]
    make = functools.partial(_make_clip, settings=settings, output=output)
    if workers == 1:
        for clip in left:
            entries[clip.name] = unfinished.add(make(clip, step=step))
    elif left:
        for entry in map_processes(make, left, workers):
            entries[entry["name"]] = unfinished.add(entry)
            step(2 * entry["frames"])
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": settings.to_dict(),
        "versions": versions(),
        "clips": [entries[clip.name] for clip in clips],
    }
    with atomic_path(output / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1))
    unfinished.path.unlink()
    return manifest


def read_manifest(path: pathlib.Path) -> dict:
    """The manifest of a set, by its file or its folder.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a manifest of this version.
    """
    path = path / MANIFEST if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"the manifest {path} does not exist")
    manifest = json_object(path)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is no manifest of degraded frames")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {manifest.get('format_version')}, expected {FORMAT_VERSION}")
    clips = manifest.get("clips")
    if not isinstance(manifest.get("settings"), dict) or not isinstance(clips, list):
        raise ValueError(f"{path} is incomplete: it lacks 'settings' or the list 'clips'")
    needed = {"name": str, "inputs": dict, "outputs": dict}
    if not all(isinstance(clip, dict) and all(isinstance(clip.get(n), k) for n, k in needed.items()) for clip in clips):
        raise ValueError(f"{path} is incomplete: each clip needs {', '.join(sorted(needed))}")
    return manifest


def _check_frame(path: pathlib.Path, expected: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    try:
        frame = read_image(path)
    except ValueError as error:
        return str(error)
    if pixel_hash(frame.permute(1, 2, 0).numpy()) != expected:
        return f"{path} has other pixels than the manifest states"
    # every other byte of a PNG is under a checksum that the decoder compares
    return None if path.read_bytes().endswith(PNG_END) else f"{path} does not end as a PNG file does"


def _strangers(manifest: Mapping, folder: pathlib.Path) -> Iterator[str]:
    listed = {folder / name for clip in manifest["clips"] for name in clip["outputs"]}
    for place in sorted({path.parent for path in listed}):
        if place.is_dir():
            found = (path for path in place.iterdir() if _has_suffix(path, IMAGE_SUFFIXES))
            yield from (f"{path} is not in the manifest" for path in sorted(found) if path not in listed)


def check_set(manifest: Mapping, folder: pathlib.Path, source: pathlib.Path | None = None) -> Iterator[str | None]:
    """Compare the files of a set with its manifest: per file None, or one sentence that says what is wrong.

    Images in the folders of the clips that the manifest does not list are reported, too.

    ``source`` also compares the files that the set was made from.
    """
    for clip in manifest["clips"]:
        for name, expected in clip["outputs"].items():
            yield _check_frame(folder / name, expected)
    yield from _strangers(manifest, folder)
    if source is None:
        return
    found = {clip.name: clip for clip in find_clips(source)}
    for clip in manifest["clips"]:
        paths = {path.name: path for path in found[clip["name"]].paths} if clip["name"] in found else {}
        for name, expected in clip["inputs"].items():
            if name not in paths:
                yield f"{pathlib.PurePosixPath(clip['name'], name)} is missing in {source}"
            elif file_hash(paths[name]) != expected:
                yield f"{paths[name]} is another file than the set was made from"
            else:
                yield None


def differences(made: Mapping, expected: Mapping) -> list[str]:
    """Names of the frames that differ between two manifests, or are in only one of them."""
    first, second = ({k: v for clip in m["clips"] for k, v in clip["outputs"].items()} for m in (made, expected))
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
