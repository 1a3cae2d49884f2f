"""Results per item in a JSON-lines file that survives interruption."""

import json
import os
import pathlib
from collections.abc import Mapping

Key = tuple[str, str, str]
"""(model, level, item)"""


class RecordFile:
    """The first line holds the settings of the run, every further line one result.

    A line is appended in one write and synced; a line cut off by a crash is dropped at the next opening. Opening an
    existing file with other settings is refused, so that a table never mixes two kinds of results.

    Raises:
        ValueError: other settings than the file's, or a file that is no record of this kind.
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, object]):
        self.path = pathlib.Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.records: dict[Key, dict] = {}
        lines = self._whole_lines()
        if not lines:
            self._append({"settings": self.settings}, "w")
            return
        try:
            found = [json.loads(line) for line in lines]
            stored = dict(found[0]["settings"])
            self.records = {key_of(record): record for record in found[1:]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path} is no record of a validation: {error}") from error
        different = sorted(
            name for name in stored.keys() | self.settings.keys() if stored.get(name) != self.settings.get(name)
        )
        if different:
            name = different[0]
            raise ValueError(
                f"{self.path} was made with {name} = {stored.get(name)!r}, this run has {self.settings.get(name)!r}; "
                "give another output folder, or --restart to discard those results"
            )

    def _whole_lines(self) -> list[bytes]:
        if not self.path.is_file():
            return []
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        return data[:whole].splitlines()

    def add(self, record: dict) -> None:
        """Keep one result; a later one of the same model, level and item takes its place."""
        self._append(record, "a")
        self.records[key_of(record)] = record

    def _append(self, entry: dict, mode: str) -> None:
        with self.path.open(mode) as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def done(self, model: str, identity: str, level: str) -> set[str]:
        """Items that have a result of this model; bad ones are tried again.

        Raises:
            ValueError: results of another model under the same name.
        """
        items = set()
        for (name, at, item), record in self.records.items():
            if name != model:
                continue
            if record.get("identity") != identity:
                raise ValueError(
                    f"{self.path} holds results of another {model!r} ({record.get('identity')}, now {identity}); "
                    "name one of them with --model NAME=FILE, give another output folder, or --restart"
                )
            if at == level and "error" not in record:
                items.add(item)
        return items


def key_of(record: Mapping) -> Key:
    return record["model"], record["level"], record["item"]
