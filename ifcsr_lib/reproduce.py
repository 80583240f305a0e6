"""All notebooks in order through papermill, a progress line each, and a report. Nothing is ever run in
place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

from .config import ROOT, resolve, user_path
from .errors import one_line, out_of_memory
from .files.checks import check_pointer
from .files.results import atomic, remedy
from .report.notebooks import Forecast, duration, minutes

PARAMETERS = {"profile", "seed", "overrides"}
NEEDED = 10**9  # bytes: checkpoints, pairs and endpoints of a pocket run, with room
# the kernel's own words, which are no results and no errors, go to the file $IFCSR_KERNEL_LOG
KERNEL = """import os, runpy
log = os.open(os.environ["IFCSR_KERNEL_LOG"], os.O_WRONLY | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
runpy.run_module("ipykernel_launcher", run_name="__main__")"""
CELL_LIMIT = {"smoke": 600, "pocket": 3600}  # seconds a cell; a paper-scale cell trains for a day and more


def notebooks(only=None) -> list[Path]:
    """The notebooks in order: those with a number below 90, or the ones that `only` names, such as ["02",
    "03"].

    Raises FileNotFoundError when there are none, ValueError for a name in `only` that fits none.
    """
    found = sorted((ROOT / "notebooks").glob("[0-8][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"no notebooks in {ROOT / 'notebooks'}: `reproduce` needs the whole repository"
        )
    for name in only or ():
        if not any(path.name.startswith(name) for path in found):
            raise ValueError(
                f"only={name!r} fits no notebook; allowed: {', '.join(path.stem for path in found)}"
            )
    return [path for path in found if only is None or path.name.startswith(tuple(only))]


def reproduce(profile: str = "pocket", seed: int = 0, overrides: dict | None = None, only=None) -> list[Path]:
    """Run the notebooks for one config; tables and figures go to cfg.results, executed copies to executed/ in
    there, and report.html says what came out. Its path is the last line that is printed.

    profile, seed, overrides: as in `config.resolve`, checked before anything runs. only: see `notebooks`.
    Returns the executed notebooks. Raises RuntimeError naming notebook, cell and error at the first failure,
    OSError when the disk is full, ValueError for a notebook whose parameters are not exactly profile, seed
    and overrides.
    """
    cfg = resolve(profile, seed, overrides)
    todo = notebooks(only)
    for path in todo:
        check_parameters(path)
    folder = cfg.results / "executed"
    with atomic(folder / "writable") as tmp:  # complains now, not after the first notebook
        tmp.touch()
    (folder / "writable").unlink(missing_ok=True)  # another `reproduce` may have taken it away
    if (free := shutil.disk_usage(folder).free) < NEEDED:
        raise OSError(
            f"no disk space: {free:,} bytes are free in {folder}, a run needs {NEEDED:,}; free some, or "
            f"{remedy(folder, 'on a larger disk')}"
        )
    parameters = {"profile": cfg.profile, "seed": cfg.seed, "overrides": overrides or {}}
    forecast, begin, done = Forecast([path.stem for path in todo], folder, cfg.profile), time.monotonic(), []
    whole = "how long it takes is not known: no earlier run here"
    if forecast.source:
        whole = f"{minutes(forecast.left(), 'about ')}, going by {forecast.source}"
    print(
        f"{len(todo)} notebooks, profile {cfg.profile}, seed {cfg.seed}, config {cfg.hash}; {whole}",
        flush=True,
    )
    with _kernel_environment():
        for i, path in enumerate(todo, 1):
            os.environ["IFCSR_NOTEBOOK"] = path.name  # for provenance records
            so_far = time.monotonic() - begin
            line = f"[{i}/{len(todo)}] {path.stem}: {minutes(so_far)} so far"
            if forecast.source:
                line += f", {minutes(forecast.left(i - 1, so_far), 'about ')} to go"
            with _progress(line), _quiet(folder / f"{path.stem}.log"):
                done.append(_run(path, folder / path.name, parameters, CELL_LIMIT.get(cfg.profile), line))
    print(f"done in {duration(time.monotonic() - begin)}; results in {cfg.results}; the report:", flush=True)
    from .report.page import write

    print(os.path.abspath(write(cfg, [path.stem for path in notebooks()])), flush=True)
    return done


def check_parameters(path: Path) -> None:
    """Raise ValueError unless the notebook takes exactly `PARAMETERS` (papermill itself only warns)."""
    import papermill

    check_pointer(path)
    try:
        names = set(papermill.inspect_notebook(str(path)))
    except Exception as error:  # nbformat and papermill raise many kinds for a damaged one
        raise ValueError(f"{path} is no whole notebook ({one_line(error)[:200]}); get it again") from error
    if names != PARAMETERS:
        raise ValueError(
            f"{path} takes the parameters {sorted(names)}; its cell tagged 'parameters' must set exactly "
            f"{sorted(PARAMETERS)}"
        )


@contextlib.contextmanager
def _progress(line: str):
    """One line: `line`, and after the block how long it took. On a terminal papermill's bar stands there
    meanwhile, with the same words.
    """
    bar, start = sys.stderr.isatty(), time.monotonic()
    if not bar:
        print(line, end=" ... ", flush=True)
    word = "failed after "
    try:
        yield
        word = ""
    finally:
        print(f"{line} ... " * bar + word + duration(time.monotonic() - start), flush=True)


def _run(path: Path, target: Path, parameters: dict, limit: int | None, line: str) -> Path:
    """Run one notebook; `target` is replaced when it succeeds, otherwise the attempt is kept as
    <name>.failed.ipynb. line: what the bar says.
    """
    import papermill

    failed = target.with_suffix(".failed.ipynb")
    with atomic(target) as tmp:
        try:
            papermill.execute_notebook(
                str(path),
                str(tmp),
                parameters,
                kernel_name="python3",
                cwd=str(ROOT),
                start_timeout=180,
                execution_timeout=limit,
                progress_bar={"desc": line, "leave": False, "disable": None},
            )
        except Exception as error:
            if tmp.is_file():
                os.replace(tmp, failed)
            raise RuntimeError(_story(path, failed, error)) from error
    failed.unlink(missing_ok=True)
    return target


def _story(path: Path, failed: Path, error: Exception) -> str:
    """What failed where, and which files tell more, in one line."""
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", None)
    last = f"{kind}: {one_line(str(error).partition(chr(10))[0] if text is None else text)[:300]}"
    if out_of_memory(text or "") or kind == "MemoryError":
        last = "out of memory; close other programs, or use a machine with more memory"
    dead = " (its kernel died: out of memory?)" if "DeadKernel" in type(error).__name__ else ""
    cell = "a cell"
    with contextlib.suppress(OSError, ValueError, LookupError):
        codes = [
            c for c in json.loads(failed.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
        ]
        number = sum(c["metadata"]["papermill"]["status"] != "pending" for c in codes)
        first = "".join(codes[number - 1]["source"]).splitlines()[0][:80]
        cell = f"code cell {number}, which begins {first!r}"
    files = [f"executed so far: {failed}"] if failed.is_file() else []
    with contextlib.suppress(OSError, KeyError):
        if os.path.getsize(os.environ["IFCSR_KERNEL_LOG"]):
            files.append(f"what its kernel said: {failed.with_name(f'{path.stem}.log')}")
    return "; ".join([f"{path.name} failed in {cell}{dead}: {last}", *files])


@contextlib.contextmanager
def _quiet(log: Path):
    """What the kernel writes to its stdout and stderr, and warnings and log lines of this process, go to a
    file. After a failure `log` holds them, unless nothing came.
    """
    number, name = tempfile.mkstemp(prefix="ifcsr-kernel-", suffix=".log")  # two runs at once share no file
    os.close(number)
    os.environ["IFCSR_KERNEL_LOG"] = name
    handler, root = logging.FileHandler(name, encoding="utf-8"), logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            logging.captureWarnings(True)
            yield
        log.unlink(missing_ok=True)
    except BaseException:
        if text := Path(name).read_bytes():
            with contextlib.suppress(OSError), atomic(log) as tmp:
                tmp.write_bytes(text)
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
        with contextlib.suppress(OSError):  # Windows, while a kernel still holds it
            Path(name).unlink()


@contextlib.contextmanager
def _kernel_environment():
    """Kernel `python3` is this interpreter, whatever is registered on the machine, and finds ifcsr_lib
    anywhere.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "python3"
        spec.mkdir(parents=True)
        command = [sys.executable, "-c", KERNEL, "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": command, "display_name": "python3", "language": "python"})
        )
        for name, first in (("JUPYTER_PATH", folder), ("PYTHONPATH", str(ROOT))):
            os.environ[name] = os.pathsep.join(filter(None, [first, before.get(name)]))
        # relative to where you typed, kernels run in ROOT
        for name in {"IFCSR_RESULTS", "IFCSR_DATA"} & set(before):
            os.environ[name] = os.path.abspath(user_path(before[name])) if before[name] else ""
        os.environ.setdefault("PYTHONHASHSEED", "0")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
