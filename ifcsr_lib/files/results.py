"""Tables, figures and JSON: each file is complete or not there, with a provenance record beside it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from ..config import DEPENDS, ROOT, Config, depends, hash_of, path_setting, results_folder
from .checks import check_pointer, oddity

# <profile>/{tables,figures}: what pages show and a run is compared with; tools/keep_reference.py writes it
REFERENCE = ROOT / "results" / "reference"
_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
    "matplotlib",
    "pyiqa",
)
_LOCK = threading.Lock()
# removed fields of Config that changed no table, in records from before kinds
_REMOVED = {
    *("csd_guidance", "csd_prompt", "steps_features", "steps_autoencoder", "steps_prior"),
    *("prior_init", "prior_pixels", "prior_restoring"),
}
_SWEPT: set[Path] = set()  # folders that this process has looked through for what kills left
# of `atomic`: stem, then which machine, which process of it, which file of that; before, which file only
_TEMPORARY = re.compile(r"\..*\.(?:([0-9a-f]{8})-([0-9a-f]+)-)?[0-9a-f]{8}\.tmp(?:\.[^.]*)?")
_OLD = 24 * 3600  # seconds after which nobody writes a file any more
# what a file system answers to a call that it does not have
_LACKING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_REASONS = {
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted",
    errno.EROFS: "the disk is read-only",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EEXIST: "a part of the path is no folder",
}


@contextlib.contextmanager
def atomic(path: str | Path):
    """Yield a temporary path (same folder, same suffix) that replaces the file `path` when the block
    succeeds.

    After an error or an interruption the temporary file is gone and an older `path` is untouched. What a kill
    left in the folder is removed by the next process that writes there: see `sweep`. Where `path` is a link,
    it stays one, and the file behind it is replaced.
    Raises OSError naming `path`, the free bytes and what helps there (`remedy`) when the disk is full or the
    folder is not writable, and for a device, a pipe or a socket, which are never replaced.
    """
    path = _behind(path)
    tmp = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (folder := path.parent.resolve()) not in _SWEPT:
            _SWEPT.add(folder)
            sweep(folder)
        yield tmp
        _settle(tmp)
        _rename(tmp, path)
    except BaseException as error:  # Ctrl-C too
        with contextlib.suppress(OSError):
            tmp.unlink()
        if clearer := _clearer(error, path):
            raise clearer from error
        raise


def _behind(path: str | Path) -> Path:
    """The file to replace for `path`: the one behind a link. OSError for what a file must not replace."""
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    if (odd := oddity(path)) and not path.is_symlink():
        raise OSError(errno.EINVAL, f"cannot write {path}: it is {odd}; choose another name")
    return path


def _temporary(path: Path) -> Path:
    """A new name beside path that `sweep` knows."""
    unique = f"{_machine()}-{os.getpid():x}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.stem[:40]}.{unique}.tmp{path.suffix}")  # 40: names have 255 bytes at most


def sweep(folder: str | Path) -> list[Path]:
    """Remove temporary files of `atomic` whose process was killed; return them.

    Only files of this user: those of a process of this machine that is gone, and those of other machines, or
    without a process, that nobody has touched for a day, by the clock of the disk that they are on: this
    machine's may be wrong or may have jumped. Never one that a running process may still be writing. A file
    that cannot be removed stays.
    """
    found, now = [], None
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if (match := _TEMPORARY.fullmatch(entry.name)) is None:
                continue
            with contextlib.suppress(OSError):
                facts = entry.stat(follow_symlinks=False)
                own = not hasattr(os, "geteuid") or facts.st_uid == os.geteuid()
                if not (own and stat.S_ISREG(facts.st_mode)):
                    continue
                if match[1] == _machine():
                    dead = not _runs(int(match[2], 16))
                else:
                    now = now or _disk_time(Path(folder))
                    dead = now - facts.st_mtime > _OLD
                if dead:
                    os.unlink(entry.path)
                    found.append(Path(entry.path))
    return found


def _disk_time(folder: Path) -> float:
    """What a file written now in folder gets as its time, in seconds; OSError where none can be written."""
    probe = _temporary(folder / "time")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """8 hex digits for where a process number means one process: machine, its start, container."""
    text = platform.node()
    with contextlib.suppress(OSError):  # Linux tells the other two
        text += Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be told."""
    if os.name != "posix":  # os.kill of Windows ends it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _settle(tmp: Path) -> None:
    """Bytes on the disk, and the mode of an ordinary file; what a file system cannot do is left out."""
    with open(tmp, "r+b") as file:
        try:
            os.fsync(file.fileno())  # so that a power cut cannot leave an empty file under the final name
        except OSError as error:  # some network file systems have none
            if error.errno not in _LACKING:
                raise
    with contextlib.suppress(PermissionError, NotImplementedError):  # FAT and SMB shares have no modes
        tmp.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read


