"""Errors as one line for people: what happened, and what to do. No heavy import.

An error that the library raised by itself says both already. The system's and the allocator's are put into
words here. Anything else is unexpected: its line names a file with the whole traceback (`log`).
"""

from __future__ import annotations

import contextlib
import dis
import errno
import os
import re
import tempfile
import traceback
from pathlib import Path

from .files.checks import printable
from .files.results import remedy

_PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_RAISE = dis.opmap["RAISE_VARARGS"]
# of torch on CPU, CUDA and MPS, of cuDNN and cuBLAS, of numpy and of the system
_MEMORY = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate|_ALLOC_FAILED|not enough memory|MemoryError",
    re.IGNORECASE,
)
MEMORY_ADVICE = "close other programs, give it fewer or smaller pictures, or use a machine with more memory"
LENGTH = 600
_LOST = ("the connection was lost", "check the network or the share, and run the same command again")
_CLOSED = ("you have no permission for it", "ask its owner, change its mode, or choose another place")
_WORDS: dict[int, tuple[str, str]] = {
    errno.ENOENT: ("it does not exist", "check the path"),
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EISDIR: ("it is a folder", "pass a file"),
    errno.ENOTDIR: ("a part of the path is no folder", "check the path"),
    errno.EEXIST: ("it exists already", "choose another name, or move it away"),
    errno.ENOTEMPTY: ("the folder is not empty", "choose another one, or move it away"),
    errno.EMFILE: ("too many files are open", "close other programs, or raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.EIO: ("the disk failed to read or write it", "check the disk, or the share that it is on"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("its links lead in a circle", "check the links"),
    errno.EBUSY: ("another program uses it", "close that and try again"),
    errno.ETXTBSY: ("another program uses it", "close that and try again"),
    errno.EINVAL: ("the disk or device does not take that", "choose another place or name"),
    errno.EFBIG: ("the disk holds no file so large", "choose another disk"),
    errno.EXDEV: ("it is on another disk", "choose a place on the same one"),
    errno.EAGAIN: ("the system has nothing left to give", "close other programs and try again"),
    errno.EPIPE: ("the program that read the output has ended", "run it again without the pipe"),
    **dict.fromkeys(
        (
            errno.ESTALE,
            errno.ETIMEDOUT,
            errno.ECONNRESET,
            errno.ECONNREFUSED,
            errno.ECONNABORTED,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
            errno.ENETDOWN,
        ),
        _LOST,
    ),
}


def out_of_memory(error: BaseException | str) -> bool:
    """True for an error, or an error's text, that says that memory ran out; on a GPU too."""
    if isinstance(error, str):
        return bool(_MEMORY.search(error))
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and out_of_memory(str(error))
    )


def own(error: BaseException) -> bool:
    """True when a `raise` of this library made the error, so that its text is for people."""
    where = error.__traceback__
    if where is None:
        return False
    while where.tb_next:
        where = where.tb_next
    code = where.tb_frame.f_code
    ours = os.path.abspath(code.co_filename).startswith(_PACKAGE)
    return ours and where.tb_lasti >= 0 and code.co_code[where.tb_lasti] == _RAISE


def one_line(error: BaseException | str) -> str:
    """The message of an error in one line of at most LENGTH characters; the middle of a longer one is left
    out.
    """
    if isinstance(error, KeyError) and len(error.args) == 1:  # its str() is the repr of the text
        text = str(error.args[0])
    elif isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    else:
        text = str(error)
    text = printable(" ".join(text.split()))
    if len(text) > LENGTH:
        text = f"{text[: LENGTH // 2]} ... {text[5 - LENGTH // 2 :]}"
    return text or type(error).__name__


def explain(error: BaseException, memory: str = MEMORY_ADVICE) -> str:
    """One line for people about any error. memory: what to do when memory ran out.

    An unexpected error is logged (`log`), and the line names the file.
    """
    if own(error):
        return one_line(error)
    if out_of_memory(error):
        return f"out of memory; {memory}"
    if isinstance(error, OSError) and error.errno:
        return _system(error)
    if isinstance(error, ImportError):
        name = (error.name or "").partition(".")[0]
        which = f"the package {name!r}" if name else "a package"
        return (
            f"{which} is missing or damaged ({one_line(error)}); the whole kit is the full install of "
            'docs/install.md: make env, or pip install ".[full]" in the checkout'
        )
    text = f"{type(error).__name__}: {one_line(error)}"[:LENGTH]
    if path := log(error):
        return f"unexpected {text}; please report it with the command and the file {path}"
    return f"unexpected {text}; please report it with what IFCSR_DEBUG=1 shows when you run it again"


def _system(error: OSError) -> str:
    """The system's refusal as a sentence, without its number."""
    names = [os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, (str, bytes, Path))]
    if error.strerror and error.strerror != os.strerror(error.errno) and not names:
        return one_line(error)  # a sentence already
    name = " and ".join(names) or "reading or writing"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{name}: no disk space; free some, or {_elsewhere(names, 'on a larger disk')}"
    if error.errno == errno.EROFS:
        return f"{name}: the disk is read-only; {_elsewhere(names, 'that you may write')}"
    strange = (error.strerror or "the system refuses").lower(), "check the path and the disk"
    reason, todo = _WORDS.get(error.errno, strange)
    return one_line(f"{name}: {reason}; {todo}")


def _elsewhere(names: list[str], kind: str) -> str:
    return remedy(names[-1], kind) if names else f"write to a folder {kind}"


_logs: list[Path] = []  # one file a process, made when it is needed


def log(error: BaseException) -> Path | None:
    """Add the traceback of an error to this process's file in the temporary folder; None where none can be
    made.

    The name is new and only its owner may read it (mkstemp): a traceback may show paths.
    """
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        if not _logs:
            number, name = tempfile.mkstemp(prefix="ifcsr-error-", suffix=".log")
            os.close(number)
            _logs.append(Path(name))
        with open(_logs[0], "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{text}\n")
        return _logs[0]
    return None
