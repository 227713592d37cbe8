"""Files that come with the package: in the wheel, or beside the package in a source checkout."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def shipped_files(folder: str, pattern: str) -> dict[str, Path]:
    """Files by name without its ending, in order.

    Args:
        folder: Its name in the checkout; in the wheel it is inside the package, with `_` before the name.
        pattern: Of the files, such as `*.md`.
    """
    package = Path(str(files("ezxmc")))
    for place in (package / f"_{folder}", package.parent / folder):
        if place.is_dir():
            return {path.stem: path for path in sorted(place.glob(pattern))}
    return {}
