"""The notebooks through papermill, progress lines, and a report. Nothing is ever run in place.

Most time goes into trainings. Two of them side by side, on a core each, end sooner than one after the other
on both cores. So two notebooks run at once where neither needs the other's results.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
NEEDS = re.compile(r'require\([^\n]*?, cfg, \\?"(\d\d)\\?"\)')  # in a notebook's text
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


def side_by_side(profile: str) -> int:
    """How many notebooks run at once unless told: two where there are cores for them, one at paper scale."""
    return 1 if profile == "paper" else min(2, os.cpu_count() or 1)


def reproduce(
    profile: str = "pocket", seed: int = 0, overrides: dict | None = None, only=None, jobs: int | None = None
) -> list[Path]:
    """Run the notebooks for one config; tables and figures go to cfg.results, executed copies to executed/ in
    there, and report.html says what came out. Its path is the last line that is printed.

    profile, seed, overrides: as in `config.resolve`, checked before anything runs. only: see `notebooks`.
    jobs: how many run at once, at least 1; None takes `side_by_side(profile)`. Each gets its share of the
    cores, unless $OMP_NUM_THREADS says otherwise. A notebook begins when those have ended whose results it
    requires.
    Returns the executed notebooks. Raises RuntimeError naming notebook, cell and error at the first failure
    (what ran beside it is stopped), OSError when the disk is full, ValueError for jobs below 1 and for a
    notebook whose parameters are not exactly profile, seed and overrides.
    """
    cfg = resolve(profile, seed, overrides)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}; allowed: 1 or more notebooks at once")
    todo = notebooks(only)
    for path in todo:
        check_parameters(path)
    folder = Path(os.path.abspath(cfg.results)) / "executed"
    with atomic(folder / "writable") as tmp:  # complains now, not after the first notebook
        tmp.touch()
    (folder / "writable").unlink(missing_ok=True)  # another `reproduce` may have taken it away
    if (free := shutil.disk_usage(folder).free) < NEEDED:
        raise OSError(
            f"no disk space: {free:,} bytes are free in {folder}, a run needs {NEEDED:,}; free some, or "
            f"{remedy(folder, 'on a larger disk')}"
        )
    jobs = min(jobs or side_by_side(cfg.profile), len(todo))
    parameters = {"profile": cfg.profile, "seed": cfg.seed, "overrides": overrides or {}}
    forecast, begin = Forecast([path.stem for path in todo], folder, cfg.profile, jobs), time.monotonic()
    whole = "how long it takes is not known: no earlier run here"
    if forecast.source:
        whole = f"{minutes(forecast.left(), 'about ')}, going by {forecast.source}"
    together = f", {jobs} at a time" if jobs > 1 else ""
    settings = f"profile {cfg.profile}, seed {cfg.seed}, config {cfg.hash}"
    print(f"{len(todo)} notebooks{together}, {settings}; {whole}", flush=True)
    stop = threading.Event()
    with _kernels(jobs) as kernel_of, _warnings_logged(), contextlib.chdir(ROOT):

        def one(path: Path, place: int, done: list[str]) -> None:
            so_far = time.monotonic() - begin
            line = f"[{place}/{len(todo)}] {path.stem}: {minutes(so_far)} so far"
            if forecast.source:
                line += f", {minutes(forecast.left(done, so_far), 'about ')} to go"
            with (
                _progress(line, path.stem if jobs > 1 else None),
                _quiet(folder / f"{path.stem}.log") as log,
            ):
                limit = CELL_LIMIT.get(cfg.profile)
                _run(path, folder / path.name, parameters, kernel_of(path, log), log, limit, line, stop)

        _in_order(todo, forecast.expected, jobs, one, stop)
    print(f"done in {duration(time.monotonic() - begin)}; results in {cfg.results}; the report:", flush=True)
    from .report.page import write

    print(os.path.abspath(write(cfg, [path.stem for path in notebooks()])), flush=True)
    return [folder / path.name for path in todo]


class _Stopped(Exception):
    """A notebook ended because another one had failed, or at Ctrl-C."""


def needs(path: Path, others: list[Path]) -> set[Path]:
    """Those of `others` whose results this notebook requires: results.require(..., cfg, "01") in its text."""
    numbers = set(NEEDS.findall(path.read_text(encoding="utf-8")))
    return {other for other in others if other.name[:2] in numbers}


def _in_order(todo: list[Path], seconds: dict, jobs: int, one, stop: threading.Event) -> None:
    """one(path, its place, stems that have ended) for each path, `jobs` at once, none before those it needs.

    First comes what unlocks most: its own `seconds`, by stem, and those of all that wait for it. At the first
    error, or Ctrl-C, `stop` is set, the kernels of the others are ended, and it is raised.
    """
    waiting, running, done = {path: needs(path, todo) - {path} for path in todo}, {}, set()
    weight = {path: sum(seconds.get(p.stem, 1) for p in _unlocks(path, waiting)) for path in todo}
    with ThreadPoolExecutor(jobs, "notebook") as pool:
        try:
            while waiting or running:
                ready = [path for path, needed in waiting.items() if needed <= done]
                if jobs > 1:
                    ready.sort(key=weight.get, reverse=True)
                for path in ready[: jobs - len(running)]:
                    del waiting[path]
                    place = len(todo) - len(waiting)
                    running[pool.submit(one, path, place, [p.stem for p in done])] = path
                if not running:
                    raise ValueError(f"{', '.join(p.name for p in waiting)} require each other's results")
                ended: set[Future] = wait(running, return_when=FIRST_COMPLETED).done
                for future in ended:
                    future.result()
                    done.add(running.pop(future))
        except BaseException:
            stop.set()
            while wait(running, timeout=0.2).not_done:  # again: one may have begun just now
                _end_kernels()
            raise


def _unlocks(path: Path, needed: dict[Path, set[Path]]) -> set[Path]:
    """path and all that need it, directly or not."""
    found = {path}
    while more := {p for p, by in needed.items() if by & found} - found:
        found |= more
    return found


def _end_kernels() -> None:
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if KERNEL in child.cmdline():
                child.terminate()


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
def _progress(line: str, name: str | None):
    """One line: `line`, and after the block how long it took. On a terminal papermill's bar stands there
    meanwhile, with the same words. name: others may print meanwhile, so the end has a line of its own.
    """
    bar, start = sys.stderr.isatty(), time.monotonic()
    if name:
        _say(line)
    elif not bar:
        print(line, end=" ... ", flush=True)
    word = "failed after "
    try:
        yield
        word = ""
    except _Stopped:
        word = "stopped after "
        raise
    finally:
        took = word + duration(time.monotonic() - start)
        if name:
            _say(f"{' ' * line.index(name)}{name} ... {took}")
        else:
            print(f"{line} ... " * bar + took, flush=True)


def _say(text: str) -> None:
    """A line on stdout, above the bars."""
    from tqdm import tqdm

    tqdm.write(text)
    sys.stdout.flush()


def _run(
    path: Path,
    target: Path,
    parameters: dict,
    kernel: str,
    log: Path,
    limit: int | None,
    line: str,
    stop: threading.Event,
) -> None:
    """Run one notebook; `target` is replaced when it succeeds, otherwise the attempt is kept as
    <name>.failed.ipynb. kernel: its name; log: where it writes; line: what the bar says. Raises RuntimeError,
    or _Stopped and keeps nothing where `stop` is set.
    """
    import papermill

    failed = target.with_suffix(".failed.ipynb")
    with atomic(target) as tmp:
        try:
            papermill.execute_notebook(
                str(path),
                str(tmp),
                parameters,
                kernel_name=kernel,
                start_timeout=180,
                execution_timeout=limit,
                progress_bar={"desc": line, "leave": False, "disable": None},
            )
        except Exception as error:
            if stop.is_set():
                raise _Stopped from error
            if tmp.is_file():
                os.replace(tmp, failed)
            raise RuntimeError(_story(path, failed, log, error)) from error
    failed.unlink(missing_ok=True)


def _story(path: Path, failed: Path, log: Path, error: Exception) -> str:
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
    with contextlib.suppress(OSError):
        if log.stat().st_size:
            files.append(f"what its kernel said: {failed.with_name(f'{path.stem}.log')}")
    return "; ".join([f"{path.name} failed in {cell}{dead}: {last}", *files])


@contextlib.contextmanager
def _warnings_logged():
    """Warnings of this process become log lines."""
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)


@contextlib.contextmanager
def _quiet(log: Path):
    """A new file for what the kernel writes to its stdout and stderr; log lines of this thread go there too.
    After a failure `log` holds them, unless nothing came.
    """
    number, name = tempfile.mkstemp(prefix="ifcsr-kernel-", suffix=".log")  # two runs at once share no file
    os.close(number)
    handler, root = logging.FileHandler(name, encoding="utf-8"), logging.getLogger()
    thread = threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)
    root.addHandler(handler)
    try:
        yield Path(name)
        log.unlink(missing_ok=True)
    except _Stopped:
        raise
    except BaseException:
        if text := Path(name).read_bytes():
            with contextlib.suppress(OSError), atomic(log) as tmp:
                tmp.write_bytes(text)
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
        with contextlib.suppress(OSError):  # Windows, while a kernel still holds it
            Path(name).unlink()


@contextlib.contextmanager
def _kernels(jobs: int):
    """Gives f(notebook, log) -> the name of a kernel for it: this interpreter, whatever is registered on the
    machine, with its share of the cores, which finds ifcsr_lib anywhere and writes to `log`.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:

        def kernel_of(path: Path, log: Path) -> str:
            spec, name = Path(folder) / "kernels" / path.stem, path.stem
            spec.mkdir(parents=True)
            command = [sys.executable, "-c", KERNEL, "-f", "{connection_file}"]
            own = {"IFCSR_KERNEL_LOG": str(log), "IFCSR_NOTEBOOK": path.name}  # the latter for provenance
            (spec / "kernel.json").write_text(
                json.dumps({"argv": command, "display_name": name, "language": "python", "env": own})
            )
            return name

        for name, first in (("JUPYTER_PATH", folder), ("PYTHONPATH", str(ROOT))):
            os.environ[name] = os.pathsep.join(filter(None, [first, before.get(name)]))
        # relative to where you typed, kernels run in ROOT
        for name in {"IFCSR_RESULTS", "IFCSR_DATA"} & set(before):
            os.environ[name] = os.path.abspath(user_path(before[name])) if before[name] else ""
        os.environ.setdefault("PYTHONHASHSEED", "0")
        if jobs > 1:
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        try:
            yield kernel_of
        finally:
            os.environ.clear()
            os.environ.update(before)
