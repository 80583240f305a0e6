"""How long the notebooks of a run took, from their executed copies."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ..files.results import read_json


@dataclass(frozen=True)
class Executed:
    """An executed copy: wall time in seconds, its parameters, when it ended (ISO 8601)."""

    seconds: float
    parameters: dict
    ended: str


def executed(folder: str | Path) -> dict[str, Executed]:
    """{stem: Executed} of the copies in a run's folder executed/ that ended well; damaged ones are left
    out.
    """
    found = {}
    for path in sorted(Path(folder).glob("[0-9]*.ipynb")):
        if path.name.endswith(".failed.ipynb"):
            continue
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            facts = read_json(path)["metadata"]["papermill"]
            found[path.stem] = Executed(
                float(facts["duration"]), dict(facts["parameters"]), str(facts["end_time"])
            )
    return found


def duration(seconds: float) -> str:
    """ "36 s" below a minute, else "4 min 49 s"."""
    seconds = round(seconds)
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
