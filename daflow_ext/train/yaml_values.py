"""YAML texts as plain values, of a size that their length bounds."""

from collections.abc import Mapping
from typing import Any

import yaml

MOST_VALUES = 10_000
DEEPEST = 50


def parse(text: str, name: str) -> Any:
    """The values of a YAML text called ``name``.

    Raises:
        ValueError: no YAML; or more values (aliases counted as often as they are used) or a deeper nesting than a
            configuration has, which would not end when copied.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:  # a date such as 2026-02-30; PyYAML calls itself per level
        raise ValueError(f"{name} is no YAML of plain values: {error}") from error
    _check_size(values, name)
    return values


def _check_size(values: Any, name: str) -> None:
    todo, seen = [(values, 0)], 0
    while todo:
        value, depth = todo.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            raise ValueError(f"{name} is no configuration: it has more than {MOST_VALUES} values or {DEEPEST} levels")
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
        todo += [(part, depth + 1) for part in parts]
