"""What a run leaves on disk to go on from: the checkpoint, and the log cut to it."""

import io
import json
import os
import pathlib
from typing import Any

import torch

from ..frames._files import atomic_path
from .config import Config, changed_keys, to_dict

NAME = "checkpoint.pt"
LOG = "log.jsonl"


def save(folder: pathlib.Path, config: Config, content: dict[str, Any]) -> None:
    """Replace the checkpoint of ``folder``; a reader, also after a power cut, sees the old one or the whole new one."""
    with atomic_path(folder / NAME) as path, path.open("wb") as file:
        torch.save({**content, "config": json.dumps(to_dict(config))}, file)
        file.flush()
        os.fsync(file.fileno())


def load(folder: pathlib.Path, config: Config) -> dict[str, Any] | None:
    """The checkpoint of ``folder``, None where there is none.

    Raises:
        ValueError: it belongs to another configuration (names the keys), or is unreadable.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        # from memory: reading a file, Python would first ask for as many bytes as a length in the pickle claims
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        stored = json.loads(content["config"])
    except Exception as error:  # the bytes of a broken pickle can raise anything
        raise ValueError(f"{path} is no checkpoint of a training run: {error}") from error
    changed = changed_keys(config, stored)
    if changed:
        raise ValueError(
            f"{folder} holds a run with another {', '.join(changed)}; go on with its own values "
            f"({folder / 'config.yaml'}), choose another --out, or begin anew with --restart"
        )
    return content


class Log:
    """One JSON object per line; what an interrupted run wrote after its checkpoint is dropped."""

    def __init__(self, folder: pathlib.Path, step: int):
        self.path = folder / LOG
        try:
            kept = [line for line in self._lines() if json.loads(line)["step"] <= step] if step else []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path} is no log of a training run: {error}") from error
        with atomic_path(self.path) as path:
            path.write_text("".join(kept))
        self._file = self.path.open("a")

    def _lines(self) -> list[str]:
        """Whole lines: a killed run may have left a part of one."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        return [line for line in lines if line.endswith("}\n")]

    def write(self, **record: Any) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def records(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
