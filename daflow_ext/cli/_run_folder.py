"""The folder of a run that can be continued: its settings, what it has finished, and where it goes on."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..frames import Frames
from ..frames._files import atomic_path, json_object

SETTINGS, RECORDS, WARM = "run.json", "pairs.jsonl", "warm_start.safetensors"
_SIZES = "frame_bytes"


class RunFolder:
    """``run.json`` holds the settings, ``pairs.jsonl`` one line per finished pair, in order; with a warm start
    ``warm_start.safetensors`` what the next pair begins at.

    A line is added after the files of its pair are complete, so a run that was killed at any moment goes on after the
    last line; a line cut off is dropped, a damaged one with those after it.

    Args:
        settings: anything JSON can carry; a folder of another run is refused.
        frames: of :func:`daflow_ext.frames.open_frames`.
        used: a number of finished records -> how many frames they come from. Those files must have kept their sizes;
            frames behind them may change or be added.
        overwrite: drop an earlier run and the files it wrote.
    Raises:
        ValueError: results of other settings or frames are there; names the first difference.
    """

    def __init__(
        self,
        root: pathlib.Path,
        settings: Mapping[str, object],
        *,
        frames: Frames,
        used: Callable[[int], int],
        overwrite: bool = False,
    ):
        files = frames.paths
        self.root, self.settings = root, json.loads(json.dumps(settings))
        self.settings[_SIZES] = [path.stat().st_size for path in files]
        self.records: list[dict] = []
        if overwrite:
            self._discard()
        if (root / SETTINGS).exists():
            before = self._check()
            self.records = self._complete(self._lines())
            if self.records:
                self._check_frames(files, before, used(len(self.records)))

    def _check_frames(self, files: list[pathlib.Path], before: object, count: int) -> None:
        now = self.settings[_SIZES]
        if isinstance(before, list) and before[:count] == now[:count]:
            return
        sizes = before if isinstance(before, list) else []
        changed = next((k for k, (old, new) in enumerate(zip(sizes, now, strict=False)) if old != new), None)
        what = "other frames" if changed is None else f"another {files[changed].name} (its size has changed)"
        raise ValueError(
            f"{self.root} holds results of {what}; give another folder, or --overwrite to discard that run"
        )

    def _check(self) -> object:
        """Refuse other settings; gives the sizes of the frames' files, which may differ."""
        path = self.root / SETTINGS
        try:
            stored = json_object(path)
        except ValueError as error:
            raise ValueError(f"{path} does not describe a run ({error}); give another folder or --overwrite") from error
        for name in sorted((stored.keys() | self.settings.keys()) - {_SIZES}):
            if stored.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{self.root} holds a run with {name} = {stored.get(name)!r}, this one has "
                    f"{self.settings.get(name)!r}; give another folder, or --overwrite to discard that run"
                )
        return stored.get(_SIZES)

    def _lines(self) -> list[dict]:
        path = self.root / RECORDS
        if not path.is_file():
            return []
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        records = []
        for line in data[:whole].splitlines():
            record = _record(line)
            if record is None:
                break
            records.append(record)
        return records

    def _complete(self, records: list[dict]) -> list[dict]:
        """The records before the first whose files are gone."""
        for count, record in enumerate(records):
            if not all((self.root / name).is_file() for name in record["files"].values()):
                return records[:count]
        return records

    def _discard(self) -> None:
        for record in self._lines():
            for name in record["files"].values():
                (self.root / name).unlink(missing_ok=True)
        for name in (RECORDS, WARM, SETTINGS):
            (self.root / name).unlink(missing_ok=True)

    def resume(self, stride: int, *, warm_start: bool) -> tuple[int, dict[str, torch.Tensor] | None]:
        """The first pair to estimate, a multiple of ``stride``, and its warm start; later records are dropped."""
        start, warm = len(self.records) - len(self.records) % stride, None
        if warm_start:
            at, warm = self._warm()
            start = at if at <= start and at % stride == 0 else 0
            warm = warm if start else None
        if len(self.records) > start:
            self.records = self.records[:start]
        return start, warm

    def _warm(self) -> tuple[int, dict[str, torch.Tensor] | None]:
        path = self.root / WARM
        if not path.is_file():
            return 0, None
        try:
            with safe_open(path, framework="pt") as file:
                return int(file.metadata()["next"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it to begin anew") from error

    def begin(self) -> None:
        """Write the settings and the records that are kept."""
        self.root.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.root / SETTINGS) as path:
            path.write_text(json.dumps(self.settings, indent=1) + "\n")
        with atomic_path(self.root / RECORDS) as path:
            path.write_text("".join(json.dumps(record) + "\n" for record in self.records))

    def add(self, record: dict, stride: int, warm: dict[str, torch.Tensor] | None) -> None:
        """Keep a pair whose files are complete."""
        with (self.root / RECORDS).open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)
        if warm and len(self.records) % stride == 0:
            with atomic_path(self.root / WARM) as path:
                tensors = {name: tensor.contiguous() for name, tensor in warm.items()}
                path.write_bytes(save(tensors, {"next": str(len(self.records))}))


def _record(line: bytes) -> dict | None:
    """The record of a line; None if it is damaged, or names a file that is not in the folder."""
    try:
        record = json.loads(line)
        paths = [pathlib.PurePath(name) for name in record["files"].values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return None if any(path.is_absolute() or ".." in path.parts for path in paths) else record
