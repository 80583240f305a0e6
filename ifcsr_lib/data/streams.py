"""Training crops of sets too large for memory: folders and tar shards (webdataset's format), on disk or
behind http(s).

A scan, cached in a small file beside the images, says where each image is: file, offset and bytes. Then any
image can be read alone, and crop i is a function of (seed, i) and the set of images, whatever the number of
processes or workers, whether from a folder or from shards of it, and after a resume. Memory holds some 100
bytes per image.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import hashlib
import io
import os
import re
import tarfile
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..files.checks import check_pointer, is_pointer, pointer_text
from ..files.images import FORMATS, decode_image, list_images
from ..files.results import atomic
from .patches import cut, user_data
from .remote import Remote, is_url, read_range

INDEX = ".ifcsr_index.csv"
HEAD = 2**16  # bytes that a scan reads of an image first; an image header is rarely longer
_END = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_FIELDS = ("file", "bytes", "time", "name", "offset", "size", "width", "height")


def training_files(training_set: str) -> list[tuple[list[str], Path | None]]:
    """(files, where to cache their index) for each part of a training set, parts joined by "+".

    A part is a folder of $IFCSR_DATA with images or with *.tar, or shards as a path or address with braces,
    such as https://host/ffhq-{000000..000009}.tar ("+" in an address is %2B). Raises FileNotFoundError or
    ValueError.
    """
    found = []
    for part in training_set.split("+"):
        folder = None if is_url(part) else user_data(part)
        if is_url(part) or "{" in part or part.endswith(".tar"):
            home = user_data("")
            files = _expand(part)
            files = files if is_url(part) else [str((home or Path()) / file) for file in files]
            key = f"{INDEX.removesuffix('.csv')}_{hashlib.sha256(part.encode()).hexdigest()[:12]}.csv"
            found.append((files, home / key if home else None))
        elif folder is None:
            raise FileNotFoundError(
                f"no training images: set IFCSR_DATA to a folder with {part}/ (python -m ifcsr_lib "
                "data says what is there and where to get it; see data/README.md)"
            )
        else:
            files = sorted(folder.glob("*.tar")) or list_images(folder)
            found.append(([str(file) for file in files], folder / INDEX))
    if odd := [f for files, _ in found for f in files if f.endswith((".tar.gz", ".tgz"))]:
        raise ValueError(
            f"{odd[0]}: shards are read at random places, so they must be plain .tar; gunzip them"
        )
    return found


def _expand(text: str) -> list[str]:
    """ "x-{000..002}.tar" as its three names; {a,b} stands for a or b. ValueError for other braces."""
    found = re.search(r"\{([^{}]*)\}", text)
    if not found:
        if set("{}") & set(text):
            raise ValueError(f"{text!r}: a brace has no partner; write shards as name-{{000000..000009}}.tar")
        return [text]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if ends and int(ends[1]) <= int(ends[2]):
        values = [f"{n:0{len(ends[1])}d}" for n in range(int(ends[1]), int(ends[2]) + 1)]
    elif "," in found[1]:
        values = found[1].split(",")
    else:
        raise ValueError(
            f"{text!r}: {found[0]} is neither a range such as {{000000..000009}} nor a list such as {{a,b}}"
        )
    return [name for value in values for name in _expand(text[: found.start()] + value + text[found.end() :])]


def _open(file: str):
    return io.BufferedReader(Remote(file), HEAD) if is_url(file) else open(file, "rb")


def image_size(data: io.BufferedIOBase, start: int, size: int, tail: bool = True) -> tuple[int, int]:
    """(width, height) of the image in bytes start ... start + size - 1 of a file; (0, 0) when it cannot be
    read.

    PNG and JPEG: by header and, if `tail`, end marker, whole decoding only in doubt. Others are decoded.
    """
    data.seek(start)
    head = data.read(min(size, HEAD))
    with contextlib.suppress(Exception):  # a header beyond HEAD, or damage: read the whole file
        image = Image.open(io.BytesIO(head), formats=sorted(_END))
        if not tail:
            return image.size
        data.seek(start + max(0, size - 64))
        if _END[image.format] in data.read(min(size, 64)):
            return image.size
    data.seek(start)
    whole = data.read(size)
    with contextlib.suppress(Exception):
        image = Image.open(io.BytesIO(whole), formats=sorted(set(FORMATS.values())))
        image.load()
        return image.size
    return 0, 0


def tar_members(file, name: str):
    """Yield the regular members (TarInfo) of an uncompressed, seekable tar; ValueError when it is cut short
    or is no tar.
    """
    count = 0
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closing it would not close `file`
        for member in tar:
            if member.isfile():
                yield member
                count += 1
    except tarfile.ReadError as error:
        raise ValueError(_cut(name, max(0, count - 1), error)) from error
    # tarfile takes any end at a header for the end of the archive, which is a block of zeros
    file.seek(tar.offset)
    if file.read(512) != bytes(512):
        raise ValueError(_cut(name, count, "no end mark"))


def _cut(name: str, count: int, error) -> str:
    return f"{name} is cut short or damaged after {count} whole files ({error}); copy or download it again"


def _look(file: str) -> list[tuple]:
    """(name, offset, size, width, height) of the images in a file: one, or those of a shard."""
    with _open(file) as data:
        if not file.endswith(".tar"):
            size = data.seek(0, io.SEEK_END)
            pixels = image_size(data, 0, size)
            if pixels == (0, 0) and not is_url(file):
                check_pointer(file)  # one such image stands for a clone without its files
            return [(Path(file).name, 0, size, *pixels)]
        tail = not is_url(file)  # a request for each; damage shows when the image is sampled
        if is_pointer(data.read(64)):
            raise ValueError(pointer_text(file))
        data.seek(0)
        return [
            (
                PurePosixPath(m.name).name,
                m.offset_data,
                m.size,
                *image_size(data, m.offset_data, m.size, tail),
            )
            for m in tar_members(data, file)
            if Path(m.name).suffix.lower() in FORMATS
        ]


def _stamp(file: str) -> tuple[int, int]:
    if is_url(file):
        return read_range(file, 0, 1)[1], 0
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def scan(files: list[str], cache: Path | None) -> list[tuple]:
    """(file number, name, offset, size, width, height) of every image, sorted by name; width 0: it cannot be
    read.

    What is in `cache` for a file of the same size and time is not read again. Raises ValueError for a shard
    cut short, OSError for a file that is not there.
    """
    from tqdm import tqdm

    known: dict[tuple, list] = {}
    if cache and cache.exists():
        with (
            # a torn or foreign line, bytes that are no table, no permission: such a file is looked at again
            contextlib.suppress(csv.Error, OSError),
            open(cache, newline="", encoding="utf-8", errors="surrogateescape") as stream,
        ):
            for row in csv.reader(line.replace("\0", "") for line in stream):
                if len(row) == len(_FIELDS) and all(v.lstrip("-").isdecimal() for v in (*row[1:3], *row[4:])):
                    known.setdefault((row[0], int(row[1]), int(row[2])), []).append(
                        (row[3], *map(int, row[4:]))
                    )

    def rows(file: str) -> tuple[tuple, list, bool]:
        key = (file if is_url(file) else Path(file).name, *_stamp(file))
        return key, known.get(key) or _look(file), key in known

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        try:
            found = list(
                tqdm(pool.map(rows, files), total=len(files), desc="scan", unit="file", disable=None, delay=3)
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if cache and not all(old for _, _, old in found):
        with (
            contextlib.suppress(OSError),  # a read-only folder is scanned at every start
            atomic(cache) as tmp,
            open(tmp, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
        ):
            csv.writer(stream).writerows(
                [_FIELDS, *((*key, *row) for key, images, _ in found for row in images)]
            )
    return sorted(
        ((n, *row) for n, (_, images, _) in enumerate(found) for row in images), key=lambda row: row[1]
    )


class LazyCrops(Dataset):
    """An endless stream of square crops like data.Crops, of images that stay on disk or on a server.

    crops[i] -> {"x_H": (3, patch, patch) float32 RGB in [0, 1], "index": i, "name": str}. Images that cannot
    be read or have a side below `patch` are left out: the scan reports them, and one whose damage shows only
    when it is decoded is replaced by another sample. More than the share `bad_images` of such images raises
    ValueError with counts and names.
    """

    def __init__(self, parts: list[tuple[list[str], Path | None]], patch: int, seed: int, bad_images: float):
        self.patch, self.seed, self.share, self.bad = patch, seed, bad_images, {}
        self.files, rows = [], []
        for files, cache in parts:
            rows += [(len(self.files) + n, *row) for n, *row in scan(files, cache)]
            self.files += files
        self.files = np.array(self.files)
        self.total = len(rows)
        if not rows:
            raise ValueError(
                f"no images in {', '.join(self.files[:3])}; allowed in shards: {' '.join(FORMATS)}"
            )
        odd = {
            r[1]: "cannot be read" if r[4] == 0 else f"{r[4]}x{r[5]}, below {patch}"
            for r in rows
            if min(r[4:]) < patch
        }
        rows = [row for row in rows if min(row[4:]) >= patch]
        self.left_out = self.total - len(rows)
        text = (
            f"{self.left_out} of {self.total} training images cannot be read or are smaller than {patch} "
            f"pixels: {'; '.join(f'{name}: {what}' for name, what in list(odd.items())[:5])}"
        )
        if not rows or self.left_out > bad_images * self.total:
            raise ValueError(
                f"{text}. Allowed: a share of {bad_images:g} (bad_images); remove or replace them"
            )
        if odd:
            warnings.warn(f"{text}. They are left out", stacklevel=2)
        # arrays, not lists: forked workers share their memory pages, which reference counts would copy
        self.names = np.array([row[1] for row in rows])
        self.where = np.array([(row[0], row[2], row[3]) for row in rows], dtype=np.int64)

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, i])
        while True:
            # DECISION D27: every image has the same chance whatever its size, sampled with replacement, as in
            # the peers
            n = int(rng.integers(len(self.names)))
            try:
                image = self.image(n)
            except ValueError as error:
                self._leave_out(n, error)
                continue
            return {"x_H": cut(image, self.patch, rng), "index": i, "name": str(self.names[n])}

    def image(self, n: int) -> np.ndarray:
        """Image n, (H, W, 3) uint8. Raises ValueError when it is damaged, OSError when its file is gone or
        does not answer.
        """
        # DECISION D29: shards are read at random places, not streamed in order, so (seed, i) gives crop i as
        # from a folder
        file, offset, size = str(self.files[self.where[n, 0]]), int(self.where[n, 1]), int(self.where[n, 2])
        if is_url(file):
            data = read_range(file, offset, size)[0]
        else:
            with open(file, "rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        if len(data) != size:
            raise OSError(f"{file} became shorter during the training; restore it and start again")
        rgb = decode_image(data, f"{file}: {self.names[n]}").rgb[0]
        return (rgb.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()

    def _leave_out(self, n: int, error: ValueError) -> None:
        if n in self.bad:
            return
        self.bad[n] = str(error)
        text = f"{self.left_out + len(self.bad)} of {self.total} training images left out so far, now {error}"
        if self.left_out + len(self.bad) > self.share * self.total:
            raise ValueError(
                f"{text}. Allowed: a share of {self.share:g} (bad_images); remove or replace them: "
                f"{', '.join(str(self.names[k]) for k in list(self.bad)[:5])}"
            )
        warnings.warn(text, stacklevel=3)
