"""A journal of files that were made in a folder, so that a stopped run can go on: one line of JSON for each.

A line is appended before its file gets its name, so that no kill leaves a file without one; a line without
its file, or with another file's sha256, counts for nothing. A line that a kill cut short is passed over.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path


def append(path: str | Path, record: dict) -> None:
    """Add a record {"file": name, "settings": {...}, ...}. Processes may append at the same time."""
    with open(path, "ab", buffering=0) as file:
        # in front, as the line before may be cut short
        file.write(b"\n" + json.dumps(record, sort_keys=True).encode())


def read(path: str | Path) -> dict[str, dict]:
    """{name: its newest record}; {} where there is no journal. Lines of another kind are passed over."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in Path(path).read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                record = json.loads(line)
                if isinstance(record["settings"], dict):
                    found[record["file"]] = record
    return found
