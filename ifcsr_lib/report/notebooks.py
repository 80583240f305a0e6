"""How long the notebooks of a run took, from their executed copies, and how long those to come will take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ..files.results import read_json

# {number: minutes at pocket scale, on one CPU core beside another notebook}, as in README's table; its
# "under 1" is half a minute here
MINUTES = {
    "00": 0.5, "01": 0.5, "02": 6, "03": 7, "04": 1, "05": 9, "06": 0.5, "07": 19, "08": 1, "09": 3,
    "10": 3,
}  # fmt: skip
STEADY = 120  # seconds: how much of a run it takes before its own pace counts as much as what was expected


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


class Forecast:
    """Time to go, from the minutes of the last run in this folder, else from MINUTES; scaled by the pace so
    far.

    stems: the notebooks to run; folder: executed/ of the profile, read now, before copies are replaced; jobs:
    how many run at once. source: where the minutes come from, in words; None when there are none.
    """

    def __init__(self, stems, folder: str | Path, profile: str, jobs: int = 1):
        last = {
            k: one.seconds for k, one in executed(folder).items() if one.parameters.get("profile") == profile
        }
        typical = {stem: 60 * MINUTES[stem[:2]] for stem in stems if stem[:2] in MINUTES}
        self.source, self.expected = None, {}
        for source, seconds, fits in (
            ("the last run here", last, True),
            ("README's minutes, for 2 CPU cores", typical, profile == "pocket"),
        ):
            if fits and all(stem in seconds for stem in stems):
                self.source, self.expected = source, {stem: seconds[stem] / jobs for stem in stems}
                break

    def left(self, done=(), elapsed: float = 0.0) -> float | None:
        """Seconds to go after the stems `done`, which took `elapsed` seconds; None without minutes."""
        if self.source is None:
            return None
        before = sum(self.expected[stem] for stem in done)
        pace = (elapsed + STEADY) / (before + STEADY)
        return pace * (sum(self.expected.values()) - before)


def minutes(seconds: float, word: str = "") -> str:
    """ "under 1 min", else whole minutes behind `word`, such as "about "."""
    return f"{word}{round(seconds / 60)} min" if seconds >= 60 else "under 1 min"
