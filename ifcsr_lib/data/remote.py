"""Files behind http(s): read by byte ranges, or downloaded so that a killed run continues. Standard library
only.

fsspec would need aiohttp and seven more packages for it, and neither resumes a file, nor asks a busy server
again, nor notices that the server's copy has changed.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

TRIES = 6
WAIT = 1.0  # seconds before the second try; doubled for each further one
_LOST = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def is_url(name: str | Path) -> bool:
    """True for http:// and https:// addresses."""
    return str(name).startswith(("http://", "https://"))


def file_name(url: str) -> str:
    """The file name at the end of an address, without query."""
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "download"


def _open(url: str, headers: dict):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)


def _try(url: str, attempt):
    """attempt() -> a result, or None for "cut short, again"; lost connections wait and try again, a refusal
    (4xx) ends it.
    """
    reason = "the connection closed early"
    for n in range(TRIES):
        if n:
            time.sleep(WAIT * 2 ** (n - 1))
        try:
            if (result := attempt()) is not None:
                return result
        except _LOST as error:
            if (
                isinstance(error, urllib.error.HTTPError)
                and error.code < 500
                and error.code not in (408, 429)
            ):
                raise OSError(
                    f"{url}: the server answers {error.code} {error.reason}; check the address, and whether "
                    "access must be asked for"
                ) from error
            reason = str(error) or type(error).__name__
    raise OSError(
        f"{url}: no success in {TRIES} tries ({reason}); what came is kept, run the same command again"
    )


def read_range(url: str, start: int, count: int) -> tuple[bytes, int]:
    """(bytes start ... start + count - 1 of the file, the size of the file in bytes). Raises OSError: no
    ranges, or no answer.
    """

    def attempt():
        with _open(url, {"Range": f"bytes={start}-{start + count - 1}"}) as answer:
            if answer.status != 206:
                raise OSError(
                    f"{url}: the server gives no byte ranges; download the file and name the local one"
                )
            whole = int(answer.headers["Content-Range"].rpartition("/")[2])
            data = answer.read()
        return (data, whole) if len(data) == min(count, whole - start) else None

    return _try(url, attempt)


class Remote(io.RawIOBase):
    """A seekable, read-only file behind http(s); every read is one range request (wrap it in
    io.BufferedReader).
    """

    def __init__(self, url: str):
        self.url, self.position, self.size = url, 0, read_range(url, 0, 1)[1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer) -> int:
        count = min(len(buffer), self.size - self.position)
        if count <= 0:
            return 0
        buffer[:count] = read_range(self.url, self.position, count)[0]
        self.position += count
        return count


def download(url: str, folder: str | Path) -> Path:
    """folder/<file name of url>, downloaded unless it is there; bytes that an earlier run left in <name>.part
    count.

    The file gets its name when all bytes have come. If the server's copy changed in between (ETag,
    Last-Modified), the download starts again. Raises OSError after TRIES tries without success, or at once
    when the server refuses.
    """
    from tqdm import tqdm

    path = Path(folder) / file_name(url)
    part, version = (path.with_name(path.name + suffix) for suffix in (".part", ".version"))
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)

    def attempt():
        start, headers = part.stat().st_size if part.exists() else 0, {}
        if start:
            headers["Range"] = f"bytes={start}-"
            if version.exists():
                headers["If-Range"] = version.read_text()
        try:
            answer = _open(url, headers)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2] == str(start)
            # more bytes than the file has: of another one, start again
            return _finish() if whole else part.unlink()
        with answer:
            start = start if answer.status == 206 else 0
            length, tag = answer.headers["Content-Length"], answer.headers["ETag"]
            total = None if length is None else start + int(length)
            mark = tag if tag and not tag.startswith("W/") else answer.headers["Last-Modified"]
            if mark:
                version.write_text(mark)
            elif not start:
                version.unlink(missing_ok=True)
            bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=path.name, disable=None)
            with open(part, "ab" if start else "wb") as file, bar:
                while block := answer.read(2**20):
                    file.write(block)
                    bar.update(len(block))
                file.flush()
                os.fsync(file.fileno())
        return _finish() if total is None or part.stat().st_size == total else None

    def _finish() -> Path:
        os.replace(part, path)
        with contextlib.suppress(FileNotFoundError):
            version.unlink()
        return path

    return _try(url, attempt)
