"""The tables of a run, as far as they are whole and of its settings, and why the others are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..config import Config
from ..errors import one_line
from ..files.checks import check_pointer
from ..files.results import fault, read_json, sidecar


class Unread(ValueError):
    """A table lacks what is asked of it; the message says what, and fits behind the table's name."""


@dataclass(frozen=True)
class Tables:
    """frames: {name: table}; faults: {name: why it is left out}; writers: {name: the notebook or script}."""

    frames: dict[str, pd.DataFrame]
    faults: dict[str, str]
    writers: dict[str, str]


def check(path: Path, cfg: Config) -> None:
    """Raise Unread unless a table, figure or page has its record and is of these settings. Raises ValueError
    when the record is none.
    """
    if not sidecar(path).is_file():
        raise Unread(f"has no {sidecar(path).name} that says how it was made")
    if reason := fault(path, cfg):
        raise Unread(reason)


def read_all(folder: str | Path, cfg: Config) -> Tables:
    """The tables in a folder (no folder: none). One that is damaged, changed by hand, or made with other
    settings is in `faults`, never an error.
    """
    frames, faults, writers = {}, {}, {}
    for path in sorted(Path(folder).glob("*.csv")):
        try:
            check(path, cfg)
            frames[path.stem] = read(path)
            writers[path.stem] = str(read_json(sidecar(path)).get("written_by"))
        except Unread as error:
            faults[path.stem] = str(error)
        except (OSError, ValueError) as error:
            faults[path.stem] = f"cannot be read ({one_line(error)[:200]})"
    return Tables(frames, faults, writers)


def read(path: Path) -> pd.DataFrame:
    """A CSV with at least one row and one column. Raises Unread, or what the file system raises."""
    check_pointer(path)
    try:
        table = pd.read_csv(path)
    except (ValueError, LookupError) as error:  # pandas' own are ValueErrors; also undecodable bytes
        raise Unread(f"is no table ({one_line(error)[:200]})") from error
    if table.empty:
        raise Unread("has no rows")
    return table


def numbers(table: pd.DataFrame, column: str) -> list[float]:
    """A column as finite numbers. Raises Unread for a missing column and for text such as "not run: ..."."""
    if column not in table:
        raise Unread(f"has no column {column!r}")
    values = pd.to_numeric(table[column], errors="coerce")
    if bad := [cell for cell, value in zip(table[column], values, strict=True) if pd.isna(value)]:
        raise Unread(f"has {str(bad[0])!r} in the column {column!r}")
    if bad := [value for value in values if abs(value) == float("inf")]:
        raise Unread(f"has {bad[0]} in the column {column!r}")
    return [float(value) for value in values]


def rows(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """The rows whose `column` reads `value`, at least one. Raises Unread."""
    if column not in table:
        raise Unread(f"has no column {column!r}")
    found = table[table[column].astype(str) == value]
    if found.empty:
        raise Unread(f"has no row {value!r}")
    return found