def _rename(tmp: Path, path: Path) -> None:
    """os.replace, also where a reader holds `path` for a moment (Windows) or no file may be replaced.

    A single file that is mounted of its own, as containers have it, cannot be renamed over: its bytes are
    replaced.
    """
    for wait in (0.05, 0.2, 0.5, None):
        try:
            return os.replace(tmp, path)
        except OSError as error:
            if os.name == "nt" and isinstance(error, PermissionError) and wait:
                time.sleep(wait)
            elif error.errno in (*_LACKING, errno.EEXIST) and path.is_file():
                path.unlink()  # for a moment there is none: the file system offers nothing better
                return os.rename(tmp, path)
            elif error.errno in (errno.EXDEV, errno.EBUSY) and path.is_file():
                shutil.copyfile(tmp, path)
                return tmp.unlink()
            else:
                raise


def _umask() -> int:
    """The process's file mode mask, as it is now."""
    with contextlib.suppress(OSError):  # Linux tells it
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    with _LOCK:  # elsewhere it can only be read by setting it, for a moment, to the strictest
        os.umask(mask := os.umask(0o077))
    return mask


def check_writable(path: str | Path) -> None:
    """Raise now what `atomic(path)` would raise after the work: a closed folder, one of that name, no space.

    Makes the folder that `path` is to lie in; leaves nothing else.
    """
    path = _behind(path)
    probe = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        probe.write_bytes(b"x")
        probe.unlink(missing_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        if clearer := _clearer(error, path):
            raise clearer from error
        raise


def _clearer(error: BaseException, path: Path) -> OSError | None:
    number = getattr(error, "errno", None)
    folder = next((p for p in path.absolute().parents if os.path.isdir(p)), path.absolute().parent)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # a folder that may not be entered, a share that has gone
        free = None
    if isinstance(error, OSError) and os.path.isdir(path):  # each system has another number for it
        return OSError(errno.EISDIR, f"cannot write {path}: it is a folder; choose another name")
    room = "" if free is None else f"{free:,} bytes are free in {folder}; "
    # torch.save drops errno
    hidden = isinstance(error, Exception) and not isinstance(error, OSError) and (free or 2**20) < 2**20
    if number in (errno.ENOSPC, errno.EDQUOT) or hidden:
        return OSError(
            errno.ENOSPC,
            f"no disk space: {path} was not written, {room}free some, or {remedy(path, 'on a larger disk')}",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return OSError(
            number,
            f"cannot write {path} ({_REASONS[number]}); {room}make {folder} a writable folder, or "
            f"{remedy(path, 'that you may write')}",
        )
    name = getattr(error, "filename", None)
    if (
        number and isinstance(name, (str, os.PathLike)) and ".tmp" in Path(name).name
    ):  # nobody knows that name
        reason = os.strerror(number).lower()
        return OSError(number, f"cannot write {path} ({reason}); {remedy(path, 'that takes files')}")
    return None


def remedy(path: str | Path, kind: str) -> str:
    """What moves the file `path` to another folder: "set IFCSR_RESULTS to a folder <kind>", or of another
    setting, or "choose another place for it, in a folder <kind>" where no setting decides.
    """
    path = Path(os.path.abspath(path))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # Path.home() may raise
    homes = {}
    with contextlib.suppress(ValueError):  # a setting that is wrong itself is told where it is used
        homes["IFCSR_RESULTS"] = results_folder()
        homes["IFCSR_DATA"] = path_setting("IFCSR_DATA")
        homes["IFCSR_CACHE"] = path_setting("IFCSR_CACHE") or cache / "ifcsr"
        homes["TORCH_HOME"] = path_setting("TORCH_HOME") or cache / "torch"
    for setting, folder in homes.items():
        if folder and path.is_relative_to(os.path.abspath(folder)):
            return f"set {setting} to a folder {kind}"
    # what tempfile made for this kit; a folder of the user's in there is not moved by TMPDIR
    if str(path).startswith(os.path.join(os.path.abspath(tempfile.gettempdir()), "ifcsr-")):
        return f"set TMPDIR to a folder {kind}"
    return f"choose another place for it, in a folder {kind}"


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes; of a folder, over the sorted names and digests of its files."""
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        raise FileNotFoundError(f"{path} is not a file, nor a folder with files: nothing to hash")
    text = "".join(f"{p.relative_to(path).as_posix()} {sha256(p)}\n" for p in files)
    return hashlib.sha256(text.encode()).hexdigest()


def provenance(cfg: Config, inputs=(), seconds: float | None = None) -> dict:
    """Who made something, from what and with what: a JSON-ready dict without any absolute path.

    inputs: files or folders that were read; recorded as {name: sha256}, named relative to the repository or
        to the results folder, otherwise by the end of the path. seconds: wall time of the work, None when not
        measured.
    """
    import torch

    hashes: dict[str, str] = {}
    for path in map(Path, inputs):
        hashes[_name(path.resolve(), cfg, hashes)] = sha256(path)
    changes = _git("status", "--porcelain", "-uno", "--", ".", ":!results")
    notebook = os.environ.get("IFCSR_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME")  # reproduce, Jupyter
    return {
        "written_by": Path(notebook or sys.argv[0] or "python").name,
        "profile": cfg.profile,
        "seed": cfg.seed,
        "hash": cfg.hash,
        "config": recorded(cfg),
        "inputs": hashes,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "packages": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu x {torch.get_num_threads()}",
        "seconds": None if seconds is None else round(seconds, 1),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """The processor's model name where Linux tells it, else its architecture. No host name."""
    info = Path("/proc/cpuinfo")
    if info.is_file() and (found := re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)):
        return found[1]
    return platform.processor() or platform.machine()


def recorded(cfg: Config) -> dict:
    """{field: value} of a Config as records hold it: of an absolute path only the name."""
    return {
        k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v for k, v in cfg.asdict().items()
    }


def _name(path: Path, cfg: Config, taken: dict) -> str:
    for base, prefix in ((ROOT, ""), (cfg.results.resolve().parent, "results/")):
        if path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    # the shortest end that is still free
    ends = ("/".join(path.parts[-n:]) for n in range(1, len(path.parts)))
    return next((end for end in ends if end not in taken), path.name)


def _git(*args: str) -> str | None:
    """Output of git in the repository; None without git or outside a checkout."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if (ROOT / ".git").exists():
            done = subprocess.run(
                # no lock, in which a commit of the user's would run
                ["git", "--no-optional-locks", "-C", ROOT, *args],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            return done.stdout.strip()
    return None


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _plain(value):
    """Numbers and arrays of numpy, and tensors, as Python's own; paths as text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON; pass numbers, texts, lists and dicts")


def write_json(value, path: str | Path) -> Path:
    """Write JSON atomically. Numbers and arrays of numpy become Python's. Raises ValueError for NaN and
    infinity, TypeError for what is no JSON, both naming path.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False, default=_plain) + "\n"
    except (TypeError, ValueError) as error:
        more = "; NaN and infinity are none" if isinstance(error, ValueError) else ""
        raise type(error)(f"{path} was not written: {error}{more}") from error
    with atomic(path) as tmp:
        tmp.write_bytes(text.encode())
    return Path(path)


def read_json(path: str | Path):
    """Read JSON. Raises FileNotFoundError, or ValueError naming the file when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        check_pointer(path)
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and make it again") from error


def sidecar(path: str | Path) -> Path:
    """Where the provenance of `path` is: beside a file with the suffix .json, inside a folder as
    provenance.json.
    """
    path = Path(path)
    return path / "provenance.json" if path.is_dir() else path.with_suffix(".json")


def _record(path: Path) -> dict:
    """The sidecar's content. ValueError when it is no record."""
    record = read_json(sidecar(path))
    if not isinstance(record, dict) or not isinstance(record.get("config", {}), dict):
        raise ValueError(  # noqa: TRY004  the file is wrong, not the argument
            f"{sidecar(path)} is no provenance record; delete it and make {path.name} again"
        )
    return record


def kind_of(path: str | Path) -> str:
    """The kind of an artefact, a key of config.DEPENDS, by its place below results/<profile>; "result" for
    the rest.
    """
    path = Path(path)
    if path.parent.name == "adapters" and path.suffix == ".safetensors" and path.stem in DEPENDS:
        return path.stem
    return {"pairs": "pairs", "adapters": "model"}.get(path.name, "result")


def write_sidecar(
    path: str | Path,
    cfg: Config,
    inputs=(),
    seconds: float | None = None,
    kind: str | None = None,
    digest: str | None = None,
) -> Path:
    """Write the provenance of a file or folder that exists, with the sha256 of a file, so that `require`
    knows it.

    kind: what it depends on, a key of config.DEPENDS or "result"; None takes `kind_of(path)`. digest: sha256
    of what was written there; None reads the file, which another process may have replaced meanwhile.
    """
    own, kind = {"sha256": digest or sha256(path)} if Path(path).is_file() else {}, kind or kind_of(path)
    own |= {"kind": kind, "depends": hash_of(cfg, kind)}
    return write_json(own | provenance(cfg, inputs, seconds), sidecar(path))


def _differences(record: dict, cfg: Config, kind: str) -> dict[str, tuple] | None:
    """{field: (in the record, in cfg)} of what an artefact depends on; {} when the record is of this run.

    None when it is of another run and the record does not say in what. Records from before kinds have the
    whole Config of their time: they are compared field by field, and those that used a switch since removed
    are refused.
    """
    if "depends" in record and record["depends"] == hash_of(cfg, kind):
        return {}
    there, here = record.get("config", {}), recorded(cfg)
    fields = [name for name in depends(kind) if name in there]
    differ = {name: (there[name], here[name]) for name in fields if there[name] != here[name]}
    removed = [k for k, v in there.items() if k not in here and v and k not in _REMOVED]
    if "depends" not in record and fields and not differ and not removed:
        added = [name for name in depends(kind) if name not in there]
        if all(getattr(cfg, name) == getattr(Config, name) for name in added):
            return {}
    return differ or None


def write_bytes(data: bytes, path: Path, cfg: Config, inputs, seconds) -> Path:
    """Write a result and its sidecar; touch neither when bytes and settings are the old ones."""
    digest = hashlib.sha256(data).hexdigest()
    if path.is_file() and sidecar(path).is_file() and sha256(path) == digest:
        with contextlib.suppress(ValueError):
            record = _record(path)
            if record.get("sha256") == digest and _differences(record, cfg, "result") == {}:
                return path
    with atomic(path) as tmp:
        tmp.write_bytes(data)
    write_sidecar(path, cfg, inputs, seconds, digest=digest)
    return path


def write_table(
    df, name: str, cfg: Config, inputs=(), seconds: float | None = None, float_format="%.6g"
) -> Path:
    """Write tables/<name>.csv (deterministic bytes) and its JSON sidecar under cfg.results; return the CSV's
    path.

    df: pandas DataFrame; its index is written when it has a name. float_format: six significant digits.
    """
    df = df.reset_index() if any(level is not None for level in df.index.names) else df
    text = df.to_csv(index=False, float_format=float_format, lineterminator="\n")
    return write_bytes(text.encode(), cfg.results / "tables" / f"{name}.csv", cfg, inputs, seconds)


def write_figure(
    fig, name: str, cfg: Config, inputs=(), seconds: float | None = None, dpi: int = 120
) -> Path:
    """Write figures/<name>.png (no date, no software version in it) and its JSON sidecar; return the PNG's
    path.

    fig: a matplotlib Figure, or a PIL image (written pixel for pixel).
    """
    buffer = io.BytesIO()
    if hasattr(fig, "savefig"):
        fig.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    else:
        fig.save(buffer, "PNG")
    return write_bytes(buffer.getvalue(), cfg.results / "figures" / f"{name}.png", cfg, inputs, seconds)


def require(path: str | Path, cfg: Config, notebook: str) -> Path:
    """Return `path` (file or folder) if its sidecar says that it was made with every setting that it depends
    on.

    notebook: the one that makes it, "04" or a full name. Raises FileNotFoundError when it is missing,
    ValueError when it was made with other settings or changed since; both name the notebook to run.
    """
    path = Path(path)
    found = sorted((ROOT / "notebooks").glob(f"{notebook.removesuffix('.ipynb')}*.ipynb"))
    todo = (
        f"run notebooks/{found[0].name if found else notebook} first, with profile={cfg.profile!r}, "
        f"seed={cfg.seed} and the same overrides"
    )
    for needed in (path, sidecar(path)):
        if not needed.exists():
            raise FileNotFoundError(f"{needed} is missing: {todo}")
    if reason := fault(path, cfg):
        raise ValueError(f"{path} {reason}: {todo}")
    return path


def fault(path: str | Path, cfg: Config) -> str | None:
    """Why an artefact that is there with its sidecar is none of this run's, as in "was made with k=3.0, this
    run has k=7.0"; None when it is. Raises ValueError when the sidecar is no record.
    """
    path = Path(path)
    record = _record(path)
    kind = record.get("kind", kind_of(path))
    differ = _differences(record, cfg, kind) if kind in (*DEPENDS, "result") else None
    if differ is None:
        return (
            f"was made with settings that its {sidecar(path).name} does not tell, or by another version of "
            "this kit"
        )
    if differ:
        there, here = (", ".join(f"{k}={v[i]!r}" for k, v in differ.items()) for i in (0, 1))
        return f"was made with {there}, this run has {here}"
    if path.is_file() and record.get("sha256") not in (None, sha256(path)):
        return f"is not the file that {sidecar(path).name} describes"
    return None
