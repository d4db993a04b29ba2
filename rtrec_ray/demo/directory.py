"""The directory that a report is left in: the names of its files, and how it is made empty before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from rtrec_ray.errors import DirectoryUnusable

OUT: Final = Path("out") / "demo"
PAGE: Final = "report.html"
OBJECT: Final = "report.json"
RECORD: Final = "record.json"
LOGS: Final = "logs"


def empty(directory: Path) -> None:
    """Make the directory, without what was in it. Raises DirectoryUnusable for one that no report of ours was in."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = list(directory.iterdir())
        ours = directory.parts[-2:] == OUT.parts or any(path.name in (PAGE, OBJECT, LOGS) for path in found)
        if found and not ours:
            raise DirectoryUnusable(
                f"{directory} is not empty, and what is in it is no report of ours", mend="name another --out"
            )
        for path in found:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise DirectoryUnusable(
            f"{directory} cannot be written: {error.strerror}", mend="name another --out"
        ) from error
