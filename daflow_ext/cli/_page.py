"""What every verb with ``--report`` shares."""

import pathlib

from ..flow import Report


def check_page_name(path: pathlib.Path | None) -> None:
    """Raise ValueError, before anything is computed, where ``--report`` names no HTML file."""
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--report writes an HTML page; expected a name ending in .html, got {path}")
    if path is not None and path.is_dir():
        raise ValueError(f"--report {path} is a folder, a file was expected")


def write_page(report: Report, path: pathlib.Path) -> None:
    """Write the page; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write(path)
