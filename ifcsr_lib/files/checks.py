"""What a file must be before it is read: a file at all, no git-LFS pointer, an ifcsr.json with all that
`load` needs. And how a name is shown.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ..config import ADAPTERS

# the first line of a pointer file: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
POINTER = b"version https://git-lfs.github.com/spec/v1"
FORMATS = ("ifcsr 1", "ifcsr 2")
# of C0 and C1, line ends, and marks that turn the direction of text: a terminal obeys them
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(name: str) -> str:
    """A file name as text that any terminal, table or page can hold: control characters, and bytes that are
    no UTF-8, become escapes such as \\n and \\udcff.
    """
    name = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), name)
    return name.encode("utf-8", "backslashreplace").decode()


def oddity(path: str | Path) -> str:
    """What a path is that is neither a file nor a folder, such as "a pipe"; "" for these and for nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "a link that leads nowhere" if os.path.islink(path) else ""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((text for test, text in kinds.items() if test(mode)), "a device")


def is_pointer(data: bytes) -> bool:
    """True when a file's first bytes are those of a git-LFS pointer."""
    return bytes(data[: len(POINTER)]) == POINTER


def check_pointer(path: str | Path) -> None:
    """Raise ValueError when the file `path` is a git-LFS pointer, the few lines that stand for a large file.

    Anything else passes, a file that is absent or may not be read too: whoever reads it has the better words.
    A pipe is not opened, which would wait for its writer.
    """
    if not os.path.isfile(path):
        return
    try:
        with open(path, "rb") as file:
            head = file.read(len(POINTER))
    except OSError:
        return
    if is_pointer(head):
        raise ValueError(pointer_text(path))


def pointer_text(path: str | Path) -> str:
    """The sentence about a pointer, for errors of one's own."""
    return (
        f"{path} is a git-LFS pointer, not the file itself; run `git lfs pull` where it was cloned (once "
        "`git lfs install` before it), or download the file"
    )


def check_card(card, path: str | Path, adapters: tuple[str, ...] = ADAPTERS) -> None:
    """Raise ValueError, in one line that names `path`, unless card is what a saved model's ifcsr.json holds.

    card: what JSON gave. Needed: "model" (or "config" of format 1), an object with the text "profile";
    "backbone" with the texts "id" and "hash", "files" an object where it is there; "adapters" with "file" (a
    name that ends in .safetensors) and "sha256" (64 hex digits) of each of `adapters`, more are allowed;
    "provenance" an object, null or left out; "format" of FORMATS, or left out.
    """
    _of(card, dict, "it", path)
    if (version := card.get("format", FORMATS[-1])) not in FORMATS:
        raise _wrong(path, f"format is {_short(version)}", f"{' or '.join(map(repr, FORMATS))}")
    settings = "model" if "model" in card or "config" not in card else "config"
    _text(_entry(card, settings, dict, path), "profile", path, settings)
    backbone = _entry(card, "backbone", dict, path)
    for key in ("id", "hash"):
        _text(backbone, key, path, "backbone")
    _of(backbone.get("files", {}), dict, "backbone.files", path)
    _of(card.get("provenance") or {}, dict, "provenance", path)
    known = _entry(card, "adapters", dict, path)
    for name in adapters:
        entry = _entry(known, name, dict, path, "adapters")
        file, digest = (_text(entry, key, path, f"adapters.{name}") for key in ("file", "sha256"))
        if not file.endswith(".safetensors"):
            raise _wrong(path, f"adapters.{name}.file is {_short(file)}", "a name that ends in .safetensors")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise _wrong(path, f"adapters.{name}.sha256 is {_short(digest)}", "64 hex digits")


_KINDS = {dict: "an object {...}", str: "a text"}


def _entry(values: dict, key: str, kind: type, path, inside: str = ""):
    name = f"{inside}.{key}" if inside else key
    if key not in values:
        raise _wrong(path, f"{name} is missing", _KINDS[kind])
    return _of(values[key], kind, name, path)


def _text(values: dict, key: str, path, inside: str) -> str:
    if not (text := _entry(values, key, str, path, inside)):
        raise _wrong(path, f"{inside}.{key} is empty", "a text")
    return text


def _of(value, kind: type, name: str, path):
    if not isinstance(value, kind):
        raise _wrong(path, f"{name} is {_short(value)}", _KINDS[kind])
    return value


def _wrong(path, what: str, allowed: str) -> ValueError:
    return ValueError(
        f"{path} is damaged or of another version of this kit: {what}; allowed: {allowed}. Get the model's "
        "folder again, or write it again with model.save"
    )


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
