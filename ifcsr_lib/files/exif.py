"""What a photograph's file says besides its pixels: date, camera, author, place. Copied byte for byte.

A block is a small TIFF (EXIF 2.32, section 4.6; TIFF 6.0, section 2): byte order, a directory of tags, and
directories for the exposure (EXIF) and the place (GPS). Kept are tags that stay true of a larger picture: not
the orientation (the pixels are turned), thumbnails and maker's notes (which hold offsets into the old file).
"""

from __future__ import annotations

import contextlib
import struct

EXIF, GPS = 0x8769, 0x8825  # tags of directory 0 that point to the other two
# description, maker, model, software, date, artist, host, rating, copyright, Windows' title ... subject
KEPT = {270, 271, 272, 305, 306, 315, 316, 18246, 33432, *range(40091, 40096)}
DROPPED = {0x927C, 0xA005}  # of EXIF: maker's note, and a pointer to interoperability
WIDTH, HEIGHT = 0xA002, 0xA003
X_RESOLUTION, Y_RESOLUTION, UNIT = 282, 283, 296
_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
}  # of a value, by its type


def read(tiff: bytes) -> bytes | None:
    """The block of a TIFF file, or of the EXIF of another format (with or without "Exif" before it).

    None where nothing is worth keeping. Damaged tags are left out.
    """
    tiff = tiff[6:] if tiff.startswith(b"Exif\0\0") else tiff
    with contextlib.suppress(struct.error, KeyError):
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        mark, at = struct.unpack_from(order + "HI", tiff, 2)
        if mark == 42:
            first, place = _directory(tiff, order, at), {}
            parts = {0: {k: v for k, v in first.items() if k in KEPT and not _of_a_program(v)}}
            for pointer in (EXIF, GPS):
                if pointer in first and first[pointer][0] in (4, 13):
                    place = _directory(tiff, order, struct.unpack(order + "I", first[pointer][2][:4])[0])
                    parts[pointer] = {k: v for k, v in place.items() if k not in DROPPED}
            return _block(parts, order) if any(parts.values()) else None
    return None


def _of_a_program(value: tuple) -> bool:
    """Descriptions by which tifffile and ImageJ know their own files' shapes."""
    return value[2].startswith((b'{"shape"', b"ImageJ="))


def dpi(tiff: bytes) -> tuple[float, float] | None:
    """Pixels per inch that a TIFF or EXIF tells."""
    tiff = tiff[6:] if tiff.startswith(b"Exif\0\0") else tiff
    with contextlib.suppress(struct.error, KeyError, ZeroDivisionError):
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        tags = _directory(tiff, order, struct.unpack_from(order + "I", tiff, 4)[0])
        unit = struct.unpack(order + "H", tags[UNIT][2])[0] if UNIT in tags else 2
        x, y = (struct.unpack(order + "II", tags[k][2][:8]) for k in (X_RESOLUTION, Y_RESOLUTION))
        per_inch = {2: 1, 3: 2.54}[unit]
        return x[0] / x[1] * per_inch, y[0] / y[1] * per_inch
    return None


def block(kept: bytes | None, size: tuple[int, int], dpi=None, gps: bool = False) -> bytes | None:
    """What goes into a new file: `kept` (of `read`) for a picture of size (width, height) pixels.

    dpi: (x, y), written where given. gps: keep the place, which a file given away may not tell. None where
    there is nothing to write.
    """
    order, parts = ("<" if kept is None or kept[:2] == b"II" else ">"), {0: {}}
    if kept is not None:
        first = _directory(kept, order, 8)
        parts = {0: {k: v for k, v in first.items() if k not in (EXIF, GPS)}}
        for pointer in (EXIF, GPS):
            if pointer in first and (gps or pointer != GPS):
                parts[pointer] = _directory(kept, order, struct.unpack(order + "I", first[pointer][2])[0])
        for tag, side in zip((WIDTH, HEIGHT), size, strict=True):
            if tag in parts.get(EXIF, {}):
                parts[EXIF][tag] = (4, 1, struct.pack(order + "I", side))
    if dpi is not None:
        for tag, value in zip((X_RESOLUTION, Y_RESOLUTION), dpi, strict=True):
            parts[0][tag] = (5, 1, struct.pack(order + "II", round(value * 1000), 1000))
        parts[0][UNIT] = (3, 1, struct.pack(order + "H", 2))
    return _block(parts, order) if any(parts.values()) else None


def into_tiff(tiff: bytes, block: bytes) -> bytes:
    """A TIFF of one page with the tags of a block of the same byte order, over its own."""
    order = "<" if tiff[:2] == b"II" else ">"
    if tiff[:2] != block[:2]:
        raise ValueError(f"byte order {tiff[:2]} and {block[:2]}; write the TIFF in the order of the block")
    own = _directory(tiff, order, struct.unpack_from(order + "I", tiff, 4)[0])
    first, at = _directory(block, order, 8), len(tiff) + len(tiff) % 2
    parts = {0: own | {k: v for k, v in first.items() if k not in (EXIF, GPS)}}
    for pointer in (EXIF, GPS):
        if pointer in first:
            parts[pointer] = _directory(block, order, struct.unpack(order + "I", first[pointer][2])[0])
    head = tiff[:4] + struct.pack(order + "I", at)
    return head + tiff[8:].ljust(at - 8, b"\0") + _directories(parts, order, at)


def _directory(tiff: bytes, order: str, at: int) -> dict[int, tuple[int, int, bytes]]:
    """{tag: (type, count, bytes)} of the directory at an offset; values outside of the file are left out."""
    found = {}
    for i in range(struct.unpack_from(order + "H", tiff, at)[0]):
        entry = at + 2 + 12 * i
        if entry + 12 > len(tiff):
            break
        tag, kind, count = struct.unpack_from(order + "HHI", tiff, entry)
        size = _BYTES.get(kind, 0) * count
        start = entry + 8 if size <= 4 else struct.unpack_from(order + "I", tiff, entry + 8)[0]
        if size and start + size <= len(tiff):
            found[tag] = kind, count, tiff[start : start + size]
    return found


def _block(parts: dict[int, dict], order: str) -> bytes:
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return head + _directories(parts, order, 8)


def _directories(parts: dict[int, dict], order: str, at: int) -> bytes:
    """Directory 0 as it has to lie at an offset, and behind it those that it points to."""
    others = {k: v for k, v in parts.items() if k and v}
    first = parts[0] | {k: (4, 1, bytes(4)) for k in others}
    end, behind = at + len(_packed(first, order, at)), b""
    for pointer, entries in others.items():
        first[pointer] = (4, 1, struct.pack(order + "I", end + len(behind)))
        behind += _packed(entries, order, end + len(behind))
    return _packed(first, order, at) + behind


def _packed(entries: dict[int, tuple], order: str, at: int) -> bytes:
    """One directory as it has to lie at an offset, with its long values behind it."""
    head, long = struct.pack(order + "H", len(entries)), b""
    start = at + len(head) + 12 * len(entries) + 4
    for tag, (kind, count, value) in sorted(entries.items()):
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack(order + "I", start + len(long))
            long += value + b"\0" * (len(value) % 2)
        head += struct.pack(order + "HHI", tag, kind, count) + field
    return head + bytes(4) + long
